"""Decision curves: whether acting on a probability does more good than acting on everybody or on nobody."""

from __future__ import annotations

from typing import Any

import numpy as np

from clinstack.evaluate.auroc import BoolArray, FloatArray
from clinstack.evaluate.bootstrap import percentile_interval

THRESHOLDS = np.arange(1, 100) / 100


def decision_curve(positive: BoolArray, probabilities: FloatArray, weights: FloatArray) -> dict[str, Any]:
    """Compute the net benefit at each threshold probability (Vickers & Elkin 2006).

    Whoever treats at probabilities of t or more holds a missed case for (1 - t) / t times as bad as a treatment for
    nothing. Net benefit is true positives minus false positives times t / (1 - t), for each row; treating nobody is 0.

    Parameters
    ----------
    positive : array of bool, shape (rows,)
    probabilities : array of float, shape (rows,)
        Of the positive class; only calibrated ones mean what the threshold says.
    weights : array of float, shape (resamples, rows)

    Returns
    -------
    dict
        ``thresholds`` from 0.01 to 0.99; ``net_benefit`` and ``interval``, ``treat_all`` and ``treat_all_interval``,
        one of each for a threshold; ``treat_none``, which is 0.
    """
    odds = THRESHOLDS / (1 - THRESHOLDS)
    treated = probabilities[:, None] >= THRESHOLDS
    right, wrong = treated & positive[:, None], treated & ~positive[:, None]
    benefit = right - wrong * odds
    everybody = positive[:, None] - (~positive[:, None]) * odds
    total = weights.sum(axis=1, keepdims=True)
    drawn, drawn_everybody = weights @ benefit / total, weights @ everybody / total
    return {
        "thresholds": THRESHOLDS.tolist(),
        "net_benefit": benefit.mean(axis=0).tolist(),
        "interval": [percentile_interval(column) for column in drawn.T],
        "treat_all": everybody.mean(axis=0).tolist(),
        "treat_all_interval": [percentile_interval(column) for column in drawn_everybody.T],
        "treat_none": 0.0,
    }
