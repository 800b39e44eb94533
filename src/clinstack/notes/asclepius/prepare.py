"""From a table of notes, questions and answers to instructions, and to the notes that a model can be pretrained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.notes.asclepius.filters import answer_asks, has_phrase
from clinstack.notes.asclepius.tables import find_columns, open_tables, read_tables
from clinstack.notes.attrition import Attrition
from clinstack.notes.instructions import TASKS, write_instructions
from clinstack.notes.prepared import NOTES_COLUMNS, Progress, prepared_folder
from clinstack.notes.sources.table_readers import TableReader

RELEASED = frozenset({"patient_id", "note", "question", "answer", "task"})
"""Columns of starmpcc/Asclepius-Synthetic-Clinical-Notes."""
RELEASED_LICENSE = "cc-by-nc-sa-4.0"
NOTE_TYPE = "Discharge summary"
_FILLED = "note, question and answer filled"
_PATIENT = "patient filled"
_ONCE = "not an exact duplicate"
_PHRASES = "no phrase in which a model speaks of itself"
_ASKS = "answer is no question"


@dataclass(frozen=True)
class AsclepiusOptions:
    """What a table's columns are called, and which rows stay.

    Parameters
    ----------
    columns : dict of str to str
        The name in the instructions to that in the table, where they differ.
    filters : bool
        The published filters.
    task : str
        Of rows without one.
    seed : int
        Of the split by patient.
    synthetic : bool
        The notes are invented, as those of the released data set are.
    license : str or None
        For the data sheet; that of the released data set when the table has exactly its columns.
    notes : bool
        Also write the table of notes, for pretraining.
    """

    columns: dict[str, str] = field(default_factory=dict)
    filters: bool = False
    task: str = "Question Answering"
    seed: int = 0
    synthetic: bool = False
    license: str | None = None
    notes: bool = True


def prepare_asclepius(
    source: Path, out: Path, options: AsclepiusOptions | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Prepare instructions from csv, Parquet or JSON Lines.

    The rows are read once, a batch at a time; of those before it only hashes are in memory.

    Parameters
    ----------
    source : Path
        A file, or a folder of files with the same columns.
    out : Path
        Folder to write, in one step at the end.
    options : AsclepiusOptions, optional
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``; ``patients_are_notes`` says that each distinct note was taken for a patient.

    Raises
    ------
    InputError
        If a file, a column or a value is wrong, the files differ in their columns, or no row is left.
    """
    options = options or AsclepiusOptions()
    tables = open_tables(source)
    found = _same_columns(tables, options)
    attrition, counts, hashes = Attrition(), dict[str, int](), dict[str, str | None]()
    facts = {
        "source": "asclepius",
        "synthetic": options.synthetic,
        "license": options.license or _released_license(tables, options),
        "filters": options.filters,
        "patients_are_notes": "patient_id" not in found,
        "task_of_all": None if "task" in found else options.task,
        "tables": hashes,
        "counts": counts,
    }
    with prepared_folder(out, progress) as prepared, _NotesWriter(prepared.folder, wanted=options.notes) as notes:

        def rows() -> Iterator[pa.Table]:
            chosen = _Chosen(options, with_patients="patient_id" in found)
            for table in read_tables(tables, options.columns, _bar(progress, "Reading rows")):
                kept = chosen.kept(table)
                if kept.num_rows:
                    notes.write(kept)
                    yield kept
            chosen.add_steps(attrition)
            counts["notes"] = notes.written
            hashes.update({table.place: table.digest() for table in tables})

        return write_instructions(prepared, rows(), attrition, facts, options.seed)


