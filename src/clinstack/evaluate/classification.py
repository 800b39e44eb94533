"""The metrics of one task on one table of predictions: AUROC and AUPRC, each with an interval over patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clinstack.errors import InputError
from clinstack.evaluate.auroc import (
    BoolArray,
    FloatArray,
    class_metrics,
    mean_of_known,
    micro_auroc,
    one_vs_one_auroc,
    ranking_metrics,
    softmax,
)
from clinstack.evaluate.bootstrap import draw_patients, estimate
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
    scores : array of float, shape (rows, classes)
        What classes are ranked by: multilabel the logits, otherwise the softmax over the classes.
    margin : array of float, shape (rows,)
        Binary only: positive logit minus negative logit, which keeps the order where a softmax saturates.
    """

    task: Task
    indicator: BoolArray
    scores: FloatArray
    margin: FloatArray

    @classmethod
    def build(cls, task: Task, labels: Sequence[Any], logits: Sequence[Any], source: str = "predictions") -> Scored:
        """Check labels and logits against the task.

        Parameters
        ----------
        task : Task
        labels : sequence of int, or of list of str
            Class indices, or lists of codes for a multilabel task.
        logits : sequence of sequences of float, shape (rows, classes)
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
        indicator = _indicator(task, labels, source)
        binary = task.kind == "binary"
        return cls(
            task=task,
            indicator=indicator,
            scores=values if task.kind == "multilabel" else softmax(values),
            margin=values[:, 1] - values[:, 0] if binary else np.zeros(rows),
        )

    @property
    def scored_columns(self) -> list[int]:
        """Classes of which both labels occur; only these have an AUROC."""
        carried = self.indicator.sum(axis=0)
        return [int(column) for column in np.flatnonzero((carried > 0) & (carried < len(self.indicator)))]

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


def _indicator(task: Task, labels: Sequence[Any], source: str) -> BoolArray:
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


def primary_auroc(task: Task, labels: Sequence[Any], scores: Sequence[Any]) -> float:
    """Return the figure the task is judged by, without an interval; NaN when no class has both labels.

    Parameters and errors as in `classification_metrics`.
    """
    table = Scored.build(task, labels, scores)
    return float(table.headline(table.unit_weights)[0][0])


def classification_metrics(
    task: Task,
    labels: Sequence[Any],
    scores: Sequence[Any],
    patient_ids: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute what ``metrics.json`` says about one task on one split.

    Parameters
    ----------
    task : Task
    labels : sequence of int, or of list of str
        As in ``predictions.parquet``.
    scores : sequence of sequences of float, shape (rows, classes)
        Raw logits in the order of ``task.classes``.
    patient_ids : sequence of str, shape (rows,)
    resamples, seed : int
        Of the bootstrap over patients. A class that lost one of its labels in a resample is left out of that
        resample's means; a resample in which nothing is left is left out of the interval.

    Returns
    -------
    dict
        ``primary`` names the figure the task is judged by. ``auroc`` (binary), ``auroc_ovo`` and ``auroc_ovr``
        (multiclass), or ``auroc_macro``, ``auroc_micro`` and ``auroc_weighted`` (multilabel), and ``auprc`` are each
        ``{"value", "interval"}``. ``classes_scored`` counts and ``classes_left_out`` names the classes with and
        without both labels; the latter are in no average, micro included. ``per_class`` has the figures of each,
        ``prevalence`` the share of rows of each class.

    Raises
    ------
    InputError
        Labels or scores that do not fit the task.
    """
    table = Scored.build(task, labels, scores)
    if len(patient_ids) != len(labels):
        raise InputError(f"predictions: {len(labels)} labels but {len(patient_ids)} patient ids.")
    weights = draw_patients(patient_ids, resamples, seed).weights(patient_ids)
    columns = [1] if task.kind == "binary" else table.scored_columns
    per_class, figures = _figures(table, columns, table.unit_weights)
    resampled_per_class, resampled = _figures(table, columns, weights)
    return {
        "task": task.to_dict(),
        "primary": PRIMARY[task.kind],
        **{name: estimate(figures[name][0], resampled[name]) for name in figures},
        "classes_scored": len(table.scored_columns),
        "classes_left_out": table.left_out(),
        "rows": len(labels),
        "patients": len(set(patient_ids)),
        "prevalence": {
            name: float(share) for name, share in zip(task.classes, table.indicator.mean(axis=0), strict=True)
        },
        "per_class": [
            {
                "class": task.classes[column],
                "positives": int(table.indicator[:, column].sum()),
                "auroc": estimate(per_class[0][0, place], resampled_per_class[0][:, place]),
                "auprc": estimate(per_class[1][0, place], resampled_per_class[1][:, place]),
            }
            for place, column in enumerate(columns)
        ],
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed, "level": 0.95},
    }


def _figures(
    table: Scored, columns: list[int], weights: FloatArray
) -> tuple[tuple[FloatArray, FloatArray], dict[str, FloatArray]]:
    """Return AUROC and AUPRC by class, each of shape (resamples, columns), and the averages by name."""
    kind = table.task.kind
    indicator = table.indicator[:, columns]
    scores = table.margin[:, None] if kind == "binary" else table.scores[:, columns]
    areas, precisions = class_metrics(indicator, scores, weights)
    averages = {"auprc": mean_of_known(precisions)}
    if kind == "binary":
        averages = {"auroc": areas[:, 0]} | averages
    elif kind == "multiclass":
        averages = {
            "auroc_ovo": one_vs_one_auroc(table.indicator.argmax(axis=1), table.scores, weights),
            "auroc_ovr": mean_of_known(areas),
        } | averages
    else:
        averages = {
            "auroc_macro": mean_of_known(areas),
            "auroc_micro": micro_auroc(indicator, scores, weights),
            "auroc_weighted": mean_of_known(areas, weights @ indicator),
        } | averages
    return (areas, precisions), averages
