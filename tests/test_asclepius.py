"""`clinstack prepare asclepius`: the released table and similar ones to instructions."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.notes.asclepius.filters import PHRASES
from clinstack.notes.asclepius.prepare import AsclepiusOptions, prepare_asclepius
from clinstack.notes.asclepius.tables import parse_columns
from clinstack.notes.instructions import COLUMNS, TASKS, read_instructions
from clinstack.notes.read import read_notes
from clinstack.notes.splits import assign_splits

RELEASED = ("patient_id", "note", "question", "answer", "task")


def table(patients: int = 20) -> list[dict[str, Any]]:
    """Three rows about the one note of each patient; notes have line ends, commas and quotes."""
    return [
        {
            "patient_id": str(100 + patient),
            "note": f'Discharge Summary:\n\nPatient {patient}, "stable", bp 1{patient:02}/70.',
            "question": f"Question {number}?",
            "answer": f"Answer {number} of {patient}.",
            "task": TASKS[(patient + number) % 8],
        }
        for patient in range(patients)
        for number in range(3)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def prepared(source: Path, out: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    facts = prepare_asclepius(source, out, AsclepiusOptions(**options))
    return facts, pq.read_table(out / "instructions" / "instructions.parquet").to_pylist()


def steps(out: Path) -> dict[str, int]:
    return {step["step"]: step["removed"] for step in read_json(out / "instructions" / "attrition.json")["steps"]}


def test_every_kind_of_file_gives_the_same_table(tmp_path: Path) -> None:
    rows = table()
    sources = [
        write_csv(tmp_path / "a.csv", rows),
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_jsonl(tmp_path / "a.jsonl.gz", rows),
        tmp_path / "a.parquet",
        tmp_path / "folder",
    ]
    pq.write_table(pa.Table.from_pylist(rows), sources[3])
    sources[4].mkdir()
    write_csv(sources[4] / "1.csv", rows[:30])
    write_jsonl(sources[4] / "2.jsonl", rows[30:])
    (sources[4] / "README.md").write_text("nothing to read")
    tables = []
    for number, source in enumerate(sources):
        facts, found = prepared(source, tmp_path / f"out{number}")
        tables.append(found)
        assert facts["license"].startswith("cc-by-nc-sa-4.0")
        assert not facts["patients_are_notes"]
    assert all(found == tables[0] for found in tables)
    assert [{name: row[name] for name in RELEASED} for row in tables[0]] == rows
    assert len({row["example_id"] for row in tables[0]}) == 60


def test_splits_notes_and_sheet(tmp_path: Path) -> None:
    facts, _ = prepared(write_csv(tmp_path / "a.csv", table()), tmp_path / "out", seed=5, synthetic=True)
    split_of = assign_splits([str(100 + patient) for patient in range(20)], seed=5)
    for split, part in read_instructions(tmp_path / "out").items():
        assert {split_of[patient] for patient in part.patient_ids} == {split}
    notes = read_notes(tmp_path / "out", ["Discharge summary"])
    assert sum(len(part.texts) for part in notes.values()) == facts["counts"]["notes"] == 20
    assert {split_of[patient] for patient in notes["test"].patient_ids} == {"test"}
    assert facts["tables"] == {str(tmp_path / "a.csv"): sha256_file(tmp_path / "a.csv")}
    assert facts["synthetic"]
    assert "cc-by-nc-sa-4.0" in (tmp_path / "out" / "DATASHEET.md").read_text(encoding="utf-8")


def test_attrition(tmp_path: Path) -> None:
    """Empty fields and duplicates go; what looks like a duplicate and differs stays."""
    rows = table()
    rows[0]["answer"] = "  "
    rows[1]["patient_id"] = ""
    rows += [dict(rows[5]), {**rows[5], "answer": "Another answer."}]
    _, found = prepared(write_csv(tmp_path / "a.csv", rows), tmp_path / "out")
    assert steps(tmp_path / "out") == {
        "rows": 0,
        "note, question and answer filled": 1,
        "patient filled": 1,
        "not an exact duplicate": 1,
    }
    assert len(found) == 59
    assert found[-1]["answer"] == "Another answer."


def test_published_filters(tmp_path: Path) -> None:
    rows = table()
    for row, phrase in zip(rows, PHRASES, strict=False):
        row["answer"] = f"As {phrase.upper()}, I cannot say."
    rows[20]["question"] = "What does the Model say?"
    rows[21]["note"] += " a clinical language"
    rows[22]["answer"] = "Do you mean the dose? "
    rows[23]["answer"] = "The modelling clay? No."
    _, unfiltered = prepared(write_csv(tmp_path / "a.csv", rows), tmp_path / "all")
    _, found = prepared(tmp_path / "a.csv", tmp_path / "out", filters=True)
    assert len(unfiltered) == 60
    removed = steps(tmp_path / "out")
    # "the model" is also the beginning of "the modelling": the published filter looks for letters, not for words.
    assert removed["no phrase in which a model speaks of itself"] == len(PHRASES) + 3
    assert removed["answer is no question"] == 1
    assert len(found) == 60 - len(PHRASES) - 4


def test_similar_table(tmp_path: Path) -> None:
    """Mapped columns; without patients each distinct note is one; tasks are filled in and spelled as usual."""
    rows = [{"Text": row["note"], "q": row["question"], "a": row["answer"]} for row in table()]
    columns = parse_columns(["note=text", "question=q", "answer=a"])
    facts, found = prepared(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", columns=columns, task="QA")
    assert facts["patients_are_notes"]
    assert facts["license"] is None
    assert {row["task"] for row in found} == {"QA"}
    by_note = {row["note"]: row["patient_id"] for row in found}
    assert len(set(by_note.values())) == len(by_note) == 20
    rows = [{"kind": row["task"].lower(), "id": f"r{n}", **row} for n, row in enumerate(table())]
    columns = parse_columns(["task=kind", "example_id=id"])
    _, named = prepared(write_csv(tmp_path / "b.csv", rows), tmp_path / "named", columns=columns, license="ours")
    assert [row["task"] for row in named] == [row["task"] for row in table()]
    assert [row["example_id"] for row in named] == [f"r{n}" for n in range(60)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["note"], "it has the form note=NAME"),
        (["notes=text"], "notes is none of note, question.*Did you mean note"),
        (["note=a", "note=b"], "named twice"),
    ],
)
def test_wrong_column_words(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_columns(words)


def test_wrong_sources(tmp_path: Path) -> None:
    def refused(source: Path, message: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            prepared(source, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    rows = table()
    refused(tmp_path / "none.csv", "no such file or folder")
    refused(tmp_path, "has no file that ends in")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "it must end in .csv")
    write_csv(tmp_path / "short.csv", [{"note": "n", "query": "q", "answer": "a"}])
    refused(tmp_path / "short.csv", "has no column question.*--column question=NAME")
    refused(tmp_path / "short.csv", "has no column quer.*Did you mean query", columns={"question": "quer"})
    broken = write_jsonl(tmp_path / "broken.jsonl", rows)
    broken.write_text(broken.read_text() + '{"note": "n", \n')
    refused(broken, "broken.jsonl, line 61: not JSON")
    broken.write_text('["n"]\n')
    refused(broken, "line 1: not an object")
    write_jsonl(broken, [{**rows[0], "answer": ["a"]}])
    refused(broken, "line 1: answer is no text")
    broken.write_bytes(b"")
    refused(broken, "is empty")
    (tmp_path / "two").mkdir()
    write_csv(tmp_path / "two" / "1.csv", rows)
    write_csv(tmp_path / "two" / "2.csv", [{k: v for k, v in row.items() if k != "task"} for row in rows])
    refused(tmp_path / "two", "differ: only one has task")
    write_csv(tmp_path / "ids.csv", [{**row, "example_id": "same"} for row in rows])
    refused(tmp_path / "ids.csv", "the example_id same stands in two rows")
    write_csv(tmp_path / "empty.csv", [{**rows[0], "note": ""}])
    refused(tmp_path / "empty.csv", "No instruction is left")


def test_command(tmp_path: Path) -> None:
    rows = [{name: row[name] for name in ("note", "question", "answer")} for row in table()]
    write_csv(tmp_path / "a.csv", rows)
    command = ["prepare", "asclepius", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "each distinct note was taken for a patient" in words
    assert "every row is Question Answering" in words
    assert "60 instructions of 20 patients" in words
    assert pq.read_schema(tmp_path / "out" / "instructions" / "instructions.parquet").names == [*COLUMNS, "source"]
