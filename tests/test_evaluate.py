"""The metrics equal scikit-learn's, and their intervals mean what they say."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as sk

from clinstack.errors import InputError
from clinstack.evaluate.auroc import (
    auroc,
    average_precision,
    class_metrics,
    mean_of_known,
    micro_auroc,
    one_vs_one_auroc,
    softmax,
)
from clinstack.evaluate.bootstrap import draw_patients, patient_weights, percentile_interval
from clinstack.evaluate.classification import classification_metrics, primary_auroc
from clinstack.evaluate.compare import compare
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.tasks import Task

BINARY = Task("mortality", "binary", ("alive", "dead"))
BINS = Task("length_of_stay", "multiclass", ("0-3", "3-7", "7-14", "14+"))
CODES = Task("diagnoses", "multilabel", tuple(f"c{i}" for i in range(12)))


def tied_scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.round(rng.normal(size=shape), 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_metrics_equal_sklearn(seed: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 300), tied_scores(rng, 300)
    weights = rng.integers(0, 4, 300).astype(float) if weighted else None
    assert auroc(labels, scores, weights) == pytest.approx(
        sk.roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    assert average_precision(labels, scores, weights) == pytest.approx(
        sk.average_precision_score(labels, scores, sample_weight=weights), abs=1e-12
    )


def test_binary_metrics_take_fractional_weights() -> None:
    rng = np.random.default_rng(7)
    labels, scores, weights = rng.integers(0, 2, 300), tied_scores(rng, 300), rng.random(300)
    assert auroc(labels, scores, weights) == pytest.approx(
        sk.roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    assert average_precision(labels, scores, weights) == pytest.approx(
        sk.average_precision_score(labels, scores, sample_weight=weights), abs=1e-12
    )


def test_one_label_only_has_no_auroc() -> None:
    assert np.isnan(auroc(np.ones(4), np.arange(4.0)))
    assert np.isnan(average_precision(np.zeros(4), np.arange(4.0)))


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_equals_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 4, 200), tied_scores(rng, 200, 4)
    probabilities, one = softmax(logits), np.ones((1, 200))
    indicator = labels[:, None] == np.arange(4)
    areas, precisions = class_metrics(indicator, probabilities, one)
    expected = sk.roc_auc_score(labels, probabilities, multi_class="ovo", average="macro")
    assert one_vs_one_auroc(labels, probabilities, one)[0] == pytest.approx(expected, abs=1e-12)
    expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert mean_of_known(areas)[0] == pytest.approx(expected, abs=1e-12)
    expected = sk.average_precision_score(indicator, probabilities, average="macro")
    assert mean_of_known(precisions)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_equals_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    indicator, logits = rng.random((200, 12)) < 0.2, tied_scores(rng, 200, 12)
    one = np.ones((1, 200))
    areas, precisions = class_metrics(indicator, logits, one)
    assert mean_of_known(areas)[0] == pytest.approx(sk.roc_auc_score(indicator, logits, average="macro"), abs=1e-12)
    assert mean_of_known(areas, one @ indicator)[0] == pytest.approx(
        sk.roc_auc_score(indicator, logits, average="weighted"), abs=1e-12
    )
    assert micro_auroc(indicator, logits, one)[0] == pytest.approx(
        sk.roc_auc_score(indicator, logits, average="micro"), abs=1e-12
    )
    assert mean_of_known(precisions)[0] == pytest.approx(
        sk.average_precision_score(indicator, logits, average="macro"), abs=1e-12
    )


def test_resamples_equal_sklearn_on_copied_rows() -> None:
    rng = np.random.default_rng(1)
    patients = [f"p{i}" for i in rng.integers(0, 60, 150)]
    indicator, logits = rng.random((150, 5)) < 0.3, tied_scores(rng, 150, 5)
    labels = rng.integers(0, 3, 150)
    _, weights = patient_weights(patients, resamples=8, seed=3)
    areas, precisions = class_metrics(indicator, logits, weights)
    micro, pairs = micro_auroc(indicator, logits, weights), one_vs_one_auroc(labels, softmax(logits[:, :3]), weights)
    for draw, weight in enumerate(weights.astype(int)):
        copied = np.repeat(np.arange(150), weight)
        for column in range(5):
            truth, scores = indicator[copied, column], logits[copied, column]
            assert areas[draw, column] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
            assert precisions[draw, column] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-12)
        assert micro[draw] == pytest.approx(
            sk.roc_auc_score(indicator[copied], logits[copied], average="micro"), abs=1e-12
        )
        expected = sk.roc_auc_score(labels[copied], softmax(logits[copied, :3]), multi_class="ovo")
        assert pairs[draw] == pytest.approx(expected, abs=1e-12)


def test_blocks_of_resamples_give_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    indicator, logits = rng.random((50, 3)) < 0.4, rng.normal(size=(50, 3))
    _, weights = patient_weights([str(i) for i in range(50)], resamples=40)
    whole = micro_auroc(indicator, logits, weights), class_metrics(indicator, logits, weights)
    monkeypatch.setattr("clinstack.evaluate.auroc._BLOCK", 1000)
    parts = micro_auroc(indicator, logits, weights), class_metrics(indicator, logits, weights)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-13)
    np.testing.assert_array_equal(whole[1], parts[1])


def test_draws_are_whole_patients_and_shared_between_tables() -> None:
    draws = draw_patients(["b", "a", "c", "a"], resamples=200, seed=5)
    assert draws.patients.tolist() == ["a", "b", "c"]
    assert (draws.counts.sum(axis=0) == 3).all()
    one, other = draws.weights(["a", "c", "a"]), draws.weights(["c", "b"])
    assert one.shape == (200, 3)
    assert np.array_equal(one[:, 0], one[:, 2])
    assert np.array_equal(one[:, 1], other[:, 0])
    assert np.array_equal(draws.counts, draw_patients(["c", "a", "b"], resamples=200, seed=5).counts)
    assert not np.array_equal(draws.counts, draw_patients(["c", "a", "b"], resamples=200, seed=6).counts)
    with pytest.raises(InputError, match="patient d"):
        draws.weights(["a", "d"])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Two normals one standard deviation apart: the AUROC is Phi(1/sqrt 2) = 0.7602.
    covered = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 60)
        scores = rng.normal(size=120) + labels
        result = classification_metrics(
            BINARY, labels.tolist(), np.stack([0 * scores, scores], 1).tolist(), [str(i) for i in range(120)], 300, seed
        )
        low, high = result["auroc"]["interval"]
        covered += low <= 0.7602 <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_repeated_patients_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 8)
    labels = (np.arange(40) % 2)[patient]
    scores = (rng.normal(size=40) + (np.arange(40) % 2))[patient] + 0.1 * rng.normal(size=320)
    logits = np.stack([0 * scores, scores], 1).tolist()

    def width(patient_ids: list[str]) -> float:
        low, high = classification_metrics(BINARY, labels.tolist(), logits, patient_ids, 500)["auroc"]["interval"]
        return float(high - low)

    assert width([str(i) for i in patient]) > 2 * width([str(i) for i in range(320)])


def test_multilabel_scores_are_ranked_by_logit_not_by_softmax() -> None:
    # The second class's logit ranks its notes perfectly; a softmax over classes would turn that round.
    task = Task("codes", "multilabel", ("a", "b"))
    logits = [[9.0, 3.0], [9.0, 2.0], [-9.0, 1.0], [-9.0, 0.0]]
    result = classification_metrics(task, [["b"], ["b"], [], []], logits, list("wxyz"), 50)
    assert result["auroc_macro"]["value"] == 1.0
    assert sk.roc_auc_score([1, 1, 0, 0], softmax(np.asarray(logits))[:, 1]) < 1.0


def test_classes_without_both_labels_are_left_out_and_named() -> None:
    rng = np.random.default_rng(4)
    indicator = rng.random((80, 12)) < 0.3
    indicator[:, 3], indicator[:, 7] = False, True
    labels = [[CODES.classes[c] for c in np.flatnonzero(row)] for row in indicator]
    logits = rng.normal(size=(80, 12))
    result = classification_metrics(CODES, labels, logits.tolist(), [str(i) for i in range(80)], 100)
    assert result["primary"] == "auroc_macro"
    assert result["classes_left_out"] == ["c3", "c7"]
    assert result["classes_scored"] == 10
    kept = [c for c in range(12) if c not in (3, 7)]
    assert result["auroc_macro"]["value"] == pytest.approx(
        sk.roc_auc_score(indicator[:, kept], logits[:, kept]), abs=1e-12
    )
    assert [entry["class"] for entry in result["per_class"]] == [CODES.classes[c] for c in kept]
    assert result["prevalence"]["c7"] == 1.0


def test_multiclass_without_one_bin_still_scores_the_others() -> None:
    rng = np.random.default_rng(5)
    labels, logits = rng.integers(0, 3, 90), rng.normal(size=(90, 4))
    result = classification_metrics(BINS, labels.tolist(), logits.tolist(), [str(i) for i in range(90)], 100)
    assert result["primary"] == "auroc_ovo"
    assert result["classes_left_out"] == ["14+"]
    low, high = result["auroc_ovo"]["interval"]
    assert low < result["auroc_ovo"]["value"] < high
    assert {"auroc_ovr", "auprc"} <= result.keys()


def test_a_single_row_has_no_figure_and_no_crash() -> None:
    result = classification_metrics(BINARY, [1], [[0.0, 1.0]], ["p"], 10)
    assert result["auroc"] == {"value": None, "interval": None}
    assert result["classes_left_out"] == ["alive", "dead"]
    assert classification_metrics(CODES, [["c0"]], [[0.0] * 12], ["p"], 10)["auroc_macro"]["value"] is None


@pytest.mark.parametrize("task", [BINARY, BINS, CODES])
def test_primary_figure_alone_equals_that_of_the_metrics(task: Task) -> None:
    rng = np.random.default_rng(8)
    classes = len(task.classes)
    logits = rng.normal(size=(60, classes)).tolist()
    indices = rng.integers(0, classes, 60).tolist()
    labels = [[task.classes[index]] for index in indices] if task.kind == "multilabel" else indices
    metrics = classification_metrics(task, labels, logits, [str(i) for i in range(60)], 10)
    assert primary_auroc(task, labels, logits) == metrics[metrics["primary"]]["value"]
    assert np.isnan(primary_auroc(task, labels[:1], logits[:1]))


def test_saturated_binary_logits_keep_their_order() -> None:
    logits = [[0.0, 800.0], [0.0, 900.0], [0.0, 950.0], [0.0, 700.0]]
    assert classification_metrics(BINARY, [0, 1, 1, 0], logits, list("abcd"), 10)["auroc"]["value"] == 1.0


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        ([0, 2], [[0.0, 1.0], [0.0, 1.0]], "row 1: label 2"),
        ([0, 1], [[0.0, 1.0], [0.0]], "row 1: 1 scores"),
        ([0, 1], [[0.0, 1.0], [0.0, float("nan")]], "row 1: a score is not finite"),
        ([], [], "no rows"),
    ],
)
def test_wrong_predictions_are_refused(labels: list[int], logits: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        classification_metrics(BINARY, labels, logits, [str(i) for i in labels], 10)


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(InputError, match="row 0: label zz"):
        classification_metrics(CODES, [["zz"]], [[0.0] * 12], ["p"], 10)


def predictions(labels: list, logits: np.ndarray, patients: list[str], split: str = "test") -> pa.Table:
    return pa.table(
        {
            "example_id": [f"e{i:04d}" for i in range(len(labels))],
            "patient_id": patients,
            "split": [split] * len(labels),
            "label": labels,
            "score": logits.astype(np.float32).tolist(),
        }
    )


@pytest.fixture
def two_tasks() -> tuple[dict, dict]:
    rng = np.random.default_rng(11)
    patients = [f"p{i}" for i in rng.integers(0, 200, 250)]
    truth = rng.integers(0, 2, 250)
    noise = rng.normal(size=250)
    indicator = rng.random((180, 12)) < 0.25
    codes = [[CODES.classes[c] for c in np.flatnonzero(row)] for row in indicator]
    code_noise = rng.normal(size=(180, 12))
    tables: dict = {"mortality": {}, "diagnoses": {}}
    for stack, strength in {"head": 0.3, "lora": 1.0}.items():
        score = noise + strength * truth
        tables["mortality"][stack] = predictions(truth.tolist(), np.stack([-score, score], 1), patients)
        tables["diagnoses"][stack] = predictions(codes, code_noise + strength * indicator, patients[:180])
    return tables, {"mortality": BINARY, "diagnoses": CODES}


def test_compare_pairs_stacks_and_averages_tasks(two_tasks: tuple[dict, dict]) -> None:
    tables, tasks = two_tasks
    result = compare(tables, tasks, [("lora", "head"), ("missing", "head")], resamples=300)
    by = {(row["stack"], row["task"]): row for row in result.auroc}
    for stack in ("head", "lora"):
        parts = [by[stack, task]["value"] for task in tasks]
        assert by[stack, "macro"]["value"] == pytest.approx(np.mean(parts))
    macro = next(row for row in result.differences if row["metric"] == "macro_auroc")
    assert (macro["a"], macro["b"], macro["task"]) == ("lora", "head", "macro")
    assert macro["value"] == pytest.approx(by["lora", "macro"]["value"] - by["head", "macro"]["value"])
    assert macro["interval"][0] > 0
    assert {row["metric"] for row in result.differences} == {"macro_auroc", "mortality_auroc", "diagnoses_auroc"}
    # The same noise in both stacks: a paired interval is far narrower than either stack's own.
    own = by["lora", "macro"]["interval"]
    assert macro["interval"][1] - macro["interval"][0] < 0.8 * (own[1] - own[0])


def test_compare_does_not_depend_on_row_order_or_other_splits(two_tasks: tuple[dict, dict]) -> None:
    tables, tasks = two_tasks
    expected = compare(tables, tasks, [("lora", "head")], resamples=50)
    lora = tables["mortality"]["lora"]
    extra = lora.set_column(2, "split", pa.array(["validation"] * lora.num_rows))
    tables["mortality"]["lora"] = pa.concat_tables([lora.take(np.random.default_rng(0).permutation(250)), extra])
    assert compare(tables, tasks, [("lora", "head")], resamples=50) == expected


def test_compare_refuses_predictions_of_other_examples(two_tasks: tuple[dict, dict]) -> None:
    tables, tasks = two_tasks
    tables["mortality"]["lora"] = tables["mortality"]["lora"].slice(0, 249)
    with pytest.raises(InputError, match=r"do not cover the same test examples.*e0249"):
        compare(tables, tasks, [], resamples=10)


def test_compare_refuses_other_labels(two_tasks: tuple[dict, dict]) -> None:
    tables, tasks = two_tasks
    table = tables["mortality"]["lora"]
    flipped = [1 - value for value in table["label"].to_pylist()]
    tables["mortality"]["lora"] = table.set_column(3, "label", pa.array(flipped))
    with pytest.raises(InputError, match="disagree about the label"):
        compare(tables, tasks, [], resamples=10)


def test_a_stack_without_all_tasks_has_no_macro(two_tasks: tuple[dict, dict]) -> None:
    tables, tasks = two_tasks
    del tables["diagnoses"]["lora"]
    result = compare(tables, tasks, [("lora", "head")], resamples=20)
    assert {row["stack"] for row in result.auroc if row["task"] == "macro"} == {"head"}
    assert [row["task"] for row in result.differences] == ["mortality"]


def test_a_thousand_resamples_take_seconds() -> None:
    rng = np.random.default_rng(0)
    task = Task("codes", "multilabel", tuple(f"c{i}" for i in range(100)))
    indicator = rng.random((400, 100)) < 0.05
    labels = [[task.classes[c] for c in np.flatnonzero(row)] for row in indicator]
    patients = [f"p{i}" for i in rng.integers(0, 300, 400)]
    tables = {f"s{i}": predictions(labels, rng.normal(size=(400, 100)), patients) for i in range(2)}
    start = time.process_time()
    compare({"codes": tables}, {"codes": task}, [("s0", "s1")], resamples=1000)
    assert time.process_time() - start < 10


def losses(rng: np.random.Generator, notes: int = 120) -> pa.Table:
    tokens = rng.integers(20, 400, notes)
    patient = rng.integers(0, 40, notes)
    base = tokens * (5 + 0.3 * rng.normal(size=notes))
    return pa.table(
        {
            "note_id": [str(i) for i in range(notes)],
            "patient_id": [str(i) for i in patient],
            "note_type": np.where(rng.random(notes) < 0.5, "Nursing", "Radiology").tolist(),
            "split": ["test"] * (notes - 10) + ["validation"] * 10,
            "tokens": tokens,
            "characters": tokens * 4,
            "base_nll": base,
            "nll": base - tokens * 1.5,
        }
    )


def test_perplexity_weighs_tokens_and_pairs_the_ratio() -> None:
    table = losses(np.random.default_rng(0))
    result = perplexity_metrics(table, resamples=200)
    test = table.slice(0, 110).to_pydict()
    tokens = np.sum(test["tokens"])
    assert result["base"]["perplexity"]["value"] == pytest.approx(np.exp(np.sum(test["base_nll"]) / tokens))
    assert result["adapted"]["bits_per_character"]["value"] == pytest.approx(
        np.sum(test["nll"]) / np.log(2) / np.sum(test["characters"])
    )
    assert result["notes"] == 110
    # The adapted loss is lower by the same 1.5 nats for each token of each note: the ratio has no spread at all.
    assert result["ratio"]["value"] == pytest.approx(np.exp(1.5))
    assert np.ptp(result["ratio"]["interval"]) < 1e-9
    low, high = result["base"]["perplexity"]["interval"]
    assert low < result["base"]["perplexity"]["value"] < high
    assert result["by_note_type"].keys() == {"Nursing", "Radiology"}
    assert sum(part["notes"] for part in result["by_note_type"].values()) == 110


def test_perplexity_of_one_note_and_of_a_missing_split() -> None:
    table = losses(np.random.default_rng(0))
    assert perplexity_metrics(table.slice(0, 1), resamples=10)["base"]["perplexity"]["value"] > 0
    with pytest.raises(InputError, match="no rows of split train; it has test, validation"):
        perplexity_metrics(table, split="train")


def test_percentile_interval_ignores_impossible_resamples() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, 3.0])) == pytest.approx([1.05, 2.95])
    assert percentile_interval(np.array([np.nan, 1.0])) is None
