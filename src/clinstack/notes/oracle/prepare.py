"""From the notes of the synthetic cohort to instructions whose answers are known to be right: rules read them off."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.attrition import Attrition
from clinstack.notes.grounding import check_grounding
from clinstack.notes.instructions import TASKS, write_instructions
from clinstack.notes.oracle.parts import read_parts
from clinstack.notes.oracle.rules import Pair, pairs_of
from clinstack.notes.prepared import Progress, prepared_folder
from clinstack.notes.read import is_synthetic, notes_files
from clinstack.notes.row_batches import batches, check_columns
from clinstack.notes.splits import splits_of

_COLUMNS = ("note_id", "patient_id", "note_type", "text")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("example_id", "patient_id", "note", "question", "answer", "task")]
    + [("answerable", pa.bool_()), ("source", pa.string()), ("note_id", pa.string()), ("rule", pa.string())]
)
_BATCH = 2048


@dataclass(frozen=True)
class OracleOptions:
    """What the oracle asks, and of which notes.

    Parameters
    ----------
    seed : int
        Of the choice of pairs and of their wordings.
    pairs : int or None
        Pairs in all; every one that the rules make when None.
    unanswerable : float
        Share of questions that the note does not answer, from 0 to below 1.
    note_types : tuple of str or None
        Only these notes.
    longest : int or None
        Longer notes, in characters, are left out.
    any_notes : bool
        Also Notes that do not say that they are synthetic. The rules know the cohort's notes only.
    """

    seed: int = 0
    pairs: int | None = None
    unanswerable: float = 0.15
    note_types: tuple[str, ...] | None = None
    longest: int | None = None
    any_notes: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.unanswerable < 1:
            raise InputError(f"--unanswerable is {self.unanswerable}; it is a share from 0 to below 1.")
        for name, value in (("--pairs", self.pairs), ("--longest", self.longest)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; use 1 or more.")


class _Candidate(NamedTuple):
    """A pair that could be asked, without its texts: ``key`` sorts the pairs of one rule by chance."""

    key: bytes
    note: int
    rule: str
    answerable: bool


def prepare_oracle(
    notes: Path, out: Path, options: OracleOptions | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Ask questions of synthetic notes and answer them by rules.

    Patients keep the split that they have in the Notes. The notes are read twice, a few at a time: once to see what
    can be asked, once to write what was drawn. What is drawn of a note depends on its id and the seed alone.

    Parameters
    ----------
    notes : Path
        Folder of Notes that `clinstack prepare` wrote from the synthetic cohort.
    out : Path
        Folder to write, in one step at the end.
    options : OracleOptions, optional
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``; ``tasks_left_out`` names tasks without a pair.

    Raises
    ------
    InputError
        If the Notes are missing or broken, do not say that they are synthetic, or answer no question.
    """
    options = options or OracleOptions()
    files = [file for file in notes_files(notes) if file != notes / "splits.parquet"]
    for file in files:
        check_columns(file, _COLUMNS)
    if not is_synthetic(notes) and not options.any_notes:
        raise InputError(
            f"{notes} does not say that its notes are synthetic. The oracle's rules know how the cohort's notes are "
            "written, and its answers to other notes may be wrong; with --any-notes it answers all the same."
        )
    asked = _Asked(files, options, progress)
    attrition = Attrition()
    with prepared_folder(out, progress) as prepared:
        drawn = _draw(asked, options, attrition)
        splits = splits_of(notes, sorted(asked.patients), "notes")
        facts = {
            "source": "oracle",
            "synthetic": is_synthetic(notes),
            "pairs": options.pairs,
            "unanswerable": options.unanswerable,
            "longest": options.longest,
            "note_types": list(options.note_types) if options.note_types else None,
            "tables": {f"notes/{file.name}": sha256_file(file) for file in files},
            "counts": asked.counts,
        }
        rows = _rows(files, options, drawn, progress)
        written = write_instructions(prepared, rows, attrition, facts, options.seed, splits)
    found = written["counts"]["tasks"]
    return {**written, "tasks_left_out": [task for task in TASKS if task not in found]}


