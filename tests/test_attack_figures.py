"""Figures of membership attacks against scikit-learn's curve, a plain bootstrap, and known distributions."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from clinstack.errors import InputError
from clinstack.privacy.attack_figures import Sides, joint_areas

Floats = NDArray[np.float64]


def patients(prefix: str, notes: int, each: int = 2) -> list[str]:
    return [f"{prefix}{place // each}" for place in range(notes)]


def curve_at(members: Floats, others: Floats, rate: float) -> float:
    labels = np.r_[np.ones(len(members)), np.zeros(len(others))]
    false, true, _ = roc_curve(labels, np.r_[members, others], drop_intermediate=False)
    return float(true[false <= rate].max())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_rates_are_those_of_scikit_learn(ties: bool, rate: float) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        members, others = random.normal(1, 1, 150), random.normal(0, 1, 130)
        if ties:
            members, others = np.round(members * 2), np.round(others * 2)
        sides = Sides(patients("m", 150), patients("n", 130), resamples=2)
        assert sides.true_positive_rates(members, others, rate)[0] == curve_at(members, others, rate)
        labels = np.r_[np.ones(150), np.zeros(130)]
        assert sides.areas(members, others)[0] == pytest.approx(roc_auc_score(labels, np.r_[members, others]))


def test_resamples_are_those_of_a_plain_bootstrap() -> None:
    random = np.random.default_rng(5)
    member_patients = [f"m{random.integers(25)}" for _ in range(120)]
    other_patients = [f"n{random.integers(30)}" for _ in range(140)]
    members, others = np.round(random.normal(0.5, 1, 120), 1), np.round(random.normal(0, 1, 140), 1)
    sides = Sides(member_patients, other_patients, resamples=50, seed=9)
    rates, areas = sides.true_positive_rates(members, others, 0.02), sides.areas(members, others)
    draws = sides._draws
    is_member = np.array([patient.startswith("m") for patient in draws.patients])
    for resample in range(50):
        drawn = {patient: int(count) for patient, count in zip(draws.patients, draws.counts[:, resample], strict=True)}
        assert draws.counts[is_member, resample].sum() == is_member.sum()
        many = np.repeat(members, [drawn[patient] for patient in member_patients])
        few = np.repeat(others, [drawn[patient] for patient in other_patients])
        assert rates[resample + 1] == pytest.approx(curve_at(many, few, 0.02))
        labels = np.r_[np.ones(len(many)), np.zeros(len(few))]
        assert areas[resample + 1] == pytest.approx(roc_auc_score(labels, np.r_[many, few]))


def test_what_cannot_be_measured_is_not_made_up() -> None:
    random = np.random.default_rng(0)
    sides = Sides(patients("m", 200), patients("n", 200), resamples=20)
    figures = sides.figures(random.normal(1, 1, 200), random.normal(0, 1, 200))
    assert figures["tpr_at_1_percent"]["value"] is not None
    assert figures["tpr_at_0.1_percent"]["value"] is None
    assert figures["tpr_at_0.1_percent"]["interval"] is None
    assert "needs 1,000 non-members, not 200" in figures["tpr_at_0.1_percent"]["why"]
    few = Sides(patients("m", 200), patients("n", 99), resamples=20)
    assert few.figures(random.normal(1, 1, 200), random.normal(0, 1, 99))["tpr_at_1_percent"]["value"] is None


def test_equal_scores_are_taken_or_left_together() -> None:
    # 110 non-members, of which 5 share the members' score: at 1 % one may be let in, so none of the five is.
    others = np.r_[np.full(5, 1.0), np.zeros(105)]
    sides = Sides(patients("m", 10), patients("n", 110), resamples=2)
    assert sides.true_positive_rates(np.full(10, 1.0), others, 0.01)[0] == 0
    assert sides.true_positive_rates(np.full(10, 2.0), others, 0.01)[0] == 1
    assert sides.areas(np.zeros(10), np.zeros(110))[0] == 0.5


def test_sides_that_overlap_or_lack_scores_are_refused() -> None:
    with pytest.raises(InputError, match="1 patients are among the members and the non-members"):
        Sides(["a", "b"], ["b", "c"])
    with pytest.raises(InputError, match="there are no non-members"):
        Sides(["a"], [])
    sides = Sides(["a", "b"], ["c"])
    with pytest.raises(InputError, match=r"members, row 2, is not a finite number"):
        sides.areas(np.array([0.0, np.nan]), np.array([0.0]))
    with pytest.raises(InputError, match="1 scores of members, but 2 patients"):
        sides.true_positive_rates(np.array([0.0]), np.array([0.0]), 0.01)


def test_several_attacks_together_are_wider_than_each_alone() -> None:
    random = np.random.default_rng(1)
    sides = Sides(patients("m", 150), patients("n", 150), resamples=500)
    scores = {f"attack {number}": (random.normal(0, 1, 150), random.normal(0, 1, 150)) for number in range(4)}
    joint = joint_areas(sides, scores)
    for name, of in scores.items():
        alone = sides.figures(*of)["auroc"]
        low, high = joint["by_attack"][name]["interval"]
        assert joint["by_attack"][name]["value"] == alone["value"]
        assert low < alone["interval"][0]
        assert high > alone["interval"][1]
    best = max(scores, key=lambda name: joint["by_attack"][name]["value"])
    assert joint["strongest"]["attack"] == best
    assert joint["strongest"]["interval"][0] < 0.5
    assert joint["strongest"]["p"] > 0.05


def test_the_same_attack_twice_costs_nothing_and_a_sure_one_is_sure() -> None:
    random = np.random.default_rng(2)
    sides = Sides(patients("m", 120), patients("n", 120), resamples=400)
    one = (random.normal(1, 1, 120), random.normal(0, 1, 120))
    once, twice = joint_areas(sides, {"a": one}), joint_areas(sides, {"a": one, "b": one})
    assert once["by_attack"]["a"] == twice["by_attack"]["b"]
    assert once["strongest"]["p"] == pytest.approx(1 / 401)
    apart = joint_areas(sides, {"a": (np.ones(120), np.zeros(120)), "none": (np.zeros(120), np.zeros(120))})
    assert apart["strongest"] == {"attack": "a", "value": 1.0, "interval": [1.0, 1.0], "p": 1 / 401}
    assert apart["by_attack"]["none"] == {"value": 0.5, "interval": [0.5, 0.5]}


def test_large_sides_stay_in_memory() -> None:
    random = np.random.default_rng(0)
    sides = Sides(patients("m", 2000), patients("n", 2000), resamples=200)
    members, others = random.normal(0, 1, 2000), random.normal(0, 1, 2000)
    tracemalloc.start()
    sides.figures(members, others)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    weights = 4000 * 201 * 8
    assert peak < 8 * weights + 40e6


@pytest.mark.slow
def test_ten_thousand_a_side() -> None:
    random = np.random.default_rng(0)
    sides = Sides(patients("m", 10_000), patients("n", 10_000))
    began = time.monotonic()
    figures = sides.figures(random.normal(0.5, 1, 10_000), random.normal(0, 1, 10_000))
    assert time.monotonic() - began < 60  # a second on a quiet core
    assert figures["auroc"]["value"] == pytest.approx(norm.cdf(0.5 / np.sqrt(2)), abs=0.02)
    assert figures["tpr_at_0.1_percent"]["value"] == pytest.approx(norm.sf(norm.isf(0.001) - 0.5), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "notes"), [(0.0, 200), (1.0, 200), (1.0, 1000)])
def test_intervals_hold_what_is_known(shift: float, notes: int) -> None:
    """Two normals, two notes of each patient that are alike: the share of samples whose interval holds the truth."""
    random = np.random.default_rng(11)
    held = {"auroc": 0, "tpr_at_1_percent": 0}
    truth = {"auroc": norm.cdf(shift / np.sqrt(2)), "tpr_at_1_percent": norm.sf(norm.isf(0.01) - shift)}
    samples = 300
    for _ in range(samples):
        members, others = (
            np.sqrt(0.5) * (np.repeat(random.normal(0, 1, notes // 2), 2) + random.normal(0, 1, notes))
            for _ in range(2)
        )
        sides = Sides(patients("m", notes), patients("n", notes), resamples=400)
        figures = sides.figures(members + shift, others)
        for name in held:
            low, high = figures[name]["interval"]
            held[name] += low <= truth[name] <= high
    # Seen: 0.97 and 0.90 to 0.94. The few highest non-members decide the threshold, and resamples vary it too little.
    assert held["auroc"] / samples > 0.93
    assert held["tpr_at_1_percent"] / samples > 0.86
