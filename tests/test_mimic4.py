"""From MIMIC-IV's tables to Notes: notes, tasks, versions of the ICD, and messages."""

import gzip
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes import prepared as prepared_folders
from clinstack.notes.mimic4 import prepare as mimic4
from clinstack.notes.mimic4 import texts as mimic4_texts
from clinstack.notes.mimic4.icd import CodeBook, IcdMap, category, read_as_number
from clinstack.notes.mimic4.options import Mimic4Options
from clinstack.notes.mimic4.prepare import prepare_mimic4
from clinstack.notes.splits import SPLITS
from clinstack.tasks import OUTCOMES, Task
from tiny_mimic4 import SUMMARY, TinyMimic4, tiny_hospital

BASE = {
    "admissions": 10,
    "of known age": 10,
    "at least 18 years old": 9,
    "with a discharge summary": 8,
    "with a report, not addenda alone": 7,
    "with a chief complaint, present illness or medical history": 7,
}
TO_9 = (
    "from_code,to_code,flags\nI50.9,428.0,10000\nA419,0389,10000\nA419,99591,10121\nI5022,42822,10111\n"
    "Z9989,NoDx,11000\n"
)
TO_10 = "from_code,to_code\n4280,I50.9\n4280,I50.20\n0389,A419\nV4581,Z951\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hospital().write(tmp_path_factory.mktemp("mimic4") / "in")


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("notes") / "out"
    prepare_mimic4(source, out, Mimic4Options(minimum_count=1))
    return out


def options(**values: Any) -> Mimic4Options:
    return Mimic4Options(**{"minimum_count": 1} | values)


def rows_of(out: Path, task: str) -> dict[int, dict[str, Any]]:
    """Return the examples by the last digits of the admission."""
    return {
        int(row["example_id"]) - 20_000_000: row | {"split": split}
        for split in SPLITS
        for row in pq.read_table(out / f"examples/{task}/{split}.parquet").to_pylist()
    }


def labels_of(out: Path, task: str) -> dict[int, Any]:
    return {number: row["label"] for number, row in sorted(rows_of(out, task).items())}


def attrition_of(out: Path, task: str) -> dict[str, int]:
    content = json.loads((out / f"examples/{task}/attrition.json").read_text())
    return {step["step"]: step["kept"] for step in content["steps"]}


def test_notes_of_both_tables_are_cleaned_and_each_kept_once_for_a_patient(prepared: Path) -> None:
    rows = pq.read_table(prepared / "notes/notes.parquet").to_pylist()
    found = [(row["note_id"], row["patient_id"], row["encounter_id"], row["note_type"]) for row in rows]
    summary, day = "Discharge summary", datetime(2150, 1, 6)
    assert found == [
        ("10000001-DS-1", "10000001", "20000001", summary),
        ("10000001-RR-1", "10000001", "20000001", "Radiology"),
        ("10000002-DS-1", "10000002", "20000002", summary),
        ("10000003-DS-1", "10000003", "20000003", summary),
        ("10000004-DS-1", "10000004", "20000004", summary),
        ("10000005-DS-1", "10000005", "20000005", summary),
        ("10000007-DS-1", "10000007", "20000007", summary),
        ("10000008-DS-1", "10000008", "20000008", summary),
        ("10000009-AD-1", "10000009", "20000009", summary),
        ("10000010-DS-2", "10000010", "20000010", summary),
        ("10000010-DS-3", "10000010", None, summary),
        ("10000010-DS-4", "10000010", "29999999", summary),
        ("10000010-AD-1", "10000010", "20000010", summary),
        ("10000011-RR-1", "10000011", None, "Radiology"),
    ]
    assert rows[0]["text"] == (
        "Name: ___ Unit No: ___\n\nChief Complaint:\nchest pain\n\nHistory of Present Illness:\n"
        'Mr. ___ is a ___ year old man with chest pain, "worse today".\n\nBrief Hospital Course:\nuneventful\n\n'
        "Followup Instructions:\n___"
    )
    assert rows[1]["text"] == "CHEST X-RAY\n\nNo acute process. ___"
    assert (rows[1]["charttime"], rows[-1]["charttime"]) == (day, datetime(2149, 3, 4, 5, 6))
    assert {row["source"] for row in rows} == {"mimic4"}
    counts = json.loads((prepared / "prepare.json").read_text())["counts"]
    assert {name: counts[name] for name in counts if name not in ("patients", "examples")} == {
        "discharge_summaries_without_hadm_id": 1,
        "discharge_summaries_of_unknown_admissions": 1,
        "notes_read": 16,
        "notes_empty": 1,
        "notes_repeated_within_a_patient": 1,
        "notes_kept": 14,
        "texts_shared_by_patients": 1,
    }


