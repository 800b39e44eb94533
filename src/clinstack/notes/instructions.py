"""The table of instructions: a note, a question about it and its answer, on disk and in memory.

The tasks are the eight of Kweon et al. 2024, "Publicly Shareable Clinical Large Language Model Built on Synthetic
Clinical Notes" (Asclepius).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import write_json
from clinstack.notes.row_batches import batches, check_columns
from clinstack.notes.splits import SPLITS, assign_splits, splits_of

if TYPE_CHECKING:
    from clinstack.notes.attrition import Attrition
    from clinstack.notes.prepared import PreparedFolder

TASKS = (
    "Named Entity Recognition",
    "Abbreviation Expansion",
    "Relation Extraction",
    "Temporal Information Extraction",
    "Coreference Resolution",
    "Paraphrasing",
    "Summarization",
    "Question Answering",
)
COLUMNS = ("example_id", "patient_id", "note", "question", "answer", "task")
"""Of the table, all of them text; ``answerable`` (truth values), ``source`` and others may follow."""
MOST_TASKS = 64
"""Task names stand in metrics and messages, so a column of texts must not pass for them."""
FOLDER = "instructions"
_ROW_GROUP = 2048


@dataclass(frozen=True)
class Instructions:
    """Instructions of one split, column by column; ``answerable`` is None where the table does not say it."""

    example_ids: list[str] = field(default_factory=list)
    patient_ids: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    answerable: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    def chosen(self, places: Sequence[int]) -> Instructions:
        """Return the rows at ``places``, in that order."""

        def column(values: list[str]) -> list[str]:
            return [values[place] for place in places]

        return Instructions(
            column(self.example_ids),
            column(self.patient_ids),
            column(self.notes),
            column(self.questions),
            column(self.answers),
            column(self.tasks),
            None if self.answerable is None else [self.answerable[place] for place in places],
        )

    def sample(self, most: int | None, seed: int) -> Instructions:
        """Return at most ``most`` rows (None for all), drawn by ``seed`` and the example ids, in the table's order.

        A row's rank depends on its id and the seed alone, so that a larger sample holds the smaller one.
        """
        if most is None or most >= len(self):
            return self
        ranks = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in self.example_ids]
        drawn = sorted(range(len(self)), key=lambda place: (ranks[place], self.example_ids[place]))[:most]
        return self.chosen(sorted(drawn))


def instruction_files(folder: Path) -> list[Path]:
    """Return the tables of instructions and, where it stands beside them, of their patients' splits.

    Raises
    ------
    InputError
        If there are none.
    """
    files = _tables(folder)
    splits = folder / "splits.parquet"
    return [*files, splits] if splits.is_file() else files


def _tables(folder: Path) -> list[Path]:
    files = sorted((folder / FOLDER).glob("*.parquet"))
    if not files:
        raise InputError(
            f"instructions: {folder} has no {FOLDER}/*.parquet; name a folder written by `clinstack prepare "
            "asclepius`, `clinstack prepare oracle` or `clinstack synthesize instructions`."
        )
    return files


def read_instructions(folder: Path, required: Sequence[str] = SPLITS) -> dict[str, Instructions]:
    """Read instructions, split by patient: by ``splits.parquet``, or by a hash of the patient id where it is missing.

    Parameters
    ----------
    folder : Path
        Written by `clinstack prepare` or `clinstack synthesize`.
    required : sequence of str
        Splits that must have rows; the others may be empty.

    Returns
    -------
    dict of str to Instructions
        For each of train, validation and test; equal notes are one string in memory.

    Raises
    ------
    InputError
        If a table or a column is missing or of another type, a field is empty, an example id stands twice, a patient
        has no split, a split that is required has no rows, or there are more than `MOST_TASKS` tasks.
    """
    files = _tables(folder)
    for file in files:
        _check_table(file)
    says = [file for file in files if "answerable" in pq.read_schema(file).names]
    if says and len(says) < len(files):
        other = next(file for file in files if file not in says)
        raise InputError(f"{other}: the column answerable is missing, but {says[0]} has it; give it to all or none.")
    rows = _read_rows(files, with_answerable=bool(says))
    kinds = len(set(rows.tasks))
    if kinds > MOST_TASKS:
        raise InputError(
            f"instructions: {folder} has {kinds:,} different tasks, and {MOST_TASKS} are the most; is task another "
            "column? It names the kind of a question."
        )
    split_of = splits_of(folder, sorted(set(rows.patient_ids)), "instructions")
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for place, patient in enumerate(rows.patient_ids):
        places[split_of[patient]].append(place)
    for split in required:
        if not places[split]:
            raise InputError(f"instructions: {folder} has no rows of {split} patients; prepare more patients.")
    return {split: rows.chosen(found) for split, found in places.items()}


def _check_table(file: Path) -> None:
    check_columns(file, COLUMNS)
    schema = pq.read_schema(file)
    for name in COLUMNS:
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{file}: the column {name} holds {kind}; write it as text.")
    if "answerable" in schema.names and not pa.types.is_boolean(schema.field("answerable").type):
        kind = schema.field("answerable").type
        raise InputError(f"{file}: the column answerable holds {kind}; write it as true or false.")


def _read_rows(files: Sequence[Path], *, with_answerable: bool) -> Instructions:
    """Read all rows in the tables' order and refuse empty fields and repeated ids."""
    columns = [*COLUMNS, "answerable"] if with_answerable else list(COLUMNS)
    rows = Instructions(answerable=[] if with_answerable else None)
    targets = (rows.example_ids, rows.patient_ids, rows.notes, rows.questions, rows.answers, rows.tasks)
    seen: dict[str, str] = {}
    one_string: dict[str, str] = {}
    for file in files:
        for first, batch in batches(file, columns):
            values = {name: batch[name].to_pylist() for name in columns}
            for name in columns:
                empty = next((at for at, value in enumerate(values[name]) if value is None or value == ""), None)
                if empty is not None:
                    raise InputError(f"{file}, row {first + empty + 1}: {name} is empty; fill it in, or drop the row.")
            for at, name in enumerate(values["example_id"]):
                where = f"{file}, row {first + at + 1}"
                if name in seen:
                    raise InputError(f"{where}: the example_id {name} also stands in {seen[name]}; ids are unique.")
                seen[name] = where
            values["note"] = [one_string.setdefault(note, note) for note in values["note"]]
            for name, target in zip(COLUMNS, targets, strict=True):
                target.extend(values[name])
            if rows.answerable is not None:
                rows.answerable.extend(values["answerable"])
    return rows


