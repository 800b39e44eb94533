"""Bands of isotonic functions: that they hold the truth, that patients are their unit, and what they cost."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.special import expit, softmax
from scipy.stats import beta, norm

from clinstack.errors import InputError
from clinstack.evaluate import calibration_bands
from clinstack.evaluate.calibration import apply_calibration, calibration_intervals, fit_calibration
from clinstack.evaluate.calibration_bands import add_bands
from clinstack.evaluate.classification import SplitScores, measure_classifier
from clinstack.evaluate.scored import Scored
from clinstack.recipe.training import EvaluationRecipe
from clinstack.tasks import Task

BINARY = Task("mortality", "binary", ("alive", "dead"))
BINS = Task("length_of_stay", "multiclass", ("0-3", "3-7", "7-14", "14+"))
CODES = Task("diagnoses", "multilabel", tuple(f"c{i}" for i in range(5)))


def simulated(task: Task, rng: np.random.Generator, rows: int) -> tuple[Scored, list[str]]:
    """Scores that are true log-odds, of two notes a patient."""
    logits = rng.normal(size=(rows, len(task.classes)))
    if task.kind == "multilabel":
        there = rng.random(logits.shape) < expit(logits)
        labels: list = [[task.classes[column] for column in np.flatnonzero(row)] for row in there]
    else:
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1).tolist()
    return Scored.build(task, labels, logits), [f"p{row // 2}" for row in range(rows)]


@pytest.mark.parametrize("task", [BINARY, BINS, CODES])
def test_every_probability_lies_in_its_interval_and_a_higher_score_has_a_higher_one(task: Task) -> None:
    rng = np.random.default_rng(1)
    fitted = fit_calibration(*simulated(task, rng, 300))
    logits = 3 * rng.normal(size=(500, len(task.classes)))
    intervals = calibration_intervals(task, logits, fitted)
    assert intervals is not None
    assert intervals.shape == (*logits.shape, 2)
    low, high = intervals[..., 0], intervals[..., 1]
    found = apply_calibration(task, logits, fitted)
    assert (low <= found + 1e-12).all()
    assert (found <= high + 1e-12).all()
    assert low.min() >= 0
    assert high.max() <= 1
    assert (high - low).min() > 0.005  # three hundred notes know nothing exactly
    assert fitted is not None
    for function in fitted["isotonic"]:
        for name in ("low", "high"):
            assert (np.diff(function[name]) >= 0).all()
    if task.kind == "binary":
        np.testing.assert_allclose(low[:, 0], 1 - high[:, 1])
    # Plain numbers, the same each time, and the same after they were kept.
    again = fit_calibration(*simulated(task, np.random.default_rng(1), 300))
    assert again == json.loads(json.dumps(fitted, allow_nan=False))
    np.testing.assert_array_equal(intervals, calibration_intervals(task, logits, again))


def test_the_resamples_are_fits_of_whole_patients() -> None:
    """Against fitting every drawn table by itself, row by row."""
    rng = np.random.default_rng(2)
    scores = np.round(rng.normal(size=120), 1)  # with ties
    there = rng.random(120) < expit(scores)
    order = np.lexsort((~there, scores))
    scores, there = scores[order], there[order]
    weights = np.repeat(rng.multinomial(40, np.full(40, 1 / 40), size=50), 3, axis=1).T.astype(np.float32)
    weights += 1  # no row is absent, so that both know the same scores
    found = calibration_bands._Rows(scores, there, np.arange(120)).refitted(weights, np.unique(scores))
    for place in range(50):
        means, sums = [], []
        for value in np.unique(scores):
            rows = scores == value
            sums.append(weights[rows, place].sum())
            means.append((weights[rows, place] * there[rows]).sum() / sums[-1])
        fit = np.clip(isotonic_regression(means, weights=sums).x, 1 / 122, 121 / 122)
        np.testing.assert_allclose(found[place], fit, atol=1e-6)


def test_what_never_happened_is_known_as_well_as_the_patients_are_many() -> None:
    """The rule of three: of m patients without the label, the upper end is about 3.7 / m."""
    scores = np.linspace(-1, 1, 400)[:, None]
    there = scores > 0
    for notes_each in (1, 4):
        functions = [{"scores": [-1.0, -0.01, 0.01, 1.0], "probabilities": [1 / 402, 1 / 402, 401 / 402, 401 / 402]}]
        add_bands(functions, scores, there, [f"p{row // notes_each}" for row in range(400)])
        expected = beta.ppf(0.975, 1, 200 // notes_each)
        assert functions[0]["low"][0] == 0
        assert functions[0]["high"][0] == pytest.approx(expected)
        assert functions[0]["low"][-1] == pytest.approx(1 - expected)
        assert functions[0]["high"][-1] == 1


def test_notes_of_one_patient_make_a_band_no_narrower() -> None:
    """The same patients' notes ten times over bring nothing new."""
    rng = np.random.default_rng(3)
    logits = np.stack([np.zeros(80), 1.5 * rng.normal(size=80)], axis=1)
    labels = (rng.random(80) < expit(logits[:, 1])).astype(int)
    once = fit_calibration(Scored.build(BINARY, labels.tolist(), logits), [f"p{row}" for row in range(80)])
    repeated = Scored.build(BINARY, np.repeat(labels, 10).tolist(), np.repeat(logits, 10, axis=0))
    patients = [f"p{row // 10}" for row in range(800)]
    widths = []
    for fitted in (once, fit_calibration(repeated, patients), fit_calibration(repeated, [str(i) for i in range(800)])):
        intervals = calibration_intervals(BINARY, logits, fitted)
        assert intervals is not None
        widths.append(float(np.diff(intervals[:, 1]).mean()))
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.6 * widths[0]


