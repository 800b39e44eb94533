"""ROC and precision-recall curves of a task's aligned rows."""

from __future__ import annotations

import numpy as np

from clinstack.evaluate.auroc import BoolArray, FloatArray
from clinstack.evaluate.ranking import ranking_columns
from clinstack.evaluate.scored import Scored

GRID = 201


def roc_curve(rows: Scored) -> tuple[FloatArray, FloatArray]:
    """Return the ROC curve, or for several classes the mean of the curves of the scored classes against the rest.

    The mean takes the sensitivities at equal false-positive rates (vertical averaging), so its area is close to, but
    not exactly, the macro AUROC.

    Returns
    -------
    false_positive_rate, true_positive_rate : arrays of float, shape (points,)
        Empty when no class has both labels.
    """
    from sklearn import metrics

    if not rows.scored_columns:
        return np.empty(0), np.empty(0)
    if rows.task.kind == "binary":
        false_positives, true_positives, _ = metrics.roc_curve(rows.indicator[:, 1], rows.margin)
        return false_positives, true_positives
    grid = np.linspace(0, 1, GRID)
    curves = []
    for column in rows.scored_columns:
        false_positives, true_positives, _ = metrics.roc_curve(rows.indicator[:, column], rows.scores[:, column])
        # Interpolation enters a vertical step at its top; a curve starts in the corner all the same.
        curves.append(np.interp(grid, false_positives, true_positives))
        curves[-1][0] = 0.0
    return grid, np.mean(curves, axis=0)


def precision_recall_curve(rows: Scored) -> tuple[FloatArray, FloatArray]:
    """Return the precision-recall curve, or for several classes the mean of the curves of the scored ones.

    The curve is the step function whose area is the average precision: precision at a recall is that of the highest
    threshold which reaches it. Between thresholds nothing is interpolated, which would be too good (Davis & Goadrich
    2006). The mean takes precisions at equal recall.

    Returns
    -------
    recall, precision : arrays of float, shape (points,)
        Rising in recall; empty when no class has both labels.
    """
    if not rows.scored_columns:
        return np.empty(0), np.empty(0)
    scores = rows.margin[:, None] if rows.task.kind == "binary" else rows.scores
    curves = [
        _steps(rows.indicator[:, column], scores[:, 0 if rows.task.kind == "binary" else column])
        for column in ranking_columns(rows)
    ]
    if rows.task.kind == "binary":
        return curves[0]
    grid = np.linspace(0, 1, GRID)
    # A recall of 7/10 must be found at 0.7, whatever the last digit of either.
    at = [precision[np.searchsorted(recall, grid - 1e-12)] for recall, precision in curves]
    return grid, np.mean(at, axis=0)


def _steps(positive: BoolArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores are called together
    found = np.cumsum(positive[order])[last]
    return found / found[-1], found / (last + 1)