def test_labels_of_every_task(prepared: Path) -> None:
    assert labels_of(prepared, "mortality") == {1: 0, 2: 1, 3: 0, 5: 0, 8: 0, 10: 0}
    assert labels_of(prepared, "length_of_stay") == {1: 1, 3: 0, 5: 1, 10: 1}
    assert labels_of(prepared, "prolonged_ventilation") == {1: 1, 2: 1, 3: 0}
    assert labels_of(prepared, "diagnoses") == {1: ["038", "428", "E885", "V45"], 5: ["428"]}
    assert labels_of(prepared, "procedures") == {1: ["006", "033"]}


def test_attrition_says_where_everybody_went(prepared: Path) -> None:
    assert attrition_of(prepared, "mortality") == BASE | {
        "hospital_expire_flag is 0 or 1": 7,
        "text free of: names the patient's death": 6,
        "text free of: says that he or she expired": 6,
        "text free of: pronounced dead": 6,
        "text free of: time of death": 6,
    }
    assert attrition_of(prepared, "length_of_stay") == BASE | {
        "left the hospital alive": 5,
        "with times of admission and discharge": 5,
        "discharged after admission": 4,
    }
    assert attrition_of(prepared, "prolonged_ventilation") == BASE | {
        "with an ICU stay": 4,
        "invasively ventilated in the first ICU stay": 3,
    }
    assert attrition_of(prepared, "diagnoses") == BASE | {
        "with a code in diagnoses_icd": 6,
        "with an ICD-9 code": 3,
        "without an ICD-10 code": 2,
        "with a category that 1 or more training admissions have": 2,
    }


def test_admissions_of_patients_with_a_note(prepared: Path) -> None:
    rows = pq.read_table(prepared / "admissions.parquet").to_pylist()
    assert [row["encounter_id"] for row in rows] == [str(20_000_000 + n) for n in (1, 2, 3, 4, 5, 7, 8, 9, 10)]
    assert rows[1] == {
        "encounter_id": "20000002",
        "patient_id": "10000002",
        "admitted": datetime(2150, 1, 1, 8),
        "discharged": datetime(2150, 1, 12, 8),
        "age": 62.0,
        "sex": "F",
        "ethnicity": "WHITE",
        "insurance": "Medicare",
        "language": "English",
        "admission_type": "EW EMER.",
        "died": 1,
    }
    assert [row["age"] for row in rows[3:5]] == [17.0, 18.0]


