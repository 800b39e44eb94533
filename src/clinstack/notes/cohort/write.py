"""Writing the synthetic cohort."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory
from clinstack.processes import WorkerKilledError, WorkerPool, worker_pool

if TYPE_CHECKING:
    from clinstack.notes.cohort.chunk import Chunk, Lines, Plan
    from clinstack.notes.cohort.traps import Planted

MOST_PATIENTS = 160_000
MOST_WORKERS = 64
_PATIENTS_AT_ONCE = 50
_SIGN = """# A synthetic cohort: everyone in it is invented

These tables have the names and columns of MIMIC-III, and nothing else of it. No row comes from a real person or a real
hospital: patients, notes, dates, codes and outcomes were drawn by a program (clinstack {version}, {patients} patients,
seed {seed}). Numbers measured on them say something about software, and nothing about medicine.
"""
_SIGN_LARGE = """
The {notes} notes were made long by adding paragraphs from pools of a few hundred invented ones. No two notes are alike,
but paragraphs return in many of them, and what they say does not fit the patient: use these notes to measure speed and
memory, not models.
"""
_SIGN_IDENTIFIERS = """
The names, numbers, dates and addresses in the notes are invented as well; `identifiers.csv.gz` says where each one
stands. They are there to measure what finds or replaces identifiers.
"""
_SIGN_TRAPS = """
Some rows are wrong on purpose, or look wrong: traps for programs that read such tables. `traps.json` says which.
"""


def write_cohort(
    out: Path,
    patients: int | None,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    notes: int | None = None,
    workers: int = 1,
    compress: bool = False,
    traps: Sequence[str] = (),
    split_lists: bool = False,
    identifiers: bool = False,
) -> dict[str, int]:
    """Write an invented cohort as csv files with MIMIC-III's names, columns and types.

    Patient ``k`` of a seed is the same whatever the number of patients; the files are the same, byte for byte,
    whenever ``patients``, ``seed``, ``notes`` and ``traps`` are, whatever the number of workers.

    Parameters
    ----------
    out : Path
        Folder to write; an earlier cohort there is replaced, anything else is refused.
    patients : int or None
        Number of adult patients; None draws as many as MIMIC-III has for ``notes``. Two per cent get a newborn beside
        them (six with ``notes``), whom the outcome tasks leave out.
    seed : int
        Not negative.
    progress : callable, optional
        Called with a description, the patients done and the patients in all.
    notes : int, optional
        Notes in all, long ones of all of MIMIC-III's categories; None writes a few short ones for each admission.
    workers : int
        Processes that draw patients.
    compress : bool
        Write ``.csv.gz``.
    traps : sequence of str
        Names of traps to plant, or ``all``; ``traps.json`` tells where they are.
    split_lists : bool
        Write the patients of train, val and test as the official scripts' three lists, into ``split_lists/``.
    identifiers : bool
        Write names, numbers, dates and addresses of the invented people into the notes, and where each one stands into
        ``identifiers.csv.gz``.

    Returns
    -------
    dict of str to int
        Rows of each table.

    Raises
    ------
    InputError
        If a number or a trap is not possible, the disk is too small, or ``out`` holds something that is not a cohort.
    """
    from clinstack.notes.cohort.chunk import Plan
    from clinstack.notes.cohort.tables import COLUMNS
    from clinstack.notes.cohort.traps import chosen_traps

    patients = _checked_patients(patients, notes)
    if seed < 0:
        raise InputError(f"seed is {seed}; use a whole number that is not negative.")
    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers is {workers}; use 1 to {MOST_WORKERS}.")
    chosen = chosen_traps(traps, patients, split_lists)
    _refuse_other_folder(out)
    if notes is not None:
        _refuse_small_disk(out, notes, compress)
    plan = Plan(seed, patients, notes, chosen, identifiers)
    planted: Planted = {name: {} for name in chosen}
    subjects: list[int] = []
    counts = dict.fromkeys(COLUMNS, 0)
    with replacing_directory(out) as folder:
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            for name, columns in COLUMNS.items():
                files[name] = stack.enter_context(_open_table(folder, name, compress))
                files[name].write((",".join(f'"{column}"' for column in columns) + "\n").encode())
            _append(files, counts, _title_lines())
            truth = stack.enter_context(_open_truth(folder)) if identifiers else None
            done = 0
            for chunk in stack.enter_context(_chunks(plan, workers)):
                _collect(planted, chunk.planted, counts)
                if truth is not None:
                    truth.write(_truth_lines(chunk, counts["NOTEEVENTS"]))
                _append(files, counts, chunk.lines)
                subjects += chunk.subjects
                done = min(done + _PATIENTS_AT_ONCE, patients)
                if progress:
                    progress("Inventing patients", done, patients)
        facts: dict[str, Any] = {"synthetic": True, "patients": patients, "seed": seed}
        if notes is not None:
            facts["notes"] = notes
        if chosen:
            facts["traps"] = list(chosen)
            _write_manifest(folder / "traps.json", planted)
        if identifiers:
            facts["identifiers"] = True
        if split_lists:
            _write_split_lists(folder / "split_lists", subjects, planted, seed)
        facts |= {"rows": counts, "clinstack": __version__}
        (folder / "cohort.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        sign = _SIGN.format(version=__version__, patients=patients, seed=seed)
        if notes is not None:
            sign += _SIGN_LARGE.format(notes=f"{notes:,}")
        if chosen:
            sign += _SIGN_TRAPS
        if identifiers:
            sign += _SIGN_IDENTIFIERS
        (folder / "SYNTHETIC.md").write_text(sign, encoding="utf-8")
    return counts


def _checked_patients(patients: int | None, notes: int | None) -> int:
    """Return the number of patients, which the number of notes gives when it is not said."""
    from clinstack.notes.cohort.bulk import FEWEST_NOTES, MOST_NOTES, PATIENTS_PER_NOTE

    if patients is None:
        if notes is None:
            raise InputError("neither patients nor notes is given; give one of them.")
        if notes < FEWEST_NOTES:
            raise InputError(f"notes is {notes}; use {FEWEST_NOTES} or more.")
        patients = max(round(notes * PATIENTS_PER_NOTE), 1)
    if not 1 <= patients <= MOST_PATIENTS:
        raise InputError(f"patients is {patients}; use 1 to {MOST_PATIENTS}.")
    if notes is not None and not FEWEST_NOTES * patients <= notes <= MOST_NOTES * patients:
        raise InputError(
            f"notes is {notes}; {patients} patients need {FEWEST_NOTES * patients} to {MOST_NOTES * patients}, "
            f"and MIMIC-III has about {round(patients / PATIENTS_PER_NOTE)}."
        )
    return patients


def _refuse_other_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the cohort.")
    if any(out.iterdir()):
        marker = out / "cohort.json"
        if not (marker.is_file() and read_json(marker).get("synthetic") is True):
            raise InputError(f"{out} is not empty and not an earlier cohort; name another folder or empty it.")


def _refuse_small_disk(out: Path, notes: int, compress: bool) -> None:
    """Refuse before an hour's work what cannot be finished: an earlier cohort stays until the new one is whole."""
    from clinstack.notes.cohort.bulk import BYTES_PER_NOTE

    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed = notes * BYTES_PER_NOTE // (3 if compress else 1)
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{out} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left; "
            "make room, name another disk, or ask for fewer notes."
        )


