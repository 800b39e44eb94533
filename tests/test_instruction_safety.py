"""Texts stay where they belong: what stages around instructions write, print and refuse holds no note and no answer.

Every note, question and answer has a mark. Tables and stores that are as confidential as Notes may hold it; logs,
metrics, records, recipes, stacks, reports, the terminal and error messages may not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clinstack.errors import ClinstackError
from clinstack.files import read_json, write_json
from clinstack.notes.splits import assign_splits
from clinstack.recipe import parse_recipe
from scripted_server import ScriptedServer

MARK = "zebra quartz lantern"
_OF_TEXTS = ("answers.parquet", "instructions.parquet", "preferences.parquet", "notes.parquet", "reports.csv")
"""Tables whose matter is text."""


def rows_of(patients: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "example_id": f"x{i:02d}",
            "patient_id": f"p{i:02d}",
            "note": f"{MARK}. Patient {i} was given aspirin {i + 10} mg.",
            "question": f"{MARK}: which dose of aspirin {i}?",
            "answer": f"{i + 10} mg ({MARK})",
            "task": ("Question Answering", "Summarization")[i % 2],
        }
        for i in range(patients)
    ]


def write_notes(folder: Path, rows: list[dict[str, Any]], splits: dict[str, str] | None = None) -> Path:
    """Write instructions, and the same texts as notes."""
    (folder / "instructions").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "instructions" / "instructions.parquet")
    (folder / "notes").mkdir()
    stays = [
        {
            **{"note_id": f"n{row['example_id']}", "patient_id": row["patient_id"], "encounter_id": None},
            **{"charttime": None, "note_type": "Discharge summary", "text": row["note"], "source": "test"},
        }
        for row in rows
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("note_id", "patient_id", "encounter_id")),
            ("charttime", pa.timestamp("us")),
            *((name, pa.string()) for name in ("note_type", "text", "source")),
        ]
    )
    pq.write_table(pa.Table.from_pylist(stays, schema), folder / "notes" / "notes.parquet")
    found = assign_splits(sorted({str(row["patient_id"]) for row in rows}), seed=0) if splits is None else splits
    pq.write_table(pa.table({"patient_id": list(found), "split": list(found.values())}), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "seed": 0})
    return folder


def may_hold_text(path: Path) -> bool:
    """Whether a file is as confidential as Notes: tables of texts, stores of replies, notes as tokens."""
    return path.name in _OF_TEXTS or ".sqlite" in path.name or "tokens" in path.parts


def content(path: Path) -> bytes:
    """Return what a file holds, also what a table holds in compressed pages."""
    raw = path.read_bytes()
    return raw + str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else raw


def files_with(text: str, root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file() and text.encode() in content(path)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ScriptedServer]]:
    started: list[ScriptedServer] = []

    def start(**settings: Any) -> ScriptedServer:
        one = ScriptedServer(tmp_path / f"ledger-{len(started)}", **settings)
        one.__enter__()
        started.append(one)
        return one

    yield start
    for one in started:
        one.__exit__(None, None, None)


def grades(body: dict[str, Any]) -> str:
    """Answer as a judge does that quotes the note."""
    shown = body["messages"][-1]["content"].count(" Begin]\n") - 2  # without the note's and the instruction's
    return " ".join("34"[at % 2] for at in range(shown)) + f"\nThe note says {MARK}."


def instruct_recipe(base: Path, data: Path, run: Path, **changes: Any) -> dict[str, Any]:
    return {
        **{"stage": "instruct", "run": str(run), "base": str(base), "instructions": str(data), "max_tokens": 256},
        **{"answer_tokens": 32, "adapters": [{"name": "instruct", "rank": 2}], "evaluation": {"resamples": 100}},
        "training": {"max_steps": 2, "batch_size": 4, "checkpoint_every": 1},
        "prompt": {"template": str(run.parent / "prompt.txt")},
        **changes,
    }


def generate_recipe(data: Path, run: Path, **changes: Any) -> dict[str, Any]:
    return {
        **{"stage": "generate", "run": str(run), "instructions": str(data), "evaluation": {"resamples": 100}},
        "decoding": {"max_new_tokens": 24, "temperature": 1.0},
        **changes,
    }


def judge_recipe(data: Path, run: Path, url: str, answers: list[Path], **changes: Any) -> dict[str, Any]:
    return {
        **{"stage": "judge", "run": str(run), "instructions": str(data), "answers": [str(path) for path in answers]},
        **{"reference": True, "evaluation": {"resamples": 100}},
        "endpoint": {"base_url": url, "model": "scripted", "retries": 0, "backoff": 0.01},
        **changes,
    }


def run_stage(values: dict[str, Any]) -> None:
    import importlib

    module = importlib.import_module(f"clinstack.stages.{values['stage']}")
    getattr(module, values["stage"])(parse_recipe(values, "test"))


@pytest.mark.slow
def test_what_the_stages_write_and_print(
    tiny_base: Path, server: Callable[..., ScriptedServer], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_notes(tmp_path / "data", rows_of())
    (tmp_path / "prompt.txt").write_text("{note} Q: {question} A:", encoding="utf-8")
    run_stage(instruct_recipe(tiny_base, data, tmp_path / "tuned"))
    run_stage(generate_recipe(data, tmp_path / "by-tuned", stack=str(tmp_path / "tuned")))
    few = {"template": str(tmp_path / "prompt.txt"), "shots": 1}
    run_stage(generate_recipe(data, tmp_path / "by-base", base=str(tiny_base), prompt=few))
    judged = [tmp_path / "by-base", tmp_path / "by-tuned"]
    run_stage(judge_recipe(data, tmp_path / "judged", server(answer=grades).base_url, judged))

    from clinstack.report.build import build_report

    build_report(tmp_path, tmp_path / "report")
    with_mark = files_with(MARK, tmp_path)
    assert {path.name for path in with_mark} >= {"instructions.parquet", "notes.parquet", "replies.sqlite"}
    assert [path for path in with_mark if not may_hold_text(path)] == []
    assert read_json(tmp_path / "judged" / "metrics.json")["counts"]["unparsed"] == 0
    # What a model wrote is in the table of answers alone, and only its owner can read that.
    for run in judged:
        table = run / "answers.parquet"
        assert table.stat().st_mode & 0o077 == 0
        long = [text for text in pq.read_table(table)["answer"].to_pylist() if len(text.strip()) > 12]
        assert long
        for text in long:
            spread = [path for path in files_with(text.strip(), tmp_path) if not may_hold_text(path)]
            assert spread == [], "an answer stands in another file"
    printed = "".join(capfd.readouterr())
    assert "Judging" in printed
    assert MARK not in printed


def test_what_synthesis_writes_and_prints(
    server: Callable[..., ScriptedServer], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also when the server answers with errors that quote the prompt, as some do."""
    words = " ".join(f"word{i}" for i in range(80))
    reports = "\n".join(f'"{MARK} case {i}: {words} {i * 7}"' for i in range(6))
    (tmp_path / "reports.csv").write_text(f"text\n{reports}\n", encoding="utf-8")
    # 400 is for good, and is met first by every request of a share of them.
    url = server(troubles=("400", "500", "broken"), share=0.4).base_url
    settings = [f"endpoint.base_url={url}", "endpoint.model=scripted", "endpoint.backoff=0.01", "endpoint.retries=1"]
    gates = ["gates.near_duplicates=null", "gates.phrases=false"]
    notes, made = str(tmp_path / "notes"), str(tmp_path / "made")
    from typer.testing import CliRunner

    from clinstack.cli import app

    first = CliRunner().invoke(
        app, ["synthesize", "notes", str(tmp_path / "reports.csv"), "--out", notes, *settings, *gates]
    )
    second = CliRunner().invoke(app, ["synthesize", "instructions", notes, "--out", made, *settings, *gates])
    printed = "".join(capfd.readouterr()) + first.output + second.output
    assert (first.exit_code, second.exit_code) == (0, 0)
    for result in (first, second):
        assert MARK not in str(result.exception)
    assert MARK not in printed
    with_mark = files_with(MARK, tmp_path)
    assert {path.name for path in with_mark} >= {"notes.parquet", "instructions.parquet"}
    assert [path for path in with_mark if not may_hold_text(path)] == []


