"""The table of a grid's cells before it starts: what runs, how much it reads, and about how long that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from clinstack.study.cost import Cost
from clinstack.study.grid import GridCell
from clinstack.study.words import duration


def cost_table(cells: Sequence[GridCell], costs: Mapping[str, Cost], workers: int, title: str) -> Table:
    """Return a row for each base and stack, with Runs, trials of their searches, tokens and time.

    Parameters
    ----------
    cells : sequence of GridCell
        Those that are left to do.
    costs : mapping of cell name to Cost
    workers : int
        At a time; the foot has the whole time over them.
    title : str
    """
    total = sum(costs[one.cell.name].seconds for one in cells)
    table = Table(title=title, title_style="", box=SIMPLE_HEAD, show_footer=True)
    runs = sum(one.role != "search" for one in cells)
    trials = sum(_trials(one) for one in cells)
    tokens = sum(costs[one.cell.name].tokens for one in cells)
    table.add_column("base", footer=f"{len(cells)} cells", no_wrap=True)
    table.add_column("stack", no_wrap=True, overflow="fold")
    for name, foot in (
        ("Runs", f"{runs:,}"),
        ("trials", f"{trials:,}"),
        ("tokens", f"{tokens / 1e6:,.1f} M"),
        ("time", duration(total)),
    ):
        table.add_column(name, footer=foot, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[GridCell]] = {}
    for one in cells:
        groups.setdefault((one.base.name, one.spec.label if one.spec else one.role), []).append(one)
    for (base, stack), group in groups.items():
        table.add_row(
            base,
            stack,
            f"{sum(one.role != 'search' for one in group):,}",
            f"{sum(_trials(one) for one in group):,}",
            f"{sum(costs[one.cell.name].tokens for one in group) / 1e6:,.1f} M",
            duration(sum(costs[one.cell.name].seconds for one in group)),
        )
    longest = max((costs[one.cell.name].seconds for one in cells), default=0.0)
    at_a_time = f"{workers} at a time" if workers > 1 else "one after another"
    table.caption = (
        f"About {duration(max(longest, total / workers))} with {at_a_time}: an estimate from tokens, parameters and a "
        "measured second of this machine."
    )
    return table


def _trials(one: GridCell) -> int:
    return one.trials if one.role == "search" else 0
