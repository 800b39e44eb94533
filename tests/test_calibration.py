"""Probabilities, decisions and what acting on them brings: against closed forms, scikit-learn and simulations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit
from sklearn import metrics as sk
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from clinstack.errors import InputError
from clinstack.evaluate.bootstrap import draw_patients
from clinstack.evaluate.calibration import apply_calibration, fit_calibration
from clinstack.evaluate.calibration_figures import Entries, brier, calibration_figures, recalibration
from clinstack.evaluate.classification import SplitScores, measure_classifier, measure_split
from clinstack.evaluate.decision import decision_curve
from clinstack.evaluate.scored import Scored
from clinstack.recipe.training import EvaluationRecipe
from clinstack.tasks import Task

BINARY = Task("mortality", "binary", ("alive", "dead"))
BINS = Task("length_of_stay", "multiclass", ("0-3", "3-7", "7-14", "14+"))
CODES = Task("diagnoses", "multilabel", tuple(f"c{i}" for i in range(5)))
SETTINGS = EvaluationRecipe(resamples=100)


def entries(there: np.ndarray, probabilities: np.ndarray) -> Entries:
    return Entries("binary", there.astype(bool)[:, None], probabilities[:, None])


def weights(rows: int, resamples: int = 200, patients: int | None = None) -> np.ndarray:
    ids = [f"p{i % (patients or rows)}" for i in range(rows)]
    return draw_patients(ids, resamples).weights(ids)


def truthful(rng: np.random.Generator, rows: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels that come true as often as the probabilities say."""
    log_odds = -1 + spread * rng.normal(size=rows)
    return rng.random(rows) < expit(log_odds), log_odds


def split_of(task: Task, rng: np.random.Generator, rows: int, stretch: float = 1.0) -> SplitScores:
    """Logits of a model that knows the truth, but says it ``stretch`` times too loudly."""
    logits = rng.normal(size=(rows, len(task.classes)))
    if task.kind == "multilabel":
        logits -= 1
        indicator = rng.random(logits.shape) < expit(logits)
        labels: list = [[task.classes[c] for c in np.flatnonzero(row)] for row in indicator]
    else:
        noise = rng.gumbel(size=logits.shape)
        labels = (logits + noise).argmax(axis=1).tolist()  # class k with the probability that a softmax gives it
    return SplitScores(labels, stretch * logits, [f"p{i // 2}" for i in range(rows)])


def scored(task: Task, split: SplitScores) -> Scored:
    return Scored.build(task, split.labels, split.logits)


def fit(table: Scored) -> dict[str, Any] | None:
    """Fit with a patient for each row."""
    return fit_calibration(table, [f"p{row}" for row in range(len(table.indicator))])


def test_perfectly_calibrated_scores_have_slope_one_and_intercept_zero() -> None:
    there, log_odds = truthful(np.random.default_rng(0), 20_000)
    figures = calibration_figures(entries(there, expit(log_odds)), weights(20_000, 100))
    for name, truth in (("slope", 1.0), ("intercept", 0.0)):
        low, high = figures[name]["interval"]
        assert low < truth < high
        assert high - low < 0.1
    assert figures["ece"]["value"] < 0.02
    # Twice as far from even odds as the truth, and half a unit too low: the figures say so.
    figures = calibration_figures(entries(there, expit(2 * log_odds)), weights(20_000, 100))
    assert figures["slope"]["value"] == pytest.approx(0.5, abs=0.03)
    figures = calibration_figures(entries(there, expit(log_odds - 0.5)), weights(20_000, 100))
    assert figures["intercept"]["value"] == pytest.approx(0.5, abs=0.05)
    assert figures["slope"]["value"] == pytest.approx(1.0, abs=0.05)


def test_slope_and_intercept_equal_other_optimisers() -> None:
    there, log_odds = truthful(np.random.default_rng(1), 500)
    claimed = 1.7 * log_odds + 0.4
    slope, intercept = recalibration(entries(there, expit(claimed)), weights(500, 50))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(claimed[:, None], there)
    assert slope["value"] == pytest.approx(model.coef_[0, 0], abs=1e-5)

    def loss(shift: float) -> float:
        return float((np.logaddexp(0, claimed + shift) - there * (claimed + shift)).sum())

    assert intercept["value"] == pytest.approx(minimize_scalar(loss, tol=1e-12).x, abs=1e-6)