class _Asked:
    """What the rules can ask of each note, without the texts."""

    def __init__(self, files: list[Path], options: OracleOptions, progress: Progress | None) -> None:
        self.candidates: list[_Candidate] = []
        self.patients: set[str] = set()
        self.ungrounded = 0
        counts = Counter(notes_read=0, notes_of_other_types=0, notes_too_long=0, notes_that_answer_nothing=0)
        for number, row in _notes(files, "Reading notes", progress):
            counts["notes_read"] += 1
            if options.note_types is not None and row["note_type"] not in options.note_types:
                counts["notes_of_other_types"] += 1
                continue
            if options.longest is not None and len(row["text"] or "") > options.longest:
                counts["notes_too_long"] += 1
                continue
            found = list(_pairs(row, options.seed))
            grounded = [pair for pair in found if not pair.answerable or _is_grounded(pair, row["text"])]
            self.ungrounded += len(found) - len(grounded)
            counts["notes_that_answer_nothing"] += not any(pair.answerable for pair in grounded)
            for pair in grounded:
                key = _digest(options.seed, row["note_id"], pair.rule)
                self.candidates.append(_Candidate(key, number, pair.rule, pair.answerable))
            if grounded:
                self.patients.add(str(row["patient_id"]))
        self.counts = dict(counts)


def _is_grounded(pair: Pair, note: str) -> bool:
    """Whether the note holds what the answer says; an abbreviation written out may name a drug in other words."""
    return check_grounding(pair.answer, note).is_grounded


def _pairs(row: dict[str, Any], seed: int) -> Iterator[Pair]:
    note_id, note = str(row["note_id"]), row["text"] or ""

    def draw(words: str, below: int) -> int:
        return int.from_bytes(_digest(seed, note_id, words)[:8]) % below

    yield from pairs_of(read_parts(note), note, draw)


def _digest(seed: int, note_id: object, words: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{note_id}\0{words}".encode()).digest()


def _draw(asked: _Asked, options: OracleOptions, attrition: Attrition) -> dict[int, set[str]]:
    """Return the rules that are drawn for each note, so that every rule gets its turn before one gets its second."""
    attrition.step("questions that the rules ask", len(asked.candidates) + asked.ungrounded)
    attrition.step("answer grounded in its note", len(asked.candidates))
    answered = _in_turns([item for item in asked.candidates if item.answerable])
    refused = _in_turns([item for item in asked.candidates if not item.answerable])
    share = options.unanswerable
    if options.pairs is None:
        most = len(refused) if share == 0 else round(len(answered) * share / (1 - share))
        refused = refused[: most if share else 0]
    else:
        refused = refused[: round(options.pairs * share)]
        answered = answered[: options.pairs - len(refused)]
    attrition.step("drawn", len(answered) + len(refused))
    drawn: dict[int, set[str]] = defaultdict(set)
    for item in (*answered, *refused):
        drawn[item.note].add(item.rule)
    return drawn


def _in_turns(candidates: list[_Candidate]) -> list[_Candidate]:
    """Order candidates so that any beginning of the list has each rule equally often, as far as it goes."""
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, bytes, _Candidate]] = []
    for item in sorted(candidates, key=lambda item: item.key):
        ranked.append((turn[item.rule], item.key, item))
        turn[item.rule] += 1
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])]


def _notes(files: list[Path], words: str, progress: Progress | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the notes with their numbers, a few of them in memory at a time."""
    total = sum(pq.read_metadata(file).num_rows for file in files)
    number = 0
    for file in files:
        for _, batch in batches(file, _COLUMNS):
            for row in batch.to_pylist():
                yield number, row
                number += 1
            if progress:
                progress(words, number, total)


def _rows(
    files: list[Path], options: OracleOptions, drawn: dict[int, set[str]], progress: Progress | None
) -> Iterator[pa.Table]:
    """Yield the pairs that were drawn, in the notes' order, a table at a time."""
    rows: list[dict[str, Any]] = []
    for number, row in _notes(files, "Writing instructions", progress):
        wanted = drawn.get(number, set())
        for pair in _pairs(row, options.seed) if wanted else ():
            if pair.rule not in wanted:
                continue
            place = int.from_bytes(_digest(options.seed, row["note_id"], f"wording of {pair.rule}")[:8])
            rows.append(
                {
                    "example_id": f"{row['note_id']}:{pair.rule}",
                    "patient_id": str(row["patient_id"]),
                    "note": row["text"],
                    "question": pair.wordings[place % len(pair.wordings)],
                    "answer": pair.answer,
                    "task": pair.task,
                    "answerable": pair.answerable,
                    "source": "oracle",
                    "note_id": str(row["note_id"]),
                    "rule": pair.rule,
                }
            )
        if len(rows) >= _BATCH:
            yield pa.Table.from_pylist(rows, _SCHEMA)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, _SCHEMA)
