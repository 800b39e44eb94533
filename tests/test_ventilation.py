"""Prolonged ventilation: periods against a slow reference, sources, definitions, cohort rules, texts written before."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.sources.source_tables import SourceTables
from clinstack.notes.ventilation.early_texts import texts_before_ventilation
from clinstack.notes.ventilation.events import make_periods
from clinstack.notes.ventilation.label import VentilationOptions, label_ventilation, open_ventilation_tables
from clinstack.notes.ventilation.label_file import read_label_file

START = datetime(2150, 1, 1)
COLUMNS = {
    "PATIENTS": ("SUBJECT_ID", "DOB", "DOD"),
    "ICUSTAYS": ("HADM_ID", "ICUSTAY_ID", "INTIME"),
    "CHARTEVENTS": ("ICUSTAY_ID", "ITEMID", "CHARTTIME", "VALUE", "ERROR"),
    "PROCEDUREEVENTS_MV": ("ICUSTAY_ID", "ITEMID", "STARTTIME"),
    "DIAGNOSES_ICD": ("HADM_ID", "ICD9_CODE"),
    "D_ICD_DIAGNOSES": ("ICD9_CODE", "LONG_TITLE"),
    "NOTEEVENTS": (
        "ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME", "CATEGORY", "ISERROR", "TEXT",
    ),
    "VENTDURATIONS": ("ICUSTAY_ID", "VENTNUM", "STARTTIME", "ENDTIME", "DURATION_HOURS"),
}  # fmt: skip
# What a charted value says: a ventilator setting, oxygen therapy, an extubation, one by the patient, or nothing.
VOCABULARY = {
    (223849, "CMV"): "setting",
    (445, "7"): "setting",
    (720, "Drager"): "setting",
    (720, "Other/Remarks"): "",
    (223848, "Drager"): "setting",
    (223848, "Other"): "",
    (467, "Ventilator"): "setting",
    (467, "None"): "",
    (467, "Nasal Cannula"): "oxygen",
    (467, "Nasal cannula"): "",
    (226732, "Nasal cannula"): "oxygen",
    (226732, "Trach mask "): "oxygen",
    (226732, "Bipap mask"): "",
    (640, "Extubated"): "extubation",
    (640, "Self Extubation"): "by patient",
    (640, "Other"): "",
    (459, "5"): "",
    (470, "5"): "",
}
PROCEDURES = {227194: "extubation", 225468: "by patient", 225477: "extubation", 225400: ""}


def hour(number: float) -> datetime:
    return START + timedelta(hours=number)


def reference(chart: list[tuple[Any, ...]], procedures: list[tuple[Any, ...]]) -> list[tuple[int, datetime, datetime]]:
    """The rules, one stay and one moment after the other: slow, simple, and without a database."""
    found = []
    for stay in sorted({row[0] for row in chart + procedures}):
        said: dict[datetime, set[str]] = defaultdict(set)
        for row_stay, item, moment, value, error in chart:
            if row_stay == stay and value is not None and error != "1":
                said[moment].add(VOCABULARY[item, value])
        rows = set()
        for moment, words in said.items():
            extubated = bool(words & {"extubation", "by patient"})
            rows.add((moment, extubated, "setting" in words, "oxygen" in words, "by patient" in words))
        for row_stay, item, moment in procedures:
            if row_stay == stay and PROCEDURES[item]:
                rows.add((moment, True, False, False, PROCEDURES[item] == "by patient"))
        number, last_setting, after_extubation = 0, None, False
        periods: dict[int, list[tuple[datetime, bool]]] = defaultdict(list)
        for moment in sorted({row[0] for row in rows}):
            together = sorted(row for row in rows if row[0] == moment)
            for _, extubated, setting, oxygen, _ in together:
                counts = extubated or setting
                paused = setting and last_setting is not None and moment - last_setting > timedelta(hours=8)
                if (counts and after_extubation) or (oxygen and not setting) or paused:
                    number += 1
                if counts:
                    after_extubation = extubated
                if setting:
                    last_setting = moment
            periods[number] += [(moment, row[2]) for row in together if row[1] or row[2]]
        for members in periods.values():
            moments = [moment for moment, _ in members]
            if members and any(setting for _, setting in members) and min(moments) < max(moments):
                found.append((stay, min(moments), max(moments)))
    return sorted(found)


def rows_table(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> pa.Table:
    kinds = {"ICUSTAY_ID": pa.int64(), "ITEMID": pa.int64(), "VALUE": pa.string(), "ERROR": pa.string()}
    columns = [
        pa.array([row[place] for row in rows], kinds.get(name, pa.timestamp("us"))) for place, name in enumerate(names)
    ]
    return pa.table(dict(zip(names, columns, strict=True)))


def periods_of(
    connection: Any, chart: list[tuple[Any, ...]], procedures: list[tuple[Any, ...]]
) -> list[tuple[int, datetime, datetime]]:
    for name, rows in (("CHARTEVENTS", chart), ("PROCEDUREEVENTS_MV", procedures)):
        connection.register(name, rows_table(COLUMNS[name], rows))
    connection.execute(
        "CREATE OR REPLACE TABLE icu_stays AS "
        "SELECT ICUSTAY_ID AS stay FROM CHARTEVENTS UNION SELECT ICUSTAY_ID FROM PROCEDUREEVENTS_MV"
    )
    make_periods(connection)
    found: list[tuple[int, datetime, datetime]] = connection.execute(
        "SELECT stay, started, ended FROM ventilation_periods ORDER BY ALL"
    ).fetchall()
    return found


@pytest.fixture(scope="module")
def database() -> Any:
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        yield connection


stays_and_moments = st.tuples(st.integers(1, 3), st.integers(0, 40).map(lambda step: hour(step * 2)))
charted = st.tuples(
    stays_and_moments, st.sampled_from(sorted(VOCABULARY)), st.sampled_from([None, "0", "0", "1"]), st.integers(0, 9)
).map(lambda drawn: (drawn[0][0], drawn[1][0], drawn[0][1], drawn[1][1] if drawn[3] else None, drawn[2]))
done = st.tuples(stays_and_moments, st.sampled_from(sorted(PROCEDURES))).map(
    lambda drawn: (drawn[0][0], drawn[1], drawn[0][1])
)


@settings(max_examples=100, deadline=None)
@given(st.lists(charted, max_size=60), st.lists(done, max_size=8))
def test_periods_are_those_of_the_slow_reference(
    database: Any, chart: list[tuple[Any, ...]], procedures: list[tuple[Any, ...]]
) -> None:
    assert periods_of(database, chart, procedures) == reference(chart, procedures)


@pytest.mark.parametrize(
    ("chart", "procedures", "periods"),
    [
        ([(223849, 0), (223849, 8)], [], [(0, 8)]),
        ([(223849, 0), (223849, 8.1)], [], []),
        ([(223849, 0), (223849, 4), (223849, 13), (223849, 15)], [], [(0, 4), (13, 15)]),
        ([(223849, 0), (223849, 4), (223849, 6), (223849, 7)], [(227194, 5)], [(0, 5), (6, 7)]),
        ([(223849, 0), (223849, 4), (223849, 6), (223849, 7)], [(227194, 5), (225468, 5)], [(0, 4), (6, 7)]),
        ([(223849, 0), (226732, 1), (223849, 2), (223849, 3)], [], [(2, 3)]),
        ([(223849, 0), (226732, 2), (223849, 2), (223849, 3)], [], [(0, 3)]),
        ([(223849, 0), (470, 1), (223849, 3)], [], [(0, 3)]),
        ([(223849, 0)], [(227194, 5)], [(0, 5)]),
        ([(226732, 0)], [(227194, 5), (227194, 6)], []),
        ([(459, 0), (459, 3)], [], []),
    ],
)  # fmt: skip
def test_each_rule_by_hand(
    database: Any, chart: list[tuple[int, float]], procedures: list[tuple[int, float]], periods: list[tuple[float, ...]]
) -> None:
    value = {223849: "CMV", 226732: "Trach mask ", 470: "5", 459: "5"}
    rows = [(7, item, hour(moment), value[item], "0") for item, moment in chart]
    done = [(7, item, hour(moment)) for item, moment in procedures]
    assert periods_of(database, rows, done) == [(7, hour(first), hour(last)) for first, last in periods]
    assert reference(rows, done) == periods_of(database, rows, done)


class Hospital:
    """Admissions 1, 2, …, each of a patient of its own number unless said, with ICU stay 10 times the number."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in COLUMNS if name != "VENTDURATIONS"}
        self.candidates: list[tuple[Any, ...]] = []

    def admit(self, hadm: int, subject: int | None = None, age: int = 60, died: float | None = None) -> None:
        subject = subject or hadm
        if not any(row[0] == subject for row in self.rows["PATIENTS"]):
            death = "" if died is None else hour(died).strftime("%Y-%m-%d 00:00:00")
            self.rows["PATIENTS"].append((subject, f"{2150 - age}-01-01 00:00:00", death))
        self.rows["ICUSTAYS"].append((hadm, hadm * 10, hour(0)))
        self.candidates.append((hadm, subject, hour(0), ("train", "validation", "test")[subject % 3]))

    def chart(self, stay: int, first: int, last: int, error: str = "0") -> None:
        for number in range(first, last + 1, 6):
            self.rows["CHARTEVENTS"].append((stay, 223849, hour(number), "CMV", error))

    def note(self, hadm: int | str, text: str, **other: Any) -> None:
        row = {"HADM_ID": hadm, "SUBJECT_ID": hadm, "TEXT": text, "CATEGORY": "Nursing", "CHARTDATE": "2150-01-02"}
        row |= {"ROW_ID": len(self.rows["NOTEEVENTS"]) + 1} | other
        self.rows["NOTEEVENTS"].append(tuple(row.get(name, "") for name in COLUMNS["NOTEEVENTS"]))

    def write(self, folder: Path, stored: bool = True) -> Path:
        folder.mkdir()
        for table, rows in self.rows.items():
            names = COLUMNS[table]
            kept = [place for place, name in enumerate(names) if stored or name != "STORETIME"]
            with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([[row[place] for place in kept] for row in [names, *rows]])
        return folder


