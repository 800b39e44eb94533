"""Preference pairs: out of a judge's scores, of grounding, of a table; read again, and refused where broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.evaluate.preferences import preference_metrics
from clinstack.files import read_json, write_json
from clinstack.notes.attrition import Attrition
from clinstack.notes.instructions import write_instructions
from clinstack.notes.preference_pairs import (
    REFERENCE,
    grounding_score,
    pairs_from_grounding,
    pairs_from_judge,
    read_answers,
)
from clinstack.notes.preference_table import pairs_from_table
from clinstack.notes.preferences import Preferences, preference_files, read_preferences
from clinstack.notes.prepared import prepared_folder
from clinstack.recipe import EvaluationRecipe

NOTE = "Admitted 2012-03-04 with pneumonia. Given 5 mg of warfarin."
SPLITS = {"p0": "train", "p1": "train", "p2": "validation", "p3": "test"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Instructions of four patients with two questions each; the second cannot be answered."""
    rows = [
        {
            "example_id": f"{patient}-{number}",
            "patient_id": patient,
            "note": f"{NOTE} Patient {patient}.",
            "question": "How much warfarin?" if number == 0 else "Which allergy?",
            "answer": "5 mg" if number == 0 else "The note does not mention allergies.",
            "task": "Question Answering",
            "answerable": number == 0,
        }
        for patient in SPLITS
        for number in range(2)
    ]
    with prepared_folder(tmp_path / "data") as prepared:
        write_instructions(
            prepared, pa.Table.from_pylist(rows), Attrition(), {"source": "t", "synthetic": True}, 0, SPLITS
        )
    return tmp_path / "data"


def write_run(folder: Path, data: Path, answers: dict[str, str], label: str = "base") -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"stage": "generate", "instructions": str(data)}))
    write_json(folder / "run.json", {"stage": "generate", "status": "done", "label": label})
    names = list(answers)
    table = {"example_id": names, "patient_id": [name[:2] for name in names], "answer": list(answers.values())}
    pq.write_table(pa.table(table), folder / "answers.parquet")
    return folder


def write_judge(
    folder: Path, data: Path, runs: Sequence[Path], scores: Sequence[tuple[str, str, int, int | None]]
) -> Path:
    folder.mkdir(parents=True)
    recipe = {"stage": "judge", "instructions": str(data), "answers": [str(run) for run in runs]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "run.json", {"stage": "judge", "status": "done", "label": None})
    columns = list(zip(*scores, strict=True))
    table = {
        "example_id": pa.array(columns[0]),
        "answers": pa.array(columns[1]),
        "order": pa.array(columns[2], pa.int64()),
        "score": pa.array(columns[3], pa.int64()),
        "parsed": pa.array([score is not None for score in columns[3]]),
    }
    pq.write_table(pa.table(table), folder / "scores.parquet")
    return folder


def steps(folder: Path) -> list[int]:
    return [step["kept"] for step in read_json(folder / "preferences" / "attrition.json")["steps"]]


# ---------------------------------------------------------------------- by a judge


