"""The paper's own Table 3 or 4, as printed, beside a study of the same table on whatever base."""

from __future__ import annotations

from clinstack.report.collect import ReportData
from clinstack.report.published import ARXIV, MEAN, PAPER, REVISED, published_auroc_rows
from clinstack.report.rows import SPEC_NAMES
from clinstack.report.tables.cells import Cell, Table
from clinstack.report.tables.names import heads, task_name
from clinstack.tasks import OUTCOMES


def paper_table(data: ReportData) -> Table:
    """Return the printed table that a study's rows stand for, with the mean that its figures have."""
    printed = published_auroc_rows(data.table or "")
    rows = []
    for row in printed:
        cells = [Cell(str(row.printed(task))) for task in (*OUTCOMES, MEAN)]
        cells.append(Cell(f"{row.arithmetic_mean:.2f}" + (" †" if row.mean_is_a_slip else "")))
        rows.append((SPEC_NAMES.get(row.spec, row.spec), cells))
    number = (data.table or "").replace("table", "Table ")
    slipped = [row for row in printed if row.mean_is_a_slip]
    note = (
        f"All figures are the paper's ({PAPER}, {ARXIV}), in per cent: MIMIC-III, one run each, no intervals. The "
        "last column is ours: the mean of the five printed figures."
    )
    if slipped:
        note += " † It is not the printed mean."
    if any((row.base, row.spec) == (REVISED.base, REVISED.spec) for row in printed):
        note += (
            f" A later picture of the authors has {', '.join(REVISED.figures[:5])} and {REVISED.figures[5]} for "
            f"{REVISED.base} {SPEC_NAMES[REVISED.spec]}."
        )
    return Table(
        "paper",
        f"{number} as printed in {PAPER}",
        note,
        ["Stack", *(task_name(task) for task in OUTCOMES), "Printed mean", "Mean"],
        rows,
        groups=heads(row.base for row in printed),
        folded=True,
        foreign=True,
    )