def test_a_patient_is_in_one_split_and_notes_alone_are_split_alike(
    source: Path, prepared: Path, tmp_path: Path
) -> None:
    split = {row["patient_id"]: row["split"] for row in pq.read_table(prepared / "splits.parquet").to_pylist()}
    assert len(split) == 10
    for task in OUTCOMES:
        for row in rows_of(prepared, task).values():
            assert split[row["patient_id"]] == row["split"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/note").symlink_to(source / "note")
    facts = prepare_mimic4(tmp_path / "in", tmp_path / "out", options(tasks=[]))
    assert facts["tasks"] == []
    assert "icd" not in facts
    assert not (tmp_path / "out/examples").exists()
    for file in ("splits.parquet", "notes/notes.parquet"):
        assert (tmp_path / "out" / file).read_bytes() == (prepared / file).read_bytes()


def test_full_text_joins_reports_and_addenda_in_the_order_of_time(source: Path, tmp_path: Path) -> None:
    prepare_mimic4(source, tmp_path / "out", options(text="full", tasks=["mortality"]))
    found = rows_of(tmp_path / "out", "mortality")
    assert "___" in found[1]["text"]
    assert found[10]["text"].endswith("Followup Instructions:\n___\n\nAddendum:\nlate words")
    assert found[10]["text"].startswith("Name: ___ Unit No: ___\n\nChief Complaint:\nsyncope")
    assert 9 not in found
    assert "with a chief complaint, present illness or medical history" not in attrition_of(
        tmp_path / "out", "mortality"
    )


def test_an_earlier_addendum_comes_first_and_a_report_before_the_addendum_of_its_day(tmp_path: Path) -> None:
    hospital = TinyMimic4()
    hospital.admit(10000001, None)
    hospital.discharge(10000001, 20000001, "same day", "AD")
    hospital.discharge(10000001, 20000001, "earlier", "AD", charttime="2150-01-02 00:00:00")
    hospital.discharge(10000001, 20000001, "the report")
    hospital.discharge(10000001, 20000001, "of later", charttime="2150-01-09 00:00:00")
    prepare_mimic4(hospital.write(tmp_path / "in"), tmp_path / "out", options(text="full", tasks=["mortality"]))
    text = rows_of(tmp_path / "out", "mortality")[1]["text"]
    assert text == "earlier\n\nthe report\n\nsame day\n\nof later"


def test_examples_hold_the_map_of_their_sections_after_a_charted_death_was_removed(tmp_path: Path) -> None:
    hospital = TinyMimic4()
    hospital.admit(10000001, None, died="1")
    text = "Chief Complaint:\nsob\n\nPhysical Exam:\ngen: cold. Pt died on day 3\n\nFamily History:\nnone\n"
    hospital.discharge(10000001, 20000001, text)
    prepare_mimic4(hospital.write(tmp_path / "in"), tmp_path / "out", options(tasks=["mortality"]))
    row = rows_of(tmp_path / "out", "mortality")[1]
    assert "died" not in row["text"]
    spans = {span["name"]: row["text"][span["start"] : span["end"]] for span in row["sections"]}
    assert spans["PHYSICAL EXAM"].startswith("PHYSICAL EXAM: gen: cold.")
    assert spans["FAMILY HISTORY"] == "FAMILY HISTORY: none"


@pytest.mark.parametrize(
    ("icd", "labels", "steps"),
    [
        ("9", {1: ["038", "428", "E885", "V45"], 5: ["428"]}, {"with an ICD-9 code": 3, "without an ICD-10 code": 2}),
        (
            "10",
            {2: ["A41", "I50"], 7: ["I50"], 10: ["I50", "Z99"]},
            {"with an ICD-10 code": 4, "without an ICD-9 code": 3},
        ),
        (
            "both",
            {
                1: ["9:038", "9:428", "9:E885", "9:V45"],
                2: ["10:A41", "10:I50"],
                3: ["10:I50", "9:428"],
                5: ["9:428"],
                7: ["10:I50"],
                10: ["10:I50", "10:Z99"],
            },
            {},
        ),
        (
            "map-to-9",
            {1: ["038", "428", "E885", "V45"], 2: ["038", "428"], 3: ["428"], 5: ["428"], 7: ["428"], 10: ["428"]},
            {"with a code in ICD-9 or mapped to it": 6},
        ),
        (
            "map-to-10",
            {1: ["A41", "I50", "Z95"], 2: ["A41", "I50"], 3: ["I50"], 5: ["I50"], 7: ["I50"], 10: ["I50", "Z99"]},
            {"with a code in ICD-10 or mapped to it": 6},
        ),
    ],
)
def test_every_choice_of_version(
    source: Path, tmp_path: Path, icd: str, labels: dict[int, list[str]], steps: dict[str, int]
) -> None:
    path = tmp_path / "map.csv"
    path.write_text(TO_9 if icd == "map-to-9" else TO_10)
    mapping = path if icd.startswith("map") else None
    out = tmp_path / "out"
    # With seed 17 all the coded admissions are in training, so that no label is unseen.
    facts = prepare_mimic4(source, out, options(icd=icd, icd_map=mapping, tasks=["diagnoses"], seed=17))
    assert labels_of(out, "diagnoses") == labels
    assert Task.load(out / "examples/diagnoses").classes == tuple(sorted({c for row in labels.values() for c in row}))
    assert facts["icd"] == icd
    found = attrition_of(out, "diagnoses")
    assert {name: found[name] for name in steps} == steps
    assert found["with a code in diagnoses_icd"] == 6
    content = json.loads((out / "examples/diagnoses/attrition.json").read_text())
    assert content["admissions_with_both_versions"] == 1
    if mapping:
        assert (content["codes_unmapped"], content["distinct_codes_unmapped"]) == (1, 1)
        assert content["icd_map"] == {"file": "map.csv", "sha256": sha256_file(path)}


def test_rare_and_unseen_categories_are_left_out_and_counted(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_mimic4(source, out, options(icd="both", tasks=["diagnoses"], minimum_count=2))
    content = json.loads((out / "examples/diagnoses/attrition.json").read_text())
    assert Task.load(out / "examples/diagnoses").classes == ("10:I50", "9:428")
    assert {key: content[key] for key in content if key.startswith(("cat", "lab"))} == {
        "categories": 7,
        "categories_below_minimum": 4,
        "categories_unseen_in_training": 1,
        "labels_kept": 7,
        "labels_left_out": 5,
    }
    with pytest.raises(InputError, match="lower --minimum-count, choose another --icd"):
        prepare_mimic4(source, out, options(tasks=["procedures"], minimum_count=2))


def test_categories_and_codes_that_went_through_a_number() -> None:
    assert [category(code, 9, "diagnoses") for code in ("0389   ", "V4581", "E8859")] == ["038", "V45", "E885"]
    assert [category(code, 10, "diagnoses") for code in ("I509   ", "i50.9")] == ["I50", "I50"]
    assert (category("0331", 9, "procedures"), category("0BH17EZ", 10, "procedures")) == ("033", "0BH")
    assert [read_as_number(code, 9, "procedures") for code in ("66     ", "0066", "9604")] == [True, False, False]
    assert [read_as_number(code, 10, "procedures") for code in ("16070", "0016070", "0BH17EZ")] == [True, False, False]
    assert [read_as_number(code, 10, "diagnoses") for code in ("509", "I509")] == [True, False]


def test_several_targets_of_one_code_all_count(tmp_path: Path) -> None:
    (tmp_path / "map.csv.gz").write_bytes(gzip.compress(b"To_Code,From_Code\n4280,I5030\n42830,I5030\n5849,I5030\n"))
    book = CodeBook("diagnoses", "map-to-9", IcdMap.read(tmp_path / "map.csv.gz"))
    assert book.categories("I50.30 ", 10) == ["428", "584"]
    assert book.categories("I11", 10, rows=3) == []
    assert book.unmapped == {"I11": 3}
    assert CodeBook("diagnoses", "10").categories("4280", 9) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source,target\n1,2\n", "must name the columns from_code,to_code"),
        (b"from_code,to_code\n", "holds no rows"),
        (b"from_code,to_code\nI509,4280\n,4280\n", "line 3: from_code is empty"),
        (b"from_code,to_code,flags\nI509,4280,0\n", "line 2: flags are '0'"),
        (b"from_code,to_code\n\xff\xfe,1\n", "cannot be read"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "map.csv").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        IcdMap.read(tmp_path / "map.csv")
    assert "map.csv" in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "half"}, "admission or full"),
        ({"tasks": ["fever"]}, "choose from"),
        ({"minimum_count": 0}, "1 or more"),
        ({"icd": "11"}, "use 9, 10, map-to-9, map-to-10, both"),
        ({"icd": "map-to-9"}, "--icd map-to-9 needs --icd-map FILE for diagnoses"),
        ({"icd": "map-to-10", "icd_map": Path("m")}, "needs --icd-procedure-map FILE for procedures"),
        ({"icd_map": Path("m")}, "--icd-map is used by"),
        ({"ventilation": "mean"}, "span or sum"),
    ],
)
def test_wrong_choices_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mimic4Options(**values)
    assert Mimic4Options(icd="map-to-9", tasks=["mortality"]).wanted == ("mortality",)


