"""The rows of one admission, as a trap sees and changes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from clinstack.notes.cohort import wording
from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.discharge import admission_sections, later_sections
from clinstack.notes.cohort.patient import FIRST_ADMISSION, FIRST_SUBJECT, Admission, Patient
from clinstack.notes.cohort.tables import COLUMNS, Rows

Sections = dict[str, str]
TWINS = 32
"""Further admissions that a trap may give one patient."""
_FIRST_TWIN_ADMISSION = 2_000_000
_FIRST_TWIN_SUBJECT = 12_000_000
_ORDER = {
    "Allergies": "allergies",
    "Chief Complaint": "complaint",
    "History of Present Illness": "illness",
    "Past Medical History": "history",
    "Social History": "social",
    "Family History": "family",
    "Physical Exam": "exam",
    "Pertinent Results": "results",
    "Medications on Admission": "medications",
    "Brief Hospital Course": "course",
    "Discharge Condition": "condition",
}


class PlantedRow(tuple[Any, ...]):
    """A row that a trap wrote: it stays as it is, also when other notes are made longer."""


class Stay:
    """One admission of the rows that are pending.

    Parameters
    ----------
    rows : Rows
        Pending rows of some patients.
    chance : Chance
        For what the trap draws.
    patient, admission : Patient, Admission
        Whose rows may be changed.
    """

    def __init__(self, rows: Rows, chance: Chance, patient: Patient, admission: Admission) -> None:
        self._rows = rows
        self.chance = chance
        self.patient = patient
        self.admission = admission
        self.admissions = [admission.hadm_id]
        self.subjects = [patient.subject_id]

    # ------------------------------------------------------------------ rows

    def add(self, table: str, **values: Any) -> None:
        """Add a row of this patient and admission; a column that is not named is empty."""
        given = {"SUBJECT_ID": self.patient.subject_id, "HADM_ID": self.admission.hadm_id} | values
        self._rows.counts[table] += 1
        self._rows.pending[table].append(PlantedRow(given.get(column) for column in COLUMNS[table]))

    def edit(self, table: str, **values: Any) -> None:
        """Change columns of the rows of this admission; of PATIENTS, of this patient."""
        key = "SUBJECT_ID" if table == "PATIENTS" else "HADM_ID"
        value = self.patient.subject_id if table == "PATIENTS" else self.admission.hadm_id
        at = COLUMNS[table].index(key)
        pending = self._rows.pending[table]
        for position, row in enumerate(pending):
            if row[at] == value:
                changed = dict(zip(COLUMNS[table], row, strict=True)) | values
                pending[position] = PlantedRow(changed.values())

    def drop(self, table: str, where: Callable[[dict[str, Any]], bool] = lambda row: True) -> None:
        """Remove rows of this admission."""
        at = COLUMNS[table].index("HADM_ID")
        self._rows.pending[table] = [
            row
            for row in self._rows.pending[table]
            if row[at] != self.admission.hadm_id or not where(dict(zip(COLUMNS[table], row, strict=True)))
        ]

    # ------------------------------------------------------------------ notes

    def sections(self) -> Sections:
        """Write a plain summary's sections by their headers, in order."""
        bodies = admission_sections(self.chance, self.patient, self.admission, 0)
        bodies |= later_sections(self.chance, self.patient, self.admission)
        return {header: bodies[name] for header, name in _ORDER.items()}

    def text(self, sections: Sections) -> str:
        """Put a summary together."""
        first = (
            f"{wording.HOSPITAL_LINE}\nName: [**Known lastname {1000 + self.patient.index}**] "
            f"Unit No: [**Numeric Identifier {self.chance.between(100_000, 999_999)}**]"
        )
        parts = (f"{header}:\n{body}".rstrip("\n") for header, body in sections.items())
        return "\n\n".join([first, *parts]) + "\n"

    def summarize(self, text: str, **values: Any) -> None:
        """Replace the summaries and addenda of this admission by one report."""
        self.drop("NOTEEVENTS", lambda row: row["CATEGORY"] == "Discharge summary")
        self.note("Discharge summary", "Report", text, **values)

    def note(self, category: str, description: str, text: str, hours_later: float = 0.0, **values: Any) -> None:
        """Add a note, dated so long after the discharge."""
        moment = self.admission.discharged + timedelta(hours=hours_later)
        moment = moment.replace(second=0, microsecond=0)
        timed = None if category.strip() == "Discharge summary" else moment
        given = {"CHARTDATE": moment.date(), "CHARTTIME": timed, "STORETIME": timed, "CATEGORY": category}
        self.add("NOTEEVENTS", **(given | {"DESCRIPTION": description, "TEXT": text} | values))

    # ------------------------------------------------------------------ the course

    def lasts(self, days: float) -> None:
        """Move the discharge so that the stay has this length; it may be negative."""
        self.admission = replace(self.admission, discharged=self.admission.admitted + timedelta(days=days))
        self.edit("ADMISSIONS", DISCHTIME=self.admission.discharged)

    def ends(self, died: bool) -> None:
        """Let the patient die in this stay, or leave it alive."""
        self.admission = replace(self.admission, died=died)
        moment = self.admission.discharged if died else None
        day = moment.replace(hour=0, minute=0, second=0) if moment else None
        place = "DEAD/EXPIRED" if died else "HOME"
        self.edit("ADMISSIONS", HOSPITAL_EXPIRE_FLAG=int(died), DEATHTIME=moment, DISCHARGE_LOCATION=place)
        self.edit("PATIENTS", DOD=day, DOD_HOSP=day, EXPIRE_FLAG=int(died))

    def codes(self, table: str, *codes: str | None, order: tuple[int, ...] = ()) -> None:
        """Replace the codes of this admission; ``order`` gives other SEQ_NUMs than 1, 2, 3."""
        self.drop(table)
        for number, code in enumerate(codes):
            self.add(table, SEQ_NUM=order[number] if order else number + 1, ICD9_CODE=code)

    def twin(self, number: int, days_later: float, *, other_patient: bool = False) -> Stay:
        """Add a further admission with the same codes and background, of this patient or of another.

        Parameters
        ----------
        number : int
            Less than `TWINS`; tells the further admissions of one patient apart.
        days_later : float
            From this discharge to the new admission.
        other_patient : bool
            Whether another patient has it, who is added.

        Returns
        -------
        Stay
            The further admission, which has no notes yet.
        """
        patient, before = self.patient, self.admission
        if other_patient:
            subject = _FIRST_TWIN_SUBJECT + patient.index * TWINS + number
            patient = replace(patient, index=subject - FIRST_SUBJECT, admissions=[])
        admitted = before.discharged + timedelta(days=days_later)
        admission = replace(
            before,
            hadm_id=_FIRST_TWIN_ADMISSION + self.patient.index * TWINS + number,
            admitted=admitted,
            discharged=admitted + timedelta(days=4),
            died=False,
        )
        other = Stay(self._rows, self.chance, patient, admission)
        if other_patient:
            self.subjects.append(patient.subject_id)
            other.add("PATIENTS", GENDER=patient.sex, DOB=patient.born, EXPIRE_FLAG=0)
        other.add(
            "ADMISSIONS", ADMITTIME=admitted, DISCHTIME=admission.discharged, ADMISSION_TYPE="EMERGENCY",
            ADMISSION_LOCATION="EMERGENCY ROOM ADMIT", DISCHARGE_LOCATION="HOME", INSURANCE="Medicare",
            LANGUAGE="ENGL", RELIGION="NOT SPECIFIED", MARITAL_STATUS="MARRIED", ETHNICITY="WHITE",
            DIAGNOSIS="READMISSION", HOSPITAL_EXPIRE_FLAG=0, HAS_CHARTEVENTS_DATA=1,
        )  # fmt: skip
        other.codes("DIAGNOSES_ICD", *admission.diagnoses)
        other.codes("PROCEDURES_ICD", *admission.procedures)
        self.admissions.append(admission.hadm_id)
        return other

    # ------------------------------------------------------------------ intensive care

    def intensive_care(self, *hours: tuple[float, float]) -> list[int]:
        """Replace the ICU stays and all that was charted in them; hours count from the admission.

        Returns
        -------
        list of int
            The ICUSTAY_IDs.
        """
        for table in ("ICUSTAYS", "CHARTEVENTS", "PROCEDUREEVENTS_MV"):
            self.drop(table)
        first = (self.admission.hadm_id - FIRST_ADMISSION) * 2 + FIRST_SUBJECT
        for number, (start, end) in enumerate(hours):
            self.add(
                "ICUSTAYS", ICUSTAY_ID=first + number, DBSOURCE="metavision", FIRST_CAREUNIT="MICU",
                LAST_CAREUNIT="MICU", FIRST_WARDID=12, LAST_WARDID=12, INTIME=self.after(start),
                OUTTIME=self.after(end), LOS=round((end - start) / 24, 4),
            )  # fmt: skip
        return [first + number for number in range(len(hours))]

    def after(self, hours: float) -> datetime:
        """Return the minute that is so many hours after the admission."""
        return self.admission.admitted + timedelta(minutes=round(hours * 60))

    def chart(self, icu_stay: int, hours: float, item: int, value: str, error: int = 0) -> None:
        """Add a row of CHARTEVENTS."""
        moment = self.after(hours)
        self.add(
            "CHARTEVENTS", ICUSTAY_ID=icu_stay, ITEMID=item, CHARTTIME=moment, STORETIME=moment, CGID=20000,
            VALUE=value, WARNING=0, ERROR=error,
        )  # fmt: skip
