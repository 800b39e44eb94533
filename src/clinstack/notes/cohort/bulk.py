"""A cohort of MIMIC-III's size: long discharge summaries, further codes, and the many other notes of a stay.

The admission part of a summary keeps what the small cohort writes, with paragraphs from a pool added; every note has a
job number of its own, so that no two are alike.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate

from clinstack.notes.cohort import wording
from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.codes import PROCEDURE_TITLES, diagnosis_titles
from clinstack.notes.cohort.discharge import HEADERS
from clinstack.notes.cohort.paragraphs import paragraph_pools
from clinstack.notes.cohort.patient import INCIDENTAL_PROCEDURES, Admission, Patient
from clinstack.notes.cohort.stay import PlantedRow
from clinstack.notes.cohort.tables import Row, Rows

PATIENTS_PER_NOTE = 0.023
"""Adult patients for each note, which gives 59,000 admissions to 2,000,000 notes, as in MIMIC-III."""
NEWBORN_SHARE = 0.06
"""Patients with a newborn beside them; MIMIC-III has more newborns than the small cohort."""
FEWEST_NOTES = 25
"""Notes for each patient that a large cohort must have at least: more than any patient has before filling up."""
MOST_NOTES = 10_000
"""Notes for each patient at most: job numbers of two patients must not meet."""
BYTES_PER_NOTE = 2100

Pools = dict[str, list[str]]
_CATEGORIES: dict[str, int] = {
    "Nursing/other": 822, "Radiology": 522, "Nursing": 224, "ECG": 209, "Physician ": 142, "Echo": 46,
    "Respiratory ": 32, "Nutrition": 9, "General": 8, "Rehab Services": 5, "Social Work": 3, "Case Management ": 1,
}  # fmt: skip
"""Thousands of notes in MIMIC-III; the spaces at the end of three names are MIMIC-III's."""
_OUTPATIENT = frozenset(["Radiology", "ECG", "Echo"])
_SECTIONS = {header: name for name, headers in HEADERS.items() for header in headers}
_TOTALS = list(accumulate(_CATEGORIES.values()))
_NAMES = tuple(_CATEGORIES)


@cache
def _secondary_codes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(diagnosis_titles()), (*INCIDENTAL_PROCEDURES, *PROCEDURE_TITLES)


def add_codes(seed: int, patient: Patient) -> None:
    """Give each admission further diagnoses and procedures: MIMIC-III has 11 and 4 an admission."""
    chance = Chance(seed, patient.index, 4)
    diagnoses, procedures = _secondary_codes()
    for admission in patient.admissions:
        for codes, pool, most in ((admission.diagnoses, diagnoses, 3), (admission.procedures, procedures, 3)):
            for _ in range(chance.between(0, most)):
                code = pool[int(len(pool) * chance.uniform() ** 1.8)]
                if code not in codes:
                    codes.append(code)


def fill_notes(rows: Rows, seed: int, patients: list[Patient], notes: int) -> None:
    """Make the pending notes long but for those of traps, and add notes of other kinds until there are ``notes``.

    Parameters
    ----------
    rows : Rows
        Holds the rows of these patients and of no others.
    seed : int
        Of the cohort.
    patients : list of Patient
        Whose notes are pending.
    notes : int
        Notes of these patients in all.
    """
    pools = paragraph_pools(seed)
    chance = Chance(seed, patients[0].index, 2)
    pending = rows.pending["NOTEEVENTS"]
    job = patients[0].index * MOST_NOTES
    for position, row in enumerate(pending):
        if isinstance(row, PlantedRow):
            continue
        text = _longer(chance, pools, row[6], row[7], row[-1])
        pending[position] = (*row[:-1], f"{text}\nJob#: [**Job Number {job + position}**]\n")
    stays = [(patient, admission) for patient in patients for admission in patient.admissions]
    totals = list(accumulate(admission.days + 1 for _, admission in stays))
    for position in range(len(pending), notes):
        patient, admission = stays[min(bisect(totals, chance.uniform() * totals[-1]), len(stays) - 1)]
        category = _NAMES[min(bisect(_TOTALS, chance.uniform() * _TOTALS[-1]), len(_NAMES) - 1)]
        rows.add("NOTEEVENTS", *_note(chance, pools, patient, admission, category, job + position))


