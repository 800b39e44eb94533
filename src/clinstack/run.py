"""The Run: one directory for one execution of a stage. Locked, resumable, never half-written.

A Run is *done* when ``run.json`` says so, and that is written last. Anything else is unfinished: the next start with
the same recipe and the same inputs continues from the last checkpoint.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from clinstack import __version__
from clinstack.errors import ClinstackError, InputError
from clinstack.files import read_json, recover_directory, write_json, write_text
from clinstack.recipe import AdapterRecipe, StageRecipe, dump_recipe

FORMAT_VERSION = 1
_VERSIONED = ("torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow", "scikit-learn")


class PrunedError(Exception):
    """Raised inside a Run that a sweep gives up early: it ends cleanly, with the status ``pruned``."""


class Run:
    """A Run directory that this process holds the lock of. Open it with `open_run`.

    Attributes
    ----------
    writes : bool
        False in a process that follows the one with the lock (see `follow_run`): what it logs or finishes is not
        written, and files of its own it must not write either.
    """

    def __init__(self, folder: Path, recipe: StageRecipe, record: dict[str, Any], *, writes: bool = True) -> None:
        self.folder = folder
        self.recipe = recipe
        self.record = record
        self.writes = writes
        self._started = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.record["status"] == "done")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def log(self, event: dict[str, Any]) -> None:
        """Append one line to ``log.jsonl``. Numbers and names only: never the text of a note."""
        if not self.writes:
            return
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def log_size(self) -> int:
        """Return the size of the log in bytes, for a checkpoint to remember."""
        path = self.folder / "log.jsonl"
        return path.stat().st_size if path.exists() else 0

    def rewind_log(self, size: int) -> None:
        """Drop what was logged after a checkpoint, because those steps are done again."""
        path = self.folder / "log.jsonl"
        if self.writes and path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Record how long a part of the stage took in this process."""
        self.record["seconds"][name] = round(self.record["seconds"].get(name, 0.0) + seconds, 3)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record how long a block takes under ``name``."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.add_seconds(name, time.monotonic() - begin)

    def finish(self, **facts: Any) -> None:
        """Mark the Run done. The last thing a stage does: everything else must be on disk."""
        if not self.writes:
            return
        self.record.update(facts)
        self.record["status"] = "done"
        self.record["finished"] = _now()
        self.add_seconds("total", time.monotonic() - self._started)
        write_json(self.folder / "run.json", self.record)


