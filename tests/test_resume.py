"""`kill -9` at any moment: the next start goes on, and ends bit for bit as if nothing had happened.

The command line runs in processes forked from one that has imported PyTorch already: that import would take longer than
the training. One slow test pays for it, so that ``python -m clinstack`` itself is killed once too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clinstack import files
from clinstack.files import read_json, sha256_file
from clinstack.model.cards import CARD_FILES
from clinstack.run import Run

LIMIT = 120.0
"""Seconds after which a process that does not reach its moment is given up."""
STEPS = 40
Start = Callable[[Path], BaseProcess]


def call_clinstack(arguments: list[str]) -> None:
    """What a child process does: the command line, on one thread."""
    import torch

    from clinstack.cli import main

    torch.set_num_threads(1)
    sys.argv = ["clinstack", *arguments]
    main()


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start the recipe of a Run's folder, in a process of its own that can be killed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clinstack.stages.pretrain", "clinstack.stages.finetune", "clinstack.cli"])
    processes: list[BaseProcess] = []

    def start_recipe(recipe: Path) -> BaseProcess:
        stage = yaml.safe_load(recipe.read_text())["stage"]
        process = context.Process(target=call_clinstack, args=([stage, str(recipe), "--json"],))
        process.start()
        processes.append(process)
        return process

    yield start_recipe
    for process in processes:
        if process.is_alive():
            process.kill()


@pytest.fixture(scope="module")
def recipes(tiny_base: Path, tiny_notes: Path, clinical: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes with dropout, warm-up and several epochs, so that order, random numbers and best epoch all matter."""
    folder = tmp_path_factory.mktemp("recipes")
    common: dict[str, Any] = {"base": str(tiny_base), "evaluation": {"resamples": 100}}
    training: dict[str, Any] = {"max_steps": STEPS, "learning_rate": 0.01, "checkpoint_every": 3}
    dropout = {"rank": 4, "alpha": 8, "dropout": 0.2}
    values: dict[str, dict[str, Any]] = {
        "pretrain": {
            "stage": "pretrain",
            "notes": str(tiny_notes),
            "context": 64,
            "adapters": [{"name": "clinical", **dropout}],
            "training": training | {"epochs": 4, "batch_size": 2, "accumulate": 2},
        },
        "finetune": {
            "stage": "finetune",
            "examples": str(tiny_notes / "examples" / "mortality"),
            "max_tokens": 48,
            "adapters": [{"name": "clinical", "path": str(clinical)}, {"name": "task", **dropout}],
            "training": training | {"epochs": 4, "batch_size": 4},
        },
        "features": {
            "stage": "finetune",
            "examples": str(tiny_notes / "examples" / "diagnoses"),
            "max_tokens": 48,
            "adapters": [{"name": "clinical", "path": str(clinical)}],
            "training": training | {"epochs": 4, "batch_size": 4},
        },
    }
    for name, recipe in values.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | recipe))
    return folder


def recipe_into(recipes: Path, name: str, run: Path) -> Path:
    """The recipe, with the folder that it writes."""
    path = run.parent / f"{run.name}.yaml"
    path.write_text((recipes / f"{name}.yaml").read_text() + f"run: {run}\n")
    return path