def test_ventilation_by_span_and_by_sum_of_periods(tmp_path: Path) -> None:
    hospital = TinyMimic4()
    for subject in range(10000001, 10000010):
        hospital.admit(subject)
    hospital.ventilate(10000001, (0, 100), (90, 168))  # overlaps count once: 168 hours
    hospital.ventilate(10000002, (0, 160), (10, 20), (150, 167))  # an hour short: the grace is for the span alone
    hospital.ventilate(10000003, (0, 10), (161, 162))  # 6 hours short
    hospital.ventilate(10000004, (0, 10), (161, 161.5))  # a little more
    hospital.ventilate(10000005, (0, 200), status="Rewritten")
    hospital.ventilate(10000006, (0, 200), item=225794)  # non-invasive
    hospital.ventilate(10000007, (20, 10), (30, 30))
    hospital.ventilate(10000008, (0, 300), (10, 20), (50, 60))
    hospital.ventilate(10000009, stay=1)
    hospital.ventilate(10000009, (30, 290), stay=2)  # only in the second stay
    source = hospital.write(tmp_path / "in")
    for rule, expected in {
        "span": {1: 1, 2: 1, 3: 1, 4: 0, 8: 1},
        "sum": {1: 1, 2: 0, 3: 0, 4: 0, 8: 1},
    }.items():
        out = tmp_path / rule
        prepare_mimic4(source, out, options(ventilation=rule, tasks=["prolonged_ventilation"]))
        assert labels_of(out, "prolonged_ventilation") == expected
        content = json.loads((out / "examples/prolonged_ventilation/attrition.json").read_text())
        assert (content["rule"], content["positive_by_span"], content["positive_by_sum"]) == (rule, 4, 2)
        assert content["rows_that_are_no_period"] == 3