def test_a_judge_prefers_the_answer_with_the_higher_mean_score(data: Path, tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", data, {"p0-0": "5 mg", "p1-0": "5 mg", "p2-0": "same", "p3-0": "5"}, "tuned")
    bad = write_run(tmp_path / "bad", data, {"p0-0": "none", "p1-0": "7 mg", "p2-0": "same", "p3-0": "9"})
    scores: list[tuple[str, str, int, int | None]] = [
        ("p0-0", "tuned", 0, 2), ("p0-0", "base", 0, 3), ("p0-0", "tuned", 1, 1), ("p0-0", "base", 1, 4),
        ("p1-0", "tuned", 0, 4), ("p1-0", "base", 0, 4), ("p1-0", "tuned", 1, 4), ("p1-0", "base", 1, 3),
        ("p2-0", "tuned", 0, 4), ("p2-0", "base", 0, 1),
        ("p3-0", "tuned", 0, 4), ("p3-0", "base", 0, None), ("p3-0", "base", 1, None),
    ]  # fmt: skip
    judge = write_judge(tmp_path / "judge", data, [good, bad], scores)
    result = pairs_from_judge(tmp_path / "out", judge)
    assert result["synthetic"] is True
    # p1-0 is half a grade apart, p3-0 has one answer without a grade, p2-0 has the same text twice.
    assert steps(tmp_path / "out") == [4, 3, 2, 1]
    pairs = read_preferences(tmp_path / "out", required=["train"])["train"]
    assert (pairs.example_ids, pairs.chosen, pairs.rejected) == (["p0-0"], ["none"], ["5 mg"])
    assert pairs.notes == [f"{NOTE} Patient p0."]
    row = pq.read_table(tmp_path / "out" / "preferences" / "preferences.parquet").to_pylist()[0]
    assert (row["chosen_from"], row["rejected_from"], row["margin"]) == ("base", "tuned", 2.0)
    assert pairs_from_judge(tmp_path / "wide", judge, margin=0.5)["counts"]["pairs"] == 2


def test_a_judge_of_runs_with_one_label_and_of_the_reference_is_understood(data: Path, tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", data, {"p0-0": "about 5"})
    second = write_run(tmp_path / "b", data, {"p0-0": "no"})
    labels = [f"base ({run.as_posix()})" for run in (first, second)]
    scores = [("p0-0", labels[0], 0, 3), ("p0-0", labels[1], 0, 1), ("p0-0", REFERENCE, 0, 4)]
    pairs_from_judge(tmp_path / "out", write_judge(tmp_path / "judge", data, [first, second], scores))
    pairs = read_preferences(tmp_path / "out", required=[])["train"]
    assert (pairs.chosen, pairs.rejected) == (["5 mg"], ["no"])
    strange = write_judge(tmp_path / "other", data, [first], [("p0-0", "tuned", 0, 3)])
    with pytest.raises(InputError, match="'tuned', which is no label"):
        pairs_from_judge(tmp_path / "none", strange)
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------------- by grounding


@pytest.mark.parametrize(
    ("answer", "answerable", "score"),
    [
        ("5 mg of warfarin on 4 March 2012", True, 1.0),
        ("7 mg of warfarin", True, 0.0),
        ("7 mg of heparin", None, -1.0),
        ("It helped.", True, None),
        ("The note does not mention allergies.", False, 1.0),
        ("The note does not mention allergies.", True, 0.0),
        ("The note does not mention allergies.", None, None),
        ("5 mg of warfarin", False, 0.0),
        ("7 mg of heparin", False, -1.0),
        ("It helped.", False, 0.0),
        ("5 mg of warfarin", None, 1.0),
    ],
)
def test_grounding_judges_what_it_can(answer: str, answerable: bool | None, score: float | None) -> None:
    assert grounding_score(answer, NOTE, answerable) == score


def test_grounded_answers_are_preferred_to_ungrounded_ones_and_splits_stay(data: Path, tmp_path: Path) -> None:
    first = {
        "p0-0": "7 mg", "p0-1": "Penicillin.", "p1-0": "It helped.", "p2-0": "5 mg", "p2-1": "", "p3-0": "5 mg",
    }  # fmt: skip
    second = {"p0-0": "5 mg", "p0-1": "The note does not say.", "p1-0": "7 mg", "p2-0": "5 mg.", "p3-0": "8 mg"}
    runs = [write_run(tmp_path / "a", data, first), write_run(tmp_path / "b", data, second)]
    pairs_from_grounding(tmp_path / "out", read_answers(runs))
    assert steps(tmp_path / "out") == [6, 4, 3, 3]
    splits = read_preferences(tmp_path / "out", required=["train", "test"])
    assert {split: rows.example_ids for split, rows in splits.items()} == {
        "train": ["p0-0", "p0-1"], "validation": [], "test": ["p3-0"]
    }  # fmt: skip
    assert splits["train"].chosen == ["5 mg", "The note does not say."]
    assert splits["train"].rejected == ["7 mg", "Penicillin."]
    # With the reference there is a grounded answer to p1-0 too.
    pairs_from_grounding(tmp_path / "more", read_answers(runs), reference=True)
    train = read_preferences(tmp_path / "more", required=[])["train"]
    assert train.example_ids == ["p0-0", "p0-1", "p1-0"]
    assert train.chosen[2] == "5 mg"


def test_the_same_seed_takes_the_same_of_equally_good_answers(data: Path, tmp_path: Path) -> None:
    texts = ["5 mg", "5 mg a day", "7 mg", "8 mg"]
    runs = [
        write_run(tmp_path / str(place), data, {f"{patient}-0": text for patient in SPLITS})
        for place, text in enumerate(texts)
    ]
    pairs_from_grounding(tmp_path / "one", read_answers(runs), seed=3)
    pairs_from_grounding(tmp_path / "two", read_answers(runs), seed=3)
    pairs_from_grounding(tmp_path / "other", read_answers(runs), seed=4)
    tables = [pq.read_table(tmp_path / name / "preferences" / "preferences.parquet") for name in ("one", "two")]
    assert tables[0].equals(tables[1])
    chosen = {
        (row["chosen"], row["rejected"])
        for name in ("one", "other")
        for row in pq.read_table(tmp_path / name / "preferences" / "preferences.parquet").to_pylist()
    }
    assert len(chosen) > 1


def test_answers_of_something_else_are_refused(data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data, {"strange": "5 mg"})
    with pytest.raises(InputError, match="the example strange of the answers is not in it"):
        pairs_from_grounding(tmp_path / "out", read_answers([run]))
    write_json(run / "run.json", {"stage": "generate", "status": "running", "label": "base"})
    with pytest.raises(InputError, match="not finished"):
        read_answers([run])
    write_json(run / "run.json", {"stage": "pretrain", "status": "done", "label": "base"})
    with pytest.raises(InputError, match="a Run of the stage pretrain"):
        read_answers([run])
    with pytest.raises(InputError, match=r"no run\.json"):
        read_answers([tmp_path])


def test_nothing_left_is_an_error_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data, {"p0-0": "5 mg"})
    with pytest.raises(InputError, match="No preference pair is left"):
        pairs_from_grounding(tmp_path / "out", read_answers([run]))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- a table


ROWS: list[dict[str, Any]] = [
    {"patient_id": 1, "prompt": "a?", "chosen": "yes", "rejected": "no"},
    {"patient_id": 1, "prompt": "b?", "chosen": "yes", "rejected": "yes "},
    {"patient_id": 2, "prompt": "", "chosen": "yes", "rejected": "no"},
    {"patient_id": 3, "prompt": "d?", "chosen": "yes", "rejected": "no"},
]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_table_of_pairs_becomes_a_folder(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs.{kind}"
    if kind == "csv":
        lines = ["patient_id,prompt,chosen,rejected", *(",".join(map(str, row.values())) for row in ROWS)]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    pairs_from_table(tmp_path / "out", path, seed=1)
    assert steps(tmp_path / "out") == [4, 3, 2]
    found = read_preferences(tmp_path / "out", required=[])
    rows = [row for split in found.values() for row in zip(split.patient_ids, split.prompts, split.chosen, strict=True)]
    assert sorted(rows) == [("1", "a?", "yes"), ("3", "d?", "yes")]
    assert preference_files(tmp_path / "out")[-1].name == "splits.parquet"


def test_a_table_with_other_names_is_read_and_one_without_patients_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"who": "x", "note": "n", "question": "q", "chosen": "a", "rejected": "b"}))
    with pytest.raises(InputError, match=r"column patient_id is missing.*Splits are by patient"):
        pairs_from_table(tmp_path / "out", path)
    pairs_from_table(tmp_path / "out", path, {"patient_id": "who"}, synthetic=True)
    assert read_json(tmp_path / "out" / "prepare.json")["synthetic"] is True
    rows = [rows for rows in read_preferences(tmp_path / "out", required=[]).values() if len(rows)]
    assert rows == [Preferences(["pair-1"], ["x"], ["n\n\nq"], ["a"], ["b"], ["n"], ["q"])]
    with pytest.raises(InputError, match="--column colour"):
        pairs_from_table(tmp_path / "out", path, {"colour": "x"})
    path.write_text("{broken")
    with pytest.raises(InputError, match="line 1: not JSON"):
        pairs_from_table(tmp_path / "out", path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rejected": ["b", ""]}, "row 2: rejected is empty"),
        ({"rejected": ["b", "a"]}, "row 2: chosen and rejected are the same"),
        ({"example_id": ["x", "x"]}, "row 2: the example_id x also stands in"),
        ({"note": ["n", None]}, "it has note without question"),
        ({"note": ["n", None], "question": ["q", "q"]}, "row 2: it has only one of note and question"),
        ({"patient_id": [1, 2]}, "the column patient_id holds int64"),
        ({"prompt": None}, "the column prompt is missing"),
    ],
)
def test_broken_tables_are_refused_with_the_row(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "example_id": ["x", "y"],
        "patient_id": ["p", "q"],
        "prompt": ["?", "?"],
        "chosen": ["a", "a"],
        "rejected": ["b", "b"],
    }
    columns = {name: values for name, values in (columns | change).items() if values is not None}
    (tmp_path / "preferences").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "preferences" / "preferences.parquet")
    with pytest.raises(InputError, match=says):
        read_preferences(tmp_path, required=[])


