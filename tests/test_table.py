"""`prepare table`: a hospital's own tables, from every kind of source, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.notes.cleaning import clean_text
from clinstack.notes.read import read_examples, read_notes
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.notes.table.prepare import check_table, prepare_table
from clinstack.notes.table.spec import EXAMPLE, load_spec
from clinstack.tasks import Task

Rows = list[dict[str, Any]]
CANARY = "zebra quartz lantern"
PATIENTS = 40


def hospital() -> dict[str, Rows]:
    """Invent tables of the shape that the printed example names."""
    tables: dict[str, Rows] = {name: [] for name in ("notes", "outcomes", "diagnoses", "visits", "splits")}
    for index in range(PATIENTS):
        patient = f"{index:03d}"
        tables["splits"].append({"patient": patient, "part": ("train", "train", "val", "test")[index % 4]})
        for number in range(1 + index % 2):
            visit = f"{index:03d}{number}"
            day = f"2020-03-{1 + number:02d}"
            common = {"patient": patient, "visit": visit, "status": "final"}
            summary = (
                f"Chief Complaint: chest pain, case {visit}\n\nHistory of Present Illness:\n{CANARY} since [**Monday**]"
                f"\n\n\n\nHospital Course:\nuneventful"
            )
            tables["notes"] += [
                {"id": f"{visit}b", **common, "written_at": f"{day} 18:00", "kind": "Discharge", "body": summary},
                {
                    "id": f"{visit}a",
                    **common,
                    "written_at": f"{day} 08:00",
                    "kind": "Nursing",
                    "body": f"Came in, {visit}.",
                },
                {"id": f"{visit}d", **common, "status": "draft", "written_at": day, "kind": "Nursing", "body": "Draft"},
            ]
            tables["outcomes"].append(
                {
                    "visit": visit,
                    "readmitted": str(index % 3 == 0).lower(),
                    "triage": str(1 + index % 3),
                    "triaged_at": f"{day} 12:00:00",
                }
            )
            codes = ["E11.9", "I10"] if index % 2 else ["0331", "I10"]
            tables["diagnoses"] += [{"visit": visit, "patient": patient, "icd10": code} for code in codes]
            tables["visits"].append(
                {
                    "visit": visit,
                    "patient": patient,
                    "admitted_at": f"{day} 07:00",
                    "discharged_at": f"2020-03-{5 + number:02d} 19:00",
                    "age": "64",
                    "sex": "F" if index % 2 else "M",
                }
            )
    return tables


def write_csv(folder: Path, tables: dict[str, Rows]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def write_parquet(folder: Path, tables: dict[str, Rows]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def write_duckdb(folder: Path, tables: dict[str, Rows]) -> Path:
    folder.mkdir(parents=True)
    with duckdb.connect(str(folder / "hospital.duckdb")) as connection:
        for name, rows in tables.items():
            connection.register("given", pa.Table.from_pylist(rows))
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
    return folder / "hospital.duckdb"


def write_sqlite(folder: Path, tables: dict[str, Rows]) -> Path:
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / "hospital.db")
    for name, rows in tables.items():
        columns = list(rows[0])
        connection.execute(f"CREATE TABLE {name} ({', '.join(f'{column} TEXT' for column in columns)})")
        values = [tuple(row[column] for column in columns) for row in rows]
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", values)
    connection.commit()
    connection.close()
    return folder / "hospital.db"


def write_spec(path: Path, source: Path | str, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    values = yaml.safe_load(EXAMPLE)
    values |= {"source": str(source), "synthetic": True}
    if change:
        change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tables() -> dict[str, Rows]:
    return hospital()


@pytest.fixture(scope="session")
def prepared(tables: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The printed example on csv files; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("table")
    prepare_table(write_spec(folder / "spec.yaml", write_csv(folder / "csv", tables)), folder / "data")
    return folder / "data"


def rows_of(folder: Path) -> dict[str, Any]:
    """Everything that is written, to compare two sources by."""
    files = sorted(path for path in folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): pq.read_table(path).to_pylist() for path in files}


def test_the_printed_example_prepares_tables_of_its_shape(prepared: Path) -> None:
    notes = read_notes(prepared, None)
    assert sum(len(split.texts) for split in notes.values()) == 60 * 2  # drafts are left out by `where`
    split = assign_splits([f"{index:03d}" for index in range(PATIENTS)], 0)
    assert all(split[patient] == name for name in SPLITS for patient in notes[name].patient_ids)
    table = pq.read_table(prepared / "notes" / "notes.parquet").to_pylist()
    assert [row["note_id"] for row in table[:2]] == ["0000a", "0000b"]  # by patient and time
    assert table[0]["note_type"] == "Nursing"
    assert table[1]["text"].endswith(f"{CANARY} since Monday\n\nHospital Course:\nuneventful")
    task, examples = read_examples(prepared / "examples" / "readmission")
    assert task.classes == ("not readmitted", "readmitted within 30 days")
    whole = [pair for name in SPLITS for pair in zip(examples[name].example_ids, examples[name].labels, strict=True)]
    assert len(whole) == 60
    assert all(label == (int(visit[:3]) % 3 == 0) for visit, label in whole)
    text = examples["train"].texts[0]
    assert CANARY in text
    assert "uneventful" not in text


def test_only_notes_before_the_time_and_of_the_types_count(prepared: Path) -> None:
    _, examples = read_examples(prepared / "examples" / "triage")
    for name in SPLITS:
        for visit, text in zip(examples[name].example_ids, examples[name].texts, strict=True):
            assert text == f"Came in, {visit}."
    steps = json.loads((prepared / "examples" / "triage" / "attrition.json").read_text())["steps"]
    assert [step["step"] for step in steps] == [
        "labelled encounters",
        "with a note",
        "with a note of the types asked for",
        "with a note before triaged_at",
        "with a note that no other of the patient repeats",
    ]


def test_notes_after_the_time_do_not_count_whatever_their_type(prepared: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.yaml", prepared.parent / "csv", only("triage", note_types=None))
    prepare_table(spec, tmp_path / "data")
    _, examples = read_examples(tmp_path / "data" / "examples" / "triage")
    assert all(CANARY not in text for name in SPLITS for text in examples[name].texts)  # written at 18:00


def test_codes_keep_their_leading_zeros(prepared: Path) -> None:
    task = Task.load(prepared / "examples" / "diagnoses")
    assert task.classes == ("0331", "E11.9", "I10")
    labels = pq.read_table(prepared / "examples" / "diagnoses" / "train.parquet")["label"].to_pylist()
    assert {tuple(label) for label in labels} == {("0331", "I10"), ("E11.9", "I10")}


def test_admissions_and_facts(prepared: Path) -> None:
    admissions = pq.read_table(prepared / "admissions.parquet")
    assert admissions.num_rows == 60
    assert admissions["age"].to_pylist()[0] == 64
    facts = json.loads((prepared / "prepare.json").read_text())
    assert facts["source"] == "table"
    assert set(facts["tables"]) == {"notes.csv", "outcomes.csv", "diagnoses.csv", "visits.csv"}
    assert (prepared / "DATASHEET.md").is_file()


@pytest.mark.parametrize("write", [write_parquet, write_duckdb, write_sqlite])
def test_every_kind_of_source_gives_the_same(
    write: Callable[[Path, dict[str, Rows]], Path], tables: dict[str, Rows], prepared: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", write(tmp_path / "source", tables))
    prepare_table(spec, tmp_path / "data")
    assert rows_of(tmp_path / "data") == rows_of(prepared)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL server of our own, on a unix socket, as a user who is not root."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    place = binaries[-1] if binaries else Path(found).parent if found else None
    if place is None:
        pytest.skip("no PostgreSQL server is installed (initdb not found)")
    # /tmp, since the path of a socket is short and the server's user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="clinstack-postgres-", dir="/tmp"))
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        if subprocess.run(["id", "postgres"], capture_output=True).returncode:
            shutil.rmtree(folder)
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
    data = folder / "data"
    start = [str(place / "initdb"), "-D", str(data), "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync"]
    control = [*user, str(place / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    try:
        subprocess.run([*user, *start], check=True, capture_output=True, cwd="/tmp")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/tmp", timeout=60)
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, cwd="/tmp")
        shutil.rmtree(folder, ignore_errors=True)


def test_postgres_gives_the_same(postgres: str, tables: dict[str, Rows], prepared: Path, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA hospital")
        connection.execute("ALTER DATABASE postgres SET search_path TO hospital")
        for name, rows in tables.items():
            columns = list(rows[0])
            typed = {"written_at": "timestamp", "admitted_at": "timestamp", "age": "integer"}
            listed = ", ".join(f"{column} {typed.get(column, 'text')}" for column in columns)
            connection.execute(f"CREATE TABLE hospital.{name} ({listed})")
            with connection.cursor() as cursor:
                values = [tuple(row[column] for column in columns) for row in rows]
                cursor.executemany(f"INSERT INTO hospital.{name} VALUES ({', '.join(['%s'] * len(columns))})", values)
    spec = write_spec(tmp_path / "spec.yaml", postgres)
    facts = prepare_table(spec, tmp_path / "data")
    assert rows_of(tmp_path / "data") == rows_of(prepared)
    assert facts["database"].startswith("postgresql://tester@")


def test_postgres_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    spec = write_spec(tmp_path / "spec.yaml", f"postgresql://tester@/postgres?host={tmp_path}")
    with pytest.raises(InputError, match="cannot be reached") as caught:
        prepare_table(spec, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.pop(key)


def only(name: str, /, **changes: Any) -> Callable[[dict[str, Any]], object]:
    """Keep one label of the example, changed; a change to None removes the key."""

    def change(values: dict[str, Any]) -> None:
        label = next(label for label in values["labels"] if label["name"] == name)
        label |= changes
        values["labels"] = [{key: value for key, value in label.items() if value is not None}]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["notes"].update(pateint_id="x"), "unknown key notes.pateint_id. Did you mean patient_id"),
        (lambda v: v["notes"].pop("text"), "the key notes.text is missing"),
        (lambda v: v["notes"].update(text="bodi"), "notes.text: .*notes.csv has no column bodi. Did you mean body"),
        (lambda v: v["notes"].update(table="note"), "has no note.*notes.table"),
        (lambda v: v.update(source="postgresql://me:hunter2@host/db"), "a password does not belong in a file"),
        (lambda v: v.update(source="postgresql://me@host/db?password=hunter2"), "a password does not belong in a file"),
        (only("readmission", encounter_id=None), "name the column of note_id, encounter_id or patient_id"),
        (only("readmission", classes=["no", "yes", "perhaps"]), "a binary task has two classes"),
        (only("readmission", classes=[False, True]), "write it in quotes"),
        (only("readmission", separator=";"), "separator belong to kind: multilabel"),
        (only("readmission", name="Re admission"), "use small letters"),
        (only("diagnoses", classes=["I10"]), "remove it or classes"),
        (lambda v: v["labels"].append(v["labels"][0]), "the name readmission stands twice"),
        (lambda v: v["notes"].pop("charttime"), "before needs notes.charttime"),
        (lambda v: v["notes"].pop("encounter_id"), "its key encounter_id needs notes.encounter_id"),
        (lambda v: v.update(splits={"table": "splits"}), "name table, patient_id and split"),
        (lambda v: v.update(labels="x"), "labels"),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(
    change: Callable[[dict[str, Any]], object], words: str, prepared: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", prepared.parent / "csv", change)
    with pytest.raises(InputError, match=words) as caught:
        prepare_table(spec, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "data").exists()


Change = Callable[[dict[str, Rows]], object]


def put(table: str, row: int, **values: str) -> Change:
    return lambda tables: tables[table][row - 1].update(values)


def again(table: str, row: int, **values: str) -> Change:
    return lambda tables: tables[table].append({**tables[table][row - 1], **values})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("outcomes", 7, readmitted=""), r"outcomes.csv, row 7: column readmitted \(label\) is empty"),
        (put("outcomes", 7, readmitted="maybe"), r"outcomes.csv, row 7: column readmitted is 'maybe'.*none of"),
        (put("outcomes", 7, readmitted=CANARY * 3), r"outcomes.csv, row 7: column readmitted is 60 characters long"),
        (put("outcomes", 7, triage="4"), r"outcomes.csv, row 7: column triage is '4', which is none of 1, 2, 3"),
        (put("outcomes", 7, visit=""), r"outcomes.csv, row 7: column visit \(encounter_id\) is empty"),
        (put("outcomes", 7, triaged_at="noon"), r"outcomes.csv, row 7: column triaged_at is not a date and time"),
        (put("outcomes", 7, triaged_at=""), r"outcomes.csv, row 7: column triaged_at \(before\) is empty"),
        (again("outcomes", 1, readmitted="0"), r"row 61: encounter_id 0000 has another label in row 1"),
        (put("diagnoses", 9, patient="999"), r"diagnoses.csv, row 9: patient_id is 999, but the notes.* have 003"),
        (put("diagnoses", 9, icd10=""), r"diagnoses.csv, row 9: column icd10 \(label\) is empty"),
        (put("notes", 5, written_at="yesterday"), r"notes.csv, row 5: column written_at is not a date and time"),
        (put("notes", 5, patient=" "), r"notes.csv, row 5: column patient \(patient_id\) is empty"),
        (put("notes", 5, id="0000a"), r"notes.csv, row 5: note_id 0000a stands in row 2 too"),
        (put("notes", 5, visit="0000"), r"notes.csv, row 5: encounter_id 0000 has notes of two patients"),
        (put("visits", 3, age="old"), r"visits.csv, row 3: column age is not a number"),
        (put("visits", 3, visit="0000"), r"visits.csv, row 3: encounter_id 0000 stands in row 1 too"),
        (put("visits", 3, discharged_at="2019-01-01"), r"visits.csv, row 3: discharged_at is before admitted_at"),
        (put("visits", 3, patient="000"), r"visits.csv, row 3: encounter_id 0011 has notes of another patient"),
    ],
)
def test_what_is_wrong_with_the_tables_is_named(change: Change, words: str, tmp_path: Path) -> None:
    tables = hospital()
    change(tables)
    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables))
    with pytest.raises(InputError, match=words) as caught:
        prepare_table(spec, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
    assert not list(tmp_path.glob("*data*"))


@pytest.mark.parametrize("column", [["66.0", "331.0"], ["66.0", "V45"]])
def test_codes_read_as_numbers_are_refused(column: list[str], tmp_path: Path) -> None:
    tables = hospital()
    for index, row in enumerate(tables["diagnoses"]):
        row["icd10"] = column[index % 2]
    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables))
    with pytest.raises(InputError, match=r"diagnoses.csv, row 1: column icd10 holds a code such as 66.0.*as text"):
        prepare_table(spec, tmp_path / "data")
    write_spec(spec, tmp_path / "csv", only("diagnoses", classes=column, minimum_count=None))
    prepare_table(spec, tmp_path / "data")  # named as classes they are right
    assert Task.load(tmp_path / "data" / "examples" / "diagnoses").classes == tuple(column)


def test_codes_with_a_dot_are_codes(tmp_path: Path) -> None:
    tables = hospital()
    for index, row in enumerate(tables["diagnoses"]):
        row["icd10"] = ("401.9", "250.0")[index % 2]
    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables), only("diagnoses"))
    prepare_table(spec, tmp_path / "data")
    assert Task.load(tmp_path / "data" / "examples" / "diagnoses").classes == ("250.0", "401.9")


@pytest.mark.parametrize("kind", ["parquet", "sqlite", "duckdb"])
def test_a_column_of_numbers_is_no_column_of_codes(kind: str, tmp_path: Path) -> None:
    tables = hospital()
    for row in tables["diagnoses"]:
        row["icd10"] = 331
    write = {"parquet": write_parquet, "sqlite": write_sqlite, "duckdb": write_duckdb}[kind]
    source = write(tmp_path / "source", tables)
    if kind == "sqlite":
        with sqlite3.connect(source) as connection:
            connection.execute(
                "CREATE TABLE numbers AS SELECT visit, patient, CAST(icd10 AS INTEGER) AS icd10 FROM diagnoses"
            )
            connection.execute("DROP TABLE diagnoses")
            connection.execute("ALTER TABLE numbers RENAME TO diagnoses")
        connection.close()
    spec = write_spec(tmp_path / "spec.yaml", source)
    with pytest.raises(InputError, match="column icd10 is stored as numbers"):
        prepare_table(spec, tmp_path / "data")


def test_several_codes_in_a_cell(tmp_path: Path) -> None:
    tables = hospital()
    tables["diagnoses"] = [
        {"visit": row["visit"], "patient": row["patient"], "icd10": "I10; E11.9 ;I10"} for row in tables["visits"]
    ]
    csv_folder = write_csv(tmp_path / "csv", tables)
    spec = write_spec(tmp_path / "spec.yaml", csv_folder, only("diagnoses", separator=";"))
    prepare_table(spec, tmp_path / "data")
    labels = pq.read_table(tmp_path / "data" / "examples" / "diagnoses" / "test.parquet")["label"].to_pylist()
    assert set(map(tuple, labels)) == {("E11.9", "I10")}
    attrition = json.loads((tmp_path / "data" / "examples" / "diagnoses" / "attrition.json").read_text())
    assert attrition["codes_repeated"] == 60
    write_spec(spec, csv_folder, only("diagnoses", separator=";", classes=["I10"], minimum_count=None))
    with pytest.raises(InputError, match=r"diagnoses.csv, row 1: column icd10 is 'E11.9', which is none of I10"):
        prepare_table(spec, tmp_path / "data")
    write_spec(spec, csv_folder, only("diagnoses", separator=";", classes=["I10"], minimum_count=None, unlisted="drop"))
    prepare_table(spec, tmp_path / "data")
    attrition = json.loads((tmp_path / "data" / "examples" / "diagnoses" / "attrition.json").read_text())
    assert attrition["labels_unlisted"] == 60
    tables["diagnoses"][4]["icd10"] = " ; "
    write_csv(csv_folder, tables)
    with pytest.raises(InputError, match=r"diagnoses.csv, row 5: column icd10 \(label\) holds no code"):
        prepare_table(spec, tmp_path / "data")


@pytest.mark.parametrize(
    ("classes", "values", "labels"),
    [
        (None, ("0", "1"), (0, 1)),
        (None, ("False", "True"), (0, 1)),
        (None, ("0.0", "1.0"), (0, 1)),
        (["alive", "dead"], ("alive", "dead"), (0, 1)),
        (["alive", "dead"], ("0", "1"), (0, 1)),
        (["no", "yes"], ("0", "1"), (0, 1)),
        (["1", "0"], ("0", "1"), (1, 0)),
        ({"N": "alive", "E": "dead"}, ("E", "N"), (1, 0)),
    ],
)
def test_ways_to_write_a_binary_label(
    classes: Any, values: tuple[str, str], labels: tuple[int, int], tmp_path: Path
) -> None:
    tables = hospital()
    for index, row in enumerate(tables["outcomes"]):
        row["readmitted"] = values[index % 2]
    expected = {row["visit"]: labels[index % 2] for index, row in enumerate(tables["outcomes"])}
    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables), only("readmission", classes=classes))
    prepare_table(spec, tmp_path / "data")
    _, examples = read_examples(tmp_path / "data" / "examples" / "readmission")
    found = {
        key: label
        for name in SPLITS
        for key, label in zip(examples[name].example_ids, examples[name].labels, strict=True)
    }
    assert found == expected


def test_keys_of_notes_and_of_patients(tables: dict[str, Rows], tmp_path: Path) -> None:
    source = write_csv(tmp_path / "csv", tables)
    write_csv(
        source,
        {
            "by_note": [
                {"id": row["id"], "visit": row["visit"], "label": row["kind"][:1]}
                for row in tables["notes"]
                if row["status"] == "final"
            ],
            "by_patient": [{"patient": f"{index:03d}", "label": index % 2} for index in range(PATIENTS)],
        },
    )

    def change(values: dict[str, Any]) -> None:
        values["labels"] = [
            {"name": "kind", "kind": "binary", "table": "by_note.csv", "note_id": "id", "encounter_id": "VISIT",
             "label": "label", "classes": {"N": "nursing", "D": "discharge"}},
            {"name": "patient", "kind": "binary", "table": "by_patient", "patient_id": "patient", "label": "label"},
        ]  # fmt: skip

    prepare_table(write_spec(tmp_path / "spec.yaml", source, change), tmp_path / "data")
    notes = pq.read_table(tmp_path / "data" / "examples" / "kind" / "train.parquet").to_pylist()
    assert {row["example_id"][-1]: row["label"] for row in notes} == {"a": 0, "b": 1}
    assert all(row["example_id"].startswith(row["encounter_id"]) for row in notes)
    patients = [
        row
        for split in SPLITS
        for row in pq.read_table(tmp_path / "data" / "examples" / "patient" / f"{split}.parquet").to_pylist()
    ]
    row = next(row for row in patients if row["patient_id"] == "001")
    assert row["encounter_id"] is None
    places = [row["text"].index(words) for words in ("Came in, 0010", "case 0010", "Came in, 0011", "case 0011")]
    assert places == sorted(places)  # all notes of the patient in the order of time


def test_each_loss_is_a_step(tmp_path: Path) -> None:
    tables = hospital()
    for row in tables["notes"]:
        if row["visit"] == "0000":
            row["body"] = "  \n "  # the only visit of its patient
        if row["visit"] == "0020":
            row["body"] = "The same words twice."
    tables["notes"] = [row for row in tables["notes"] if row["visit"] != "0040"]
    tables["outcomes"] = [row for row in tables["outcomes"] if row["visit"] != "0060"]
    tables["splits"] = [row for row in tables["splits"] if row["patient"] not in ("008", "010")]

    def change(values: dict[str, Any]) -> None:
        only("readmission")(values)
        values["splits"] = {"table": "splits", "patient_id": "patient", "split": "part"}

    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables), change)
    facts = prepare_table(spec, tmp_path / "data")
    assert facts["counts"]["patients_in_no_split"] == 2
    assert facts["counts"]["notes_empty"] == 2
    assert facts["counts"]["notes_repeated_within_a_patient"] == 1
    assert facts["seed"] is None
    attrition = json.loads((tmp_path / "data" / "examples" / "readmission" / "attrition.json").read_text())
    assert {step["step"]: step["removed"] for step in attrition["steps"]} == {
        "labelled encounters": 0,
        "with a note": 2,
        "with a note that no other of the patient repeats": 0,
        "of a patient in a split": 2,
        "with a chief complaint, present illness or medical history": 1,
    }
    assert attrition["encounters_with_notes_and_no_label"] == 1
    notes = read_notes(tmp_path / "data", None)
    assert {int(patient) % 4 for patient in notes["validation"].patient_ids} == {2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("splits", 3, part="tset"), r"splits.csv, row 3: column part is none of train, validation, test"),
        (again("splits", 3, part="test"), r"splits.csv, row 41: the patient 002 is also in validation"),
        (put("splits", 3, patient=""), r"splits.csv, row 3: column patient \(patient_id\) is empty"),
    ],
)
def test_what_is_wrong_with_given_splits_is_named(change: Change, words: str, tmp_path: Path) -> None:
    tables = hospital()
    change(tables)
    given = {"table": "splits", "patient_id": "patient", "split": "part"}
    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables), lambda v: v.update(splits=given))
    with pytest.raises(InputError, match=words):
        prepare_table(spec, tmp_path / "data")


def test_labels_that_fit_no_note_are_an_error(tmp_path: Path) -> None:
    tables = hospital()
    for row in tables["outcomes"]:
        row["visit"] = f"V{row['visit']}"
    spec = write_spec(tmp_path / "spec.yaml", write_csv(tmp_path / "csv", tables), only("readmission"))
    with pytest.raises(InputError, match=r"no example is left; compare encounter_id.*with a note: 0"):
        prepare_table(spec, tmp_path / "data")


def test_notes_alone_with_the_fewest_columns(tables: dict[str, Rows], tmp_path: Path) -> None:
    source = write_csv(tmp_path / "csv", tables)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "source: csv\nnotes: {table: notes, note_id: ID, patient_id: patient, text: body}\n", encoding="utf-8"
    )
    facts = prepare_table(spec, tmp_path / "data")
    assert facts["counts"]["examples"] == {}
    table = pq.read_table(tmp_path / "data" / "notes" / "notes.parquet")
    assert set(table["note_type"].to_pylist()) == {"Note"}
    assert table["charttime"].null_count == table.num_rows
    assert source.is_dir()


ODD = st.text(
    st.characters(exclude_categories=("Cs",)) | st.sampled_from("\r\n\v\f\t \0\x85\u2028\u00a0[*]"), max_size=60
)


@settings(max_examples=5, deadline=None)
@given(st.lists(ODD, min_size=30, max_size=60))
def test_notes_of_any_characters_come_out_cleaned(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("odd")
    texts = [*texts, "Ten megabytes. " * 700_000, "kept"]
    rows = [{"id": str(place), "patient": str(place), "body": text} for place, text in enumerate(texts)]
    write_parquet(folder / "source", {"notes": rows})
    spec = folder / "spec.yaml"
    spec.write_text("source: source\nnotes: {table: notes, note_id: id, patient_id: patient, text: body}\n")
    facts = prepare_table(spec, folder / "data")
    written = {row["note_id"]: row["text"] for row in pq.read_table(folder / "data" / "notes").to_pylist()}
    cleaned = {str(place): clean_text(text) for place, text in enumerate(texts)}
    assert written == {place: text for place, text in cleaned.items() if text}
    assert facts["counts"]["notes_empty"] == len(texts) - len(written)


def test_the_command_line(prepared: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    printed = run(app, ["prepare", "table", "--example"])
    assert printed.exit_code == 0
    (tmp_path / "mine.yaml").write_text(printed.stdout.replace("source: tables", f"source: {prepared.parent}/csv"))
    assert load_spec(tmp_path / "mine.yaml").notes.text == "body"
    looked = run(app, ["prepare", "table", str(tmp_path / "mine.yaml"), "--check"])
    assert looked.exit_code == 0, looked.output
    assert "Nothing was written" in looked.stdout
    assert CANARY not in looked.output
    done = run(app, ["prepare", "table", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    assert "120 notes of 40 patients" in done.stdout


def test_check_reads_the_first_rows_only(prepared: Path, tmp_path: Path) -> None:
    found = check_table(write_spec(tmp_path / "spec.yaml", prepared.parent / "csv"))
    notes = found[0]
    assert (notes.key, notes.place, notes.rows) == ("notes", str(prepared.parent / "csv" / "notes.csv"), 120)
    assert ("text", "body", 120) in notes.columns
    assert notes.values == []
    values = {part.key: part.values for part in found}
    assert values["labels.diagnoses"] == ["0331", "E11.9", "I10"]
    assert list(values)[-1] == "admissions"
