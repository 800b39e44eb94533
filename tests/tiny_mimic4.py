"""A few invented rows in the tables of MIMIC-IV and MIMIC-IV-Note, with the traps of the real ones."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

COLUMNS = {
    "hosp/patients": ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"),
    "hosp/admissions": (
        "subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "admission_type", "admit_provider_id",
        "admission_location", "discharge_location", "insurance", "language", "marital_status", "race", "edregtime",
        "edouttime", "hospital_expire_flag",
    ),
    "hosp/diagnoses_icd": ("subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"),
    "hosp/procedures_icd": ("subject_id", "hadm_id", "seq_num", "chartdate", "icd_code", "icd_version"),
    "icu/icustays": ("subject_id", "hadm_id", "stay_id", "first_careunit", "last_careunit", "intime", "outtime", "los"),
    "icu/procedureevents": (
        "subject_id", "hadm_id", "stay_id", "starttime", "endtime", "itemid", "value", "statusdescription",
    ),
    "note/discharge": (
        "note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text",
    ),
    "note/radiology": (
        "note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text",
    ),
}  # fmt: skip
SUMMARY = (
    " \nName:  ___                  Unit No:   ___\n \nChief Complaint:\n{complaint}\n \nHistory of Present Illness:\n"
    'Mr. ___ is a ___ year old man with {complaint}, "worse today".\n\n\n\nBrief Hospital Course:\n{course}\n \n'
    "Followup Instructions:\n___\n"
)
"""As in MIMIC-IV-Note: blanks around line breaks, and ``___`` for what was removed."""


class TinyMimic4:
    """Rows by table. One patient has one admission, with its number plus 10,000,000, unless a test adds more."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}

    def _add(self, table: str, **values: Any) -> None:
        row = dict.fromkeys(COLUMNS[table], "") | values
        self.rows[table].append(tuple(row[name] for name in COLUMNS[table]))

    def admit(
        self,
        subject: int,
        complaint: str | None = "chest pain",
        hadm: int | None = None,
        left: str = "2150-01-06 08:00:00",
        died: str = "0",
        age: int | str = 60,
        course: str = "uneventful",
    ) -> int:
        """Add a patient with an admission, and a discharge summary unless the complaint is None."""
        hadm = hadm or 10_000_000 + subject
        if not any(row[0] == subject for row in self.rows["hosp/patients"]):
            self._add(
                "hosp/patients", subject_id=subject, gender="F", anchor_age=age, anchor_year=2148,
                anchor_year_group="2011 - 2013",
            )  # fmt: skip
        self._add(
            "hosp/admissions", subject_id=subject, hadm_id=hadm, admittime="2150-01-01 08:00:00", dischtime=left,
            admission_type="EW EMER.", insurance="Medicare", language="English", race="WHITE",
            hospital_expire_flag=died,
        )  # fmt: skip
        if complaint is not None:
            self.discharge(subject, hadm, SUMMARY.format(complaint=complaint, course=course))
        return hadm

    def discharge(self, subject: int, hadm: int | str, text: str, kind: str = "DS", **values: Any) -> None:
        """Add a discharge summary, or an addendum (AD)."""
        self._note("note/discharge", subject, hadm, text, kind, values)

    def radiology(self, subject: int, hadm: int | str, text: str, **values: Any) -> None:
        """Add a radiology report; the admission may be empty."""
        self._note("note/radiology", subject, hadm, text, "RR", values)

    def _note(self, table: str, subject: int, hadm: int | str, text: str, kind: str, values: dict[str, Any]) -> None:
        number = 1 + sum(row[1] == subject for row in self.rows[table])
        row = {"note_id": f"{subject}-{kind}-{number}", "note_seq": number, "charttime": "2150-01-06 00:00:00"}
        self._add(table, **row | {"subject_id": subject, "hadm_id": hadm, "note_type": kind, "text": text} | values)

    def code(self, subject: int, code: str, version: int | str, table: str = "diagnoses_icd") -> None:
        """Add a code as PostgreSQL exports a char(7) column: filled up with blanks."""
        row = {"subject_id": subject, "hadm_id": 10_000_000 + subject, "seq_num": 1}
        self._add(f"hosp/{table}", **row, icd_code=f"{code:<7}", icd_version=version)

    def ventilate(self, subject: int, *hours: tuple[float, float], stay: int = 0, status: str = "FinishedRunning",
                  item: int = 225792) -> None:  # fmt: skip
        """Add an ICU stay with periods of ventilation, in hours from the first of January."""
        hadm, number = 10_000_000 + subject, 10 * subject + stay
        self._add("icu/icustays", subject_id=subject, hadm_id=hadm, stay_id=number, intime=_moment(24 * stay))
        for start, end in hours:
            self._add(
                "icu/procedureevents", subject_id=subject, hadm_id=hadm, stay_id=number, starttime=_moment(start),
                endtime=_moment(end), itemid=item, statusdescription=status,
            )  # fmt: skip

    def write(self, folder: Path, notes: Path | None = None) -> Path:
        """Write ``hosp/``, ``icu/`` and ``note/`` as csv.gz, the notes into another folder when it is named."""
        for table, rows in self.rows.items():
            path = ((notes or folder) if table.startswith("note/") else folder) / f"{table}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path, "wt", encoding="utf-8", newline="", compresslevel=1) as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS[table], *rows])
        return folder


