"""Small stacks to serve, a server in this process, and what a client sends to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from clinstack.evaluate.classification import SplitScores, fit_on_validation
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.serve.app import create_app
from clinstack.serve.observe import AuditLog, Metrics
from clinstack.serve.queue import RequestQueue
from clinstack.serve.security import Gate
from clinstack.serve.settings import ServeSettings
from clinstack.serve.shared_base import SharedBase
from clinstack.tasks import Task

TOKEN = "a-token-that-only-tests-know"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CANARY = "zebra quartz lantern"
"""Stands in notes of tests; nothing that a server writes may hold it."""
TASKS = {
    "mortality": Task("mortality", "binary", ("survived", "died"), "Death in hospital"),
    "length_of_stay": Task("length_of_stay", "multiclass", ("0-3 days", "3-7 days", "1-2 weeks", "over 2 weeks")),
    "diagnoses": Task("diagnoses", "multilabel", tuple(f"{code:03d}" for code in range(30))),
    "raw": Task("raw", "binary", ("no", "yes")),
}
"""The last one is served without calibration."""
MAX_TOKENS = 48


def save_stacks(folder: Path, base: Path, clinical: Path, perturbed: Callable[..., Stack]) -> dict[str, Path]:
    """Save a stack for each task: a shared frozen clinical adapter, an own LoRA, calibration where the task has it."""
    result = {}
    for number, (name, task) in enumerate(TASKS.items()):
        adapters = [
            AdapterRecipe(name="clinical", path=str(clinical)),
            AdapterRecipe(name="task", rank=2, alpha=4),
        ]
        stack = perturbed(Stack.build(str(base), adapters, task, seed=number), seed=number + 3)
        stack.reading = Reading(max_tokens=MAX_TOKENS)
        if name != "raw":
            stack.calibration = fit_on_validation(task, made_up_validation(task))
        stack.save(folder / name)
        result[name] = folder / name
    return result


def made_up_validation(task: Task, rows: int = 80) -> SplitScores:
    """Return labels and scores that have something to do with each other."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(rows, len(task.classes)))
    noisy = scores + generator.normal(size=scores.shape)
    labels: list[Any]
    if task.kind == "multilabel":
        labels = [[task.classes[place] for place in np.flatnonzero(row > 0.5)] for row in noisy]
    else:
        labels = noisy.argmax(axis=1).tolist()
    return SplitScores(labels, scores, [f"p{row // 2}" for row in range(rows)])


def settings_of(stacks: dict[str, Path], state: Path, **changes: Any) -> ServeSettings:
    """Return settings for tests: no rate limit, unless a test asks for one, and a short warm-up."""
    usual = {"stacks": stacks, "state": state, "requests_per_minute": 0, "token": TOKEN, "batch_tokens": 256}
    return ServeSettings(**usual | changes)


def app_of(shared: SharedBase, settings: ServeSettings) -> FastAPI:
    """Return the application as `clinstack serve` builds it; its audit log is in the state folder."""
    settings.state.mkdir(parents=True, exist_ok=True)
    metrics = Metrics()
    return create_app(
        RequestQueue(shared, settings, metrics),
        settings,
        token=None if settings.no_token else TOKEN,
        metrics=metrics,
        audit=AuditLog(settings.state, settings.audit_bytes, settings.audit_files),
        gate=Gate(),
    )


@contextmanager
def client_of(shared: SharedBase, settings: ServeSettings, **options: Any) -> Iterator[TestClient]:
    """Run the application in this process; the client sends the token."""
    with TestClient(app_of(shared, settings), headers=BEARER, **options) as client:
        yield client
