"""Tables from csv, Parquet, DuckDB and SQLite: the same result from each, and one line for what cannot be read."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.notes.mimic3.options import Mimic3Options
from clinstack.notes.mimic3.prepare import prepare_mimic3
from clinstack.notes.sources.source_tables import SourceTables, is_address, shown

GOLDEN = Path(__file__).parent / "golden" / "vanaken"
TABLES = ("ADMISSIONS", "DIAGNOSES_ICD", "NOTEEVENTS", "PROCEDURES_ICD")
WHOLE = {"ROW_ID", "SUBJECT_ID", "SEQ_NUM"}
TIMES = {"ADMITTIME", "DISCHTIME", "DEATHTIME", "EDREGTIME", "EDOUTTIME", "CHARTDATE", "CHARTTIME", "STORETIME"}
SECRET = "Mrs Smith fell"
Write = Callable[[dict[str, pa.Table], Path], Path]


def golden(table: str) -> tuple[list[str], list[list[str]]]:
    text = gzip.decompress((GOLDEN / "input" / f"{table}.csv.gz").read_bytes()).decode()
    names, *rows = csv.reader(io.StringIO(text, newline=""))
    return names, rows


def typed_column(name: str, values: list[str]) -> pa.Array:
    filled = [value or None for value in values]
    if name in TIMES:
        return pa.array([value and datetime.fromisoformat(value) for value in filled], pa.timestamp("us"))
    if name in WHOLE:
        return pa.array([value and int(value) for value in filled], pa.int64())
    if name == "HADM_ID":
        # What pandas makes of a column with gaps.
        return pa.array([value and float(value) for value in filled], pa.float64())
    return pa.array(filled, pa.string())


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    result = {}
    for table in TABLES:
        names, rows = golden(table)
        columns = [
            typed_column(name, list(values)) for name, values in zip(names, zip(*rows, strict=True), strict=True)
        ]
        result[table] = pa.table(columns, names)
    return result


def write_csv(tables: dict[str, pa.Table], folder: Path) -> Path:
    folder.mkdir()
    for path in (GOLDEN / "input").glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


def write_parquet(tables: dict[str, pa.Table], folder: Path) -> Path:
    folder.mkdir()
    for name, table in tables.items():
        # Small row groups, so that batches end inside the table.
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=100)
    return folder


def write_duckdb(tables: dict[str, pa.Table], path: Path) -> Path:
    with duckdb.connect(str(path)) as connection:
        for name, table in tables.items():
            connection.register("new", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM new")
            connection.unregister("new")
    return path


def write_sqlite(tables: dict[str, pa.Table], path: Path) -> Path:
    connection = sqlite3.connect(path)
    for name, table in tables.items():
        kinds = [
            "REAL" if pa.types.is_floating(kind) else "INTEGER" if pa.types.is_integer(kind) else "TEXT"
            for kind in table.schema.types
        ]
        listed = ", ".join(f"{column} {kind}" for column, kind in zip(table.schema.names, kinds, strict=True))
        connection.execute(f"CREATE TABLE {name} ({listed})")
        rows = [
            tuple(str(value) if isinstance(value, datetime) else value for value in row.values())
            for row in table.to_pylist()
        ]
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(kinds))})", rows)
    connection.commit()
    connection.close()
    return path


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    for path in (GOLDEN / "splits").glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_duckdb, write_sqlite])
def test_every_kind_of_source_gives_the_published_files(
    write: Write, tables: dict[str, pa.Table], splits: Path, tmp_path: Path
) -> None:
    source = write(tables, tmp_path / "source")
    options = Mimic3Options(compat="official", splits=splits, export_csv=tmp_path / "csv", notes=False)
    prepare_mimic3(source, tmp_path / "out", options=options)
    expected = GOLDEN / "expected" / "admission"
    wanted = {
        str(path.relative_to(expected).with_suffix("")): gzip.decompress(path.read_bytes())
        for path in expected.rglob("*.gz")
    }
    written = {str(path.relative_to(tmp_path / "csv")): path for path in (tmp_path / "csv").rglob("*.*")}
    assert written.keys() == wanted.keys()
    assert [name for name, path in written.items() if path.read_bytes() != wanted[name]] == []
    files = {path.name: path for path in source.iterdir()} if source.is_dir() else {}
    recorded = read_json(tmp_path / "out" / "prepare.json")["tables"]
    assert recorded == {
        name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in sorted(files.items())
    }
    assert len(recorded) == (len(TABLES) if source.is_dir() else 0)


# Small tables of one's own


def in_parquet(folder: Path, name: str, table: pa.Table) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet")
    return folder


def in_csv(folder: Path, name: str, table: pa.Table) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([table.column_names, *(row.values() for row in table.to_pylist())])
    return folder


def in_duckdb(folder: Path, name: str, table: pa.Table) -> Path:
    return write_duckdb({name: table}, folder.with_suffix(".duckdb"))


def in_sqlite(folder: Path, name: str, table: pa.Table) -> Path:
    return write_sqlite({name: table}, folder.with_suffix(".sqlite"))


EVERY = [in_csv, in_parquet, in_duckdb, in_sqlite]
Small = Callable[[Path, str, pa.Table], Path]


@pytest.fixture
def connection() -> Iterator[Any]:
    with duckdb.connect() as opened:
        yield opened


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.decimal128(21, 1), pa.int16()])
@pytest.mark.parametrize("store", [in_parquet, in_duckdb, in_sqlite])
def test_codes_stored_as_numbers_are_refused(store: Small, kind: pa.DataType, connection: Any, tmp_path: Path) -> None:
    table = pa.table({"HADM_ID": pa.array([1, 2]), "Icd9_Code": pa.array([4019, 331]).cast(kind, safe=False)})
    if store is in_sqlite and pa.types.is_decimal(kind):
        table = table.set_column(1, "Icd9_Code", pa.array([4019.0, 331.0]))
    source = store(tmp_path / "t", "DIAGNOSES_ICD", table)
    with pytest.raises(InputError, match=r"DIAGNOSES_ICD.*: column Icd9_Code is stored as numbers.*as text") as error:
        SourceTables(connection, source).open("DIAGNOSES_ICD", {"HADM_ID": "BIGINT", "ICD9_CODE": "CODE"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("store", EVERY)
def test_names_match_in_any_case_and_values_stay_what_they_are(store: Small, connection: Any, tmp_path: Path) -> None:
    table = pa.table(
        {
            "hadm_id": [3, 1, 2],
            "Icd9_Code": ["0331", " V45 ", None],
            "unused": ["a", "b", "c"],
            "Note": ["é\0x", "", "Z"],
        }
    )
    source = store(tmp_path / "t", "Diagnoses_Icd", table)
    read = SourceTables(connection, source)
    assert read.has("DIAGNOSES_ICD")
    assert not read.has("PROCEDURES_ICD")
    read.open("DIAGNOSES_ICD", {"ICD9_CODE": "CODE", "HADM_ID": "BIGINT"})
    rows = connection.execute("SELECT ICD9_CODE, HADM_ID FROM DIAGNOSES_ICD ORDER BY rowid").fetchall()
    assert rows == [("0331", 3), (" V45 ", 1), (None, 2)]
    batches = list(read.rows("DIAGNOSES_ICD", ["NOTE", "HADM_ID"]))
    assert batches[0].batch.schema.names == ["NOTE", "HADM_ID"]
    assert batches[0].numbers.tolist() == [1, 2, 3]
    assert batches[0].batch.column("NOTE").to_pylist() == ["é\0x", None, "Z"]
    chosen = list(read.rows("DIAGNOSES_ICD", ["HADM_ID", "NOTE"], ("NOTE", "Z")))
    assert [(batch.numbers.tolist(), batch.batch.column("HADM_ID").to_pylist()) for batch in chosen] == [([3], ["2"])]


@pytest.mark.parametrize("store", EVERY)
@pytest.mark.parametrize(
    ("kind", "good", "what"),
    [
        ("BIGINT", "12.0", "a whole number"),
        ("DOUBLE", "1.5", "a number"),
        ("TIMESTAMP", "2150-01-01", "a date and time"),
    ],
)
def test_a_wrong_value_is_named_by_its_row_and_not_shown(
    store: Small, kind: str, good: str, what: str, connection: Any, tmp_path: Path
) -> None:
    # Beyond the first batch of a reader.
    table = pa.table({"A": [good, None] * 5000 + [SECRET, good, SECRET]})
    source = store(tmp_path / "t", "ADMISSIONS", table)
    with pytest.raises(InputError, match=rf"ADMISSIONS.*row 10,001: column A is not {what}") as error:
        SourceTables(connection, source).open("ADMISSIONS", {"A": kind})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("store", EVERY)
def test_missing_tables_and_columns_are_named(store: Small, connection: Any, tmp_path: Path) -> None:
    source = store(tmp_path / "t", "ADMISSIONS", pa.table({"HADM_ID": ["1"], "OTHER": ["2"]}))
    read = SourceTables(connection, source)
    with pytest.raises(InputError, match=r"has no PATIENTS.*Everyone needs it\.") as error:
        read.open("PATIENTS", {"A": "VARCHAR"}, "Everyone needs it.")
    assert str(source) in str(error.value)
    assert ("nor .parquet" in str(error.value)) == source.is_dir()
    with pytest.raises(InputError, match=r"ADMISSIONS.* has no column SUBJECT_ID, DOB; it has HADM_ID, OTHER"):
        read.open("ADMISSIONS", {"SUBJECT_ID": "BIGINT", "HADM_ID": "BIGINT", "DOB": "DATE"})


def test_a_condition_keeps_rows_but_every_row_is_checked(connection: Any, tmp_path: Path) -> None:
    source = in_csv(tmp_path / "t", "ICUSTAYS", pa.table({"A": ["1", "2", "3"], "B": ["", "5", "6"]}))
    SourceTables(connection, source).open("ICUSTAYS", {"A": "BIGINT", "B": "BIGINT"}, where="B > 5 OR A = 1")
    assert connection.execute("SELECT * FROM ICUSTAYS").fetchall() == [(1, None), (3, 6)]
    in_csv(tmp_path / "t", "ICUSTAYS", pa.table({"A": ["1", "x"]}))
    with pytest.raises(InputError, match="row 2"):
        SourceTables(connection, source).open("ICUSTAYS", {"A": "BIGINT"}, where="A = 1")


def test_a_csv_file_comes_before_parquet_and_progress_ends_at_the_end(connection: Any, tmp_path: Path) -> None:
    source = in_csv(tmp_path / "t", "ADMISSIONS", pa.table({"A": ["csv"]}))
    in_parquet(source, "ADMISSIONS", pa.table({"A": ["parquet"]}))
    in_parquet(source, "PATIENTS", pa.table({"A": ["1"] * 20_000}))
    calls: list[tuple[str, int, int]] = []
    read = SourceTables(connection, source, lambda *call: calls.append(call))
    read.open("ADMISSIONS", {"A": "VARCHAR"})
    assert connection.execute("SELECT A FROM ADMISSIONS").fetchall() == [("csv",)]
    read.open("PATIENTS", {"A": "VARCHAR"})
    assert calls[-1] == ("Reading PATIENTS", 20_000, 20_000)
    assert calls[-2][1] < 20_000


# What cannot be read


def damaged_parquet(folder: Path) -> Path:
    """A footer that is whole over pages that are not."""
    table = pa.table({"A": [f"{SECRET} {number}" for number in range(5000)]})
    path = in_parquet(folder, "ADMISSIONS", table) / "ADMISSIONS.parquet"
    data = bytearray(path.read_bytes())
    data[8 : len(data) // 2] = b"\xff" * (len(data) // 2 - 8)
    path.write_bytes(data)
    return folder


def test_an_unreadable_parquet_file_is_named(connection: Any, tmp_path: Path) -> None:
    folder = in_parquet(tmp_path / "t", "ADMISSIONS", pa.table({"A": ["1"] * 1000}))
    path = folder / "ADMISSIONS.parquet"
    for data in (b"", b"no parquet at all", path.read_bytes()[:-20]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"ADMISSIONS\.parquet is not a readable Parquet file; download"):
            SourceTables(connection, folder).open("ADMISSIONS", {"A": "VARCHAR"})
    with pytest.raises(InputError, match=r"ADMISSIONS\.parquet.*damaged") as error:
        SourceTables(connection, damaged_parquet(folder)).open("ADMISSIONS", {"A": "VARCHAR"})
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_database_is_named(connection: Any, tmp_path: Path) -> None:
    path = tmp_path / "mimic.db"
    for data in (b"", b"ROW_ID,HADM_ID\n1,2\n"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"mimic\.db is neither a DuckDB nor a SQLite database"):
            SourceTables(connection, path)
    with pytest.raises(InputError, match=r"nowhere is not a folder; name a folder"):
        SourceTables(connection, tmp_path / "nowhere")


def test_a_damaged_database_is_named(connection: Any, tmp_path: Path) -> None:
    path = in_duckdb(tmp_path / "t", "ADMISSIONS", pa.table({"A": ["1"]}))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"t\.duckdb cannot be opened"):
        SourceTables(connection, path)
    path = in_sqlite(tmp_path / "t", "ADMISSIONS", pa.table({"A": [SECRET] * 5000}))
    whole = path.read_bytes()
    path.write_bytes(whole[:16] + b"\xff" * 2000)
    with pytest.raises(InputError, match=r"t\.sqlite.*cannot be read"):
        SourceTables(connection, path).open("ADMISSIONS", {"A": "VARCHAR"})
    path.write_bytes(whole[:30_000] + b"\xff" * (len(whole) - 30_000))
    with pytest.raises(InputError, match=r"t\.sqlite.*cannot be read") as error:
        SourceTables(connection, path).open("ADMISSIONS", {"A": "VARCHAR"})
    assert SECRET not in str(error.value)


def test_bytes_that_are_no_text_are_named_by_row_and_not_shown(connection: Any, tmp_path: Path) -> None:
    wrong = f"{SECRET} \xfc".encode("latin-1")
    folder = in_parquet(tmp_path / "t", "NOTEEVENTS", pa.table({"TEXT": [b"good"] * 8999 + [wrong]}))
    with pytest.raises(InputError, match=r"NOTEEVENTS\.parquet, row 9,000: column TEXT is not UTF-8") as error:
        list(SourceTables(connection, folder).rows("NOTEEVENTS", ["TEXT"]))
    assert SECRET not in str(error.value)
    path = in_sqlite(tmp_path / "t", "OTHER", pa.table({"A": ["x"]}))
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE NOTEEVENTS (TEXT TEXT)")
    database.executemany("INSERT INTO NOTEEVENTS VALUES (CAST(? AS TEXT))", [(b"good",)] * 8999 + [(wrong,)])
    database.commit()
    database.close()
    with pytest.raises(InputError, match=r"table NOTEEVENTS, row 9,000: column TEXT is not UTF-8") as error:
        list(SourceTables(connection, path).rows("NOTEEVENTS", ["TEXT"]))
    assert SECRET not in str(error.value)


def test_a_table_in_two_schemas_is_refused_and_in_one_other_is_found(connection: Any, tmp_path: Path) -> None:
    path = in_duckdb(tmp_path / "t", "admissions", pa.table({"A": ["1"]}))
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE SCHEMA mimiciii; CREATE TABLE mimiciii.ADMISSIONS AS SELECT 2 AS A")
        database.execute("CREATE TABLE mimiciii.PATIENTS AS SELECT 3 AS A")
    read = SourceTables(connection, path)
    with pytest.raises(InputError, match=r"t\.duckdb has ADMISSIONS in the schemas (main, mimiciii|mimiciii, main)"):
        read.open("ADMISSIONS", {"A": "BIGINT"})
    read.open("PATIENTS", {"A": "BIGINT"})
    assert connection.execute("SELECT A FROM PATIENTS").fetchall() == [(3,)]
    assert read.place("PATIENTS") == f"{path}, table mimiciii.PATIENTS"


def test_views_and_odd_names_are_read(connection: Any, tmp_path: Path) -> None:
    path = in_sqlite(tmp_path / "t", "rows_", pa.table({"A": ["2", "1"]}))
    database = sqlite3.connect(path)
    database.execute('CREATE VIEW Admissions AS SELECT A AS "the ""A""" FROM rows_')
    database.execute("CREATE TABLE PATIENTS (A INTEGER PRIMARY KEY, B TEXT) WITHOUT ROWID")
    database.execute("INSERT INTO PATIENTS VALUES (7, 'x')")
    database.commit()
    database.close()
    read = SourceTables(connection, path)
    found = [rows.batch.column(0).to_pylist() for rows in read.rows("ADMISSIONS", ['THE "A"'])]
    assert found == [["2", "1"]]
    assert [rows.batch.to_pylist() for rows in read.rows("PATIENTS", ["A", "B"])] == [[{"A": "7", "B": "x"}]]


