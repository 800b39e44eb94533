"""Exposure against its definition, against distributions that are known, and its intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from clinstack.privacy.exposure import (
    NULL,
    exposure,
    exposures,
    log_share_below,
    mean_estimate,
    separation,
)


def test_where_the_whole_space_is_scored_it_is_the_definition() -> None:
    """Carlini et al. 2019, definition 3: log2 |R| - log2 rank."""
    others = np.arange(1.0, 16.0)
    first, last, fourth = (exposure(loss, others, 16) for loss in (0.5, 15.5, 3.5))
    assert (first.rank, first.value, first.method) == (1, 4.0, "all")
    assert (last.rank, last.value) == (16, 0.0)
    assert fourth.value == fourth.bound == 4 - math.log2(4)
    assert exposure(3.0, others, 16).rank == 4  # of equal losses the worse rank: none is given away


def test_all_ranks_alike_are_the_null_on_average() -> None:
    """The mean of log2(|R| / rank) over all ranks goes to log2 e."""
    size = 4096
    ranks = [exposure(rank - 0.5, np.arange(1.0, size), size).value for rank in range(1, size + 1)]
    assert np.mean(ranks) == pytest.approx(NULL, abs=0.003)
    assert pytest.approx(1.4427, abs=1e-4) == NULL


@pytest.mark.parametrize("deviations", [-30.0, -8.0, -1.0, 0.0, 2.0])
def test_the_tail_is_that_of_the_normal_distribution(deviations: float) -> None:
    from scipy.special import log_ndtr, ndtri

    sample = ndtri((np.arange(20_000) + 0.5) / 20_000)  # its skewness is 0
    sample /= sample.std(ddof=1)
    assert log_share_below(deviations, sample) == pytest.approx(float(log_ndtr(deviations)), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("shape", [-3.0, 1.5])
def test_the_tail_is_that_of_a_skew_normal_distribution(shape: float) -> None:
    from scipy.stats import skewnorm

    sample = skewnorm.ppf((np.arange(20_000) + 0.5) / 20_000, shape, loc=40, scale=3)
    for share in (1e-6, 0.01, 0.5, 0.9):
        value = float(skewnorm.ppf(share, shape, loc=40, scale=3))
        assert log_share_below(value, sample) == pytest.approx(math.log(share), rel=0.03, abs=0.01)


@pytest.mark.parametrize("family", ["normal", "gamma", "negative gamma"])
def test_a_secret_like_all_others_has_the_null_s_exposure(family: str) -> None:
    random = np.random.default_rng(7)

    def draw(size: int) -> NDArray[np.float64]:
        if family == "normal":
            return random.normal(40, 5, size)
        return random.gamma(10, size=size) * (-1 if family == "negative gamma" else 1)

    samples = [draw(129) for _ in range(400)]
    found = exposures(samples, [10**7] * len(samples))
    error = 1.6 / math.sqrt(len(found))
    assert abs(np.mean([one.value for one in found]) - NULL) < 3 * error
    assert abs(np.mean([one.bound for one in found]) - NULL) < 3 * error
    assert {one.method for one in found} == {"skew-normal"}


def test_a_remembered_secret_is_beyond_the_sample_and_within_the_space() -> None:
    others = np.random.default_rng(0).normal(40, 4, 64)
    found = exposure(10.0, others, 10**6)
    assert found.bound == math.log2(65) < found.value <= math.log2(10**6)
    assert exposure(-500.0, others, 10**6).value == math.log2(10**6)
    assert NULL < exposure(32.0, others, 10**9).value < exposure(29.0, others, 10**9).value < math.log2(10**9)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="7 other secrets are too few"):
        exposure(1.0, np.arange(7.0), 100)
    with pytest.raises(ValueError, match="not finite"):
        exposure(float("nan"), np.arange(20.0), 100)
    # All others alike: nothing lies below them, or everything does.
    assert exposure(1.0, np.full(20, 2.0), 2**10).value == 10
    assert exposure(2.0, np.full(20, 2.0), 2**10).value == 0


def test_intervals_of_means_hold_the_truth() -> None:
    """Of eight exponential values, as the exposures of eight canaries are where nothing was learned."""
    random = np.random.default_rng(3)
    held = 0
    for seed in range(300):
        low, high = mean_estimate(random.exponential(NULL, 8), 200, seed)["interval"]
        held += low <= NULL <= high
    assert held / 300 > 0.87
    assert mean_estimate(np.array([0.0, 0.1, 3.0, 0.2]), 500, 0, least=0.0)["interval"][0] == 0


def test_separation_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(1)
    planted, controls = random.normal(1, 1, 12), random.normal(0, 1, 24)
    planted[0] = controls[0]
    pairs = (planted[:, None] > controls).mean() + 0.5 * (planted[:, None] == controls).mean()
    found = separation(planted, controls, 300, 0)
    assert found["value"] == pytest.approx(pairs)
    assert found["interval"][0] < pairs < found["interval"][1]
    assert separation(planted, controls, 300, 0) == found
