"""What an attack that gives each note a score tells: how well the scores part members from others.

::

    non-members, highest score first     o o o o o o o o o o ...         200 of them, at 1 % two may be above
    threshold                                │ above the third: of equal scores all or none
    members                              ■ ■ ■ ■ ■ ■ ...                 the share above is the true positive rate

Scores are higher the more an attack takes a note for one that was trained on. The area under the ROC curve is an
average over all thresholds; the true positive rate at a small false positive rate says whether anybody can be named
with confidence, which an average hides (Carlini et al. 2022, "Membership Inference Attacks From First Principles",
section II-C). Intervals are from a bootstrap over patients, drawn apart from either side's. On two normals with two
alike notes of each patient they hold a known AUROC in 97 of a hundred samples, and a known rate at 1 % in 90 to 94: the
few highest non-members decide the threshold (``tests/test_attack_figures.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clinstack.errors import InputError
from clinstack.evaluate.auroc import FloatArray, ranking_metrics
from clinstack.evaluate.bootstrap import Estimate, PatientDraws, draw_patients, estimate, student_widening

RATES: dict[str, float] = {"tpr_at_1_percent": 0.01, "tpr_at_0.1_percent": 0.001}
"""False positive rates at which the true positive rate is read, by the figure's name."""
LEVEL = 0.95
_BLOCK = 4_000_000  # numbers per working array: 32 MB, so that memory does not grow with the resamples


