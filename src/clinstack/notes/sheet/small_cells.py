"""Hiding small counts in tables that leave the building, and what they could be worked out from."""

from __future__ import annotations

from collections.abc import Sequence

Cell = int | str
HIDDEN = "hidden"
"""Stands for a count that is not small itself, but would give a small one away by subtraction."""


def small_cell(threshold: int) -> str:
    """Return what stands for a count from 1 to ``threshold - 1``, such as ``<10``."""
    return f"<{threshold}"


def hide_small_cells(
    counts: Sequence[Sequence[int]], threshold: int, *, total_column: bool = False, total_row: bool = False
) -> list[list[Cell]]:
    """Replace small counts of a table, and the counts that they could be worked out from.

    A count from 1 to ``threshold - 1`` becomes ``<threshold``; zeros stay. Where a line adds up to a total that is
    shown and only one of its cells is replaced, the smallest other one is hidden too, until no single cell is left
    alone in its line.

    Parameters
    ----------
    counts : sequence of rows of int, shape (rows, columns)
    threshold : int
        1 or less hides nothing.
    total_column, total_row : bool
        Whether the last column, or row, is the sum of the others.

    Returns
    -------
    list of rows of int or str, shape (rows, columns)
    """
    shown: list[list[Cell]] = [list(row) for row in counts]
    if threshold <= 1:
        return shown
    for row in shown:
        for column, value in enumerate(row):
            if isinstance(value, int) and 0 < value < threshold:
                row[column] = small_cell(threshold)
    width = len(shown[0]) if shown else 0
    lines: list[list[tuple[int, int]]] = []
    if total_column:
        lines += [[(row, column) for column in range(width)] for row in range(len(shown))]
    if total_row:
        lines += [[(row, column) for row in range(len(shown))] for column in range(width)]
    changed = True
    while changed:
        changed = False
        for line in lines:
            if sum(isinstance(shown[row][column], str) for row, column in line) == 1:
                changed = _hide_one_more(shown, counts, line) or changed
    return shown


def _hide_one_more(shown: list[list[Cell]], counts: Sequence[Sequence[int]], line: list[tuple[int, int]]) -> bool:
    """Hide the smallest count of a line that still stands, the total last; return whether there was one."""
    *parts, total = line
    standing = [(row, column) for row, column in parts if isinstance(shown[row][column], int) and counts[row][column]]
    standing.sort(key=lambda place: counts[place[0]][place[1]])
    if not standing and isinstance(shown[total[0]][total[1]], int):
        standing = [total]
    if not standing:
        return False
    row, column = standing[0]
    shown[row][column] = HIDDEN
    return True
