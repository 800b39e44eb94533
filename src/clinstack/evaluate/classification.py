"""What is measured of a classifier: every figure with an interval over patients, every choice made on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import draw_patients, estimate, rare_strata, rarer_patients
from clinstack.evaluate.calibration import Method, apply_calibration, fit_calibration
from clinstack.evaluate.calibration_figures import Entries, calibration_figures
from clinstack.evaluate.decision import decision_curve
from clinstack.evaluate.delong import delong
from clinstack.evaluate.published import published_figures
from clinstack.evaluate.ranking import ByClass, ranking_columns, ranking_figures
from clinstack.evaluate.scored import PRIMARY, Scored, label_indicator
from clinstack.evaluate.subgroups import Measurable, measure_subgroups
from clinstack.evaluate.thresholds import (
    DECISIONS,
    as_probability,
    choose_thresholds,
    class_threshold,
    decide,
    decision_metrics,
    macro,
)
from clinstack.recipe.training import EvaluationRecipe
from clinstack.tasks import Task

FITTED_ON = "validation"


@dataclass(frozen=True)
class SplitScores:
    """One split's labels and what a stack gave them.

    Parameters
    ----------
    labels : sequence of int, or of list of str
        As in ``predictions.parquet``.
    logits : array or sequence of sequences of float, shape (rows, classes), or None
        Raw, in the order of the task's classes; None where only the labels are known, to be counted.
    patient_ids : sequence of str, shape (rows,)
    groups : mapping of attribute to sequence of str or None, shape (rows,), optional
        Groups of patients that are measured apart, as `clinstack.notes.groups.read_groups` returns them.
    """

    labels: Sequence[Any]
    logits: NDArray[np.floating[Any]] | Sequence[Sequence[float]] | None
    patient_ids: Sequence[str]
    groups: Mapping[str, Sequence[str | None]] | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of a classifier, and what was fitted for it.

    Parameters
    ----------
    metrics : dict
        ``test`` as `measure_split` returns it, and ``validation``: the same averages without intervals.
    calibration : dict or None
        Thresholds and calibration, to be kept as ``stack.calibration``; None without a validation split.
    """

    metrics: dict[str, Any]
    calibration: dict[str, Any] | None


def measure_classifier(task: Task, splits: Mapping[str, SplitScores], settings: EvaluationRecipe) -> Measured:
    """Measure a classifier on its test split, with thresholds and calibration from its validation split.

    Parameters
    ----------
    task : Task
    splits : mapping of str to SplitScores
        ``test``; ``validation``, without which nothing is chosen or fitted; ``train``, whose labels are counted.
    settings : EvaluationRecipe

    Raises
    ------
    InputError
        Labels or logits that do not fit the task.
    """
    fitted = fit_on_validation(task, splits["validation"]) if "validation" in splits else None
    metrics: dict[str, Any] = {}
    if "validation" in splits:
        metrics["validation"] = _light(task, splits["validation"])
    counts = {name: label_indicator(task, split.labels, name).sum(axis=0) for name, split in splits.items()}
    metrics["test"] = measure_split(task, splits["test"], settings, fitted, counts)
    return Measured(metrics, fitted)


def fit_on_validation(task: Task, validation: SplitScores) -> dict[str, Any]:
    """Choose thresholds and fit calibration; plain numbers, to be kept as ``stack.calibration``.

    Returns
    -------
    dict
        ``format_version``, ``fitted_on``, ``rows`` and ``patients``; ``threshold`` as `choose_thresholds` and
        ``temperature``, ``isotonic`` and ``bands`` as `fit_calibration` returned them, where there was something to
        fit.
    """
    table = _scored(task, validation, FITTED_ON)
    return {
        "format_version": 1,
        "fitted_on": FITTED_ON,
        "rows": len(validation.labels),
        "patients": len(set(validation.patient_ids)),
        "threshold": choose_thresholds(table),
    } | (fit_calibration(table, validation.patient_ids) or {})