class Labelled:
    """What came out of a source for given options."""

    def __init__(self, hospital: Hospital, folder: Path, **options: Any) -> None:
        chosen = VentilationOptions(**options)
        self.attrition = Attrition()
        with duckdb.connect() as connection:
            connection.execute("SET threads = 1")
            connection.execute(
                "CREATE TABLE candidates (hadm BIGINT, subject BIGINT, admitted TIMESTAMP, split VARCHAR)"
            )
            connection.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?)", hospital.candidates)
            tables = SourceTables(connection, folder)
            open_ventilation_tables(tables, chosen)
            self.facts = label_ventilation(connection, self.attrition, chosen)
            if chosen.text == "before":
                self.facts |= texts_before_ventilation(connection, tables, self.attrition)
                self.texts = dict(connection.execute("SELECT * FROM early_texts").fetchall())
            self.labels = dict(connection.execute("SELECT hadm, label FROM labelled").fetchall())
            self.started = dict(connection.execute("SELECT hadm, started FROM ventilated").fetchall())
            self.splits = dict(connection.execute("SELECT hadm, split FROM ventilation_splits").fetchall())
        assert set(self.labels) == set(self.started) == set(self.splits)
        self.ventilation = self.facts["ventilation"]

    @property
    def removed(self) -> dict[str, int]:
        return {step["step"]: step["removed"] for step in self.attrition.steps}


