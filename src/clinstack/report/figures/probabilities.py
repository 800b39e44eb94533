"""Reliability diagrams and decision curves, of what Runs measured on the test patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.calibration import apply_calibration
from clinstack.report.figures.canvas import FAINT, WIDTH, Drawing, canvas, finish, legend, lines_of
from clinstack.report.figures.choice import left_out_sentence, shown_rows
from clinstack.report.summary import Summary
from clinstack.report.tables.cells import number
from clinstack.report.tables.names import row_name, short_name, task_name

_FITS = (
    ("none", "unfitted", "#5c5c5c", ":"),
    ("temperature", "temperature", "#d55e00", "--"),
    ("isotonic", "isotonic", "#0072b2", "-"),
)


def reliability_figure(summary: Summary, task: str, caveat: str) -> Drawing | None:
    """Draw observed against predicted for the row with the highest AUROC, with a histogram; None if not measured."""
    best = best_row(summary, task)
    calibration = summary.measured(best, task)[0].get("calibration") if best is not None else None
    if best is None or not isinstance(calibration, dict):
        return None
    known = [(fit, bins) for fit in _FITS if (bins := _bins(calibration, fit[0]))]
    if not known:
        return None
    with canvas(WIDTH + 0.9, panels=(4, 1), share_x=True) as (figure, (upper, lower)):
        upper.plot([0, 1], [0, 1], color="#bdbdbd", linewidth=0.8)
        for (method, name, colour, style), bins in known:
            error = _ece(calibration, method)
            upper.plot(
                [entry["mean_predicted"] for entry in bins],
                [entry["observed"] for entry in bins],
                "o",
                linestyle=style,
                color=colour,
                markersize=3.5,
                linewidth=1.4,
                label=name + (f", ECE {number(error)}" if error is not None else ""),
            )
        lower.hist(_predicted(summary, best, task), bins=20, range=(0, 1), color="#9a9a9a", edgecolor="white", log=True)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="Observed", title=task_name(task))
        lower.set(xlabel="Predicted probability", ylabel="Count")
        lower.yaxis.set_major_formatter("{x:,.0f}")
        lower.yaxis.set_minor_formatter("")
        legend(upper, short_name(summary.data, best), "upper left")
        description = f"Reliability diagram of {row_name(summary.data, best)} on {task}: " + "; ".join(
            f"{name}: ECE {number(error)}"
            for (method, name, _, _), _ in known
            if (error := _ece(calibration, method)) is not None
        )
        caption = (
            f"{task_name(task)}: calibration of the row with the highest AUROC, on the test patients, unfitted and "
            "after fits on validation. Below: how often each unfitted probability is predicted, on a logarithmic scale."
        )
        return finish(figure, f"calibration-{task}", description, caption, caveat)


def decision_figure(summary: Summary, task: str, caveat: str) -> Drawing | None:
    """Draw net benefit over the threshold probability of a binary task's rows; None if not measured."""
    data = summary.data
    curves = {}
    for stack in shown_rows(summary, task):
        tests = summary.measured(stack, task)
        curve = tests[0].get("decision_curve") if tests else None
        if isinstance(curve, dict) and curve.get("thresholds"):
            curves[stack] = curve
    if not curves:
        return None
    lines = lines_of(data, list(curves))
    with canvas(3.4) as (figure, axes):
        first = next(iter(curves.values()))
        axes.axhline(0, color=FAINT, linewidth=0.9, label="treat nobody")
        axes.plot(
            first["thresholds"], first["treat_all"], color=FAINT, linewidth=0.9, linestyle="--", label="treat all"
        )
        highest = max(max(_known(curve["net_benefit"]), default=0) for curve in curves.values())
        for stack, curve in curves.items():
            points = [(x, y) for x, y in zip(curve["thresholds"], curve["net_benefit"], strict=True) if y is not None]
            axes.plot(
                *zip(*points, strict=True),
                color=lines[stack][0],
                linestyle=lines[stack][1],
                linewidth=1.5,
                label=short_name(data, stack),
            )
        top = max(highest, *_known(first["treat_all"])) or 0.01
        axes.set(
            ylim=(-0.35 * top, 1.08 * top), xlabel="Threshold probability", ylabel="Net benefit", title=task_name(task)
        )
        axes.set_xlim(0, _last_useful(curves))
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
        description = (
            f"Decision curves on {task}: net benefit of {', '.join(row_name(data, stack) for stack in curves)}."
        )
        caption = (
            f"{task_name(task)}: net benefit (Vickers and Elkin 2006) on the test patients, of treating those above a "
            f"threshold probability.{left_out_sentence(summary, task)}"
        )
        return finish(figure, f"decision-{task}", description, caption, caveat)


def _last_useful(curves: Mapping[str, Mapping[str, Any]]) -> float:
    """Return up to where acting on any row brings something; beyond it all curves are 0 or below."""
    useful = [
        threshold
        for curve in curves.values()
        for threshold, benefit in zip(curve["thresholds"], curve["net_benefit"], strict=True)
        if benefit is not None and benefit > 0
    ]
    return float(min(1.0, max(useful, default=0.9) + 0.1))


def best_row(summary: Summary, task: str) -> str | None:
    """Return the row with the highest AUROC on a task."""
    known = [
        (estimate["value"], stack)
        for stack in summary.data.finetune[task]
        if (estimate := summary.auroc(stack, task)) is not None and summary.measured(stack, task)
    ]
    return max(known)[1] if known else None


def _predicted(summary: Summary, stack: str, task: str) -> FloatArray:
    """Return the unfitted probabilities of a row's first Run on the test patients, of all judged classes."""
    rows = summary.scored(stack, task)
    return apply_calibration(rows.task, rows.logits, None, "none")[:, rows.judged_columns].ravel()


def _bins(calibration: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    fitted = calibration.get(method)
    bins = fitted.get("reliability", []) if isinstance(fitted, dict) else []
    return [entry for entry in bins if entry["count"] and entry["mean_predicted"] is not None]


def _ece(calibration: Mapping[str, Any], method: str) -> float | None:
    error = calibration[method].get("ece")
    return None if error is None or error["value"] is None else float(error["value"])


def _known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]
