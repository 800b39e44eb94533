"""A frozen backbone under a head that trains: the ways that `downstream.py` compares, a process of this file for each.

``{"do": "pass", "spec": "head"}`` to one of the ways that compute the backbone in every epoch: train the head on some
training notes and validate on some others; the answer is CPU time for each note. To clinstack ``{"do": "finetune"}``
and ``{"do": "sweep"}`` run the real stage and the real sweep; nothing is left over from the turn before.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

from downstream_arms import import_all

EPOCHS = 10
TRIALS = 20
BATCH = 16
KIND = "frozen"
CHECK_KIND = "check"
RATES = {"low": 0.0001, "high": 0.01, "log": True}


def recipe_of(work: Path, spec: str, kind: str, run: Path, **training: Any) -> Any:
    """Return the recipe of ten epochs of head training."""
    from downstream_notes import TASK

    from clinstack.recipe import AdapterRecipe, FinetuneRecipe, TrainingRecipe

    clinical = AdapterRecipe(name="clinical", path=str(work / "clinical"), trainable=False)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.001, "checkpoint_every": 1000, **training}
    return FinetuneRecipe(
        run=str(run),
        base=str(work / "model"),
        examples=str(work / kind / "examples" / TASK),
        adapters=(clinical,) if spec == "clinical-frozen" else (),
        training=TrainingRecipe(**settings),
    )


@contextlib.contextmanager
def never_frozen() -> Iterator[None]:
    """Let clinstack compute the backbone for every batch, whatever trains."""
    from clinstack.model.stack import Stack

    with patch.object(Stack, "backbone_is_frozen", new_callable=PropertyMock, return_value=False):
        yield


def forget_features(work: Path, kind: str) -> None:
    """Delete what clinstack keeps beside the Notes."""
    shutil.rmtree(work / kind / "features", ignore_errors=True)


# ---------------------------------------------------------------------- the ways


def published_passes(work: Path, spec: str) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Return a training step on some notes and a forward pass of some, as the published code does them."""
    import torch
    from published_classifier import open_cell

    recipe = recipe_of(work, spec, KIND, work / "unused")
    trainer = open_cell(recipe)
    trainer.train_metrics = False

    def step(at: int) -> None:
        trainer.step([list(range(at, at + BATCH))], 1000)

    def look(at: int) -> None:
        trainer.model.eval()
        with torch.no_grad():
            trainer.model(**trainer.splits["train"].inputs(slice(at, at + BATCH)))

    return step, look