@dataclass(frozen=True)
class Sides:
    """The notes on both sides of an attack, by their patients, and the draws that all figures about them share.

    Parameters
    ----------
    member_patients, non_member_patients : sequence of str
        The patient of each note (or canary, or example) of a side.
    resamples, seed : int
        Of the bootstrap over patients.

    Raises
    ------
    InputError
        If a side is empty, or a patient is on both.
    """

    member_patients: Sequence[str]
    non_member_patients: Sequence[str]
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for side, patients in (("members", self.member_patients), ("non-members", self.non_member_patients)):
            if not len(patients):
                raise InputError(f"audit: there are no {side}; an attack compares two sides.")
        both = set(self.member_patients) & set(self.non_member_patients)
        if both:
            raise InputError(
                f"audit: {len(both)} patients are among the members and the non-members (one is {min(both)}); "
                "split by patient."
            )

    @cached_property
    def _draws(self) -> PatientDraws:
        # Each resample has as many patients of either side as there are, as the two groups were chosen apart.
        sides = ["member"] * len(self.member_patients) + ["non-member"] * len(self.non_member_patients)
        patients = [*self.member_patients, *self.non_member_patients]
        return draw_patients(patients, self.resamples, self.seed, strata=sides)

    @cached_property
    def _weights(self) -> FloatArray:
        """How often each note counts, members first, the first row the sample itself: shape (1 + resamples, notes)."""
        by_note = np.empty((len(self.member_patients) + len(self.non_member_patients), self.resamples + 1))
        by_note[:, 0] = 1
        by_note[:, 1:] = self._draws.weights([*self.member_patients, *self.non_member_patients]).T
        return by_note.T

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Notes and patients of both sides."""
        return {
            side: {"notes": len(patients), "patients": len(set(patients))}
            for side, patients in (("members", self.member_patients), ("non_members", self.non_member_patients))
        }

    @property
    def fewer_patients(self) -> int:
        """Patients of the side that has fewer."""
        return min(side["patients"] for side in self.counts.values())

    def areas(self, members: FloatArray, non_members: FloatArray) -> FloatArray:
        """Return the AUROC of the sample itself, then of each resample; equal scores count half.

        Parameters
        ----------
        members, non_members : arrays of float, shape (notes of the side,)

        Returns
        -------
        array of float, shape (1 + resamples,)
        """
        scores = self._joined(members, non_members)
        is_member = np.arange(len(scores)) < len(self.member_patients)
        return ranking_metrics(is_member, scores, self._weights)[0]

    def true_positive_rates(self, members: FloatArray, non_members: FloatArray, rate: float) -> FloatArray:
        """Return the true positive rate at a false positive rate of the sample itself, then of each resample.

        The largest that any threshold reaches whose share of non-members at or above it is at most ``rate``, as
        ``tpr[fpr <= rate].max()`` of scikit-learn's curve; nothing is interpolated. A threshold takes all equal scores
        or none, so that a score which many notes share cannot be split in the attack's favor. It is found anew in each
        resample, so that its own chance is part of the interval.

        Parameters
        ----------
        members, non_members : arrays of float, shape (notes of the side,)
        rate : float

        Returns
        -------
        array of float, shape (1 + resamples,)
        """
        self._joined(members, non_members)
        inside, outside = np.argsort(-members, kind="stable"), np.argsort(-non_members, kind="stable")
        # Members strictly above each non-member; above all thresholds that let every non-member in there are all.
        above = np.append(np.searchsorted(-members[inside], -non_members[outside], side="left"), len(members))
        by_note = self._weights.T
        rates = np.empty(self.resamples + 1)
        block = max(1, _BLOCK // len(by_note))
        for start in range(0, len(rates), block):
            part = slice(start, start + block)
            false = np.cumsum(by_note[len(members) + outside, part], axis=0)
            # Weights are counts, so the product is off by rounding at most where a count equals it.
            too_many = false > rate * false[-1] * (1 + 1e-12)
            first = np.where(too_many.any(axis=0), too_many.argmax(axis=0), len(outside))
            true = np.zeros((len(inside) + 1, false.shape[1]))
            np.cumsum(by_note[inside, part], axis=0, out=true[1:])
            rates[part] = true[above[first], np.arange(false.shape[1])] / true[-1]
        return rates

    def figures(self, members: FloatArray, non_members: FloatArray) -> dict[str, Any]:
        """Return the figures of one attack with 95 % intervals.

        Parameters
        ----------
        members, non_members : arrays of float, shape (notes of the side,)
            Higher is more likely a member.

        Returns
        -------
        dict
            ``auroc`` and those of `RATES`, each ``{"value", "interval"}``. With fewer non-members than one false
            positive at a rate needs (100 at 1 %, 1,000 at 0.1 %) nothing can be measured there: ``value`` and
            ``interval`` are None, and ``why`` says it.
        """
        result: dict[str, Any] = {"auroc": self._estimate(self.areas(members, non_members))}
        for name, rate in RATES.items():
            needed = round(1 / rate)
            if len(non_members) < needed:
                why = f"a false positive rate of {rate:.1%} needs {needed:,} non-members, not {len(non_members):,}"
                result[name] = {"value": None, "interval": None, "why": why}
            else:
                result[name] = dict(self._estimate(self.true_positive_rates(members, non_members, rate)))
        return result

    def _estimate(self, values: FloatArray) -> dict[str, object]:
        return estimate(float(values[0]), values[1:], bounded=True, rarer=self.fewer_patients)

    def _joined(self, members: FloatArray, non_members: FloatArray) -> FloatArray:
        """Check the scores of both sides, and return them one after the other.

        Raises
        ------
        InputError
            If there is not one finite score for each note.
        """
        for side, scores, patients in (
            ("members", members, self.member_patients),
            ("non-members", non_members, self.non_member_patients),
        ):
            if len(scores) != len(patients):
                raise InputError(f"audit: {len(scores)} scores of {side}, but {len(patients)} patients.")
            broken = np.flatnonzero(~np.isfinite(scores))
            if len(broken):
                raise InputError(f"audit: the score of {side}, row {broken[0] + 1}, is not a finite number.")
        return np.concatenate([members, non_members])


def joint_areas(sides: Sides, scores: Mapping[str, tuple[FloatArray, FloatArray]]) -> dict[str, Any]:
    """Return the AUROC of several attacks with intervals that hold for all of them together, and the strongest.

    Who looks at four attacks and reports the best one finds something above 0.5 by chance more often than an interval
    of one attack says. The intervals here are those of the studentized maximum (Westfall & Young 1993, section 2.6;
    Romano & Wolf 2005): with z the log-odds of an AUROC and s its standard deviation over resamples, the half-width of
    each is c·s, and c the 95 % quantile over resamples of the largest |z' - z| / s of any attack. Attacks see the same
    resamples, so that what they share is not paid for twice, as with Bonferroni.

    Parameters
    ----------
    sides : Sides
    scores : mapping of str to (array, array)
        Scores of members and non-members of each attack.

    Returns
    -------
    dict
        ``by_attack``: ``{"value", "interval"}`` of each; ``strongest``: ``attack``, ``value``, ``interval`` and ``p``,
        one-sided for an AUROC of 0.5 in all attacks against one above in the strongest; ``method``. An attack that
        does not vary between resamples (all scores equal, or none in the wrong order) has its own value as interval.
    """
    areas = np.stack([sides.areas(*of) for of in scores.values()])
    # Half a pair of a member and a non-member from 0 and 1, which have no log-odds.
    least = 0.5 / (len(sides.member_patients) * len(sides.non_member_patients))
    clipped = np.clip(areas, least, 1 - least)
    odds = np.log(clipped) - np.log1p(-clipped)
    value, moved = odds[:, 0], odds[:, 1:] - odds[:, :1]
    spread = moved.std(axis=1)
    varies = spread > 1e-9
    studentized = np.divide(moved, spread[:, None], where=varies[:, None], out=np.zeros_like(moved))
    wider = student_widening(sides.fewer_patients, LEVEL)
    reach = wider * float(np.quantile(np.abs(studentized).max(axis=0), LEVEL))
    by_attack: dict[str, Estimate] = {}
    for place, name in enumerate(scores):
        ends = [1 / (1 + float(np.exp(-value[place] + side * reach * spread[place]))) for side in (1, -1)]
        area = float(areas[place, 0])
        by_attack[name] = {"value": area, "interval": ends if varies[place] else [area, area]}
    best = int(np.argmax(areas[:, 0]))
    name = list(scores)[best]
    far = value[best] / (wider * spread[best]) if varies[best] else np.copysign(np.inf, value[best] - 1e-12)
    p = (1 + int((studentized.max(axis=0) >= far).sum())) / (1 + sides.resamples)
    return {
        "by_attack": by_attack,
        "strongest": {"attack": name, **by_attack[name], "p": p},
        "method": "studentized maximum over the attacks, bootstrap over patients",
    }
