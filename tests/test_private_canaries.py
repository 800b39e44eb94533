"""Slow: what noise by patient does to secrets that stand in the notes: their exposure falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clinstack.engine.canary_losses import secret_losses
from clinstack.files import read_json
from clinstack.model.stack import Stack
from clinstack.privacy.canaries import read_canaries
from clinstack.privacy.exposure import exposures
from clinstack.recipe import parse_recipe
from clinstack.stages.pretrain import pretrain
from tiny_notes import write_tiny_notes

OTHERS = 100
STEPS = 150


def exposure_of(run: Path) -> tuple[float, float]:
    """Return the mean exposure of planted canaries and of controls, in bits by rank (at most log2(101), 6.7)."""
    planted = read_canaries(run)
    assert planted is not None
    stack = Stack.load(run)
    means = []
    for canaries in (planted.planted, planted.controls):
        others = [canary.others(OTHERS, 0) for canary in canaries]
        losses = secret_losses(stack, canaries, others, "notes", 16)
        means.append(float(np.mean([one.bound for one in exposures(losses, [canary.space for canary in canaries])])))
    return means[0], means[1]


@pytest.mark.slow
def test_the_exposure_of_canaries_falls_with_epsilon(tiny_base: Path, tmp_path: Path) -> None:
    """A training that remembers what stands in the notes of eight patients, and the same number of private steps."""
    notes = write_tiny_notes(tmp_path / "data", patients=120)
    values: dict[str, Any] = {
        "stage": "pretrain",
        "base": str(tiny_base),
        "notes": str(notes),
        "context": 128,
        "canaries": {"count": 8, "repetitions": [8]},
        "adapters": [{"name": "one", "rank": 16, "alpha": 32, "target_modules": "all-linear"}],
        "training": {"epochs": 400, "max_steps": STEPS, "learning_rate": 0.01, "batch_size": 16, "tracking": "none"},
        "evaluation": {"resamples": 100},
    }
    found: dict[str, tuple[float, float]] = {}
    for name, epsilon in {"none": None, "eight": 8.0, "two": 2.0}.items():
        privacy = None if epsilon is None else {"epsilon": epsilon, "patients_per_step": 16, "rows_per_patient": 2}
        run = pretrain(parse_recipe(values | {"run": str(tmp_path / name), "privacy": privacy}, "test"))  # type: ignore[arg-type]
        assert max(item["step"] for item in read_json(run.folder / "metrics.json")["validation"]) == STEPS
        found[name] = exposure_of(run.folder)
    planted = {name: pair[0] for name, pair in found.items()}
    controls = {name: pair[1] for name, pair in found.items()}
    assert planted["none"] > controls["none"] + 2, found  # remembered
    for name in ("eight", "two"):
        assert planted[name] < planted["none"] - 2, found
        # The mean of eight exposures has a standard deviation of half a bit where nothing is remembered.
        assert abs(planted[name] - controls[name]) < 2.5, found
