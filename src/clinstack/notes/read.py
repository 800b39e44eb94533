"""Reading Notes from disk for the stages, and refusing tables that break the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.notes.row_batches import batches, check_columns
from clinstack.notes.sections.find import SectionSpan
from clinstack.notes.splits import splits_of
from clinstack.tasks import Task

SPLITS = ("train", "validation", "test")
TOKENS = "tokens"
"""Folder of the tokenised notes in a folder of Notes."""
NOTE_COLUMNS = ("note_id", "patient_id", "note_type", "text")


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
    encounter_ids: list[str | None] | None = None
    """Of which admission each example is, where the table has the column ``encounter_id``."""

    def chosen(self, places: Sequence[int]) -> Examples:
        """Return some of the examples, in the order of their places."""

        def at(column: list[Any]) -> list[Any]:
            return [column[place] for place in places]

        return Examples(
            at(self.example_ids),
            at(self.patient_ids),
            at(self.texts),
            at(self.labels),
            None if self.sections is None else at(self.sections),
            None if self.encounter_ids is None else at(self.encounter_ids),
        )


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
    """Return the tables of notes and, where it stands beside them, of their patients' splits.

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


@dataclass(frozen=True)
class NotesSurvey:
    """What one look at the small columns of Notes tells.

    Parameters
    ----------
    folder : Path
    note_types : frozenset of str or None
        The types that were asked for; None for all.
    split_of : dict of str to str
        The split of each patient.
    notes : dict of str to int
        Notes of each split's patients, of those types.
    """

    folder: Path
    note_types: frozenset[str] | None
    split_of: dict[str, str]
    notes: dict[str, int]


def survey_notes(folder: Path, note_types: Sequence[str] | None = None) -> NotesSurvey:
    """Check the tables of notes, and split their patients.

    By ``splits.parquet`` where it stands in ``folder``; else by a hash of the patient id, 70/10/20.

    Raises
    ------
    InputError
        If a table or a column is missing, a note type is asked for that does not occur, or a split has no notes.
    """
    files = _note_tables(folder)
    for file in files:
        check_columns(file, NOTE_COLUMNS)
    counts: Counter[tuple[str, str]] = Counter()
    for file in files:
        for _, batch in batches(file, ("patient_id", "note_type")):
            patients, kinds = (map(str, batch[name].to_pylist()) for name in ("patient_id", "note_type"))
            counts.update(zip(patients, kinds, strict=True))
    split_of = splits_of(folder, sorted({patient for patient, _ in counts}), "notes")
    occurring = {kind for _, kind in counts}
    missing = sorted(set(note_types or ()) - occurring)
    if missing:
        raise InputError(f"note_types: {missing[0]!r} does not occur; there are {', '.join(sorted(occurring))}.")
    wanted = None if note_types is None else frozenset(note_types)
    notes = dict.fromkeys(SPLITS, 0)
    for (patient, kind), count in counts.items():
        if wanted is None or kind in wanted:
            notes[split_of[patient]] += count
    for name, count in notes.items():
        if not count:
            raise InputError(f"notes: {folder} has no notes of {name} patients; prepare more patients.")
    return NotesSurvey(folder, wanted, split_of, notes)


def stream_notes(survey: NotesSurvey, split: str) -> Iterator[NotesSplit]:
    """Yield the notes of a split's patients a few at a time, in the tables' order; those without text are left out."""
    for file in _note_tables(survey.folder):
        for _, batch in batches(file, NOTE_COLUMNS):
            part = NotesSplit([], [], [], [])
            for note_id, patient, kind, text in zip(*(batch[name].to_pylist() for name in NOTE_COLUMNS), strict=True):
                wanted = survey.note_types is None or str(kind) in survey.note_types
                if text and wanted and survey.split_of[str(patient)] == split:
                    part.note_ids.append(str(note_id))
                    part.patient_ids.append(str(patient))
                    part.note_types.append(str(kind))
                    part.texts.append(text)
            if part.texts:
                yield part


def read_notes(folder: Path, note_types: Sequence[str] | None) -> dict[str, NotesSplit]:
    """Read all notes into memory, split by patient; for few of them, `stream_notes` is for many.

    Raises
    ------
    InputError
        As `survey_notes` does.
    """
    survey = survey_notes(folder, note_types)
    result = {split: NotesSplit([], [], [], []) for split in SPLITS}
    for split, whole in result.items():
        for part in stream_notes(survey, split):
            whole.note_ids.extend(part.note_ids)
            whole.patient_ids.extend(part.patient_ids)
            whole.note_types.extend(part.note_types)
            whole.texts.extend(part.texts)
    return result


def _note_tables(folder: Path) -> list[Path]:
    return [file for file in notes_files(folder) if file != folder / "splits.parquet"]


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
        table = _read(path, ("example_id", "patient_id", "text", "label"), optional=("sections", "encounter_id"))
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
            section_spans(table, path) if "sections" in table.column_names else None,
            _words(table["encounter_id"]) if "encounter_id" in table.column_names else None,
        )
    return task, result


def _words(column: pa.ChunkedArray) -> list[str | None]:
    return [None if item is None else str(item) for item in column.to_pylist()]


def section_spans(table: pa.Table, path: Path, first: int = 1) -> list[list[SectionSpan] | None]:
    """Return the sections of each row's text, None where nobody looked; the rows are counted from ``first``.

    Raises
    ------
    InputError
        If they do not cover the text.
    """
    result: list[list[SectionSpan] | None] = []
    rows = zip(table["sections"].to_pylist(), table["text"].to_pylist(), strict=True)
    for row, (items, text) in enumerate(rows, first):
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
