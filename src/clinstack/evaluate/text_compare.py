"""Two models on the same questions: paired differences of their answers' figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinstack.errors import InputError
from clinstack.evaluate.bootstrap import draw_patients, estimate
from clinstack.evaluate.multiple_comparisons import LEVEL, bootstrap_p, holm
from clinstack.evaluate.predictions import read_split
from clinstack.evaluate.text import MEASURES, ratios

COMPARED = (
    "token_f1",
    "exact_match",
    "item_f1",
    "rougeL",
    "grounding",
    "refusal_sensitivity",
    "refusal_specificity",
)
"""Figures of which more is better, and whose differences are tested."""
BY_TASK = ("token_f1", "grounding")
"""Those that are tested for each task too."""
ALL = "all"
"""Stands in the place of a task for all of them together."""


def compare_answers(
    measures: Mapping[str, Path | pa.Table],
    pairs: Sequence[tuple[str, str]],
    resamples: int = 1000,
    seed: int = 0,
    split: str = "test",
) -> list[dict[str, Any]]:
    """Compute paired differences between the answers of pairs of models.

    Patients are drawn once, so that both models of a pair answer for the same resampled hospital.

    Parameters
    ----------
    measures : mapping of name to Path or pyarrow.Table
        With the columns of `clinstack.evaluate.text.MEASURES`.
    pairs : sequence of (a, b)
        Whose difference a minus b is wanted.
    resamples, seed : int
    split : {"test", "validation", "train"}

    Returns
    -------
    list of dict
        ``{"a", "b", "task", "metric", "value", "interval", "p", "p_holm", "holds"}``; ``task`` is ``all`` or the name
        of one. ``p_holm`` is corrected over all differences of the whole, or over all by task: two families, for two
        questions. ``holds`` says whether it is at most 0.05.

    Raises
    ------
    InputError
        A table is missing or broken, or two of them are not of the same examples.
    """
    tables = {name: read_measures(source, split) for name, source in measures.items()}
    if not tables or not pairs:
        return []
    _check_same_examples(tables)
    first = next(iter(tables.values()))
    draws = draw_patients(first["patient_id"].to_pylist(), resamples, seed)
    tasks = sorted(set(first["task"].to_pylist()))
    # Of a single task the whole is the task itself: one difference, not two to be corrected for.
    parts = {ALL: COMPARED, **(dict.fromkeys(tasks, BY_TASK) if len(tasks) > 1 else {})}
    rows: list[dict[str, Any]] = []
    for task, wanted in parts.items():
        figures = {}
        for name in dict.fromkeys(one for pair in pairs for one in pair):
            table = tables[name] if task == ALL else tables[name].filter(pc.equal(tables[name]["task"], task))
            found = ratios(table, draws)
            figures[name] = (found.names, found.values(), found.values(draws.counts.T))
        for a, b in pairs:
            (ours, value, resampled), (theirs, base, base_resampled) = figures[a], figures[b]
            for metric in wanted:
                if metric not in ours or metric not in theirs:
                    continue
                here, there = ours.index(metric), theirs.index(metric)
                difference = float(value[here] - base[there])
                drawn = np.asarray(resampled[:, here] - base_resampled[:, there])
                rows.append(
                    {"a": a, "b": b, "task": task, "metric": metric}
                    | estimate(difference, drawn)
                    | {"p": bootstrap_p(difference, drawn)}
                )
    for family in ([row for row in rows if (row["task"] == ALL) == whole] for whole in (True, False)):
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
            row["holds"] = adjusted is not None and adjusted <= LEVEL
    return rows


def read_measures(source: Path | pa.Table, split: str) -> pa.Table:
    """Return the measures of a split, sorted by example id; an InputError if they are missing or broken."""
    return read_split(source, MEASURES.names, split).sort_by("example_id")


def same_examples(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables, each sorted by example id, are of the same examples of the same patients."""
    return all(one[name].to_pylist() == other[name].to_pylist() for name in ("example_id", "patient_id", "task"))


def _check_same_examples(tables: Mapping[str, pa.Table]) -> None:
    (first, ours), *others = tables.items()
    for name, theirs in others:
        if not same_examples(ours, theirs):
            raise InputError(
                f"{first} ({ours.num_rows} answers) and {name} ({theirs.num_rows}) are not of the same examples; "
                "generate both with the same instructions, tasks and max_examples."
            )