def test_a_server_that_quotes_the_prompt_in_its_errors(
    tiny_base: Path, server: Callable[..., ScriptedServer], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_notes(tmp_path / "data", rows_of())
    answers = write_answers(tmp_path / "answers", rows_of(), data)
    for code in ("400", "401", "404", "500"):
        url = server(troubles=(code,), times=-1).base_url
        with pytest.raises(ClinstackError) as caught:
            run_stage(judge_recipe(data, tmp_path / f"judged-{code}", url, [answers]))
        assert MARK not in str(caught.value), code
    assert MARK not in "".join(capfd.readouterr())
    assert [path for path in files_with(MARK, tmp_path) if not may_hold_text(path)] == []


def write_answers(folder: Path, rows: list[dict[str, Any]], data: Path) -> Path:
    from clinstack.files import sha256_file

    folder.mkdir()
    names = ("example_id", "patient_id", "answer")
    pq.write_table(
        pa.Table.from_pylist([{name: row[name] for name in names} for row in rows]), folder / "answers.parquet"
    )
    table = data / "instructions" / "instructions.parquet"
    facts = {"stage": "generate", "status": "done", "label": "base", "inputs": {"table": sha256_file(table)}}
    write_json(folder / "run.json", facts)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"instructions": str(data)}), encoding="utf-8")
    return folder