def test_bands_are_kept_with_the_stack_and_older_fits_have_none() -> None:
    rng = np.random.default_rng(4)
    splits = {}
    for name in ("validation", "test"):
        table, patients = simulated(CODES, rng, 150)
        labels = [[CODES.classes[column] for column in np.flatnonzero(row)] for row in table.indicator]
        splits[name] = SplitScores(labels, table.logits, [f"{name}{patient}" for patient in patients])
    kept = measure_classifier(CODES, splits, EvaluationRecipe(resamples=100)).calibration
    assert kept is not None
    assert kept["bands"] == {"level": 0.95, "unit": "patient", "resamples": 200, "seed": 0}
    logits = np.asarray(splits["test"].logits)
    assert calibration_intervals(CODES, logits, kept) is not None
    # What an earlier clinstack wrote.
    kept["isotonic"] = [{name: function[name] for name in ("scores", "probabilities")} for function in kept["isotonic"]]
    del kept["bands"]
    assert calibration_intervals(CODES, logits, kept) is None
    assert apply_calibration(CODES, logits, kept).shape == logits.shape
    assert calibration_intervals(CODES, logits, {"temperature": 1.5}) is None
    assert calibration_intervals(CODES, logits, None) is None


def test_intervals_of_another_number_of_classes_are_refused() -> None:
    fitted = fit_calibration(*simulated(BINS, np.random.default_rng(5), 60))
    with pytest.raises(InputError, match="fitted for 4 classes, task diagnoses has 5"):
        calibration_intervals(CODES, np.zeros((3, 5)), fitted)


def test_a_table_that_would_take_minutes_has_no_bands_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_bands, "MOST_ENTRIES", 500)
    fitted = fit_calibration(*simulated(CODES, np.random.default_rng(6), 101))
    assert fitted is not None
    assert fitted["bands"] == {"left_out": "5 labels of 101 rows are more than 500 entries"}
    assert calibration_intervals(CODES, np.zeros((2, 5)), fitted) is None
    assert apply_calibration(CODES, np.zeros((2, 5)), fitted).shape == (2, 5)


SAMPLES = 150
QUANTILES = np.array([0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "each", "spread", "centre"),
    [
        (60, 1, 1.5, -1.0),
        (400, 1, 1.5, -1.0),
        (1500, 1, 1.5, -1.0),
        (1500, 1, 1.0, -3.5),  # one note in twenty
        (600, 3, 1.5, -1.0),
        (600, 6, 1.5, -1.0),
        (400, 1, 0.3, -1.0),  # scores that tell next to nothing
        (1500, 1, 4.0, 0.0),  # and such that tell nearly all
    ],
)
def test_a_band_holds_the_true_probability(rows: int, each: int, spread: float, centre: float) -> None:
    """At scores from the lowest to the highest; notes of one patient share half of what decides about them."""
    truth = expit(centre + spread * norm.ppf(QUANTILES))
    logits = np.stack([np.zeros(len(QUANTILES)), centre + spread * norm.ppf(QUANTILES)], axis=1)
    held = np.zeros(len(QUANTILES))
    rng = np.random.default_rng([rows, each])
    for _ in range(SAMPLES):
        patients = np.arange(rows) % (rows // each)
        log_odds = centre + spread * rng.normal(size=rows)
        luck = rng.random(rows)
        if each > 1:
            luck = np.where(rng.random(rows) < 0.5, rng.random(rows // each)[patients], luck)
        table = Scored.build(BINARY, (luck < expit(log_odds)).astype(int).tolist(), np.stack([0 * luck, log_odds], 1))
        intervals = calibration_intervals(BINARY, logits, fit_calibration(table, [str(item) for item in patients]))
        assert intervals is not None
        held += (intervals[:, 1, 0] <= truth) & (truth <= intervals[:, 1, 1])
    print(rows, each, spread, centre, np.round(held / SAMPLES, 2), (held / SAMPLES).mean())
    assert (held / SAMPLES).mean() >= 0.94
    assert (held / SAMPLES).min() >= 0.88


@pytest.mark.slow
def test_the_interval_of_a_class_that_excludes_others_holds_its_probability() -> None:
    rng = np.random.default_rng(7)
    held = np.zeros((200, 4))
    for _ in range(60):
        fitted = fit_calibration(*simulated(BINS, rng, 800))
        logits = rng.normal(size=(200, 4))
        intervals = calibration_intervals(BINS, logits, fitted)
        assert intervals is not None
        truth = softmax(logits, axis=1)
        held += (intervals[..., 0] <= truth) & (truth <= intervals[..., 1])
    print(held.mean(axis=0) / 60)
    assert held.mean() / 60 >= 0.94


@pytest.mark.slow
def test_bands_of_1266_labels_take_less_than_a_minute() -> None:
    rng = np.random.default_rng(8)
    rows, labels = 4_900, 1_266
    scores = rng.normal(size=(rows, labels)) - 4
    there = rng.random(scores.shape) < expit(scores)
    functions = [{"scores": list(np.linspace(-8, 0, 20)), "probabilities": [0.5] * 20} for _ in range(labels)]
    begin = time.process_time()
    add_bands(functions, scores, there, [f"p{row}" for row in range(rows)])
    print("seconds", time.process_time() - begin)
    assert time.process_time() - begin < 60
