"""The files of prepared folders that are held against held-out examples, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.notes.row_batches import batches
from clinstack.notes.splits import SPLITS, assign_splits


@dataclass(frozen=True)
class Stream:
    """Rows of one file that are held against the held-out examples: a task's split, or notes for pretraining.

    ``patients`` are those whose rows count, ``None`` for all; ``same_ids`` says whether identifiers can be compared.
    """

    file: Path
    task: str | None
    split: str
    folder: str
    patients: frozenset[str] | None = None
    same_ids: bool = True

    @property
    def name(self) -> str:
        """How tables and ``contamination.json`` call it."""
        return f"{self.task}/{self.split}" if self.task else f"notes of {self.folder}"

    def between(self, task: str, split: str) -> str | None:
        """Return what an overlap with a held-out example would be, or None where it is none of this one's matter."""
        if self.task is None:
            return "pretraining"
        if self.split == "train":
            return "splits" if self.task == task else "tasks"
        return "splits" if self.task == task and split == "test" else None


def prepared_tasks(data: Path) -> list[str]:
    """Return the tasks of a prepared folder in alphabetical order."""
    if not (data / "prepare.json").is_file():
        raise InputError(f"{data} has no prepare.json; name a folder written by `clinstack prepare`.")
    tasks = sorted(folder.parent.name for folder in (data / "examples").glob("*/task.yaml"))
    if not tasks:
        raise InputError(f"{data / 'examples'} holds no tasks; name a folder written by `clinstack prepare`.")
    return tasks


def checked_against(data: Path, against: Sequence[Path]) -> list[Path]:
    """Return the folders to compare with; raise InputError for one without notes, named twice, or ``data`` itself."""
    seen = {data.resolve()}
    for folder in against:
        if folder.resolve() == data.resolve():
            raise InputError(f"--against {folder} is the folder that is checked; its own notes are always compared.")
        if data.resolve() in folder.resolve().parents or folder.resolve() in data.resolve().parents:
            raise InputError(f"--against {folder} and {data} lie one within the other; move one of them out.")
        if folder.resolve() in seen:
            raise InputError(f"--against names {folder} twice; name each folder once.")
        seen.add(folder.resolve())
        if not (folder / "prepare.json").is_file():
            raise InputError(f"--against {folder} has no prepare.json; name a folder written by `clinstack prepare`.")
        if not any((folder / "notes").glob("*.parquet")):
            raise InputError(f"--against {folder} has no notes/*.parquet, so nothing can be pretrained on it.")
    return list(against)


def streams_of(data: Path, tasks: Sequence[str], against: Sequence[Path]) -> list[Stream]:
    """Return training and validation examples, the notes of train patients, and all notes of other folders."""
    examples = [
        Stream(data / "examples" / task / f"{split}.parquet", task, split, str(data))
        for split in ("train", "validation")
        for task in tasks
    ]
    files = sorted((data / "notes").glob("*.parquet"))
    patients = _train_patients(data, files) if files else None
    own = [Stream(file, None, "train", str(data), patients) for file in files]
    identity = _identity(data)
    others = [
        Stream(file, None, "all", str(folder), None, _identity(folder) == identity)
        for folder in against
        for file in sorted((folder / "notes").glob("*.parquet"))
    ]
    return examples + own + others


def _identity(folder: Path) -> tuple[Any, Any]:
    """Return whose identifiers a folder has: equal numbers of two hospitals are two people."""
    facts = prepare_facts(folder)
    return facts.get("source"), bool(facts.get("synthetic"))


def prepare_facts(folder: Path) -> dict[str, Any]:
    """Return the content of ``prepare.json``."""
    try:
        facts = read_json(folder / "prepare.json")
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise InputError(f"{folder / 'prepare.json'} is damaged; prepare the folder again.")
    return facts


def _train_patients(data: Path, files: Sequence[Path]) -> frozenset[str]:
    """Return the patients whose notes `read_notes` gives to pretraining."""
    if (data / "splits.parquet").is_file():
        split: dict[str, str] = {}
        for _, batch in batches(data / "splits.parquet", ("patient_id", "split")):
            ids = map(str, batch["patient_id"].to_pylist())
            split.update(zip(ids, batch["split"].to_pylist(), strict=True))
    else:
        columns = (batch["patient_id"] for file in files for _, batch in batches(file, ("patient_id",)))
        split = assign_splits({str(item) for column in columns for item in column.to_pylist()}, seed=0)
    return frozenset(patient for patient, name in split.items() if name == SPLITS[0])
