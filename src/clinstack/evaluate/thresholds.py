"""Decisions: the threshold of each class, chosen on validation patients, and what it finds on others."""

from __future__ import annotations

from typing import Any

import numpy as np

from clinstack.evaluate.auroc import BoolArray, FloatArray, mean_of_known
from clinstack.evaluate.scored import Scored

MINIMUM_POSITIVES = 10
"""A code with fewer positive validation notes has no threshold of its own: one note more would move it anywhere."""

DECISIONS = ("f1", "precision", "recall", "specificity")


def best_threshold(positive: BoolArray, scores: FloatArray) -> float | None:
    """Return the threshold with the largest F1; scores at or above it are called positive.

    It lies halfway between two scores that occur, so that it does not hang on the last digit of either. Of several with
    the same F1 the highest is taken. None without a positive.
    """
    total = int(positive.sum())
    if not total:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # rows with equal scores are called together
    found = np.cumsum(positive[order])[last]
    f1 = 2 * found / (last + 1 + total)
    best = int(np.argmax(f1))
    if best + 1 == len(last):
        return float(ranked[-1])
    above, below = ranked[last[best]], ranked[last[best + 1]]
    middle = float(below + (above - below) / 2)
    return middle if middle > below else float(above)


def choose_thresholds(validation: Scored) -> dict[str, Any]:
    """Choose the thresholds that a stack's decisions are made with.

    Returns
    -------
    dict
        Binary: ``score``, to be compared with the positive logit minus the negative one. Multilabel: ``scores``, one
        logit for each class; those of which fewer than `MINIMUM_POSITIVES` validation notes are positive, ``sharing``
        of them, take ``shared``, the one with the largest F1 over all classes together. Multiclass: the class with the
        largest logit, so nothing is chosen. A threshold is None where validation has no positive note.
    """
    kind = validation.task.kind
    if kind == "multiclass":
        return {"rule": "largest"}
    if kind == "binary":
        score = best_threshold(validation.indicator[:, 1], validation.margin)
        return {"rule": "f1", "score": score}
    shared = best_threshold(validation.indicator.ravel(), validation.logits.ravel())
    own = validation.indicator.sum(axis=0) >= MINIMUM_POSITIVES
    scores = [
        best_threshold(validation.indicator[:, column], validation.logits[:, column]) if has else shared
        for column, has in enumerate(own)
    ]
    return {"rule": "f1", "scores": scores, "shared": shared, "sharing": int((~own).sum())}


def decide(table: Scored, chosen: dict[str, Any]) -> BoolArray | None:
    """Return what is called positive, shape (rows, judged columns); None where there is no threshold."""
    if table.task.kind == "multiclass":
        return np.asarray(table.logits.argmax(axis=1)[:, None] == np.arange(table.logits.shape[1]))
    if table.task.kind == "binary":
        return None if chosen["score"] is None else (table.margin >= chosen["score"])[:, None]
    return None if chosen["shared"] is None else table.logits >= np.asarray(chosen["scores"])


def class_threshold(chosen: dict[str, Any], column: int) -> float | None:
    """Return a class's threshold as a probability; None where there is none, as with the largest of several."""
    return as_probability(chosen["scores"][column] if "scores" in chosen else chosen.get("score"))


def decision_metrics(
    indicator: BoolArray, called: BoolArray, weights: FloatArray
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Compute F1, precision, recall and specificity under each weighting of the rows.

    Parameters
    ----------
    indicator, called : arrays of bool, shape (rows, classes)
        What is there, and what is called.
    weights : array of float, shape (resamples, rows)

    Returns
    -------
    by_class : dict of str to array, shape (resamples, classes)
        Recall and F1 do not exist (NaN) where the class does not occur, specificity where nothing else does. Precision
        is 0 where the class occurs and is never called, as in scikit-learn.
    micro : dict of str to array, shape (resamples,)
        The same over all entries (row, class) together.
    """
    found = weights @ (indicator & called).astype(np.float64)
    there = weights @ indicator.astype(np.float64)
    taken = weights @ called.astype(np.float64)
    rows = np.broadcast_to(weights.sum(axis=1, keepdims=True), there.shape)
    totals = [part.sum(axis=1) for part in (found, there, taken, rows)]
    return _decisions(found, there, taken, rows), _decisions(*totals)


def _decisions(found: FloatArray, there: FloatArray, taken: FloatArray, rows: FloatArray) -> dict[str, FloatArray]:
    absent = rows - there
    with np.errstate(invalid="ignore", divide="ignore"):
        occurs = np.where(there > 0, 1.0, np.nan)
        return {
            "f1": occurs * 2 * found / np.where(there > 0, there + taken, 1.0),
            "precision": occurs * np.where(taken > 0, found / np.where(taken > 0, taken, 1.0), 0.0),
            "recall": occurs * found / np.where(there > 0, there, 1.0),
            "specificity": np.where(absent > 0, 1 - (taken - found) / np.where(absent > 0, absent, 1.0), np.nan),
        }


def macro(by_class: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Average each figure over the classes where it exists, shape (resamples,)."""
    return {name: mean_of_known(values) for name, values in by_class.items()}


def as_probability(score: float | None) -> float | None:
    """Return the sigmoid of a threshold."""
    from scipy.special import expit

    return None if score is None else float(expit(score))
