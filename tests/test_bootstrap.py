"""Draws by strata, and intervals on the scale of log-odds."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import norm, t

from clinstack.errors import InputError
from clinstack.evaluate.bootstrap import (
    draw_patients,
    estimate,
    log_odds_interval,
    percentile_interval,
    rare_strata,
    rarer_patients,
)


def test_draws_without_strata_stay_what_they_were() -> None:
    counts = draw_patients((f"p{i}" for i in range(50)), resamples=100, seed=3).counts
    # Published intervals rest on these draws.
    digest = hashlib.sha256(counts.astype(np.int64).tobytes()).hexdigest()
    assert digest == "b59055c8d20de3b9a04ca60ffa8d58147acc5ad8121dc9bad4bc260b2fc2a971"
    one_stratum = draw_patients([f"p{i}" for i in range(50)], resamples=100, seed=3, strata=["all"] * 50)
    np.testing.assert_array_equal(counts, one_stratum.counts)


def test_each_resample_holds_each_stratum_in_full() -> None:
    ids = [f"p{i:02d}" for i in range(40)]
    strata = [1 if i < 4 else 0 for i in range(40)]
    counts = draw_patients(ids, 300, seed=1, strata=strata).counts
    assert (counts[:4].sum(axis=0) == 4).all()
    assert (counts[4:].sum(axis=0) == 36).all()
    assert counts[:4].std() > 0.5
    other = draw_patients(ids[::-1], 300, seed=1, strata=strata[::-1]).counts
    np.testing.assert_array_equal(counts, other)


def test_a_patient_belongs_to_the_rarest_of_its_labels_and_then_to_the_last() -> None:
    # Label 2: patients a, b; label 1: c, d and a; label 0: all but b. Label 3 is as rare as label 2.
    ids = ["a", "a", "a", "b", "c", "c", "d", "d", "e", "f", "b", "f"]
    strata = [0, 1, 2, 2, 0, 1, 0, 1, 0, 0, 3, 3]
    counts = draw_patients(ids, 400, strata=strata).counts
    of = dict(zip("abcdef", counts, strict=True))
    assert (of["b"] + of["f"] == 2).all()
    assert (of["a"] == 1).all()
    assert (of["c"] + of["d"] == 2).all()
    assert (of["e"] == 1).all()


def test_strata_that_do_not_fit_the_rows_are_refused() -> None:
    with pytest.raises(InputError, match="3 patient ids but 2 strata"):
        draw_patients(["a", "b", "c"], 10, strata=[0, 1])


def test_rare_classes_keep_their_stratum_and_common_ones_share_one() -> None:
    ids = [f"p{i}" for i in range(100)]
    labels = [0] * 60 + [1] * 37 + [2] * 3
    assert rare_strata(labels, ids) == [-1] * 97 + [2] * 3
    assert rare_strata(labels[:97], ids[:97]) is None
    # Thirty admissions of two patients are two patients.
    assert rare_strata([0] * 50 + [1] * 30, [f"p{i}" for i in range(50)] + ["x", "y"] * 15) == [-1] * 50 + [1] * 30


def test_the_rarer_label_is_counted_in_patients() -> None:
    indicator = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [1, 0]], dtype=bool)
    assert rarer_patients(indicator, ["a", "a", "b", "c", "b"]) == [2, 1]


def test_log_odds_intervals_are_symmetrical_and_as_long_as_percentiles() -> None:
    resampled = np.random.default_rng(0).beta(40, 3, 2000)
    low, high = log_odds_interval(0.95, resampled)

    def log_odds(share: float) -> float:
        return float(np.log(share / (1 - share)))

    assert log_odds(high) - log_odds(0.95) == pytest.approx(log_odds(0.95) - log_odds(low))
    ends = percentile_interval(resampled)
    assert log_odds(high) - log_odds(low) == pytest.approx(log_odds(ends[1]) - log_odds(ends[0]))
    few = log_odds_interval(0.95, resampled, rarer=10)
    stretch = (log_odds(few[1]) - log_odds(few[0])) / (log_odds(high) - log_odds(low))
    assert stretch == pytest.approx(t.ppf(0.975, 9) / norm.ppf(0.975))


def test_log_odds_intervals_at_the_ends_of_the_scale() -> None:
    ones = np.ones(100)
    assert log_odds_interval(1.0, ones, rarer=3) == [1.0, 1.0]
    low, high = log_odds_interval(0.98, np.concatenate([ones, np.full(100, 0.9), [np.nan]]), rarer=2)
    assert 0 < low < 0.98 < high < 1
    assert log_odds_interval(0.9, np.array([np.nan, 0.9])) is None
    assert estimate(0.7, np.array([0.5, 0.6, 0.9]), bounded=True)["interval"] == pytest.approx(
        log_odds_interval(0.7, np.array([0.5, 0.6, 0.9]))
    )
    assert estimate(float("nan"), ones, bounded=True) == {"value": None, "interval": None}
