"""What a difference is worth when a table has many: p-values from the bootstrap, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clinstack.evaluate.auroc import FloatArray

LEVEL = 0.05
FEW = 10
"""Where fewer resamples than this reach the difference, their count says little more than that p is small."""

_ROUNDING = 1e-12


def bootstrap_p(difference: float, resampled: FloatArray) -> float | None:
    """Return the two-sided p-value of a difference from its resamples.

    The resamples minus the difference are how it would vary around zero if there were none (Efron & Tibshirani 1993,
    section 16.4). p is the share of shifted resamples that are as far from zero as the
    difference, both counted once more: ``(1 + count) / (1 + resamples)`` (Davison & Hinkley 1997, section 4.4). Where
    fewer than `FEW` reach it, p is that of a normal distribution with the resamples' standard deviation, if smaller:
    else 1,000 resamples could show no p below 0.001, and no table with more than 50 comparisons a difference.

    Parameters
    ----------
    difference : float
    resampled : array of float, shape (resamples,)
        NaN where the difference does not exist; left out.

    Returns
    -------
    float or None
        None where the difference or all but one of its resamples do not exist.
    """
    from scipy.stats import norm

    known = resampled[np.isfinite(resampled)]
    if not np.isfinite(difference) or known.size < 2:
        return None
    reach = abs(difference) - _ROUNDING
    shifted = np.abs(known - difference)
    count = int((shifted >= reach).sum())
    p = (1 + count) / (1 + known.size)
    deviation = float(known.std(ddof=1))
    if count < FEW and deviation > _ROUNDING:
        p = min(p, float(2 * norm.sf(abs(difference) / deviation)))
    return p


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values so that the chance of any false finding in the family is at most the level (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before it, nor
    larger than 1. None (no p-value) stays None and does not count.
    """
    known = [(p, place) for place, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for done, (p, place) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, p * (len(known) - done)))
        adjusted[place] = largest
    return adjusted
