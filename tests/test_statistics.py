"""Thresholds, DeLong, seeds, many comparisons, published figures: against scikit-learn, slow ways and simulations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import kstest, norm
from sklearn import metrics as sk

from clinstack.errors import InputError
from clinstack.evaluate.auroc import softmax
from clinstack.evaluate.bootstrap import draw_patients
from clinstack.evaluate.classification import (
    SplitScores,
    classification_metrics,
    measure_classifier,
    measure_split,
)
from clinstack.evaluate.compare import compare
from clinstack.evaluate.curves import precision_recall_curve
from clinstack.evaluate.delong import delong, delong_difference
from clinstack.evaluate.multiple_comparisons import bootstrap_p, holm
from clinstack.evaluate.scored import Scored
from clinstack.evaluate.seeds import seed_shares
from clinstack.evaluate.thresholds import best_threshold, choose_thresholds, decide, decision_metrics
from clinstack.recipe.training import EvaluationRecipe
from clinstack.tasks import Task

BINARY = Task("mortality", "binary", ("alive", "dead"))
BINS = Task("length_of_stay", "multiclass", ("0-3", "3-7", "7-14", "14+"))
CODES = Task("diagnoses", "multilabel", tuple(f"c{i}" for i in range(6)))
SETTINGS = EvaluationRecipe(resamples=100)


def labels_of(task: Task, indicator: np.ndarray) -> list:
    if task.kind == "multilabel":
        return [[task.classes[column] for column in np.flatnonzero(row)] for row in indicator]
    return indicator.argmax(axis=1).tolist()


def split_of(task: Task, rng: np.random.Generator, rows: int = 200, rate: float = 0.3) -> SplitScores:
    classes = len(task.classes)
    if task.kind == "multilabel":
        indicator = rng.random((rows, classes)) < rate
    else:
        indicator = np.eye(classes, dtype=bool)[rng.integers(0, classes, rows)]
    logits = np.round(rng.normal(size=(rows, classes)) + indicator, 1)
    return SplitScores(labels_of(task, indicator), logits, [f"p{i // 2}" for i in range(rows)])


def scored(task: Task, split: SplitScores) -> Scored:
    assert split.logits is not None
    return Scored.build(task, split.labels, split.logits)


# Thresholds


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_largest_f1_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, scores = rng.random(80) < 0.3, np.round(rng.normal(size=80), 1)
    found = best_threshold(positive, scores)
    assert found is not None
    every = [sk.f1_score(positive, scores >= threshold) for threshold in np.unique(scores)]
    assert sk.f1_score(positive, scores >= found) == pytest.approx(max(every))


def test_the_threshold_lies_between_two_scores() -> None:
    assert best_threshold(np.array([False, True, True]), np.array([0.0, 1.0, 2.0])) == 0.5
    assert best_threshold(np.array([True, True]), np.array([1.0, 2.0])) == 1.0
    assert best_threshold(np.array([False, False]), np.array([1.0, 2.0])) is None
    close = np.array([1.0, np.nextafter(1.0, 2)])
    assert best_threshold(np.array([False, True]), close) == close[1]


def test_decisions_equal_sklearn_on_copied_rows() -> None:
    rng = np.random.default_rng(1)
    split = split_of(CODES, rng, 120)
    table = scored(CODES, split)
    called = decide(table, choose_thresholds(table))
    assert called is not None
    drawn = draw_patients(split.patient_ids, 5, 3).weights(split.patient_ids)
    by_class, micro = decision_metrics(table.indicator, called, drawn)
    for place, row in enumerate(drawn.astype(int)):
        copied = np.repeat(np.arange(120), row)
        truth, guess = table.indicator[copied], called[copied]
        precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, guess, average=None, zero_division=0)
        np.testing.assert_allclose(by_class["precision"][place], precision)
        np.testing.assert_allclose(by_class["recall"][place], recall)
        np.testing.assert_allclose(by_class["f1"][place], f1)
        _, specificity, _, _ = sk.precision_recall_fscore_support(~truth, ~guess, average=None, zero_division=0)
        np.testing.assert_allclose(by_class["specificity"][place], specificity)
        assert micro["f1"][place] == pytest.approx(sk.f1_score(truth, guess, average="micro"))


def test_binary_decisions_are_made_at_the_threshold_of_validation() -> None:
    rng = np.random.default_rng(2)
    splits = {"validation": split_of(BINARY, rng), "test": split_of(BINARY, rng)}
    measured = measure_classifier(BINARY, splits, SETTINGS)
    threshold = measured.metrics["test"]["threshold"]
    validation, test = scored(BINARY, splits["validation"]), scored(BINARY, splits["test"])
    margin = best_threshold(validation.indicator[:, 1], validation.margin)
    assert margin is not None
    assert threshold["value"] == pytest.approx(1 / (1 + np.exp(-margin)))
    assert threshold["chosen_on"] == "validation"
    truth, guess = test.indicator[:, 1], test.scores[:, 1] >= threshold["value"]
    assert threshold["f1"]["value"] == pytest.approx(sk.f1_score(truth, guess))
    assert threshold["precision"]["value"] == pytest.approx(sk.precision_score(truth, guess))
    assert threshold["recall"]["value"] == pytest.approx(sk.recall_score(truth, guess))
    assert threshold["specificity"]["value"] == pytest.approx(sk.recall_score(~truth, ~guess))
    for name in ("f1", "precision", "recall", "specificity"):
        low, high = threshold[name]["interval"]
        assert low <= threshold[name]["value"] <= high
    # The same decisions later, with what a stack keeps of them; without it there are none.
    kept = json.loads(json.dumps(measured.calibration))
    assert measure_split(BINARY, splits["test"], SETTINGS, kept)["threshold"] == threshold
    assert "threshold" not in measure_split(BINARY, splits["test"], SETTINGS)


def test_of_several_classes_the_likeliest_is_taken() -> None:
    split = split_of(BINS, np.random.default_rng(3))
    result = classification_metrics(BINS, split.labels, split.logits, split.patient_ids, 100)  # type: ignore[arg-type]
    guess = np.asarray(split.logits).argmax(axis=1)
    assert result["threshold"]["f1"]["value"] == pytest.approx(sk.f1_score(split.labels, guess, average="macro"))
    assert result["threshold"]["micro"]["f1"]["value"] == pytest.approx(sk.accuracy_score(split.labels, guess))
    assert "chosen_on" not in result["threshold"]
    by_class = sk.f1_score(split.labels, guess, average=None)
    assert [entry["f1"]["value"] for entry in result["per_class"]] == pytest.approx(by_class)


def test_rare_codes_share_a_threshold_and_each_code_has_its_counts() -> None:
    rng = np.random.default_rng(4)
    splits = {name: split_of(CODES, rng, rows) for name, rows in (("validation", 150), ("test", 200))}
    validation = scored(CODES, splits["validation"]).indicator
    validation[:, 2], validation[:9, 2] = False, True
    validation[:, 4] = False
    splits["validation"] = SplitScores(
        labels_of(CODES, validation), splits["validation"].logits, splits["validation"].patient_ids
    )
    splits["train"] = SplitScores([["c0"], ["c0", "c5"], []], None, ["a", "b", "c"])
    measured = measure_classifier(CODES, splits, SETTINGS)
    test = measured.metrics["test"]
    chosen = measured.calibration["threshold"]  # type: ignore[index]
    assert test["threshold"]["sharing"] == chosen["sharing"] == 2
    assert chosen["scores"][2] == chosen["scores"][4] == chosen["shared"]
    logits = np.asarray(splits["validation"].logits)
    assert chosen["shared"] == best_threshold(validation.ravel(), logits.ravel())
    assert chosen["scores"][0] == best_threshold(validation[:, 0], logits[:, 0])
    entries = {entry["class"]: entry for entry in test["per_class"]}
    assert entries["c2"]["counts"] == {"train": 0, "validation": 9, "test": entries["c2"]["positives"]}
    assert entries["c0"]["counts"]["train"] == 2
    assert test["threshold"]["f1"]["value"] == pytest.approx(np.mean([e["f1"]["value"] for e in entries.values()]))
    assert measured.metrics["validation"].keys() >= {"primary", "auroc_macro", "auprc", "rows"}
    assert measured.metrics["validation"]["auroc_macro"]["interval"] is None
    json.dumps(measured.metrics, allow_nan=False)


def test_a_split_without_logits_is_refused() -> None:
    with pytest.raises(InputError, match="there are no logits to measure"):
        measure_classifier(BINARY, {"test": SplitScores([0, 1], None, ["a", "b"])}, SETTINGS)


# AUROC and AUPRC that are new


def test_averages_over_classes_equal_sklearn() -> None:
    split = split_of(BINS, np.random.default_rng(5))
    result = classification_metrics(BINS, split.labels, split.logits, split.patient_ids, 100)  # type: ignore[arg-type]
    probabilities = softmax(np.asarray(split.logits))
    indicator = np.eye(4)[split.labels]
    for name, average in (("auroc_ovr_micro", "micro"), ("auroc_ovr_weighted", "weighted"), ("auroc_ovr", "macro")):
        expected = sk.roc_auc_score(split.labels, probabilities, multi_class="ovr", average=average)
        assert result[name]["value"] == pytest.approx(expected)
    expected = sk.average_precision_score(indicator, probabilities, average="weighted")
    assert result["auprc_weighted"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("task", [BINARY, CODES])
def test_the_area_under_the_precision_recall_curve_is_the_average_precision(task: Task) -> None:
    split = split_of(task, np.random.default_rng(6))
    table = scored(task, split)
    recall, precision = precision_recall_curve(table)
    area = float((np.diff(recall, prepend=0) * precision).sum())
    if task.kind == "binary":
        assert area == pytest.approx(sk.average_precision_score(table.indicator[:, 1], table.margin))
    else:  # on a grid of 201 recalls
        assert area == pytest.approx(sk.average_precision_score(table.indicator, table.logits), abs=0.01)
    assert (np.diff(recall) >= 0).all()
    assert recall[-1] == 1


def test_there_is_no_curve_without_both_labels() -> None:
    table = Scored.build(BINARY, [1, 1], [[0.0, 1.0], [0.0, 2.0]])
    assert precision_recall_curve(table)[0].size == 0


# Rare classes


def test_where_few_patients_carry_a_class_resamples_are_stratified(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [1] * 4 + [0] * 196
    logits = np.random.default_rng(15).normal(size=(200, 2))
    ids = [f"p{i // 2}" for i in range(200)]  # two patients with the outcome: one resample in seven would lose both
    seen = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(draw_patients(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr("clinstack.evaluate.classification.draw_patients", watched)
    monkeypatch.setattr("clinstack.evaluate.compare.draw_patients", watched)
    assert classification_metrics(BINARY, labels, logits, ids, 200)["bootstrap"]["stratified"]
    compare({"mortality": {"head": predictions(labels, logits, ids)}}, TASKS, [], resamples=200)
    for draws in seen:
        assert (draws.counts[np.isin(draws.patients, ["p0", "p1"])].sum(axis=0) == 2).all()
    for task in (BINARY, CODES):
        split = split_of(task, np.random.default_rng(16), rate=0.01)
        assert not measure_split(task, split, SETTINGS)["bootstrap"]["stratified"]


# DeLong


def slow_clustered(positive: np.ndarray, scores: list[np.ndarray], patients: list[str]) -> tuple[list, np.ndarray]:
    """Obuchowski (1997), equations 3 to 6, pair by pair."""

    def psi(x: float, y: float) -> float:
        return 1.0 if x > y else 0.5 if x == y else 0.0

    rows = range(len(positive))
    ups, downs = [i for i in rows if positive[i]], [i for i in rows if not positive[i]]
    m, n = len(ups), len(downs)
    areas = [sum(psi(s[i], s[j]) for i in ups for j in downs) / (m * n) for s in scores]
    names = sorted(set(patients))
    over = [{i: sum(psi(s[i], s[j]) for j in downs) / n for i in ups} for s in scores]
    under = [{j: sum(psi(s[i], s[j]) for i in ups) / m for j in downs} for s in scores]
    mine = {name: [i for i in rows if patients[i] == name] for name in names}
    u = [[sum(over[k][i] - areas[k] for i in mine[name] if positive[i]) for name in names] for k in range(len(scores))]
    d = [
        [sum(under[k][j] - areas[k] for j in mine[name] if not positive[j]) for name in names]
        for k in range(len(scores))
    ]
    i10 = sum(any(positive[i] for i in mine[name]) for name in names)
    i01 = sum(any(not positive[i] for i in mine[name]) for name in names)
    total = len(names)
    result = np.zeros((len(scores), len(scores)))
    for a in range(len(scores)):
        for b in range(len(scores)):
            s10 = i10 / ((i10 - 1) * m) * sum(x * y for x, y in zip(u[a], u[b], strict=True))
            s01 = i01 / ((i01 - 1) * n) * sum(x * y for x, y in zip(d[a], d[b], strict=True))
            s11 = total / (total - 1) * sum(x * y for x, y in zip(u[a], d[b], strict=True))
            s11 += total / (total - 1) * sum(x * y for x, y in zip(u[b], d[a], strict=True))
            result[a, b] = s10 / m + s01 / n + s11 / (m * n)
    return areas, result


@pytest.mark.parametrize("notes_a_patient", [1, 3])
def test_delong_equals_the_slow_way(notes_a_patient: int) -> None:
    rng = np.random.default_rng(7)
    positive = rng.random(60) < 0.4
    shared = rng.normal(size=60)
    one, other = (np.round(shared + rng.normal(size=60) + by * positive, 1) for by in (1.0, 0.4))
    patients = [f"p{i // notes_a_patient}" for i in range(60)]
    areas, covariances = slow_clustered(positive, [one, other], patients)
    found = delong(positive, one, patients)
    assert found["value"] == pytest.approx(areas[0])
    assert found["value"] == pytest.approx(sk.roc_auc_score(positive, one))
    assert found["standard_error"] == pytest.approx(np.sqrt(covariances[0, 0]))
    difference = delong_difference(positive, one, other, patients)
    variance = covariances[0, 0] + covariances[1, 1] - 2 * covariances[0, 1]
    assert difference["value"] == pytest.approx(areas[0] - areas[1])
    assert difference["standard_error"] == pytest.approx(np.sqrt(variance))
    assert difference["p"] == pytest.approx(2 * norm.sf(abs(areas[0] - areas[1]) / np.sqrt(variance)))
    low, high = difference["interval"]
    assert (low + high) / 2 == pytest.approx(difference["value"])


def test_with_one_note_a_patient_the_variance_is_delongs() -> None:
    rng = np.random.default_rng(8)
    positive, scores = rng.random(50) < 0.5, rng.normal(size=50)
    wins = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    variance = wins.mean(axis=1).var(ddof=1) / positive.sum() + wins.mean(axis=0).var(ddof=1) / (~positive).sum()
    found = delong(positive, scores, [str(i) for i in range(50)])
    assert found["standard_error"] == pytest.approx(np.sqrt(variance))


def test_delong_where_there_is_nothing_to_say() -> None:
    nothing = delong(np.array([True, False, False]), np.arange(3.0), ["a", "b", "c"])
    assert nothing == {"value": None, "interval": None, "standard_error": None}
    assert delong_difference(np.array([True, False]), np.arange(2.0), np.arange(2.0), ["a", "b"])["p"] is None
    positive, scores = np.arange(20) % 3 == 0, np.random.default_rng(0).normal(size=20)
    same = delong_difference(positive, scores, 2 * scores, [str(i) for i in range(20)])
    assert (same["value"], same["p"]) == (0, 1)


def test_delong_agrees_with_the_bootstrap_for_patients_with_several_notes() -> None:
    rng = np.random.default_rng(9)
    patient = np.repeat(np.arange(150), 4)
    labels = rng.integers(0, 2, 150)[patient]
    scores = labels + rng.normal(size=150)[patient] + 0.5 * rng.normal(size=600)
    ids = [str(i) for i in patient]
    result = classification_metrics(BINARY, labels.tolist(), np.stack([0 * scores, scores], 1), ids, 1000)
    low, high = result["auroc"]["interval"]
    closed = result["delong"]["interval"]
    assert closed[1] - closed[0] == pytest.approx(high - low, rel=0.12)
    alone = delong(labels.astype(bool), scores, [str(i) for i in range(600)])["interval"]
    assert alone[1] - alone[0] < 0.65 * (closed[1] - closed[0])


# Many comparisons


def test_holm_equals_a_table_by_hand() -> None:
    # Holm (1979): 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, None, 0.02]) == pytest.approx([0.04, None, 0.04])
    assert holm([]) == []


def test_p_values_from_resamples() -> None:
    rng = np.random.default_rng(10)
    resampled = rng.normal(size=4000)
    for difference in (0.5, 1.0, 1.96):
        p = bootstrap_p(difference, resampled + difference)
        assert p == pytest.approx(2 * norm.sf(difference), rel=0.15)
    count = int((np.abs(resampled) >= 1.0).sum())
    assert bootstrap_p(-1.0, resampled - 1.0) == pytest.approx((1 + count) / 4001)
    # Far out no resample reaches the difference: the normal tail, not 0, and not 1 / 4001 either.
    far = bootstrap_p(6.0, resampled + 6.0)
    assert far == pytest.approx(2 * norm.sf(6 / np.sqrt((resampled**2).mean())), rel=0.3)
    assert bootstrap_p(0.0, np.zeros(100)) == 1
    assert bootstrap_p(0.1, np.full(99, 0.1)) == pytest.approx(1 / 100)
    assert bootstrap_p(float("nan"), resampled) is None
    assert bootstrap_p(0.1, np.full(99, np.nan)) is None


def predictions(labels: list, logits: np.ndarray, patients: list[str]) -> pa.Table:
    rows = len(labels)
    return pa.table(
        {
            "example_id": [f"e{i:04d}" for i in range(rows)],
            "patient_id": patients,
            "split": ["test"] * rows,
            "label": labels,
            "score": logits.astype(np.float32).tolist(),
        }
    )


def trained(strength: float, seed: int, rows: int = 200, wobble: float = 0.6) -> pa.Table:
    """Scores of one training: the same patients, labels and noise, and what its seed adds."""
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(0, 2, rows), rng.normal(size=rows)
    own = np.random.default_rng([1, seed]).normal(size=rows)
    score = strength * labels + noise + wobble * own
    return predictions(labels.tolist(), np.stack([-score, score], 1) / 2, [f"p{i // 2}" for i in range(rows)])


TASKS = {"mortality": BINARY}


def figures_of(**stacks: Any) -> Any:
    pairs = [(a, b) for a in stacks for b in stacks if a > b]
    return compare({"mortality": stacks}, TASKS, pairs, resamples=400)


def test_each_difference_has_p_values_and_a_verdict() -> None:
    result = figures_of(head=trained(0.5, 0), lora=trained(2.0, 0), same=trained(0.5, 1))
    rows = result.differences
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    by = {(row["a"], row["b"]): row for row in rows if row["task"] == "mortality"}
    assert by["lora", "head"]["holds"]
    assert by["lora", "head"]["p_holm"] < 0.001
    assert not by["same", "head"]["holds"]
    closed = by["lora", "head"]["delong"]
    assert closed["value"] == pytest.approx(by["lora", "head"]["value"])
    assert closed["interval"] == pytest.approx(by["lora", "head"]["interval"], abs=0.03)
    assert all("delong" not in row for row in rows if row["task"] == "macro")
    json.dumps([result.auroc, result.differences], allow_nan=False)


def test_a_difference_that_is_one_of_many_does_not_hold_though_it_would_alone() -> None:
    stacks = {f"s{seed}": trained(0.9, seed) for seed in range(1, 4)}

    def first_against_head(**tables: pa.Table) -> dict[str, Any]:
        rows = figures_of(head=trained(0.5, 0), **tables).differences
        return next(row for row in rows if (row["a"], row["b"], row["task"]) == ("s1", "head", "mortality"))

    alone, among = first_against_head(s1=stacks["s1"]), first_against_head(**stacks)
    assert alone["p"] == among["p"] <= 0.05 < among["p_holm"]
    assert among["interval"][0] > 0
    assert alone["holds"]
    assert not among["holds"]


# Seeds


def test_one_seed_in_a_list_is_the_table_itself() -> None:
    alone = figures_of(head=trained(0.5, 0), lora=trained(1.5, 0))
    listed = figures_of(head=[trained(0.5, 0)], lora={7: trained(1.5, 0)})
    assert alone == listed
    assert all(row["seeds"] == 1 and row["seed_deviation"] is None for row in alone.auroc)


def test_figures_are_means_over_seeds_and_intervals_hold_both_sources() -> None:
    tables = [trained(1.0, seed, wobble=2.0) for seed in range(4)]
    single = [next(iter(figures_of(head=table).auroc)) for table in tables]
    result = figures_of(head=tables)
    (row,) = (entry for entry in result.auroc if entry["task"] == "mortality")
    values = [entry["value"] for entry in single]
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["seeds"] == 4
    assert row["seed_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert len(result.by_seed["mortality"]["head"]) == 4
    macro = next(entry for entry in result.auroc if entry["task"] == "macro")
    assert (macro["seeds"], macro["seed_deviation"]) == (4, row["seed_deviation"])


def test_the_draws_of_seeds_have_the_variance_of_new_seeds() -> None:
    values = np.array([0.70, 0.74, 0.79])
    shares = seed_shares("mortality", (0, 1, 2), 50_000, 5)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    means = values @ shares
    assert means.mean() == pytest.approx(values.mean(), abs=3e-4)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.03)
    assert np.array_equal(shares, seed_shares("mortality", (0, 1, 2), 50_000, 5))
    assert not np.array_equal(shares, seed_shares("diagnoses", (0, 1, 2), 50_000, 5))


def test_differences_pair_the_seeds_that_both_have() -> None:
    # What a seed adds is the same in both stacks, as with an equal order of batches.
    ours = {seed: trained(1.5, seed, wobble=2.0) for seed in range(4)}
    theirs = {seed: trained(1.0, seed, wobble=2.0) for seed in range(4)}
    others = {seed + 10: trained(1.0, seed, wobble=2.0) for seed in range(4)}

    def difference(b: dict) -> dict:
        rows = figures_of(head=b, lora=ours).differences
        return next(row for row in rows if row["task"] == "mortality")

    def width(row: dict) -> float:
        low, high = row["interval"]
        return float(high - low)

    paired, apart = difference(theirs), difference(others)
    assert paired["value"] == pytest.approx(apart["value"])
    assert width(paired) < 0.8 * width(apart)
    # One seed is missing on one side: the difference is that of the three that both have.
    part = difference({seed: theirs[seed] for seed in (0, 1, 3)})
    assert part["seeds"] == 3
    common = figures_of(head=[theirs[s] for s in (0, 1, 3)], lora=[ours[s] for s in (0, 1, 3)]).differences
    assert part["value"] == pytest.approx(next(row for row in common if row["task"] == "mortality")["value"])
    assert "delong" not in paired


def test_seeds_of_other_examples_are_refused() -> None:
    with pytest.raises(InputError, match="do not cover the same test examples"):
        figures_of(head=[trained(1.0, 0), trained(1.0, 1).slice(0, 199)])
    with pytest.raises(InputError, match="head on mortality: there are no predictions of any seed"):
        figures_of(head=[])


# What the published code computed


def test_published_figures_of_codes() -> None:
    split = split_of(CODES, np.random.default_rng(11), 150)
    table = scored(CODES, split)
    indicator = table.indicator
    indicator[:, 3] = False
    split = SplitScores(labels_of(CODES, indicator), split.logits, split.patient_ids)
    found = measure_split(CODES, split, EvaluationRecipe(resamples=100, published=True))["published"]
    kept = [0, 1, 2, 4, 5]
    probabilities = softmax(table.logits)
    called = table.logits >= 0
    expected = {
        "auroc_of_softmax": np.mean([sk.roc_auc_score(indicator[:, c], probabilities[:, c]) for c in kept]),
        "auprc_of_softmax": np.mean([sk.average_precision_score(indicator[:, c], probabilities[:, c]) for c in kept]),
        "f1_macro_at_half": np.mean([sk.f1_score(indicator[:, c], called[:, c]) for c in kept]),
        "f1_micro_at_half": sk.f1_score(indicator, called, average="micro"),
        "classes_counted": 5,
        "classes_skipped": 1,
    }
    assert found == pytest.approx(expected)
    assert "published" not in measure_split(CODES, split, SETTINGS)


def test_published_figures_of_other_tasks() -> None:
    settings = EvaluationRecipe(resamples=100, published=True)
    split = split_of(BINS, np.random.default_rng(12))
    found = measure_split(BINS, split, settings)["published"]
    probabilities = softmax(np.asarray(split.logits))
    assert found["auroc_ovo_macro"] == pytest.approx(
        sk.roc_auc_score(split.labels, probabilities, multi_class="ovo", average="macro")
    )
    expected = sk.average_precision_score(np.eye(4)[split.labels], probabilities)
    assert found["auprc_ovr_macro"] == pytest.approx(expected)
    split = split_of(BINARY, np.random.default_rng(13))
    found = measure_split(BINARY, split, settings)["published"]
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(split.labels, softmax(np.asarray(split.logits))[:, 1]))


def test_the_command_line_shows_decisions_and_calibration_in_two_lines() -> None:
    from clinstack.cli import run_figures

    rng = np.random.default_rng(14)
    splits = {"validation": split_of(BINARY, rng), "test": split_of(BINARY, rng)}
    metrics = measure_classifier(BINARY, splits, SETTINGS).metrics["test"]
    shown = run_figures({"test": metrics})
    assert list(shown) == [
        "test auroc",
        "test auprc",
        "test F1 at the threshold of validation",
        "test calibration error",
    ]
    assert shown["test F1 at the threshold of validation"].startswith(f"{metrics['threshold']['f1']['value']:.3f}")
    assert "; temperature 0." in shown["test calibration error"]


# Simulations


@pytest.mark.slow
def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    p_values = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(60), 2)
        labels = rng.integers(0, 2, 60)[patient]
        shared = rng.normal(size=60)[patient]
        ids = [f"p{i}" for i in patient]
        tables = {}
        for name in "ab":
            score = labels + shared + rng.normal(size=120)
            tables[name] = predictions(labels.tolist(), np.stack([-score, score], 1), ids)
        result = compare({"mortality": tables}, TASKS, [("a", "b")], resamples=400, seed=seed)
        p_values.append(next(row["p"] for row in result.differences if row["task"] == "mortality"))
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "fewest", "most"), [(1, 0.5, 1.0), (5, 0.0, 0.09)])
def test_five_seeds_keep_equal_stacks_apart_from_different_ones(seeds: int, fewest: float, most: float) -> None:
    # Equally good stacks, but each training is better or worse by chance: one of each says nothing about the stacks.
    found = 0
    for repetition in range(150):
        rng = np.random.default_rng([repetition, seeds])
        patient = np.repeat(np.arange(150), 2)
        labels, shared = rng.integers(0, 2, 150)[patient], rng.normal(size=150)[patient]
        tables: dict[str, dict[int, pa.Table]] = {"a": {}, "b": {}}
        for stack, first in (("a", 0), ("b", 10)):
            for number in range(seeds):
                score = (1 + 0.3 * rng.normal()) * labels + shared + 0.3 * rng.normal(size=300)
                logits = np.stack([-score, score], 1)
                tables[stack][first + number] = predictions(labels.tolist(), logits, [f"p{i}" for i in patient])
        result = compare({"mortality": tables}, TASKS, [("a", "b")], resamples=300, seed=repetition)
        found += next(row["p"] for row in result.differences if row["task"] == "mortality") < 0.05
    assert fewest <= found / 150 <= most


@pytest.mark.slow
def test_delong_covers_the_truth_for_patients_with_several_notes() -> None:
    covered = clustered = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(80), 4)
        labels = (np.arange(80) % 2)[patient]
        # The patient's own level and the note's noise: difference of means 1, variance 1 + 0.5.
        scores = labels + rng.normal(size=80)[patient] + np.sqrt(0.5) * rng.normal(size=320)
        truth = norm.cdf(1 / np.sqrt(2 * 1.5))
        for ids, by_patient in ((patient, True), (np.arange(320), False)):
            low, high = delong(labels.astype(bool), scores, [str(i) for i in ids])["interval"]
            inside = low <= truth <= high
            clustered += inside and by_patient
            covered += inside and not by_patient
    assert 0.92 <= clustered / 400 <= 0.98
    assert covered / 400 < 0.8
