"""The builder of MIMIC-III over tiny hospitals whose notes are as hostile as can be."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinstack.files import read_json
from clinstack.notes.cleaning import clean_text
from clinstack.notes.cohort import write_cohort
from clinstack.notes.mimic3.options import Mimic3Options
from clinstack.notes.mimic3.prepare import prepare_mimic3
from clinstack.tasks import OUTCOMES

SPLITS = ("train", "validation", "test")
TASKS = ("mortality", "length_of_stay", "diagnoses", "procedures")
BEGIN = datetime(2150, 1, 1, 8)
HEADERS = (
    *("Chief Complaint:", "CHIEF COMPLAINT:", "History of Present Illness:", "Past Medical History:", "Allergies:"),
    *("Medications on Admission:", "Physical Exam:", "Family History:", "Social History:", "Brief Hospital Course:"),
    *("Discharge Medications:", "Discharge Diagnosis:", "Labs:", ":", "1. ", "Addendum:"),
)
BREAKS = ("\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\v", "\f", "\x85", "\u2028", "\u2029", "\n \n", "\n\t\n\n\n")
MARKS = (
    "\0",
    '"',
    '""',
    ",",
    '",',
    "'",
    "[**",
    "**]",
    "[**Name**]",
    "\\n",
    "\\",
    "\ufeff",
    "\u200f",
    "e\u0301",
    "😀",
    "中",
)
WORDS = (
    "fell",
    "expired",
    "patient expired",
    "pt died",
    "he died on",
    "time of death",
    "alive",
    " ",
    "\t",
    "\xa0",
    "İ",
    "ſ",
)
PIECES = st.one_of(*(st.sampled_from(pieces) for pieces in (HEADERS, BREAKS, MARKS, WORDS)), st.text(max_size=8))
NOTE = st.one_of(
    st.just(""),
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(PIECES, max_size=15).map(lambda pieces: "Chief Complaint:\nfell\n\n" + "".join(pieces)),
)


@dataclass
class Admission:
    """One admission and its summary and notes."""

    patient: int
    notes: list[tuple[str, str, str]]  # category, description, text
    hours: int
    died: str
    codes: list[str]


ADMISSION = st.builds(
    Admission,
    patient=st.integers(1, 9),
    notes=st.lists(
        st.tuples(
            st.sampled_from(["Discharge summary", "Discharge summary", "Nursing", "Radiology "]),
            st.sampled_from(["Report", "Report", "Addendum", ""]),
            NOTE,
        ),
        max_size=4,
    ),
    hours=st.integers(-20, 800),
    died=st.sampled_from(["0", "0", "1", ""]),
    codes=st.lists(st.sampled_from(["4019", "0031", "V4581", "E8120", "0331", "9904", "", " 25000 "]), max_size=4),
)


PLAIN = [
    Admission(
        patient, [("Discharge summary", "Report", "Chief Complaint:\nfell\n\nAllergies:\nnone\n")], 50, "0", ["4019"]
    )
    for patient in range(1000, 1009)
]
"""So many that one is in training, and every hospital has a code to learn."""


@dataclass
class Hospital:
    """Tables of a few admissions."""

    admissions: list[Admission]
    compress: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    """The text of each note, by ROW_ID."""

    def write(self, folder: Path) -> Path:
        folder.mkdir()
        admissions: list[list[Any]] = [
            ["SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "HOSPITAL_EXPIRE_FLAG"]
        ]
        notes: list[list[Any]] = [
            ["ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT"]
        ]
        codes: list[list[Any]] = [["SUBJECT_ID", "HADM_ID", "ICD9_CODE"]]
        for hadm, one in enumerate([*PLAIN, *self.admissions], 100):
            left = BEGIN + timedelta(hours=one.hours)
            admissions.append([one.patient, hadm, BEGIN, left, "URGENT", one.died])
            for category, description, text in one.notes:
                row = len(notes)
                error = "1" if row % 11 == 0 else ""
                notes.append([row, one.patient, hadm, left.date(), "", category, description, error, text])
                self.texts[str(row)] = text
            codes += [[one.patient, hadm, code] for code in one.codes]
        tables = {"ADMISSIONS": admissions, "NOTEEVENTS": notes, "DIAGNOSES_ICD": codes, "PROCEDURES_ICD": codes}
        for name, rows in tables.items():
            text = io.StringIO(newline="")
            csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
            data = text.getvalue().encode()
            (folder / f"{name}.csv{'.gz' * self.compress}").write_bytes(gzip.compress(data) if self.compress else data)
        return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_output(out: Path, texts: dict[str, str]) -> None:
    split_of = dict(zip(*pq.read_table(out / "splits.parquet").to_pydict().values(), strict=True))
    notes = pq.read_table(out / "notes" / "notes.parquet").to_pylist()
    assert len({row["note_id"] for row in notes}) == len(notes)
    for row in notes:
        assert row["text"]
        assert row["text"] == clean_text(texts[row["note_id"]])
        assert row["patient_id"] in split_of
    for task in (entry.name for entry in (out / "examples").iterdir()):
        seen = set[str]()
        for split in SPLITS:
            for row in pq.read_table(out / "examples" / task / f"{split}.parquet").to_pylist():
                assert row["example_id"] not in seen
                seen.add(row["example_id"])
                assert split_of[row["patient_id"]] == split
                check_sections(row)


def check_sections(row: dict[str, Any]) -> None:
    """The spans follow each other without gaps from the text's beginning to its end."""
    text, end = row["text"], 0
    assert text.strip()
    assert "\0" not in text
    for span in row["sections"]:
        assert span["start"] == end
        assert span["end"] > end
        end = span["end"]
    assert end == len(text)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(admissions=st.lists(ADMISSION, max_size=12), text=st.sampled_from(["admission", "full"]), compress=st.booleans())
