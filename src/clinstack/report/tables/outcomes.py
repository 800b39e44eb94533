"""Tables of how well outcomes are predicted: AUROC (the paper's Tables 3 and 4), paired differences, AUPRC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clinstack.evaluate.compare import MACRO
from clinstack.report.published import PAPER, PAPER_TABLES, REVISED, PublishedAuroc, slips
from clinstack.report.summary import Summary
from clinstack.report.tables.cells import MISSING, Cell, Table, figure, holds, number, p_value
from clinstack.report.tables.language import intervals_note
from clinstack.report.tables.names import grouped, heads, pair_group, pair_name, task_name, task_title

METRIC_NAMES = {"auroc": "AUROC", "auroc_ovo": "AUROC, one-vs-one", "auroc_macro": "AUROC, macro"}
SLIP = "†"


def columns_of(summary: Summary) -> list[str]:
    """Return the tasks, and ``macro`` behind them where there are several and a row has them all."""
    mean = len(summary.tasks) > 1 and any(summary.auroc(stack, MACRO) for stack in summary.data.stacks)
    return [*summary.tasks, *([MACRO] if mean else [])]


def auroc_table(summary: Summary, name: Callable[[str], str] | None = None) -> Table:
    """Return the AUROC of each row on each task and on average.

    ``name`` turns a row's key into its head.
    """
    data, columns = summary.data, columns_of(summary)
    rows = []
    for stack in data.stacks:
        cells = []
        for task in columns:
            against = summary.against_reference(stack, task)
            estimate = summary.auroc(stack, task)
            printed = _printed(data.rows[stack].paper, task)
            cell = figure(estimate, strong=holds(against, above=True), paper=printed)
            if estimate is not None:
                cell = Cell(
                    cell.text + (" ▼" if holds(against, above=False) else ""),
                    cell.detail + _seeds(estimate),
                    cell.strong,
                    printed,
                )
            cells.append(cell)
        rows.append((data.rows[stack].name if name is None else name(stack), cells))
    metrics = "; ".join(
        f"{task_title(test['task'])}: {METRIC_NAMES[test['metric']]}" for test in summary.comparison.tests
    )
    mean = " Mean is the plain mean over the tasks, only for rows that have them all." if MACRO in columns else ""
    number_of_table = data.table.replace("table", "Table ") if data.table in PAPER_TABLES else ""
    title = "AUROC on the test patients"
    return Table(
        "auroc",
        f"{number_of_table}: {title}" if number_of_table else title,
        f"Bold: above {reference_name(summary)} by a paired difference that holds after Holm's correction over "
        f"all differences of this page, at 0.05; ▼: below it likewise. {metrics}.{mean} {intervals_note(summary)}"
        f"{_seeds_note(summary)}{_paper_note(summary)}",
        ["Stack", *(task_name(task) for task in columns)],
        rows,
        groups={} if name is not None else grouped(data, data.stacks),
    )


def _printed(row: PublishedAuroc | None, task: str) -> str:
    if row is None:
        return ""
    printed = row.printed(task)
    if printed is None:
        return ""
    return printed + (f" {SLIP}" if task == MACRO and row.mean_is_a_slip else "")


def reference_name(summary: Summary) -> str:
    """Say what rows are held against."""
    data = summary.data
    if data.reference is not None:
        return data.rows[data.reference].name
    specs = {data.rows[reference].spec for key in data.stacks if (reference := data.reference_of(key)) is not None}
    if specs == {"head"}:
        return "the head alone on the same base" if len(data.bases) > 1 else "the head alone"
    if specs == {"full"}:
        return "the same base fine-tuned whole"
    return "the first row of the same base"


def _seeds(estimate: dict[str, Any]) -> str:
    deviation = estimate.get("seed_deviation")
    return "" if deviation is None else f"; seeds ±{number(deviation)}"


def _seeds_note(summary: Summary) -> str:
    numbers = {len(runs) for stacks in summary.data.finetune.values() for runs in stacks.values()}
    if numbers <= {1}:
        return ""
    low, high = min(numbers), max(numbers)
    return (
        f" Each figure is the mean over {low if low == high else f'{low} to {high}'} seeds; ± is the standard "
        "deviation between them, and the interval covers patients and seeds."
    )


def _paper_note(summary: Summary) -> str:
    rows = [row.paper for row in summary.data.rows.values() if row.paper is not None]
    if not rows:
        return ""
    table = rows[0].table
    note = (
        f" Figures after the word “paper” are printed in {PAPER}, {table.replace('table', 'Table ')}, in per cent: "
        "another base and other patients, one run each, without intervals. They stand here for the order of the rows."
    )
    if any(row.mean_is_a_slip for row in rows):
        note += f" {SLIP} The printed mean is not that of the printed figures: {'; '.join(slips(table))}."
    if any((row.base, row.spec) == (REVISED.base, REVISED.spec) for row in rows):
        note += (
            f" The authors' later picture of {REVISED.base} {REVISED.spec} reads {', '.join(REVISED.figures[:5])}, "
            f"mean {REVISED.figures[5]}."
        )
    return note


def difference_table(summary: Summary, tasks: Sequence[str] | None = None) -> Table:
    """Return the paired differences between rows, on all tasks and on average or only on those of ``tasks``."""
    data, columns = summary.data, tasks or columns_of(summary)
    pairs = dict.fromkeys((row["a"], row["b"]) for row in summary.comparison.differences)
    rows = []
    groups: list[str] = []
    for a, b in pairs:
        estimates = [summary.difference(a, b, task) for task in columns]
        if not any(estimates):
            continue
        cells = []
        for one in estimates:
            cell = figure(one, signed=True, strong=holds(one, above=True) or holds(one, above=False))
            p = p_value(one.get("p_holm")) if one is not None else ""
            cells.append(Cell(cell.text, "; ".join(part for part in (cell.detail, p) if part), cell.strong))
        rows.append((pair_name(data, a, b), cells))
        groups.append(pair_group(data, a, b))
    specs = {row.spec for row in data.rows.values()}
    words = (
        " Frozen and Trainable stand for the clinical LoRA so used, Downstream for the task's own LoRA above it."
        if any(spec.startswith("clinical-") for spec in specs)
        else ""
    )
    family = sum(row.get("p_holm") is not None for row in summary.comparison.differences)
    corrected = f" p is corrected by Holm's method over the {family} differences of this page." if family else ""
    return Table(
        "differences",
        "Paired differences in AUROC",
        f"First minus second, on the same test examples and the same resampled patients.{corrected} Bold: it holds "
        f"after the correction, at 0.05. The intervals themselves are not widened.{words}",
        ["Difference", *(task_name(task) for task in columns)],
        rows,
        groups=heads(groups),
    )


def auprc_table(summary: Summary) -> Table:
    """Return the AUPRC of each row on each task."""
    data = summary.data
    rows = [
        (data.rows[stack].name, [figure(summary.auprc(stack, task)) for task in summary.tasks]) for stack in data.stacks
    ]
    shares = [
        f"{task_name(test['task'])} {100 * test['prevalence']:.1f} %"
        for test in summary.comparison.tests
        if test["prevalence"] is not None
    ]
    chance = f" A score without information reaches the share of positives: {', '.join(shares)}." if shares else ""
    return Table(
        "auprc",
        "AUPRC (average precision) on the test patients",
        f"Several classes: the plain mean over classes against the rest.{chance} With few positives the resampled "
        f"AUPRC runs high, so intervals reach further up than down. {intervals_note(summary)}",
        ["Stack", *(task_name(task) for task in summary.tasks)],
        rows,
        groups=grouped(data, data.stacks),
    )


def test_table(summary: Summary) -> Table:
    """Return what each test set is, with the classes that have no AUROC named."""
    rows = []
    for test in summary.comparison.tests:
        left_out = test["classes_left_out"]
        positive = test["prevalence"]
        named = ", ".join(left_out[:20]) + (f" and {len(left_out) - 20} more" if len(left_out) > 20 else "")
        rows.append(
            (
                task_title(test["task"]),
                [
                    Cell(test["kind"]),
                    Cell(f"{test['rows']:,}"),
                    Cell(f"{test['patients']:,}"),
                    Cell(MISSING if positive is None else f"{100 * positive:.1f} %"),
                    Cell(f"{test['classes_scored']:,} of {test['classes']:,}"),
                    Cell(named or "none"),
                ],
            )
        )
    return Table(
        "tests",
        "Test sets, and classes left out",
        "A class that no test example carries, or that all carry, has no AUROC; it is in no average and is named here.",
        ["Task", "Kind", "Examples", "Patients", "Positive", "Classes scored", "Left out"],
        rows,
        words=True,
    )
