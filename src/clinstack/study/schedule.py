"""The order of a grid's cells: what others wait for, then the cheap ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clinstack.study.grid import GridCell


def in_order(cells: Sequence[GridCell], seconds: Mapping[str, float]) -> list[GridCell]:
    """Return cells in the order in which they are started as far as their needs allow.

    Pretrainings first, since whole stacks wait for them; then the cells that compute features which others share; then
    by estimated cost, the cheap ones first, so that most of the table is there early.

    Parameters
    ----------
    cells : sequence of GridCell
    seconds : mapping of cell name to float
        Estimated.
    """
    leaders = {name for one in cells for name in one.cell.after}

    def rank(one: GridCell) -> tuple[int, float]:
        leads = one.cell.name in leaders and not one.cell.after
        first = 0 if one.role == "pretrain" else 1 if leads else 2
        return first, seconds[one.cell.name]

    return sorted(cells, key=rank)