def test_a_required_split_without_pairs_is_refused(data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data, {"p0-0": "7 mg"})
    pairs_from_grounding(tmp_path / "out", read_answers([run]), reference=True)
    with pytest.raises(InputError, match="no pairs of validation patients"):
        read_preferences(tmp_path / "out", required=["train", "validation"])
    with pytest.raises(InputError, match=r"no preferences/\*\.parquet"):
        read_preferences(tmp_path / "data")


# ---------------------------------------------------------------------- the command line and the figures


def test_the_command_line_makes_pairs_and_says_what_it_left_out(data: Path, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", data, {"p0-0": "7 mg", "p1-0": "5 mg"}),
        write_run(tmp_path / "b", data, {"p0-0": "5 mg"}),
    ]
    out = tmp_path / "out"
    words = ["prepare", "preferences", "--out", str(out)]
    result = CliRunner().invoke(app, [*words, "--answers", str(runs[0]), "--answers", str(runs[1])])
    assert result.exit_code == 0, result.output
    assert "one of them grounded, one not: 1" in result.output
    assert "train: 1 pairs of 1 patients" in result.output
    wrong = CliRunner().invoke(app, words)
    assert isinstance(wrong.exception, InputError)
    wrong = CliRunner().invoke(app, [*words, "--answers", str(runs[0]), "--column", "prompt=x"])
    assert isinstance(wrong.exception, InputError)