def test_any_notes_make_a_sound_table(
    admissions: list[Admission], text: Any, compress: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    hospital = Hospital(admissions, compress)
    source = hospital.write(folder / "in")
    for name in ("one", "two"):
        prepare_mimic3(source, folder / name, text=text, tasks=TASKS, minimum_count=1)
    check_output(folder / "one", hospital.texts)
    assert tree(folder / "one") == tree(folder / "two")
    # Without the table of notes the examples are the same.
    prepare_mimic3(
        source, folder / "three", text=text, tasks=TASKS, minimum_count=1, options=Mimic3Options(notes=False)
    )
    first = {name: data for name, data in tree(folder / "one").items() if name.startswith("examples/")}
    assert {name: data for name, data in tree(folder / "three").items() if name.startswith("examples/")} == first
    # Nor do the published scripts' rules fall over them.
    official = Mimic3Options(compat="official", notes=False, export_csv=folder / "csv")
    prepare_mimic3(source, folder / "four", text=text, tasks=TASKS, options=official)
    ids = [
        row["example_id"]
        for split in SPLITS
        for row in pq.read_table(folder / "four" / "examples" / "diagnoses" / f"{split}.parquet").to_pylist()
    ]
    assert len(set(ids)) == len(ids) >= 1


def test_the_published_rules_build_all_five_tasks(tmp_path: Path) -> None:
    write_cohort(tmp_path / "in", 60, 4)
    prepare_mimic3(tmp_path / "in", tmp_path / "out", options=Mimic3Options(compat="official", notes=False))
    rows = read_json(tmp_path / "out" / "prepare.json")["counts"]["examples"]
    assert rows.keys() == set(OUTCOMES)
    assert all(rows[task]["train"] > 0 for task in OUTCOMES)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "compat='official'"])
def test_memory_does_not_grow_with_the_notes(options: str, tmp_path: Path) -> None:
    """A ninth of MIMIC-III's notes, of its lengths."""
    write_cohort(tmp_path / "in", None, 1, notes=200_000, workers=2)
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from clinstack.notes.mimic3.prepare import prepare_mimic3\n"
        "from clinstack.notes.mimic3.options import Mimic3Options\n"
        f"facts = prepare_mimic3({str(tmp_path / 'in')!r}, Path({str(tmp_path / 'out')!r}), "
        f"options=Mimic3Options({options}))\n"
        "print(facts['counts']['notes_read'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    notes, peak = map(int, done.stdout.split())
    assert notes == 200_000
    assert peak < 1024**3, f"{peak / 1024**2:,.0f} MiB"
