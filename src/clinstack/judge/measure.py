"""The figures of a judge Run, from its table of scores alone: means, differences, wins, bias of place, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinstack.evaluate.agreement import agreement
from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import Estimate, PatientDraws, draw_patients, estimate
from clinstack.evaluate.multiple_comparisons import LEVEL, bootstrap_p, holm
from clinstack.judge.rubric import GRADES

HumanGrades = Mapping[tuple[str, str], int]
"""The grade that people gave, by example id and label of the answers."""


@dataclass(frozen=True)
class _Question:
    """A question to the judge that was answered: labels in the order shown, and their grades."""

    example: int
    shown: tuple[str, ...]
    order: int
    grades: tuple[int, ...]

    def grade(self, label: str) -> int:
        return self.grades[self.shown.index(label)]


class _Scores:
    """The table by example, with the resamples of its patients."""

    def __init__(self, table: pa.Table, resamples: int, seed: int) -> None:
        columns = {name: table[name].to_pylist() for name in table.column_names}
        first: dict[str, int] = {}
        for row, example in enumerate(columns["example_id"]):
            first.setdefault(example, row)
        self.examples = list(first)
        self.patients = [columns["patient_id"][row] for row in first.values()]
        self.tasks = np.asarray([columns["task"][row] for row in first.values()], dtype=np.str_)
        place = {example: at for at, example in enumerate(self.examples)}
        self.asked = 0
        self.unread = 0
        self.unanswered = 0
        self.asked_again = 0
        self.questions: list[_Question] = []
        self.nulls: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        row = 0
        while row < table.num_rows:
            shown = tuple(columns["shown"][row])
            end = row + len(shown)
            self.asked += 1
            self.asked_again += columns["asked"][row] - 1
            for label in shown:
                self.rows[label] = self.rows.get(label, 0) + 1
                self.nulls[label] = self.nulls.get(label, 0) + (not columns["parsed"][row])
            if columns["parsed"][row]:
                grades = tuple(columns["score"][row:end])
                example = place[columns["example_id"][row]]
                self.questions.append(_Question(example, shown, columns["order"][row], grades))
            elif columns["replied"][row]:
                self.unread += 1
            else:
                self.unanswered += 1
            row = end
        self.draws: PatientDraws = draw_patients(self.patients, resamples, seed)
        self.place = np.searchsorted(self.draws.patients, np.asarray(self.patients, dtype=np.str_))

    def by_example(self, values: Sequence[tuple[int, float]]) -> FloatArray:
        """Return the mean of the values of each example, NaN where it has none."""
        sums, counts = np.zeros(len(self.examples)), np.zeros(len(self.examples))
        for example, value in values:
            sums[example] += value
            counts[example] += 1
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / np.where(counts > 0, counts, np.nan))

    def mean(self, values: FloatArray, chosen: NDArray[np.bool_] | None = None) -> tuple[float, FloatArray, int]:
        """Return the mean over examples, as it is and in each resample, and how many examples it is of."""
        known = np.isfinite(values) if chosen is None else np.isfinite(values) & chosen
        count = int(known.sum())
        if not count:
            return float("nan"), np.full(self.draws.resamples, np.nan), 0
        size = len(self.draws.patients)
        sums = self.draws.counts.T @ np.bincount(self.place[known], values[known], minlength=size)
        counts = self.draws.counts.T @ np.bincount(self.place[known], minlength=size)
        with np.errstate(invalid="ignore"):
            resampled = sums / np.where(counts > 0, counts, np.nan)
        return float(values[known].mean()), np.asarray(resampled), count

    def estimate(
        self, values: FloatArray, chosen: NDArray[np.bool_] | None = None, *, bounded: bool = False
    ) -> Estimate:
        """Return the mean over examples with its interval over patients."""
        value, resampled, _ = self.mean(values, chosen)
        return estimate(value, resampled, bounded=bounded)


def judge_metrics(
    table: pa.Table, labels: Sequence[str], resamples: int, seed: int, human: HumanGrades | None = None
) -> dict[str, Any]:
    """Compute all figures of a table of scores.

    An answer's score is the mean of the grades that it got in all orders; an answer without a readable grade has none,
    and is left out. All means are over examples, all intervals over patients, with the same draws for every figure.

    Parameters
    ----------
    table : pyarrow.Table
        As ``scores.parquet``, the rows of one question one after the other.
    labels : sequence of str
        The answers' labels. Differences are of a later one minus an earlier one.
    resamples, seed : int
        Of the bootstrap.
    human : mapping of (example_id, label) to int, optional
        Grades that people gave.

    Returns
    -------
    dict
        ``counts`` of questions and of what could not be read; ``scores`` and ``by_task`` by label; ``differences`` and
        ``wins`` by pair; ``position``; ``agreement`` of two orders and, where given, with people.
    """
    scores = _Scores(table, resamples, seed)
    grades = {label: [(q.example, q.grade(label)) for q in scores.questions if label in q.shown] for label in labels}
    means = {label: scores.by_example(values) for label, values in grades.items()}
    agreements = {"orders": _between_orders(scores)}
    if human is not None:
        agreements["human"] = _with_people(scores, means, labels, human)
    return {
        "counts": {
            "examples": len(scores.examples),
            "patients": len(scores.draws.patients),
            "questions": scores.asked,
            "asked_again": scores.asked_again,
            "unparsed": scores.unread,
            "unanswered": scores.unanswered,
        },
        "scores": {label: _scores_of(scores, label, grades[label], means[label]) for label in labels},
        "by_task": {
            str(task): {
                label: scores.estimate(means[label], scores.tasks == task)
                | {"examples": int((np.isfinite(means[label]) & (scores.tasks == task)).sum())}
                for label in labels
            }
            for task in sorted(set(scores.tasks.tolist()))
        },
        "differences": _differences(scores, means, labels),
        "wins": [_wins(scores, b, a) for a, b in combinations(labels, 2)],
        "position": _position(scores),
        "agreement": agreements,
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed, "level": 0.95},
    }


def _scores_of(scores: _Scores, label: str, grades: Sequence[tuple[int, float]], means: FloatArray) -> dict[str, Any]:
    best = scores.by_example([(example, float(grade == GRADES[-1])) for example, grade in grades])
    return {
        "mean": scores.estimate(means),
        "excellent": scores.estimate(best, bounded=True),
        "grades": {str(grade): sum(given == grade for _, given in grades) for grade in GRADES},
        "examples": int(np.isfinite(means).sum()),
        "given": scores.rows.get(label, 0) - scores.nulls.get(label, 0),
        "missing": scores.nulls.get(label, 0),
    }


def _differences(scores: _Scores, means: Mapping[str, FloatArray], labels: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for b, a in combinations(labels, 2):
        value, resampled, count = scores.mean(means[a] - means[b])
        rows.append(
            {"a": a, "b": b, "metric": "judge_score"}
            | estimate(value, resampled)
            | {"examples": count, "p": bootstrap_p(value, resampled)}
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
        row["holds"] = adjusted is not None and adjusted <= LEVEL
    return rows


def _wins(scores: _Scores, a: str, b: str) -> dict[str, Any]:
    """Return how often a got a higher grade than b in one and the same question; a tie counts half."""
    signs = [
        (q.example, int(np.sign(q.grade(a) - q.grade(b)))) for q in scores.questions if a in q.shown and b in q.shown
    ]
    share = scores.by_example([(example, (sign + 1) / 2) for example, sign in signs])
    counts = {name: sum(sign == which for _, sign in signs) for name, which in (("won", 1), ("tied", 0), ("lost", -1))}
    return (
        {"a": a, "b": b} | scores.estimate(share, bounded=True) | {"examples": int(np.isfinite(share).sum())} | counts
    )


def _position(scores: _Scores) -> dict[str, Any]:
    """Measure what the place of an answer does to its grade.

    ``earlier_minus_later``: grade of the earlier minus that of the later answer of a pair, the mean of both ways round,
    so that how good the answers are cancels out. ``flipped``: share of pairs of which the earlier (or the later) answer
    is the better one both ways round. ``changed``: the same, with a tie one way round too.
    """
    places: dict[int, list[tuple[int, float]]] = {}
    ways: dict[tuple[int, str, str], tuple[list[int], list[int]]] = {}
    for question in scores.questions:
        for place, grade in enumerate(question.grades):
            places.setdefault(place + 1, []).append((question.example, grade))
        for early, late in combinations(range(len(question.shown)), 2):
            a, b = question.shown[early], question.shown[late]
            key = (question.example, min(a, b), max(a, b))
            difference = question.grades[early] - question.grades[late]
            ways.setdefault(key, ([], []))[a > b].append(difference if a < b else -difference)
    both = [
        (key[0], float(np.mean(before)), float(np.mean(after)))
        for key, (before, after) in ways.items()
        if before and after
    ]
    flips = scores.by_example([(example, float(before * after < 0)) for example, before, after in both])
    changes = scores.by_example(
        [(example, float(np.sign(before) != np.sign(after))) for example, before, after in both]
    )
    return {
        "scores": {str(place): scores.estimate(scores.by_example(values)) for place, values in sorted(places.items())},
        "earlier_minus_later": scores.estimate(
            scores.by_example([(example, (before - after) / 2) for example, before, after in both])
        ),
        "pairs": len(both),
        "flipped": scores.estimate(flips, bounded=True),
        "changed": scores.estimate(changes, bounded=True),
    }


def _between_orders(scores: _Scores) -> dict[str, Any]:
    """Measure how far the judge agrees with itself: an answer's grades in the first two orders of the same answers."""
    found: dict[tuple[int, tuple[str, ...], str], dict[int, int]] = {}
    for question in scores.questions:
        for label, grade in zip(question.shown, question.grades, strict=True):
            found.setdefault((question.example, tuple(sorted(question.shown)), label), {})[question.order] = grade
    both = [(key[0], orders[0], orders[1]) for key, orders in found.items() if {0, 1} <= set(orders)]
    return agreement(
        [first for _, first, _ in both],
        [second for _, _, second in both],
        [scores.patients[example] for example, _, _ in both],
        scores.draws,
        GRADES,
    )


