"""The report's figures as inline SVG. Drawn narrow, so that letters stay readable on a phone and grow on a desk."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from clinstack.evaluate.compare import MACRO
from clinstack.report.summary import Summary
from clinstack.report.tables import (
    excludes_zero,
    number,
    perplexity_digits,
    short_name,
    stack_label,
    stack_name,
    task_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.0
_INK, _FAINT = "#1a1a1a", "#8a8a8a"
# Okabe and Ito's palette, which colour-blind readers can tell apart; line styles say the same again.
_LINES: dict[str, tuple[str, str]] = {
    "head": ("#5c5c5c", ":"),
    "lora": ("#b87400", "--"),
    "clinical-frozen": ("#56b4e9", ":"),
    "clinical-frozen+lora": ("#0072b2", "-"),
    "clinical-trainable": ("#cc79a7", ":"),
    "clinical-trainable+lora": ("#d55e00", "-"),
}
_OTHERS = (("#009e73", "-"), ("#5c5c5c", "-."), ("#0072b2", "-."), ("#d55e00", "-."))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "svg.fonttype": "path",  # the same letters on every machine
    "svg.hashsalt": "clinstack",  # the same bytes for the same figures
}


@dataclass(frozen=True)
class Drawing:
    """A figure for the page.

    Parameters
    ----------
    svg : str
        An ``<svg>`` element with a title for screen readers.
    caption : str
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Drawings:
    """All figures of a report; each list may be empty."""

    perplexity: list[Drawing]
    roc: list[Drawing]
    forest: list[Drawing]