def _moment(hours: float) -> str:
    minutes = round(hours * 60)
    return f"2150-01-{1 + minutes // 1440:02d} {minutes // 60 % 24:02d}:{minutes % 60:02d}:00"


def tiny_hospital() -> TinyMimic4:
    """Ten patients and an outpatient, one for each thing that can happen to an admission."""
    hospital = TinyMimic4()
    hospital.admit(10000001)  # coded in ICD-9
    hospital.admit(10000002, "dyspnea", left="2150-01-12 08:00:00", died="1")  # coded in ICD-10
    hospital.admit(10000003, "fall", left="2150-01-04 08:00:00")  # coded in both
    hospital.admit(10000004, "fever", age=15)  # 15 in 2148, so 17 on admission
    hospital.admit(10000005, "fever", age=16)  # 18 on admission
    hospital.admit(10000006, None)  # no summary
    hospital.admit(10000007, "sepsis, and the patient expired", died="1")
    hospital.admit(10000008, "cough", left="2149-12-31 08:00:00")  # left before coming
    hospital.admit(10000009, None)
    hospital.discharge(10000009, 20000009, SUMMARY.format(complaint="only an addendum", course="-"), "AD")
    hospital.admit(10000010, None)
    hospital.discharge(10000010, 20000010, "Addendum:\nlate words", "AD", charttime="2150-01-07 00:00:00")
    hospital.discharge(10000010, 20000010, SUMMARY.format(complaint="syncope", course="fine"))
    hospital.discharge(10000010, "", "Summary of nowhere")
    hospital.discharge(10000010, 29999999, "Summary of an admission that is not in the table")
    for number, code in ((1, "4280"), (1, "0389"), (1, "V4581"), (1, "E8859"), (3, "4280"), (5, "4280"), (8, "")):
        hospital.code(10000000 + number, code, 9)
    for number, code in ((2, "I509"), (2, "A419"), (3, "I5022"), (7, "I509"), (10, "I509"), (10, "Z9989")):
        hospital.code(10000000 + number, code, 10)
    for number, code, version in ((1, "0331", 9), (1, "0066", 9), (2, "5A1955Z", 10), (2, "0BH17EZ", 10)):
        hospital.code(10000000 + number, code, version, "procedures_icd")
    hospital.ventilate(10000001, (10, 172))  # 6 hours short of 7 days: the grace makes it positive
    hospital.ventilate(10000002, (10, 30), (170, 190))  # the span is long, the sum is not
    hospital.ventilate(10000003, (10, 40), (20, 30))
    hospital.ventilate(10000005)
    hospital.radiology(10000001, 20000001, "CHEST X-RAY\r\n\r\n\r\n\r\nNo   acute\tprocess. ___ \n")
    hospital.radiology(10000001, 20000001, "CHEST X-RAY\n\nNo acute process. ___", charttime="2150-01-02 00:00:00")
    hospital.radiology(10000011, "", "MAMMOGRAM of an outpatient", charttime="2149-03-04 05:06:00")
    hospital.radiology(10000011, "", "  \n ")
    return hospital