@pytest.fixture
def hospital() -> Hospital:
    """Admissions that differ in length, pauses, age and death."""
    hospital = Hospital()
    for hadm in range(1, 10):
        hospital.admit(hadm, age=9 if hadm == 6 else 60, died=100 if hadm in (1, 2) else None)
    hospital.chart(10, 0, 162)  # 6 h short of 7 days: the grace makes a span positive
    hospital.chart(20, 0, 156)  # 12 h short
    hospital.chart(30, 0, 24)  # two periods with a long pause: the span counts
    hospital.chart(30, 150, 168)
    hospital.chart(40, 0, 0)  # one moment is no period
    hospital.chart(50, 0, 200, error="1")  # marked as errors
    hospital.chart(60, 0, 200)  # a child
    hospital.rows["ICUSTAYS"].append((7, 71, hour(100)))
    hospital.chart(71, 102, 300)  # only in the second ICU stay
    hospital.chart(80, 0, 48)  # then extubated and never on a setting for longer than a moment
    hospital.rows["PROCEDUREEVENTS_MV"].append((80, 227194, hour(49)))
    hospital.chart(80, 180, 180)
    hospital.chart(90, 2, 180)
    return hospital


def test_span_with_grace_and_sum_of_durations(hospital: Hospital, tmp_path: Path) -> None:
    source = hospital.write(tmp_path / "in")
    span = Labelled(hospital, source)
    assert span.labels == {1: 1, 2: 0, 3: 1, 8: 0, 9: 1}
    assert span.started[9] == hour(2)
    assert span.splits == {hadm: ("train", "validation", "test")[hadm % 3] for hadm in span.labels}
    assert [step["kept"] for step in span.attrition.steps] == [9, 8, 5]
    sums = Labelled(hospital, source, definition="sum")
    assert sums.labels == {1: 0, 2: 0, 3: 0, 8: 0, 9: 1}
    for found in (span, sums):
        assert (found.ventilation["positive_by_span"], found.ventilation["positive_by_sum"]) == (3, 1)
        assert found.ventilation["admissions_where_the_definitions_differ"] == 2
        assert found.ventilation["admissions"] == 5
    assert span.ventilation["negatives_who_died_within_the_days"] == 1
    assert sums.ventilation["negatives_who_died_within_the_days"] == 2
    assert (span.ventilation["grace_hours"], sums.ventilation["grace_hours"]) == (6, 0)
    assert Labelled(hospital, source, grace_hours=12).labels[2] == 1
    assert Labelled(hospital, source, days=2).labels == dict.fromkeys((1, 2, 3, 8, 9), 1)