def _open_table(folder: Path, name: str, compress: bool) -> IO[bytes]:
    if not compress:
        return (folder / f"{name}.csv").open("wb")
    # No time in the header: the same cohort gives the same bytes.
    return gzip.GzipFile(folder / f"{name}.csv.gz", "wb", compresslevel=1, mtime=0)  # type: ignore[return-value]


@contextmanager
def _open_truth(folder: Path) -> Iterator[IO[bytes]]:
    from clinstack.notes.cohort.identifiers import TRUTH, TRUTH_COLUMNS

    with gzip.GzipFile(folder / TRUTH, "wb", compresslevel=1, mtime=0) as file:
        file.write((",".join(TRUTH_COLUMNS) + "\n").encode())
        yield file  # type: ignore[misc]


def _truth_lines(chunk: Chunk, rows_before: int) -> bytes:
    """Return the lines of a chunk's identifiers; places of notes become ROW_IDs."""
    return b"".join(
        f"{rows_before + 1 + item.place},{item.subject},{'' if item.hadm is None else item.hadm},{item.start},"
        f"{item.end},{item.kind},{item.form},{int(item.held_out)}\n".encode()
        for item in chunk.identifiers
    )


def _title_lines() -> Lines:
    from clinstack.notes.cohort.chunk import format_rows
    from clinstack.notes.cohort.codes import PROCEDURE_TITLES, diagnosis_titles
    from clinstack.notes.cohort.tables import Rows

    rows = Rows()
    for table, titles in (("D_ICD_DIAGNOSES", diagnosis_titles()), ("D_ICD_PROCEDURES", PROCEDURE_TITLES)):
        for code, title in titles.items():
            rows.add(table, code, title[:24], title)
    return format_rows(rows)


