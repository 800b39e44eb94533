"""Shares of prompts over patients, and differences of shares, with intervals that also hold where nothing was found.

A patient has several prompts, so patients are what is resampled (`clinstack.evaluate.bootstrap`). Where no prompt
counts, every resample is 0 too, and its interval would say that the share is exactly 0. There the interval ends where
that many patients without a single hit would still be likely: Clopper and Pearson (1934) for 0 of n patients,
``1 - 0.025^(1/n)``. A share of prompts is at most the share of patients with a hit, so this is on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clinstack.evaluate.bootstrap import Estimate, draw_patients, percentile_interval

_LEVEL = 0.95


def zero_bound(units: int) -> float:
    """Return the upper end of the 95 % interval of a share of which ``units`` independent units show none."""
    return float(1 - ((1 - _LEVEL) / 2) ** (1 / units))


def share(counts: ArrayLike, patients: Sequence[str], resamples: int, seed: int) -> Estimate:
    """Return the share of rows that count, over patients.

    Parameters
    ----------
    counts : array of bool [rows]
    patients : sequence of str [rows]
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``value`` and ``interval``; both None without rows.
    """
    values = np.asarray(counts, dtype=float)
    if not len(values):
        return {"value": None, "interval": None}
    resampled = _resampled(values, patients, resamples, seed)
    return {"value": float(values.mean()), "interval": _interval(values, patients, resampled)}


def difference(
    left: ArrayLike,
    left_patients: Sequence[str],
    right: ArrayLike,
    right_patients: Sequence[str],
    resamples: int,
    seed: int,
) -> Estimate:
    """Return the share of one group of patients minus that of another.

    The groups have no patient in common, so the ends of both intervals join as independent errors do (Newcombe 1998,
    method 10; Zou and Donner 2008, MOVER).

    Returns
    -------
    dict
        ``value`` and ``interval``; both None where a group has no rows.
    """
    one, other = share(left, left_patients, resamples, seed), share(right, right_patients, resamples, seed)
    if one["interval"] is None or other["interval"] is None:
        return {"value": None, "interval": None}
    p, low, high = _ends(one)
    q, from_low, from_high = _ends(other)
    below, above = float(np.hypot(p - low, from_high - q)), float(np.hypot(high - p, q - from_low))
    return {"value": p - q, "interval": [max(p - q - below, -1.0), min(p - q + above, 1.0)]}


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    """Return a figure and the ends of its interval."""
    value, interval = cast(float, estimate["value"]), cast(list[float], estimate["interval"])
    return value, interval[0], interval[1]


def paired_difference(
    left: ArrayLike, right: ArrayLike, patients: Sequence[str], resamples: int, seed: int
) -> Estimate:
    """Return the difference of two shares of the same rows, such as those of two models.

    Where no row differs, the interval ends on both sides where so many patients without a difference would still be
    likely.
    """
    values = np.asarray(left, dtype=float) - np.asarray(right, dtype=float)
    if not len(values):
        return {"value": None, "interval": None}
    if not values.any():
        bound = zero_bound(len(set(patients)))
        return {"value": 0.0, "interval": [-bound, bound]}
    resampled = _resampled(values, patients, resamples, seed)
    return {"value": float(values.mean()), "interval": percentile_interval(resampled)}


def _interval(
    values: NDArray[np.float64], patients: Sequence[str], resampled: NDArray[np.float64]
) -> list[float] | None:
    units = len(set(patients))
    if not values.any():
        return [0.0, zero_bound(units)]
    if values.all():
        return [1 - zero_bound(units), 1.0]
    return percentile_interval(resampled)


def _resampled(values: NDArray[np.float64], patients: Sequence[str], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the mean in each resample of patients, float64 [resamples]; memory grows with patients, not with rows."""
    draws = draw_patients(patients, resamples, seed)
    place = np.searchsorted(draws.patients, np.asarray(patients, dtype=np.str_))
    sums = np.bincount(place, values, minlength=len(draws.patients))
    rows = np.bincount(place, minlength=len(draws.patients))
    result: NDArray[np.float64] = (sums @ draws.counts) / (rows @ draws.counts)
    return result