def test_without_icu_ventilation_is_left_out_and_named_unless_it_was_asked_for(tmp_path: Path) -> None:
    hospital = tiny_hospital()
    source = hospital.write(tmp_path / "in")
    (source / "icu/procedureevents.csv.gz").unlink()
    facts = prepare_mimic4(source, tmp_path / "out", options())
    assert facts["left_out"] == {"prolonged_ventilation": "icu/procedureevents not found"}
    assert set(facts["counts"]["examples"]) == set(OUTCOMES) - {"prolonged_ventilation"}
    with pytest.raises(InputError, match=r"no procedureevents\.csv.*leave the task out with --tasks"):
        prepare_mimic4(source, tmp_path / "out", options(tasks=["prolonged_ventilation"]))


def test_notes_elsewhere_flat_folders_parquet_and_a_database_give_the_same(
    source: Path, prepared: Path, tmp_path: Path
) -> None:
    hospital = tiny_hospital()
    hospital.write(tmp_path / "iv", tmp_path / "iv-note")
    flat = tmp_path / "flat"
    flat.mkdir()
    connection = duckdb.connect(str(tmp_path / "mimic4.duckdb"))
    for path in source.glob("*/*.csv.gz"):
        name = path.name.removesuffix(".csv.gz")
        text = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(("icd_code", "text"), pyarrow.string()), strings_can_be_null=True
        )
        rows = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=text
        )
        pq.write_table(rows, flat / f"{name}.parquet")
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS mimiciv_{path.parent.name}")
        connection.execute(f"CREATE TABLE mimiciv_{path.parent.name}.{name} AS FROM rows")
    connection.close()
    for where, notes in ((tmp_path / "iv", tmp_path / "iv-note"), (flat, None), (tmp_path / "mimic4.duckdb", None)):
        prepare_mimic4(where, tmp_path / "out", options(), notes)
        for file in ("splits.parquet", "admissions.parquet", "notes/notes.parquet", "examples/diagnoses/train.parquet"):
            assert pq.read_table(tmp_path / "out" / file).equals(pq.read_table(prepared / file)), (where.name, file)
    with pytest.raises(InputError, match=r"no discharge\.csv.*--notes-source"):
        prepare_mimic4(tmp_path / "iv", tmp_path / "out", options())