def _bar(progress: Progress | None, words: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(words, done, total)


def _same_columns(tables: Sequence[TableReader], options: AsclepiusOptions) -> set[str]:
    """Return which columns of the instructions the files have; all have the same."""
    first = set(find_columns(tables[0], options.columns))
    for table in tables[1:]:
        differing = sorted(first ^ set(find_columns(table, options.columns)))
        if differing:
            raise InputError(
                f"{table.place} and {tables[0].place} differ: only one has {differing[0]}. Prepare them one by one, "
                "or give both the column."
            )
    return first


def _released_license(tables: Sequence[TableReader], options: AsclepiusOptions) -> str | None:
    released = not options.columns and all(set(table.columns) == RELEASED for table in tables)
    return f"{RELEASED_LICENSE}, as the released data set of these columns" if released else None


class _Chosen:
    """Which rows stay, batch after batch, and how many each step removed."""

    def __init__(self, options: AsclepiusOptions, *, with_patients: bool) -> None:
        self._options = options
        self._with_patients = with_patients
        self._seen: set[bytes] = set()
        self._ids: set[str] = set()
        self._kept: Counter[str] = Counter()
        self._steps = ["rows", _FILLED, *([_PATIENT] if with_patients else []), _ONCE]
        self._steps += [_PHRASES, _ASKS] if options.filters else []
        self._task_of = {task.lower(): task for task in TASKS}

    def kept(self, table: pa.Table) -> pa.Table:
        """Return the rows that stay, with the columns of the contract and ``source``."""
        self._kept["rows"] += table.num_rows
        for name in ("note", "question", "answer"):
            table = table.filter(pc.is_valid(table[name]))
        self._kept[_FILLED] += table.num_rows
        if self._with_patients:
            table = table.filter(pc.is_valid(table["patient_id"]))
            self._kept[_PATIENT] += table.num_rows
        columns = self._columns(table)
        new = []
        for key in columns["digest"]:
            new.append(key not in self._seen)
            self._seen.add(key)
        del columns["digest"]
        result = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}).filter(
            pa.array(new, pa.bool_())
        )
        self._kept[_ONCE] += result.num_rows
        if self._options.filters:
            result = result.filter(pc.invert(has_phrase(result)))
            self._kept[_PHRASES] += result.num_rows
            result = result.filter(pc.invert(answer_asks(result)))
            self._kept[_ASKS] += result.num_rows
        self._refuse_repeated_ids(result["example_id"].to_pylist())
        return result

    def _columns(self, table: pa.Table) -> dict[str, list[Any]]:
        """Return the columns as lists; what the table lacks is made of the texts, so that it is always the same."""
        texts = {name: table[name].to_pylist() for name in ("note", "question", "answer")}
        if self._with_patients:
            patients = table["patient_id"].to_pylist()
        else:
            patients = [f"note-{hashlib.sha256(note.encode()).hexdigest()[:16]}" for note in texts["note"]]
        named = table["task"].to_pylist() if "task" in table.column_names else [None] * table.num_rows
        tasks = [self._task_of.get(task.lower(), task) if task else self._options.task for task in named]
        columns = zip(patients, *texts.values(), tasks, strict=True)
        digests = [hashlib.sha256("\0".join(row).encode()).digest()[:16] for row in columns]
        ids = table["example_id"].to_pylist() if "example_id" in table.column_names else [None] * table.num_rows
        names = [own or digest.hex() for own, digest in zip(ids, digests, strict=True)]
        source = ["asclepius"] * table.num_rows
        return {
            "example_id": names,
            "patient_id": patients,
            **texts,
            "task": tasks,
            "source": source,
            "digest": digests,
        }

    def _refuse_repeated_ids(self, names: list[str]) -> None:
        for name in names:
            if name in self._ids:
                raise InputError(
                    f"the example_id {name} stands in two rows that differ; make it unique, or leave the column out: "
                    "without it the ids are made of the texts."
                )
            self._ids.add(name)

    def add_steps(self, attrition: Attrition) -> None:
        """Add what each step kept, when all rows were read."""
        for name in self._steps:
            attrition.step(name, self._kept[name])


class _NotesWriter:
    """Writes ``notes/notes.parquet``: each note of a patient once, in the order in which they come."""

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        self.written = 0
        self._seen: set[bytes] = set()
        kinds = {"charttime": pa.timestamp("us")}
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in NOTES_COLUMNS])
        self._writer: pq.ParquetWriter | None = None
        if wanted:
            (folder / "notes").mkdir()
            self._writer = pq.ParquetWriter(folder / "notes" / "notes.parquet", self._schema, compression="zstd")

    def __enter__(self) -> _NotesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: pa.Table) -> None:
        """Write the notes of some rows that were not written yet."""
        if self._writer is None:
            return
        new: list[dict[str, Any]] = []
        for patient, note in zip(rows["patient_id"].to_pylist(), rows["note"].to_pylist(), strict=True):
            digest = hashlib.sha256(f"{patient}\0{note}".encode()).digest()[:16]
            if digest not in self._seen:
                self._seen.add(digest)
                new.append({"note_id": digest.hex(), "patient_id": patient, "note_type": NOTE_TYPE, "text": note})
        if new:
            names = [{**row, "encounter_id": None, "charttime": None, "source": "asclepius"} for row in new]
            self._writer.write_table(pa.Table.from_pylist(names, self._schema), row_group_size=2048)
            self.written += len(new)