def test_slope_of_wildly_wrong_probabilities_is_still_found() -> None:
    # From so far away Newton's own steps are too long.
    there, log_odds = truthful(np.random.default_rng(13), 500)
    claimed = 8 * log_odds - 12
    slope, _ = recalibration(entries(there, expit(claimed)), weights(500, 50))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        logit(np.clip(expit(claimed), 1e-12, 1 - 1e-12))[:, None], there
    )
    assert slope["value"] == pytest.approx(model.coef_[0, 0], abs=1e-5)


def test_one_newton_step_a_resample_gives_the_interval_of_fitting_each_anew() -> None:
    there, log_odds = truthful(np.random.default_rng(2), 600)
    claimed, drawn = 1.4 * log_odds, weights(600, 200, patients=300)
    slope, intercept = recalibration(entries(there, expit(claimed)), drawn)
    slopes, intercepts = [], []
    for row in drawn:
        model = LogisticRegression(C=np.inf, tol=1e-6).fit(claimed[:, None], there, sample_weight=row)
        slopes.append(model.coef_[0, 0])
        shift = 0.0
        for _ in range(8):
            fitted = expit(claimed + shift)
            shift += (row @ (there - fitted)) / (row @ (fitted * (1 - fitted)))
        intercepts.append(shift)
    for found, anew, share in ((slope, slopes, 0.12), (intercept, intercepts, 0.04)):
        expected = np.quantile(anew, [0.025, 0.975])
        np.testing.assert_allclose(found["interval"], expected, atol=share * (expected[1] - expected[0]))


def test_figures_that_do_not_exist_are_unknown() -> None:
    same = np.full(40, 0.3)
    there = np.arange(40) < 10
    slope, intercept = recalibration(entries(there, same), weights(40, 20))
    assert slope == {"value": None, "interval": None}
    assert intercept["value"] == pytest.approx(logit(0.25) - logit(0.3))
    apart = np.where(there, 0.9, 0.1)
    assert recalibration(entries(there, apart), weights(40, 20))[0]["value"] is None
    assert recalibration(entries(np.zeros(40), same), weights(40, 20))[1]["value"] is None
    # A softmax is right on average whatever it says.
    rng = np.random.default_rng(0)
    table = scored(BINS, split_of(BINS, rng, 100))
    slope, intercept = recalibration(Entries("multiclass", table.indicator, table.scores), weights(100, 20))
    assert slope["value"] is not None
    assert intercept["value"] is None


def test_calibration_error_and_reliability_by_hand() -> None:
    probabilities = np.array([0.05, 0.15, 0.15, 0.35, 0.95, 0.95, 0.95, 0.95])
    there = np.array([0, 0, 1, 1, 1, 1, 1, 0])
    figures = calibration_figures(entries(there, probabilities), weights(8, 20))
    # Equal width: |0 - .05| + |1 - .3| + |1 - .35| + |3 - 3.8|, of 8.
    assert figures["ece_equal_width"]["value"] == pytest.approx((0.05 + 0.7 + 0.65 + 0.8) / 8)
    bins = figures["reliability"]
    assert sum(entry["count"] for entry in bins) == 8
    assert bins[-1]["observed"] == pytest.approx(0.75)
    assert bins[-1]["mean_predicted"] == pytest.approx(0.95)
    for entry in bins:
        assert entry["low"] <= entry["mean_predicted"] <= entry["high"]


def test_bins_of_equal_mass_hold_a_tenth_each() -> None:
    there, log_odds = truthful(np.random.default_rng(3), 1000)
    probabilities = expit(log_odds)
    figures = calibration_figures(entries(there, probabilities), weights(1000, 20))
    assert [entry["count"] for entry in figures["reliability"]] == [100] * 10
    order = np.argsort(probabilities).reshape(10, 100)
    expected = np.abs(probabilities[order].sum(axis=1) - there[order].sum(axis=1)).sum() / 1000
    assert figures["ece"]["value"] == pytest.approx(expected)


def test_entries_of_several_classes_are_looked_at_together() -> None:
    table = scored(CODES, split_of(CODES, np.random.default_rng(12), 200))
    probabilities = expit(1.5 * table.logits)
    together = calibration_figures(Entries("multilabel", table.indicator, probabilities), weights(200, 20))
    flat = calibration_figures(entries(table.indicator.ravel(), probabilities.ravel()), weights(1000, 20))
    for name in ("ece", "ece_equal_width", "slope", "intercept", "brier"):
        assert together[name]["value"] == pytest.approx(flat[name]["value"])


def test_the_interval_of_the_calibration_error_is_not_made_of_noise() -> None:
    # The truth is 0: a percentile interval would hardly ever come near it.
    near = 0
    for seed in range(20):
        there, log_odds = truthful(np.random.default_rng(seed), 400)
        near += calibration_figures(entries(there, expit(log_odds)), weights(400, 200))["ece"]["interval"][0] < 0.015
    assert near >= 17