def test_a_database_is_only_read(connection: Any, tmp_path: Path) -> None:
    for store in (in_duckdb, in_sqlite):
        path = store(tmp_path / "t", "ADMISSIONS", pa.table({"A": ["1"]}))
        before = path.read_bytes()
        SourceTables(connection, path).open("ADMISSIONS", {"A": "BIGINT"})
        assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.duckdb", "t.sqlite"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://ann:hunter2@host:5432/mimic", "postgresql://ann@host:5432/mimic"),
        ("postgres://ann:hunter2@host/mimic", "postgres://ann@host/mimic"),
        ("postgresql://ann:hunter2/p@ss:w@host/mimic", "postgresql://ann@host/mimic"),
        ("postgresql://:hunter2@host/mimic", "postgresql://@host/mimic"),
        ("postgresql://host/mimic?user=ann&password=hunter2&sslmode=require",
         "postgresql://host/mimic?user=ann&password=***&sslmode=require"),
        ("postgresql://ann@host/mimic", "postgresql://ann@host/mimic"),
        ("postgresql:///mimic", "postgresql:///mimic"),
        ("/data/a:b@c", "/data/a:b@c"),
    ],
)  # fmt: skip
def test_a_password_is_never_shown(address: str, expected: str) -> None:
    assert shown(address) == expected
    assert is_address(address) == address.startswith("postgres")


