"""`clinstack prepare mimic3` on wrong input: exit code 2, one line that names the place, no note text, nothing left."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clinstack.files import read_json
from clinstack.notes.attrition import attrition_rows
from clinstack.notes.cohort import write_cohort

MARK = "Zebrafish"
"""Stands in every note, so that no message may hold it."""
Change = Callable[[Path], object]


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def write_rows(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)


def put(table: str, column: str, values: dict[int, str] | Callable[[str], str]) -> Change:
    """Return what changes a column: in rows, the first after the header being 1, or in all of them."""

    def change(folder: Path) -> None:
        names, *rows = rows_of(folder / f"{table}.csv")
        place = names.index(column)
        for number, row in enumerate(rows, 1):
            if callable(values):
                row[place] = values(row[place])
            elif number in values:
                row[place] = values[number]
        write_rows(folder / f"{table}.csv", [names, *rows])

    return change


def without(table: str, column: str) -> Change:
    def change(folder: Path) -> None:
        rows = rows_of(folder / f"{table}.csv")
        place = rows[0].index(column)
        write_rows(folder / f"{table}.csv", [row[:place] + row[place + 1 :] for row in rows])

    return change


def rewrite(table: str, edit: Callable[[bytes], bytes], ending: str = ".csv") -> Change:
    def change(folder: Path) -> None:
        path = folder / f"{table}.csv"
        data = edit(path.read_bytes())
        path.unlink()
        path.with_suffix(ending).write_bytes(data)

    return change


def line_of(number: int, edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return what edits a row of a table without line breaks in its values."""

    def change(data: bytes) -> bytes:
        lines = data.split(b"\n")
        lines[number] = edit(lines[number])
        return b"\n".join(lines)

    return change


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "in"
    write_cohort(folder, 40, 5)
    put("NOTEEVENTS", "TEXT", lambda text: f"{MARK}\n{text}\n{MARK}")(folder)
    return folder


