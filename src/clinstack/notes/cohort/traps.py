"""The traps of a cohort: which there are, who gets one, and where they were planted."""

from __future__ import annotations

from collections.abc import Iterable

from clinstack.errors import InputError
from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.patient import Patient
from clinstack.notes.cohort.stay import PlantedRow, Stay
from clinstack.notes.cohort.tables import COLUMNS, Rows
from clinstack.notes.cohort.trap import Trap
from clinstack.notes.cohort.traps_deaths import DEATH_TRAPS
from clinstack.notes.cohort.traps_notes import NOTE_TRAPS
from clinstack.notes.cohort.traps_tables import CHUNK, CHUNK_PATIENTS, NO_SPLIT, TABLE_TRAPS
from clinstack.notes.cohort.traps_ventilation import VENTILATION_TRAPS

ALL = "all"
TRAPS: dict[str, Trap] = {trap.name: trap for trap in (*NOTE_TRAPS, *DEATH_TRAPS, *TABLE_TRAPS, *VENTILATION_TRAPS)}
"""Every trap by its name."""

Planted = dict[str, dict[str, list[int]]]
"""Of each trap: SUBJECT_IDs and HADM_IDs, and by table the planted rows, counted from 0 in the chunk."""
_RAREST = 10
"""One trap alone goes to one patient in ten."""
_CHUNK_LEAST = CHUNK_PATIENTS * 4 // 3


def chosen_traps(names: Iterable[str], patients: int, split_lists: bool) -> tuple[str, ...]:
    """Check the names of traps and write out ``all``.

    Returns
    -------
    tuple of str
        In the order of `TRAPS`. ``all`` leaves out those that change how a whole column is read.

    Raises
    ------
    InputError
        If a name is unknown, or the cohort is too small for the traps, or has no split lists to leave a patient out of.
    """
    named = set(names)
    for name in sorted(named - {ALL} - set(TRAPS)):
        raise InputError(f"trap {name!r} is unknown; `clinstack prepare cohort --list-traps` lists them.")
    if NO_SPLIT in named and not split_lists:
        raise InputError(f"trap {NO_SPLIT} leaves patients out of the split lists; give --split-lists too.")
    if CHUNK in named and patients < _CHUNK_LEAST:
        raise InputError(f"trap {CHUNK} needs {_CHUNK_LEAST} patients or more; there are {patients}.")
    if ALL in named:
        named |= {name for name, trap in TRAPS.items() if not trap.alone and (split_lists or name != NO_SPLIT)}
    chosen = tuple(name for name in TRAPS if name in named)
    if len(chosen) > patients:
        raise InputError(f"{len(chosen)} traps need {len(chosen)} patients or more; there are {patients}.")
    return chosen


def trap_of(index: int, seed: int, traps: tuple[str, ...], patients: int) -> Trap | None:
    """Return the trap of a patient, or None; every trap has its patient, most patients none when there are enough."""
    traps = tuple(name for name in traps if name != CHUNK)
    if not traps:
        return None
    period = max(len(traps), min(max(2 * len(traps), _RAREST), patients))
    place = (index + seed) % period
    return TRAPS[traps[place]] if place < len(traps) else None


def plant_traps(rows: Rows, seed: int, patients: list[Patient], traps: tuple[str, ...], in_all: int) -> Planted:
    """Plant each patient's trap in the last of the patient's admissions.

    Parameters
    ----------
    rows : Rows
        Pending rows of these patients, which are changed.
    seed : int
        Of the cohort.
    patients : list of Patient
        A part of the cohort.
    traps : tuple of str
        Names in the order of `TRAPS`.
    in_all : int
        Patients of the whole cohort.

    Returns
    -------
    dict
        Who has which trap; `planted_rows` adds the rows when nothing is changed any more.
    """
    planted: Planted = {}
    for patient in patients:
        trap = trap_of(patient.index, seed, traps, in_all)
        if trap is not None:
            stay = Stay(rows, Chance(seed, patient.index, 5), patient, patient.admissions[-1])
            trap.plant(stay)
            found = planted.setdefault(trap.name, {"SUBJECT_ID": [], "HADM_ID": []})
            found["SUBJECT_ID"] += stay.subjects
            found["HADM_ID"] += stay.admissions
    if CHUNK in traps and patients[0].index < CHUNK_PATIENTS:
        rows.pending["DIAGNOSES_ICD"] = [
            row for row in rows.pending["DIAGNOSES_ICD"] if not str(row[-1] or "").startswith(("V", "E"))
        ]
        planted[CHUNK] = {"SUBJECT_ID": [patient.subject_id for patient in patients], "HADM_ID": []}
    return planted


def planted_rows(rows: Rows, planted: Planted) -> None:
    """Add to ``planted`` where the rows of each trap stand among the pending ones."""
    trap_by_subject = {
        subject: name for name, found in planted.items() if name != CHUNK for subject in found["SUBJECT_ID"]
    }
    for table in COLUMNS:
        for position, row in enumerate(rows.pending[table]):
            if isinstance(row, PlantedRow):
                planted[trap_by_subject[row[1]]].setdefault(table, []).append(position)
