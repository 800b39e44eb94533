"""From a stack's logits to what the API says of a note: probabilities, their bands, decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.evaluate.calibration import Method, apply_calibration, calibration_intervals
from clinstack.serve.schemas import ClassScore, TaskPrediction
from clinstack.tasks import Task


def thresholds(task: Task, calibration: Mapping[str, Any] | None) -> list[float | None]:
    """Return each class's threshold on its score: a logit, or of two classes the second's less the first's.

    They were chosen on validation patients. None where there is none: of several classes that exclude each other, of
    the first of two, of a code without a positive validation note.
    """
    chosen = (calibration or {}).get("threshold") or {}
    if task.kind == "binary":
        return [None, chosen.get("score")]
    if task.kind == "multilabel" and len(chosen.get("scores") or ()) == len(task.classes):
        return list(chosen["scores"])
    return [None] * len(task.classes)


def as_probabilities(
    task: Task, limits: Sequence[float | None], calibration: Mapping[str, Any] | None, method: Method
) -> list[float | None]:
    """Return what thresholds come to on the scale of the probabilities that an answer shows."""
    # A first logit of 0 makes the second one the score of two classes; the first one's own probability is not shown.
    scores = np.array([[0.0 if limit is None else limit for limit in limits]])
    values = apply_calibration(task, scores, dict(calibration or {}), method)[0].tolist()
    return [None if limit is None else value for limit, value in zip(limits, values, strict=True)]


def task_predictions(
    task: Task,
    fingerprint: str,
    calibration: Mapping[str, Any] | None,
    logits: NDArray[np.float32],
    method: Method,
    top: int | None,
) -> list[TaskPrediction]:
    """Return what the API says of some notes for one task.

    Parameters
    ----------
    task : Task
    fingerprint : str
        Of the stack.
    calibration : mapping or None
        A stack's ``calibration.json``.
    logits : float32 array [notes, classes]
    method : {"none", "temperature", "isotonic"}
        As `clinstack.evaluate.calibration.chosen_method` returned it.
    top : int or None
        Of a multilabel task, so many classes of a note, the most probable first; all in the task's order when None.
    """
    probabilities = apply_calibration(task, logits.astype(np.float64), dict(calibration or {}), method)
    limits = thresholds(task, calibration)
    bands: list[list[Sequence[float] | None]] = [[None] * len(task.classes)] * len(logits)
    if method == "isotonic":
        intervals = calibration_intervals(task, logits.astype(np.float64), dict(calibration or {}))
        bands = bands if intervals is None else intervals.tolist()
    shown_limits = as_probabilities(task, limits, calibration, method)
    result = []
    for values, chances, band in zip(logits.tolist(), probabilities.tolist(), bands, strict=True):
        margins = [0.0, values[1] - values[0]] if task.kind == "binary" else values
        order: Sequence[int] = range(len(values))
        if top is not None and task.kind == "multilabel":
            # By the logit where probabilities tie, as they do on the steps of an isotonic function.
            order = sorted(order, key=lambda place: (-chances[place], -values[place], place))[:top]
        scores = [
            ClassScore(
                name=task.classes[place],
                logit=values[place],
                probability=chances[place],
                interval=None if (ends := band[place]) is None else list(ends),
                threshold=shown_limits[place],
                above_threshold=None if (limit := limits[place]) is None else margins[place] >= limit,
            )
            for place in order
        ]
        result.append(
            TaskPrediction(
                stack=fingerprint,
                kind=task.kind,
                calibrated=method != "none",
                calibration=method,
                classes=scores,
                omitted=len(values) - len(scores),
            )
        )
    return result
