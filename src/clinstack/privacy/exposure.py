"""Exposure: how many bits of a secret a model gives away, by the rank of the secret among others of its space.

Carlini et al. 2019, "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural Networks". With R the
space and the rank that of the secret by its loss, the likeliest first:

- section 4.2, definition 3: ``exposure = log2 |R| - log2 rank``. Of a secret that nobody planted every rank is as
  likely as any other, and its mean exposure is ``log2 e``, about 1.44 bits.
- section 4.3, theorem 1: ``exposure = -log2 P(loss of a random secret <= loss of this one)``. With m others drawn at
  random, that is at most ``log2(m + 1)``, however well the secret is remembered.
- section 4.4: losses of random secrets follow a skew-normal distribution closely. Fitted to the sample, its lower tail
  gives the probability beyond what the sample reaches, hence exposures up to ``log2 |R|``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clinstack.evaluate.auroc import ranking_metrics
from clinstack.evaluate.bootstrap import draw_patients, estimate, percentile_interval, student_widening

FloatArray = NDArray[np.float64]
NULL = float(np.log2(np.e))
"""Mean exposure in bits where every rank is as likely as any other."""
_SKEW = (-0.99, 0.7)
"""A skew-normal distribution has a skewness between -0.9953 and 0.9953. Near the upper end it has hardly a lower tail,
and a sample that is skewed by chance would give a secret that nobody planted the largest exposure there is."""


@dataclass(frozen=True)
class Exposure:
    """Of one secret.

    Attributes
    ----------
    rank : int
        Among the others that were scored and itself, from 1; of equal losses the worse one.
    others : int
        How many others were scored.
    bound : float
        ``log2((others + 1) / rank)``: what the sample itself shows, in bits.
    value : float
        The exposure in bits; equal to ``bound`` where the others are all there are.
    method : {"all", "skew-normal"}
        Whether the whole space was scored, or the distribution of a sample was continued.
    """

    rank: int
    others: int
    bound: float
    value: float
    method: Literal["all", "skew-normal"]


def exposure(loss: float, others: FloatArray, space: int) -> Exposure:
    """Return the exposure of a secret.

    Parameters
    ----------
    loss : float
        Of the secret, in nats, given its prefix.
    others : array of float, shape (others,)
        Losses of other secrets of its space given the same prefix; at least 8 of them, unless there are no more.
    space : int
        How many secrets there are, itself included.

    Raises
    ------
    ValueError
        If there are too few others, or a loss is not finite.
    """
    if not (np.isfinite(loss) and np.isfinite(others).all()):
        raise ValueError("a loss is not finite")
    rank = 1 + int((others <= loss).sum())
    bound = float(np.log2((len(others) + 1) / rank))
    if len(others) == space - 1:
        return Exposure(rank, len(others), bound, bound, "all")
    if len(others) < 8:
        raise ValueError(f"{len(others)} other secrets are too few to continue their distribution")
    value = -log_share_below(loss, others) / float(np.log(2))
    return Exposure(rank, len(others), bound, float(np.clip(value, 0, np.log2(space))), "skew-normal")


def log_share_below(value: float, sample: FloatArray) -> float:
    """Return the logarithm of the share of a sample's distribution at or below a value.

    The distribution is the skew-normal one with the sample's mean, variance and skewness (Azzalini 1985, "A Class of
    Distributions which Includes the Normal Ones"), integrated on the scale of logarithms: its tail goes far below what
    a float can hold.
    """
    mean, deviation = float(sample.mean()), float(sample.std(ddof=1))
    if deviation == 0:
        return 0.0 if value >= mean else -np.inf
    skewness = float(np.mean((sample - mean) ** 3) / np.mean((sample - mean) ** 2) ** 1.5)
    skewness = float(np.clip(skewness, *_SKEW))
    two_thirds = abs(skewness) ** (2 / 3)
    delta = np.sign(skewness) * np.sqrt(np.pi / 2 * two_thirds / (two_thirds + ((4 - np.pi) / 2) ** (2 / 3)))
    shape = delta / np.sqrt(1 - delta**2)
    scale = deviation / np.sqrt(1 - 2 * delta**2 / np.pi)
    location = mean - scale * delta * np.sqrt(2 / np.pi)
    return _log_cumulative((value - location) / scale, float(shape))


def _log_cumulative(place: float, shape: float) -> float:
    """Return the logarithm of the skew-normal distribution function of location 0 and scale 1."""
    from scipy.special import log_ndtr, logsumexp

    # Below the place, dense next to it: a far tail has all its mass there.
    steps = np.concatenate([[0.0], np.geomspace(1e-7, max(place, 0) + 40, 6000)])
    points = place - steps
    density = np.log(2) - 0.5 * points**2 - 0.5 * np.log(2 * np.pi) + log_ndtr(shape * points)
    widths = np.diff(steps)
    weights = np.concatenate([[widths[0]], widths[1:] + widths[:-1], [widths[-1]]]) / 2
    return min(0.0, float(logsumexp(density, b=weights)))


def mean_estimate(values: FloatArray, resamples: int, seed: int, *, least: float = -np.inf) -> dict[str, Any]:
    """Return a mean with its 95 % interval of a bootstrap over canaries; no end lies below ``least``.

    Resamples of few values vary less than other samples would: by (n - 1) / n in variance, and as the normal
    distribution and not as Student's t. The interval is made longer by both, around the middle that it has.
    """
    number = len(values)
    drawn = np.random.default_rng(seed).integers(number, size=(resamples, number))
    interval = percentile_interval(values[drawn].mean(axis=1))
    if interval is None:
        return {"value": float(values.mean()), "interval": None}
    wider = np.sqrt(number / (number - 1)) * student_widening(number)
    middle, half = sum(interval) / 2, (interval[1] - interval[0]) / 2 * float(wider)
    return {"value": float(values.mean()), "interval": [max(least, middle - half), middle + half]}


def separation(planted: FloatArray, controls: FloatArray, resamples: int, seed: int) -> dict[str, Any]:
    """Return the AUROC of planted canaries against controls by their exposures, with its 95 % interval.

    The bootstrap draws as many canaries and as many controls as there are.
    """
    scores = np.concatenate([planted, controls])
    names = [f"{number:06d}" for number in range(len(scores))]
    is_planted = np.arange(len(scores)) < len(planted)
    draws = draw_patients(names, resamples, seed, strata=is_planted.astype(int).tolist())
    weights = np.vstack([np.ones(len(scores)), draws.weights(names)])
    areas = ranking_metrics(is_planted, scores, weights)[0]
    return dict(estimate(float(areas[0]), areas[1:], bounded=True, rarer=min(len(planted), len(controls))))


def exposures(losses: Sequence[FloatArray], spaces: Sequence[int]) -> list[Exposure]:
    """Return the exposure of each secret; its own loss is the first of its losses."""
    return [exposure(float(each[0]), each[1:], space) for each, space in zip(losses, spaces, strict=True)]
