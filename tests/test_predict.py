"""Predictions for tables: the same scores as evaluation, whatever the parts, the processes, and who was killed when."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.evaluate.classification import SplitScores, fit_on_validation
from clinstack.files import read_json
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.notes.text_tables import TextTable
from clinstack.recipe import EvaluateRecipe, PredictRecipe, parse_recipe
from clinstack.stages.evaluate import evaluate
from clinstack.stages.predict import predict
from test_distributed import DDP, FSDP, LAUNCHER, call_clinstack, free_port
from tiny_notes import CANARY, TASKS

ROWS = 90
WORDS = ("sepsis", "stable", "in shock", "chest pain", "ward", CANARY, "shortness of breath", "admitted")


def save_stack(
    base: Path, folder: Path, perturbed: Callable[..., Stack], task: str = "mortality", **reading: Any
) -> Path:
    """A stack as if it had been trained, with a calibration that has bands."""
    from clinstack.recipe import AdapterRecipe

    stack = perturbed(Stack.build(str(base), [AdapterRecipe(name="task", rank=2, alpha=4)], TASKS[task]))
    stack.reading = Reading(**{"max_tokens": 24, **reading})
    rng = np.random.default_rng(0)
    classes = len(TASKS[task].classes)
    labels: list[Any] = rng.integers(0, classes, 60).tolist()
    if task == "diagnoses":
        labels = [[TASKS[task].classes[label]] for label in labels]
    scores = SplitScores(labels, rng.normal(size=(60, classes)), [f"p{row}" for row in range(60)])
    stack.calibration = fit_on_validation(TASKS[task], scores)
    stack.save(folder)
    return folder


@pytest.fixture(scope="module")
def stack(tiny_base: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stack(tiny_base, tmp_path_factory.mktemp("stacks") / "mortality", perturbed)


def rows_of(count: int = ROWS) -> list[dict[str, str]]:
    """Notes of very different lengths."""
    rng = np.random.default_rng(1)
    return [
        {
            "visit": f"v{row:04d}",
            "person": f"p{row // 3}",
            "report": " ".join(rng.choice(WORDS, size=int(rng.integers(1, 14)))) + ',\n"quoted"',
        }
        for row in range(count)
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet table whose row groups do not fit the parts."""
    file = tmp_path_factory.mktemp("tables") / "reports.parquet"
    pq.write_table(pa.Table.from_pylist(rows_of()), file, row_group_size=37)
    return file


COLUMNS = {"id_column": "visit", "text_column": "report", "patient_column": "person"}


def recipe_of(run: Path, stack: Path, **changes: Any) -> PredictRecipe:
    recipe = parse_recipe({"run": str(run), "stack": str(stack)} | changes, "test", "predict")
    assert isinstance(recipe, PredictRecipe)
    return recipe


def predicted(run: Path, stack: Path, **changes: Any) -> pa.Table:
    return pq.read_table(predict(recipe_of(run, stack, **changes)).folder / "predictions.parquet")


def scores_of(table: pa.Table) -> np.ndarray:
    return np.array(table["score"].to_pylist())


