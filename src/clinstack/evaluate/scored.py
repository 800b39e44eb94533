"""Labels and scores of a task, row by row, checked against the task: what every figure of a classifier is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.evaluate.auroc import (
    BoolArray,
    FloatArray,
    class_metrics,
    mean_of_known,
    one_vs_one_auroc,
    ranking_metrics,
    softmax,
)
from clinstack.tasks import Kind, Task

PRIMARY: dict[Kind, str] = {"binary": "auroc", "multiclass": "auroc_ovo", "multilabel": "auroc_macro"}
"""The figure a task is judged by: as in Gema et al. 2023, but multilabel scores are logits, not a softmax."""


@dataclass(frozen=True)
class Scored:
    """Labels and scores of a task, row by row, ready to be ranked.

    Parameters
    ----------
    task : Task
    indicator : array of bool, shape (rows, classes)
        Which classes a row carries.
    logits : array of float, shape (rows, classes)
    scores : array of float, shape (rows, classes)
        What classes are ranked by: multilabel the logits, otherwise the softmax over the classes.
    margin : array of float, shape (rows,)
        Binary only: positive logit minus negative logit, which keeps the order where a softmax saturates.
    """

    task: Task
    indicator: BoolArray
    logits: FloatArray
    scores: FloatArray
    margin: FloatArray

    @classmethod
    def build(
        cls,
        task: Task,
        labels: Sequence[Any],
        logits: Sequence[Any] | NDArray[np.floating[Any]],
        source: str = "predictions",
    ) -> Scored:
        """Check labels and logits against the task.

        Parameters
        ----------
        task : Task
        labels : sequence of int, or of list of str
            Class indices, or lists of codes for a multilabel task.
        logits : array or sequence of sequences of float, shape (rows, classes)
        source : str
            Named in errors.

        Raises
        ------
        InputError
            No rows, a row without one finite logit per class, or a label outside the task.
        """
        rows, classes = len(labels), len(task.classes)
        if not rows:
            raise InputError(f"{source}: no rows to evaluate for task {task.name}.")
        if len(logits) != rows:
            raise InputError(f"{source}: {rows} labels but {len(logits)} score rows.")
        for row, values in enumerate(logits):
            if len(values) != classes:
                raise InputError(
                    f"{source}, row {row}: {len(values)} scores, but task {task.name} has {classes} classes; "
                    "predict again with the stack of this task."
                )
        values = np.asarray(logits, dtype=np.float64).reshape(rows, classes)
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if broken.size:
            raise InputError(
                f"{source}, row {broken[0]}: a score is not finite ({broken.size} such rows); "
                "the training diverged: lower learning_rate."
            )
        return cls(
            task=task,
            indicator=label_indicator(task, labels, source),
            logits=values,
            scores=values if task.kind == "multilabel" else softmax(values),
            margin=values[:, 1] - values[:, 0] if task.kind == "binary" else np.zeros(rows),
        )

    @property
    def scored_columns(self) -> list[int]:
        """Classes of which both labels occur; only these have an AUROC."""
        carried = self.indicator.sum(axis=0)
        return [int(column) for column in np.flatnonzero((carried > 0) & (carried < len(self.indicator)))]

    @property
    def judged_columns(self) -> list[int]:
        """Columns that are predictions of their own: of a binary task only the positive class."""
        return [1] if self.task.kind == "binary" else list(range(len(self.task.classes)))

    def left_out(self) -> list[str]:
        """Name the classes that have no AUROC because every row, or none, carries them."""
        scored = set(self.scored_columns)
        return [name for column, name in enumerate(self.task.classes) if column not in scored]

    def headline(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the primary AUROC and the AUPRC under each weighting, each of shape (resamples,)."""
        if self.task.kind == "binary":
            return ranking_metrics(self.indicator[:, 1], self.margin, weights)
        columns = self.scored_columns
        areas, precisions = class_metrics(self.indicator[:, columns], self.scores[:, columns], weights)
        if self.task.kind == "multiclass":
            area = one_vs_one_auroc(self.indicator.argmax(axis=1), self.scores, weights)
        else:
            area = mean_of_known(areas)
        return area, mean_of_known(precisions)

    @property
    def unit_weights(self) -> FloatArray:
        """Every row counted once, shape (1, rows)."""
        return np.ones((1, len(self.indicator)))


def label_indicator(task: Task, labels: Sequence[Any], source: str = "predictions") -> BoolArray:
    """Return which classes each row carries, shape (rows, classes).

    Raises
    ------
    InputError
        A label outside the task.
    """
    indicator = np.zeros((len(labels), len(task.classes)), dtype=bool)
    if task.kind == "multilabel":
        column_of = {name: column for column, name in enumerate(task.classes)}
        for row, codes in enumerate(labels):
            for code in codes:
                if code not in column_of:
                    raise InputError(
                        f"{source}, row {row}: label {code} is not a class of task {task.name}; run prepare again."
                    )
                indicator[row, column_of[code]] = True
        return indicator
    indices = np.asarray(labels, dtype=np.int64)
    outside = np.flatnonzero((indices < 0) | (indices >= len(task.classes)))
    if outside.size:
        raise InputError(
            f"{source}, row {outside[0]}: label {indices[outside[0]]} is not a class index of task {task.name} "
            f"(0 to {len(task.classes) - 1}); run prepare again."
        )
    indicator[np.arange(len(indices)), indices] = True
    return indicator