def draw(summary: Summary) -> Drawings:
    """Draw what there is to draw."""
    tasks = [*([MACRO] if len(summary.tasks) > 1 else []), *summary.tasks]
    differences = [row for row in summary.comparison.differences if row["interval"]]
    by_task = {task: [row for row in differences if row["task"] == task] for task in tasks}
    return Drawings(
        perplexity=[_perplexity_bars(label, figures) for label, figures in summary.perplexity.items()],
        roc=[
            _roc_curves(summary, task)
            for task in summary.tasks
            if any(len(points) for points, _ in summary.curves[task].values())
        ],
        forest=[_forest(task, rows, _span(differences)) for task, rows in by_task.items() if rows],
    )


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, key: str, description: str) -> str:
    """Return the figure as an element for an HTML page: no prolog, no metadata, no fixed size, a title.

    ``key`` goes before every id, because several figures share one page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{re.sub('[^a-z0-9]+', '-', key.lower())}-", body)
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None  # matplotlib always writes one
    name = escape(description)
    opening = f'<svg role="img" aria-label="{name}" {box[0]}><title>{name}</title>'
    return opening + body[body.index(">") + 1 :].strip()


def _perplexity_bars(label: str, figures: dict[str, Any]) -> Drawing:
    groups = [("All notes", figures), *figures["by_note_type"].items()]
    models = (("base", "Base", "#9a9a9a"), ("adapted", stack_label(label), "#0072b2"))
    with _figure(0.9 + 0.62 * len(groups)) as (figure, axes):
        widest = max(part["base"]["perplexity"]["value"] or 0 for _, part in groups)
        for place, (_, part) in enumerate(groups):
            for shift, (key, _, colour) in zip((-0.19, 0.19), models, strict=True):
                estimate = part[key]["perplexity"]
                if estimate["value"] is None:
                    continue
                axes.barh(place + shift, estimate["value"], height=0.36, color=colour)
                end = estimate["value"]
                if estimate["interval"]:
                    axes.plot(estimate["interval"], [place + shift] * 2, color=_INK, linewidth=1.2)
                    end = max(end, estimate["interval"][1])
                text = number(estimate["value"], perplexity_digits(estimate["value"]))
                axes.text(end + 0.015 * widest, place + shift, text, va="center", fontsize=8.5, color=_INK)
        axes.set_yticks(range(len(groups)), [name for name, _ in groups])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        axes.set_xlabel("Perplexity (lower is better)")
        handles = [axes.barh(0, 0, color=colour, label=name) for _, name, colour in models]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        base, adapted = figures["base"]["perplexity"], figures["adapted"]["perplexity"]
        description = (
            f"Bars of perplexity by note type. All notes: base {number(base['value'], 1)}, "
            f"{stack_label(label)} {number(adapted['value'], 1)}."
        )
        return Drawing(
            _svg(figure, f"perplexity-{label}", description),
            "Perplexity of the base and after pretraining; lines are 95 % intervals.",
        )


def _roc_curves(summary: Summary, task: str) -> Drawing:
    kind = summary.data.tasks[task].kind
    with _figure(_WIDTH) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#bdbdbd", linewidth=0.8)
        described = []
        others = iter(_OTHERS * 10)
        for stack, (false_positives, true_positives) in summary.curves[task].items():
            if not len(false_positives):
                continue
            colour, style = _LINES.get(stack) or next(others)
            estimate = summary.auroc(stack, task)
            area = f" {number(estimate['value'])}" if estimate else ""
            described.append(f"{stack_name(stack)}{area}")
            axes.plot(
                false_positives,
                true_positives,
                color=colour,
                linestyle=style,
                linewidth=1.6,
                label=f"{short_name(stack)}{area}",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal", title=task_name(task))
        axes.set_xlabel("1 − specificity")
        axes.set_ylabel("Sensitivity")
        axes.legend(
            loc="lower right",
            fontsize=7.5,
            frameon=True,
            framealpha=0.9,
            edgecolor="none",
            title="Stack and AUROC",
            title_fontsize=7.5,
            alignment="left",
        )
        mean = "" if kind == "binary" else ", mean of the curves of the scored classes against the rest"
        description = f"ROC curves on {task}{mean}. AUROC: {'; '.join(described)}."
        legend = {"binary": "", "multiclass": " The legend gives the one-vs-one AUROC.", "multilabel": ""}[kind]
        return Drawing(
            _svg(figure, f"roc-{task}", description), f"{task_name(task)}: ROC on the test patients{mean}.{legend}"
        )


def _forest(task: str, rows: list[dict[str, Any]], span: tuple[float, float]) -> Drawing:
    with _figure(0.9 + 0.38 * len(rows)) as (figure, axes):
        across = axes.get_yaxis_transform()
        for place, row in enumerate(rows):
            clear = excludes_zero(row, above=True) or excludes_zero(row, above=False)
            colour = "#0072b2" if clear else "#767676"
            axes.plot([0, 0], [place - 0.18, place + 0.46], color=_FAINT, linewidth=0.9)  # not through the words
            axes.plot(row["interval"], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
            fill = colour if clear else "white"
            axes.plot([row["value"]], [place], "D", markersize=5.5, color=colour, markerfacecolor=fill)
            name = f"{short_name(row['a'])} − {short_name(row['b'])}"
            bounds = ", ".join(number(bound, signed=True) for bound in row["interval"])
            values = f"{number(row['value'], signed=True)} [{bounds}]"
            axes.text(0, place - 0.36, name, transform=across, fontsize=7.5, va="center")
            axes.text(1, place - 0.36, values, transform=across, fontsize=7.5, va="center", ha="right")
        axes.set(ylim=(len(rows) - 0.5, -0.75), yticks=[], xlim=span)
        axes.spines["left"].set_visible(False)
        axes.set_title("Mean over tasks" if task == MACRO else task_name(task))
        axes.set_xlabel("Difference in AUROC, with 95 % interval")
        description = "Forest plot of paired differences in AUROC. " + "; ".join(
            f"{short_name(row['a'])} minus {short_name(row['b'])}: {number(row['value'], signed=True)}" for row in rows
        )
        what = "mean AUROC over tasks" if task == MACRO else f"AUROC on {task_name(task)}"
        return Drawing(
            _svg(figure, f"forest-{task}", description),
            f"Paired differences in {what}. Filled: the interval excludes 0; hollow: it includes 0.",
        )


def _span(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the same limits for all forest plots, 0 within them."""
    bounds = [0.0, *(bound for row in rows for bound in row["interval"])]
    margin = 0.04 * (max(bounds) - min(bounds)) or 0.01
    return min(bounds) - margin, max(bounds) + margin
