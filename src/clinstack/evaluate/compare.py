"""Stacks against each other on the same test examples: figures, their mean over tasks, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from clinstack.errors import InputError
from clinstack.evaluate.bootstrap import draw_patients, rare_strata
from clinstack.evaluate.delong import delong_difference
from clinstack.evaluate.multiple_comparisons import LEVEL, holm
from clinstack.evaluate.predictions import PREDICTION_COLUMNS, read_split
from clinstack.evaluate.scored import PRIMARY, Scored
from clinstack.evaluate.seeds import AUPRC, AUROC, Figure, paired_difference, task_figures
from clinstack.tasks import Task

_T = TypeVar("_T")

MACRO = "macro"
"""Stands in the place of a task for the unweighted mean over tasks."""

Source: TypeAlias = "Path | pa.Table"
Sources: TypeAlias = "Source | Sequence[Source] | Mapping[int, Source]"
"""Predictions of one row of a table on one task: of one training, or of several that differ in their seed only."""


@dataclass(frozen=True)
class Comparison:
    """Stacks on tasks, all resampled with the same patients.

    Parameters
    ----------
    auroc, auprc : list of dict
        ``{"stack", "task", "metric", "value", "interval", "seeds", "seed_deviation"}``; ``task`` is ``macro`` for the
        mean over tasks. With several seeds the value is the mean over them and ``seed_deviation`` their standard
        deviation, None with one.
    differences : list of dict
        ``{"a", "b", "task", "metric", "value", "interval", "seeds", "p", "p_holm", "holds"}``: AUROC of a minus AUROC
        of b. ``holds`` says whether ``p_holm``, corrected for all differences of this list, is at most 0.05. A binary
        task with one seed has ``delong`` too: ``value, interval, standard_error, p``.
    tests : list of dict
        For each task what its test set is: rows, patients, classes scored, and the names of those left out.
    scored : mapping of task to mapping of stack to Scored
        The aligned rows behind the figures, for curves; with several seeds those of the first.
    by_seed : mapping of task to mapping of stack to mapping of seed to Scored
        The same of all seeds.
    patients : int
        Distinct patients over all test sets.
    """

    auroc: list[dict[str, Any]]
    auprc: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    scored: dict[str, dict[str, Scored]] = field(repr=False, compare=False)
    patients: int
    by_seed: dict[str, dict[str, dict[int, Scored]]] = field(default_factory=dict, repr=False, compare=False)


def compare(
    predictions: Mapping[str, Mapping[str, Sources]],
    tasks: Mapping[str, Task],
    pairs: Sequence[tuple[str, str]],
    resamples: int = 1000,
    seed: int = 0,
    split: str = "test",
) -> Comparison:
    """Compute the primary AUROC of each stack on each task, the mean over tasks, and differences of pairs of stacks.

    Patients are drawn once from the union of all test sets, so each resample is one hospital for all tasks and
    stacks: differences are paired, and the mean over tasks keeps their correlation. Where a stack has several seeds,
    each resample draws seeds too (`seeds.seed_shares`), so that intervals and p-values hold what other patients and
    other seeds would change. Of a class that few patients carry no resample is without (`bootstrap.rare_strata`). A
    difference takes the seeds that both stacks have, paired; if none, all of each.

    Parameters
    ----------
    predictions : mapping of task name to mapping of stack to Path or pyarrow.Table, or to several by seed
        Columns as in ``predictions.parquet``; only rows of ``split`` count. A sequence is numbered from 0.
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
    by_seed: dict[str, dict[str, dict[int, Scored]]] = {}
    patients: dict[str, list[str]] = {}
    for task, stacks in predictions.items():
        if stacks:
            numbered = {stack: _numbered(sources, f"{stack} on {task}") for stack, sources in stacks.items()}
            by_seed[task], patients[task] = _aligned(tasks[task], numbered, split)
    if not by_seed:
        return Comparison([], [], [], [], {}, 0)
    scored = {task: {stack: _first(rows) for stack, rows in stacks.items()} for task, stacks in by_seed.items()}
    everybody = [patient for ids in patients.values() for patient in ids]
    strata = [stratum for task, ids in patients.items() for stratum in _strata(_first(scored[task]), ids)]
    draws = draw_patients(everybody, resamples, seed, strata=strata if any(strata) else None)
    weights = {task: draws.weights(ids) for task, ids in patients.items()}
    figures = {
        (stack, task): Figure([task_figures(rows, weights[task], seed, patients[task])])
        for task, stacks in by_seed.items()
        for stack, rows in stacks.items()
    }
    for stack in dict.fromkeys(stack for stacks in by_seed.values() for stack in stacks):
        parts = [figures[stack, task].parts[0] for task in by_seed if (stack, task) in figures]
        if len(parts) == len(by_seed):
            figures[stack, MACRO] = Figure(parts)
    differences: list[dict[str, Any]] = [
        {"a": a, "b": b, "task": task, "metric": f"{task}_auroc"}
        | paired_difference(figures[a, task], figures[b, task])
        for a, b in pairs
        # Of a single task the mean is the task itself: it is one difference, not two to be corrected for.
        for task in ((MACRO, *by_seed) if len(by_seed) > 1 else by_seed)
        if (a, task) in figures and (b, task) in figures
    ]
    for row in differences:
        stacks = by_seed.get(row["task"], {})
        if stacks and tasks[row["task"]].kind == "binary" and len(stacks[row["a"]]) == len(stacks[row["b"]]) == 1:
            one, other = _first(stacks[row["a"]]), _first(stacks[row["b"]])
            ids = patients[row["task"]]
            row["delong"] = delong_difference(one.indicator[:, 1], one.margin, other.margin, ids)
    for row, adjusted in zip(differences, holm([row["p"] for row in differences]), strict=True):
        row["p_holm"] = adjusted
        row["holds"] = adjusted is not None and adjusted <= LEVEL
    return Comparison(
        auroc=[
            {"stack": stack, "task": task, "metric": _metric(task, tasks)} | figure.estimate(AUROC)
            for (stack, task), figure in figures.items()
        ],
        auprc=[
            {"stack": stack, "task": task, "metric": "macro_auprc" if task == MACRO else "auprc"}
            | figure.estimate(AUPRC)
            for (stack, task), figure in figures.items()
        ],
        differences=differences,
        tests=[_test_set(_first(scored[task]), patients[task]) for task in scored],
        scored=scored,
        patients=len(draws.patients),
        by_seed=by_seed,
    )


