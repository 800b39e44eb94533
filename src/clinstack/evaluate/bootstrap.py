"""The bootstrap over patients: whole patients are drawn, with all their notes, because notes of one are alike.

A draw is a multiplicity for each patient. Rows inherit it as a weight, so one set of draws serves every table that
is keyed by patient: means over tasks and paired differences between stacks use the same resampled hospital.

Intervals of AUROC and AUPRC are symmetrical on the scale of log-odds (`log_odds_interval`), those of everything else,
paired differences included, are percentiles. On simulated scores of two normals (300 patients, 2,500 samples) with 30
positives percentiles hold a known AUROC of 0.85 and 0.95 in 93 and 88 of a hundred samples, for they miss a value near
1 on one side; the others, widened for few positives, in 96 and 94. With 12 positives, drawn by strata, and an AUROC of
0.8 it is 88 and 95 (``tests/test_coverage.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.evaluate.auroc import FloatArray

Estimate = dict[str, object]
"""``{"value": float | None, "interval": [low, high] | None}``, as it stands in the JSON files."""


@dataclass(frozen=True)
class PatientDraws:
    """Multiplicities of patients in each resample.

    Parameters
    ----------
    patients : array of str, shape (patients,)
        Sorted and unique.
    counts : array of float, shape (patients, resamples)
        How often each patient was drawn; each column sums to the number of patients.
    """

    patients: NDArray[np.str_]
    counts: FloatArray

    @property
    def resamples(self) -> int:
        """How many resamples were drawn."""
        return int(self.counts.shape[1])

    def weights(self, patient_ids: Sequence[str]) -> FloatArray:
        """Return the weights of a table's rows, shape (resamples, rows).

        Raises
        ------
        InputError
            When a row's patient was not among those drawn from.
        """
        ids = np.asarray(patient_ids, dtype=np.str_)
        place = np.minimum(np.searchsorted(self.patients, ids), len(self.patients) - 1)
        missing = np.flatnonzero(self.patients[place] != ids)
        if missing.size:
            raise InputError(
                f"Row {missing[0]}: patient {ids[missing[0]]} is not among the patients that the bootstrap drew from; "
                "draw from the union of all tables' patients."
            )
        weights: FloatArray = self.counts[place].T
        return weights


def draw_patients(
    patient_ids: Iterable[str], resamples: int = 1000, seed: int = 0, *, strata: Iterable[str | int] | None = None
) -> PatientDraws:
    """Draw as many patients as there are, with replacement, ``resamples`` times.

    Parameters
    ----------
    patient_ids : iterable of str
        Patients of all tables that will be resampled together; repeats count once.
    resamples : int
    seed : int
        The same ids, strata and seed give the same draws, whatever the order of the ids.
    strata : iterable of str or int, optional
        A label for each of ``patient_ids``, as `rare_strata` gives them. Every resample then holds as many patients of
        each stratum as there are. A patient with several labels belongs to the one that the fewest patients have, of
        equally rare ones to the last (classes are ordered by severity).

    Raises
    ------
    InputError
        No patients, fewer than one resample, or not one label for each id.
    """
    ids = list(patient_ids)
    patients = np.asarray(sorted(set(ids)), dtype=np.str_)
    if not len(patients):
        raise InputError("There are no patients to draw from: the table has no rows.")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; use at least 1 (1000 is usual).")
    groups = [np.arange(len(patients))] if strata is None else _strata(patients, ids, list(strata))
    generator = np.random.default_rng(seed)
    counts = np.empty((len(patients), resamples))
    for column in range(resamples):
        for members in groups:
            drawn = generator.integers(len(members), size=len(members))
            counts[members, column] = np.bincount(drawn, minlength=len(members))
    return PatientDraws(patients, counts)


def _strata(patients: NDArray[np.str_], ids: Sequence[str], labels: Sequence[str | int]) -> list[NDArray[np.int64]]:
    """Return the places of each stratum's patients."""
    if len(labels) != len(ids):
        raise InputError(f"{len(ids)} patient ids but {len(labels)} strata; give one stratum for each row.")
    carriers: dict[str | int, set[str]] = {}
    for patient, label in zip(ids, labels, strict=True):
        carriers.setdefault(label, set()).add(patient)
    # The commonest first, so that each patient ends up in the rarest of its strata.
    order = sorted(sorted(carriers), key=lambda label: -len(carriers[label]))
    stratum_of = {patient: place for place, label in enumerate(order) for patient in carriers[label]}
    strata = np.asarray([stratum_of[patient] for patient in patients.tolist()])
    return [np.flatnonzero(strata == place) for place in np.unique(strata)]


