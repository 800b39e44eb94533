"""Tables of decisions and probabilities: F1 at the threshold chosen on validation, operating points, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinstack.report.summary import Summary
from clinstack.report.tables.cells import MISSING, Cell, Table, over_seeds
from clinstack.report.tables.names import grouped, short_name, task_name

METHODS = ("none", "temperature", "isotonic")


def f1_table(summary: Summary) -> Table:
    """Return F1 of each row on each task, at the threshold that was chosen on the validation patients."""
    data = summary.data
    rows = []
    for stack in data.stacks:
        cells = [
            over_seeds([_decision(test, "f1") for test in summary.measured(stack, task)]) for task in summary.tasks
        ]
        rows.append((data.rows[stack].name, cells))
    if all(cell.text == MISSING for _, cells in rows for cell in cells):
        rows = []
    return Table(
        "f1",
        "F1 at the threshold chosen on validation",
        "Of the positive class, or the plain mean over classes. The threshold is the one with the highest F1 on the "
        "validation patients; of classes that exclude each other the one with the highest score is taken, without a "
        f"threshold. {_beside(summary)}",
        ["Stack", *(task_name(task) for task in summary.tasks)],
        rows,
        groups=grouped(data, data.stacks),
    )


def operating_table(summary: Summary) -> Table:
    """Return precision, recall and specificity of each row on each binary task at its threshold."""
    data = summary.data
    tasks = [task for task in summary.tasks if data.tasks[task].kind == "binary"]
    names = ("precision", "recall", "specificity")
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for task in tasks:
        known = [stack for stack in data.stacks if any("threshold" in test for test in summary.measured(stack, task))]
        if known:
            groups[len(rows)] = task_name(task)
        for stack in known:
            tests = summary.measured(stack, task)
            rows.append(
                (short_name(data, stack), [over_seeds([_decision(test, name) for test in tests]) for name in names])
            )
    return Table(
        "operating-points",
        "Decisions at the threshold chosen on validation",
        f"Binary tasks. Precision is the positive predictive value, recall the sensitivity. {_beside(summary)}",
        ["Stack", "Precision", "Recall", "Specificity"],
        rows,
        groups=groups,
        folded=True,
    )


def calibration_table(summary: Summary) -> Table:
    """Return how well probabilities fit what happens, as they come out and after each fit on validation patients."""
    data = summary.data
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for task in summary.tasks:
        known = [stack for stack in data.stacks if any("calibration" in test for test in summary.measured(stack, task))]
        if known:
            groups[len(rows)] = task_name(task)
        for stack in known:
            tests = summary.measured(stack, task)
            cells = [over_seeds([_fit(test, method, "ece") for test in tests]) for method in METHODS]
            cells += [over_seeds([_fit(test, "none", name) for test in tests], 2) for name in ("slope", "intercept")]
            cells.append(over_seeds([_fit(test, "none", "brier") for test in tests]))
            rows.append((short_name(data, stack), cells))
    return Table(
        "calibration",
        "Calibration on the test patients",
        "ECE is the mean distance between predicted and observed over bins (expected calibration error), as the "
        "probabilities come out and after temperature and isotonic fits on the validation patients, which are kept "
        "with the stack. Slope 1 and intercept 0 are perfect; slope, intercept and Brier score are of the unfitted "
        f"probabilities. {_beside(summary)}",
        ["Stack", "ECE", "ECE, temperature", "ECE, isotonic", "Slope", "Intercept", "Brier"],
        rows,
        groups=groups,
        folded=True,
    )


def _beside(summary: Summary) -> str:
    several = any(len(runs) > 1 for stacks in summary.data.finetune.values() for runs in stacks.values())
    return (
        "Figures are means over seeds; beside them the lowest and the highest."
        if several
        else "Beside each figure its 95 % interval over patients."
    )


def _decision(test: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    threshold = test.get("threshold")
    return _estimate(threshold, name) if isinstance(threshold, dict) else None


def _fit(test: Mapping[str, Any], method: str, name: str) -> Mapping[str, Any] | None:
    calibration = test.get("calibration")
    fitted = calibration.get(method) if isinstance(calibration, dict) else None
    return _estimate(fitted, name) if isinstance(fitted, dict) else None


def _estimate(values: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    estimate = values.get(name)
    return estimate if isinstance(estimate, dict) and "value" in estimate else None