def _strata(table: Scored, patient_ids: Sequence[str]) -> list[str]:
    """Return each row's stratum: its class where that is rare and classes exclude each other, else nothing."""
    if table.task.kind == "multilabel":
        return [""] * len(patient_ids)
    found = rare_strata(table.indicator.argmax(axis=1).tolist(), patient_ids) or [-1] * len(patient_ids)
    return ["" if label < 0 else f"{table.task.name} {label}" for label in found]


def _numbered(sources: Sources, place: str) -> dict[int, Source]:
    if isinstance(sources, Path | pa.Table):
        return {0: sources}
    numbered = dict(sources) if isinstance(sources, Mapping) else dict(enumerate(sources))
    if not numbered:
        raise InputError(f"{place}: there are no predictions of any seed.")
    return numbered


def _first(values: Mapping[Any, _T]) -> _T:
    return next(iter(values.values()))


def _metric(task: str, tasks: Mapping[str, Task]) -> str:
    return "macro_auroc" if task == MACRO else PRIMARY[tasks[task].kind]


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


def _aligned(
    task: Task, stacks: Mapping[str, Mapping[int, Source]], split: str
) -> tuple[dict[str, dict[int, Scored]], list[str]]:
    """Bring every stack's rows into the order of their example ids, and check that they are the same examples."""
    scored: dict[str, dict[int, Scored]] = {}
    first: tuple[str, pa.Table] | None = None
    for stack, sources in stacks.items():
        scored[stack] = {}
        for number, source in sources.items():
            table = read_split(source, PREDICTION_COLUMNS, split).sort_by("example_id")
            place = f"{source}" if isinstance(source, Path) else f"predictions of {stack} on {task.name}"
            if first is None:
                first = (place, table)
            _check_same_examples(first, (place, table))
            scored[stack][number] = Scored.build(task, table["label"].to_pylist(), table["score"].to_pylist(), place)
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