def test_all_stays_and_the_minimum_of_days_as_published(hospital: Hospital, tmp_path: Path) -> None:
    hospital.rows["ICUSTAYS"].append((8, 81, hour(200)))
    hospital.chart(81, 200, 400)
    source = hospital.write(tmp_path / "in")
    every = Labelled(hospital, source, stays="all")
    assert every.labels == {1: 1, 2: 0, 3: 1, 7: 1, 8: 1, 9: 1}  # each stay for itself: 8 is long in its second
    assert (every.started[7], every.started[8]) == (hour(102), hour(0))
    longer = Labelled(hospital, source, stays="all", minimum_days=2.5, definition="sum")
    assert longer.labels == {1: 0, 2: 0, 7: 1, 8: 1, 9: 1}
    assert longer.started[8] == hour(200)  # the first stay that is long enough
    assert longer.removed["ventilated for at least 2.5 days"] == 1


def test_exclusions_by_diagnosis_are_off_by_default_and_one_step_each(hospital: Hospital, tmp_path: Path) -> None:
    codes = {1: "1400", 2: "358.01", 3: "94833", 8: "V594", 9: "94810"}
    hospital.rows["DIAGNOSES_ICD"] += list(codes.items())
    hospital.rows["D_ICD_DIAGNOSES"] += [("V594", "Kidney Donors"), ("1400", "Malignant neoplasm of upper lip")]
    source = hospital.write(tmp_path / "in")
    assert set(Labelled(hospital, source).labels) == {1, 2, 3, 8, 9}
    found = Labelled(hospital, source, exclusions=("head_neck_cancer", "neuromuscular", "burns", "donors"))
    assert set(found.labels) == {9}  # burns of 10 % are no reason
    assert [step["removed"] for step in found.attrition.steps[2:]] == [1, 1, 1, 1, 3]
    assert set(Labelled(hospital, source, exclusions=("donors",)).labels) == {1, 2, 3, 9}


def test_need_of_an_early_note(hospital: Hospital, tmp_path: Path) -> None:
    hospital.note(1, "stable", CHARTTIME=hour(48))
    hospital.note(2, "too late", CHARTTIME=hour(48.1))
    hospital.note(3, "no time")
    hospital.note(8, "another kind", CHARTTIME=hour(3), CATEGORY="Radiology")
    hospital.note(9, "too early", CHARTTIME=hour(1))
    hospital.note(9, "an error", CHARTTIME=hour(3), ISERROR="1")
    hospital.note(3, "with a blank behind its name", CHARTTIME=hour(0), CATEGORY="Respiratory ")
    found = Labelled(hospital, hospital.write(tmp_path / "in"), early_note=True)
    assert set(found.labels) == {1, 3}
    assert found.removed["with a nursing or respiratory note within 48 hours of ventilation"] == 3


def durations(path: Path, rows: list[tuple[Any, ...]]) -> None:
    names = COLUMNS["VENTDURATIONS"]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        pq.write_table(pa.table({name.lower(): [row[i] for row in rows] for i, name in enumerate(names)}), path)