def test_figures_are_means_over_pairs_with_intervals_over_patients() -> None:
    table = pa.table(
        {
            "patient_id": ["a", "a", "b", "c"],
            "chosen": [-1.0, -2.0, -3.0, -4.0],
            "rejected": [-2.0, -1.0, -4.0, -4.0],
            "reference_chosen": [-2.0, -2.0, -4.0, -4.0],
            "reference_rejected": [-1.0, -2.0, -4.0, -3.0],
            "chosen_tokens": [1, 2, 3, 4],
            "rejected_tokens": [1, 1, 2, 4],
            "divergence": [0.1, 0.2, 0.3, 0.4],
        }
    )
    found = preference_metrics(table, 0.1, EvaluationRecipe(resamples=200))
    assert (found["pairs"], found["patients"]) == (4, 3)
    assert found["prefers_chosen"]["before"]["value"] == pytest.approx((0 + 0.5 + 0.5 + 0) / 4)
    assert found["prefers_chosen"]["after"]["value"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found["prefers_chosen"]["difference"]["value"] == pytest.approx(0.375)
    assert found["prefers_chosen_per_token"]["after"]["value"] == pytest.approx((1 + 0.5 + 1 + 0.5) / 4)
    # Margins: 1 - (-1) = 2, 0 - 1 = -1, 1 - 0 = 1, 0 - (-1) = 1.
    assert found["reward_margin"]["value"] == pytest.approx(0.1 * 3 / 4)
    assert found["reward_accuracy"]["value"] == pytest.approx(0.75)
    assert found["log_ratio_per_token"]["chosen"]["value"] == pytest.approx(2 / 10)
    assert found["kl_per_token"]["value"] == pytest.approx(1 / 10)
    low, high = found["reward_margin"]["interval"]
    # The extreme resamples: patient a alone, and b or c alone.
    assert low == pytest.approx(0.05)
    assert high == pytest.approx(0.1)
    unknown = table.set_column(7, "divergence", pa.array([None] * 4, pa.float64()))
    assert preference_metrics(unknown, 0.1, EvaluationRecipe(resamples=200))["kl_per_token"]["value"] is None
