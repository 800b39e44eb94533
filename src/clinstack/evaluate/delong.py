"""The AUROC's variance in closed form, a cross-check of the bootstrap; notes of one patient may be alike.

DeLong, DeLong & Clarke-Pearson (1988) give the variance from the placement values of positives and negatives; Sun & Xu
(2014) compute these from midranks, in sorting time; Obuchowski (1997) sums them by cluster, here the patient. With one
note a patient that is DeLong's variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clinstack.evaluate.auroc import BoolArray, FloatArray

LEVEL = 0.95


@dataclass(frozen=True)
class Placements:
    """Placement values of one score, summed by patient around the AUROC.

    Parameters
    ----------
    auroc : float
    positive, negative : arrays of float, shape (patients,)
        Over a patient's positive (negative) notes, the sum of placement value minus AUROC.
    with_positive, with_negative : int
        Patients who have a positive (negative) note.
    positives, negatives : int
        Notes.
    """

    auroc: float
    positive: FloatArray
    negative: FloatArray
    with_positive: int
    with_negative: int
    positives: int
    negatives: int


def placements(positive: BoolArray, scores: FloatArray, patient_ids: Sequence[str]) -> Placements | None:
    """Compute placement values by midranks (Sun & Xu 2014, section III).

    A positive's placement is the share of negatives it is ranked above, a negative's the share of positives that are
    ranked above it; ties count half.

    Parameters
    ----------
    positive : array of bool, shape (rows,)
    scores : array of float, shape (rows,)
    patient_ids : sequence of str, shape (rows,)

    Returns
    -------
    Placements or None
        None where fewer than two patients have a positive note, or a negative one: there is no variance.
    """
    from scipy.stats import rankdata

    positives, negatives = int(positive.sum()), int((~positive).sum())
    _, patient = np.unique(np.asarray(patient_ids, dtype=np.str_), return_inverse=True)
    with_positive, with_negative = len(set(patient[positive])), len(set(patient[~positive]))
    if min(with_positive, with_negative) < 2:
        return None
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(scores[positive])) / negatives
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / positives
    area = float(above.mean())
    patients = int(patient.max()) + 1

    def by_patient(rows: BoolArray, values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(patient[rows], weights=values, minlength=patients), dtype=np.float64)

    return Placements(
        auroc=area,
        positive=by_patient(positive, above - area),
        negative=by_patient(~positive, below - area),
        with_positive=with_positive,
        with_negative=with_negative,
        positives=positives,
        negatives=negatives,
    )


def covariance(one: Placements, other: Placements) -> float:
    """Return the covariance of two AUROCs on the same rows; of one with itself, its variance (Obuchowski 1997).

    Patients are independent, notes of one need not be: sums over a patient's notes enter, and a patient with both
    labels also through the product of the two sums.
    """
    patients = len(one.positive)
    positives, negatives = one.positives, one.negatives
    from_positives = (one.positive * other.positive).sum() * one.with_positive / (one.with_positive - 1) / positives**2
    from_negatives = (one.negative * other.negative).sum() * one.with_negative / (one.with_negative - 1) / negatives**2
    crossed = (one.positive * other.negative + one.negative * other.positive).sum()
    return float(from_positives + from_negatives + crossed * patients / (patients - 1) / (positives * negatives))


def delong(positive: BoolArray, scores: FloatArray, patient_ids: Sequence[str]) -> dict[str, Any]:
    """Return AUROC, normal-theory 95 % interval and standard error, with the variance clustered by patient.

    Returns
    -------
    dict
        ``value``, ``interval`` (within 0 and 1) and ``standard_error``; None where there is no variance.
    """
    found = placements(positive, scores, patient_ids)
    if found is None:
        return {"value": None, "interval": None, "standard_error": None}
    return _normal(found.auroc, covariance(found, found), (0.0, 1.0))


def delong_difference(
    positive: BoolArray, scores: FloatArray, others: FloatArray, patient_ids: Sequence[str]
) -> dict[str, Any]:
    """Compare the AUROCs of two scores of the same rows.

    Returns
    -------
    dict
        ``value`` (that of ``scores`` minus that of ``others``), ``interval``, ``standard_error`` and the two-sided
        ``p``; None where there is no variance. Equal scores have a difference of 0 with p 1.
    """
    one, other = placements(positive, scores, patient_ids), placements(positive, others, patient_ids)
    if one is None or other is None:
        return {"value": None, "interval": None, "standard_error": None, "p": None}
    variance = covariance(one, one) + covariance(other, other) - 2 * covariance(one, other)
    difference = one.auroc - other.auroc
    return _normal(difference, variance, (-1.0, 1.0)) | {"p": _two_sided(difference, variance)}


def _normal(value: float, variance: float, bounds: tuple[float, float]) -> dict[str, Any]:
    from scipy.stats import norm

    error = float(np.sqrt(max(variance, 0.0)))
    reach = float(norm.ppf(0.5 + LEVEL / 2)) * error
    interval = [max(bounds[0], value - reach), min(bounds[1], value + reach)]
    return {"value": value, "interval": interval, "standard_error": error}


def _two_sided(difference: float, variance: float) -> float:
    from scipy.stats import norm

    # Rounding leaves a variance of 1e-18 or so where two scores rank the notes alike.
    if variance <= 1e-15:
        return 1.0 if abs(difference) < 1e-12 else 0.0
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
