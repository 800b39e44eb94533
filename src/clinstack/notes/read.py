"""Reading Notes from disk for the stages, and refusing tables that break the contract."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.notes.sections.find import SectionSpan
from clinstack.notes.splits import assign_splits
from clinstack.tasks import Task

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class NotesSplit:
    """The notes of one split's patients, column by column."""

    note_ids: list[str]
    patient_ids: list[str]
    note_types: list[str]
    texts: list[str]


@dataclass(frozen=True)
class Examples:
    """A task's examples of one split, column by column; a label is a class index or a list of codes."""

    example_ids: list[str]
    patient_ids: list[str]
    texts: list[str]
    labels: list[Any]
    sections: list[list[SectionSpan] | None] | None = None
    """The sections of each text, where the table has the column ``sections``; None for a text without."""


def is_synthetic(folder: Path) -> bool:
    """Whether Notes say that they are invented; ``folder`` is the Notes or a task's examples in them."""
    for place in (folder, folder.parent.parent):
        if (place / "prepare.json").is_file():
            return bool(read_json(place / "prepare.json").get("synthetic"))
    return False


def input_hashes(files: Sequence[Path]) -> dict[str, str]:
    """Return the hash of each input file, for the Run to remember."""
    return {str(file): sha256_file(file) for file in files}


def notes_files(folder: Path) -> list[Path]:
    """Return the tables that `read_notes` reads.

    Raises
    ------
    InputError
        If there are none.
    """
    files = sorted((folder / "notes").glob("*.parquet"))
    if not files:
        raise InputError(f"notes: {folder} has no notes/*.parquet; name a folder written by `clinstack prepare`.")
    splits = folder / "splits.parquet"
    return [*files, splits] if splits.is_file() else files


def read_notes(folder: Path, note_types: Sequence[str] | None) -> dict[str, NotesSplit]:
    """Read all notes, split by patient.

    By ``splits.parquet`` where it stands in ``folder``; else by a hash of the patient id, 70/10/20.

    Raises
    ------
    InputError
        If a table or a column is missing, or a note type is asked for that does not occur.
    """
    tables = [
        _read(file, ("note_id", "patient_id", "note_type", "text"))
        for file in notes_files(folder)
        if file.name != "splits.parquet"
    ]
    table = pa.concat_tables(tables, promote_options="default")
    patients = [str(item) for item in table["patient_id"].to_pylist()]
    if (folder / "splits.parquet").is_file():
        split_table = _read(folder / "splits.parquet", ("patient_id", "split"))
        ids = (str(item) for item in split_table["patient_id"].to_pylist())
        split_of = dict(zip(ids, split_table["split"].to_pylist(), strict=True))
        foreign = next((split for split in split_of.values() if split not in SPLITS), None)
        if foreign is not None:
            raise InputError(f"{folder / 'splits.parquet'}: the split {foreign!r} is none of {', '.join(SPLITS)}.")
        unknown = next((patient for patient in patients if patient not in split_of), None)
        if unknown is not None:
            raise InputError(f"{folder / 'splits.parquet'}: the patient {unknown} of the notes is not in it.")
    else:
        split_of = assign_splits(sorted(set(patients)), seed=0)
    kinds = [str(item) for item in table["note_type"].to_pylist()]
    missing = sorted(set(note_types or ()) - set(kinds))
    if missing:
        raise InputError(f"note_types: {missing[0]!r} does not occur; there are {', '.join(sorted(set(kinds)))}.")
    note_ids, texts = table["note_id"].to_pylist(), table["text"].to_pylist()
    result = {split: NotesSplit([], [], [], []) for split in SPLITS}
    for note_id, patient, kind, text in zip(note_ids, patients, kinds, texts, strict=True):
        if text and (note_types is None or kind in note_types):
            split = result[split_of[patient]]
            split.note_ids.append(str(note_id))
            split.patient_ids.append(patient)
            split.note_types.append(kind)
            split.texts.append(text)
    for name, split in result.items():
        if not split.texts:
            raise InputError(f"notes: {folder} has no notes of {name} patients; prepare more patients.")
    return result


