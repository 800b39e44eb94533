"""`kill -9` in the middle of pretraining, for every adapter method: the next start ends with the same bits."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from clinstack.files import read_json
from methods import NAMES, SPECS
from test_resume import (
    STEPS,
    Start,
    assert_as_if_nothing_had_happened,
    has_logged,
    kill_when,
    recipe_into,
    start,
    to_the_end,
)

__all__ = ["start"]

QUICK = ("adalora", "p_tuning-lstm")
"""One with a state beside its weights, one with an encoder and its dropout."""
CHANGES: dict[str, dict[str, Any]] = {
    "lora": {"dropout": 0.2},
    "dora": {"dropout": 0.2},
    # The budget still shrinks when it is killed, whenever that is.
    "adalora": {"dropout": 0.2, "warmup_steps": 2, "final_steps": 1, "allocate_every": 2},
    "p_tuning-lstm": {"encoder_layers": 2, "encoder_dropout": 0.2},
}


@pytest.mark.parametrize(
    "spec", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_killed_twice_every_method_ends_as_if_nothing_had_happened(
    start: Start, tiny_base: Path, tiny_notes: Path, tmp_path: Path, spec: str
) -> None:
    adapter = {"name": "clinical", **SPECS[spec], **CHANGES.get(spec, {})}
    adapter = {key: list(value) if isinstance(value, tuple) else value for key, value in adapter.items()}
    recipe = {
        "stage": "pretrain",
        "base": str(tiny_base),
        "notes": str(tiny_notes),
        "context": 64,
        "adapters": [adapter],
        "training": {
            "max_steps": STEPS,
            "epochs": 40,
            "batch_size": 2,
            "accumulate": 2,
            "learning_rate": 0.01,
            "checkpoint_every": 3,
        },
        "evaluation": {"resamples": 100},
    }
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "straight").mkdir()
    straight, run = tmp_path / "straight" / "pretrain", tmp_path / "killed" / "pretrain"
    run.parent.mkdir()
    to_the_end(start(recipe_into(tmp_path, "pretrain", straight)))
    killed = recipe_into(tmp_path, "pretrain", run)
    chance = random.Random(spec)
    moments = sorted(chance.sample(range(4, STEPS - 3), 2))
    for number, moment in enumerate(moments, start=1):
        kill_when(start(killed), partial(has_logged, run, number, moment), chance.uniform(0, 0.02))
        assert read_json(run / "run.json")["status"] == "running"
    to_the_end(start(killed))
    assert_as_if_nothing_had_happened(run, straight, len(moments) + 1)
    read_back = read_json(run / "stack" / "stack.json")["adapters"][0]
    assert read_back["method"] == SPECS[spec]["method"]
