"""Stacks against each other on the same test examples: figures, their mean over tasks, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.errors import InputError
from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import PatientDraws, draw_patients, estimate
from clinstack.evaluate.classification import PRIMARY, Scored
from clinstack.evaluate.predictions import PREDICTION_COLUMNS, read_split
from clinstack.tasks import Task

MACRO = "macro"
"""Stands in the place of a task for the unweighted mean over tasks."""


@dataclass(frozen=True)
class Comparison:
    """Stacks on tasks, all resampled with the same patients.

    Parameters
    ----------
    auroc, auprc : list of dict
        ``{"stack", "task", "metric", "value", "interval"}``; ``task`` is ``macro`` for the mean over tasks.
    differences : list of dict
        ``{"a", "b", "task", "metric", "value", "interval"}``: AUROC of a minus AUROC of b.
    tests : list of dict
        For each task what its test set is: rows, patients, classes scored, and the names of those left out.
    scored : mapping of task to mapping of stack to Scored
        The aligned rows behind the figures, for curves.
    patients : int
        Distinct patients over all test sets.
    """

    auroc: list[dict[str, Any]]
    auprc: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    scored: dict[str, dict[str, Scored]] = field(repr=False, compare=False)
    patients: int


@dataclass(frozen=True)
class _Figure:
    """AUROC and AUPRC, each a value and its resamples."""

    values: tuple[float, float]
    resampled: tuple[FloatArray, FloatArray]

    def estimate(self, place: int) -> dict[str, object]:
        return estimate(self.values[place], self.resampled[place])


def compare(
    predictions: Mapping[str, Mapping[str, Path | pa.Table]],
    tasks: Mapping[str, Task],
    pairs: Sequence[tuple[str, str]],
    resamples: int = 1000,
    seed: int = 0,
    split: str = "test",
) -> Comparison:
    """Compute the primary AUROC of each stack on each task, the mean over tasks, and differences of pairs of stacks.

    Patients are drawn once from the union of all test sets, so each resample is one hospital for all tasks and
    stacks: differences are paired, and the mean over tasks keeps their correlation.

    Parameters
    ----------
    predictions : mapping of task name to mapping of stack to Path or pyarrow.Table
        Columns as in ``predictions.parquet``; only rows of ``split`` count.
    tasks : mapping of task name to Task
    pairs : sequence of (a, b)
        Stacks whose difference a minus b is wanted; pairs that lack a stack are left out.
    resamples, seed : int
    split : {"test", "validation", "train"}

    Returns
    -------
    Comparison
        A stack that lacks one of the tasks has no macro figure: it would be the mean of something else.

    Raises
    ------
    InputError
        Two stacks' predictions of a task do not cover the same test examples with the same labels.
    """
    scored: dict[str, dict[str, Scored]] = {}
    patients: dict[str, list[str]] = {}
    for task, stacks in predictions.items():
        if stacks:
            scored[task], patients[task] = _aligned(tasks[task], stacks, split)
    if not scored:
        return Comparison([], [], [], [], {}, 0)
    draws = draw_patients((patient for ids in patients.values() for patient in ids), resamples, seed)
    figures = _figures(scored, patients, draws)
    return Comparison(
        auroc=[
            {"stack": stack, "task": task, "metric": _metric(task, tasks)} | figure.estimate(0)
            for (stack, task), figure in figures.items()
        ],
        auprc=[
            {"stack": stack, "task": task, "metric": "macro_auprc" if task == MACRO else "auprc"} | figure.estimate(1)
            for (stack, task), figure in figures.items()
        ],
        differences=[
            {"a": a, "b": b, "task": task, "metric": f"{task}_auroc"} | _difference(figures[a, task], figures[b, task])
            for a, b in pairs
            for task in (MACRO, *scored)
            if (a, task) in figures and (b, task) in figures
        ],
        tests=[_test_set(next(iter(scored[task].values())), patients[task]) for task in scored],
        scored=scored,
        patients=len(draws.patients),
    )


def _metric(task: str, tasks: Mapping[str, Task]) -> str:
    return "macro_auroc" if task == MACRO else PRIMARY[tasks[task].kind]


def _difference(a: _Figure, b: _Figure) -> dict[str, object]:
    return estimate(a.values[0] - b.values[0], a.resampled[0] - b.resampled[0])


def _test_set(rows: Scored, patients: Sequence[str]) -> dict[str, Any]:
    return {
        "task": rows.task.name,
        "kind": rows.task.kind,
        "metric": PRIMARY[rows.task.kind],
        "rows": len(patients),
        "patients": len(set(patients)),
        "prevalence": float(rows.indicator[:, 1].mean()) if rows.task.kind == "binary" else None,
        "classes": len(rows.task.classes),
        "classes_scored": len(rows.scored_columns),
        "classes_left_out": rows.left_out(),
    }


def _aligned(task: Task, stacks: Mapping[str, Path | pa.Table], split: str) -> tuple[dict[str, Scored], list[str]]:
    """Bring every stack's rows into the order of their example ids, and check that they are the same examples."""
    scored: dict[str, Scored] = {}
    first: tuple[str, pa.Table] | None = None
    for stack, source in stacks.items():
        table = read_split(source, PREDICTION_COLUMNS, split).sort_by("example_id")
        place = f"{source}" if isinstance(source, Path) else f"predictions of {stack} on {task.name}"
        if first is None:
            first = (place, table)
        _check_same_examples(first, (place, table))
        scored[stack] = Scored.build(task, table["label"].to_pylist(), table["score"].to_pylist(), place)
    assert first is not None  # the caller passes at least one stack
    return scored, first[1]["patient_id"].to_pylist()


def _check_same_examples(first: tuple[str, pa.Table], second: tuple[str, pa.Table]) -> None:
    (one, ours), (other, theirs) = first, second
    left, right = ours["example_id"].to_pylist(), theirs["example_id"].to_pylist()
    if len(set(right)) != len(right):
        raise InputError(f"{other}: an example id occurs twice in the split; run finetune again.")
    if left != right:
        only = sorted(set(left) ^ set(right))
        raise InputError(
            f"{one} ({len(left)} test examples) and {other} ({len(right)}) do not cover the same test examples: "
            f"{len(only)} are in only one of them, the first is {only[0]}. "
            "Finetune both stacks on the same prepared notes."
        )
    for column in ("patient_id", "label"):
        for example, mine, yours in zip(left, ours[column].to_pylist(), theirs[column].to_pylist(), strict=True):
            if mine != yours:
                raise InputError(f"{one} and {other} disagree about the {column} of test example {example}.")


def _figures(
    scored: Mapping[str, Mapping[str, Scored]], patients: Mapping[str, list[str]], draws: PatientDraws
) -> dict[tuple[str, str], _Figure]:
    figures: dict[tuple[str, str], _Figure] = {}
    stacks = list(dict.fromkeys(stack for table in scored.values() for stack in table))
    for task, table in scored.items():
        weights = draws.weights(patients[task])
        for stack, rows in table.items():
            area, precision = rows.headline(rows.unit_weights)
            figures[stack, task] = _Figure((float(area[0]), float(precision[0])), rows.headline(weights))
    for stack in stacks:
        parts = [figures[stack, task] for task in scored if (stack, task) in figures]
        if len(parts) == len(scored):
            areas, precisions = zip(*(part.resampled for part in parts), strict=True)
            area, precision = np.mean([part.values for part in parts], axis=0)
            figures[stack, MACRO] = _Figure(
                (float(area), float(precision)), (np.mean(areas, axis=0), np.mean(precisions, axis=0))
            )
    return figures