def sample_notes(notes: NotesSplit, most: int | None, seed: int) -> NotesSplit:
    """Return at most ``most`` notes, drawn by ``seed``, in their order."""
    if most is None or most >= len(notes.texts):
        return notes
    chosen = sorted(random.Random(seed).sample(range(len(notes.texts)), most))
    return NotesSplit(
        [notes.note_ids[index] for index in chosen],
        [notes.patient_ids[index] for index in chosen],
        [notes.note_types[index] for index in chosen],
        [notes.texts[index] for index in chosen],
    )


def examples_files(folder: Path) -> list[Path]:
    """Return the files that `read_examples` reads.

    Raises
    ------
    InputError
        If one is missing.
    """
    files = [folder / f"{split}.parquet" for split in SPLITS]
    for file in [*files, folder / "task.yaml"]:
        if not file.is_file():
            raise InputError(f"examples: {file} is missing; name a task's folder written by `clinstack prepare`.")
    return [*files, folder / "task.yaml"]


def read_examples(folder: Path) -> tuple[Task, dict[str, Examples]]:
    """Read a task and its examples.

    Raises
    ------
    InputError
        If a file, a column or a label is wrong, or a patient is in two splits.
    """
    examples_files(folder)
    task = Task.load(folder)
    result: dict[str, Examples] = {}
    split_of: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        table = _read(path, ("example_id", "patient_id", "text", "label"), optional=("sections",))
        if table.num_rows == 0:
            raise InputError(f"{path} has no rows; prepare more patients.")
        columns = {name: table[name].to_pylist() for name in ("example_id", "patient_id", "text", "label")}
        for row, label in enumerate(columns["label"]):
            _check_label(task, label, f"{path}, row {row + 1}")
        for patient in {str(item) for item in columns["patient_id"]}:
            if split_of.setdefault(patient, split) != split:
                raise InputError(f"{path}: the patient {patient} is also in {split_of[patient]}; split by patient.")
        result[split] = Examples(
            [str(item) for item in columns["example_id"]],
            [str(item) for item in columns["patient_id"]],
            [item or "" for item in columns["text"]],
            columns["label"],
            _section_spans(table, path) if "sections" in table.column_names else None,
        )
    return task, result


def _section_spans(table: pa.Table, path: Path) -> list[list[SectionSpan] | None]:
    result: list[list[SectionSpan] | None] = []
    rows = zip(table["sections"].to_pylist(), table["text"].to_pylist(), strict=True)
    for row, (items, text) in enumerate(rows, 1):
        if items is None:
            result.append(None)
            continue
        try:
            spans = [SectionSpan(item["name"] or None, int(item["start"]), int(item["end"])) for item in items]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}, row {row}: sections is not a list of name, start and end.") from None
        edges = [0, *(span.end for span in spans)]
        if [span.start for span in spans] != edges[:-1] or edges != sorted(edges) or edges[-1] != len(text or ""):
            raise InputError(
                f"{path}, row {row}: its sections do not cover the text from end to end; remove the column sections, "
                "and they are found again."
            )
        result.append(spans)
    return result


def _check_label(task: Task, label: Any, where: str) -> None:
    if label is None:
        raise InputError(f"{where}: the label is empty; drop the row or give it one.")
    if task.kind == "multilabel":
        if not isinstance(label, list):
            raise InputError(f"{where}: the label of a multilabel task is a list of codes, this is {label!r}.")
        unknown = next((code for code in label if code not in task.classes), None)
        if unknown is not None:
            raise InputError(f"{where}: the code {unknown!r} is not a class of task.yaml.")
    elif not isinstance(label, int) or not 0 <= label < len(task.classes):
        raise InputError(f"{where}: the label {label!r} is not a class index from 0 to {len(task.classes) - 1}.")


def _read(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({type(error).__name__}).") from None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise InputError(f"{path}: the column {missing[0]} is missing; it has {', '.join(table.column_names)}.")
    return table.select([*columns, *(column for column in optional if column in table.column_names)])
