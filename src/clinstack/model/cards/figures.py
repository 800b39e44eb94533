"""What metrics.json of a Run says, as rows of a card: held-out patients, intervals, and no small group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SMALLEST = 10
"""Patients of the smallest group that a card says anything of."""
SMALL = f"<{SMALLEST}"


@dataclass(frozen=True)
class Figure:
    """One figure with its interval.

    Parameters
    ----------
    key : str
        As metrics.json has it.
    name : str
        For people.
    hub : str
        What the hub calls the metric.
    value : float
    interval : tuple of two floats, or None
        Of 95 %, over patients.
    split : str
    """

    key: str
    name: str
    hub: str
    value: float
    interval: tuple[float, float] | None
    split: str = "test"

    @property
    def text(self) -> str:
        """The value and its interval."""
        return written(self.value) if self.interval is None else f"{written(self.value)} ({self.between})"

    @property
    def between(self) -> str:
        """The interval."""
        assert self.interval is not None
        return f"{written(self.interval[0])} to {written(self.interval[1])}"


_NAMES = {
    "auroc": "AUROC",
    "auroc_macro": "AUROC, mean over codes",
    "auroc_micro": "AUROC over all codes together",
    "auroc_ovo": "AUROC, mean over pairs of classes",
    "auroc_ovr": "AUROC, mean over classes",
    "auprc": "AUPRC",
}
_DECIDED = {"f1": "F1", "precision": "precision", "recall": "recall (sensitivity)", "specificity": "specificity"}
_CALIBRATED = {"ece": "calibration error (ECE)", "slope": "calibration slope", "intercept": "calibration intercept"}
_ANSWERS = {
    "token_f1": "token F1 of answers",
    "exact_match": "exact match",
    "rougeL": "ROUGE-L",
    "grounding": "share of the answer's words that stand in the note",
    "refusal_sensitivity": "unanswerable questions that are refused",
    "refusal_specificity": "answerable questions that are answered",
    "reward_accuracy": "reward accuracy",
    "kl_per_token": "divergence from the reference, nats a token",
}
_HUB = {"auroc": "roc_auc", "auprc": "average_precision", "f1": "f1", "precision": "precision", "recall": "recall"}


def patients_of(metrics: Mapping[str, Any], split: str = "test") -> int | None:
    """Return how many patients a split's figures are of; None where nothing was measured."""
    found = _split(metrics, split).get("patients")
    return found if isinstance(found, int) else None