@pytest.fixture(scope="module")
def straight(stack: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Run of the table in parts of 8 rows, never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    return predict(recipe_of(run, stack, table=str(table), rows_per_part=8, **COLUMNS)).folder


# ---------------------------------------------------------------------- what is predicted


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("reading", [{}, {"keep": "chunks", "chunk_overlap": 4}, {"keep": "sections"}])
def test_scores_are_those_of_evaluation(
    tiny_base: Path,
    tiny_notes: Path,
    perturbed: Callable[..., Stack],
    tmp_path: Path,
    task: str,
    reading: dict[str, Any],
) -> None:
    folder = save_stack(tiny_base, tmp_path / "stack", perturbed, task, **reading)
    examples = str(tiny_notes / "examples" / task)
    recipe = parse_recipe(
        {"run": str(tmp_path / "e"), "stack": str(folder), "examples": examples, "evaluation": {"resamples": 100}},
        "test",
        "evaluate",
    )
    assert isinstance(recipe, EvaluateRecipe)
    measured = pq.read_table(evaluate(recipe).folder / "predictions.parquet")
    found = predicted(tmp_path / "p", folder, examples=examples, split="test", rows_per_part=5)
    assert found["example_id"].to_pylist() == measured["example_id"].to_pylist()
    assert found["patient_id"].to_pylist() == measured["patient_id"].to_pylist()
    np.testing.assert_allclose(scores_of(found), scores_of(measured), atol=1e-6)


def test_a_table_of_predictions_has_probabilities_intervals_and_tokens(straight: Path, stack: Path) -> None:
    from clinstack.evaluate.calibration import apply_calibration, calibration_intervals

    found = pq.read_table(straight / "predictions.parquet")
    assert found["example_id"].to_pylist() == [row["visit"] for row in rows_of()]
    assert found["patient_id"].to_pylist() == [row["person"] for row in rows_of()]
    fitted = read_json(stack / "calibration.json")
    expected = apply_calibration(TASKS["mortality"], scores_of(found), fitted)
    np.testing.assert_allclose(np.array(found["probability"].to_pylist()), expected, atol=1e-6)
    intervals = calibration_intervals(TASKS["mortality"], scores_of(found), fitted)
    assert intervals is not None
    for place, name in enumerate(("interval_low", "interval_high")):
        np.testing.assert_allclose(np.array(found[name].to_pylist()), intervals[..., place], atol=1e-6)
    tokenizer = Stack.load(stack).tokenizer
    for row, tokens, cut in zip(rows_of(), found["tokens"].to_pylist(), found["cut_tokens"].to_pylist(), strict=True):
        whole = len(tokenizer(row["report"])["input_ids"])
        assert (tokens, cut) == (min(whole, 24), max(0, whole - 24))
    metrics = read_json(straight / "metrics.json")
    assert metrics["rows"] == ROWS
    assert metrics["tokens"]["cut"] == sum(found["cut_tokens"].to_pylist())
    assert metrics["calibration"] == "isotonic"
    assert metrics["intervals"]
    assert sum(metrics["mean_probability"].values()) == pytest.approx(1, abs=1e-5)
    record = read_json(straight / "run.json")
    assert record["rows_per_second"] > 0
    assert record["task"] == "mortality"
    assert not (straight / "parts").exists()


def test_parts_do_not_change_the_scores(straight: Path, stack: Path, table: Path, tmp_path: Path) -> None:
    known = pq.read_table(straight / "predictions.parquet")
    for rows in (1, 37, 1000):
        found = predicted(tmp_path / str(rows), stack, table=str(table), rows_per_part=rows, **COLUMNS)
        np.testing.assert_allclose(scores_of(found), scores_of(known), atol=1e-5)
        rest = [name for name in found.column_names if name not in {"score", "probability"} and "interval" not in name]
        assert found.select(rest) == known.select(rest)


def test_csv_parquet_and_folders_of_either_are_read_alike(straight: Path, stack: Path, tmp_path: Path) -> None:
    rows = rows_of()
    plain, packed = tmp_path / "reports.csv", tmp_path / "reports.csv.gz"
    with plain.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, part in (("1.parquet", rows[:50]), ("2.parquet", rows[50:])):
        # As dictionaries, as a column of few values is often written.
        texts = pa.Table.from_pylist(part)
        texts = texts.set_column(2, "report", texts["report"].dictionary_encode())
        pq.write_table(texts, folder / name)
    expected = (straight / "predictions.parquet").read_bytes()
    for source in (plain, packed, folder):
        run = predict(recipe_of(tmp_path / f"run-{source.name}", stack, table=str(source), rows_per_part=8, **COLUMNS))
        assert (run.folder / "predictions.parquet").read_bytes() == expected, source


def test_notes_are_read_by_their_ids(stack: Path, tiny_notes: Path, tmp_path: Path) -> None:
    found = predicted(tmp_path / "run", stack, notes=str(tiny_notes))
    notes = pq.read_table(tiny_notes / "notes" / "notes.parquet")
    assert found["example_id"].to_pylist() == notes["note_id"].to_pylist()
    assert found["patient_id"].to_pylist() == notes["patient_id"].to_pylist()
    assert read_json(tmp_path / "run" / "run.json")["synthetic"] is True


def test_a_stack_without_calibration_gives_its_own_probabilities(
    tiny_base: Path, table: Path, perturbed: Callable[..., Stack], tmp_path: Path
) -> None:
    folder = save_stack(tiny_base, tmp_path / "stack", perturbed)
    (folder / "calibration.json").unlink()
    found = predicted(tmp_path / "run", folder, table=str(table), **COLUMNS)
    expected = torch.softmax(torch.tensor(scores_of(found)), dim=1).numpy()
    np.testing.assert_allclose(np.array(found["probability"].to_pylist()), expected, atol=1e-6)
    assert "interval_low" not in found.column_names
    assert read_json(tmp_path / "run" / "metrics.json")["calibration"] == "none"
    with pytest.raises(InputError, match="no temperature fit; use calibration=none"):
        predict(recipe_of(tmp_path / "other", folder, table=str(table), calibration="temperature", **COLUMNS))


def test_no_text_is_written(straight: Path) -> None:
    for file in straight.rglob("*"):
        if file.is_file():
            assert CANARY.split()[0].encode() not in file.read_bytes(), file


# ---------------------------------------------------------------------- what is wrong with a table


def write(tmp_path: Path, **columns: list[Any]) -> Path:
    file = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file


GOOD = {"example_id": ["a", "b", "c"], "text": ["one", "two", "three"]}


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (GOOD | {"example_id": ["a", "b", "a"]}, {}, r"row 3: its example_id stands in .* row 1 already"),
        (GOOD | {"example_id": ["a", None, "c"]}, {}, "row 2: the column example_id is empty; give every row an id"),
        (GOOD | {"text": ["one", "two", None]}, {}, "row 3: the column text is empty; empty_text=leave_out"),
        (GOOD | {"text": ["one", "", "three"]}, {}, "row 2: the column text is empty; empty_text=leave_out"),
        (GOOD | {"text": [1, 2, 3]}, {}, "text_column: the column text of .* holds int64, no text"),
        (GOOD | {"text": [b"one", b"\xff", b"three"]}, {}, "row 2: column text is not UTF-8"),
        (GOOD, {"text_column": "txt"}, "text_column: .* has no column txt. Did you mean text"),
        (GOOD, {"id_column": "zzz"}, "id_column: .* has no column zzz. It has example_id, text"),
        (GOOD, {"id_column": "text"}, "name a column of its own for each"),
        ({"example_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, {}, "has no rows"),
    ],
)
def test_a_wrong_table_is_refused_and_nothing_is_written(
    stack: Path, tmp_path: Path, columns: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, **columns)
    with pytest.raises(InputError, match=message):
        predict(recipe_of(tmp_path / "run", stack, table=str(file), **changes))
    assert not (tmp_path / "run").exists()


def test_rows_without_text_are_read_or_left_out_when_asked_for(stack: Path, tmp_path: Path) -> None:
    file = write(tmp_path, **(GOOD | {"text": ["one", None, ""]}))
    found = predicted(tmp_path / "out", stack, table=str(file), empty_text="leave_out", rows_per_part=2)
    assert found["example_id"].to_pylist() == ["a"]
    assert read_json(tmp_path / "out" / "metrics.json")["rows_left_out"] == 2
    whole = predicted(tmp_path / "read", stack, table=str(file), empty_text="read")
    assert whole["example_id"].to_pylist() == ["a", "b", "c"]
    assert whole["score"][1] == whole["score"][2]


def test_numbers_are_ids_too(stack: Path, tmp_path: Path) -> None:
    found = predicted(tmp_path / "run", stack, table=str(write(tmp_path, **(GOOD | {"example_id": [7, 8, 9]}))))
    assert found["example_id"].to_pylist() == ["7", "8", "9"]
    assert found["patient_id"].to_pylist() == [None] * 3


def test_a_language_model_is_refused(clinical: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a language model without a task and gives no scores"):
        predict(recipe_of(tmp_path / "run", clinical, table=str(table), **COLUMNS))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give one of table"),
        ({"table": "a.csv", "notes": "b"}, "give one of table"),
        ({"notes": "b", "text_column": "x"}, "text_column: Notes have their own columns"),
        ({"table": "a.csv", "split": "test"}, "split: it chooses among a task's examples"),
    ],
)
def test_a_recipe_names_one_source(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(Path("run"), Path("stack"), **values)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.parquet", "does not exist"), ("notes.xlsx", r"is no .parquet, .csv, .csv.gz"), ("mixed", "of one kind")],
)
def test_what_is_no_table_is_refused(stack: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.xlsx").write_text("x")
    (tmp_path / "mixed").mkdir()
    for file in ("a.csv", "b.parquet"):
        (tmp_path / "mixed" / file).write_text("x")
    with pytest.raises(InputError, match=message):
        TextTable.of(recipe_of(tmp_path / "run", stack, table=str(tmp_path / name)))


def test_the_command_line_predicts_and_validates(stack: Path, table: Path, tmp_path: Path) -> None:
    arguments = [f"run={tmp_path / 'run'}", f"stack={stack}", f"table={table}", "id_column=visit"]
    wrong = CliRunner().invoke(app, ["validate", "stage=predict", *arguments])
    assert isinstance(wrong.exception, InputError)
    assert "has no column text" in str(wrong.exception)
    arguments.append("text_column=report")
    good = CliRunner().invoke(app, ["validate", "stage=predict", *arguments])
    assert "The recipe is good: predict" in good.output
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(app, ["predict", *arguments])
    assert result.exit_code == 0, result.output
    assert f"rows: {ROWS}" in result.output
    again = CliRunner().invoke(app, ["predict", *arguments, "--json"])
    assert json.loads(again.output.splitlines()[-1])["metrics"]["rows"] == ROWS


# ---------------------------------------------------------------------- killed, and on several processes


def test_a_part_that_is_there_is_never_computed_again(
    straight: Path, stack: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails after three parts, goes on with the others, and comes to the same bytes."""
    from clinstack.stages import predict as stage

    computed: list[int] = []
    whole = stage._predictions

    def counted(stack: Stack, part: Any, *rest: Any) -> pa.Table:
        if fails and len(computed) == 3:
            raise OSError(28, "No space left on device")
        computed.append(part.number)
        return whole(stack, part, *rest)

    monkeypatch.setattr(stage, "_predictions", counted)
    recipe = recipe_of(tmp_path / "run", stack, table=str(table), rows_per_part=8, **COLUMNS)
    fails = True
    with pytest.raises(OSError, match="No space left"):
        predict(recipe)
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    # A part that was lost comes again, the others do not.
    (tmp_path / "run" / "parts" / "00001.parquet").unlink()
    fails = False
    predict(recipe)
    assert computed == [0, 1, 2, 1, *range(3, 12)]
    assert (tmp_path / "run" / "predictions.parquet").read_bytes() == (straight / "predictions.parquet").read_bytes()
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()
    assert read_json(tmp_path / "run" / "run.json")["starts"] == 2
    computed.clear()
    predict(recipe)
    assert not computed


def test_what_fails_while_parts_are_joined_computes_none_of_them_again(
    straight: Path, stack: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinstack.stages import predict as stage

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def ends_early(files: list[Path]) -> Iterator[pa.Table]:
        yield pq.read_table(files[0])
        fails()

    recipe = recipe_of(tmp_path / "run", stack, table=str(table), rows_per_part=8, **COLUMNS)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_groups", ends_early)
        with pytest.raises(OSError, match="No space left"):
            predict(recipe)
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    assert not list((tmp_path / "run").glob(".*.partial"))
    monkeypatch.setattr(stage, "_predictions", fails)
    predict(recipe)
    assert (tmp_path / "run" / "predictions.parquet").read_bytes() == (straight / "predictions.parquet").read_bytes()


def test_another_table_under_the_same_run_is_refused(stack: Path, table: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.parquet"
    file.write_bytes(table.read_bytes())
    recipe = recipe_of(tmp_path / "run", stack, table=str(file), **COLUMNS)
    predict(recipe)
    pq.write_table(pa.Table.from_pylist(rows_of(12)), file)
    with pytest.raises(InputError, match="has changed since this Run began"):
        predict(recipe)
    assert len(pq.read_table(predict(recipe, fresh=True).folder / "predictions.parquet")) == 12


def words(run: Path, stack: Path, table: Path, rows_per_part: int) -> list[str]:
    given = {"run": run, "stack": stack, "table": table, "rows_per_part": rows_per_part, **COLUMNS}
    return ["predict", *(f"{key}={value}" for key, value in given.items())]


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., list[Any]]]:
    """Start the command line in one process or two, forked from one that has imported PyTorch."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clinstack.stages.predict", "clinstack.cli"])
    started: list[Any] = []

    def run(arguments: list[str], logs: Path, size: int = 1) -> list[Any]:
        port = free_port()
        processes = [
            context.Process(target=_call, args=(arguments, rank, size, port, logs / f"process{rank}.log"))
            for rank in range(size)
        ]
        started.extend(processes)
        for process in processes:
            process.start()
        return processes

    yield run
    for process in started:
        if process.is_alive():
            process.kill()