def _note(chance: Chance, pools: Pools, patient: Patient, admission: Admission, category: str, job: int) -> Row:
    """Write one further note, and return its columns after ROW_ID."""
    hadm: int | None = admission.hadm_id
    moment = admission.admitted + (admission.discharged - admission.admitted) * (0.98 * chance.uniform())
    if category in _OUTPATIENT and chance.yes(0.3):
        hadm = None
        moment = admission.admitted - timedelta(days=chance.between(3, 400))
    moment = moment.replace(second=0, microsecond=0)
    description = {"Radiology": admission.problem.study, "Physician ": "Physician Resident Progress Note"}
    body = _BODIES.get(category, _other)(chance, pools, patient, admission, moment)
    return (
        patient.subject_id, hadm, moment.date(), None if category in ("ECG", "Echo") else moment, moment, category,
        description.get(category, "Report"), None if category in _OUTPATIENT else 20000 + chance.between(0, 400), None,
        f"{wording.HOSPITAL_LINE}\n{body}\nJob#: [**Job Number {job}**]\n",
    )  # fmt: skip


def _some(chance: Chance, pool: list[str], low: int, high: int, between: str = "\n") -> str:
    return between.join([chance.pick(pool) for _ in range(chance.between(low, high))])


def _numbered(chance: Chance, pool: list[str], low: int, high: int) -> str:
    return "\n".join(f"{number}. {chance.pick(pool)}" for number in range(1, chance.between(low, high) + 1))


def _longer(chance: Chance, pools: Pools, category: str, description: str, text: str) -> str:
    """Lengthen a note of the small cohort; a summary in every section, so that its order and headers stay."""
    text = text.rstrip("\n")
    if category == "Radiology":
        return f"{text}\n\n{_some(chance, pools['findings'], 2, 5)}"
    if category != "Discharge summary":
        return f"{text}\n{_some(chance, pools['nursing'], 2, 5)}"
    if description == "Addendum" and "\n\nAddendum:" in text:
        return f"{text}\n\n{_some(chance, pools['course'], 1, 3)}"
    parts = text.split("\n\n")
    names = [_SECTIONS.get(part.split(":", 1)[0], "") for part in parts]
    if "results" not in names:
        parts.insert(names.index("course"), "Pertinent Results:")
        names.insert(names.index("course"), "results")
    for position, name in enumerate(names):
        if name in _SECTION_TEXT:
            kept = parts[position].removesuffix("none").rstrip()
            parts[position] = f"{kept}\n{_SECTION_TEXT[name](chance, pools)}"
    parts.append(f"Discharge Instructions:\n{_some(chance, pools['instructions'], 2, 4)}")
    parts.append(f"Followup Instructions:\n{_some(chance, pools['instructions'], 0, 2)}".rstrip())
    return "\n\n".join(parts)


def _results(chance: Chance, pools: Pools) -> str:
    return f"{_some(chance, pools['labs'], 8, 28)}\n\n{_some(chance, pools['findings'], 2, 4)}"


def _course(chance: Chance, pools: Pools) -> str:
    titles = diagnosis_titles()
    names = [titles[chance.pick(_secondary_codes()[0])] for _ in range(chance.between(3, 7))]
    return "\n\n".join(f"# {name}: {_some(chance, pools['course'], 1, 2)}" for name in names)


