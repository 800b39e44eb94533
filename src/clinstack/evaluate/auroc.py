"""AUROC and average precision, exact with ties, for one weighting of the rows or for many at once.

A bootstrap over patients is a weighting of the rows, so each score column is sorted once and every resample is a
column of the same cumulative sums. Values equal scikit-learn's.

Large tables go through compiled kernels (`clinstack.evaluate.ranking_kernels`), which give the same values many times
faster; small ones, such as a validation after each epoch, do not wait for a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_BLOCK = 4_000_000  # numbers per working array: 32 MB, so that memory does not grow with the resamples
_LARGE = 50_000_000  # work from which kernels pay: a third of a second here, as long as importing their compiler takes


def _is_large(entries: int, resamples: int) -> bool:
    # A function of the shape alone, so that values never depend on what ran before. Sorting costs like ten resamples.
    return entries * (resamples + 10) >= _LARGE


def ranking_metrics(positive: BoolArray, scores: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute the AUROC and the average precision of one score column under many weightings.

    Parameters
    ----------
    positive : array of bool, shape (rows,)
        Which rows carry the positive label.
    scores : array of float, shape (rows,)
        The higher, the more positive; tied rows count half (AUROC) or enter together (average precision).
    weights : array of float, shape (resamples, rows)
        How often each row counts. Fastest when it is the transpose of a C-contiguous array.

    Returns
    -------
    auroc, average_precision : arrays of float, shape (resamples,)
        NaN in each resample that lost one of the two labels.
    """
    if _is_large(len(scores), weights.shape[0]):
        areas, precisions = class_metrics(positive[:, None], scores[:, None], weights)
        return areas[:, 0], precisions[:, 0]
    by_row = weights.T
    positive_scores, positive_rows = _descending(scores, positive)
    negative_scores, negative_rows = _descending(scores, ~positive)
    # For each positive: negatives strictly above it, negatives not below it, positives not below it.
    above = np.searchsorted(-negative_scores, -positive_scores, side="left")
    not_below = np.searchsorted(-negative_scores, -positive_scores, side="right")
    found = np.searchsorted(-positive_scores, -positive_scores, side="right")

    resamples = weights.shape[0]
    auroc = np.full(resamples, np.nan)
    precision = np.full(resamples, np.nan)
    if not len(positive_scores) or not len(negative_scores):
        return auroc, precision
    block = max(1, _BLOCK // max(1, len(scores)))
    for start in range(0, resamples, block):
        part = slice(start, start + block)
        weight = by_row[:, part][positive_rows]
        true_positives = np.cumsum(weight, axis=0)
        false_positives = np.zeros((len(negative_rows) + 1, weight.shape[1]))
        np.cumsum(by_row[:, part][negative_rows], axis=0, out=false_positives[1:])
        total_positive, total_negative = true_positives[-1], false_positives[-1]
        both = (total_positive > 0) & (total_negative > 0)
        at_or_above = false_positives[not_below]
        beaten = total_negative - 0.5 * (false_positives[above] + at_or_above)
        taken = true_positives[found - 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc[part] = np.where(both, (weight * beaten).sum(axis=0) / (total_positive * total_negative), np.nan)
            # Where nothing has been taken yet, the positive itself has weight 0 and adds nothing.
            share = np.where(taken > 0, taken / (taken + at_or_above), 0.0)
            precision[part] = np.where(both, (weight * share).sum(axis=0) / total_positive, np.nan)
    return auroc, precision


def _descending(scores: FloatArray, chosen: BoolArray) -> tuple[FloatArray, IntArray]:
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return scores[rows], rows


def auroc(labels: NDArray[np.generic], scores: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the area under the ROC curve of a binary label, as ``sklearn.metrics.roc_auc_score``.

    Parameters
    ----------
    labels, scores : arrays, shape (rows,)
        Labels are 0 or 1 (or bool).
    weights : array of float, shape (rows,), optional
        One by default.

    Returns
    -------
    float
        NaN when one of the two labels is absent.
    """
    return float(_once(labels, scores, weights)[0][0])


def average_precision(labels: NDArray[np.generic], scores: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the average precision of a binary label, as ``sklearn.metrics.average_precision_score``.

    Parameters and missing labels as in `auroc`.
    """
    return float(_once(labels, scores, weights)[1][0])


def _once(labels: NDArray[np.generic], scores: FloatArray, weights: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    row = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    positive = np.asarray(labels).astype(bool)
    return ranking_metrics(positive, np.asarray(scores, dtype=np.float64), row[None, :])


def class_metrics(indicator: BoolArray, scores: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute AUROC and average precision of each class against the rest.

    Parameters
    ----------
    indicator : array of bool, shape (rows, classes)
        Which classes a row carries: one (multiclass) or any number (multilabel).
    scores : array of float, shape (rows, classes)
        Multilabel: the logits, never a softmax over the classes, which changes the order of the notes within a class.
        Multiclass: softmax probabilities.
    weights : array of float, shape (resamples, rows)

    Returns
    -------
    auroc, average_precision : arrays of float, shape (resamples, classes)
        NaN where a class has only one of its labels in that resample.
    """
    if _is_large(indicator.size, weights.shape[0]):
        from clinstack.evaluate.ranking_kernels import PackedWeights, rank

        return rank(indicator, scores, PackedWeights.pack(weights))
    shape = (weights.shape[0], indicator.shape[1])
    areas, precisions = np.empty(shape), np.empty(shape)
    for column in range(indicator.shape[1]):
        areas[:, column], precisions[:, column] = ranking_metrics(indicator[:, column], scores[:, column], weights)
    return areas, precisions


def micro_auroc(indicator: BoolArray, scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute the AUROC over all (row, class) entries as one binary problem, shape (resamples,).

    All entries of a row share its weight, so the pairs of entries that are in the right order are counted once for
    each pair of rows; a resample is then a quadratic form of its weights. In a large table the entries are ranked as
    one column instead: that grows with the rows, not with their square.
    """
    rows, classes = indicator.shape
    if _is_large(indicator.size, weights.shape[0]):
        from clinstack.evaluate.ranking_kernels import PackedWeights, rank

        owners = np.repeat(np.arange(rows, dtype=np.int32), classes)
        areas, _ = rank(indicator.reshape(-1, 1), scores.reshape(-1, 1), PackedWeights.pack(weights), owners)
        return areas[:, 0]
    positive_rows, positive_columns = np.nonzero(indicator)
    positive_scores = scores[positive_rows, positive_columns]
    positives, negatives = indicator.sum(axis=1), (~indicator).sum(axis=1)
    right = np.zeros(weights.shape[0])
    block = max(1, _BLOCK // max(1, rows))
    for start in range(0, rows, block):
        part = range(start, min(start + block, rows))
        beaten = np.empty((rows, len(part)))
        for place, row in enumerate(part):
            below = np.sort(scores[row, ~indicator[row]])
            strictly, at_most = (np.searchsorted(below, positive_scores, side=side) for side in ("left", "right"))
            beaten[:, place] = np.bincount(positive_rows, weights=0.5 * (strictly + at_most), minlength=rows)
        right += ((weights @ beaten) * weights[:, part.start : part.stop]).sum(axis=1)
    total = (weights @ positives) * (weights @ negatives)
    return np.asarray(right / np.where(total > 0, total, np.nan))


def one_vs_one_auroc(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute the mean AUROC over all pairs of classes (Hand & Till 2001), each pair counted in both directions.

    Equal to ``roc_auc_score(labels, probabilities, multi_class="ovo", average="macro")``. A pair of which a class is
    absent from a resample is left out of that resample's mean.

    Parameters
    ----------
    labels : array of int, shape (rows,)
    probabilities : array of float, shape (rows, classes)
        Softmax of the logits.
    weights : array of float, shape (resamples, rows)

    Returns
    -------
    array of float, shape (resamples,)
    """
    ranked = _pair_ranker(probabilities.size, weights)
    pairs = []
    for first, second in combinations(range(probabilities.shape[1]), 2):
        chosen = np.flatnonzero((labels == first) | (labels == second))
        is_first = labels[chosen] == first
        there = ranked(chosen, is_first, probabilities[chosen, first])
        back = ranked(chosen, ~is_first, probabilities[chosen, second])
        pairs.append((there + back) / 2)
    return mean_of_known(np.stack(pairs, axis=1))


def _pair_ranker(entries: int, weights: FloatArray) -> Callable[[IntArray, BoolArray, FloatArray], FloatArray]:
    """Return a function of rows, their labels and scores to the AUROC of these rows alone, shape (resamples,)."""
    if _is_large(entries, weights.shape[0]):
        from clinstack.evaluate.ranking_kernels import PackedWeights, rank

        packed = PackedWeights.pack(weights)
        return lambda rows, positive, scores: rank(positive[:, None], scores[:, None], packed, rows)[0][:, 0]
    by_row = np.ascontiguousarray(weights.T)
    return lambda rows, positive, scores: ranking_metrics(positive, scores, by_row[rows].T)[0]


def mean_of_known(values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Average over the last axis without the NaN, shape (resamples,); NaN when nothing is known.

    ``weights`` has the shape of ``values`` (for averages weighted by support).
    """
    known = ~np.isnan(values)
    share = known.astype(np.float64) if weights is None else np.where(known, weights, 0.0)
    total = share.sum(axis=-1)
    summed = (np.where(known, values, 0.0) * share).sum(axis=-1)
    return np.asarray(summed / np.where(total > 0, total, np.nan))


def softmax(logits: FloatArray) -> FloatArray:
    """Return the softmax over the last axis in float64."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
