"""Reports of generate Runs: figures beside each other, bold only what holds, and no text of notes unless asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.evaluate.text import measure_answers
from clinstack.files import read_json, write_json
from clinstack.notes.instructions import Instructions
from clinstack.report.answers import NAMES
from clinstack.report.build import build_report
from clinstack.report.side_by_side import build_comparison
from fake_runs import write_run

TASKS = ("Named Entity Recognition", "Question Answering", "Temporal Information Extraction")
SECRET = "Zwiebelkuchen"
"""Stands in every answer and question: it must be in no file of a report without examples."""


def questions(count: int = 240) -> Instructions:
    places = range(count)
    answerable = [place % 5 != 4 for place in places]
    return Instructions(
        [f"e{place:03}" for place in places],
        [f"p{place // 3:03}" for place in places],
        [f"aspirin {place} mg since 2150-03-04, fever, cough" for place in places],
        [f"{SECRET}: what was given, question {place}?" for place in places],
        [
            f"{SECRET}, aspirin {place} mg" if answerable[place] else f"{SECRET}. The note does not mention it."
            for place in places
        ],
        [TASKS[place % 3] for place in places],
        answerable,
    )


def write_questions(folder: Path, rows: Instructions) -> Path:
    columns: dict[str, Any] = {
        "example_id": rows.example_ids,
        "patient_id": rows.patient_ids,
        "note": rows.notes,
        "question": rows.questions,
        "answer": rows.answers,
        "task": rows.tasks,
        "answerable": rows.answerable,
    }
    (folder / "instructions").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "instructions" / "instructions.parquet")
    patients = sorted(set(rows.patient_ids))
    pq.write_table(pa.table({"patient_id": patients, "split": ["test"] * len(patients)}), folder / "splits.parquet")
    return folder


def write_answers(folder: Path, data: Path, rows: Instructions, label: str, skill: float, **changes: Any) -> None:
    """Write a Run whose answers are right as often as ``skill`` says, and otherwise made up."""
    generator = np.random.default_rng(int(skill * 100))
    right = generator.random(len(rows)) < skill
    answers = [
        answer if right[place] else f"{SECRET} <b>heparin</b> | {place + 900} units"
        for place, answer in enumerate(rows.answers)
    ]
    write_run(folder, "generate", label, None, 1000 if label != "base" else 0, **changes)
    (folder / "recipe.yaml").write_text(f"stage: generate\ninstructions: {data}\nrun: {folder}\n")
    measures = measure_answers(rows, answers, "test", [False] * len(rows), [5] * len(rows))
    pq.write_table(measures, folder / "measures.parquet")
    columns = {"example_id": rows.example_ids, "patient_id": rows.patient_ids, "task": rows.tasks, "answer": answers}
    pq.write_table(pa.table({**columns, "split": ["test"] * len(rows)}), folder / "answers.parquet")


def write_ladder(root: Path, **changes: Any) -> Path:
    """Write a base, the same with two shots, a tuned stack, and one on top of it that is no better."""
    rows = questions()
    data = write_questions(root / "data", rows)
    for name, label, skill, shots in (
        ("zero", "base", 0.1, 0),
        ("few", "base", 0.3, 2),
        ("tuned", "clinical+instruct", 0.8, 0),
        ("aligned", "clinical+instruct+align", 0.81, 0),
    ):
        write_answers(root / "runs" / name, data, rows, label, skill, shots=shots, **changes)
    return root / "runs"


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ladder(tmp_path_factory.mktemp("ladder"))


def cells(markdown: str, title: str, row: str) -> dict[str, str]:
    """Return the cells of a row of a table of the Markdown report, by their heads."""
    lines = markdown.split(f"## {title}\n\n", 1)[1].split("\n\n", 1)[0].splitlines()
    head, line = lines[0], next(line for line in lines if line.startswith(f"| {row} |"))
    names, found = ([cell.strip() for cell in one.strip("|").split("|")] for one in (head, line))
    return dict(zip(names, found, strict=True))


def test_tables_bold_and_differences(ladder: Path, tmp_path: Path) -> None:
    paths = build_report(ladder, out=tmp_path, resamples=300)
    markdown, content = paths.markdown.read_text(), read_json(paths.json)
    rows = {row["answers"]: row for row in content["answers"]}
    assert list(rows) == ["Base, zero-shot", "Base, 2 shots", "clinical+instruct", "clinical+instruct+align"]
    tuned = cells(markdown, "Answers to questions about notes", "clinical+instruct")
    assert tuned["Token F1"].startswith(f"**{rows['clinical+instruct']['token_f1']['value']:.3f}**")
    base = cells(markdown, "Answers to questions about notes", "Base, zero-shot")
    assert "**" not in "".join(base.values())
    pairs = {(row["a"], row["b"]) for row in content["answer_differences"]}
    assert pairs == {
        ("Base, 2 shots", "Base, zero-shot"),
        ("clinical+instruct", "Base, zero-shot"),
        ("clinical+instruct+align", "Base, zero-shot"),
        ("clinical+instruct", "Base, 2 shots"),
        ("clinical+instruct+align", "Base, 2 shots"),
        ("clinical+instruct+align", "clinical+instruct"),
    }
    for row in content["answer_differences"]:
        if row["task"] == "all":
            shown = cells(markdown, "What training and prompting change", f"{row['a']} − {row['b']}")
            cell = shown[NAMES[row["metric"]]]
            assert cell.startswith("**") == row["holds"]
            assert f"{abs(row['value']):.3f}" in cell
    aligned = [row for row in content["answer_differences"] if row["a"].endswith("align")]
    assert any(row["holds"] for row in aligned)
    assert not any(row["holds"] for row in aligned if row["b"].endswith("instruct"))
    assert "**Question Answering**" in markdown
    assert "Synthetic patients, toy base model" in markdown
    assert {file.name for file in (tmp_path / "figures").glob("answers-*.svg")} == {
        "answers-token-f1.svg",
        "answers-grounding.svg",
    }
    assert "It is above “Base, zero-shot” in token F1, exact match, item F1, ROUGE-L, grounding and refusal" in markdown
    latex = (tmp_path / "tables" / "answers.tex").read_text()
    assert r"\textbf{" in latex
    assert r"Item F1" in latex


def test_nothing_of_the_notes_without_examples(ladder: Path, tmp_path: Path) -> None:
    build_report(ladder, out=tmp_path, resamples=50)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_examples_stand_beside_each_other(ladder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(ladder), "--out", str(tmp_path), "--examples", "4", "--json"])
    assert result.exit_code == 0, result.output
    html = (tmp_path / "report.html").read_text()
    table = html.split('id="answer-examples"')[1].split("</table>")[0]
    assert table.count('<th scope="row">') == 4
    assert {task for task in TASKS if f"({task})" in table} == set(TASKS)
    assert "&lt;b&gt;heparin" in table
    assert "<b>heparin" not in html
    heads = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert heads[:3] == ["Question", "Reference", "Base, zero-shot"]
    assert SECRET not in (tmp_path / "report.json").read_text()
    assert SECRET in (tmp_path / "tables" / "answer-examples.tex").read_text()
    build_report(ladder, out=tmp_path, resamples=50)
    assert not (tmp_path / "tables" / "answer-examples.tex").exists()


def test_real_patients_are_shown_only_when_asked_twice(tmp_path: Path) -> None:
    runs = write_ladder(tmp_path, synthetic=False)
    with pytest.raises(InputError, match="--with-note-text"):
        build_report(runs, resamples=50, examples=2)
    assert not (runs / "report.html").exists()
    paths = build_report(runs, resamples=50, examples=2, with_note_text=True)
    assert SECRET in paths.html.read_text()
    assert "Synthetic" not in paths.markdown.read_text()


def test_runs_of_other_questions_are_not_paired(tmp_path: Path) -> None:
    runs = write_ladder(tmp_path)
    rows = questions().chosen(range(60))
    write_answers(runs / "fewer", tmp_path / "data", rows, "clinical", 0.5)
    paths = build_report(runs, resamples=50)
    content = read_json(paths.json)
    assert "clinical" in {row["answers"] for row in content["answers"]}
    assert not any("clinical" in (row["a"], row["b"]) for row in content["answer_differences"])
    assert "“clinical”" in paths.markdown.read_text().split("##")[1]


def test_rows_of_the_same_name_say_their_folder(tmp_path: Path) -> None:
    rows = questions(60)
    data = write_questions(tmp_path / "data", rows)
    for name, skill in (("one", 0.2), ("two", 0.4)):
        write_answers(tmp_path / "runs" / name, data, rows, "instruct", skill)
    answers = read_json(build_report(tmp_path / "runs", resamples=50).json)["answers"]
    assert [row["answers"] for row in answers] == ["instruct (one)", "instruct (two)"]
    assert not read_json(tmp_path / "runs" / "report.json")["answer_differences"]


def test_folders_side_by_side_and_the_terminal(ladder: Path, tmp_path: Path) -> None:
    folders = [ladder / "zero", ladder / "tuned"]
    paths = build_comparison(folders, tmp_path, resamples=50)
    assert {row["run"] for row in read_json(paths.json)["answers"]} == {"zero", "tuned"}
    console = Console(record=True, width=80)
    paths.show(console)
    text = console.export_text()
    assert "Token F1" in text
    assert "…" not in text


def test_no_run_to_show(tmp_path: Path) -> None:
    write_run(tmp_path / "half", "generate", "base", None, 0, status="running")
    with pytest.raises(InputError, match="no finished run"):
        build_report(tmp_path)
    write_run(tmp_path / "broken", "generate", "base", None, 0)
    with pytest.raises(InputError, match=r"measures\.parquet is missing"):
        build_report(tmp_path)


def test_training_on_instructions_and_preferences_has_its_tables(tmp_path: Path) -> None:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.1, value + 0.1]}

    for name in ("one", "two"):
        write_run(tmp_path / name, "instruct", "clinical+instruct", None, 4096)
        both = {which: {"perplexity": estimate(value)} for which, value in (("base", 31.25), ("adapted", 2.5))}
        test = {**both, "ratio": estimate(12.5), "examples": 1234, "tokens": 5678}
        write_json(tmp_path / name / "metrics.json", {"test": test})
    write_run(tmp_path / "aligned", "align", "clinical+instruct+align", None, 4096)
    prefers = {"before": estimate(0.4), "after": estimate(0.75), "difference": estimate(0.35)}
    figures = {"prefers_chosen": prefers, "reward_accuracy": estimate(0.9), "pairs": 77}
    write_json(tmp_path / "aligned" / "metrics.json", {"validation_chosen": figures})
    markdown = build_report(tmp_path, resamples=50).markdown.read_text()
    row = cells(markdown, "How well the reference answers are predicted", "clinical+instruct (one)")
    assert row["Base"].startswith("31.2 (")
    assert row["Tuned"].startswith("2.50 (")
    assert (row["Answers"], row["Patients"]) == ("1,234", "test")
    row = cells(markdown, "Which answer of a pair is the likelier one", "clinical+instruct+align")
    assert row["Difference"].startswith("+0.350 (")
    assert (row["Pairs"], row["Patients"]) == ("77", "validation")
