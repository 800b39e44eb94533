"""`clinstack scan`: counts and positions of identifiers in all kinds of tables, never their words."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.notes.cohort import write_cohort
from clinstack.notes.scan import ScanOptions, scan
from clinstack.notes.scan_sources import find_tables, read_texts
from clinstack.notes.scan_truth import ScanTruth
from clinstack.privacy.identifiers import KINDS

TEXTS = ["Dr. Quill saw her on 3/14/2012.", "BP 120/80, stable", "MRN 7654321, call 617-555-0123"]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "notes"
    folder.mkdir(parents=True)
    table = pa.table({"note_id": ["a", "b", "c"], "patient_id": ["p", "p", "q"], "text": TEXTS})
    pq.write_table(table, folder / "notes.parquet")
    return tmp_path / "data"


def _run(*arguments: object) -> tuple[int, dict[str, object]]:
    result = CliRunner().invoke(app, ["scan", *map(str, arguments), "--json"])
    for words in ("Quill", "7654321", "555-0123"):
        assert words not in result.output
    return result.exit_code, json.loads(result.stdout.strip().splitlines()[-1])


def test_a_folder_of_notes(notes: Path, tmp_path: Path) -> None:
    code, found = _run(notes, "--out", tmp_path / "scan.parquet")
    assert code == 0
    assert {kind: counts["found"] for kind, counts in found["kinds"].items()} == {  # type: ignore[attr-defined]
        "name": 1, "date": 1, "phone": 1, "mrn": 1,
    }  # fmt: skip
    assert (found["texts"], found["texts_with_identifiers"]) == (3, 2)
    assert (found["patients"], found["patients_with_identifiers"]) == (2, 2)
    assert found["failed"] is False
    table = pq.read_table(tmp_path / "scan.parquet").to_pylist()
    assert [(row["note_id"], row["patient_id"], row["row"], row["kind"]) for row in table] == [
        ("a", "p", 1, "name"), ("a", "p", 1, "date"), ("c", "q", 3, "mrn"), ("c", "q", 3, "phone"),
    ]  # fmt: skip
    assert [TEXTS[row["row"] - 1][row["start"] : row["end"]] for row in table] == [
        "Quill", "3/14/2012", "7654321", "617-555-0123",
    ]  # fmt: skip
    assert not any("Quill" in str(value) for row in table for value in row.values())


def test_exit_codes(notes: Path) -> None:
    assert _run(notes, "--fail")[0] == 1
    assert _run(notes, "--fail-on", "ssn,email")[0] == 0
    code, found = _run(notes, "--fail-on", "ssn, phone")
    assert (code, found["failed"]) == (1, True)
    result = CliRunner().invoke(app, ["scan", str(notes), "--fail-on", "shoe size"])
    assert isinstance(result.exception, InputError)
    assert "no kind of identifier" in str(result.exception)


def test_all_kinds_of_tables_give_the_same(notes: Path, tmp_path: Path) -> None:
    rows = [{"note_id": name, "patient_id": "p", "text": text} for name, text in zip("abc", TEXTS, strict=True)]
    folder = tmp_path / "other"
    folder.mkdir()
    for opener, name in ((open, "notes.csv"), (gzip.open, "notes.csv.gz")):
        with opener(folder / name, "wt", encoding="utf-8", newline="") as file:  # type: ignore[operator]
            writer = csv.DictWriter(file, ["note_id", "patient_id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "notes.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (folder / "codes.csv").write_text("code,title\n4019,hypertension\n", encoding="utf-8")
    result = scan([folder])
    by_file = {Path(entry["file"]).name: entry["identifiers"] for entry in result["files"]}
    assert by_file == {"notes.csv": 4, "notes.csv.gz": 4, "notes.jsonl": 4, "notes.txt": 4}
    assert [Path(file).name for file in result["without_text"]] == ["codes.csv"]
    assert result["identifiers"] == 16


def test_answers_of_a_run_and_named_columns(tmp_path: Path) -> None:
    table = pa.table({"example_id": ["1"], "patient_id": ["p"], "answer": ["Dr. Quill"], "remark": ["MRN 7654321"]})
    pq.write_table(table, tmp_path / "answers.parquet")
    assert set(scan([tmp_path])["kinds"]) == {"name"}
    assert set(scan([tmp_path], ScanOptions(columns=("remark",)))["kinds"]) == {"mrn"}
    with pytest.raises(InputError, match="column nothing is missing; it has example_id"):
        scan([tmp_path], ScanOptions(columns=("nothing",)))


def test_workers_find_the_same(notes: Path, tmp_path: Path) -> None:
    alone = scan([notes], ScanOptions(out=tmp_path / "one.parquet"))
    assert scan([notes], ScanOptions(out=tmp_path / "two.parquet", workers=2)) == alone
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "two.parquet"))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"")
    pq.write_table(pa.table({"code": ["1"]}), tmp_path / "codes.parquet")
    for name, message in (
        ("empty", "has no table or text"),
        ("broken.parquet", "not a readable Parquet"),
        ("broken.jsonl", "cannot be read as .jsonl"),
        ("picture.png", "is not read"),
        ("codes.parquet", "no column of text; it has code"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            scan([tmp_path / name])
    with pytest.raises(InputError, match=r"must end in \.parquet"):
        ScanOptions(out=tmp_path / "x.csv")
    with pytest.raises(InputError, match="workers is 0"):
        ScanOptions(workers=0)


def test_a_table_is_read_some_rows_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "notes.parquet"
    pq.write_table(pa.table({"text": ["x"] * 1000}), path)
    parts = list(read_texts(path))
    assert [part.first for part in parts] == [1, 257, 513, 769]
    assert sum(len(part.texts) for part in parts) == 1000


def test_tokens_and_hidden_folders_are_no_texts(tmp_path: Path) -> None:
    for name in ("tokens/x/a.parquet", ".partial/a.parquet", "notes/a.parquet", "stack/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": ["x"]}), tmp_path / name)
    assert find_tables([tmp_path]) == [tmp_path / "notes" / "a.parquet"]
    (tmp_path / "DATASHEET.md").write_text("Written on 2025-11-28", encoding="utf-8")
    assert tmp_path / "DATASHEET.md" in find_tables([tmp_path])
    (tmp_path / "prepare.json").write_text("{}", encoding="utf-8")
    assert find_tables([tmp_path]) == [tmp_path / "notes" / "a.parquet"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    write_cohort(folder, 60, 0, identifiers=True)
    return folder


def _truth(cohort: Path) -> list[dict[str, str]]:
    with gzip.open(cohort / "identifiers.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _rows(cohort: Path) -> dict[str, dict[str, str]]:
    with (cohort / "NOTEEVENTS.csv").open(encoding="utf-8", newline="") as file:
        return {row["ROW_ID"]: row for row in csv.DictReader(file)}


def test_the_cohorts_truth_is_exact(cohort: Path) -> None:
    rows, truth = _rows(cohort), _truth(cohort)
    assert len(truth) > 1500
    assert {row["KIND"] for row in truth} <= set(KINDS)
    words: dict[tuple[str, str], set[str]] = {}
    for row in truth:
        note = rows[row["ROW_ID"]]
        assert (note["SUBJECT_ID"], note["HADM_ID"]) == (row["SUBJECT_ID"], row["HADM_ID"])
        found = note["TEXT"][int(row["START"]) : int(row["END"])]
        assert found
        assert found == found.strip()
        words.setdefault((row["SUBJECT_ID"], row["FORM"]), set()).add(found)
    # One person, one name, one record number, one date of birth, whatever the note.
    for (_, form), seen in words.items():
        if form in ("name.last_first", "mrn", "ssn", "address.full", "email"):
            assert len(seen) == 1, form


def test_without_identifiers_the_cohort_is_what_it_was(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "plain", 60, 0)
    plain, planted = _rows(tmp_path / "plain"), _rows(cohort)
    assert not (tmp_path / "plain" / "identifiers.csv.gz").exists()
    assert "identifiers" not in json.loads((tmp_path / "plain" / "cohort.json").read_text(encoding="utf-8"))
    assert plain.keys() == planted.keys()
    for key, row in plain.items():
        assert {**planted[key], "TEXT": ""} == {**row, "TEXT": ""}
        words = iter(planted[key]["TEXT"])
        assert all(letter in words for letter in row["TEXT"].rstrip("\n"))  # every letter is there, in its order
    for file in (tmp_path / "plain").glob("*.csv"):
        if file.name != "NOTEEVENTS.csv":
            assert file.read_bytes() == (cohort / file.name).read_bytes()


def test_the_cohort_is_the_same_with_workers_and_compressed(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "two", 60, 0, identifiers=True, workers=2, compress=True)
    with gzip.open(tmp_path / "two" / "NOTEEVENTS.csv.gz") as file:
        assert file.read() == (cohort / "NOTEEVENTS.csv").read_bytes()
    assert _truth(tmp_path / "two") == _truth(cohort)


def test_traps_keep_their_texts_beside_identifiers(tmp_path: Path) -> None:
    write_cohort(tmp_path / "plain", 100, 0, traps=("all",))
    write_cohort(tmp_path / "planted", 100, 0, traps=("all",), identifiers=True)
    traps = json.loads((tmp_path / "plain" / "traps.json").read_text(encoding="utf-8"))
    rows = {str(row) for trap in traps.values() for row in trap["ROW_ID"].get("NOTEEVENTS", ())}
    plain, planted = _rows(tmp_path / "plain"), _rows(tmp_path / "planted")
    assert rows
    assert all(plain[row] == planted[row] for row in rows)


def test_recall_and_precision_on_the_cohort(cohort: Path) -> None:
    code, result = _run(cohort / "NOTEEVENTS.csv", "--truth", cohort / "identifiers.csv.gz")
    assert code == 0
    figures = result["truth"]
    everything = figures["all"]  # type: ignore[index]
    truth = _truth(cohort)
    assert everything["known"] == sum(row["HELD_OUT"] == "0" for row in truth)
    assert everything["held_out_known"] == sum(row["HELD_OUT"] == "1" for row in truth)
    low, high = everything["recall"]["interval"]
    assert low <= everything["recall"]["value"] <= high
    # Names that stand alone are beyond patterns, and so are formats that nobody wrote them for.
    assert 0.85 < everything["recall"]["value"] < 0.97
    assert everything["precision"]["value"] > 0.97
    assert everything["held_out_recall"]["value"] < 0.5
    for kind in ("date", "phone", "mrn", "ssn", "email"):
        assert figures[kind]["recall"]["value"] > 0.98, kind  # type: ignore[index]


def test_lists_find_names_that_patterns_miss(cohort: Path, tmp_path: Path) -> None:
    from clinstack.notes.cohort.identifier_pools import CITIES, FIRST_NAMES, LAST_NAMES

    names = [*FIRST_NAMES["F"], *FIRST_NAMES["M"], *LAST_NAMES]
    (tmp_path / "name.txt").write_text("\n".join(names), encoding="utf-8")
    (tmp_path / "address.txt").write_text("\n".join(CITIES), encoding="utf-8")
    recall = {}
    for engines in (("patterns",), ("patterns", f"lists:{tmp_path}")):
        truth = ScanTruth(cohort / "identifiers.csv.gz")
        scan([cohort / "NOTEEVENTS.csv"], ScanOptions(engines), judge=truth)
        recall[len(engines)] = truth.figures()["name"]["recall"]["value"]
    assert recall[1] < 0.9 < recall[2]


def _judged(path: Path, judge: ScanTruth) -> None:
    scan([path], judge=judge)
    judge.figures()


def test_truth_of_another_cohort_is_refused(cohort: Path, notes: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "other", 5, 1)
    for path in (notes, tmp_path / "other" / "NOTEEVENTS.csv"):
        judge = ScanTruth(cohort / "identifiers.csv.gz")
        with pytest.raises(InputError, match="were not scanned"):
            _judged(path, judge)
    with pytest.raises(InputError, match="is not the list"):
        ScanTruth(cohort / "NOTEEVENTS.csv")
