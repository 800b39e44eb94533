"""Answers to questions about notes: how near they are to the reference, what of them the note says, what is refused.

Each answer is measured once (`measure_answers`), in numbers that hold no text; figures with their intervals are made of
those (`text_metrics`). Every figure is a ratio of two sums over answers, so one bootstrap over patients serves them
all.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.evaluate.auroc import FloatArray
from clinstack.evaluate.bootstrap import PatientDraws, draw_patients, estimate
from clinstack.evaluate.predictions import read_split
from clinstack.notes.grounding import check_grounding, is_refusal
from clinstack.notes.instructions import Instructions

LIST_TASKS = (
    "Named Entity Recognition",
    "Abbreviation Expansion",
    "Relation Extraction",
    "Temporal Information Extraction",
)
"""Tasks of Asclepius whose answers are lists of items."""
ROUGES = ("rouge1", "rouge2", "rougeL")
METRICS = (
    "token_f1",
    "exact_match",
    "item_f1",
    *ROUGES,
    "grounding",
    "grounded_answers",
    "refusal_sensitivity",
    "refusal_specificity",
    "empty",
    "cut",
    "answer_tokens",
)
MEASURES = pa.schema(
    [
        ("example_id", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("answerable", pa.bool_()),
        ("exact_match", pa.bool_()),
        ("token_f1", pa.float64()),
        ("item_f1", pa.float64()),
        *((name, pa.float64()) for name in ROUGES),
        ("facts", pa.int64()),
        ("facts_missing", pa.int64()),
        ("refused", pa.bool_()),
        ("empty", pa.bool_()),
        ("cut", pa.bool_()),
        ("answer_tokens", pa.int64()),
    ]
)
"""Columns of ``measures.parquet``, one row for each answer. ``answerable`` is null where the table does not say it,
``item_f1`` where the task has no list."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# What stands between two digits belongs to the number: without its point 1.5 mg would be 15 mg.
_PUNCTUATION = re.compile(
    rf"(?<=\d),(?=\d{{3}}(?!\d))|(?<!\d)[{re.escape(string.punctuation)}]|[{re.escape(string.punctuation)}](?!\d)"
)
_BARE_POINT = re.compile(r"(?<!\S)\.(?=\d)")
_ITEM_BORDER = re.compile(r"[\n;]|,(?!\d)")
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s+")


def normalise(text: str) -> str:
    """Return a text as answers are compared: small letters, no punctuation, no English articles, single blanks.

    As SQuAD's official script does (Rajpurkar et al. 2016, section 5; ``evaluate-v1.1.py``), but for what stands
    between two digits: "1.5", "120/80" and "2150-03-04" stay, "1,000" becomes "1000", and ".5" becomes "0.5".
    """
    lowered = _PUNCTUATION.sub("", _BARE_POINT.sub("0.", text.lower()))
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words of an answer, counted as often as they occur (Rajpurkar et al. 2016, section 5).

    With c words in common, ``precision = c / words of the answer``, ``recall = c / words of the reference``. Where one
    of them is empty it is 1 if both are, else 0, as in SQuAD 2.0.
    """
    ours, theirs = normalise(answer).split(), normalise(reference).split()
    return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def items(text: str) -> set[str]:
    """Return the items of a list that is separated by commas, semicolons or line ends, normalised; bullets go."""
    parts = (normalise(_BULLET.sub("", part)) for part in _ITEM_BORDER.split(text))
    return {part for part in parts if part}


def item_f1(answer: str, reference: str) -> float:
    """Return the F1 of two lists as sets of items: their order does not matter, and an item is right or wrong."""
    ours, theirs = items(answer), items(reference)
    return _f1(len(ours & theirs), len(ours), len(theirs))


def _f1(common: int, ours: int, theirs: int) -> float:
    if ours == 0 or theirs == 0:
        return float(ours == theirs)
    return 2 * common / (ours + theirs)


def measure_answers(
    examples: Instructions,
    answers: Sequence[str],
    split: str,
    cut: Sequence[bool],
    tokens: Sequence[int],
) -> pa.Table:
    """Measure each answer against its reference and its note.

    Parameters
    ----------
    examples : Instructions
    answers : sequence of str
        In the order of the examples.
    split : str
        Of all of them.
    cut : sequence of bool
        Whether each had no end where its length ended.
    tokens : sequence of int
        Of each answer.

    Returns
    -------
    pyarrow.Table
        With the columns of `MEASURES`. ROUGE is the F measure of the package ``rouge-score`` without its stemmer (Lin
        2004); it sees ASCII letters and digits only.
    """
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(list(ROUGES))
    lists = {name.casefold() for name in LIST_TASKS}
    rows: dict[str, list[Any]] = {name: [] for name in MEASURES.names}
    for place, answer in enumerate(answers):
        reference, task = examples.answers[place], examples.tasks[place]
        rouge = scorer.score(reference, answer)
        grounding = check_grounding(answer, examples.notes[place])
        values: dict[str, Any] = {
            "example_id": examples.example_ids[place],
            "patient_id": examples.patient_ids[place],
            "split": split,
            "task": task,
            "answerable": None if examples.answerable is None else examples.answerable[place],
            "exact_match": normalise(answer) == normalise(reference),
            "token_f1": token_f1(answer, reference),
            "item_f1": item_f1(answer, reference) if task.casefold() in lists else None,
            **{name: rouge[name].fmeasure for name in ROUGES},
            "facts": grounding.checked,
            "facts_missing": grounding.missing,
            "refused": is_refusal(answer),
            "empty": not answer.strip(),
            "cut": bool(cut[place]),
            "answer_tokens": int(tokens[place]),
        }
        for name, value in values.items():
            rows[name].append(value)
    return pa.table(rows, schema=MEASURES)


@dataclass(frozen=True)
class Ratios:
    """The figures of a table of measures as ratios of sums over patients.

    Parameters
    ----------
    names : tuple of str
        Those of `METRICS` that the table has something for.
    numerators, denominators : array of float, shape (patients, names)
    """

    names: tuple[str, ...]
    numerators: FloatArray
    denominators: FloatArray

    def values(self, weights: FloatArray | None = None) -> FloatArray:
        """Return the figures, shape (names,), or with weights of shape (resamples, patients) one row for each.

        NaN where the denominator is 0, such as in a resample without any unanswerable question.
        """
        if weights is None:
            return np.asarray(self.values(np.ones((1, len(self.numerators))))[0])
        with np.errstate(invalid="ignore", divide="ignore"):
            quotient = (weights @ self.numerators) / (weights @ self.denominators)
        return np.asarray(quotient)

    def estimates(self, draws: PatientDraws) -> dict[str, dict[str, object]]:
        """Return each figure with its percentile interval over patients."""
        values, resampled = self.values(), self.values(draws.counts.T)
        return {name: estimate(float(values[at]), resampled[:, at]) for at, name in enumerate(self.names)}


def ratios(table: pa.Table, draws: PatientDraws) -> Ratios:
    """Sum the measures of a table by patient, in the order of the draws' patients."""
    columns = {
        name: np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        for name in MEASURES.names[4:]
    }
    parts = _parts(columns)
    place = np.searchsorted(draws.patients, np.asarray(table["patient_id"].to_pylist(), dtype=np.str_))
    sums = np.zeros((2, len(draws.patients), len(parts)))
    for at, pair in enumerate(parts.values()):
        for side, values in enumerate(pair):
            np.add.at(sums[side, :, at], place, values)
    return Ratios(tuple(parts), sums[0], sums[1])