def _call(arguments: list[str], rank: int, size: int, port: int, log: Path) -> None:
    if size > 1:
        call_clinstack(arguments, rank, port, log)
        return
    torch.set_num_threads(1)
    from clinstack.cli import main

    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv = ["clinstack", *arguments]
        main()


def end(processes: list[Any], logs: Path) -> list[str]:
    for process in processes:
        process.join(120)
    outputs = [(logs / f"process{rank}.log").read_text() for rank in range(len(processes))]
    assert [process.exitcode for process in processes] == [0] * len(processes), outputs
    return outputs


def test_two_processes_write_the_bytes_of_one(
    straight: Path, stack: Path, table: Path, tmp_path: Path, start: Callable[..., list[Any]]
) -> None:
    run = tmp_path / "run"
    outputs = end(start(words(run, stack, table, 8), tmp_path, 2), tmp_path)
    for name in ("predictions.parquet", "metrics.json"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()
    assert "is done" in outputs[0]
    assert "is done" not in outputs[1]
    # Each had its share: of twelve parts the first process logged six.
    assert len((run / "log.jsonl").read_text().splitlines()) == 6


def test_what_the_first_process_refuses_ends_both_with_one_message(
    stack: Path, tmp_path: Path, start: Callable[..., list[Any]]
) -> None:
    table = write(tmp_path, **(GOOD | {"example_id": ["a", "b", "a"]}))
    processes = start(["predict", f"run={tmp_path / 'run'}", f"stack={stack}", f"table={table}"], tmp_path, 2)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [2, 2]
    assert "stands in" in (tmp_path / "process0.log").read_text()
    assert "stands in" not in (tmp_path / "process1.log").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 20, 45, 88])
def test_killed_at_any_moment_the_bytes_are_the_same(
    stack: Path, table: Path, tmp_path: Path, start: Callable[..., list[Any]], parts: int
) -> None:
    whole = predict(recipe_of(tmp_path / "whole", stack, table=str(table), rows_per_part=1, **COLUMNS)).folder
    run = tmp_path / "run"
    (process,) = start(words(run, stack, table, 1), tmp_path)
    deadline = time.monotonic() + 120
    while len(list((run / "parts").glob("[0-9]*.parquet"))) < parts:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (run / "metrics.json").exists()
    end(start(words(run, stack, table, 1), tmp_path), tmp_path)
    for name in ("predictions.parquet", "metrics.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("launch", [DDP, FSDP], ids=["ddp", "fsdp2"])
def test_the_launcher_predicts_what_one_process_predicts(
    straight: Path, stack: Path, table: Path, tmp_path: Path, launch: list[str]
) -> None:
    """With sharded layers the processes compute each part together."""
    launcher = [*LAUNCHER, *launch, "--main_process_port", str(free_port()), "-m", "clinstack"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, *words(tmp_path / "run", stack, table, 8)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "predictions.parquet").read_bytes() == (straight / "predictions.parquet").read_bytes()