def test_output_is_the_same_again_and_in_small_batches_by_several_processes(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, int]] = []
    facts = prepare_mimic4(source, tmp_path / "again", options(), progress=lambda *call: calls.append(call))
    files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    again = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert files == again
    for file in files:
        assert (prepared / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert facts == json.loads((prepared / "prepare.json").read_text())
    assert facts["tables"]["note/discharge.csv.gz"] == sha256_file(source / "note/discharge.csv.gz")
    last = {words: (done, total) for words, done, total in calls}
    assert last["Writing notes"] == (14, 14)
    assert last["Writing mortality"] == (7, 7)
    assert all(done == total for done, total in last.values())
    monkeypatch.setattr(mimic4_texts, "_BATCH", 2)
    monkeypatch.setattr(mimic4_texts, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(prepared_folders, "_ROW_GROUP", 3)
    prepare_mimic4(source, tmp_path / "batches", options(tasks=["mortality"]))
    for file in ("notes/notes.parquet", "examples/mortality/train.parquet"):
        assert pq.read_table(tmp_path / "batches" / file).equals(pq.read_table(prepared / file))


def test_row_counts_name_the_release_give_or_take_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mimic4.PUBLISHED_ROWS, "discharge", {"2.2": 13, "3.1": 14})
    facts = prepare_mimic4(source, tmp_path / "out", options(tasks=[]))
    assert facts["row_counts"]["discharge"] == {"rows": 12, "as_in_release": ["2.2"]}
    assert facts["row_counts"]["radiology"] == {"rows": 4, "as_in_release": []}


def change(source: Path, table: str, old: str, new: str) -> None:
    path = source / f"{table}.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("hosp/admissions", "race", "ethnicity", "admissions.csv.gz has no column race"),
        (
            "hosp/admissions",
            "10000002,20000002",
            "10000002,20000001",
            "row 2: hadm_id 20000001 stands in an earlier row",
        ),
        ("hosp/admissions", "10000002,20000002", "10000002,", "admissions.csv.gz, row 2: column hadm_id is empty"),
        (
            "hosp/admissions",
            "2150-01-12 08",
            "a week later 08",
            "admissions.csv.gz, row 2: column dischtime is not a date",
        ),
        ("hosp/patients", "\n10000002,F,60", "\n10000001,F,60", "patients.csv.gz, row 2: subject_id 10000001 stands"),
        ("hosp/diagnoses_icd", "I509   ,10", "I509   ,11", "diagnoses_icd.csv.gz, row 8: icd_version is 11"),
        ("hosp/diagnoses_icd", "I509   ,10", "I509   ,", "diagnoses_icd.csv.gz, row 8: icd_version is empty"),
        ("hosp/diagnoses_icd", "0389   ,9", "38,9", "diagnoses_icd.csv.gz, row 2: the ICD-9 code is too short"),
        ("hosp/diagnoses_icd", "0389   ,9", "389.0,9", "diagnoses_icd.csv.gz, row 2: column icd_code holds a code"),
        ("hosp/procedures_icd", "0066   ,9", "66,9", "procedures_icd.csv.gz, row 2: the ICD-9 code is too short"),
        ("note/discharge", "10000003-DS-1,10000003", "10000003-DS-1,", "row 3: column subject_id is empty"),
        ("note/discharge", "10000003-DS-1", "10000001-DS-1", "row 3: note_id 10000001-DS-1 stands in an earlier row"),
        ("note/radiology", "10000001-RR-1", "10000001-DS-1", "radiology.csv.gz, row 1: note_id 10000001-DS-1 stands"),
        ("note/discharge", "10000003,20000003", "10000003,20000002", "names hadm_id 20000002, an admission of another"),
        ("note/radiology", '"CHEST', 'secret words "CHEST', "radiology.csv.gz"),
    ],
)
def test_wrong_tables_are_named_and_nothing_is_written(
    tmp_path: Path, table: str, old: str, new: str, message: str
) -> None:
    source = tiny_hospital().write(tmp_path / "in")
    change(source, table, old, new)
    with pytest.raises(InputError, match=message) as error:
        prepare_mimic4(source, tmp_path / "out", options())
    assert "secret words" not in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_codes_without_any_leading_zero_were_read_as_numbers(tmp_path: Path) -> None:
    hospital = tiny_hospital()
    hospital.rows["hosp/diagnoses_icd"] = [(10000001, 20000001, n, "4280", 9) for n in range(1000)]
    source = hospital.write(tmp_path / "in")
    with pytest.raises(InputError, match=r"none of 1,000 ICD-9 codes begins with 0"):
        prepare_mimic4(source, tmp_path / "out", options())
    hospital.code(10000001, "0389", 9)
    prepare_mimic4(hospital.write(tmp_path / "in"), tmp_path / "out", options(tasks=["diagnoses"]))


