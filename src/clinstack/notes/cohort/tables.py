"""The cohort as tables with MIMIC-III's names, columns and types."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.discharge import addendum, discharge_summary
from clinstack.notes.cohort.patient import FIRST_ADMISSION, FIRST_SUBJECT, Admission, Patient
from clinstack.notes.cohort.ward_notes import newborn_summary, nursing_note, radiology_report

COLUMNS: dict[str, tuple[str, ...]] = {
    "ADMISSIONS": (
        "ROW_ID", "SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "DEATHTIME", "ADMISSION_TYPE",
        "ADMISSION_LOCATION", "DISCHARGE_LOCATION", "INSURANCE", "LANGUAGE", "RELIGION", "MARITAL_STATUS", "ETHNICITY",
        "EDREGTIME", "EDOUTTIME", "DIAGNOSIS", "HOSPITAL_EXPIRE_FLAG", "HAS_CHARTEVENTS_DATA",
    ),
    "PATIENTS": ("ROW_ID", "SUBJECT_ID", "GENDER", "DOB", "DOD", "DOD_HOSP", "DOD_SSN", "EXPIRE_FLAG"),
    "ICUSTAYS": (
        "ROW_ID", "SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "DBSOURCE", "FIRST_CAREUNIT", "LAST_CAREUNIT",
        "FIRST_WARDID", "LAST_WARDID", "INTIME", "OUTTIME", "LOS",
    ),
    "NOTEEVENTS": (
        "ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME", "CATEGORY", "DESCRIPTION", "CGID",
        "ISERROR", "TEXT",
    ),
    "DIAGNOSES_ICD": ("ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE"),
    "PROCEDURES_ICD": ("ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE"),
    "D_ICD_DIAGNOSES": ("ROW_ID", "ICD9_CODE", "SHORT_TITLE", "LONG_TITLE"),
    "D_ICD_PROCEDURES": ("ROW_ID", "ICD9_CODE", "SHORT_TITLE", "LONG_TITLE"),
    "PROCEDUREEVENTS_MV": (
        "ROW_ID", "SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "STARTTIME", "ENDTIME", "ITEMID", "VALUE", "VALUEUOM",
        "LOCATION", "LOCATIONCATEGORY", "STORETIME", "CGID", "ORDERID", "LINKORDERID", "ORDERCATEGORYNAME",
        "SECONDARYORDERCATEGORYNAME", "ORDERCATEGORYDESCRIPTION", "ISOPENBAG", "CONTINUEINNEXTDEPT", "CANCELREASON",
        "STATUSDESCRIPTION", "COMMENTS_EDITEDBY", "COMMENTS_CANCELEDBY", "COMMENTS_DATE",
    ),
    "CHARTEVENTS": (
        "ROW_ID", "SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "ITEMID", "CHARTTIME", "STORETIME", "CGID", "VALUE",
        "VALUENUM", "VALUEUOM", "WARNING", "ERROR", "RESULTSTATUS", "STOPPED",
    ),
}  # fmt: skip
"""Tables and columns as in MIMIC-III v1.4."""

TEXT_COLUMNS = frozenset(
    [
        "ADMISSION_TYPE",
        "ADMISSION_LOCATION",
        "DISCHARGE_LOCATION",
        "INSURANCE",
        "LANGUAGE",
        "RELIGION",
        "MARITAL_STATUS",
        "ETHNICITY",
        "DIAGNOSIS",
        "GENDER",
        "DBSOURCE",
        "FIRST_CAREUNIT",
        "LAST_CAREUNIT",
        "CATEGORY",
        "DESCRIPTION",
        "ISERROR",
        "TEXT",
        "ICD9_CODE",
        "SHORT_TITLE",
        "LONG_TITLE",
    ]
)
"""Columns of character type, which MIMIC-III's files quote."""

Row = tuple[Any, ...]
_CARE_UNITS = {
    "CARDIOLOGY": "CCU",
    "CARDIOTHORACIC": "CSRU",
    "TRAUMA SURGERY": "TSICU",
    "SURGERY": "SICU",
    "NEUROSURGERY": "SICU",
}
_DESTINATIONS = ("HOME", "HOME HEALTH CARE", "SNF", "REHAB/DISTINCT PART HOSP")
NEWBORN_SHARE = 0.02


