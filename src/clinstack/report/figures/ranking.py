"""ROC and precision-recall curves of the test patients."""

from __future__ import annotations

import numpy as np

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.curves import precision_recall_curve, roc_curve
from clinstack.report.figures.canvas import WIDTH, Drawing, canvas, finish, legend, lines_of
from clinstack.report.figures.choice import left_out_sentence, shown_rows
from clinstack.report.summary import Summary
from clinstack.report.tables.cells import number
from clinstack.report.tables.names import row_name, short_name, task_name

_MOST_POINTS = 400


def roc_figure(summary: Summary, task: str, caveat: str) -> Drawing | None:
    """Draw the ROC curves of a task's rows; None when no class has both labels."""
    curves = {stack: roc_curve(summary.scored(stack, task)) for stack in shown_rows(summary, task)}
    return _figure(summary, task, "roc", {key: curve for key, curve in curves.items() if len(curve[0])}, caveat)


def precision_recall_figure(summary: Summary, task: str, caveat: str) -> Drawing | None:
    """Draw the precision-recall curves of a task's rows; None when no class has both labels."""
    curves = {stack: precision_recall_curve(summary.scored(stack, task)) for stack in shown_rows(summary, task)}
    known = {key: curve for key, curve in curves.items() if len(curve[0])}
    return _figure(summary, task, "precision-recall", known, caveat)


def _figure(
    summary: Summary, task: str, kind: str, curves: dict[str, tuple[FloatArray, FloatArray]], caveat: str
) -> Drawing | None:
    if not curves:
        return None
    data, is_roc = summary.data, kind == "roc"
    lines = lines_of(data, list(curves))
    several = data.tasks[task].kind != "binary"
    with canvas(WIDTH if is_roc else WIDTH + 0.3 + 0.09 * len(curves)) as (figure, axes):
        if is_roc:
            axes.plot([0, 1], [0, 1], color="#bdbdbd", linewidth=0.8)
        described = []
        for stack, (across, up) in curves.items():
            estimate = summary.auroc(stack, task) if is_roc else summary.auprc(stack, task)
            area = f" {number(estimate['value'])}" if estimate else ""
            described.append(f"{row_name(data, stack)}{area}")
            axes.plot(
                *_thinned(across, up),
                color=lines[stack][0],
                linestyle=lines[stack][1],
                linewidth=1.6,
                drawstyle="default" if is_roc else "steps-pre",
                label=f"{short_name(data, stack)}{area}",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal", title=task_name(task))
        axes.set_xlabel("1 − specificity" if is_roc else "Recall")
        axes.set_ylabel("Sensitivity" if is_roc else "Precision")
        if is_roc:
            legend(axes, "Stack and AUROC")
        else:
            figure.legend(
                loc="outside lower center",
                ncols=2,
                fontsize=7.5,
                frameon=False,
                title="Stack and AUPRC",
                title_fontsize=7.5,
            )
        name = "ROC" if is_roc else "Precision and recall"
        mean = ", mean of the curves of the scored classes against the rest" if several else ""
        description = f"{name} curves on {task}{mean}. {'AUROC' if is_roc else 'AUPRC'}: {'; '.join(described)}."
        one_vs_one = is_roc and data.tasks[task].kind == "multiclass"
        seeds = any(len(runs) > 1 for runs in data.finetune[task].values())
        caption = (
            f"{task_name(task)}: {name if is_roc else name.lower()} on the test patients{mean}."
            + (" The legend gives the one-vs-one AUROC." if one_vs_one else "")
            + (" Curves of the first seed; the legend gives the mean over seeds." if seeds else "")
            + left_out_sentence(summary, task)
        )
        return finish(figure, f"{kind}-{task}", description, caption, caveat)


def _thinned(across: FloatArray, up: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return at most some hundreds of points of a curve; more cannot be seen, and make a page of megabytes."""
    if len(across) <= _MOST_POINTS:
        return across, up
    kept = np.unique(np.linspace(0, len(across) - 1, _MOST_POINTS).round().astype(int))
    return across[kept], up[kept]
