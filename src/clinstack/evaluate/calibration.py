"""Making probabilities mean what they say: temperature and isotonic fits, on validation patients only.

A fit is plain numbers, kept beside the stack it belongs to, so that the stack gives calibrated probabilities wherever
it is loaded.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from clinstack.errors import InputError
from clinstack.evaluate.auroc import FloatArray, softmax
from clinstack.evaluate.scored import Scored
from clinstack.tasks import Task

Method = Literal["none", "temperature", "isotonic"]

_HOTTEST = 100.0


def fit_calibration(validation: Scored) -> dict[str, Any] | None:
    """Fit temperature and isotonic calibration.

    Parameters
    ----------
    validation : Scored

    Returns
    -------
    dict or None
        ``temperature``, and ``isotonic`` with ``scores`` and ``probabilities`` of a piecewise linear function for each
        judged class. None where no class has both labels: there is nothing to fit.
    """
    if not validation.scored_columns:
        return None
    return {"temperature": _fit_temperature(validation), "isotonic": _fit_isotonic(validation)}


def apply_calibration(
    task: Task, logits: FloatArray, calibration: dict[str, Any] | None, method: Method = "isotonic"
) -> FloatArray:
    """Turn logits into probabilities.

    Parameters
    ----------
    task : Task
    logits : array of float, shape (rows, classes)
    calibration : dict
        As `fit_calibration` returned it, or as a stack keeps it.
    method : {"none", "temperature", "isotonic"}
        ``none`` is the sigmoid of each logit (multilabel) or the softmax over the classes. ``temperature`` divides the
        logits first (Guo et al. 2017). ``isotonic`` maps each class's score through its own monotone function (Zadrozny
        & Elkan 2002); of several classes that exclude each other the results are divided by their sum.

    Returns
    -------
    array of float, shape (rows, classes)

    Raises
    ------
    InputError
        An unknown method, no fit where one is needed, or a fit for another number of classes.
    """
    if method not in get_args(Method):
        raise InputError(f"calibration method {method!r}: use one of {', '.join(get_args(Method))}.")
    values = np.asarray(logits, dtype=np.float64)
    if method == "none":
        return _probabilities(task, values)
    if calibration is None:
        raise InputError(f"calibration method {method}: this stack has no calibration; use none, or finetune again.")
    if method == "temperature":
        return _probabilities(task, values / calibration["temperature"])
    functions = calibration["isotonic"]
    scores = _isotonic_scores(task, values)
    if len(functions) != scores.shape[1]:
        raise InputError(f"calibration: fitted for {len(functions)} classes, task {task.name} has {scores.shape[1]}.")
    mapped = np.stack(
        [
            np.interp(scores[:, column], function["scores"], function["probabilities"])
            for column, function in enumerate(functions)
        ],
        axis=1,
    )
    if task.kind == "binary":
        return np.concatenate([1 - mapped, mapped], axis=1)
    return mapped if task.kind == "multilabel" else mapped / mapped.sum(axis=1, keepdims=True)


def _probabilities(task: Task, logits: FloatArray) -> FloatArray:
    from scipy.special import expit

    return np.asarray(expit(logits)) if task.kind == "multilabel" else softmax(logits)


def _isotonic_scores(task: Task, logits: FloatArray) -> FloatArray:
    """Return what the isotonic functions are of, shape (rows, judged columns), without the ties of a softmax near 1."""
    if task.kind == "binary":
        return (logits[:, 1] - logits[:, 0])[:, None]
    if task.kind == "multilabel":
        return logits
    from scipy.special import log_softmax

    return np.asarray(log_softmax(logits, axis=1))


def _fit_temperature(validation: Scored) -> float:
    """Minimise the cross-entropy over one divisor of all logits.

    It is convex in the divisor's inverse, so its derivative has one root at most; where it has none between 1/100 and
    100 (labels perfectly separated, or scores worse than chance) the nearer end is taken.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    logits, there = validation.logits, validation.indicator.astype(np.float64)

    def slope(log_inverse: float) -> float:
        scaled = logits * np.exp(log_inverse)
        expected = expit(scaled) if validation.task.kind == "multilabel" else softmax(scaled)
        return float(((expected - there) * logits).mean())

    low, high = -np.log(_HOTTEST), np.log(_HOTTEST)
    if slope(low) >= 0:
        return _HOTTEST
    if slope(high) <= 0:
        return 1 / _HOTTEST
    return float(np.exp(-brentq(slope, low, high, xtol=1e-10)))


def _fit_isotonic(validation: Scored) -> list[dict[str, list[float]]]:
    """Fit one monotone function a judged class.

    Nothing becomes more certain than one note more of either label would leave it (Laplace's rule): m notes cannot
    tell 0 from 1 / (m + 2), and a probability of 0 can never be made good.
    """
    from sklearn.isotonic import IsotonicRegression

    rows = len(validation.indicator)
    scores = _isotonic_scores(validation.task, validation.logits)
    functions = []
    for place, column in enumerate(validation.judged_columns):
        function = IsotonicRegression(y_min=1 / (rows + 2), y_max=1 - 1 / (rows + 2), out_of_bounds="clip")
        function.fit(scores[:, place], validation.indicator[:, column].astype(np.float64))
        functions.append({"scores": function.X_thresholds_.tolist(), "probabilities": function.y_thresholds_.tolist()})
    return functions
