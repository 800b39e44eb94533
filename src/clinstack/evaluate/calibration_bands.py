"""Pointwise 95 % bands around isotonic functions: how far other validation patients would have moved them.

Two sources of doubt, and at each score the wider end of both:

- The bootstrap over patients: whole patients are drawn, the function is fitted anew, and percentiles of the fits are
  taken. By itself it is too sure of itself where a stretch of scores has only one label: each of its fits says the
  same there, and a truth of 2 % lies outside a band of no width.
- The exact binomial interval (Clopper & Pearson 1934) of what happened in a stretch and in the stretches beside it,
  with patients as the number of trials. A rising function is nowhere above its mean over what follows, nor below its
  mean over what comes before (Yang & Barber 2019), so the lowest upper and the highest lower bound over such windows
  count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import draw_patients

LEVEL = 0.95
RESAMPLES = 200
SEED = 0
MOST_ENTRIES = 20_000_000
"""Labels times rows; more would take minutes, and those bands are left out."""


def add_bands(
    functions: Sequence[dict[str, list[float]]],
    scores: FloatArray,
    there: NDArray[np.bool_],
    patient_ids: Sequence[str],
) -> dict[str, Any]:
    """Add ``low`` and ``high`` to isotonic functions, beside their ``probabilities``.

    Parameters
    ----------
    functions : sequence of dict
        ``scores`` and ``probabilities`` of the knots of each column's function, fitted on these rows.
    scores : array of float, shape (rows, columns)
    there : array of bool, shape (rows, columns)
        What happened.
    patient_ids : sequence of str, shape (rows,)

    Returns
    -------
    dict
        ``level``, ``unit``, ``resamples`` and ``seed``; or ``left_out``, the reason.
    """
    if scores.size > MOST_ENTRIES:
        return {"left_out": f"{scores.shape[1]} labels of {len(scores)} rows are more than {MOST_ENTRIES} entries"}
    weights = draw_patients(patient_ids, RESAMPLES, SEED).weights(patient_ids).T.astype(np.float32)
    owners = np.unique(np.asarray(patient_ids, dtype=np.str_), return_inverse=True)[1]
    for place, function in enumerate(functions):
        order = np.lexsort((~there[:, place], scores[:, place]))
        rows = _Rows(scores[order, place], there[order, place], owners[order])
        knots, fitted = np.asarray(function["scores"]), np.asarray(function["probabilities"])
        low, high = rows.exact(knots)
        drawn_low, drawn_high = np.quantile(
            rows.refitted(weights[order], knots), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0
        )
        function["low"] = np.minimum.reduce([low, drawn_low, fitted]).tolist()
        function["high"] = np.maximum.reduce([high, drawn_high, fitted]).tolist()
    return {"level": LEVEL, "unit": "patient", "resamples": RESAMPLES, "seed": SEED}


class _Rows:
    """The rows of one column by their scores, those with the label first among equal scores.

    ::

        label     0 0 0 1 1 0 0 0 1 0 1 1
        run       a a a b b b b b c c d d

    A run of ones and the zeros that follow it have one value in every rising fit, whatever their weights: so a fit is
    one of the runs, which are few where the label is rare.
    """

    def __init__(self, scores: FloatArray, there: NDArray[np.bool_], owners: NDArray[np.int64]) -> None:
        self.scores, self.there, self.owners = scores, there, owners
        begins = there.copy()
        begins[1:] &= ~there[:-1]
        begins[0] = True
        self.starts = np.flatnonzero(begins)
        self.stops = np.append(self.starts[1:], len(there))
        self.edges = np.stack([scores[self.starts], scores[self.stops - 1]], axis=1).ravel()

    def refitted(self, weights: NDArray[np.float32], knots: FloatArray) -> FloatArray:
        """Return the function of each resample at the knots, shape (resamples, knots).

        Parameters
        ----------
        weights : array of float, shape (rows, resamples)
        knots : array of float, shape (knots,)
        """
        from scipy.optimize import isotonic_regression

        least = 1 / (len(self.there) + 2)
        totals = np.add.reduceat(weights, self.starts, axis=0).astype(np.float64)
        with_label = np.add.reduceat(weights * self.there[:, None], self.starts, axis=0)
        result = np.empty((weights.shape[1], len(knots)))
        for place, (total, positive) in enumerate(zip(totals.T, with_label.T, strict=True)):
            drawn = total > 0
            fit = isotonic_regression(positive[drawn] / total[drawn], weights=total[drawn]).x
            edges = self.edges if drawn.all() else self.edges.reshape(-1, 2)[drawn].ravel()
            result[place] = np.interp(knots, edges, np.repeat(fit, 2))
        return np.clip(result, least, 1 - least)

    def exact(self, knots: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the lower and upper ends of the exact binomial intervals at the knots, each of shape (knots,)."""
        from scipy.optimize import isotonic_regression

        sizes = self.stops - self.starts
        positive = np.add.reduceat(self.there.astype(np.float64), self.starts)
        # The stretches on which the function is constant, in runs.
        blocks = isotonic_regression(positive / sizes, weights=sizes).blocks
        starts, stops = self.starts[blocks[:-1]], self.stops[blocks[1:] - 1]
        patients = np.array(
            [len(np.unique(self.owners[begin:end])) for begin, end in zip(starts, stops, strict=True)], dtype=np.float64
        )
        share = np.add.reduceat(self.there.astype(np.float64), starts) / (stops - starts)
        events = np.concatenate([[0], np.cumsum(share * patients)])
        trials = np.concatenate([[0], np.cumsum(patients)])
        low, high = np.empty(len(starts)), np.empty(len(starts))
        for place in range(len(starts)):
            after = slice(place + 1, None)
            before = slice(None, place + 1)
            high[place] = _upper(events[after] - events[place], trials[after] - trials[place]).min()
            low[place] = _lower(events[place + 1] - events[before], trials[place + 1] - trials[before]).max()
        edges = np.stack([self.scores[starts], self.scores[stops - 1]], axis=1).ravel()
        return np.interp(knots, edges, np.repeat(low, 2)), np.interp(knots, edges, np.repeat(high, 2))


def _upper(events: FloatArray, trials: FloatArray) -> FloatArray:
    """Return the upper end of the Clopper-Pearson interval; 1 where everything happened."""
    from scipy.special import betaincinv

    rest = np.maximum(trials - events, 0)
    some = rest > 1e-9
    return np.where(some, betaincinv(events + 1, np.where(some, rest, 1), (1 + LEVEL) / 2), 1.0)


def _lower(events: FloatArray, trials: FloatArray) -> FloatArray:
    """Return the lower end of the Clopper-Pearson interval; 0 where nothing happened."""
    return 1 - _upper(trials - events, trials)