def write_instructions(
    prepared: PreparedFolder,
    rows: pa.Table | Iterable[pa.Table],
    attrition: Attrition,
    facts: dict[str, Any],
    seed: int,
    splits: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write the instructions of a folder, its splits, its attrition and ``prepare.json``.

    Parameters
    ----------
    prepared : PreparedFolder
        The folder while it is written (`clinstack.notes.prepared.prepared_folder`).
    rows : Table or iterable of Table
        With `COLUMNS`, and further columns that stay as they are; the tables of an iterable have one schema, and only
        one of them is in memory at a time.
    attrition : Attrition
        Saved when all rows are written: steps may be added while they are read.
    facts : dict
        Of ``prepare.json``; at least ``source`` and ``synthetic``. May hold ``license``.
    seed : int
        Of the split by patient, where ``splits`` is not given.
    splits : dict of str to str, optional
        The split of each patient in the Notes that the instructions were made from: patients stay on their side.

    Returns
    -------
    dict
        The content of ``prepare.json``, with ``counts``: rows, patients of each split and rows of each task.

    Raises
    ------
    InputError
        If no row is left, or ``splits`` lacks a patient.
    """
    target = prepared.folder / FOLDER
    target.mkdir()
    path = target / "instructions.parquet"
    tables = [rows] if isinstance(rows, pa.Table) else rows
    by_patient_task: Counter[tuple[str, str]] = Counter()
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(path, _schema(table.schema), compression="zstd")
            writer.write_table(table.select(writer.schema.names).cast(writer.schema), row_group_size=_ROW_GROUP)
            by_patient_task.update(zip(table["patient_id"].to_pylist(), table["task"].to_pylist(), strict=True))
    finally:
        if writer is not None:
            writer.close()
    if not by_patient_task:
        kept = ", ".join(f"{step['step']}: {step['kept']:,}" for step in attrition.steps)
        raise InputError(f"No instruction is left{f' ({kept})' if kept else ''}; look at the source and the filters.")
    patients = {patient for patient, _ in by_patient_task}
    split_of = assign_splits(patients, seed) if splits is None else _chosen_splits(splits, patients)
    in_splits = prepared.use_splits(split_of)
    in_split: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for (patient, task), count in by_patient_task.items():
        in_split[split_of[patient]][task] += count
    by_split = {
        split: {"rows": found.total(), "patients": in_splits[split], "tasks": dict(sorted(found.items()))}
        for split, found in in_split.items()
    }
    write_json(target / "attrition.json", {"steps": attrition.steps, "splits": by_split})
    counts = {
        "instructions": by_patient_task.total(),
        "patients": in_splits,
        "tasks": dict(sorted(sum(in_split.values(), Counter[str]()).items())),
        **facts.get("counts", {}),
    }
    return prepared.finish({**facts, "seed": seed, "counts": counts})


def _schema(found: pa.Schema) -> pa.Schema:
    """Put the columns of the contract first, as strings; the others follow with their types."""
    others = [found.field(name) for name in found.names if name not in COLUMNS]
    return pa.schema([*(pa.field(name, pa.string()) for name in COLUMNS), *others])


def _chosen_splits(splits: dict[str, str], patients: Iterable[str]) -> dict[str, str]:
    ordered = sorted(patients)
    unknown = next((patient for patient in ordered if patient not in splits), None)
    if unknown is not None:
        raise InputError(f"splits.parquet: the patient {unknown} of the notes is not in it; prepare the Notes again.")
    return {patient: splits[patient] for patient in ordered}