def classification_metrics(
    task: Task,
    labels: Sequence[Any],
    scores: Sequence[Any] | NDArray[np.floating[Any]],
    patient_ids: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure one table of predictions by itself: what needs no validation split, as `measure_split` returns it."""
    split = SplitScores(labels, scores, patient_ids)
    return measure_split(task, split, EvaluationRecipe.model_construct(resamples=resamples, seed=seed))


def primary_auroc(task: Task, labels: Sequence[Any], scores: Sequence[Any] | NDArray[np.floating[Any]]) -> float:
    """Return the figure the task is judged by, without an interval; NaN when no class has both labels.

    Parameters and errors as in `classification_metrics`.
    """
    table = Scored.build(task, labels, scores)
    return float(table.headline(table.unit_weights)[0][0])


def measure_split(
    task: Task,
    split: SplitScores,
    settings: EvaluationRecipe,
    fitted: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute what ``metrics.json`` says about one split.

    Parameters
    ----------
    task : Task
    split : SplitScores
    settings : EvaluationRecipe
        Resamples and seed of the bootstrap over patients. A class that lost one of its labels in a resample is left out
        of that resample's means; a resample in which nothing is left is left out of the interval. Of a binary or
        multiclass task with a class that few patients carry, resamples are stratified by it.
    fitted : mapping, optional
        As `fit_on_validation` returned it, or a stack keeps it.
    counts : mapping of split to array of int, shape (classes,), optional
        Positives of each class in the splits that are known.

    Returns
    -------
    dict
        ``primary`` names the figure the task is judged by. The averages of `ranking_figures` and all others are
        ``{"value", "interval"}``. ``classes_scored`` counts and ``classes_left_out`` names the classes with and without
        both labels; the latter are in no average of AUROC, AUPRC, F1, precision or recall, micro included.
        ``per_class`` has the figures of each, ``prevalence`` the share of rows of each class. ``threshold`` has the
        decisions at the thresholds chosen on validation, ``calibration`` one entry for each method. Binary: ``delong``
        and ``decision_curve``. With ``settings.published``: ``published``; with groups: ``subgroups``, as
        `measure_subgroups` returns them.

    Raises
    ------
    InputError
        Labels or logits that do not fit the task.
    """
    table = _scored(task, split, "predictions")
    # Codes do not exclude each other: strata of all that are rare would be single patients, drawn by every resample.
    strata = None if task.kind == "multilabel" else rare_strata(split.labels, split.patient_ids)
    draws = draw_patients(split.patient_ids, settings.resamples, settings.seed, strata=strata)
    weights = draws.weights(split.patient_ids)
    by_class, averages = _both(table, weights)
    rarer = rarer_patients(table.indicator, split.patient_ids)
    metrics: dict[str, Any] = {
        "task": task.to_dict(),
        "primary": PRIMARY[task.kind],
        **{
            name: estimate(float(value[0]), resampled, bounded=True, rarer=rarer[1] if task.kind == "binary" else None)
            for name, (value, resampled) in averages.items()
        },
        "classes_scored": len(table.scored_columns),
        "classes_left_out": table.left_out(),
        "rows": len(split.labels),
        "patients": len(set(split.patient_ids)),
        "prevalence": {
            name: float(share) for name, share in zip(task.classes, table.indicator.mean(axis=0), strict=True)
        },
        "per_class": _per_class(table, by_class, rarer, counts or {}),
    }
    if fitted is not None or task.kind == "multiclass":
        metrics["threshold"] = _decisions(table, dict(fitted or {}), weights, metrics["per_class"])
    metrics |= _calibrated(table, fitted, weights)
    if task.kind == "binary":
        metrics["delong"] = delong(table.indicator[:, 1], table.margin, split.patient_ids)
    if settings.published:
        metrics["published"] = published_figures(table)
    if split.groups:
        metrics["subgroups"] = _subgroups(table, split, dict(fitted or {}), weights)
    return metrics | {
        "bootstrap": {
            "unit": "patient",
            "resamples": settings.resamples,
            "seed": settings.seed,
            "level": 0.95,
            "stratified": strata is not None,
        }
    }


def _scored(task: Task, split: SplitScores, source: str) -> Scored:
    if split.logits is None:
        raise InputError(f"{source}: there are no logits to measure.")
    if len(split.patient_ids) != len(split.labels):
        raise InputError(f"{source}: {len(split.labels)} labels but {len(split.patient_ids)} patient ids.")
    return Scored.build(task, split.labels, split.logits, source)


def _light(task: Task, split: SplitScores) -> dict[str, Any]:
    table = _scored(task, split, FITTED_ON)
    _, averages = ranking_figures(table, table.unit_weights)
    return {
        "primary": PRIMARY[task.kind],
        **{
            name: {"value": float(value[0]) if np.isfinite(value[0]) else None, "interval": None}
            for name, value in averages.items()
        },
        "rows": len(split.labels),
        "patients": len(set(split.patient_ids)),
    }


def _both(
    table: Scored, weights: FloatArray
) -> tuple[tuple[ByClass, ByClass], dict[str, tuple[FloatArray, FloatArray]]]:
    """Return the ranking figures of the rows as they are, and of each resample."""
    by_class, averages = ranking_figures(table, table.unit_weights)
    drawn_by_class, drawn = ranking_figures(table, weights)
    return (by_class, drawn_by_class), {name: (averages[name], drawn[name]) for name in averages}


def _per_class(
    table: Scored, by_class: tuple[ByClass, ByClass], rarer: Sequence[int], counts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    (areas, precisions), (drawn_areas, drawn_precisions) = by_class
    return [
        {
            "class": table.task.classes[column],
            "positives": int(table.indicator[:, column].sum()),
            "counts": {name: int(values[column]) for name, values in counts.items()},
            "auroc": estimate(areas[0, place], drawn_areas[:, place], bounded=True, rarer=rarer[column]),
            "auprc": estimate(precisions[0, place], drawn_precisions[:, place], bounded=True, rarer=rarer[column]),
        }
        for place, column in enumerate(ranking_columns(table))
    ]


def _decisions(
    table: Scored, fitted: dict[str, Any], weights: FloatArray, per_class: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Measure the decisions at the chosen thresholds, and add those of each class to ``per_class``."""
    chosen = fitted.get("threshold", {"rule": "largest"})
    called = decide(table, chosen)
    if called is None:
        return None
    columns = ranking_columns(table)
    places = [table.judged_columns.index(column) for column in columns]
    indicator, called = table.indicator[:, columns], called[:, places]
    value_by_class, value_micro = decision_metrics(indicator, called, table.unit_weights)
    drawn_by_class, drawn_micro = decision_metrics(indicator, called, weights)
    for place, (entry, column) in enumerate(zip(per_class, columns, strict=True)):
        entry["threshold"] = class_threshold(chosen, column)
        for name in DECISIONS:
            entry[name] = estimate(value_by_class[name][0, place], drawn_by_class[name][:, place], bounded=True)
    values, drawn = macro(value_by_class), macro(drawn_by_class)
    result: dict[str, Any] = {"rule": chosen["rule"]}
    if chosen["rule"] == "f1":
        result["chosen_on"] = fitted["fitted_on"]
    if table.task.kind == "binary":
        result["value"] = as_probability(chosen["score"])
    elif table.task.kind == "multilabel":
        result |= {"shared": as_probability(chosen["shared"]), "sharing": chosen["sharing"]}
    result |= {name: estimate(values[name][0], drawn[name], bounded=True) for name in DECISIONS}
    if table.task.kind != "binary":
        result["micro"] = {name: estimate(value_micro[name][0], drawn_micro[name], bounded=True) for name in DECISIONS}
    return result


def _subgroups(table: Scored, split: SplitScores, fitted: dict[str, Any], weights: FloatArray) -> dict[str, Any]:
    """Measure groups of patients, with calibrated probabilities where there is a fit, at the chosen thresholds."""
    method: Method = "isotonic" if "temperature" in fitted else "none"
    probabilities = apply_calibration(table.task, table.logits, fitted, method)[:, table.judged_columns]
    has_decisions = "threshold" in fitted or table.task.kind == "multiclass"
    called = decide(table, fitted.get("threshold", {"rule": "largest"})) if has_decisions else None
    measurable = Measurable(table, probabilities, called, np.asarray(split.patient_ids, dtype=np.str_), weights)
    return {"calibration": method, **measure_subgroups(measurable, split.groups or {})}


def _calibrated(table: Scored, fitted: Mapping[str, Any] | None, weights: FloatArray) -> dict[str, Any]:
    """Measure the probabilities as they are and after each fit; of a binary task also what acting on them brings."""
    methods: list[Method] = ["none"]
    if fitted is not None and "temperature" in fitted:
        methods += ["temperature", "isotonic"]
    columns = table.judged_columns
    indicator = table.indicator[:, columns]
    calibration: dict[str, Any] = {}
    curves: dict[str, dict[str, Any]] = {}
    for method in methods:
        probabilities = apply_calibration(table.task, table.logits, dict(fitted or {}), method)[:, columns]
        calibration[method] = calibration_figures(Entries(table.task.kind, indicator, probabilities), weights)
        if table.task.kind == "binary":
            curves[method] = decision_curve(indicator[:, 0], probabilities[:, 0], weights)
    result: dict[str, Any] = {"calibration": calibration}
    if curves:
        best = methods[-1]
        result["decision_curve"] = curves[best] | {
            "calibration": best,
            "net_benefit_uncalibrated": curves["none"]["net_benefit"],
        }
    return result