def _parts(columns: Mapping[str, FloatArray]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return numerator and denominator of each figure for each answer; figures without any denominator are left out."""
    one = np.ones_like(columns["token_f1"])
    has_items = np.isfinite(columns["item_f1"]).astype(np.float64)
    facts, missing = columns["facts"], columns["facts_missing"]
    with_facts = (facts > 0).astype(np.float64)
    refused = columns["refused"]
    answerable, unanswerable = (np.asarray(columns["answerable"] == wanted, dtype=np.float64) for wanted in (1, 0))
    found = {
        "token_f1": (columns["token_f1"], one),
        "exact_match": (columns["exact_match"], one),
        "item_f1": (np.nan_to_num(columns["item_f1"]), has_items),
        **{name: (columns[name], one) for name in ROUGES},
        "grounding": (facts - missing, facts),
        "grounded_answers": (with_facts * (missing == 0), with_facts),
        "refusal_sensitivity": (unanswerable * refused, unanswerable),
        "refusal_specificity": (answerable * (1 - refused), answerable),
        "empty": (columns["empty"], one),
        "cut": (columns["cut"], one),
        "answer_tokens": (columns["answer_tokens"], one),
    }
    return {name: found[name] for name in METRICS if found[name][1].any()}


def text_metrics(
    measures: Path | pa.Table, resamples: int = 1000, seed: int = 0, split: str = "test"
) -> dict[str, Any]:
    """Compute the figures of a split, overall and by task.

    Parameters
    ----------
    measures : Path or pyarrow.Table
        With the columns of `MEASURES`.
    resamples, seed : int
        Of the bootstrap over patients; all figures share the same draws.
    split : {"test", "validation", "train"}

    Returns
    -------
    dict
        For each of `METRICS` that there is something for ``{"value", "interval"}``; counts of ``examples``,
        ``patients``, ``facts`` and, where known, of ``unanswerable`` questions; ``by_task`` with the same keys.
        ``token_f1``, ``exact_match`` and the ROUGEs are means over answers, ``item_f1`` over those whose task has
        lists; ``grounding`` is the share of all facts that the note holds, ``grounded_answers`` the share, of the
        answers with a fact, that hold no other; ``refusal_sensitivity`` the share of the unanswerable questions that
        were refused, ``refusal_specificity`` that of the answerable ones that were not; ``empty`` and ``cut`` are
        shares of answers, ``answer_tokens`` is their mean length.

    Raises
    ------
    InputError
        The table is missing, lacks a column, or has no row of the split.
    """
    table = read_split(measures, MEASURES.names, split)
    draws = draw_patients(table["patient_id"].to_pylist(), resamples, seed)
    tasks = np.asarray(table["task"].to_pylist(), dtype=np.str_)
    return {
        "split": split,
        **_figures(table, draws),
        "by_task": {
            name: _figures(table.filter(pa.array(tasks == name)), draws) for name in sorted(set(tasks.tolist()))
        },
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed, "level": 0.95},
    }


def _figures(table: pa.Table, draws: PatientDraws) -> dict[str, Any]:
    known = [value for value in table["answerable"].to_pylist() if value is not None]
    return {
        "examples": table.num_rows,
        "patients": len(set(table["patient_id"].to_pylist())),
        "facts": sum(table["facts"].to_pylist()),
        **({"unanswerable": known.count(False)} if known else {}),
        **ratios(table, draws).estimates(draws),
    }