def test_brier_scores_equal_sklearn() -> None:
    rng = np.random.default_rng(4)
    there, log_odds = truthful(rng, 300)
    one = brier(entries(there, expit(log_odds)), weights(300, 20))
    assert one["value"] == pytest.approx(sk.brier_score_loss(there, expit(log_odds)))
    table = scored(BINS, split_of(BINS, rng, 200))
    several = brier(Entries("multiclass", table.indicator, table.scores), weights(200, 20))
    expected = ((table.scores - table.indicator) ** 2).sum(axis=1).mean()
    assert several["value"] == pytest.approx(expected)
    assert brier(Entries("multilabel", table.indicator, table.scores), weights(200, 20))["value"] == pytest.approx(
        expected / 4
    )


def test_blocks_of_rows_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    table = scored(CODES, split_of(CODES, np.random.default_rng(5), 200))
    found = Entries("multilabel", table.indicator, expit(table.logits))
    whole = calibration_figures(found, weights(200, 30))
    monkeypatch.setattr("clinstack.evaluate.calibration_figures._BLOCK", 35)
    parts = calibration_figures(found, weights(200, 30))
    for name in ("ece", "slope", "intercept", "brier"):
        assert parts[name]["value"] == pytest.approx(whole[name]["value"], abs=1e-10)
        np.testing.assert_allclose(parts[name]["interval"], whole[name]["interval"], atol=1e-8)


@pytest.mark.parametrize("task", [BINARY, BINS, CODES])
def test_temperature_is_the_minimum_of_the_cross_entropy(task: Task) -> None:
    split = split_of(task, np.random.default_rng(6), 3000, stretch=2.5)
    table = scored(task, split)
    fitted = fit(table)
    assert fitted is not None

    def loss(temperature: float) -> float:
        scaled = table.logits / temperature
        if task.kind == "multilabel":
            return float((np.logaddexp(0, scaled) - table.indicator * scaled).mean())
        return float(-log_softmax(scaled, axis=1)[table.indicator].mean())

    best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9}).x
    assert fitted["temperature"] == pytest.approx(best, rel=1e-5)
    assert fitted["temperature"] == pytest.approx(2.5, rel=0.1)


def test_temperature_of_perfect_and_of_reversed_scores_stays_finite() -> None:
    margin = np.linspace(-1, 1, 20)
    logits = np.stack([-margin, margin], axis=1)
    labels = (margin > 0).astype(int)
    for truth, expected in ((labels, 0.01), (1 - labels, 100.0)):
        fitted = fit(Scored.build(BINARY, truth.tolist(), logits))
        assert fitted is not None
        assert fitted["temperature"] == pytest.approx(expected)


def test_isotonic_equals_sklearn_and_is_never_certain() -> None:
    split = split_of(BINARY, np.random.default_rng(7), 400)
    table = scored(BINARY, split)
    fitted = fit(table)
    new = np.stack([np.zeros(50), np.linspace(-9, 9, 50)], axis=1)
    found = apply_calibration(BINARY, new, fitted, "isotonic")
    model = IsotonicRegression(out_of_bounds="clip").fit(table.margin, table.indicator[:, 1])
    expected = np.clip(model.predict(new[:, 1]), 1 / 402, 401 / 402)
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found.min() > 0


@pytest.mark.parametrize("task", [BINARY, BINS, CODES])
def test_a_fit_survives_json_and_improves_other_patients(task: Task) -> None:
    rng = np.random.default_rng(8)
    splits = {"validation": split_of(task, rng, 1500, 3.0), "test": split_of(task, rng, 1500, 3.0)}
    measured = measure_classifier(task, splits, SETTINGS)
    kept = json.loads(json.dumps(measured.calibration, allow_nan=False))
    logits = np.asarray(splits["test"].logits)
    for method in ("temperature", "isotonic"):
        before = apply_calibration(task, logits, measured.calibration, method)
        np.testing.assert_array_equal(before, apply_calibration(task, logits, kept, method))
        assert before.shape == logits.shape
        if task.kind != "multilabel":
            np.testing.assert_allclose(before.sum(axis=1), 1)
        error = measured.metrics["test"]["calibration"]
        assert error[method]["ece"]["value"] < 0.4 * error["none"]["ece"]["value"]
        assert error[method]["brier"]["value"] < error["none"]["brier"]["value"]
    # A stack that is evaluated later gives the same figures with what was kept.
    assert json.loads(json.dumps(measure_split(task, splits["test"], SETTINGS, kept)["calibration"])) == json.loads(
        json.dumps(measured.metrics["test"]["calibration"])
    )