@contextmanager
def locked_folder(folder: Path, what: str, refuse: Callable[[], None]) -> Iterator[None]:
    """Make a directory and hold it for this process alone.

    Parameters
    ----------
    folder : Path
    what : str
        What it is the directory of, for messages.
    refuse : callable
        Raises when the directory belongs to something else; called before anything is made.

    Raises
    ------
    InputError
        If it cannot be written.
    ClinstackError
        If another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"run: {folder} is a file; name a directory.")
    refuse()
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ClinstackError(f"{folder}: another process is working on this {what}; wait for it or stop it.") from None
    except OSError as error:
        raise InputError(f"run: {folder} cannot be written ({error.strerror}); name another directory.") from None
    try:
        yield
    finally:
        lock.release()


_OF_A_START = {".lock", "recipe.yaml", "run.json"}
"""All that a Run holds before its stage has done anything."""


@contextmanager
def open_run(recipe: StageRecipe, inputs: dict[str, str], *, fresh: bool = False, **facts: Any) -> Iterator[Run]:
    """Create the Run of a recipe, or reopen it.

    Parameters
    ----------
    recipe : StageRecipe
        ``recipe.run`` names the directory.
    inputs : dict of str to str
        Path or name of each input and its hash.
    fresh : bool
        Delete what an earlier start left, also a finished Run.
    **facts
        Further entries of ``run.json``, such as ``stage`` and ``label``.

    Raises
    ------
    InputError
        If the directory belongs to something else, to another recipe, or the inputs changed since it began.
    ClinstackError
        If another process is working on it.
    """
    folder = Path(recipe.run)
    with locked_folder(folder, "Run", lambda: _refuse_foreign_folder(folder, recipe)):
        if fresh:
            _empty(folder)
        record = _reopen(folder, recipe, inputs) or _create(folder, recipe, inputs, facts)
        run = Run(folder, recipe, record)
        try:
            yield run
        except PrunedError:
            run.record["status"] = "pruned"
            run.add_seconds("total", time.monotonic() - run._started)
            write_json(folder / "run.json", run.record)
            raise
        except Exception as error:
            if isinstance(error, InputError) and {item.name for item in folder.iterdir()} <= _OF_A_START:
                # Refused before any work: the corrected recipe finds no Run of another one in its way.
                _empty(folder)
            elif not run.is_done:
                # The kind of error only: its message could quote data.
                run.record["status"] = "failed"
                run.record["error"] = type(error).__name__
                write_json(folder / "run.json", run.record)
            raise


def follow_run(recipe: StageRecipe) -> Run:
    """Return the Run that another process of the same start has opened and holds; this one reads it only."""
    folder = Path(recipe.run)
    return Run(folder, recipe, read_json(folder / "run.json"), writes=False)


def is_finished(recipe: StageRecipe, inputs: dict[str, str]) -> bool:
    """Whether a finished Run of exactly this recipe and these inputs is on disk. Reads two small files."""
    folder = Path(recipe.run)
    if not (folder / "run.json").is_file():
        return False
    record = read_json(folder / "run.json")
    if record["status"] != "done" or record["inputs"] != inputs:
        return False
    before, now = (folder / "recipe.yaml").read_text(encoding="utf-8"), dump_recipe(recipe)
    if before == now:
        return True
    # A key that a later version added and that is null says nothing else than its absence.
    return not any(_differences(_deciding(yaml.safe_load(before)), _deciding(yaml.safe_load(now))))


def adapter_files(adapters: Sequence[AdapterRecipe]) -> list[Path]:
    """Return the weights of the adapters that a recipe reads: inputs of its Run as much as its tables are.

    Of an unfinished Run there are none, so what was done on an earlier one does not count as done.
    """
    return [
        file
        for adapter in adapters
        if adapter.path is not None
        for place in (".", "*", "stack/*")
        for name in ("adapter_model", "encoder", "model*")  # the last is a fully fine-tuned base
        for file in sorted(Path(adapter.path).glob(f"{place}/{name}.safetensors"))
    ]


def _refuse_foreign_folder(folder: Path, recipe: StageRecipe) -> None:
    if folder.is_dir() and not (folder / "run.json").exists():
        strangers = sorted(item.name for item in folder.iterdir() if item.name != ".lock")
        strangers = [name for name in strangers if not name.endswith(".partial")]
        # A start killed at once leaves its resolved recipe; any other is somebody's own and would be overwritten.
        if strangers == ["recipe.yaml"] and (folder / "recipe.yaml").read_text("utf-8") == dump_recipe(recipe):
            return
        if strangers:
            raise InputError(f"run: {folder} is not empty and is not a Run (it has {strangers[0]}); name another.")


def _empty(folder: Path) -> None:
    """Delete what a Run holds. Killed midway, it leaves an unfinished Run, never one that seems done."""
    path = folder / "run.json"
    if path.is_file():
        with suppress(ValueError):
            write_json(path, {**read_json(path), "status": "running"})
    last = (".lock", "run.json", "recipe.yaml")
    for item in sorted(folder.iterdir(), key=lambda item: last.index(item.name) if item.name in last else -1):
        if item.name == ".lock":
            continue
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()


def _reopen(folder: Path, recipe: StageRecipe, inputs: dict[str, str]) -> dict[str, Any] | None:
    path = folder / "run.json"
    if not path.exists():
        return None
    remedy = "Name another run directory, or pass --fresh to begin anew (what is there is deleted)."
    try:
        record: dict[str, Any] = read_json(path)
        before = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise InputError(f"{folder}: run.json or recipe.yaml is damaged ({type(error).__name__}). {remedy}") from None
    if record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {record.get('format_version')}; this clinstack reads {FORMAT_VERSION}."
        )
    # The directory is this one, however its path is written now.
    now = yaml.safe_load(dump_recipe(recipe)) | {"run": before.get("run")}
    changes = [f"{key}: {old!r} -> {new!r}" for key, old, new in _differences(_deciding(before), _deciding(now))]
    if changes:
        raise InputError(f"{folder} was begun with another recipe ({'; '.join(changes[:5])}). {remedy}")
    changed = sorted(name for name in {*record["inputs"], *inputs} if record["inputs"].get(name) != inputs.get(name))
    if changed:
        raise InputError(f"{folder}: the input {changed[0]} has changed since this Run began. {remedy}")
    if record["status"] != "done":
        recover_directory(folder / "stack")
        record["status"] = "running"
        record["starts"] += 1
        record.pop("error", None)
        write_json(path, record)
    return record


def _create(folder: Path, recipe: StageRecipe, inputs: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    record = {
        "format_version": FORMAT_VERSION,
        "status": "running",
        **facts,
        "created": _now(),
        "starts": 1,
        "seconds": {},
        **environment(),
        "seeds": recipe.seeds_by_use,
        "inputs": inputs,
    }
    # The recipe first: a directory with run.json always has its recipe.
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    write_json(folder / "run.json", record)
    return record


def _deciding(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without what says only when features are computed, which changes no result."""
    result = {key: value for key, value in values.items() if key != "share_features"}
    if isinstance(result.get("overrides"), dict):  # of a sweep
        result["overrides"] = _deciding(result["overrides"])
    return result


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, dict[str, Any]]:
    """Return the versions and the hardware that a Run records. Asks the running process only, not the network."""
    versions = {"clinstack": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    hardware: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None:
        hardware["threads"] = torch.get_num_threads()
        hardware["accelerator"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {"versions": versions, "hardware": hardware}
