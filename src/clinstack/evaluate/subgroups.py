"""A classifier by groups of patients: performance, calibration and decisions, and how far each group is from the rest.

TRIPOD+AI (Collins et al. 2024) and TRIPOD-LLM ask for it, and a table of small groups gives patients away. So nothing
is said of a group of fewer than `SMALLEST` patients. AUROC, recall and specificity of a class are shares of those who
carry it and those who do not, and a share tells what it is a share of: a class counts only where the group has as many
patients of both kinds. A count that a hidden one could be worked out from is hidden too.

A gap is a group's figure minus that of everybody else whose group is recorded, on the same classes and the same
resampled patients. Brier score, calibration error over bins and slope are in no gap: the first moves with how common
the outcome is, the others with how large the group is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.evaluate.auroc import BoolArray, FloatArray, class_metrics, mean_of_known
from clinstack.evaluate.bootstrap import Estimate, estimate, percentile_interval, rarer_patients
from clinstack.evaluate.calibration_figures import Entries, calibration_figures
from clinstack.evaluate.multiple_comparisons import LEVEL, bootstrap_p, holm
from clinstack.evaluate.scored import Scored
from clinstack.evaluate.thresholds import decision_metrics
from clinstack.notes.sheet.small_cells import hide_small_cells, small_cell

SMALLEST = 10
"""Patients of the smallest group, and of the smaller side of a class in a group, that anything is said of."""

Figure = tuple[float, FloatArray]
"""A figure and its resamples."""


@dataclass(frozen=True)
class Measurable:
    """What the figures of any set of rows are computed from.

    Parameters
    ----------
    table : Scored
    probabilities : array of float, shape (rows, judged columns)
        Calibrated where there is a fit.
    called : array of bool, shape (rows, judged columns), or None
        What is called positive; None without thresholds.
    patient_ids : array of str, shape (rows,)
    weights : array of float, shape (resamples, rows)
    """

    table: Scored
    probabilities: FloatArray
    called: BoolArray | None
    patient_ids: NDArray[np.str_]
    weights: FloatArray

    @property
    def there(self) -> BoolArray:
        """Which judged columns each row carries."""
        return self.table.indicator[:, self.table.judged_columns]

    def countable(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the judged columns that enough patients of some rows carry, and enough do not."""
        fewest = rarer_patients(self.there[rows], self.patient_ids[rows].tolist())
        return np.flatnonzero(np.asarray(fewest) >= SMALLEST)

    def decisions(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> dict[str, Figure]:
        """Return AUROC, and recall and specificity where there are thresholds: means over some judged columns."""
        weights = self._weights(rows)
        there = self.there[rows][:, columns]
        scores = self.table.margin[:, None] if self.table.task.kind == "binary" else self.table.scores
        found = {"auroc": mean_of_known(class_metrics(there, scores[rows][:, columns], weights)[0])}
        if self.called is not None:
            by_class, _ = decision_metrics(there, self.called[rows][:, columns], weights)
            found |= {name: mean_of_known(by_class[name]) for name in ("recall", "specificity")}
        return {name: (float(values[0]), values[1:]) for name, values in found.items()}

    def distances(self, rows: NDArray[np.int64]) -> dict[str, Figure]:
        """Return how far probabilities are from what happened, over all judged columns."""
        weights = self._weights(rows)
        distance = self.probabilities[rows] - self.there[rows]
        found = {"brier": (distance**2).mean(axis=1)}
        if self.table.task.kind != "multiclass":  # there it is zero by what probabilities are
            found["predicted_minus_observed"] = distance.mean(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without anybody of the group
            means = {name: (weights @ values) / weights.sum(axis=1) for name, values in found.items()}
        return {name: (float(values[0]), values[1:]) for name, values in means.items()}

    def fit(self, rows: NDArray[np.int64]) -> dict[str, Estimate]:
        """Return calibration error and slope in some rows; no bins, whose cells would be small."""
        entries = Entries(self.table.task.kind, self.there[rows], self.probabilities[rows])
        weights = self.weights[:, rows]
        measured = calibration_figures(entries, weights[weights.sum(axis=1) > 0])
        return {name: measured[name] for name in ("ece", "slope")}

    def _weights(self, rows: NDArray[np.int64]) -> FloatArray:
        """Return the weights of some rows, shape (1 + resamples, rows); the first as they are."""
        return np.concatenate([np.ones((1, len(rows))), self.weights[:, rows]])


def measure_subgroups(measurable: Measurable, groups: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """Measure each group of each attribute, and the gap between it and everybody else.

    Parameters
    ----------
    measurable : Measurable
        All rows of a split.
    groups : mapping of attribute to sequence of str or None, shape (rows,)

    Returns
    -------
    dict
        ``smallest``: patients of the smallest group that is shown. ``groups``: for each, ``attribute, group, patients,
        rows`` (counts, ``"<10"``, or ``"hidden"`` where another could be worked out from it); ``classes``: of how many
        the next three are means; ``auroc, recall, specificity, brier, predicted_minus_observed, ece, slope`` as
        ``{"value", "interval"}``; ``gaps``: figure to ``{"value", "interval", "p", "p_holm", "holds"}``, corrected for
        all gaps of the split; ``why`` where some or all of these are missing. ``largest_gaps``: of each attribute the
        largest gap of AUROC. ``not_recorded``: rows without a group, by attribute. An attribute with one group only
        is left out.
    """
    entries: list[dict[str, Any]] = []
    groups = {attribute: names for attribute, names in groups.items() if len({*names} - {None}) > 1}
    for attribute, names in groups.items():
        entries += _attribute(measurable, attribute, np.array([name or "" for name in names]))
    gaps = [gap for entry in entries for gap in entry.get("gaps", {}).values()]
    for gap, adjusted in zip(gaps, holm([gap["p"] for gap in gaps]), strict=True):
        gap["p_holm"], gap["holds"] = adjusted, adjusted is not None and adjusted <= LEVEL
    missing = {attribute: _count(sum(name is None for name in names)) for attribute, names in groups.items()}
    return {
        "smallest": SMALLEST,
        "groups": entries,
        "largest_gaps": _largest(entries),
        "not_recorded": {attribute: count for attribute, count in missing.items() if count},
    }


def _attribute(measurable: Measurable, attribute: str, names: NDArray[np.str_]) -> list[dict[str, Any]]:
    known = np.flatnonzero(names != "")
    members = {str(name): np.flatnonzero(names == name) for name in np.unique(names[known])}
    ids = measurable.patient_ids
    patients = {name: len(set(ids[rows].tolist())) for name, rows in members.items()}
    # The total over groups can be worked out from what is said of the split.
    shown = hide_small_cells([[*patients.values(), sum(patients.values())]], SMALLEST, total_column=True)[0]
    entries = []
    for (name, rows), cell in zip(members.items(), shown, strict=False):
        small = patients[name] < SMALLEST
        entry: dict[str, Any] = {
            "attribute": attribute,
            "group": name,
            "patients": cell,
            "rows": len(rows) if isinstance(cell, int) else cell,
        }
        if small:
            entry["why"] = f"fewer than {SMALLEST} patients"
        else:
            entry |= _measured(measurable, rows, np.setdiff1d(known, rows))
        entries.append(entry)
    return entries


def _measured(measurable: Measurable, rows: NDArray[np.int64], rest: NDArray[np.int64]) -> dict[str, Any]:
    columns = measurable.countable(rows)
    found: dict[str, Any] = {"classes": len(columns)}
    gaps: dict[str, Any] = {}
    if len(columns):
        rarer = rarer_patients(measurable.there[rows][:, columns], measurable.patient_ids[rows].tolist())
        few = rarer[0] if len(columns) == 1 else None
        for name, (value, resampled) in measurable.decisions(rows, columns).items():
            found[name] = estimate(value, resampled, bounded=True, rarer=few)
        common = np.intersect1d(columns, measurable.countable(rest))
        if len(common):
            mine, others = measurable.decisions(rows, common), measurable.decisions(rest, common)
            gaps = {name: _gap(mine[name], others[name]) for name in mine}
    else:
        found["why"] = f"no class with {SMALLEST} patients who carry it and {SMALLEST} who do not"
    mine, others = measurable.distances(rows), measurable.distances(rest)
    found |= {name: estimate(*figure) for name, figure in mine.items()} | measurable.fit(rows)
    # Of so few others the gap would tell.
    if len(set(measurable.patient_ids[rest].tolist())) >= SMALLEST:
        found["gaps"] = gaps | {name: _gap(mine[name], others[name]) for name in mine if name != "brier"}
    return found


def _gap(mine: Figure, others: Figure) -> dict[str, Any]:
    value, resampled = mine[0] - others[0], mine[1] - others[1]
    known = bool(np.isfinite(value))
    return {
        "value": value if known else None,
        "interval": percentile_interval(resampled) if known else None,
        "p": bootstrap_p(value, resampled),
    }


def _largest(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of each attribute the gap of AUROC that is farthest from zero."""
    found = []
    for attribute in dict.fromkeys(entry["attribute"] for entry in entries):
        gaps = [
            (entry["group"], entry["gaps"]["auroc"])
            for entry in entries
            if entry["attribute"] == attribute and entry.get("gaps", {}).get("auroc", {}).get("value") is not None
        ]
        if gaps:
            group, gap = max(gaps, key=lambda item: abs(item[1]["value"]))
            found.append({"attribute": attribute, "group": group, **gap})
    return found


def _count(number: int) -> int | str:
    return number if number == 0 or number >= SMALLEST else small_cell(SMALLEST)
