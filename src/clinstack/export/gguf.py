"""``gguf``: an instruction stack as one file for llama.cpp and what is built on it, through llama.cpp's own converter.

The converter (``convert_hf_to_gguf.py``) is a program of llama.cpp's repository and no part of this package: it is run
by this Python on the merged model, and what it wrote is opened anew by transformers and compared.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from clinstack.errors import ClinstackError, InputError
from clinstack.export.check import Measured, compare, padding_of, plain_outputs, probe_rows, quiet, stack_outputs
from clinstack.export.merged import write_merged
from clinstack.export.source import Source

CONVERTER = "convert_hf_to_gguf.py"
FILE = "model.gguf"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""What the converter calls the dtypes."""


_REMEDIES = {
    "pre-tokenizer was not recognized": " llama.cpp knows tokenizers by a list, and this base's is not in it; take a "
    "base with one that it knows.",
    "ModuleNotFoundError": " The converter has requirements of its own; llama.cpp's repository lists them.",
}
"""What to do about a converter's last words."""


def find_converter(given: Path | None) -> Path:
    """Return llama.cpp's converter: the given one, that in the folder ``LLAMA_CPP``, or the one on the PATH.

    Raises
    ------
    InputError
        If there is none.
    """
    if given is not None:
        if not given.is_file():
            raise InputError(f"--converter: {given} is no file; name llama.cpp's {CONVERTER}.")
        return given
    folder = os.environ.get("LLAMA_CPP")
    if folder and (Path(folder) / CONVERTER).is_file():
        return Path(folder) / CONVERTER
    found = shutil.which(CONVERTER)
    if found is None:
        # Such a file need not be executable.
        places = [Path(place) / CONVERTER for place in os.environ.get("PATH", "").split(os.pathsep) if place]
        found = next((str(place) for place in places if place.is_file()), None)
    if found is None:
        raise InputError(
            f"export: --as gguf needs llama.cpp's converter {CONVERTER}, which is not on the PATH nor in the folder "
            "LLAMA_CPP. Take a copy of llama.cpp's repository and name the file: --converter FOLDER/" + CONVERTER + "."
        )
    return Path(found)


def refuse_without_gguf() -> None:
    """Raise an InputError where the library that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError("export: --as gguf needs the library gguf; pip install 'clinstack[gguf]'.")


def write_gguf(source: Source, folder: Path, converter: Path) -> Measured:
    """Merge, convert, and compare; the source's stack cannot be used after it.

    Raises
    ------
    InputError
        If the stack is a classifier or cannot be merged.
    ClinstackError
        If the converter fails, or its file gives other outputs.
    """
    stack = source.stack
    if stack.task is not None:
        raise InputError(
            f"export: this stack is a classifier for {stack.task.name}, and --as gguf is for language models; use "
            "--as merged or --as fused."
        )
    rows, padding = probe_rows(stack), padding_of(stack)
    wanted = stack_outputs(stack, rows)
    merged = folder / "merged"
    before = write_merged(source, merged, "GGUF file")
    _convert(converter, merged, folder / FILE, _TYPES[source.dtype])
    found = {}
    for name, options in {"merged": {}, FILE: {"gguf_file": FILE}}.items():
        with quiet(), redirect_stderr(StringIO()):  # transformers draws a bar there, whatever it is told
            model = AutoModelForCausalLM.from_pretrained(
                folder if options else merged, dtype=torch.float32, local_files_only=True, **options
            )
        found[name] = plain_outputs(model, rows, padding, is_classifier=False)
    shutil.rmtree(merged)
    what = f"{FILE}, opened with transformers,"
    # The same numbers, also where they are rounded: converting changes none.
    conversion = compare(found["merged"], found[FILE], what)
    measured = compare(wanted, found[FILE], what, source.dtype)
    facts = {**before.facts, "type": _TYPES[source.dtype], "conversion": conversion.difference}
    return replace(measured, opened_with="transformers, gguf_file", facts=facts)


def _convert(converter: Path, model: Path, out: Path, kind: str) -> None:
    """Run the converter; what it says stays with us unless it fails."""
    command = [sys.executable, str(converter), str(model), "--outfile", str(out), "--outtype", kind]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode or not out.is_file():
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1] if said else f"it wrote no {out.name}"
        remedy = next((text for words, text in _REMEDIES.items() if words in reason), "")
        raise ClinstackError(f"export: {converter} failed (exit code {done.returncode}): {reason}.{remedy}")
