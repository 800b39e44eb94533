"""The command itself: open, refuse, write beside the place, check, put in place, and push where that was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.export.cards import facts_of, leaking, write_exported_cards
from clinstack.export.check import Measured, probe_rows
from clinstack.export.clinical_merged import write_clinical_merged
from clinstack.export.fused import write_fused
from clinstack.export.gguf import find_converter, refuse_without_gguf, write_gguf
from clinstack.export.merged import write_merged
from clinstack.export.plain import write_plain
from clinstack.export.push import push, refuse_push
from clinstack.export.readme import reading_facts, readme
from clinstack.export.source import Source, open_source, public_name
from clinstack.files import replacing_directory, write_json, write_text
from clinstack.model.data_lineage import (
    EXPORT_FILE,
    UNKNOWN,
    DataSource,
    data_of,
    data_of_base,
    distinct,
    openly_publishable,
)
from clinstack.model.lineage import read_stack_record, stack_folder
from clinstack.model.saving import CALIBRATION_FILE

Kind = Literal["merged", "fused", "clinical-merged", "peft", "gguf"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Parameters
    ----------
    folder : Path
    kind : str
    measured : dict of str to Measured
        By folder; "" is the export's own.
    notes : tuple of str
        What a person should know.
    pushed : str or None
        The address on the hub.
    """

    folder: Path
    kind: str
    measured: dict[str, Measured]
    notes: tuple[str, ...]
    pushed: str | None

    @property
    def largest(self) -> Measured:
        """The check with the largest difference."""
        return max(self.measured.values(), key=lambda found: found.difference)


def export(
    paths: Sequence[Path],
    kind: str,
    out: Path,
    *,
    base: str | None = None,
    converter: Path | None = None,
    repository: str | None = None,
    public: bool = False,
    force: bool = False,
) -> Exported:
    """Export a stack, or for ``clinical-merged`` several.

    Parameters
    ----------
    paths : sequence of Path
        Stacks or finished Runs.
    kind : str
        One of `KINDS`.
    out : Path
        Absent, empty, or an earlier export.
    base : str, optional
        Where the base is on this machine.
    converter : Path, optional
        llama.cpp's, for ``gguf``.
    repository : str, optional
        ``ORGANIZATION/NAME`` on the hub to push to.
    public : bool
        Of a new repository.
    force : bool
        Push whatever the lineage says of the data, and the audit of the weights.

    Raises
    ------
    InputError
        If the stack cannot be exported so, ``out`` is something else, or it must not be pushed.
    ExportError
        If what was written gives other outputs than the stack; ``out`` is then as it was.
    """
    _refuse(paths, kind, out, converter)
    if repository is not None:
        records = [read_stack_record(stack_folder(path)) for path in paths]
        refuse_push(repository, _lineage_of(records), force=force, leaking=leaking(paths))
    if kind == "gguf":
        refuse_without_gguf()
        converter = find_converter(converter)
    sources = [open_source(path, base) for path in paths]
    data = _lineage(sources)
    if repository is not None:
        refuse_push(repository, data, force=force)  # a base made by export may add to it
    for source in sources:
        source.stack.data = data
    record = _record(kind, sources, data)
    with replacing_directory(out) as folder:
        measured = _write(kind, sources, folder, converter)
        record["check"] = {place or ".": found.to_dict() for place, found in measured.items()}
        for source in sources:
            calibration = source.folder / CALIBRATION_FILE
            if calibration.is_file() and kind in ("merged", "fused"):
                shutil.copyfile(calibration, folder / CALIBRATION_FILE)
        known = [facts_of(source) for source in sources]
        write_text(folder / "README.md", readme(kind, sources, measured, known))
        write_exported_cards(folder, [""] if len(sources) == 1 else list(measured), known)
        write_json(folder / EXPORT_FILE, record)
    pushed = push(out, repository, public=public) if repository is not None else None
    return Exported(out, kind, measured, tuple(_notes(kind, sources, measured)), pushed)


