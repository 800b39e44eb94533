"""ROC curves of a task's aligned test rows."""

from __future__ import annotations

import numpy as np

from clinstack.evaluate.auroc import FloatArray
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
