"""Put Runs into the rows of tables: which are seeds of one row, which are rows of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.report.answers import name_runs
from clinstack.report.collect import STACKS, ReportData, RunRecord, StackRow, find_runs, in_order, task_of
from clinstack.tasks import OUTCOMES

_FURTHER = ("instruct", "align", "judge")
_STAGES = ("pretrain", "finetune", "generate", *_FURTHER)
ORDER = ("full", *STACKS)
"""Specs in the order of tables: encoders are fine-tuned whole first."""
SPEC_NAMES = {**STACKS, "full": "Fine-tuned whole"}


def collect(root: Path) -> ReportData:
    """Read the Runs below ``root``.

    Parameters
    ----------
    root : Path
        Any folder that holds Runs at any depth, such as ``runs/demo``.

    Returns
    -------
    ReportData
        Runs of one stack on one task that differ in their seed alone are one row. Where they differ otherwise, by their
        base or by the folders that they lie in, they are rows of their own.

    Raises
    ------
    InputError
        There is no finished Run, a file of a finished one cannot be read, or two cannot be told apart.
    """
    found = find_runs(root)
    done = [run for run in found if run.record.get("status") == "done" and run.stage in _STAGES]
    unfinished = [run for run in found if run.record.get("status") != "done"]
    if not done:
        waiting = f" ({len(unfinished)} unfinished, the first is {unfinished[0].name})" if unfinished else ""
        raise InputError(f"{root}: no finished run below it{waiting}; run pretrain, finetune or generate first.")
    pretrain = _keyed([run for run in done if run.stage == "pretrain"])
    finetune = _keyed([run for run in done if run.stage == "finetune"])
    for label, runs in pretrain.items():
        if len(runs) > 1:
            _refuse(runs[0], runs[1], "notes", label)
    keys = {run.name: key for key, runs in finetune.items() for run in runs}
    return arranged(
        root,
        {label: pretrain[label][0] for label in sorted(pretrain)},
        [(keys[run.name], run) for run in done if run.stage == "finetune"],
        _stack_rows(finetune),
        unfinished=unfinished,
        answers=name_runs([run for run in done if run.stage == "generate"]),
        further=[run for stage in _FURTHER for run in done if run.stage == stage],
    )


def arranged(
    root: Path,
    pretrain: dict[str, RunRecord],
    finetune: Sequence[tuple[str, RunRecord]],
    rows: dict[str, StackRow],
    **further: Any,
) -> ReportData:
    """Put finetuned Runs, each with the key of its row, into the order of the tables.

    Raises
    ------
    InputError
        Two Runs of a row and task have the same seed, or a Run does not say what its task is.
    """
    tables: dict[str, dict[str, list[RunRecord]]] = {}
    for key, run in finetune:
        tables.setdefault(str(run.task), {}).setdefault(key, []).append(run)
    for task, table in tables.items():
        for key, runs in table.items():
            _check_seeds(runs, task, rows[key].spec)
            runs.sort(key=lambda run: (run.seed is None, run.seed, run.name))
    order = in_order(tables, OUTCOMES)
    return ReportData(
        root=root,
        pretrain=pretrain,
        finetune={task: {key: tables[task][key] for key in rows if key in tables[task]} for task in order},
        tasks={task: task_of(next(iter(tables[task].values()))[0]) for task in order},
        rows=rows,
        **further,
    )


def _check_seeds(runs: Sequence[RunRecord], task: str, label: str) -> None:
    for place, run in enumerate(runs):
        same = [other for other in runs[:place] if other.seed == run.seed]
        if same:
            _refuse(same[0], run, task, label)


def _refuse(first: RunRecord, second: RunRecord, task: str, label: str) -> None:
    raise InputError(
        f"{second.name} and {first.name} are both {label} on {task}; name a folder that holds only one of them."
    )


def _keyed(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return the Runs of each row; rows differ by label, by base where several, and by folder where needed."""
    several = len({run.base for run in runs}) > 1
    by_stack: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_stack.setdefault(f"{run.base}/{run.label}" if several else run.label, []).append(run)
    result: dict[str, list[RunRecord]] = {}
    for key, members in by_stack.items():
        tasks: dict[str | None, list[RunRecord]] = {}
        for run in members:
            tasks.setdefault(run.task, []).append(run)
        if all(_only_seeds_differ(group) for group in tasks.values()):
            result[key] = members
            continue
        for run in members:
            result.setdefault(f"{key} ({_variant(run)})", []).append(run)
    return result


def _only_seeds_differ(runs: Sequence[RunRecord]) -> bool:
    recipes = [_without_seed(run.recipe) for run in runs]
    return all(recipe == recipes[0] for recipe in recipes)


def _without_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    training = recipe.get("training")
    rest = {key: value for key, value in recipe.items() if key not in {"run", "training"}}
    if isinstance(training, dict):
        rest["training"] = {key: value for key, value in training.items() if key != "seed"}
    return rest


def _variant(run: RunRecord) -> str:
    """Return what is left of a Run's name when task, label, stage and seed are taken away."""
    known = {run.task, run.label, run.stage, run.base}
    parts = [part for part in run.name.split("/") if part not in known and not re.fullmatch(r"seed-\d+", part)]
    return "/".join(parts) or "."


def _stack_rows(table: dict[str, list[RunRecord]]) -> dict[str, StackRow]:
    rows = []
    for key, runs in table.items():
        run = runs[0]
        folder = key.removeprefix(f"{run.base}/").removeprefix(run.label)
        rows.append(StackRow(key, str(run.base), run.label, f"{SPEC_NAMES.get(run.label, run.label)}{folder}"))
    bases = list(dict.fromkeys(sorted(row.base for row in rows)))
    place = {spec: at for at, spec in enumerate(in_order([row.spec for row in rows], ORDER))}
    rows.sort(key=lambda row: (bases.index(row.base), place[row.spec], row.key))
    return {row.key: row for row in rows}