def figures_of(metrics: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of the test patients, and of language models the perplexity on training notes beside it.

    Nothing is returned of a split with fewer than `SMALLEST` patients.
    """
    found: list[Figure] = []
    for split in ("test", "train"):
        part = _split(metrics, split)
        patients = part.get("patients")
        if not isinstance(patients, int) or patients < SMALLEST:
            continue
        found += _language(part, split)
        if split == "test":
            found += [*_classifier(part), *_answers(part)]
    return found


def _classifier(part: Mapping[str, Any]) -> Iterator[Figure]:
    if "primary" not in part:
        return
    for key in dict.fromkeys((str(part["primary"]), "auprc")):
        yield from _figure(part, key, _NAMES.get(key, key), _HUB.get(key[:5], key))
    decided = {} if _gives_small_cells(part) else part.get("threshold") or {}
    chosen = f" at the threshold chosen on {decided['chosen_on']} patients" if "chosen_on" in decided else ""
    for key, name in _DECIDED.items():
        yield from _figure(decided, key, f"{name}{chosen}", _HUB.get(key, key))
    for method, fit in (part.get("calibration") or {}).items():
        after = "" if method == "none" else f" after {method} calibration"
        for key, name in (*_CALIBRATED.items(), ("brier", "Brier score")):
            yield from _figure(fit, key, f"{name}{after}", key, prefix=f"{method}.")


def _gives_small_cells(part: Mapping[str, Any]) -> bool:
    """Whether a small cell of a binary task's decisions could be worked out from recall and specificity."""
    if (part.get("task") or {}).get("kind") != "binary":
        return False
    decided, rows = part.get("threshold") or {}, part.get("rows")
    positives = next((entry.get("positives") for entry in part.get("per_class") or []), None)
    recall, specificity = ((decided.get(name) or {}).get("value") for name in ("recall", "specificity"))
    if not isinstance(rows, int) or not isinstance(positives, int) or recall is None or specificity is None:
        return True
    negatives = rows - positives
    cells = (recall * positives, (1 - recall) * positives, specificity * negatives, (1 - specificity) * negatives)
    return any(0 < round(cell) < SMALLEST for cell in cells)


def hides_decisions(metrics: Mapping[str, Any]) -> bool:
    """Whether `figures_of` leaves out what a binary task decides at its threshold."""
    part = _split(metrics, "test")
    return "primary" in part and "threshold" in part and _gives_small_cells(part)


def _language(part: Mapping[str, Any], split: str) -> Iterator[Figure]:
    what = "answers" if "examples" in part else "notes"
    which = f"{'test' if split == 'test' else 'training'} {what}"
    for key, when in (("base", "the base, before"), ("adapted", "after")):
        if key in part:
            name = f"perplexity on {which}, {when}"
            yield from _figure(part[key], "perplexity", name, "perplexity", split, f"{key}.")
    if split == "test" and "adapted" in part:
        name = f"bits per character on {which}, after"
        yield from _figure(part["adapted"], "bits_per_character", name, "bits_per_character", split, "adapted.")


def _answers(part: Mapping[str, Any]) -> Iterator[Figure]:
    for key, name in _ANSWERS.items():
        yield from _figure(part, key, name, key)
    for when in ("before", "after"):
        name = f"prefers the chosen answer, {when}"
        yield from _figure(part.get("prefers_chosen") or {}, when, name, "prefers_chosen", prefix="prefers_chosen.")


def _figure(
    table: Mapping[str, Any], key: str, name: str, hub: str, split: str = "test", prefix: str = ""
) -> Iterator[Figure]:
    found = table.get(key)
    if not isinstance(found, Mapping) or not isinstance(found.get("value"), (int, float)):
        return
    interval = found.get("interval") or (None, None)
    low, high = interval
    ends = None if low is None or high is None else (float(low), float(high))
    yield Figure(prefix + key, name, hub, float(found["value"]), ends, split)


def _split(metrics: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    part = metrics.get(split)
    return part if isinstance(part, Mapping) else {}


@dataclass(frozen=True)
class Group:
    """One group of patients.

    Parameters
    ----------
    attribute, name : str
    patients : int or str
        ``hidden`` where another count could be worked out from it.
    auroc, gap : Figure or None
        The gap is to everybody else whose group is recorded; None where too few carry a class, or do not.
    excess : Figure or None
        The mean of what is predicted minus the mean of what happened; above 0 the model expects too much.
    holds : bool
        Whether the gap stands after correction for all gaps.
    """

    attribute: str
    name: str
    patients: int | str
    auroc: Figure | None
    gap: Figure | None
    excess: Figure | None
    holds: bool


def groups_of(metrics: Mapping[str, Any]) -> tuple[list[Group], int] | None:
    """Return the groups of ``test.subgroups`` with at least `SMALLEST` patients, and how many are not shown; None where
    groups were not measured.
    """
    table = _split(metrics, "test").get("subgroups")
    entries = table.get("groups") if isinstance(table, Mapping) else table
    if not isinstance(entries, list):
        return None
    found = []
    for entry in entries:
        patients = entry.get("patients")
        shown = patients == "hidden" or (isinstance(patients, int) and patients >= SMALLEST)
        if not shown:
            continue
        auroc = next(_figure(entry, "auroc", "AUROC", "roc_auc"), None)
        gap = next(_figure(entry.get("gaps") or {}, "auroc", "gap of AUROC", "roc_auc"), None)
        excess = next(_figure(entry, "predicted_minus_observed", "predicted minus observed", "bias"), None)
        holds = bool(((entry.get("gaps") or {}).get("auroc") or {}).get("holds"))
        found.append(Group(str(entry["attribute"]), str(entry["group"]), patients, auroc, gap, excess, holds))
    return found, len(entries) - len(found)


def written(value: float) -> str:
    """Return a figure with three digits that count, or three after the point below 10."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def shown_count(count: Any) -> str:
    """Return a count of people, notes or labels as a card may say it."""
    if not isinstance(count, int):
        return str(count) if count == SMALL else "unknown"
    return SMALL if 0 < count < SMALLEST else f"{count:,}"
