"""How far two raters agree beyond chance: Cohen's kappa and exact agreement, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import PatientDraws, estimate

Disagreement = Literal["unweighted", "quadratic"]


def cohen_kappa(tables: FloatArray, disagreement: Disagreement = "unweighted") -> FloatArray:
    """Compute Cohen's kappa of tables of counts.

    ``1 - sum(w * observed) / sum(w * expected)``, with ``expected`` the product of the margins, and w 1 off the
    diagonal (Cohen 1960) or the squared distance of the grades (Cohen 1968): with these, mistaking 1 for 4 weighs nine
    times what mistaking 3 for 4 does.

    Parameters
    ----------
    tables : array of float, shape (..., grades, grades)
        Weights of the answers with each pair of grades.
    disagreement : {"unweighted", "quadratic"}

    Returns
    -------
    array of float, shape (...)
        NaN where both raters gave one and the same grade throughout, or there are no answers: there is no chance to
        beat.
    """
    grades = np.arange(tables.shape[-1], dtype=np.float64)
    distance = np.abs(grades[:, None] - grades)
    weights = (distance > 0).astype(np.float64) if disagreement == "unweighted" else distance**2
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    total = tables.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = (weights * expected).sum(axis=(-2, -1)) / total
        return np.asarray(np.where(chance > 0, 1 - (weights * tables).sum(axis=(-2, -1)) / chance, np.nan))


def agreement(
    first: Sequence[int],
    second: Sequence[int],
    patient_ids: Sequence[str],
    draws: PatientDraws,
    grades: Sequence[int],
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Measure how far two raters of the same answers agree.

    Parameters
    ----------
    first, second : sequence of int, shape (ratings,)
        The grade that each rater gave.
    patient_ids : sequence of str, shape (ratings,)
    draws : PatientDraws
        Resamples of the patients.
    grades : sequence of int
        The scale, in its order.
    weights : sequence of float, shape (ratings,), optional
        What each rating counts; 1 when not given.

    Returns
    -------
    dict
        ``ratings``, ``patients``, ``exact`` (share of equal grades), ``kappa`` and ``kappa_quadratic``, each
        ``{"value", "interval"}``, and ``table``: the weights of first (rows) by second (columns). Without ratings the
        figures are None.
    """
    place = {grade: at for at, grade in enumerate(grades)}
    size = len(grades)
    cells = np.asarray([place[a] * size + place[b] for a, b in zip(first, second, strict=True)], dtype=np.int64)
    counted = np.ones(len(cells)) if weights is None else np.asarray(weights, dtype=np.float64)
    patients, owner = np.unique(np.asarray(patient_ids, dtype=np.str_), return_inverse=True)
    by_patient = np.zeros((len(patients), size * size))
    np.add.at(by_patient, (owner, cells), counted)
    whole = by_patient.sum(axis=0).reshape(size, size)
    resampled = (draws.weights(patients.tolist()) @ by_patient).reshape(-1, size, size)
    return {
        "ratings": len(cells),
        "patients": len(patients),
        "exact": estimate(float(_exact(whole)), _exact(resampled), bounded=True),
        "kappa": _estimate(whole, resampled, "unweighted"),
        "kappa_quadratic": _estimate(whole, resampled, "quadratic"),
        "table": [[round(float(cell), 6) for cell in row] for row in whole],
    }


def _estimate(whole: FloatArray, resampled: FloatArray, disagreement: Disagreement) -> dict[str, object]:
    return estimate(float(cohen_kappa(whole, disagreement)), cohen_kappa(resampled, disagreement))


def _exact(tables: FloatArray) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.trace(tables, axis1=-2, axis2=-1) / tables.sum(axis=(-2, -1)))
