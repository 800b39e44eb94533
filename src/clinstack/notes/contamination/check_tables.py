"""What `clinstack prepare check` found, as people and as programs read it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from clinstack.notes.contamination.leakage import largest_gap

_MEANING = {
    "splits": "Between the splits of a task",
    "tasks": "Between tasks (trained on in another)",
    "pretraining": "Between notes for pretraining and held-out examples",
}
_COLUMNS = {
    "splits": ("kind", "task", "splits"),
    "tasks": ("kind", "held out in", "split"),
    "pretraining": ("kind", "notes of", "task", "split"),
}


def contamination_tables(report: dict[str, Any]) -> list[RenderableType]:
    """Lay out the counts of ``contamination.json``: a table, and a line on what was compared and dropped."""
    compared = report["compared"]
    notes = compared.get("notes", 0)
    corpus = f"{notes:,} notes" if notes else "no notes (there are none to pretrain on)"
    short = sum(count for name, count in compared.items() if name.endswith("_too_short"))
    lines: list[RenderableType] = [
        f"Compared {compared.get('held_out_examples', 0):,} held-out examples with "
        f"{compared.get('train_examples', 0):,} training examples and {corpus}; "
        f"{short:,} texts of fewer than {report['minimum_words']} words left aside."
    ]
    if not report["found"]:
        lines.append(f"[green]No text is shared at a similarity of {report['threshold']:g} or more, and no identifier.")
    else:
        lines += [_pairs_table(between, report["found"]) for between in _MEANING]
    if report["dropped"] is not None:
        total = sum(sum(files.values()) for files in report["dropped"].values())
        lines.append(f"Left out {total:,} rows of the training side.")
        lines += [
            f"  {escape(folder)}/{escape(name)}: {count:,}"
            for folder, files in report["dropped"].items()
            for name, count in files.items()
        ]
    elif report["found"]:
        lines.append("[yellow]--drop leaves the training side of these pairs out.")
    return lines


def _pairs_table(between: str, found: list[dict[str, Any]]) -> RenderableType:
    rows = [row for row in found if row["between"] == between]
    if not rows:
        return f"{_MEANING[between]}: nothing."
    table = Table(title=_MEANING[between])
    for name in _COLUMNS[between]:
        table.add_column(name, overflow="fold")
    for name in ("pairs", "held-out rows")[: 1 if between == "tasks" else 2]:
        table.add_column(name, justify="right")
    merged: dict[tuple[str, ...], int] = {}
    for row in rows:
        task, split = row["held_out"].rsplit("/", 1)
        sides: tuple[str, ...] = (task, split)
        if between == "splits":
            sides = (task, f"{row['other'].rsplit('/', 1)[1]} → {split}")
        elif between == "pretraining":
            sides = (row["other"].removeprefix("notes of "), task, split)
        else:
            # Every pair of tasks would fill pages; contamination.json has them.
            merged[row["kind"], *sides] = merged.get((row["kind"], *sides), 0) + row["pairs"]
            continue
        table.add_row(row["kind"], *map(escape, sides), f"{row['pairs']:,}", f"{row['held_out_rows']:,}")
    for key, pairs in sorted(merged.items()):
        table.add_row(*map(escape, key), f"{pairs:,}")
    return table


def leakage_tables(rows: list[dict[str, Any]]) -> list[RenderableType]:
    """Lay out the rows of `check_leakage`: a line for each split, and the phrases of each task."""
    table = Table(title="Phrases that may give the label away")
    for name in ("task", "split"):
        table.add_column(name, no_wrap=True)
    table.add_column("examples with one", justify="right", no_wrap=True)
    table.add_column("label with / without", overflow="fold")
    phrases: dict[str, Counter[str]] = {}
    for row in rows:
        gap = largest_gap(row)
        told = f"{gap[0]}: {gap[1]:.0%} / {gap[2]:.0%}" if gap else "-"
        share = f" ({row['with_phrase'] / row['examples']:.0%})" if row["examples"] else ""
        task = "" if row["task"] in phrases else row["task"]
        table.add_row(escape(task), row["split"], f"{row['with_phrase']:,} of {row['examples']:,}{share}", escape(told))
        phrases.setdefault(row["task"], Counter()).update(row["phrases"])
    lines: list[RenderableType] = [table]
    for task, counts in phrases.items():
        found = [f"{name} {count:,}" for name, count in counts.most_common() if count]
        lines.append(escape(f"  {task}: {', '.join(found) or 'none'}"))
    return lines


def summary_line(report: dict[str, Any], leakage: list[dict[str, Any]]) -> str:
    """Return both reports as one line of JSON, without the single pairs."""
    content = {key: value for key, value in report.items() if key != "pairs"} | {"leakage": leakage}
    return json.dumps(content, ensure_ascii=False)