def plain_passes(work: Path, spec: str) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Return the same of clinstack without features: its objective and its optimizer step."""
    import torch
    from downstream_arms import open_objective

    recipe = recipe_of(work, spec, KIND, work / "unused")
    stack, objective, step_on = open_objective(recipe)

    def step(at: int) -> None:
        step_on(list(range(at, at + BATCH)))

    def look(at: int) -> None:
        stack.eval()
        with torch.inference_mode():
            objective.loss(list(range(at, at + BATCH)))

    return step, look


def per_note(passes: tuple[Callable[[int], Any], Callable[[int], Any]], notes: int) -> dict[str, float]:
    """Return CPU seconds of a note in training and in a forward pass alone."""
    found = {}
    for name, function in zip(("train", "look"), passes, strict=True):
        begun = time.process_time()
        for at in range(0, notes, BATCH):
            function(at)
        found[name] = (time.process_time() - begun) / notes
    return found


def run_stage(work: Path, spec: str) -> dict[str, float]:
    """Run `clinstack finetune`, from the recipe to the saved stack."""
    from clinstack.stages.finetune import finetune

    forget_features(work, KIND)
    run = work / "runs" / "finetune"
    shutil.rmtree(run, ignore_errors=True)
    begun = time.process_time()
    finetune(recipe_of(work, spec, KIND, run))
    return {"cpu": time.process_time() - begun}


def run_sweep(work: Path, spec: str) -> dict[str, float]:
    """Run `clinstack sweep` with twenty learning rates, in this process."""
    from clinstack.recipe import SweepRecipe, dump_recipe
    from clinstack.sweep.sweep import sweep

    forget_features(work, KIND)
    run = work / "runs" / "sweep"
    shutil.rmtree(run, ignore_errors=True)
    path = work / "runs" / f"{spec}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump_recipe(recipe_of(work, spec, KIND, work / "unused")), "utf-8")
    settings: dict[str, Any] = {"space": {"training.learning_rate": RATES}, "trials": TRIALS}
    recipe = SweepRecipe(run=str(run), recipe=str(path), sampler="random", pruner="none", **settings)
    begun = time.process_time()
    sweep(recipe)
    return {"cpu": time.process_time() - begun}


# ---------------------------------------------------------------------- are they equal?


def check(work: Path, spec: str) -> dict[str, float]:
    """Train ten epochs with features, without, and in the published loop with the same batches.

    Returns
    -------
    dict
        Largest difference of the test notes' logits, relative to the largest logit, and of any test figure.
    """
    import pyarrow.parquet as pq
    import torch
    from downstream_arms import open_objective
    from published_classifier import open_cell

    from clinstack.files import read_json
    from clinstack.stages.finetune import finetune

    plain = {"gradient_clip": 1e9, "warmup_ratio": 0.0, "validate_every": 100_000, "learning_rate": 0.01}
    logits: dict[str, torch.Tensor] = {}
    figures = {}
    for name in ("features", "plain"):
        recipe = recipe_of(work, spec, CHECK_KIND, work / "runs" / f"check-{spec}-{name}", **plain)
        forget_features(work, CHECK_KIND)
        with contextlib.nullcontext() if name == "features" else never_frozen():
            run = finetune(recipe)
        kept = (work / CHECK_KIND / "features").exists()
        if kept != (name == "features"):
            raise AssertionError(f"{spec}, {name}: features were {'' if kept else 'not '}kept")
        rows = pq.read_table(run.folder / "predictions.parquet").to_pylist()
        logits[name] = torch.tensor([row["score"] for row in rows if row["split"] == "test"])
        figures[name] = read_json(run.folder / "metrics.json")["test"]
    trainer = open_cell(recipe)
    stack, objective, _ = open_objective(recipe)
    trainer.set_head(stack.head.weight.detach())
    epochs = [objective.epoch_batches(epoch) for epoch in range(EPOCHS)]
    for batches in epochs:
        for batch in batches:
            trainer.step([batch], sum(map(len, epochs)))
    logits["published"] = trainer.measure("test")[1]
    largest = float(logits["features"].abs().max())
    return {
        "plain": float((logits["plain"] - logits["features"]).abs().max()) / largest,
        "published": float((logits["published"] - logits["features"]).abs().max()) / largest,
        "table": largest_gap(figures["features"], figures["plain"]),
    }


def largest_gap(one: Any, other: Any) -> float:
    """Return the largest difference between numbers at the same place; infinite where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((largest_gap(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((largest_gap(left, right) for left, right in zip(one, other, strict=True)), default=0.0)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if numbers:
        return abs(one - other)
    return 0.0 if one == other else float("inf")


def take_turns(way: str, work: Path) -> None:
    """Answer questions until there are no more."""
    # Whatever libraries print goes to stderr; answers go where stdout was.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_all()
    importlib.import_module("clinstack.sweep.sweep")
    importlib.import_module("optuna")
    answers.write(json.dumps({"ready": True}) + "\n")
    passes: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {}
    for line in sys.stdin:
        question = json.loads(line)
        spec = question["spec"]
        if question["do"] == "pass":
            if spec not in passes:
                passes[spec] = {"published": published_passes, "clinstack plain": plain_passes}[way](work, spec)
                passes[spec][1](0)
            answer = per_note(passes[spec], question["notes"])
        else:
            answer = {"finetune": run_stage, "sweep": run_sweep, "check": check}[question["do"]](work, spec)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    take_turns(sys.argv[1], Path(sys.argv[2]))