@pytest.mark.parametrize("name", ["VENTDURATIONS.csv", "ventdurations.parquet", "ventilation_durations.parquet"])
def test_a_ready_table_of_durations_labels_like_the_events(hospital: Hospital, tmp_path: Path, name: str) -> None:
    source = hospital.write(tmp_path / "in")
    events = Labelled(hospital, source)
    for table in ("CHARTEVENTS", "PROCEDUREEVENTS_MV"):
        (source / f"{table}.csv").unlink()
    periods = [(10, 0, 162), (20, 0, 156), (30, 0, 24), (30, 150, 168), (60, 0, 198), (71, 102, 300), (80, 0, 49)]
    periods += [(90, 2, 176), (90, 100, 180), (90, 2, 176)]
    rows = [(stay, 1, hour(first), hour(last), float(last - first)) for stay, first, last in periods]
    durations(source / name, rows)
    found = Labelled(hospital, source, source="durations")
    assert (found.labels, found.started) == (events.labels, events.started)
    assert found.ventilation["positive_by_sum"] == events.ventilation["positive_by_sum"] == 1
    assert found.ventilation["overlapping_periods_merged"] == 1
    assert Labelled(hospital, source, source="durations", definition="sum").labels[9] == 1
    durations(source / name, [*rows, (20, 2, hour(170), hour(169), -1.0)])
    with pytest.raises(InputError, match=r"1 period.* end before they start, the first of ICUSTAY_ID 20"):
        Labelled(hospital, source, source="durations")


def test_durations_in_a_duckdb_file(hospital: Hospital, tmp_path: Path) -> None:
    folder = hospital.write(tmp_path / "in")
    with duckdb.connect(str(tmp_path / "mimic.db")) as connection:
        for table in ("PATIENTS", "ICUSTAYS"):
            connection.execute(f"CREATE TABLE {table} AS SELECT * FROM '{folder / table}.csv'")
        connection.execute("CREATE SCHEMA mimiciii_derived")
        connection.execute(
            "CREATE TABLE mimiciii_derived.ventilation_durations AS SELECT 20::BIGINT AS icustay_id, 1 AS ventnum, "
            "TIMESTAMP '2150-01-01' AS starttime, TIMESTAMP '2150-01-09' AS endtime, 192.0 AS duration_hours"
        )
    assert Labelled(hospital, tmp_path / "mimic.db", source="durations").labels == {2: 1}


def test_a_missing_table_is_named_with_the_remedy(hospital: Hospital, tmp_path: Path) -> None:
    source = hospital.write(tmp_path / "in")
    with pytest.raises(InputError, match=r"no VENTDURATIONS.* use the ventilation source events"):
        Labelled(hospital, source, source="durations")
    (source / "D_ICD_DIAGNOSES.csv").unlink()
    with pytest.raises(InputError, match=r"no D_ICD_DIAGNOSES.* leave the exclusion out"):
        Labelled(hospital, source, exclusions=("donors",))
    (source / "CHARTEVENTS.csv").unlink()
    with pytest.raises(InputError, match=r"no CHARTEVENTS.* leave the task out"):
        Labelled(hospital, source)


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("ICUSTAYS", (8, 80, hour(0)), "ICUSTAYS: ICUSTAY_ID 80 stands in several rows"),
        ("PATIENTS", (8, hour(-9999), ""), "PATIENTS: SUBJECT_ID 8 stands in several rows"),
    ],
)
def test_a_repeated_stay_or_patient_is_refused(
    hospital: Hospital, tmp_path: Path, table: str, row: tuple[Any, ...], message: str
) -> None:
    hospital.rows[table].append(row)
    with pytest.raises(InputError, match=message):
        Labelled(hospital, hospital.write(tmp_path / "in"))


LABELS = "HADM_ID,label,split\n1,1,train\n2,0,test\n3,1.0,val\n404,0,train\n"