def twice(rows: list[dict[str, Any]]) -> None:
    rows[1]["example_id"] = rows[0]["example_id"]


def without_answer(rows: list[dict[str, Any]]) -> None:
    rows[3]["answer"] = ""


def without_note(rows: list[dict[str, Any]]) -> None:
    rows[3]["note"] = None


@pytest.mark.parametrize("spoil", [twice, without_answer, without_note])
def test_refused_instructions_are_not_quoted(
    spoil: Callable[[list[dict[str, Any]]], None], tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of()
    spoil(rows)
    data = write_notes(
        tmp_path / "data", rows, {f"p{i:02d}": ("train", "validation", "test")[i % 3] for i in range(40)}
    )
    answers = write_answers(tmp_path / "answers", rows_of(), data)
    (tmp_path / "prompt.txt").write_text("{note} Q: {question} A:", encoding="utf-8")
    for values in (
        instruct_recipe(tiny_base, data, tmp_path / "tuned"),
        generate_recipe(data, tmp_path / "generated", base=str(tiny_base)),
        judge_recipe(data, tmp_path / "judged", "http://127.0.0.1:9/v1", [answers]),
    ):
        with pytest.raises(ClinstackError) as caught:
            run_stage(values)
        assert MARK not in str(caught.value), values["stage"]
    assert MARK not in "".join(capfd.readouterr())
    assert [path for path in files_with(MARK, tmp_path) if not may_hold_text(path)] == []


def test_refused_human_grades_are_not_quoted(tmp_path: Path) -> None:
    data = write_notes(tmp_path / "data", rows_of())
    answers = write_answers(tmp_path / "answers", rows_of(), data)
    for row in (f"x00,base,{MARK}", f"x00,{MARK},4", f"{MARK},base,4", f"x00,base,4\nx00,base,{MARK}"):
        (tmp_path / "people.csv").write_text(f"example_id,answers,score\n{row}\n", encoding="utf-8")
        values = judge_recipe(data, tmp_path / "judged", "http://127.0.0.1:9/v1", [answers])
        with pytest.raises(ClinstackError) as caught:
            run_stage(values | {"human": str(tmp_path / "people.csv")})
        assert MARK not in str(caught.value), row


@pytest.mark.slow
def test_a_traceback_of_the_command_line_shows_no_text(tmp_path: Path) -> None:
    """As a process, so that whatever libraries print is seen too."""
    rows = rows_of()
    twice(rows)
    data = write_notes(
        tmp_path / "data", rows, {f"p{i:02d}": ("train", "validation", "test")[i % 3] for i in range(40)}
    )
    command = [sys.executable, "-m", "clinstack", "generate", f"run={tmp_path / 'run'}", f"instructions={data}"]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120, check=False)
    assert found.returncode == 2
    assert "x00" in found.stderr
    assert "Traceback" not in found.stderr
    assert MARK not in found.stdout + found.stderr