def _append(files: dict[str, IO[bytes]], counts: dict[str, int], lines: Lines) -> None:
    """Append lines with their ROW_ID before them."""
    for name, texts in lines.items():
        if texts:
            files[name].write(b"".join([b"%d,%b" % item for item in enumerate(texts, counts[name] + 1)]))
            counts[name] += len(texts)


def _collect(planted: Planted, found: Planted, counts: dict[str, int]) -> None:
    """Add a chunk's traps to those before it; places of rows become ROW_IDs."""
    for name, columns in found.items():
        for column, values in columns.items():
            first = counts.get(column)
            shifted = values if first is None else [first + 1 + place for place in values]
            planted[name].setdefault(column, []).extend(shifted)


def _write_manifest(path: Path, planted: Planted) -> None:
    """Write where the traps are, one trap a line."""
    from clinstack.notes.cohort.traps import TRAPS

    lines = []
    for name, found in planted.items():
        ids = {column: values for column, values in found.items() if column in ("SUBJECT_ID", "HADM_ID")}
        rows = {column: values for column, values in found.items() if column not in ids}
        lines.append(f"{json.dumps(name)}: {json.dumps({'shows': TRAPS[name].shows} | ids | {'ROW_ID': rows})}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _write_split_lists(folder: Path, subjects: list[int], planted: Planted, seed: int) -> None:
    """Write the patients of each split as the official scripts read them: a row for every admission."""
    from clinstack.notes.cohort.traps_tables import NO_SPLIT
    from clinstack.notes.splits import SPLITS, assign_splits

    left_out = set(planted.get(NO_SPLIT, {}).get("SUBJECT_ID", ()))
    kept = sorted(subject for subject in subjects if subject not in left_out)
    split_of = assign_splits(map(str, kept), seed)
    folder.mkdir()
    for split, name in zip(SPLITS, ("train", "val", "test"), strict=True):
        rows = [subject for subject in kept if split_of[str(subject)] == split]
        text = "".join(f"{value}\n" for value in ("SUBJECT_ID", *rows))
        (folder / f"mimic_{name}.csv").write_text(text, encoding="utf-8")


@contextmanager
def _chunks(plan: Plan, workers: int) -> Iterator[Iterator[Chunk]]:
    """Yield the parts of a cohort in order, drawn by some worker processes or, with one worker, in this one."""
    from clinstack.notes.cohort.chunk import draw_chunk

    if workers == 1:
        yield (draw_chunk(plan, first, end) for first, end in _parts(plan))
        return
    try:
        with worker_pool(workers) as pool:
            yield _drawn_ahead(plan, pool, 2 * workers)
    except WorkerKilledError:
        raise InputError("a worker process was killed, perhaps for want of memory; use fewer workers.") from None


def _drawn_ahead(plan: Plan, pool: WorkerPool, ahead: int) -> Iterator[Chunk]:
    from clinstack.notes.cohort.chunk import draw_chunk

    waiting: deque[Future[Chunk]] = deque()
    for first, end in _parts(plan):
        waiting.append(pool.submit(draw_chunk, plan, first, end))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _parts(plan: Plan) -> Iterator[tuple[int, int]]:
    for first in range(0, plan.patients, _PATIENTS_AT_ONCE):
        yield first, min(first + _PATIENTS_AT_ONCE, plan.patients)
