"""A private training that was killed ends with the weights of one that was not, given the same secret."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clinstack.engine.checkpoint import BEST, LAST
from clinstack.engine.secret import SECRET_FILE
from clinstack.files import read_json
from clinstack.run import PrunedError, Run

LIMIT = 240.0
STEPS = 12
KEY = bytes(range(100, 132))


def call_with_a_known_secret(arguments: list[str], dies_at: int | None) -> None:
    """What a child process does: the command line, where the operating system's random bits are `KEY`.

    It ends by `kill -9` as soon as it has logged the step ``dies_at``.
    """
    from clinstack.cli import main

    torch.set_num_threads(1)
    secrets.token_bytes = lambda count=None: KEY
    log = Run.log

    def log_and_die(run: Run, event: dict[str, Any]) -> None:
        log(run, event)
        if dies_at is not None and event.get("step") == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.log = log_and_die  # type: ignore[method-assign]
    sys.argv = ["clinstack", *arguments]
    main()


def write_recipe(path: Path, base: Path, notes: Path, run: Path) -> Path:
    values = {
        "stage": "pretrain",
        "run": str(run),
        "base": str(base),
        "notes": str(notes),
        "context": 32,
        "adapters": [{"name": "one", "rank": 4, "alpha": 8, "dropout": 0.2}],
        "training": {
            "epochs": 4,
            "max_steps": STEPS,
            "learning_rate": 0.01,
            "batch_size": 8,
            "checkpoint_every": 2,
            "tracking": "none",
        },
        "privacy": {"noise_multiplier": 1.0, "patients_per_step": 10, "rows_per_patient": 2},
        "evaluation": {"resamples": 100},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_killed_midway_it_takes_the_same_steps_again(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clinstack.stages.pretrain", "clinstack.stages.finetune", "clinstack.cli"])

    def start(recipe: Path, dies_at: int | None = None) -> int | None:
        arguments = ["pretrain", str(recipe), "--json"]
        process = context.Process(target=call_with_a_known_secret, args=(arguments, dies_at))
        process.start()
        process.join(LIMIT)
        return process.exitcode

    runs = {name: tmp_path / name for name in ("straight", "killed")}
    recipes = {name: write_recipe(tmp_path / f"{name}.yaml", tiny_base, tiny_notes, run) for name, run in runs.items()}
    assert start(recipes["straight"]) == 0
    checkpoints = runs["killed"] / "checkpoints"
    for step in (1, 5):  # before the first checkpoint, and after the second
        assert start(recipes["killed"], step) == -signal.SIGKILL
        assert (checkpoints / SECRET_FILE).exists()
        assert (checkpoints / LAST).exists() == (step > 1)
        assert read_json(runs["killed"] / "run.json")["status"] == "running"
    assert start(recipes["killed"]) == 0
    for name in (BEST, LAST):
        one, other = (load_file(run / "checkpoints" / name) for run in runs.values())
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert len({(run / "metrics.json").read_bytes() for run in runs.values()}) == 1
    assert len({(run / "log.jsonl").read_bytes() for run in runs.values()}) == 1
    assert not list(tmp_path.rglob(SECRET_FILE))
    assert read_json(runs["killed"] / "run.json")["starts"] == 3


def test_a_run_without_its_secret_does_not_go_on_and_a_pruned_one_forgets_it(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    from clinstack.errors import InputError
    from clinstack.recipe import load_recipe
    from clinstack.stages.pretrain import pretrain

    folder = tmp_path / "run"
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", tiny_base, tiny_notes, folder))

    def interrupt(number: int, figures: dict[str, float]) -> None:
        raise KeyboardInterrupt if number == 2 else PrunedError

    def go(stop: Callable[[int, dict[str, float]], None] | None = None) -> Run:
        return pretrain(recipe, on_validation=stop)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        go(lambda number, figures: None if number == 1 else interrupt(number, figures))
    assert (folder / "checkpoints" / SECRET_FILE).is_file()
    with pytest.raises(PrunedError):
        go(lambda number, figures: interrupt(0, figures))
    assert not (folder / "checkpoints" / SECRET_FILE).exists()
    with pytest.raises(InputError, match=r"privacy\.secret is missing or damaged"):
        go()