@pytest.fixture
def source(hospital: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hospital, tmp_path / "in"))


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Run ``clinstack prepare mimic3`` in this process; return exit code and the lines on standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*options: object) -> tuple[int, list[str]]:
        from clinstack.cli import main

        arguments = ["--source", tmp_path / "in", "--out", tmp_path / "out", "--minimum-count", 1, *options]
        monkeypatch.setattr(sys, "argv", ["clinstack", "prepare", "mimic3", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr().err.splitlines()

    return run


def in_folder(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


BROKEN: dict[str, tuple[Change, str, str]] = {
    "missing notes": (lambda folder: (folder / "NOTEEVENTS.csv").unlink(), "", r"has no NOTEEVENTS\.csv .*Every task"),
    "missing admissions": (lambda folder: (folder / "ADMISSIONS.csv").unlink(), "", r"has no ADMISSIONS\.csv"),
    "missing codes": (
        lambda folder: (folder / "PROCEDURES_ICD.csv").unlink(), "",
        r"has no PROCEDURES_ICD\.csv .*procedures needs it: add the file, or leave the task out",
    ),
    "missing column of notes": (without("NOTEEVENTS", "CATEGORY"), "", r"NOTEEVENTS\.csv has no column CATEGORY; it"),
    "missing column": (without("ADMISSIONS", "DISCHTIME"), "", r"ADMISSIONS\.csv has no column DISCHTIME; it has "),
    "missing column of codes": (without("DIAGNOSES_ICD", "ICD9_CODE"), "", r"DIAGNOSES_ICD\.csv has no column ICD9"),
    "truncated gzip": (
        rewrite("NOTEEVENTS", lambda data: gzip.compress(data)[:-2000], ".csv.gz"), "",
        r"NOTEEVENTS\.csv\.gz is a damaged or truncated gzip file \(after row",
    ),
    "no gzip": (rewrite("ADMISSIONS", lambda data: data, ".csv.gz"), "", r"ADMISSIONS\.csv\.gz is a damaged or trunc"),
    "empty file": (rewrite("ADMISSIONS", lambda data: b""), "", r"ADMISSIONS\.csv is empty; its first line must name"),
    "broken quote": (
        rewrite("ADMISSIONS", line_of(7, lambda line: line.replace(b"-", b'"', 1))), "",
        r"ADMISSIONS\.csv, row 7 has a quote that is broken",
    ),
    "broken quote in a note": (
        rewrite("NOTEEVENTS", lambda data: data.replace(b"Zebrafish\n", b'Zebra"fish\n', 1)), "",
        r"NOTEEVENTS\.csv, row 1 has a quote that is broken",
    ),
    "wrong encoding": (
        rewrite("NOTEEVENTS", lambda data: data.replace(b"Zebrafish\n", b"Zebrafish M\xfcller\n", 1)), "",
        r"NOTEEVENTS\.csv, row 1 is not UTF-8 \(byte 0xfc\); convert",
    ),
    "wrong encoding, notes not kept": (
        rewrite("NOTEEVENTS", lambda data: data.replace(b"Radiology", b"R\xe4diology", 1)), "--no-notes",
        r"NOTEEVENTS\.csv, row \d+ is not UTF-8 \(byte 0xe4\); convert",
    ),
    "UTF-16": (rewrite("ADMISSIONS", lambda data: data.decode().encode("utf-16")), "", r"ADMISSIONS\.csv is UTF-16"),
    "a field too many": (
        rewrite("DIAGNOSES_ICD", line_of(5, lambda line: line + b',"1"')), "",
        r"DIAGNOSES_ICD\.csv, row 5 has 6 fields where the header has 5 columns",
    ),
    "admission twice": (
        rewrite("ADMISSIONS", line_of(4, lambda line: line + b"\n" + line)), "",
        r"ADMISSIONS\.csv, row 5: column HADM_ID has empty or repeated values",
    ),
    "admission without number": (
        put("ADMISSIONS", "HADM_ID", {6: ""}), "", r"ADMISSIONS\.csv, row 6: column HADM_ID has empty or rep",
    ),
    "dates out of order": (
        put("ADMISSIONS", "DISCHTIME", {3: "2001-01-01 00:00:00"}), "",
        r"ADMISSIONS\.csv, row 3: dates are out of order, DISCHTIME is more than a day before ADMITTIME",
    ),
    "no date": (
        put("ADMISSIONS", "ADMITTIME", {3: MARK}), "", r"ADMISSIONS\.csv, row 3: column ADMITTIME is not a date",
    ),
    "no number": (
        put("NOTEEVENTS", "SUBJECT_ID", {3: MARK}), "", r"NOTEEVENTS\.csv, row 3: column SUBJECT_ID is not a whole",
    ),
    "half a number": (
        put("DIAGNOSES_ICD", "HADM_ID", {9: "100001.5"}), "", r"DIAGNOSES_ICD\.csv, row 9: column HADM_ID is not a",
    ),
    "codes with decimals": (
        put("DIAGNOSES_ICD", "ICD9_CODE", {8: "4019.0"}), "",
        r"DIAGNOSES_ICD\.csv, row 8: column ICD9_CODE holds a code written as a number with decimals",
    ),
    "codes in powers of ten": (
        put("PROCEDURES_ICD", "ICD9_CODE", {2: "1e+03"}), "", r"PROCEDURES_ICD\.csv, row 2: column ICD9_CODE holds",
    ),
    "codes without their zeros": (
        put("PROCEDURES_ICD", "ICD9_CODE", lambda code: str(int(code)) if code.isdigit() else code), "",
        r"PROCEDURES_ICD\.csv, row \d+: column ICD9_CODE has \d code\(s\) of fewer than three digits and none that b",
    ),
    "no code at all": (
        put("DIAGNOSES_ICD", "ICD9_CODE", lambda code: ""), "", r"DIAGNOSES_ICD: no code category occurs in 1",
    ),
    "damaged mark of the cohort": (
        lambda folder: (folder / "cohort.json").write_text("{"), "", r"cohort\.json is damaged",
    ),
    "no folder": (shutil.rmtree, "", r"in is not a folder; name a folder of csv or Parquet files, a DuckDB or SQLite"),
    "no database": (
        lambda folder: (shutil.rmtree(folder), folder.write_text(MARK)), "", r"in is neither a DuckDB nor a SQLite dat",
    ),
}  # fmt: skip


def without_bars(lines: list[str]) -> list[str]:
    return [line for line in lines if not re.search(r" \d+/\d+ +[-0-9:]{7}\s*$", line)]


def check_one_line(code: int, lines: list[str], message: str) -> None:
    assert code == 2, lines
    assert MARK not in "".join(lines)
    # Besides the bars of progress, which a pipe gets in their last state.
    said = without_bars(lines)
    assert len(said) == 1, lines
    assert said[0].startswith("Error: ")
    assert re.search(message, said[0]), said[0]


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_tables(case: str, source: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    change, options, message = BROKEN[case]
    change(source)
    before = in_folder(tmp_path)
    check_one_line(*prepare(*options.split()), message)
    assert in_folder(tmp_path) == before


WRONG_OPTIONS: dict[str, tuple[str, str]] = {
    "text": ("--text half", "text is 'half'; use admission or full"),
    "compat": ("--compat unofficial", "compat is 'unofficial'; use official, or leave it out"),
    "task": ("--tasks mortality,fever", "tasks: fever; choose from .*mortality, "),
    "no task": ("--tasks ,", "tasks: none named; choose from"),
    "characters of V codes": ("--v-codes 5", "v_characters is 5; use 3 or 4"),
    "minimum count": ("--minimum-count 0", "minimum_count is 0; use 1 or more"),
    "export without official": (
        "--export-csv {tmp}/csv",
        "export_csv writes the published files; it needs compat offi",
    ),
    "choices with official": ("--compat official --keep-errors", "compat official has no choice. Leave them out"),
    "export into the output": (
        "--compat official --export-csv {tmp}/out/csv",
        r"published files cannot go into .*out, which is written anew",
    ),
    "export is the output": (
        "--compat official --export-csv {tmp}/out",
        r"published files cannot go into .*out, which is written anew",
    ),
    "no lists": ("--splits {tmp}/in", r"in has no mimic_train\.csv"),
    "out is a file": ("--out {tmp}/in/cohort.json", r"cohort\.json is a file; name a folder"),
    "out is the source": ("--out {tmp}/in", r"in is not empty and was not written by `clinstack prepare`"),
    "out holds the source": ("--out {tmp}", r"is not empty and was not written by `clinstack prepare`"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case: str, source: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    options, message = WRONG_OPTIONS[case]
    files = {path: path.read_bytes() for path in source.iterdir()}
    check_one_line(*prepare(*options.format(tmp=tmp_path).split()), message)
    assert in_folder(tmp_path) == {"in"}
    assert {path: path.read_bytes() for path in source.iterdir()} == files


def test_options_that_are_no_numbers_are_refused(prepare: Callable[..., Any]) -> None:
    for options in (["--v-codes", "three"], ["--seed", "x"], ["--minimum-count", "many"]):
        code, lines = prepare(*options)
        assert code == 2
        assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("options", ["", "--compat official"])
def test_an_empty_flag_is_left_out_and_counted(
    options: str, source: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    put("ADMISSIONS", "HOSPITAL_EXPIRE_FLAG", lambda flag: flag or "0")(source)
    assert prepare("--tasks", "mortality", "--out", tmp_path / "whole", *options.split())[0] == 0
    ids = {row["example_id"] for row in examples(tmp_path / "whole")}
    names, *rows = rows_of(source / "ADMISSIONS.csv")
    place = names.index("HADM_ID")
    chosen = [number for number, row in enumerate(rows, 1) if row[place] in ids][:3]
    put("ADMISSIONS", "HOSPITAL_EXPIRE_FLAG", dict.fromkeys(chosen, ""))(source)
    code, lines = prepare("--tasks", "mortality", *options.split())
    assert (code, without_bars(lines)) == (0, [])
    left = {row["example_id"] for row in examples(tmp_path / "out")}
    assert left == ids - {rows[number - 1][place] for number in chosen}

    def removed(out: Path) -> int:
        return next(row["removed"] for row in attrition_rows(out) if "HOSPITAL_EXPIRE_FLAG" in row["step"])

    assert removed(tmp_path / "out") == removed(tmp_path / "whole") + 3


def examples(out: Path) -> list[dict[str, Any]]:
    files = (out / f"examples/mortality/{split}.parquet" for split in ("train", "validation", "test"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_a_stay_that_ends_hours_before_it_begins_is_counted(
    source: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    names, first, *_ = rows_of(source / "ADMISSIONS.csv")
    admitted = datetime.fromisoformat(first[names.index("ADMITTIME")])
    put("ADMISSIONS", "DISCHTIME", {1: str(admitted - timedelta(hours=23))})(source)
    assert prepare("--tasks", "length_of_stay")[0] == 0
    steps = {row["step"]: row["removed"] for row in attrition_rows(tmp_path / "out")}
    assert steps["discharged after admission"] == 1


def test_columns_of_the_notes_are_asked_for_before_anything_is_read(source: Path, prepare: Callable[..., Any]) -> None:
    without("NOTEEVENTS", "TEXT")(source)
    code, lines = prepare()
    assert (code, len(lines)) == (2, 1)
    assert "has no column TEXT" in lines[0]


def test_a_foreign_file_where_the_export_goes_is_found_before_anything_is_read(
    source: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    mine = tmp_path / "csv" / "pro" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, lines = prepare("--compat", "official", "--export-csv", tmp_path / "csv")
    assert (code, len(lines)) == (2, 1)
    assert "thesis.txt is not one of the published files" in lines[0]
    assert mine.read_text() == "mine"
    assert {path.name for path in tmp_path.rglob("*")} >= {"pro", "thesis.txt"}
    assert in_folder(tmp_path) == {"in", "csv"}
    assert in_folder(tmp_path / "csv") == {"pro"}


def test_a_link_to_a_folder_stays_a_link(source: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
    for seed in (1, 2):
        assert prepare("--seed", seed, "--tasks", "mortality")[0] == 0
        assert (tmp_path / "out").is_symlink()
        assert read_json(tmp_path / "disk" / "prepare.json")["seed"] == seed
    assert in_folder(tmp_path) == {"in", "out", "disk"}


def with_little_room(size: int, arguments: list[object]) -> subprocess.CompletedProcess[str]:
    """Run the command line where no file may grow beyond ``size`` bytes."""
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "from clinstack.cli import main\n"
        "main()\n"
    )
    environment = {**os.environ, "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1_000, ""),
        (20_000, "--compat official --export-csv {tmp}/csv"),
        (40_000, "--no-notes"),
        *[
            pytest.param(size, options, marks=pytest.mark.slow)
            for size in (0, 5_000, 12_500, 30_000)
            for options in ("", "--no-notes", "--text full --compat official --export-csv {tmp}/csv")
        ],
    ],
)
def test_a_full_disk(size: int, options: str, hospital: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(hospital, tmp_path / "in")
    assert prepare("--tasks", "mortality")[0] == 0
    before = tree(tmp_path / "out")
    done = with_little_room(
        size,
        [
            *("prepare", "mimic3", "--source", tmp_path / "in", "--out", tmp_path / "out", "--minimum-count", 1),
            *options.format(tmp=tmp_path).split(),
        ],
    )
    check_one_line(done.returncode, done.stderr.splitlines(), r"out: the disk, .*, is full\. Nothing was changed there")
    assert tree(tmp_path / "out") == before
    assert in_folder(tmp_path) - {"csv"} == {"in", "out"}
    assert not (tmp_path / "csv").exists() or tree(tmp_path / "csv") == {}
