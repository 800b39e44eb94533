"""The bootstrap over patients: whole patients are drawn, with all their notes, because notes of one are alike.

A draw is a multiplicity for each patient. Rows inherit it as a weight, so one set of draws serves every table that
is keyed by patient: means over tasks and paired differences between stacks use the same resampled hospital.
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


def draw_patients(patient_ids: Iterable[str], resamples: int = 1000, seed: int = 0) -> PatientDraws:
    """Draw as many patients as there are, with replacement, ``resamples`` times.

    Parameters
    ----------
    patient_ids : iterable of str
        Patients of all tables that will be resampled together; repeats count once.
    resamples : int
    seed : int
        The same ids and seed give the same draws, whatever the order of the ids.
    """
    patients = np.asarray(sorted(set(patient_ids)), dtype=np.str_)
    if not len(patients):
        raise InputError("There are no patients to draw from: the table has no rows.")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; use at least 1 (1000 is usual).")
    generator = np.random.default_rng(seed)
    counts = np.empty((len(patients), resamples))
    for column in range(resamples):
        drawn = generator.integers(len(patients), size=len(patients))
        counts[:, column] = np.bincount(drawn, minlength=len(patients))
    return PatientDraws(patients, counts)


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


def estimate(value: float, resampled: FloatArray) -> Estimate:
    """Join a statistic and its resamples into ``{"value", "interval"}``; both None when the statistic is unknown."""
    if not np.isfinite(value):
        return {"value": None, "interval": None}
    return {"value": float(value), "interval": percentile_interval(resampled)}
