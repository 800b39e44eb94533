"""Cohen's kappa against scikit-learn and by hand, and its intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from clinstack.evaluate.agreement import agreement, cohen_kappa
from clinstack.evaluate.bootstrap import draw_patients

GRADES = (1, 2, 3, 4)


def two_raters(rows: int, seed: int, alike: float = 0.6) -> tuple[list[int], list[int], list[str]]:
    rng = np.random.default_rng(seed)
    first = rng.choice(GRADES, rows, p=[0.15, 0.2, 0.25, 0.4]).tolist()
    second = [one if rng.random() < alike else int(rng.integers(1, 5)) for one in first]
    return first, second, [f"p{row // 3}" for row in range(rows)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_kappa_is_scikit_learns(seed: int, weighted: bool) -> None:
    first, second, patients = two_raters(90, seed)
    weights = np.random.default_rng(seed).uniform(0.2, 2, 90).tolist() if weighted else None
    found = agreement(first, second, patients, draw_patients(patients, 100), GRADES, weights)
    for key, name in (("kappa", None), ("kappa_quadratic", "quadratic")):
        expected = cohen_kappa_score(first, second, labels=GRADES, weights=name, sample_weight=weights)
        assert found[key]["value"] == pytest.approx(expected, abs=1e-12)


def test_each_resample_is_scikit_learns() -> None:
    """The vectorised kappas equal those of rows written out as often as their patient was drawn."""
    first, second, patients = two_raters(30, 3)
    draws = draw_patients(patients, 20, seed=1)
    weights = draws.weights(patients).astype(int)
    tables = np.zeros((20, 4, 4))
    for a, b, column in zip(first, second, weights.T, strict=True):
        tables[:, a - 1, b - 1] += column
    for sample, kappa in zip(weights, cohen_kappa(tables, "quadratic"), strict=True):
        rows = np.repeat(np.arange(30), sample)
        again = cohen_kappa_score(np.asarray(first)[rows], np.asarray(second)[rows], labels=GRADES, weights="quadratic")
        assert kappa == pytest.approx(again, abs=1e-12)


def test_by_hand() -> None:
    # Observed agreement 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    # A disagreement of three grades weighs nine times one of a single grade.
    far, near = np.eye(4) * 10, np.eye(4) * 10
    far[0, 3] = near[2, 3] = 1
    assert cohen_kappa(far, "quadratic") < cohen_kappa(near, "quadratic")
    assert cohen_kappa(far) == pytest.approx(cohen_kappa(near), abs=0.01)


def test_unknown_without_chance_to_beat() -> None:
    found = agreement([4, 4], [4, 4], ["a", "b"], draw_patients(["a", "b"], 100), GRADES)
    assert found["kappa"] == found["kappa_quadratic"] == {"value": None, "interval": None}
    assert found["exact"]["value"] == 1.0
    empty = agreement([], [], [], draw_patients(["a"], 100), GRADES)
    assert empty["ratings"] == 0
    assert empty["exact"] == empty["kappa"] == {"value": None, "interval": None}


def test_intervals_are_over_patients() -> None:
    """Ten copies of each rating say nothing new when they are of the same patients; of new ones they do."""
    first, second, _ = two_raters(60, 7)
    own = [f"p{row}" for row in range(60)]

    def width(patients: list[str], copies: int) -> float:
        found = agreement(first * copies, second * copies, patients, draw_patients(patients, 500), GRADES)
        low, high = found["kappa"]["interval"]
        return float(high - low)

    once = width(own, 1)
    assert width(own * 10, 10) == pytest.approx(once, rel=1e-9)
    assert width([f"p{row}" for row in range(600)], 10) < once / 2


def test_the_interval_covers_the_truth() -> None:
    """Of 200 samples of 80 patients the interval holds the kappa of an endless sample about as often as it says."""
    first, second, _ = two_raters(400_000, 99)
    truth = cohen_kappa_score(first, second)
    held = 0
    for seed in range(200):
        a, b, _ = two_raters(80, seed)
        ids = [str(row) for row in range(80)]
        found = agreement(a, b, ids, draw_patients(ids, 200, seed), GRADES)["kappa"]["interval"]
        held += found[0] <= truth <= found[1]
    assert 180 <= held <= 199