def to_the_end(process: BaseProcess) -> None:
    process.join(LIMIT)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def straight(start: Start, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same Runs without an interruption."""
    root = tmp_path_factory.mktemp("straight")
    for name in ("pretrain", "finetune", "features"):
        to_the_end(start(recipe_into(recipes, name, root / name)))
    return root


def steps_logged(run: Path) -> int:
    log = run / "log.jsonl"
    return sum(b'"loss"' in line for line in log.read_bytes().splitlines()) if log.exists() else 0


def has_logged(run: Path, start: int, steps: int) -> bool:
    """Whether a start has opened the Run and steps are logged: a late kill leaves a log beyond the next moment."""
    record = run / "run.json"
    return record.exists() and read_json(record)["starts"] == start and steps_logged(run) >= steps


def kill_when(process: BaseProcess, moment: Callable[[], bool], delay: float = 0.0) -> None:
    """Kill a process when a moment has come and some time has passed; it must not have ended by itself."""
    end = time.monotonic() + LIMIT
    while not moment():
        assert process.is_alive(), "it ended before the moment to kill it came"
        assert time.monotonic() < end, "the moment to kill it did not come"
        time.sleep(0.001)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL


def results(run: Path) -> dict[str, Any]:
    """All that must not depend on what happened on the way."""
    tables = {path.name: pq.read_table(path).to_pylist() for path in sorted(run.glob("*.parquet"))}
    return {
        "stack": {
            str(path.relative_to(run)): sha256_file(path)
            for path in sorted((run / "stack").rglob("*.*"))
            if path.relative_to(run / "stack").as_posix() not in CARD_FILES  # they say how long a Run took
        },
        "best": sha256_file(run / "checkpoints" / "best.safetensors"),
        "metrics": (run / "metrics.json").read_bytes(),
        "tables": tables,
        "log": [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()],
    }


def assert_as_if_nothing_had_happened(run: Path, straight: Path, starts: int) -> None:
    record = read_json(run / "run.json")
    assert record["status"] == "done"
    assert record["starts"] == starts
    found, expected = results(run), results(straight)
    assert any(name.endswith(".safetensors") for name in found["stack"])
    for part in expected:
        assert found[part] == expected[part], part
    assert [line["step"] for line in found["log"] if "loss" in line] == list(range(1, STEPS + 1))
    left = [str(path) for path in run.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert not left


# ---------------------------------------------------------------------- killed


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_happened(
    start: Start, recipes: Path, straight: Path, tmp_path: Path, name: str
) -> None:
    chance = random.Random(name)
    run = tmp_path / name
    recipe = recipe_into(recipes, name, run)
    moments = sorted(chance.sample(range(1, STEPS - 3), 3))
    for number, moment in enumerate(moments, start=1):
        process = start(recipe)
        kill_when(process, partial(has_logged, run, number, moment), chance.uniform(0, 0.02))
        assert read_json(run / "run.json")["status"] == "running"
        assert not (run / "metrics.json").exists()
    to_the_end(start(recipe))
    assert_as_if_nothing_had_happened(run, straight / name, len(moments) + 1)


@pytest.mark.parametrize("name", ["pretrain", "features"])
def test_killed_around_checkpoints_and_at_the_end(
    start: Start, recipes: Path, straight: Path, tmp_path: Path, name: str
) -> None:
    """When the first checkpoint appears, in the middle of writing one, and after the last step."""
    run = tmp_path / name
    recipe = recipe_into(recipes, name, run)
    last = run / "checkpoints" / "last.safetensors"
    kill_when(start(recipe), last.exists)
    assert 0 < steps_logged(run) < STEPS
    before = last.stat().st_mtime_ns
    kill_when(start(recipe), lambda: last.stat().st_mtime_ns != before)
    # While a stage runs, files appear under other names first; killed there, the old ones still stand.
    partial = run / "checkpoints" / ".last.safetensors.partial"
    kill_when(start(recipe), partial.exists)
    kill_when(start(recipe), lambda: steps_logged(run) == STEPS)
    to_the_end(start(recipe))
    assert_as_if_nothing_had_happened(run, straight / name, 5)


def test_killed_before_anything_was_trained(start: Start, recipes: Path, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "finetune"
    recipe = recipe_into(recipes, "finetune", run)
    kill_when(start(recipe), (run / ".lock").exists)
    kill_when(start(recipe), (run / "run.json").exists)
    to_the_end(start(recipe))
    assert_as_if_nothing_had_happened(run, straight / "finetune", read_json(run / "run.json")["starts"])


@pytest.mark.slow
def test_the_process_of_the_real_command_is_killed(recipes: Path, straight: Path, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "pretrain"
    recipe = recipe_into(recipes, "pretrain", run)
    command = [sys.executable, "-m", "clinstack", "pretrain", str(recipe)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + LIMIT
    while steps_logged(run) < STEPS // 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert read_json(run / "run.json")["status"] == "running"
    to_the_end(start(recipe))
    assert_as_if_nothing_had_happened(run, straight / "pretrain", 2)


# ---------------------------------------------------------------------- broken off while the results are written


class Crash(BaseException):
    """Like a kill: no handler of ordinary errors sees it."""


def crash(*args: Any, **kwargs: Any) -> None:
    raise Crash


@pytest.mark.parametrize(
    "place",
    [
        "clinstack.engine.trainer.save_tensors",
        "clinstack.engine.trainer.load_tensors",
        "clinstack.stages.finetune.predictions_table",
        "clinstack.stages.finetune.pq.write_table",
        "clinstack.stages.finetune.measure_classifier",
        "clinstack.model.saving.save_file",
        "clinstack.model.stack.Stack.save",
        "clinstack.stages.finetune.write_json",
        "clinstack.run.Run.finish",
    ],
)
def test_broken_off_while_results_are_written_a_run_is_completed(
    recipes: Path, straight: Path, tmp_path: Path, place: str
) -> None:
    from clinstack.recipe import FinetuneRecipe, load_recipe
    from clinstack.stages.finetune import finetune

    run = tmp_path / "finetune"
    recipe = load_recipe(recipe_into(recipes, "finetune", run))
    assert isinstance(recipe, FinetuneRecipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, crash)
        with pytest.raises(Crash):
            finetune(recipe)
    assert read_json(run / "run.json")["status"] == "running"
    finetune(recipe)
    assert_as_if_nothing_had_happened(run, straight / "finetune", 2)


def test_broken_off_between_the_two_renames_of_the_stack(
    recipes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second save over a first: for an instant there is only the old stack, under another name."""
    from clinstack.recipe import FinetuneRecipe, load_recipe
    from clinstack.stages.finetune import finetune

    run = tmp_path / "finetune"
    recipe = load_recipe(recipe_into(recipes, "finetune", run))
    assert isinstance(recipe, FinetuneRecipe)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", crash)
        with pytest.raises(Crash):
            finetune(recipe)
    replace = os.replace

    def dying(source: Any, target: Any) -> None:
        if Path(source).name == ".stack.partial":
            raise Crash
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        # As where the system cannot exchange directories.
        patch.setattr(files, "_exchange", lambda one, other: False)
        with pytest.raises(Crash):
            finetune(recipe)
    assert not (run / "stack").exists()
    finetune(recipe)
    assert_as_if_nothing_had_happened(run, straight / "finetune", 3)


def test_an_error_that_is_mended_lets_the_run_go_on(
    recipes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk is full: the Run says that it failed, and the next start goes on."""
    from clinstack.recipe import FinetuneRecipe, load_recipe
    from clinstack.stages.finetune import finetune

    run = tmp_path / "finetune"
    recipe = load_recipe(recipe_into(recipes, "finetune", run))
    assert isinstance(recipe, FinetuneRecipe)
    log = Run.log
    calls: list[dict[str, Any]] = []

    def failing(self: Run, event: dict[str, Any]) -> None:
        calls.append(event)
        if len(calls) == 12:
            raise OSError(28, "No space left on device")
        log(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", failing)
        with pytest.raises(OSError, match="No space left"):
            finetune(recipe)
    record = read_json(run / "run.json")
    assert (record["status"], record["error"]) == ("failed", "OSError")
    finetune(recipe)
    assert_as_if_nothing_had_happened(run, straight / "finetune", 2)