def _with_people(
    scores: _Scores, means: Mapping[str, FloatArray], labels: Sequence[str], human: HumanGrades
) -> dict[str, Any]:
    """Measure how far single readings of the judge agree with people; each answer counts the same in all."""
    readings = [
        (question.example, label, grade)
        for question in scores.questions
        for label, grade in zip(question.shown, question.grades, strict=True)
        if (scores.examples[question.example], label) in human
    ]
    number: dict[tuple[int, str], int] = {}
    for example, label, _ in readings:
        number[example, label] = number.get((example, label), 0) + 1
    people = {
        label: np.asarray([human.get((example, label), np.nan) for example in scores.examples], dtype=np.float64)
        for label in labels
    }
    by_answers = {}
    for label in labels:
        known = np.isfinite(people[label]) & np.isfinite(means[label])
        by_answers[label] = {
            "examples": int(known.sum()),
            "human": scores.estimate(people[label], known),
            "judge": scores.estimate(means[label], known),
        }
    return agreement(
        [human[scores.examples[example], label] for example, label, _ in readings],
        [grade for _, _, grade in readings],
        [scores.patients[example] for example, _, _ in readings],
        scores.draws,
        GRADES,
        weights=[1 / number[example, label] for example, label, _ in readings],
    ) | {"answers": len(number), "not_judged": len(human) - len(number), "by_answers": by_answers}
