"""Shortening a text: which of its tokens are read, or which of its sections.

By whole sections, what matters least goes first, and no section loses a random part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clinstack.model.reading import Reading


class Span(Protocol):
    """A stretch of a text with the name of its section, such as `clinstack.notes.sections.find.SectionSpan`."""

    @property
    def name(self) -> str | None:
        """The section's name, or None."""

    @property
    def start(self) -> int:
        """The first character."""

    @property
    def end(self) -> int:
        """The character after the last."""


def kept_ranges(count: int, room: int, reading: Reading) -> tuple[list[list[range]], range]:
    """Return which tokens of a text are read, and which are not.

    Parameters
    ----------
    count : int
        Tokens of the text.
    room : int
        Tokens of it that a piece can have.
    reading : Reading
        Its ``keep`` is any but ``sections``.

    Returns
    -------
    pieces : list of list of range
        Each a list of stretches of the text, together at most ``room`` long; one piece of one stretch where the text
        fits.
    gap : range
        The one stretch that no piece has; empty where all of the text is read.

    Examples
    --------
    >>> kept_ranges(10, 4, Reading(keep="both_ends"))
    ([[range(0, 1), range(7, 10)]], range(1, 7))
    >>> kept_ranges(10, 4, Reading(keep="chunks", chunk_overlap=1, max_chunks=2))
    ([[range(0, 4)], [range(3, 7)]], range(7, 10))
    """
    if count <= room:
        return [[range(count)]], range(0)
    if reading.keep == "beginning":
        return [[range(room)]], range(room, count)
    if reading.keep == "end":
        return [[range(count - room, count)]], range(count - room)
    if reading.keep == "both_ends":
        beginning = min(max(1, round(reading.beginning_share * room)), max(1, room - 1))
        behind = count - (room - beginning)
        return [[range(beginning), range(behind, count)]], range(beginning, behind)
    if reading.keep == "chunks":
        step = room - reading.chunk_overlap
        needed = 1 + -(-(count - room) // step)
        starts = [place * step for place in range(min(needed, reading.max_chunks))]
        chunks = [range(start, min(start + room, count)) for start in starts]
        return [[chunk] for chunk in chunks], range(chunks[-1].stop, count)
    raise ValueError(f"keep is {reading.keep!r}; whole sections are chosen by keep_sections")


def importance(spans: Sequence[Span], priority: Sequence[str | None]) -> list[int]:
    """Return the places of the spans, the most important first.

    Names that ``priority`` lacks count as None; where None is lacking too, they come last. Of equal names the first
    comes first.
    """
    rank = {name: place for place, name in enumerate(priority)}
    unnamed = rank.get(None, len(priority))
    return sorted(range(len(spans)), key=lambda place: (rank.get(spans[place].name, unnamed), place))


def keep_sections(
    spans: Sequence[Span], lengths: Sequence[int], budget: int, priority: Sequence[str | None]
) -> list[int]:
    """Return which sections of a text stay, so that together they are no longer than ``budget``.

    The least important is dropped first, whole, until the rest fits; then those dropped that still fit into what is
    left come back, the most important first. So a section never gives way to one that matters less, and little room is
    wasted. When even the most important section is longer than ``budget`` it is returned alone, and the caller has to
    cut it at its end; this is the only case in which the kept sections are too long.

    Parameters
    ----------
    spans : sequence of Span
    lengths : sequence of int
        The length of each, in the unit of ``budget``, such as tokens.
    budget : int
    priority : sequence of str or None
        Names of sections, the most important first; None stands for sections without a listed name.

    Returns
    -------
    list of int
        Places in ``spans``, in the order of the text; empty only for no spans.

    Examples
    --------
    >>> from collections import namedtuple
    >>> Part = namedtuple("Part", "name start end")
    >>> parts = [Part("SOCIAL HISTORY", 0, 9), Part("PRESENT ILLNESS", 9, 30), Part("ALLERGIES", 30, 35)]
    >>> keep_sections(parts, [9, 21, 5], 26, ["PRESENT ILLNESS", "SOCIAL HISTORY", "ALLERGIES"])
    [1, 2]
    """
    if len(spans) != len(lengths):
        raise ValueError(f"{len(spans)} spans and {len(lengths)} lengths")
    kept: list[int] = []
    used = 0
    order = importance(spans, priority)
    for place in order:
        if used + lengths[place] <= budget:
            kept.append(place)
            used += lengths[place]
        elif place == order[0]:
            return [place]
    return sorted(kept)
