"""A source of chance for one invented patient, the same whatever the size of the cohort."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from math import exp
from statistics import NormalDist
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
_NORMAL = NormalDist()
_BLOCK = 512


def logistic(value: float) -> float:
    """Return the probability of a logit."""
    return 1.0 / (1.0 + exp(-value))


class Chance:
    """Draws from one random stream; uniforms are made in blocks because single calls to NumPy are slow.

    Parameters
    ----------
    *key : int
        Non-negative numbers that name the stream, such as the cohort's seed and the patient's index.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.default_rng(key)
        self._uniforms: list[float] = []

    def uniform(self) -> float:
        """Draw from [0, 1)."""
        if not self._uniforms:
            self._uniforms = self._generator.random(_BLOCK).tolist()
        return self._uniforms.pop()

    def yes(self, probability: float) -> bool:
        """Draw true with a probability."""
        return self.uniform() < probability

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """Draw from a normal distribution."""
        return mean + deviation * _NORMAL.inv_cdf(max(self.uniform(), 1e-12))

    def between(self, low: int, high: int) -> int:
        """Draw a whole number from ``low`` to ``high``, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """Draw one item, all equally likely."""
        return items[int(self.uniform() * len(items))]

    def weighted(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        """Draw one item in proportion to its weight."""
        totals = list(accumulate(weights))
        return items[min(bisect(totals, self.uniform() * totals[-1]), len(items) - 1)]

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """Draw up to ``count`` items without repetition, in random order."""
        rest = list(items)
        return [rest.pop(int(self.uniform() * len(rest))) for _ in range(min(count, len(rest)))]