_SECTION_TEXT: dict[str, Callable[[Chance, Pools], str]] = {
    "illness": lambda chance, pools: _some(chance, pools["illness"], 1, 4),
    "history": lambda chance, pools: _some(chance, pools["history"], 1, 5),
    "medications": lambda chance, pools: _numbered(chance, pools["medications"], 2, 9),
    "exam": lambda chance, pools: _some(chance, pools["exam"], 1, 2),
    "results": _results,
    "course": _course,
    "discharge medications": lambda chance, pools: _numbered(chance, pools["medications"], 5, 16),
}


def _subject(patient: Patient, admission: Admission) -> str:
    age = "over 90" if admission.age >= 90 else str(int(admission.age))
    return f"{age} year old {'man' if patient.sex == 'M' else 'woman'}"


def _radiology(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return (
        f"{wording.date_placeholder(moment)} {moment.hour}:{moment.minute:02d} {admission.problem.study}\n"
        f"Clip # [**Clip Number (Radiology) {chance.between(1000, 99999)}**]\n"
        f"Reason: {chance.pick(admission.problem.complaints.split('|'))}\n\n{_subject(patient, admission)}\n\n"
        f"TECHNIQUE: {chance.pick(pools['technique'])}\n\nFINDINGS: {_some(chance, pools['findings'], 2, 5)}\n\n"
        f"IMPRESSION: {chance.pick(pools['findings'])}"
    )


def _nursing(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return f"nursing {chance.pick(('7a-7p', '7p-7a', '3-11'))}\n{_some(chance, pools['nursing'], 4, 9)}"


def _nursing_other(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return f"npn {moment.hour:02d}00\n{_some(chance, pools['nursing'], 2, 5)}"


def _ecg(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return chance.pick(pools["ecg"])


def _echo(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return (
        f"PATIENT/TEST INFORMATION:\nIndication: {chance.pick(admission.problem.complaints.split('|'))}\n"
        f"BP (mm Hg): {chance.between(90, 170)}/{chance.between(45, 95)}\nHR (bpm): {chance.between(55, 125)}\n\n"
        f"INTERPRETATION:\n\nFindings:\n{_some(chance, pools['echo'], 3, 6)}\n\n"
        f"Conclusions:\n{_some(chance, pools['echo'], 2, 3)}"
    )


def _respiratory(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return f"Day of mechanical ventilation: {chance.between(0, 20)}\n{_some(chance, pools['breathing'], 2, 4)}"


def _physician(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    problem = admission.problem
    return (
        f"Chief Complaint:  {chance.pick(problem.complaints.split('|'))}\n   24 Hour Events:\n"
        f"{_some(chance, pools['course'], 2, 4)}\n   Allergies:\n   {chance.pick(wording.ALLERGIES)}\n"
        f"   Last dose of Antibiotics:\n{_some(chance, pools['medications'], 0, 3)}\n   Other ICU medications:\n"
        f"{_some(chance, pools['medications'], 3, 9)}\n   Flowsheet Data as of  {wording.date_placeholder(moment)}\n"
        f"{wording.vital_signs(chance, admission, 4)}\n   Physical Examination\n"
        f"{_some(chance, pools['exam'], 2, 4)}\n   Labs / Radiology\n{_some(chance, pools['labs'], 6, 18)}\n"
        f"{_some(chance, pools['findings'], 1, 3)}\n   Assessment and Plan\n{_subject(patient, admission)}\n"
        f"{_some(chance, pools['plan'], 4, 10)}\n   Disposition:ICU"
    )


def _other(chance: Chance, pools: Pools, patient: Patient, admission: Admission, moment: datetime) -> str:
    return f"{_subject(patient, admission)}\n{_some(chance, pools['plan'], 2, 7)}"


_BODIES: dict[str, Callable[[Chance, Pools, Patient, Admission, datetime], str]] = {
    "Radiology": _radiology,
    "Nursing": _nursing,
    "Nursing/other": _nursing_other,
    "ECG": _ecg,
    "Echo": _echo,
    "Respiratory ": _respiratory,
    "Physician ": _physician,
}
