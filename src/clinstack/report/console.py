"""The report's main tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clinstack.report.judged import judged_runs, judged_tables
from clinstack.report.sentences import headline_task
from clinstack.report.summary import Summary
from clinstack.report.tables.answers import console_table
from clinstack.report.tables.cells import Table
from clinstack.report.tables.language import perplexity_table
from clinstack.report.tables.outcomes import auroc_table, difference_table

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_HEAD = 34
"""Columns of a terminal for the head of a row."""


def console_tables(summary: Summary) -> list[RichTable]:
    """Return the Table-2-like and Table-3-like tables and the paired differences, those that are not empty.

    Rows carry their keys, which are shorter than the paper's names and those of the run folders; differences are those
    of the mean over tasks. Every title says when patients or model are not real.
    """
    task = headline_task(summary)
    tables = [perplexity_table(summary), auroc_table(summary, name=str)]
    tables += [difference_table(summary, [task])] if task else []
    tables += [table] if (table := console_table(summary.answers)) else []
    tables += judged_tables(judged_runs(summary.data.further))
    return [rich_table(table, summary.data.caveat) for table in tables if table.rows]


def rich_table(table: Table, caveat: str) -> RichTable:
    """Return a table as the terminal shows it; its title says ``caveat`` too."""
    from rich import box
    from rich.table import Table as NewTable
    from rich.text import Text

    title = table.title + (f" ({caveat.lower()})" if caveat else "")
    shown = NewTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.min_width = len(title) + 1  # a title is otherwise broken at the width of its table
    single = len(table.columns) == 2
    # A long head, such as that of a base's row, goes over several lines before a figure is cut.
    long = max((len(name) for name, _ in table.rows), default=0) > _HEAD
    shown.add_column(table.columns[0], no_wrap=not long, max_width=_HEAD if long else None)
    for column in [*table.columns[1:], *(["95 % interval"] if single else [])]:
        shown.add_column(column, justify="right")
    for place, (name, cells) in enumerate(table.rows):
        if place in table.groups:
            shown.add_row(Text(table.groups[place], style="italic"))
        texts = []
        for cell in cells:
            text = Text(cell.text, style="bold" if cell.strong else "")
            small = [*cell.details, *([f"paper {cell.paper}"] if cell.paper else [])]
            if single:
                texts += [text, Text("; ".join(small), style="dim")]
            else:
                texts.append(text.append("".join(f"\n{part}" for part in small), style="dim not bold"))
        shown.add_row(Text(name), *texts)
    return shown