class Rows:
    """Rows of every table; the first column, ROW_ID, is given when a row is added."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COLUMNS, 0)
        self.pending: dict[str, list[Row]] = {name: [] for name in COLUMNS}

    def add(self, table: str, *values: Any) -> None:
        """Add a row, with its columns after ROW_ID in order."""
        self.counts[table] += 1
        self.pending[table].append((self.counts[table], *values))

    def take(self, table: str) -> Iterable[Row]:
        """Hand over the rows that were not yet written."""
        rows, self.pending[table] = self.pending[table], []
        return rows


def add_patient(rows: Rows, seed: int, patient: Patient, newborn_share: float = NEWBORN_SHARE) -> None:
    """Add all rows of one patient, and those of a newborn beside ``newborn_share`` of the patients."""
    chance = Chance(seed, patient.index, 1)
    last = patient.admissions[-1]
    if chance.yes(newborn_share):
        _add_newborn(rows, chance, patient)
    dead = last.discharged if last.died else None
    rows.add(
        "PATIENTS",
        patient.subject_id,
        patient.sex,
        patient.born,
        _midnight(dead),
        _midnight(dead),
        None,
        int(last.died),
    )
    background = (
        chance.pick(("Medicare", "Medicare", "Private", "Medicaid", "Self Pay")) if patient.age < 65 else "Medicare",
        "ENGL",
        chance.pick(("NOT SPECIFIED", "UNOBTAINABLE", "OTHER")),
        chance.pick(("MARRIED", "SINGLE", "WIDOWED", "DIVORCED")),
        chance.pick(("WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC OR LATINO", "ASIAN", "UNKNOWN/NOT SPECIFIED")),
    )
    for admission in patient.admissions:
        _add_admission(rows, chance, patient, admission, background)
    if chance.yes(0.03):
        admission = patient.admissions[0]
        before = admission.admitted - timedelta(days=chance.between(20, 200))
        text = radiology_report(chance, patient, admission, before)
        _add_note(rows, patient, None, before, "Radiology", admission.problem.study, text)


def _midnight(moment: datetime | None) -> datetime | None:
    return moment.replace(hour=0, minute=0) if moment else None


def _add_newborn(rows: Rows, chance: Chance, patient: Patient) -> None:
    """Add a newborn's own admission: another person, whom the outcome tasks leave out."""
    subject = FIRST_SUBJECT + 400_000 + patient.index
    hadm = FIRST_ADMISSION - 400_000 + patient.index
    sex = chance.pick("FM")
    born = datetime(2100 + chance.between(1, 95), chance.between(1, 12), chance.between(1, 28))
    admitted = born + timedelta(hours=chance.between(0, 23))
    discharged = admitted + timedelta(days=chance.between(2, 4), minutes=chance.between(0, 600))
    rows.add("PATIENTS", subject, sex, born, None, None, None, 0)
    rows.add(
        "ADMISSIONS", subject, hadm, admitted, discharged, None, "NEWBORN", "PHYS REFERRAL/NORMAL DELI", "HOME",
        "Private", None, "NOT SPECIFIED", None, "UNKNOWN/NOT SPECIFIED", None, None, "NEWBORN", 0, 1,
    )  # fmt: skip
    rows.add("DIAGNOSES_ICD", subject, hadm, 1, "V3000")
    rows.add("DIAGNOSES_ICD", subject, hadm, 2, "V053")
    rows.add("PROCEDURES_ICD", subject, hadm, 1, "9955")
    text = newborn_summary(chance, patient.index, sex)
    rows.add(
        "NOTEEVENTS", subject, hadm, discharged.date(), None, None, "Discharge summary", "Report", None, None, text
    )


def _add_note(
    rows: Rows,
    patient: Patient,
    admission: Admission | None,
    moment: datetime,
    category: str,
    description: str,
    text: str,
    error: bool = False,
) -> None:
    timed = None if category == "Discharge summary" else moment
    rows.add(
        "NOTEEVENTS", patient.subject_id, admission.hadm_id if admission else None, moment.date(), timed, timed,
        category, description, None if category == "Discharge summary" else 20000 + patient.index % 97,
        "1" if error else None, text,
    )  # fmt: skip


def _add_admission(
    rows: Rows, chance: Chance, patient: Patient, admission: Admission, background: tuple[str, ...]
) -> None:
    subject, hadm = patient.subject_id, admission.hadm_id
    elective = "here for" in admission.problem.stories
    arrival = None if elective else admission.admitted - timedelta(minutes=chance.between(60, 600))
    rows.add(
        "ADMISSIONS", subject, hadm, admission.admitted, admission.discharged,
        admission.discharged if admission.died else None, "ELECTIVE" if elective else "EMERGENCY",
        "PHYS REFERRAL/NORMAL DELI" if elective else "EMERGENCY ROOM ADMIT",
        "DEAD/EXPIRED" if admission.died else chance.pick(_DESTINATIONS),
        *background, arrival, arrival and admission.admitted,
        chance.pick(admission.problem.complaints.split("|")).upper(), int(admission.died), 1,
    )  # fmt: skip
    for table, codes in (("DIAGNOSES_ICD", admission.diagnoses), ("PROCEDURES_ICD", admission.procedures)):
        for number, code in enumerate(codes, 1):
            rows.add(table, subject, hadm, number, code)
    _add_notes(rows, chance, patient, admission)
    if admission.icu:
        _add_icu_stay(rows, chance, patient, admission)