def test_a_missing_table_is_named_with_the_remedy(tmp_path: Path) -> None:
    source = tiny_hospital().write(tmp_path / "in")
    (source / "hosp/procedures_icd.csv.gz").unlink()
    with pytest.raises(InputError, match=r"in/hosp has no procedures_icd\.csv.*leave the task out with --tasks"):
        prepare_mimic4(source, tmp_path / "out", options())
    prepare_mimic4(source, tmp_path / "out", options(tasks=["diagnoses"]))
    (source / "hosp/patients.csv.gz").unlink()
    with pytest.raises(InputError, match=r"has no patients\.csv.*--tasks none"):
        prepare_mimic4(source, tmp_path / "out", options(tasks=["mortality"]))


def test_a_failure_in_the_middle_leaves_the_earlier_output(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_mimic4(source, out, options(tasks=["mortality"]))
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(description: str, done: int, total: int) -> None:
        if description == "Writing length_of_stay":
            raise RuntimeError(description)

    with pytest.raises(RuntimeError, match="length_of_stay"):
        prepare_mimic4(source, out, options(), progress=fail)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_warns_of_shared_admissions_and_refuses_in_one_line(source: Path, tmp_path: Path) -> None:
    from clinstack.cli import app

    run = CliRunner()
    arguments = ["prepare", "mimic4", "--source", str(source), "--out", str(tmp_path / "out"), "--minimum-count", "1"]
    found = run.invoke(app, arguments)
    assert found.exit_code == 0, found.output
    words = " ".join(found.output.split())
    assert "MIMIC-III and MIMIC-IV hold the same admissions of 2008 to 2012" in words
    assert "clinstack prepare check DATA --against OTHER" in words
    assert "Notes read: 16; kept: 14; empty: 1; repeated within a patient: 1." in words
    assert (tmp_path / "out/prepare.json").is_file()
    found = run.invoke(app, [*arguments, "--tasks", "none"])
    assert found.exit_code == 0, found.output
    assert not (tmp_path / "out/examples").exists()
    command = [sys.executable, "-m", "clinstack", *arguments, "--icd", "map-to-9"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: --icd map-to-9 needs --icd-map FILE")
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_notes(tmp_path: Path) -> None:
    """200,000 notes, 900 MB of text, in a process of its own."""
    filler = "The patient was seen and examined, and the plan was discussed with the family and the team. " * 45
    hospital = TinyMimic4()
    for subject in range(1, 20_001):
        hospital.rows["hosp/patients"].append((subject, "F", 60, 2148, "", ""))
        hospital.rows["hosp/admissions"].append(
            (subject, subject, "2150-01-01 08:00:00", "2150-01-06 08:00:00", *[""] * 11, "0")
        )
    hospital.code(1, "4280", 9)
    source = hospital.write(tmp_path / "in")
    with gzip.open(source / "note/discharge.csv.gz", "at", compresslevel=1) as file:
        for subject in range(1, 20_001):
            text = SUMMARY.format(complaint=f"complaint {subject}", course=filler * 2).replace('"', '""')
            file.write(f'{subject}-DS-1,{subject},{subject},DS,1,2150-01-06 00:00:00,,"{text}"\n')
    with gzip.open(source / "note/radiology.csv.gz", "at", compresslevel=1) as file:
        for number in range(180_000):
            subject = 1 + number % 20_000  # every patient's reports stand far from each other
            file.write(f'{subject}-RR-{number},{subject},,RR,{number},2150-01-03 00:00:00,,"scan {number} {filler}"\n')
    program = (
        "import sys, resource; from pathlib import Path; from clinstack.notes.mimic4.prepare import prepare_mimic4; "
        "from clinstack.notes.mimic4.options import Mimic4Options; "
        "prepare_mimic4(Path(sys.argv[1]), Path(sys.argv[2]), Mimic4Options(text='full', tasks=['mortality'])); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert pq.read_metadata(tmp_path / "out/notes/notes.parquet").num_rows == 200_000
    kilobytes = int(run.stdout.split()[-1])
    assert kilobytes < 1024 * 1024, kilobytes
