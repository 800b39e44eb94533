"""95 % intervals hold the truth 93 to 97 times in a hundred, on simulated scores whose AUROC is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from clinstack.evaluate.auroc import ranking_metrics
from clinstack.evaluate.bootstrap import (
    Estimate,
    draw_patients,
    estimate,
    percentile_interval,
    rare_strata,
    rarer_patients,
)

SAMPLES = 1000  # a coverage of 95 % is then known to 0.7 %


class Simulated:
    """Patients whose negatives score N(0, 1) and positives N(d, 1), so that the AUROC is Phi(d / sqrt 2).

    All admissions of a patient carry one label and share a part of the score, ``alike`` of its variance. No pair of a
    positive and a negative is then of one patient, and the AUROC stays what it is.
    """

    def __init__(
        self, seed: int, patients: int, prevalence: float, area: float, most: int = 1, alike: float = 0.0
    ) -> None:
        generator = np.random.default_rng([seed, patients])
        positive = generator.random(patients) < prevalence
        positive[:2], positive[-2:] = True, False
        owner = np.repeat(np.arange(patients), generator.integers(1, most + 1, patients))
        distance = np.sqrt(2) * norm.ppf(area)
        noise = np.sqrt(alike) * generator.normal(size=patients)[owner]
        noise += np.sqrt(1 - alike) * generator.normal(size=len(owner))
        self.positive = positive[owner]
        self.scores = noise + distance * self.positive
        self.patient_ids = [f"p{number:04d}" for number in owner]

    @property
    def rarer(self) -> int:
        return rarer_patients(self.positive[:, None], self.patient_ids)[0]

    def resampled(
        self, ids: list[str], seed: int, strata: list[int] | None = None, resamples: int = 500
    ) -> tuple[float, np.ndarray]:
        weights = draw_patients(ids, resamples, seed, strata=strata).weights(ids)
        value = ranking_metrics(self.positive, self.scores, np.ones((1, len(ids))))[0][0]
        return float(value), ranking_metrics(self.positive, self.scores, weights)[0]


def holds(figure: Estimate, truth: float) -> bool:
    low, high = figure["interval"]
    return bool(low <= truth <= high)


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.76, 0.85, 0.95])
def test_intervals_of_300_patients_hold_the_auroc(area: float) -> None:
    held = 0
    for seed in range(SAMPLES):
        sample = Simulated(seed, 300, 0.1, area)
        figure = sample.resampled(sample.patient_ids, seed)
        held += holds(estimate(*figure, bounded=True, rarer=sample.rarer), area)
    assert 0.93 <= held / SAMPLES <= 0.97


@pytest.mark.slow
def test_percentiles_miss_an_auroc_near_one() -> None:
    held = 0
    for seed in range(400):
        sample = Simulated(seed, 300, 0.1, 0.95)
        low, high = percentile_interval(sample.resampled(sample.patient_ids, seed)[1])
        held += low <= 0.95 <= high
    assert held / 400 < 0.92


@pytest.mark.slow
def test_intervals_over_patients_hold_where_those_over_rows_do_not() -> None:
    over_patients = over_rows = 0
    for seed in range(SAMPLES):
        sample = Simulated(seed, 150, 0.3, 0.8, most=6, alike=0.7)
        over_patients += holds(
            estimate(*sample.resampled(sample.patient_ids, seed), bounded=True, rarer=sample.rarer), 0.8
        )
        rows = [f"r{number:04d}" for number in range(len(sample.scores))]
        over_rows += holds(estimate(*sample.resampled(rows, seed), bounded=True, rarer=sample.rarer), 0.8)
    assert 0.93 <= over_patients / SAMPLES <= 0.97
    assert over_rows / SAMPLES < 0.85


@pytest.mark.slow
def test_intervals_drawn_by_strata_hold_where_positives_are_rare() -> None:
    held = 0
    for seed in range(SAMPLES):
        sample = Simulated(seed, 300, 0.04, 0.8)
        strata = rare_strata(sample.positive.astype(int).tolist(), sample.patient_ids)
        value, resampled = sample.resampled(sample.patient_ids, seed, strata)
        assert np.isfinite(resampled).all()
        held += holds(estimate(value, resampled, bounded=True, rarer=sample.rarer), 0.8)
    assert 0.93 <= held / SAMPLES <= 0.97


@pytest.mark.slow
def test_intervals_of_a_paired_difference_hold_it() -> None:
    # Two models see the same noise in part; the second adds some of its own and is worse by a known step.
    held, truth = 0, 0.85 - float(norm.cdf(norm.ppf(0.85) / np.sqrt(1.5)))
    for seed in range(SAMPLES):
        sample = Simulated(seed, 300, 0.1, 0.85)
        noise = np.sqrt(0.5) * np.random.default_rng([seed, 1]).normal(size=300)
        worse = Simulated(seed, 300, 0.1, 0.85)
        worse.scores = worse.scores + noise
        (one, drawn), (other, drawn_other) = (each.resampled(sample.patient_ids, seed) for each in (sample, worse))
        held += holds(estimate(one - other, drawn - drawn_other), truth)
    assert 0.93 <= held / SAMPLES <= 0.97
