"""Forest plots of paired differences."""

from __future__ import annotations

from typing import Any

from clinstack.evaluate.compare import MACRO
from clinstack.report.figures.canvas import FAINT, Drawing, canvas, finish
from clinstack.report.summary import Summary
from clinstack.report.tables.cells import holds, number
from clinstack.report.tables.names import heads, pair_group, pair_name, task_name

_LONG = 40
"""Letters of a name that leave room for its figures on the same line."""


def forest_figures(summary: Summary, caveat: str) -> list[Drawing]:
    """Draw a forest plot for the mean over tasks and for each task, all with the same limits."""
    tasks = [*([MACRO] if len(summary.tasks) > 1 else []), *summary.tasks]
    differences = [row for row in summary.comparison.differences if row["interval"]]
    by_task = {task: [row for row in differences if row["task"] == task] for task in tasks}
    return [_forest(summary, task, rows, _span(differences), caveat) for task, rows in by_task.items() if rows]


def _forest(summary: Summary, task: str, rows: list[dict[str, Any]], span: tuple[float, float], caveat: str) -> Drawing:
    data = summary.data
    begins = heads(pair_group(data, row["a"], row["b"]) for row in rows)
    names = [pair_name(data, row["a"], row["b"]) for row in rows]
    above = [0.36 * (2 if len(name) > _LONG else 1) for name in names]  # of words over each interval
    places: list[float] = []
    for at, height in enumerate(above):
        places.append((places[-1] + 0.64 if places else -0.36) + height + (0.75 if at in begins else 0))
    with canvas(0.9 + 0.38 * (places[-1] + 1)) as (figure, axes):
        across = axes.get_yaxis_transform()
        for at, (row, place, name) in enumerate(zip(rows, places, names, strict=True)):
            clear = holds(row, above=True) or holds(row, above=False)
            colour = "#0072b2" if clear else "#767676"
            axes.plot([0, 0], [place - 0.18, place + 0.46], color=FAINT, linewidth=0.9)  # not through the words
            axes.plot(row["interval"], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
            fill = colour if clear else "white"
            axes.plot([row["value"]], [place], "D", markersize=5.5, color=colour, markerfacecolor=fill)
            bounds = ", ".join(number(bound, signed=True) for bound in row["interval"])
            values = f"{number(row['value'], signed=True)} [{bounds}]"
            first = place - above[at]
            if at in begins:
                axes.text(0, first - 0.5, begins[at], transform=across, fontsize=8.5, va="center", style="italic")
            axes.text(0, first, name, transform=across, fontsize=7.5, va="center")
            axes.text(1, place - 0.36, values, transform=across, fontsize=7.5, va="center", ha="right")
        axes.set(ylim=(places[-1] + 0.5, -0.75), yticks=[], xlim=span)
        axes.spines["left"].set_visible(False)
        axes.set_title("Mean over tasks" if task == MACRO else task_name(task))
        axes.set_xlabel("Difference in AUROC, with 95 % interval")
        description = "Forest plot of paired differences in AUROC. " + "; ".join(
            f"{name}: {number(row['value'], signed=True)}" for name, row in zip(names, rows, strict=True)
        )
        what = "mean AUROC over tasks" if task == MACRO else f"AUROC on {task_name(task)}"
        caption = f"Paired differences in {what}. Filled: it holds after Holm's correction; hollow: it does not."
        return finish(figure, f"forest-{task}", description, caption, caveat)


def _span(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the same limits for all forest plots, 0 within them."""
    bounds = [0.0, *(bound for row in rows for bound in row["interval"])]
    margin = 0.04 * (max(bounds) - min(bounds)) or 0.01
    return min(bounds) - margin, max(bounds) + margin
