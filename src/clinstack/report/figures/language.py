"""Figures of perplexity, and of how training went."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clinstack.report.collect import RunRecord
from clinstack.report.figures.canvas import FAINT, INK, LINES, Drawing, canvas, finish, lines_of
from clinstack.report.figures.choice import shown_rows
from clinstack.report.summary import Summary
from clinstack.report.tables.cells import number, perplexity_digits
from clinstack.report.tables.names import short_name, stack_label, task_name

_POINTS = 60
"""Of a curve of the training loss: means over as many equal parts of the training."""


def perplexity_bars(label: str, figures: dict[str, Any], caveat: str) -> Drawing:
    """Draw perplexity before and after pretraining, by note type."""
    groups = [("All notes", figures), *figures["by_note_type"].items()]
    models = (("base", "Base", "#9a9a9a"), ("adapted", stack_label(label), "#0072b2"))
    with canvas(0.9 + 0.62 * len(groups)) as (figure, axes):
        widest = max(part["base"]["perplexity"]["value"] or 0 for _, part in groups)
        for place, (_, part) in enumerate(groups):
            for shift, (key, _, colour) in zip((-0.19, 0.19), models, strict=True):
                estimate = part[key]["perplexity"]
                if estimate["value"] is None:
                    continue
                axes.barh(place + shift, estimate["value"], height=0.36, color=colour)
                end = estimate["value"]
                if estimate["interval"]:
                    axes.plot(estimate["interval"], [place + shift] * 2, color=INK, linewidth=1.2)
                    end = max(end, estimate["interval"][1])
                text = number(estimate["value"], perplexity_digits(estimate["value"]))
                axes.text(end + 0.015 * widest, place + shift, text, va="center", fontsize=8.5, color=INK)
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
        caption = "Perplexity of the base and after pretraining; lines are 95 % intervals."
        return finish(figure, f"perplexity-{label}", description, caption, caveat)


def pretraining_curves(runs: Mapping[str, RunRecord], key: str, caveat: str) -> Drawing | None:
    """Draw perplexity over the steps of pretrainings, on training batches and on validation patients.

    Parameters
    ----------
    runs : mapping of name to RunRecord
    key : str
        Of the drawing.
    caveat : str

    Returns
    -------
    Drawing or None
        None without logs.
    """
    logs = {name: log for name, run in runs.items() if (log := _log(run))[0]}
    if not logs:
        return None
    from matplotlib.ticker import LogLocator

    with canvas(2.9 + 0.09 * len(logs)) as (figure, axes):
        described = []
        for (name, (losses, validations)), (colour, style) in zip(logs.items(), LINES * len(logs), strict=False):
            steps, means = _thinned(losses)
            axes.plot(steps, np.exp(means), color=colour, linestyle=style, linewidth=1.0, alpha=0.55)
            known = [(step, math.exp(entry["loss"])) for step, entry in validations if entry.get("loss") is not None]
            last = f" {number(known[-1][1], perplexity_digits(known[-1][1]))}" if known else ""
            axes.plot([], [], color=colour, linestyle=style, marker="o", markersize=4, label=f"{name}{last}")
            if known:
                axes.plot(*zip(*known, strict=True), "o", linestyle=style, color=colour, markersize=4, linewidth=1.5)
            described.append(f"{name}{last}")
        axes.set(xlabel="Step", ylabel="Perplexity")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter("")
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
        description = f"Perplexity over the steps of pretraining; at the last validation: {', '.join(described)}."
        caption = (
            "Pretraining: perplexity of training batches, averaged in parts (lines), and of the validation patients "
            "(dots, the last one's figure in the legend)."
        )
        return finish(figure, key, description, caption, caveat)


def learning_curves(summary: Summary, task: str, caveat: str) -> Drawing | None:
    """Draw training loss and the validation figure of a task's rows over their steps; None without logs."""
    data = summary.data
    chosen = shown_rows(summary, task)
    logs = {stack: _log(data.finetune[task][stack][0]) for stack in chosen}
    logs = {stack: log for stack, log in logs.items() if log[0] and log[1]}
    if not logs:
        return None
    lines = lines_of(data, list(logs))
    with canvas(4.6, panels=(1, 1), share_x=True) as (figure, (upper, lower)):
        for stack, (losses, validations) in logs.items():
            colour, style = lines[stack]
            upper.plot(*_thinned(losses), color=colour, linestyle=style, linewidth=1.2)
            known = [(step, entry["auroc"]) for step, entry in validations if entry.get("auroc") is not None]
            if not known:
                continue
            lower.plot(
                *zip(*known, strict=True), color=colour, linestyle=style, linewidth=1.4, label=short_name(data, stack)
            )
            kept = data.finetune[task][stack][0].metrics.get("best_epoch")
            if isinstance(kept, int) and 1 <= kept <= len(validations):
                step, entry = validations[kept - 1]
                lower.plot([step], [entry["auroc"]], "o", color=colour, markersize=4.5)
        upper.set(ylabel="Training loss", title=task_name(task))
        lower.set(ylabel="Validation AUROC", xlabel="Step")
        lower.axhline(0.5, color=FAINT, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
        description = f"Learning curves on {task}: training loss and validation AUROC over steps of {len(logs)} rows."
        caption = (
            f"{task_name(task)}: training loss, averaged in parts, and AUROC on the validation patients; "
            f"dots: the weights that were kept.{_first_seed(summary, task)}"
        )
        return finish(figure, f"learning-{task}", description, caption, caveat)


def _first_seed(summary: Summary, task: str) -> str:
    several = any(len(runs) > 1 for runs in summary.data.finetune[task].values())
    return " Of several seeds the first." if several else ""


def _log(run: RunRecord) -> tuple[list[tuple[int, float]], list[tuple[int, Mapping[str, Any]]]]:
    """Return (step, training loss) and (step, validation figures) of a Run's ``log.jsonl``."""
    losses: list[tuple[int, float]] = []
    validations: list[tuple[int, Mapping[str, Any]]] = []
    path = run.folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the half line of a killed process
        figures = {
            key.removeprefix("validation_"): value for key, value in entry.items() if key.startswith("validation_")
        }
        if figures and isinstance(entry.get("step"), int):
            validations.append((entry["step"], figures))
        elif isinstance(entry.get("loss"), (int, float)) and isinstance(entry.get("step"), int):
            losses.append((entry["step"], float(entry["loss"])))
    return losses, validations


def _thinned(points: list[tuple[int, float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the means of a long curve over equal parts."""
    values = np.asarray(points, dtype=np.float64)
    parts = np.array_split(values, min(_POINTS, len(values)))
    means = np.asarray([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]