def rare_strata(labels: Sequence[int], patient_ids: Sequence[str], fewest: int = 20) -> list[int] | None:
    """Return strata for `draw_patients` where a class is rare, else None.

    Of a class that few patients carry, a resample may hold none; then it has no AUROC, and the interval is that of the
    luckier resamples. Drawn by strata this cannot happen. Commoner classes share one stratum: with 20 patients an
    empty resample has a chance of two in a thousand million, and each stratum of m patients shrinks its part of the
    variance by (m - 1) / m. Not for tasks with several labels per row, whose rare codes would each need a stratum.

    Parameters
    ----------
    labels : sequence of int, shape (rows,)
        Class of each row (binary or multiclass).
    patient_ids : sequence of str, shape (rows,)
    fewest : int
        A class that fewer patients carry is rare.

    Returns
    -------
    list of int, shape (rows,), or None
        The class where it is rare, -1 elsewhere.
    """
    carriers: dict[int, set[str]] = {}
    for patient, label in zip(patient_ids, labels, strict=True):
        carriers.setdefault(label, set()).add(patient)
    rare = {label for label, patients in carriers.items() if len(patients) < fewest}
    return [label if label in rare else -1 for label in labels] if rare else None


def patient_weights(
    patient_ids: Sequence[str], resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.str_], FloatArray]:
    """Return the unique patients and the weights of the rows, shape (resamples, rows), for a single table."""
    draws = draw_patients(patient_ids, resamples, seed)
    return draws.patients, draws.weights(patient_ids)


def percentile_interval(values: FloatArray, level: float = 0.95) -> list[float] | None:
    """Return the percentile interval of a statistic's resamples.

    Resamples in which the statistic does not exist (NaN: no patient with one of the labels was drawn) are left out.
    None when it exists in fewer than two.
    """
    known = values[np.isfinite(values)]
    if known.size < 2:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def rarer_patients(indicator: NDArray[np.bool_], patient_ids: Sequence[str]) -> list[int]:
    """Count for each class its patients, or those without it where they are fewer.

    Parameters
    ----------
    indicator : array of bool, shape (rows, classes)
    patient_ids : sequence of str, shape (rows,)
        A patient with rows of both kinds counts for both.
    """
    ids = np.asarray(patient_ids, dtype=np.str_)
    order = np.argsort(ids, kind="stable")
    _, starts = np.unique(ids[order], return_index=True)
    with_it, without = (np.logical_or.reduceat(rows[order], starts, axis=0) for rows in (indicator, ~indicator))
    return [int(count) for count in np.minimum(with_it.sum(axis=0), without.sum(axis=0))]


def log_odds_interval(
    value: float, resampled: FloatArray, level: float = 0.95, *, rarer: int | None = None
) -> list[float] | None:
    """Return an interval of a figure between 0 and 1 that is symmetrical around it on the scale of log-odds.

    It is as long there as the percentile interval. That one leans away from 1 (or 0) where the figure is near it,
    although the estimate may as well be too high as too low; and it never leaves the interval from 0 to 1.

    Parameters
    ----------
    value : float
        The figure itself. Where it is 0 or 1 the percentile interval is returned.
    resampled : array of float, shape (resamples,)
        NaN are left out. A resample of 0 or 1 counts as fifty times closer to it than ``value`` is.
    level : float
    rarer : int, optional
        As `rarer_patients` counts them. The interval is then longer, as Student's t with one degree of freedom less is
        wider than the normal distribution: a handful of patients vary less in resamples than in other samples, and the
        interval's length itself is a guess.
    """
    interval = percentile_interval(resampled, level)
    if interval is None or not 0 < value < 1:
        return interval
    low, high = _log_odds(np.clip(interval, value / 50, 1 - (1 - value) / 50))
    middle, half = _log_odds(np.asarray(value)), (high - low) / 2
    if rarer is not None:
        half *= student_widening(rarer, level)
    return [float(1 / (1 + np.exp(half - middle))), float(1 / (1 + np.exp(-half - middle)))]


def student_widening(units: int, level: float = 0.95) -> float:
    """Return how much wider Student's t, of one degree of freedom less than units, is than the normal distribution."""
    from scipy.special import ndtri, stdtrit

    upper = (1 + level) / 2
    return float(stdtrit(max(1, units - 1), upper) / ndtri(upper))


def _log_odds(share: FloatArray) -> FloatArray:
    return np.asarray(np.log(share) - np.log1p(-share))


def estimate(value: float, resampled: FloatArray, *, bounded: bool = False, rarer: int | None = None) -> Estimate:
    """Join a statistic and its resamples into ``{"value", "interval"}``; both None when the statistic is unknown.

    The interval is of percentiles; with ``bounded``, for AUROC, AUPRC and other shares between 0 and 1, that of
    `log_odds_interval`, which also takes ``rarer``.
    """
    if not np.isfinite(value):
        return {"value": None, "interval": None}
    interval = log_odds_interval(value, resampled, rarer=rarer) if bounded else percentile_interval(resampled)
    return {"value": float(value), "interval": interval}