def _add_notes(rows: Rows, chance: Chance, patient: Patient, admission: Admission) -> None:
    stay = admission.discharged - admission.admitted
    for _ in range(chance.between(0, 2)):
        moment = admission.admitted + stay * (0.6 * chance.uniform() ** 2)
        moment = moment.replace(second=0, microsecond=0)
        text = radiology_report(chance, patient, admission, moment)
        _add_note(rows, patient, admission, moment, "Radiology", admission.problem.study, text)
    for _ in range(chance.between(1, 2)):
        moment = (admission.admitted + stay * (0.9 * chance.uniform())).replace(second=0, microsecond=0)
        category = "Nursing" if patient.index % 2 else "Nursing/other"
        text = nursing_note(chance, patient, admission)
        _add_note(rows, patient, admission, moment, category, "Report", text, error=chance.yes(0.01))
    kind = chance.uniform()
    if kind < 0.015:
        return
    summary = discharge_summary(chance, patient, admission)
    if kind < 0.02:
        _add_note(rows, patient, admission, admission.discharged, "Discharge summary", "Addendum", summary)
        return
    if kind < 0.03:
        _add_note(rows, patient, admission, admission.discharged, "Discharge summary", "Report", summary, error=True)
        summary = discharge_summary(chance, patient, admission)
    later = admission.discharged
    if kind > 0.92:
        later += timedelta(days=chance.between(0, 6))
        _add_note(
            rows, patient, admission, later, "Discharge summary", "Addendum", addendum(chance, patient, admission)
        )
    _add_note(rows, patient, admission, admission.discharged, "Discharge summary", "Report", summary)
    if kind > 0.99:
        _add_note(rows, patient, admission, later, "Discharge summary", "Report", summary)


def _add_icu_stay(rows: Rows, chance: Chance, patient: Patient, admission: Admission) -> None:
    hadm = admission.hadm_id
    stay = (hadm - FIRST_ADMISSION) * 2 + FIRST_SUBJECT
    entered = admission.admitted + timedelta(minutes=chance.between(5, 300))
    days = admission.ventilator_days + 0.5 + 2.5 * chance.uniform()
    left = min(entered + timedelta(minutes=round(days * 1440)), admission.discharged)
    left = max(left, entered + timedelta(hours=1))
    unit = _CARE_UNITS.get(admission.problem.service, "MICU")
    rest = admission.discharged - left
    stays = [(stay, entered, left)]
    if rest > timedelta(days=3) and chance.yes(0.1):
        back = left + rest * 0.4
        back = back.replace(second=0, microsecond=0)
        stays.append((stay + 1, back, back + timedelta(hours=30)))
    for identifier, start, end in stays:
        length = round((end - start) / timedelta(days=1), 4)
        rows.add("ICUSTAYS", patient.subject_id, hadm, identifier, "metavision", unit, unit, 12, 12, start, end, length)
    if admission.ventilated:
        _add_ventilation(rows, chance, patient, admission, stay, entered + timedelta(minutes=chance.between(0, 60)))
    elif chance.yes(0.4):
        moment = entered + timedelta(minutes=30)
        _chart(rows, patient, admission, stay, moment, 226732, "Nasal cannula", None, None)


def _chart(
    rows: Rows,
    patient: Patient,
    admission: Admission,
    stay: int,
    moment: datetime,
    item: int,
    value: str,
    number: int | None,
    unit: str | None,
) -> None:
    rows.add(
        "CHARTEVENTS", patient.subject_id, admission.hadm_id, stay, item, moment, moment, 20000 + patient.index % 97,
        value, number, unit, 0, 0, None, None,
    )  # fmt: skip


def _add_ventilation(
    rows: Rows, chance: Chance, patient: Patient, admission: Admission, stay: int, started: datetime
) -> None:
    """Chart a ventilator setting every four to six hours, then an extubation, sometimes a second period."""
    ended = started + timedelta(minutes=max(round(admission.ventilator_days * 1440), 120))
    ended = min(ended, admission.discharged)
    if ended - started < timedelta(hours=1):
        ended = started + timedelta(hours=1)
    gap = None
    if admission.ventilator_days > 5 and chance.yes(0.12):
        gap = started + (ended - started) * 0.6
    moment = started
    kinds = ((223849, "CMV/ASSIST", None, None), (220339, "8", 8, "cmH2O"), (223848, "Drager", None, None))
    while moment < ended:
        if gap is None or not gap <= moment < gap + timedelta(hours=14):
            _chart(rows, patient, admission, stay, moment, *chance.pick(kinds))
        moment += timedelta(minutes=chance.between(240, 360))
    _chart(rows, patient, admission, stay, ended, *kinds[0])
    ends = [gap] if gap else []
    if not admission.died:
        ends.append(ended + timedelta(minutes=5))
    for end in ends:
        item = chance.weighted((227194, 225468, 225477), (0.94, 0.04, 0.02))
        end = end.replace(second=0, microsecond=0)
        label = "Extubation" if item == 227194 else "Unplanned Extubation"
        rows.add(
            "PROCEDUREEVENTS_MV", patient.subject_id, admission.hadm_id, stay, end, end + timedelta(minutes=1), item,
            1, "None", None, None, end, 20000, 1, 1, label, None, "Task", 0, 0, 0, "FinishedRunning", None, None, None,
        )  # fmt: skip