def test_nothing_is_fitted_on_test_patients() -> None:
    rng = np.random.default_rng(9)
    validation, test = split_of(BINARY, rng, 200), split_of(BINARY, rng, 200)
    other = SplitScores([1 - label for label in test.labels], test.logits, test.patient_ids)
    fits = [
        measure_classifier(BINARY, {"validation": validation, "test": part}, SETTINGS).calibration
        for part in (test, other)
    ]
    assert fits[0] == fits[1]


def test_calibration_that_cannot_be_is_refused() -> None:
    logits = np.zeros((3, 2))
    with pytest.raises(InputError, match="'platt': use one of none, temperature, isotonic"):
        apply_calibration(BINARY, logits, None, "platt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="this stack has no calibration"):
        apply_calibration(BINARY, logits, None, "temperature")
    fitted = fit(scored(BINS, split_of(BINS, np.random.default_rng(0), 50)))
    with pytest.raises(InputError, match="fitted for 4 classes, task diagnoses has 5"):
        apply_calibration(CODES, np.zeros((3, 5)), fitted, "isotonic")
    assert fit(Scored.build(BINARY, [1, 1], [[0.0, 1.0], [0.0, 2.0]])) is None


def test_validation_with_one_label_only_leaves_probabilities_as_they_are() -> None:
    rng = np.random.default_rng(10)
    validation = SplitScores([0] * 20, rng.normal(size=(20, 2)), [str(i) for i in range(20)])
    measured = measure_classifier(BINARY, {"validation": validation, "test": split_of(BINARY, rng, 100)}, SETTINGS)
    assert list(measured.metrics["test"]["calibration"]) == ["none"]
    assert measured.metrics["test"]["threshold"] is None
    assert measured.metrics["test"]["decision_curve"]["calibration"] == "none"
    json.dumps([measured.metrics, measured.calibration], allow_nan=False)


def strange(task: Task, rng: np.random.Generator) -> SplitScores:
    """A few notes, some classes without one, logits that tie or saturate."""
    rows, classes = int(rng.integers(1, 25)), len(task.classes)
    logits = np.round(rng.choice([0, 1e-3, 1, 30, 1000]) * rng.normal(size=(rows, classes)), rng.integers(3))
    labels: list = rng.integers(0, rng.integers(1, classes + 1), rows).tolist()
    if task.kind == "multilabel":
        labels = [[task.classes[label]] if rng.random() < 0.8 else [] for label in labels]
    return SplitScores(labels, logits, [f"p{i}" for i in rng.integers(0, rows, rows)])


@pytest.mark.parametrize("task", [BINARY, BINS, CODES])
@pytest.mark.filterwarnings("error")
def test_a_handful_of_strange_notes_is_measured_without_a_crash(task: Task) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        splits = {name: strange(task, rng) for name in ("validation", "test")}
        measured = measure_classifier(task, splits, SETTINGS)
        json.dumps([measured.metrics, measured.calibration], allow_nan=False)


def test_net_benefit_by_hand() -> None:
    positive = np.array([True, True, False, False, False])
    probabilities = np.array([0.9, 0.4, 0.5, 0.2, 0.05])
    curve = decision_curve(positive, probabilities, weights(5, 30))
    at = {round(threshold, 2): place for place, threshold in enumerate(curve["thresholds"])}
    assert len(at) == 99
    assert curve["net_benefit"][at[0.3]] == pytest.approx(2 / 5 - 1 / 5 * 0.3 / 0.7)
    assert curve["net_benefit"][at[0.5]] == pytest.approx(1 / 5 - 1 / 5)  # 0.5 itself is treated
    assert curve["net_benefit"][at[0.95]] == 0
    prevalence = 2 / 5
    for threshold, place in at.items():
        expected = prevalence - (1 - prevalence) * threshold / (1 - threshold)
        assert curve["treat_all"][place] == pytest.approx(expected)
        low, high = curve["interval"][place]
        assert low <= curve["net_benefit"][place] <= high
    assert curve["net_benefit"][at[0.05]] == pytest.approx(curve["treat_all"][at[0.05]])


def test_acting_on_true_probabilities_is_never_worse_than_either_extreme() -> None:
    there, log_odds = truthful(np.random.default_rng(11), 50_000)
    curve = decision_curve(there, expit(log_odds), np.ones((2, 50_000)))
    assert (np.array(curve["net_benefit"]) > np.maximum(curve["treat_all"], 0) - 1e-3).all()