@pytest.fixture
def patients(tmp_path: Path) -> Hospital:
    """Three admissions of two patients: 1 and 2 of patient 5, 3 of patient 6."""
    hospital = Hospital()
    for hadm, subject in ((1, 5), (2, 5), (3, 6), (4, 7)):
        hospital.admit(hadm, subject)
    hospital.write(tmp_path / "in")
    return hospital


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_from_a_file_and_patients_on_both_sides_of_its_split(
    patients: Hospital, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"labels.{kind}"
    if kind == "csv":
        path.write_text(LABELS)
    else:
        rows = [line.split(",") for line in LABELS.split()[1:]]
        columns = {"id": [int(row[0]) for row in rows], "label": [float(row[1]) for row in rows]}
        pq.write_table(pa.table(columns | {"Split": [row[2] for row in rows]}), path)
    found = Labelled(patients, tmp_path / "in", source="labels", file=path)
    assert found.labels == {1: 1, 2: 0, 3: 1}
    assert found.splits == {1: "test", 2: "test", 3: "train"}
    facts = found.ventilation
    assert (facts["labels_in_the_file"], facts["labelled_but_not_among_the_admissions"]) == (4, 1)
    assert (facts["patients_on_several_sides_of_the_files_split"], facts["their_admissions"]) == (1, 2)
    assert facts["admissions_where_the_files_split_is_not_the_patients"] == 2
    assert facts["split"] == "by patient"
    assert found.attrition.steps[-1]["kept"] == 3
    kept = Labelled(patients, tmp_path / "in", source="labels", file=path, use_file_split=True)
    assert kept.splits == {1: "train", 2: "test", 3: "validation"}
    assert kept.ventilation["split"] == "of the file"
    assert kept.ventilation["patients_on_several_sides_of_the_files_split"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LABELS + "2,1,test\n", r"line 6: HADM_ID 2 stands already in line 3"),
        (LABELS + "7,2,test\n", r"line 6: label is '2'; use 0 or 1"),
        (LABELS + "7,,test\n", r"line 6: label is ''"),
        (LABELS + "seven,1,test\n", r"line 6: HADM_ID is 'seven'"),
        (LABELS + "7,1\n", r"line 6: 2 field\(s\) where the header has 3"),
        (LABELS + '7,1,"te\n', r"line 6 cannot be read as CSV"),
        ("HADM_ID,outcome\n1,1\n", r"has no column label; its columns are HADM_ID, outcome"),
        ("HADM_ID,label\n", r"has no row"),
        ("", r"has no column HADM_ID and no column label"),
        ("HADM_ID,label\n404,1\n", r"none of its 1 HADM_IDs"),
        ("PAR1 is not all of it", r"cannot be read as Parquet"),
        ("HADM_ID,label\n1,1\n\xe9,1\n".encode("latin-1"), r"is not UTF-8"),
    ],
)
def test_a_wrong_file_of_labels_is_refused_with_its_line(
    patients: Hospital, tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message) as error:
        Labelled(patients, tmp_path / "in", source="labels", file=path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_without_splits_or_starts_cannot_give_them(patients: Hospital, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("HADM_ID,label\n1,1\n")
    assert "patients_on_several_sides_of_the_files_split" not in (
        Labelled(patients, tmp_path / "in", source="labels", file=path).ventilation
    )
    with pytest.raises(InputError, match="use train, val or test"):
        Labelled(patients, tmp_path / "in", source="labels", file=path, use_file_split=True)
    with pytest.raises(InputError, match="needs a column started"):
        Labelled(patients, tmp_path / "in", source="labels", file=path, text="before")


def test_a_pickle_is_never_loaded_and_the_message_exports_it(patients: Hospital, tmp_path: Path) -> None:
    make = (
        "import pickle; pickle.dump({1: [1, 'x', 'train'], 2: [0, 'x', 'val'], 3: [0, 'y', 'test']},"
        "open('pmv_labels.pkl', 'wb'), protocol=4)"
    )
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    path = tmp_path / "pmv_labels.pkl"
    with pytest.raises(InputError, match=r"is a pickle.*never read") as error:
        read_label_file(None, path, VentilationOptions(source="labels", file=path))
    disguised = tmp_path / "other.csv"
    disguised.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="is a pickle"):
        read_label_file(None, disguised, VentilationOptions(source="labels", file=disguised))
    command = re.search(r'python -c "([^"]+)"', str(error.value))
    assert command
    subprocess.run([sys.executable, "-c", command.group(1)], cwd=tmp_path, check=True)
    exported = tmp_path / "pmv_labels.csv"
    found = Labelled(patients, tmp_path / "in", source="labels", file=exported, use_file_split=True)
    assert found.labels == {1: 1, 2: 0, 3: 0}
    assert found.splits == {1: "train", 2: "validation", 3: "test"}


def test_text_holds_only_what_was_written_before_ventilation(tmp_path: Path) -> None:
    hospital = Hospital()
    for hadm in range(1, 5):
        hospital.admit(hadm)
        hospital.chart(hadm * 10, 36, 216)  # from noon of January 2
    hospital.note(1, "second  note [**Name**] with a longer text", CHARTTIME=hour(30.5), CATEGORY="Physician ")
    hospital.note(1, "first", CHARTTIME=hour(35.5), CHARTDATE="2150-01-02", CATEGORY="Radiology", STORETIME=hour(35.9))
    hospital.note(1, "dated the day before", CHARTDATE="2150-01-01", CATEGORY="ECG")
    hospital.note(1, "LEAK dated the same day", CHARTDATE="2150-01-02", CATEGORY="ECG")
    hospital.note(1, "LEAK at the start", CHARTTIME=hour(36))
    hospital.note(1, "LEAK after", CHARTTIME=hour(40), CHARTDATE="2150-01-01")
    hospital.note(1, "LEAK stored later", CHARTTIME=hour(34), STORETIME=hour(37))
    hospital.note(1, "LEAK an error", CHARTTIME=hour(20), ISERROR="1")
    hospital.note(1, "LEAK a summary", CHARTDATE="2150-01-01", CATEGORY="Discharge summary")
    hospital.note(1, "dated the day  before", CHARTDATE="2150-01-02", CHARTTIME=hour(33))
    hospital.note(1, "dated the day before", CHARTDATE="2150-01-02", CHARTTIME=hour(50))
    hospital.note("", "LEAK of no admission", CHARTTIME=hour(1))
    hospital.note(2, "LEAK after", CHARTTIME=hour(37))
    hospital.note(3, "  ", CHARTTIME=hour(20))
    hospital.note(4, "long before", CHARTTIME=hour(10))  # a copy, filed first and charted later
    hospital.note(4, "long before", CHARTTIME=hour(0))
    found = Labelled(hospital, hospital.write(tmp_path / "in"), text="before")
    assert found.texts == {
        1: "ECG, 1 day before ventilation\ndated the day before\n\n"
        "Physician, 5 hours before ventilation\nsecond note Name with a longer text\n\n"
        "Radiology, less than an hour before ventilation\nfirst",
        4: "Nursing, 36 hours before ventilation\nlong before",
    }
    assert found.removed["with a note written before ventilation"] == 2
    assert found.facts["notes_before_ventilation"] == {
        "used": 4,
        "empty_or_repeated": 3,
        "charted_from_the_start_on": 5,
        "charted_before_but_stored_from_the_start_on": 1,
        "discharge_summaries_dated_before": 1,
        "marked_as_errors": 1,
    }


def test_text_before_without_store_times_and_with_many_admissions(tmp_path: Path) -> None:
    hospital = Hospital()
    for hadm in range(1, 1203):
        hospital.candidates.append((hadm, hadm, hour(0), "train"))
        hospital.note(hadm, f"note of {hadm}", CHARTTIME=hour(1))
    labels = tmp_path / "labels.csv"
    labels.write_text("hadm_id,LABEL,started\n" + "".join(f"{hadm},0,{hour(2)}\n" for hadm in range(1, 1203)))
    source = hospital.write(tmp_path / "in", stored=False)
    found = Labelled(hospital, source, source="labels", file=labels, text="before")
    assert found.texts == {hadm: f"Nursing, 1 hour before ventilation\nnote of {hadm}" for hadm in range(1, 1203)}
    assert found.facts["notes_before_ventilation"]["charted_before_but_stored_from_the_start_on"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "guess"}, "choose from events, durations, labels"),
        ({"definition": "mean"}, "choose from span, sum"),
        ({"text": "after"}, "choose from admission, before"),
        ({"stays": "last"}, "choose from first, all"),
        ({"exclusions": ("flu",)}, "exclusions: flu; choose from head_neck_cancer"),
        ({"days": 0}, "more than 0"),
        ({"days": float("nan")}, "more than 0"),
        ({"grace_hours": -1}, "0 or more"),
        ({"minimum_days": 8}, "use 0 to 7"),
        ({"use_file_split": True}, "go with the source labels alone"),
        ({"file": Path("labels.csv")}, "go with the source labels alone"),
        ({"source": "labels"}, "no file is named"),
        ({"source": "labels", "file": Path("x.csv"), "days": 3, "early_note": True}, "ventilation days, early_note"),
        ({"source": "labels", "file": Path("nowhere.csv")}, "nowhere.csv is not a file"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_label_file(None, Path("nowhere.csv"), VentilationOptions(**options))
