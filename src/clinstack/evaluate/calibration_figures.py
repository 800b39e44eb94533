"""How well probabilities fit what happened: reliability curve, calibration error, slope, intercept, Brier score.

An entry is one row's probability of one class. A binary task has one entry a row, the positive class; other tasks have
one for each class, and all entries are looked at together. Each figure is made of sums over rows, so that a resample of
patients is a weighting of the rows and costs one product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clinstack.evaluate.auroc import BoolArray, FloatArray
from clinstack.evaluate.bootstrap import Estimate, estimate, percentile_interval
from clinstack.tasks import Kind

BINS = 10
_BLOCK = 2_000_000  # entries looked at together: 16 MB in each working array
_CERTAIN = 1e-12
_STEPS = 50
_SINGULAR = 1e12


@dataclass(frozen=True)
class Entries:
    """Probabilities and what happened.

    Parameters
    ----------
    kind : {"binary", "multiclass", "multilabel"}
    there : array of bool, shape (rows, judged classes)
    probabilities : array of float, shape (rows, judged classes)
    """

    kind: Kind
    there: BoolArray
    probabilities: FloatArray

    def blocks(self) -> Iterator[slice]:
        """Yield slices of rows that are small enough to work on."""
        rows, classes = self.there.shape
        size = max(1, _BLOCK // classes)
        yield from (slice(start, start + size) for start in range(0, rows, size))


def calibration_figures(entries: Entries, weights: FloatArray) -> dict[str, Any]:
    """Compute what stands under one method in ``calibration``.

    Parameters
    ----------
    entries : Entries
    weights : array of float, shape (resamples, rows)

    Returns
    -------
    dict
        ``ece``, the headline, over ten bins of equal mass; ``ece_equal_width`` over ten of equal width; ``slope`` and
        ``intercept``; ``brier``; each ``{"value", "interval"}``. ``reliability``: for each bin of equal mass ``low``,
        ``high``, ``count``, ``mean_predicted``, ``observed`` and its ``interval``.
    """
    mass = np.unique(np.quantile(entries.probabilities, np.linspace(0, 1, BINS + 1)))
    error, reliability = _binned(entries, mass, weights)
    width_error, _ = _binned(entries, np.linspace(0, 1, BINS + 1), weights)
    slope, intercept = recalibration(entries, weights)
    return {
        "ece": error,
        "ece_equal_width": width_error,
        "slope": slope,
        "intercept": intercept,
        "brier": brier(entries, weights),
        "reliability": reliability,
    }


def brier(entries: Entries, weights: FloatArray) -> Estimate:
    """Return the Brier score: the mean squared distance of a row's probabilities from 0 and 1.

    Binary: of the positive class. Multiclass: summed over the classes (Brier 1950). Multilabel: averaged over them.
    """
    squares = np.concatenate(
        [((entries.probabilities[part] - entries.there[part]) ** 2).sum(axis=1) for part in entries.blocks()]
    )
    if entries.kind == "multilabel":
        squares /= entries.there.shape[1]
    return estimate(float(squares.mean()), weights @ squares / weights.sum(axis=1))


def _binned(entries: Entries, edges: FloatArray, weights: FloatArray) -> tuple[Estimate, list[dict[str, Any]]]:
    """Compare predicted and observed in bins that include their upper edge."""
    inner = edges[1:-1]
    bins = len(inner) + 1
    rows = len(entries.there)
    counts, predicted, observed = (np.zeros((rows, bins)) for _ in range(3))
    for part in entries.blocks():
        probabilities, there = entries.probabilities[part], entries.there[part]
        place = np.searchsorted(inner, probabilities, side="left")
        place += bins * np.arange(len(probabilities))[:, None]
        for target, values in ((counts, None), (predicted, probabilities), (observed, there)):
            sums = np.bincount(
                place.ravel(), weights=None if values is None else values.ravel(), minlength=bins * len(probabilities)
            )
            target[part] = sums.reshape(-1, bins)

    def error(row_weights: FloatArray) -> FloatArray:
        gaps = np.abs(row_weights @ (predicted - observed)).sum(axis=1)
        return np.asarray(gaps / (row_weights.sum(axis=1) * entries.there.shape[1]))

    value = float(error(np.ones((1, rows)))[0])
    drawn_counts = weights @ counts
    shares = (weights @ observed) / np.where(drawn_counts > 0, drawn_counts, np.nan)
    totals = counts.sum(axis=0)
    reliability = [
        {
            "low": float(edges[0] if place == 0 else inner[place - 1]),
            "high": float(edges[-1] if place == bins - 1 else inner[place]),
            "count": int(totals[place]),
            "mean_predicted": float(predicted[:, place].sum() / totals[place]),
            "observed": float(observed[:, place].sum() / totals[place]),
            "interval": percentile_interval(shares[:, place]),
        }
        for place in range(bins)
        if totals[place]
    ]
    return {"value": value, "interval": _mirrored(value, error(weights))}, reliability


def _mirrored(value: float, resampled: FloatArray) -> list[float] | None:
    """Return the basic interval, not below 0.

    A sum of absolute gaps is above the truth because each gap is noisy, and a resample's is above the sample's by as
    much again; percentiles would count that noise twice, their mirror image about the value takes it away.
    """
    found = percentile_interval(resampled)
    if found is None:
        return None
    low, high = found
    return [max(0.0, 2 * value - high), max(0.0, 2 * value - low)]


def recalibration(entries: Entries, weights: FloatArray) -> tuple[Estimate, Estimate]:
    """Return calibration slope and intercept (Cox 1958; Van Calster et al. 2019).

    The slope is that of a logistic regression of what happened on the log-odds of the probability: below 1 the
    probabilities are too extreme. The intercept is calibration in the large, that of the same regression with the slope
    held at 1: below 0 they are too high on average. A resample takes one Newton step from the whole sample's fit
    (Moulton & Zeger 1991), with the sums over its patients' rows.

    Returns
    -------
    slope, intercept : dict
        Unknown where only one label occurs, or where the log-odds separate the labels without an error. A multiclass
        task has no intercept: probabilities that sum to 1 are right on average whatever they are.
    """
    from scipy.special import logit

    unknown: Estimate = {"value": None, "interval": None}
    there = entries.there
    if there.all() or not there.any():
        return unknown, dict(unknown)
    log_odds = logit(np.clip(entries.probabilities, _CERTAIN, 1 - _CERTAIN))
    intercept = dict(unknown) if entries.kind == "multiclass" else _fitted(entries, log_odds, weights, with_slope=False)
    slope = dict(unknown) if _has_no_slope(entries) else _fitted(entries, log_odds, weights, with_slope=True)
    return slope, intercept


def _has_no_slope(entries: Entries) -> bool:
    """Whether all probabilities are equal, or some cut of them puts the two labels apart."""
    happened, rest = entries.probabilities[entries.there], entries.probabilities[~entries.there]
    apart = happened.min() >= rest.max() or happened.max() <= rest.min()
    return bool(np.ptp(entries.probabilities) < _CERTAIN or apart)


def _fitted(entries: Entries, log_odds: FloatArray, weights: FloatArray, *, with_slope: bool) -> Estimate:
    """Fit a logistic regression by Newton's method; the figure is its last coefficient."""
    coefficients = np.array([0.0, 1.0])
    free = slice(0, 2 if with_slope else 1)
    loss, gradient, curvature = _row_sums(entries, log_odds, coefficients)
    for _ in range(_STEPS):
        bends = curvature.sum(axis=0)[free, free]
        if not np.linalg.cond(bends) < _SINGULAR:
            return {"value": None, "interval": None}
        step = np.zeros(2)
        step[free] = np.linalg.solve(bends, gradient.sum(axis=0)[free])
        if np.abs(step).max() < 1e-10:
            break
        # Newton's step is halved until the loss does not grow.
        while True:
            tried = _row_sums(entries, log_odds, coefficients + step)
            if tried[0] <= loss + 1e-12 * abs(loss) or np.abs(step).max() < 1e-10:
                break
            step /= 2
        coefficients = coefficients + step
        loss, gradient, curvature = tried
    else:  # the labels are all but separated: the slope grows and grows
        return {"value": None, "interval": None}
    drawn_gradient = weights @ gradient[:, free]
    drawn_curvature = np.tensordot(weights, curvature[:, free, free], axes=1)
    # A resample that lost one label, or whose rows do not tell the coefficients apart, has no fit.
    usable = np.linalg.cond(drawn_curvature) < _SINGULAR
    resampled = np.full(len(weights), np.nan)
    steps = np.linalg.solve(drawn_curvature[usable], drawn_gradient[usable][:, :, None])[:, -1, 0]
    last = 1 if with_slope else 0
    resampled[usable] = coefficients[last] + steps
    return estimate(float(coefficients[last]), resampled)


def _row_sums(entries: Entries, log_odds: FloatArray, coefficients: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Return the loss, and each row's gradient, shape (rows, 2), and curvature, shape (rows, 2, 2)."""
    from scipy.special import expit

    loss = 0.0
    gradients, curvatures = [], []
    for part in entries.blocks():
        there, odds = entries.there[part], log_odds[part]
        fitted = expit(coefficients[0] + coefficients[1] * odds)
        rest = there - fitted
        with np.errstate(divide="ignore"):  # a step so long that an entry is impossible is taken back
            loss -= float(np.log1p(-np.abs(rest)).sum())
        gradients.append(np.stack([rest.sum(axis=1), (rest * odds).sum(axis=1)], axis=1))
        spread = fitted * (1 - fitted)
        tilted = spread * odds
        constant, mixed, square = spread.sum(axis=1), tilted.sum(axis=1), (tilted * odds).sum(axis=1)
        curvatures.append(np.stack([np.stack([constant, mixed], 1), np.stack([mixed, square], 1)], axis=2))
    return loss, np.concatenate(gradients), np.concatenate(curvatures)
