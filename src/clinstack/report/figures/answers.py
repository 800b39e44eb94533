"""A figure of answers: each model's headline figures with their intervals."""

from __future__ import annotations

from clinstack.report.answers import NAMES, Answers
from clinstack.report.figures.canvas import FAINT, Drawing, canvas, finish
from clinstack.report.tables.cells import holds, number

_SHOWN = ("token_f1", "grounding")
_MOST = 12
"""Rows that can be told apart."""


def answer_figures(answers: Answers, caveat: str) -> list[Drawing]:
    """Draw one figure for each of token F1 and grounding; none for a single model, or for very many."""
    if not 2 <= len(answers.metrics) <= _MOST:
        return []
    return [drawing for metric in _SHOWN if (drawing := _dots(answers, metric, caveat)) is not None]


def _dots(answers: Answers, metric: str, caveat: str) -> Drawing | None:
    rows = {name: found[metric] for name, found in answers.metrics.items() if metric in found}
    rows = {name: row for name, row in rows.items() if row["value"] is not None}
    if len(rows) < 2:
        return None
    with canvas(0.85 + 0.5 * len(rows)) as (figure, axes):
        across = axes.get_yaxis_transform()
        for place, (name, row) in enumerate(rows.items()):
            clear = holds(answers.difference(name, answers.references.get(name), metric), above=True)
            colour = "#0072b2" if clear else "#5c5c5c"
            if row["interval"]:
                axes.plot(row["interval"], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
            fill = colour if clear else "white"
            axes.plot([row["value"]], [place], "o", markersize=6, color=colour, markerfacecolor=fill)
            axes.text(0, place - 0.3, name, transform=across, fontsize=8, va="center")
            axes.text(1, place - 0.3, number(row["value"]), transform=across, fontsize=8, va="center", ha="right")
        axes.set(ylim=(len(rows) - 0.6, -0.6), yticks=[], xlim=(-0.01, 1.01))
        axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{NAMES[metric]}, with 95 % interval")
        described = "; ".join(f"{name} {number(row['value'])}" for name, row in rows.items())
        caption = (
            f"{NAMES[metric]} of each model's answers. Filled: above the untouched base by a paired difference that "
            "holds after Holm's correction."
        )
        return finish(figure, f"answers-{metric}", f"{NAMES[metric]} by model. {described}.", caption, caveat)
