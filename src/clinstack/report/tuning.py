"""Runs of instruct and align in a report: what training did to the references, before anybody generates an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from clinstack.report.collect import RunRecord
from clinstack.report.tables.cells import Cell, Table, count, figure, perplexity_digits

_SPLITS = (("test", "test"), ("validation", "validation"), ("validation_chosen", "validation"))


def tuning_tables(runs: Sequence[RunRecord]) -> list[Table]:
    """Return the tables of instruct and align Runs that have something in them.

    Parameters
    ----------
    runs : sequence of RunRecord
        Others are passed over.
    """
    tables = [_instruct_table(runs), _align_table(runs)]
    return [table for table in tables if table.rows]


def _instruct_table(runs: Sequence[RunRecord]) -> Table:
    rows = []
    for name, run, split, test in _measured(runs, "instruct"):
        cells = [_perplexity(test, which) for which in ("base", "adapted")]
        cells += [figure(test.get("ratio"), 2), count(test.get("examples")), count(test.get("tokens")), Cell(split)]
        rows.append((name, [*cells, count(run.stack.get("trainable_parameters"))]))
    return Table(
        "instruct",
        "How well the reference answers are predicted",
        "Perplexity of the tokens of the reference answers after their prompts, with all adapters off and on; lower is "
        "better. Base over tuned is how many times lower it became. 95 % intervals over patients.",
        ["Stack", "Base", "Tuned", "Base over tuned", "Answers", "Tokens", "Patients", "Trainable parameters"],
        rows,
    )


def _perplexity(test: dict[str, Any], which: str) -> Cell:
    found = test.get(which, {}).get("perplexity")
    return figure(found, perplexity_digits(found["value"] if found else None))


def _align_table(runs: Sequence[RunRecord]) -> Table:
    rows = []
    for name, _, split, test in _measured(runs, "align"):
        prefers = test.get("prefers_chosen", {})
        cells = [figure(prefers.get("before")), figure(prefers.get("after"))]
        cells += [figure(prefers.get("difference"), signed=True), figure(test.get("reward_accuracy"))]
        rows.append((name, [*cells, count(test.get("pairs")), Cell(split)]))
    return Table(
        "align",
        "Which answer of a pair is the likelier one",
        "The share of pairs whose preferred answer is more probable than the other, before and after training, and "
        "the share whose preferred answer gained more (reward accuracy). 95 % intervals over patients.",
        ["Stack", "Before", "After", "Difference", "Reward accuracy", "Pairs", "Patients"],
        rows,
    )


def _measured(runs: Sequence[RunRecord], stage: str) -> list[tuple[str, RunRecord, str, dict[str, Any]]]:
    """Return the Runs of a stage with the name of their row, a split, and what they say of it: of test if they can."""
    chosen = [run for run in runs if run.stage == stage]
    often = Counter(run.label for run in chosen)
    measured = []
    for run in chosen:
        found = next(((name, key) for key, name in _SPLITS if isinstance(run.metrics.get(key), dict)), None)
        if found is not None:
            name = f"{run.label} ({run.name})" if often[run.label] > 1 else run.label
            measured.append((name, run, found[0], run.metrics[found[1]]))
    return measured
