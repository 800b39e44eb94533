"""What tables are made of, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A figure, what stands small beside it, and whether it is bold.

    Parameters
    ----------
    text : str
    detail : str
        Mostly its interval.
    strong : bool
    paper : str
        What the paper prints in this place, with its digits.
    """

    text: str
    detail: str = ""
    strong: bool = False
    paper: str = ""

    @property
    def details(self) -> list[str]:
        """The parts of the detail, for places with a line for each."""
        return [part for part in self.detail.split("; ") if part]


@dataclass(frozen=True)
class Table:
    """A table with a header row and a header column.

    Parameters
    ----------
    key : str
        Anchor in the page, and name of its file.
    title, note : str
        Caption, and how to read it.
    columns : sequence of str
        Column heads, that of the header column first.
    rows : list of (str, list of Cell)
    words : bool
        Whether the cells are words, aligned left, rather than numbers.
    groups : mapping of row number to str
        What stands above a row and those that follow it, such as the name of a base.
    folded : bool
        Whether the page shows it only when asked.
    prose : bool
        Whether the cells are sentences, which want lines of their own.
    foreign : bool
        Whether all its figures are the paper's, of which what a page says of its own patients and models is not true.
    """

    key: str
    title: str
    note: str
    columns: Sequence[str]
    rows: list[tuple[str, list[Cell]]]
    words: bool = False
    groups: Mapping[int, str] = field(default_factory=dict)
    folded: bool = False
    prose: bool = False
    foreign: bool = False

    @property
    def has_paper(self) -> bool:
        """Whether figures of the paper stand in it."""
        return any(cell.paper for _, cells in self.rows for cell in cells)


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number with a true minus sign, and a plus sign if ``signed``.

    A bound that rounds to zero keeps its sign, so that one can see on which side of zero it lies.
    """
    if value == 0:
        return f"{0:.{digits}f}"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write an interval as ``low to high``; empty when there is none."""
    if bounds is None:
        return ""
    return " to ".join(number(bound, digits, signed=signed) for bound in bounds)


def figure(
    estimate: Mapping[str, Any] | None,
    digits: int = 3,
    *,
    signed: bool = False,
    strong: bool = False,
    paper: str = "",
) -> Cell:
    """Return the cell of an estimate, a dash when there is none."""
    if estimate is None or estimate["value"] is None:
        return Cell(MISSING, paper=paper)
    value = number(estimate["value"], digits, signed=signed)
    return Cell(value, interval(estimate["interval"], digits, signed=signed), strong, paper)


def over_seeds(estimates: Sequence[Mapping[str, Any] | None], digits: int = 3) -> Cell:
    """Return the cell of a figure that was measured once for each seed: its mean, and how far the seeds lie apart.

    The intervals of single Runs do not add up to one of their mean, so with several seeds none is shown.
    """
    known = [estimate for estimate in estimates if estimate is not None and estimate["value"] is not None]
    if len(known) <= 1:
        return figure(known[0] if known else None, digits)
    values = [float(estimate["value"]) for estimate in known]
    return Cell(number(sum(values) / len(values), digits), interval((min(values), max(values)), digits))


def count(value: float | None) -> Cell:
    """Return a whole number with thousands separated."""
    return Cell(MISSING if value is None else f"{value:,.0f}")


def duration(seconds: float | None) -> Cell:
    """Return a time in the unit that suits it."""
    if seconds is None:
        return Cell(MISSING)
    if seconds < 100:
        return Cell(f"{seconds:.1f} s")
    return Cell(f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h")


def perplexity_digits(value: float | None) -> int:
    """Return how many decimals a perplexity needs."""
    return 1 if value is None or value >= 20 else 2


def p_value(value: float | None) -> str:
    """Write a p value; empty when there is none."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def excludes_zero(estimate: Mapping[str, Any] | None, *, above: bool) -> bool:
    """Whether the whole interval lies above (or below) zero."""
    if estimate is None or estimate["interval"] is None:
        return False
    low, high = estimate["interval"]
    return bool(low > 0 if above else high < 0)


def holds(estimate: Mapping[str, Any] | None, *, above: bool) -> bool:
    """Whether a difference above (or below) zero holds after Holm's correction over the comparison's differences."""
    if estimate is None or estimate["value"] is None or not estimate["holds"]:
        return False
    return bool(estimate["value"] > 0 if above else estimate["value"] < 0)