def _refuse(paths: Sequence[Path], kind: str, out: Path, converter: Path | None) -> None:
    if kind not in KINDS:
        raise InputError(f"--as {kind}: there are {', '.join(KINDS)}.")
    if not paths:
        raise InputError("export: name a Stack or a finished Run.")
    if len(paths) > 1 and kind != "clinical-merged":
        raise InputError(f"--as {kind}: takes one stack; several on one clinical adapter are for clinical-merged.")
    if converter is not None and kind != "gguf":
        raise InputError("--converter: belongs to --as gguf; leave it out.")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / EXPORT_FILE).is_file():
        raise InputError(f"--out: {out} is not empty and was not written by `clinstack export`; name another folder.")
    for path in paths:
        inside, outside = out.resolve(), path.resolve()
        if inside == outside or outside.is_relative_to(inside):
            raise InputError(f"--out: {out} holds the stack {path} itself; name another folder.")


def _write(kind: str, sources: Sequence[Source], folder: Path, converter: Path | None) -> dict[str, Measured]:
    if kind == "clinical-merged":
        return write_clinical_merged(sources, folder)
    if kind == "gguf":
        assert converter is not None
        return {"": write_gguf(sources[0], folder, converter)}
    writers = {"merged": write_merged, "fused": write_fused, "peft": write_plain}
    return {"": writers[kind](sources[0], folder)}


def _lineage_of(records: Sequence[Mapping[str, Any]]) -> tuple[DataSource, ...]:
    return distinct(item for record in records for item in data_of(record) or (UNKNOWN,))


def _lineage(sources: Sequence[Source]) -> tuple[DataSource, ...]:
    """Return what the stacks and their base were trained on; a head on a base counts as all the rest."""
    return distinct([*data_of_base(sources[0].stack.base), *_lineage_of([source.record for source in sources])])


def _record(kind: str, sources: Sequence[Source], data: Sequence[DataSource]) -> dict[str, Any]:
    """Return ``export.json`` without the check; no path of this machine is in it."""
    first = sources[0]
    libraries = ["torch", "transformers", "peft", *(["gguf"] if kind == "gguf" else [])]
    return {
        "format_version": 1,
        "kind": kind,
        "stacks": [
            {
                "fingerprint": source.fingerprint,
                "name": source.label,
                "adapters": [{"name": item.name, "method": item.method} for item in source.stack.adapters],
                "task": None if source.stack.task is None else source.stack.task.to_dict(),
                "reads": reading_facts(source),
            }
            for source in sources
        ],
        "base": {
            "id": public_name(first.stack.base),
            "fingerprint": first.stack.base.fingerprint,
            "quantized_in_training": first.quantized,
        },
        "dtype": first.dtype,
        "probe_tokens": [len(row) for row in probe_rows(first.stack)],
        "data": [item.to_dict() for item in data],
        "openly_publishable": openly_publishable(data),
        "versions": {"clinstack": __version__, **{name: version(name) for name in libraries}},
    }


def _notes(kind: str, sources: Sequence[Source], measured: Mapping[str, Measured]) -> list[str]:
    first = sources[0]
    notes = []
    if first.quantized != "none":
        notes.append(
            f"The stack was trained on the base in {first.quantized.removesuffix('bit')} bits; what was exported is on "
            f"the base in {first.dtype}, and was compared with the stack on that."
        )
    facts = measured[""].facts if "" in measured else {}
    if "rank" in facts and facts["rank"] != facts["ranks_in_use"]:
        notes.append(
            f"The rank is {facts['rank']}, of which {facts['ranks_in_use']} are in use: filled with zeros up to one "
            "that vLLM has."
        )
    readings = [source.stack.reading for source in sources if source.stack.task is not None]
    if kind != "peft" and any(reading.keep != "beginning" or reading.suffix for reading in readings):
        notes.append("How notes are cut and what is written after them is in README.md; plain libraries do not do it.")
    if openly_publishable(first.stack.data) is not True:
        word = "forbids" if openly_publishable(first.stack.data) is False else "is not known to allow"
        notes.append(f"The data that it was trained on {word} publishing it openly.")
    return notes
