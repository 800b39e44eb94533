"""Which rows a figure shows: all of few, and of many those that a reader looks for."""

from __future__ import annotations

from clinstack.report.summary import Summary

MOST = 8


def shown_rows(summary: Summary, task: str) -> list[str]:
    """Return the rows that have a task: all of at most `MOST`, or of each base the best row and its reference."""
    data = summary.data
    known = scored_rows(summary, task)
    if len(known) <= MOST:
        return known
    chosen: list[str] = []
    for rows in data.bases.values():
        own = [row.key for row in rows if row.key in known]
        if not own:
            continue
        best = max(own, key=lambda key: _value(summary, key, task))
        reference = data.reference_of(best)
        chosen += [key for key in own if key in (best, reference)]
    best_first = sorted(chosen, key=lambda key: -_value(summary, key, task))[:MOST]
    return [key for key in data.stacks if key in best_first]


def left_out_sentence(summary: Summary, task: str) -> str:
    """Say that a figure does not show all rows; empty when it does."""
    known = scored_rows(summary, task)
    if len(known) <= MOST:
        return ""
    return f" Of {len(known)} rows the best of each base and the one it is held against, at most {MOST}."


def scored_rows(summary: Summary, task: str) -> list[str]:
    """Return the rows that have a figure on a task."""
    return [stack for stack in summary.data.finetune[task] if summary.auroc(stack, task) is not None]


def _value(summary: Summary, key: str, task: str) -> float:
    estimate = summary.auroc(key, task)
    return float("-inf") if estimate is None else float(estimate["value"])
