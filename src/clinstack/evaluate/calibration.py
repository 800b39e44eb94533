"""Making probabilities mean what they say: temperature and isotonic fits, on validation patients only.

A fit is plain numbers, kept beside the stack it belongs to, so that the stack gives calibrated probabilities wherever
it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from clinstack.errors import InputError
from clinstack.evaluate.auroc import FloatArray, softmax
from clinstack.evaluate.calibration_bands import add_bands
from clinstack.evaluate.scored import Scored
from clinstack.tasks import Task

Method = Literal["none", "temperature", "isotonic"]

_HOTTEST = 100.0


def fit_calibration(validation: Scored, patient_ids: Sequence[str]) -> dict[str, Any] | None:
    """Fit temperature and isotonic calibration.

    Parameters
    ----------
    validation : Scored
    patient_ids : sequence of str, shape (rows,)
        Whose rows they are; the bands are over patients.

    Returns
    -------
    dict or None
        ``temperature``; ``isotonic`` with ``scores`` and ``probabilities`` of a piecewise linear function for each
        judged class, and ``low`` and ``high``, the ends of its 95 % band; ``bands``, how those were made or why they
        were left out. None where no class has both labels: there is nothing to fit.
    """
    if not validation.scored_columns:
        return None
    functions = _fit_isotonic(validation)
    scores = _isotonic_scores(validation.task, validation.logits)
    bands = add_bands(functions, scores, validation.indicator[:, validation.judged_columns], patient_ids)
    return {"temperature": _fit_temperature(validation), "isotonic": functions, "bands": bands}


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
    if calibration is None or calibration.get(method) is None:
        raise InputError(f"calibration method {method}: this stack has no calibration; use none, or finetune again.")
    if method == "temperature":
        return _probabilities(task, values / calibration["temperature"])
    mapped = _mapped(task, values, calibration, "probabilities")
    if task.kind == "binary":
        return np.concatenate([1 - mapped, mapped], axis=1)
    return mapped if task.kind == "multilabel" else mapped / mapped.sum(axis=1, keepdims=True)


def calibration_intervals(task: Task, logits: FloatArray, calibration: dict[str, Any] | None) -> FloatArray | None:
    """Return 95 % intervals of the probabilities that ``isotonic`` gives.

    They say how well the validation patients determine the function from scores to probabilities, and nothing about
    how well the scores fit one note. Of several classes that exclude each other the interval is that of a class's own
    function, divided as its probability is, with the others as they are.

    Parameters
    ----------
    task : Task
    logits : array of float, shape (rows, classes)
    calibration : dict or None
        As a stack keeps it.

    Returns
    -------
    array of float, shape (rows, classes, 2), or None
        Lower and upper end. None where there is no fit, or one without bands.

    Raises
    ------
    InputError
        A fit for another number of classes.
    """
    if calibration is None or not all("low" in function for function in calibration.get("isotonic") or [{}]):
        return None
    values = np.asarray(logits, dtype=np.float64)
    low, high = (_mapped(task, values, calibration, name) for name in ("low", "high"))
    if task.kind == "binary":
        low, high = np.concatenate([1 - high, low], axis=1), np.concatenate([1 - low, high], axis=1)
    elif task.kind == "multiclass":
        mapped = _mapped(task, values, calibration, "probabilities")
        others = mapped.sum(axis=1, keepdims=True) - mapped
        low, high = low / (low + others), high / (high + others)
    return np.stack([low, high], axis=2)


def _mapped(task: Task, logits: FloatArray, calibration: dict[str, Any], name: str) -> FloatArray:
    """Return each judged class's isotonic function, or an end of its band, of the scores: shape (rows, columns)."""
    functions = calibration["isotonic"]
    scores = _isotonic_scores(task, logits)
    if len(functions) != scores.shape[1]:
        raise InputError(f"calibration: fitted for {len(functions)} classes, task {task.name} has {scores.shape[1]}.")
    columns = [
        np.interp(scores[:, column], function["scores"], function[name]) for column, function in enumerate(functions)
    ]
    return np.stack(columns, axis=1)


def chosen_method(calibration: Mapping[str, Any] | None, asked: Method | None) -> Method | None:
    """Return the method to use; None where the one that was asked for has no fit.

    Parameters
    ----------
    calibration : mapping or None
        As a stack keeps it.
    asked : {"none", "temperature", "isotonic"} or None
        None: isotonic where there is a fit, else none.
    """
    fitted = {name for name in ("isotonic", "temperature") if calibration and calibration.get(name) is not None}
    if asked is None:
        return "isotonic" if "isotonic" in fitted else "none"
    return asked if asked == "none" or asked in fitted else None


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
