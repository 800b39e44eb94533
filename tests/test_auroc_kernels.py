"""The compiled kernels of large tables: equal to scikit-learn's values and to the plain way's, whatever the ties."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from clinstack.evaluate import auroc as plain
from clinstack.evaluate.auroc import class_metrics, micro_auroc, one_vs_one_auroc, ranking_metrics, softmax
from clinstack.evaluate.bootstrap import patient_weights
from clinstack.evaluate.ranking_kernels import PackedWeights, rank


def ranked(indicator: np.ndarray, scores: np.ndarray, weights: np.ndarray, **options: object) -> tuple:
    return rank(indicator, scores, PackedWeights.pack(weights), **options)


def assert_equals_sklearn(indicator: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> None:
    """Compare every column under every weighting; where scikit-learn has no value, the kernels say NaN."""
    areas, precisions = ranked(indicator, scores, weights)
    assert areas.shape == precisions.shape == (len(weights), indicator.shape[1])
    for place, weight in enumerate(weights):
        for column, (truth, score) in enumerate(zip(indicator.T, scores.T, strict=True)):
            counted = weight > 0
            if len(set(truth[counted])) < 2:
                assert np.isnan(areas[place, column])
                assert np.isnan(precisions[place, column])
                continue
            expected = sk.roc_auc_score(truth, score, sample_weight=weight)
            assert areas[place, column] == pytest.approx(expected, abs=1e-12)
            expected = sk.average_precision_score(truth, score, sample_weight=weight)
            assert precisions[place, column] == pytest.approx(expected, abs=1e-12)


def table(seed: int, rows: int, columns: int, ties: float = 0.0, rate: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    indicator = generator.random((rows, columns)) < rate
    scores = generator.normal(size=(rows, columns)) + indicator
    return indicator, np.round(scores / ties) * ties if ties else scores


@pytest.mark.parametrize("ties", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("resamples", [1, 3, 130])
def test_whole_weights_equal_sklearn(ties: float, resamples: int) -> None:
    indicator, scores = table(0, 150, 3, ties)
    weights = np.random.default_rng(1).integers(0, 4, (resamples, 150)).astype(float)
    assert_equals_sklearn(indicator, scores, weights)


@pytest.mark.parametrize("resamples", [1, 130])
def test_fractional_and_large_weights_equal_sklearn(resamples: int) -> None:
    indicator, scores = table(2, 150, 2, 0.1)
    weights = np.random.default_rng(3).random((resamples, 150))
    assert_equals_sklearn(indicator, scores, weights)
    assert_equals_sklearn(indicator, scores, np.floor(1000 * weights))
    # A weighting that needs fractions only in its last block.
    assert_equals_sklearn(indicator, scores, np.concatenate([np.floor(4 * weights), weights[:1]]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_small_table_equals_sklearn(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e300, 1e300), st.sampled_from([-0.0, 5e-324]))
    scores = np.array(data.draw(st.lists(numbers, min_size=rows, max_size=rows)))
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    resamples = data.draw(st.integers(1, 2))
    whole = st.lists(st.integers(0, 3), min_size=rows, max_size=rows)
    weights = np.array(data.draw(st.lists(whole, min_size=resamples, max_size=resamples)), dtype=float)
    assert_equals_sklearn(truth[:, None], scores[:, None], weights)


def test_scores_far_apart_or_infinite_keep_their_order() -> None:
    generator = np.random.default_rng(4)
    truth = generator.random((400, 1)) < 0.5
    scores = np.exp(40 * generator.normal(size=(400, 1)) + 10 * truth)
    scores[::50] = np.finfo(float).max
    scores[1::50] = -np.finfo(float).max
    weights = generator.integers(0, 3, (2, 400)).astype(float)
    assert_equals_sklearn(truth, scores, weights)
    ranks = np.unique(scores, return_inverse=True)[1].reshape(-1, 1).astype(float)
    scores[::50], scores[1::50] = np.inf, -np.inf
    np.testing.assert_array_equal(ranked(truth, scores, weights), ranked(truth, ranks, weights))


def test_many_rows_on_one_score_do_not_overflow_two_bytes() -> None:
    truth = np.arange(3000) % 3 == 0
    scores = (np.arange(3000) % 7 == 0).astype(float)
    weights = np.full((2, 3000), 255.0)
    assert_equals_sklearn(truth[:, None], scores[:, None], weights)


def test_columns_without_both_labels_are_unknown_and_leave_the_others_alone() -> None:
    indicator, scores = table(5, 80, 5, 0.1)
    indicator[:, 1], indicator[:, 3] = False, True
    for resamples in (1, 2):
        areas, precisions = ranked(indicator, scores, np.ones((resamples, 80)))
        assert np.isnan(areas).all(axis=0).tolist() == [False, True, False, True, False]
        assert np.array_equal(np.isnan(areas), np.isnan(precisions))
    assert_equals_sklearn(indicator, scores, np.ones((2, 80)))


def test_threads_and_the_order_of_memory_do_not_change_a_bit() -> None:
    indicator, scores = table(6, 300, 400, 0.05, rate=0.1)
    for weights in (np.ones((1, 300)), patient_weights([str(i) for i in range(300)], 200)[1], np.full((2, 300), 0.3)):
        one = ranked(indicator, scores, weights, threads=1)
        for other in (
            ranked(indicator, scores, weights, threads=2),
            ranked(np.asfortranarray(indicator), np.asfortranarray(scores), np.ascontiguousarray(weights), threads=3),
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("resamples", [1, 40])
def test_large_tables_get_the_values_of_small_ones(monkeypatch: pytest.MonkeyPatch, resamples: int) -> None:
    generator = np.random.default_rng(7)
    indicator, scores = table(8, 200, 6, 0.1)
    labels, probabilities = generator.integers(0, 4, 200), softmax(np.round(generator.normal(size=(200, 4)), 1))
    weights = generator.integers(0, 3, (resamples, 200)).astype(float)

    def figures() -> list[np.ndarray]:
        return [
            *class_metrics(indicator, scores, weights),
            *ranking_metrics(indicator[:, 0], scores[:, 0], weights),
            micro_auroc(indicator, scores, weights),
            one_vs_one_auroc(labels, probabilities, weights),
        ]

    small = figures()
    called = []
    monkeypatch.setattr(plain, "_LARGE", 0)
    monkeypatch.setattr("clinstack.evaluate.ranking_kernels.rank", lambda *given: called.append(1) or rank(*given))
    for kernels, before in zip(figures(), small, strict=True):
        np.testing.assert_allclose(kernels, before, rtol=1e-13, atol=1e-15)
    assert len(called) == 1 + 1 + 1 + 12


def test_large_macro_auroc_equals_sklearn() -> None:
    indicator, scores = table(9, 9829, 60, rate=0.01)
    areas, precisions = class_metrics(indicator, scores, np.ones((100, 9829)))
    expected = [sk.roc_auc_score(truth, score) for truth, score in zip(indicator.T, scores.T, strict=True)]
    assert np.abs(areas - expected).max() < 1e-12
    expected = [sk.average_precision_score(truth, score) for truth, score in zip(indicator.T, scores.T, strict=True)]
    assert np.abs(precisions - expected).max() < 1e-12


_MEASURE = """
import sys
import numpy as np
import clinstack
from clinstack.evaluate import auroc, classification
assert clinstack.__file__.startswith(sys.argv[1])
area = auroc.auroc(np.arange(100) % 2, np.arange(100.0))
assert "numba" not in sys.modules, "a small table does not wait for a compiler"
auroc._LARGE = 0
print(auroc.auroc(np.arange(100) % 2, np.arange(100.0)) == area)
"""


def test_small_tables_do_not_import_the_compiler_and_no_cache_folder_is_needed(tmp_path: Path) -> None:
    # A file in the place of each folder where numba would keep its machine code: root may write anywhere else.
    source = Path(plain.__file__).resolve().parents[1]
    shutil.copytree(source, tmp_path / "clinstack", ignore=shutil.ignore_patterns("__pycache__", "embedded*"))
    (tmp_path / "clinstack" / "evaluate" / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        env=environment | home | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "True\n", done.stderr
