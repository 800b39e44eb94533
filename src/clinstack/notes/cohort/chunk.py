"""One part of a cohort: the lines of every table for some patients, drawn in any process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from clinstack.notes.cohort.patient import draw_patient
from clinstack.notes.cohort.tables import COLUMNS, TEXT_COLUMNS, Rows, add_patient

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
    """

    seed: int
    patients: int
    notes: int | None = None


def chunk_lines(plan: Plan, first: int, end: int) -> Lines:
    """Draw the patients ``first`` to ``end - 1``.

    Returns
    -------
    dict of str to list of bytes
        CSV lines of every table without their ROW_ID, which is counted over all chunks.
    """
    rows = Rows()
    patients = [draw_patient(plan.seed, index) for index in range(first, end)]
    if plan.notes is None:
        for patient in patients:
            add_patient(rows, plan.seed, patient)
    else:
        from clinstack.notes.cohort.bulk import NEWBORN_SHARE, add_codes, fill_notes

        for patient in patients:
            add_codes(plan.seed, patient)
            add_patient(rows, plan.seed, patient, NEWBORN_SHARE)
        wanted = plan.notes * end // plan.patients - plan.notes * first // plan.patients
        fill_notes(rows, plan.seed, patients, wanted)
    return format_rows(rows)


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