@pytest.mark.parametrize("password", ["hun%ter2", "hunter2:77", "hunter2"])
def test_what_the_library_says_of_a_wrong_address_does_not_show_the_password(
    connection: Any, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    psycopg = pytest.importorskip("psycopg")
    if password == "hunter2":
        # What the library says of a host that is a piece of a password with an @ in it.
        error = psycopg.OperationalError("many words\nfailed to resolve host 'hunter2'")
        monkeypatch.setattr(psycopg, "connect", Mock(side_effect=error))
    with pytest.raises(InputError, match=r"postgresql://ann@127\.0\.0\.1:1/mimic cannot be reached: ") as error:
        SourceTables(connection, f"postgresql://ann:{password}@127.0.0.1:1/mimic")
    assert "hun" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_view_that_fails_and_a_column_of_lists_are_named(connection: Any, tmp_path: Path) -> None:
    path = in_duckdb(tmp_path / "t", "raw", pa.table({"A": ["1", SECRET]}))
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE VIEW ADMISSIONS AS SELECT CAST(A AS INTEGER) AS A FROM raw")
        database.execute(
            "CREATE TABLE gone AS SELECT 1 AS A; CREATE VIEW PATIENTS AS SELECT A FROM gone; DROP TABLE gone"
        )
    read = SourceTables(connection, path)
    for table in ("ADMISSIONS", "PATIENTS"):
        with pytest.raises(InputError, match=rf"t\.duckdb, table main\.{table} cannot be read") as error:
            read.open(table, {"A": "BIGINT"})
        assert SECRET not in str(error.value)
    folder = in_parquet(tmp_path / "u", "NOTEEVENTS", pa.table({"TEXT": [[SECRET]]}))
    with pytest.raises(InputError, match=r"NOTEEVENTS\.parquet: column TEXT holds list.* export it as text"):
        list(SourceTables(connection, folder).rows("NOTEEVENTS", ["TEXT"]))


def test_hashes_are_those_of_the_files_that_were_read(connection: Any, tmp_path: Path) -> None:
    source = in_csv(tmp_path / "t", "ADMISSIONS", pa.table({"A": ["1"]}))
    in_parquet(source, "PATIENTS", pa.table({"A": ["1"]}))
    in_csv(source, "ICUSTAYS", pa.table({"A": ["1"]}))
    shutil.copy(source / "ICUSTAYS.csv", source / "SERVICES.csv")
    read = SourceTables(connection, source)
    read.open("ADMISSIONS", {"A": "BIGINT"})
    read.open("PATIENTS", {"A": "BIGINT"})
    read.reader("ICUSTAYS")  # looked at only
    assert list(read.hashes()) == ["ADMISSIONS.csv", "ICUSTAYS.csv", "PATIENTS.parquet"]
    for name, digest in read.hashes().items():
        assert digest == f"sha256:{hashlib.sha256((source / name).read_bytes()).hexdigest()}"
    database = in_duckdb(tmp_path / "u", "ADMISSIONS", pa.table({"A": ["1"]}))
    from_database = SourceTables(connection, database)
    from_database.open("ADMISSIONS", {"A": "BIGINT"})
    assert from_database.hashes() == {}
