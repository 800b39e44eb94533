"""One part of a cohort: the lines of every table for some patients, drawn in any process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from clinstack.notes.cohort.identifiers import Truth, plant_identifiers
from clinstack.notes.cohort.patient import draw_patient
from clinstack.notes.cohort.tables import COLUMNS, TEXT_COLUMNS, Rows, add_patient
from clinstack.notes.cohort.traps import Planted, plant_traps, planted_rows

Lines = dict[str, list[bytes]]
_QUOTED = {name: [column in TEXT_COLUMNS for column in columns[1:]] for name, columns in COLUMNS.items()}


@dataclass(frozen=True)
class Plan:
    """What a cohort is drawn from.

    Parameters
    ----------
    seed : int
        Not negative.
    patients : int
        Adult patients in all.
    notes : int or None
        Notes in all, in the long form; None writes a few short notes for each admission.
    traps : tuple of str
        Names of traps, in the order of `clinstack.notes.cohort.traps.TRAPS`.
    identifiers : bool
        Whether identifiers of the invented people are written into the notes.
    """

    seed: int
    patients: int
    notes: int | None = None
    traps: tuple[str, ...] = ()
    identifiers: bool = False


@dataclass(frozen=True)
class Chunk:
    """What was drawn for some patients.

    Parameters
    ----------
    lines : dict of str to list of bytes
        CSV lines of every table without their ROW_ID, which is counted over all chunks.
    planted : dict
        Of each trap: SUBJECT_IDs and HADM_IDs, and by table the places of its rows in ``lines``.
    subjects : list of int
        The SUBJECT_ID of each admission that is not a newborn's, with repeats.
    identifiers : list of Truth
        Where identifiers stand, by the places of notes in ``lines``.
    """

    lines: Lines
    planted: Planted
    subjects: list[int]
    identifiers: list[Truth]


def draw_chunk(plan: Plan, first: int, end: int) -> Chunk:
    """Draw the patients ``first`` to ``end - 1``."""
    rows = Rows()
    patients = [draw_patient(plan.seed, index) for index in range(first, end)]
    if plan.notes is None:
        for patient in patients:
            add_patient(rows, plan.seed, patient)
        planted = plant_traps(rows, plan.seed, patients, plan.traps, plan.patients)
    else:
        from clinstack.notes.cohort.bulk import NEWBORN_SHARE, add_codes, fill_notes

        for patient in patients:
            add_codes(plan.seed, patient)
            add_patient(rows, plan.seed, patient, NEWBORN_SHARE)
        planted = plant_traps(rows, plan.seed, patients, plan.traps, plan.patients)
        wanted = plan.notes * end // plan.patients - plan.notes * first // plan.patients
        fill_notes(rows, plan.seed, patients, wanted)
    planted_rows(rows, planted)
    identifiers = plant_identifiers(rows, plan.seed, patients) if plan.identifiers else []
    kind, subject = (COLUMNS["ADMISSIONS"].index(column) for column in ("ADMISSION_TYPE", "SUBJECT_ID"))
    subjects = [row[subject] for row in rows.pending["ADMISSIONS"] if row[kind] != "NEWBORN"]
    return Chunk(format_rows(rows), planted, subjects, identifiers)


def format_rows(rows: Rows) -> Lines:
    """Write rows as MIMIC-III's files have them: text in quotes, numbers and times bare, missing values empty."""
    return {
        name: [",".join(map(_field, row[1:], quoted)).encode() + b"\n" for row in rows.take(name)]
        for name, quoted in _QUOTED.items()
    }


def _field(value: Any, quoted: bool) -> str:
    if value is None:
        return ""
    if quoted:
        return '"' + str(value).replace('"', '""') + '"'
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return str(value)
