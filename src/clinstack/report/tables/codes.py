"""Tables of single codes: how often each occurs, and how well each row finds it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from clinstack.report.summary import Summary
from clinstack.report.tables.cells import Table, count, over_seeds
from clinstack.report.tables.names import row_name, task_name, task_title

SHOWN = 10
_SPLITS = ("train", "validation", "test")


def code_tables(summary: Summary) -> list[Table]:
    """Return, for each task of several classes, its most and its least frequent classes."""
    tables = []
    for task in summary.tasks:
        if summary.data.tasks[task].kind == "binary":
            continue
        table = _table(summary, task)
        if table.rows:
            tables.append(table)
    return tables


def shown_stacks(summary: Summary, task: str) -> list[str]:
    """Return at most two rows whose classes are shown: that with the highest AUROC, and the one it is held against."""
    known = [
        (estimate["value"], stack)
        for stack in summary.data.stacks
        if (estimate := summary.auroc(stack, task)) is not None and _classes(summary, stack, task)
    ]
    if not known:
        return []
    best = max(known)[1]
    reference = summary.data.reference_of(best)
    return [best] if reference is None or not _classes(summary, reference, task) else [reference, best]


def _table(summary: Summary, task: str) -> Table:
    stacks = shown_stacks(summary, task)
    by_stack = {stack: _classes(summary, stack, task) for stack in stacks}
    first = by_stack[stacks[0]] if stacks else {}
    order = sorted(first, key=lambda name: (-_positives(first[name][0]), name))
    few = len(order) <= 2 * SHOWN
    chosen = order if few else [*order[:SHOWN], *order[-SHOWN:]]
    rows = []
    for name in chosen:
        counts = [count(_count(first[name][0], split)) for split in _SPLITS]
        cells = [over_seeds([entry.get("auroc") for entry in by_stack[stack].get(name, [])]) for stack in stacks]
        rows.append((name, [*counts, *cells]))
    groups = {} if few else {0: f"The {SHOWN} most frequent", SHOWN: f"The {SHOWN} least frequent"}
    which = "All" if few else f"Of {len(order):,} scored, the {SHOWN} most and the {SHOWN} least frequent"
    names = " and ".join(row_name(summary.data, stack) for stack in stacks)
    return Table(
        f"codes-{task}",
        f"{task_name(task)}: class by class",
        f"{which} classes of {task_title(task)}, by notes of the test patients that carry them, with the AUROC of "
        f"{names}. All of them, for all rows, are in tables/codes-{task}.csv. An interval of a class with few notes "
        "is wide, and may be missing where resamples lose the class.",
        ["Class", "Training", "Validation", "Test", *(row_name(summary.data, stack) for stack in stacks)],
        rows,
        groups=groups,
        folded=True,
    )


def code_file(summary: Summary, task: str) -> str:
    """Return all classes of a task with their counts, and AUROC and AUPRC of each row and seed, as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = [f"{metric}{part}" for metric in ("auroc", "auprc") for part in ("", "_low", "_high")]
    writer.writerow(["class", "stack", "seed", "train", "validation", "test", *figures])
    for stack, runs in summary.data.finetune[task].items():
        for run in runs:
            test = run.metrics.get("test")
            for entry in test.get("per_class", []) if isinstance(test, dict) else []:
                counts = ["" if (found := _count(entry, split)) is None else found for split in _SPLITS]
                values = [value for metric in ("auroc", "auprc") for value in _bounds(entry.get(metric))]
                seed = "" if run.seed is None else run.seed
                writer.writerow([entry["class"], stack, seed, *counts, *values])
    return buffer.getvalue()


def _bounds(estimate: Mapping[str, Any] | None) -> list[str]:
    if estimate is None or estimate["value"] is None:
        return ["", "", ""]
    values = [estimate["value"], *(estimate["interval"] or (None, None))]
    return ["" if value is None else f"{value:.6f}" for value in values]


def _classes(summary: Summary, stack: str, task: str) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of each class, one for each seed."""
    result: dict[str, list[dict[str, Any]]] = {}
    for test in summary.measured(stack, task):
        for entry in test.get("per_class", []):
            result.setdefault(str(entry["class"]), []).append(entry)
    return result


def _positives(entry: Mapping[str, Any]) -> int:
    return _count(entry, "test") or 0


def _count(entry: Mapping[str, Any], split: str) -> int | None:
    """Return how many notes of a split carry the class; Runs of before counted those of the test split alone."""
    counts = entry.get("counts")
    if not isinstance(counts, dict):
        counts = {"test": entry.get("positives")}
    value = counts.get(split)
    return None if value is None else int(value)
