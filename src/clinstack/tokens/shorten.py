"""Shortening a text by whole sections: what matters least goes first, and no section loses a random part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


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
