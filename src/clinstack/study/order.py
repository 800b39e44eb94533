"""The order of a study's rows by test perplexity, and whether the notes can tell the first two apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.evaluate.bootstrap import draw_patients, estimate
from clinstack.evaluate.predictions import LOSS_COLUMNS, read_split
from clinstack.report.tables.cells import interval, number, perplexity_digits
from clinstack.study.row import Row

PAPERS_FIRST = "lora"
"""The method with the lowest test perplexity on both of the paper's bases."""


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one base by test perplexity, the lowest first."""
    return sorted(rows, key=_value)


def _value(row: Row) -> float:
    test = row.perplexity("test")
    return float("inf") if test is None or test["value"] is None else float(test["value"])


def paired_ratio(order: Sequence[Row], resamples: int, seed: int) -> dict[str, Any] | None:
    """Return the first row's test perplexity over the second's, on the same notes in each resample of patients.

    Parameters
    ----------
    order : sequence of Row
        From `ranked`.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict or None
        ``{"value", "interval"}``; None when there is only one row, or when they were measured on different notes.
    """
    if len(order) < 2:
        return None
    tables = [read_split(row.run.folder / "losses.parquet", LOSS_COLUMNS, "test") for row in order[:2]]
    first, second = (table.sort_by("note_id") for table in tables)
    if first["note_id"].to_pylist() != second["note_id"].to_pylist():
        return None
    patient_ids = [str(patient) for patient in first["patient_id"].to_pylist()]
    draws = draw_patients(patient_ids, resamples, seed)
    weights = np.vstack([np.ones(len(patient_ids)), draws.weights(patient_ids)])
    logarithms = [weights @ _numbers(one, "nll") / (weights @ _numbers(one, "tokens")) for one in (first, second)]
    ratios = np.exp(logarithms[0] - logarithms[1])
    return dict(estimate(float(ratios[0]), ratios[1:]))


def _numbers(table: pa.Table, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(table[column].to_pylist(), dtype=np.float64)


def order_sentences(order: Sequence[Row], pair: dict[str, Any] | None, place: str) -> list[str]:
    """Say in words what came first, whether it is LoRA as in the paper, and what is no better than the base.

    Parameters
    ----------
    order : sequence of Row
        From `ranked`.
    pair : dict or None
        From `paired_ratio`.
    place : str
        The base's name, where there are several; else empty.
    """
    listed = [f"{row.name} {_perplexity(row)}" for row in order]
    on = f" on {place}" if place else ""
    if len(order) == 1:
        return [f"One method{on}: {listed[0]}."]
    sentence = f"By test perplexity{on} the order is {', '.join(listed)}"
    methods = [row.method for row in order]
    if any(row.paper for row in order) and PAPERS_FIRST in methods:
        at = methods.index(PAPERS_FIRST)
        sentence += (
            "; LoRA is first, as in the paper"
            if at == 0
            else f"; LoRA, which is first in the paper, is {_ordinal(at + 1)} here"
        )
    sentences = [sentence + "."]
    if pair is not None and pair["interval"] is not None:
        low, high = pair["interval"]
        verdict = "" if high < 1 or low > 1 else ": these notes do not tell the two apart"
        sentences.append(
            f"{order[0].name} over {order[1].name}, on the same notes: {number(pair['value'])} times the perplexity "
            f"(95 % interval {interval(pair['interval'])}){verdict}."
        )
    worse = [row.name for row in order if _not_below_base(row)]
    if worse:
        sentences.append(f"No better than the unchanged base: {', '.join(worse)}.")
    return sentences


def _perplexity(row: Row) -> str:
    value = _value(row)
    return number(value, perplexity_digits(value))


def _not_below_base(row: Row) -> bool:
    base = row.perplexity("test", "base")
    return base is not None and base["value"] is not None and _value(row) >= base["value"]


def _ordinal(place: int) -> str:
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
    return words[place - 1] if place <= len(words) else f"number {place}"
