"""The report's main tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clinstack.report.sentences import headline_task
from clinstack.report.summary import Summary
from clinstack.report.tables import Table, auroc_table, difference_table, perplexity_table

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def console_tables(summary: Summary) -> list[RichTable]:
    """Return the Table-2-like and Table-3-like tables and the paired differences, those that are not empty.

    Rows carry the stacks' labels, which are shorter than the paper's names and those of the run folders; differences
    are those of the mean over tasks. Every title says when patients or model
    are not real.
    """
    task = headline_task(summary)
    tables = [perplexity_table(summary), auroc_table(summary, name=str)]
    tables += [difference_table(summary, [task])] if task else []
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
    shown.add_column(table.columns[0], no_wrap=True)
    for column in [*table.columns[1:], *(["95 % interval"] if single else [])]:
        shown.add_column(column, justify="right")
    for name, cells in table.rows:
        texts = []
        for cell in cells:
            text = Text(cell.text, style="bold" if cell.strong else "")
            if single:
                texts += [text, Text(cell.detail, style="dim")]
            else:
                texts.append(text.append(f"\n{cell.detail}" if cell.detail else "", style="dim not bold"))
        shown.add_row(Text(name), *texts)
    return shown
