"""What a finding is, the kinds there are, and how overlapping findings become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

PLACEHOLDER = "placeholder"
"""What an earlier de-identification left: no identifier, and counted apart."""
KINDS = (
    "name",
    "address",
    "hospital",
    "date",
    "age",
    "phone",
    "fax",
    "email",
    "url",
    "ip",
    "ssn",
    "mrn",
    "plan",
    "account",
    "license",
    "vehicle",
    "device",
    PLACEHOLDER,
)
"""In the order of the Safe Harbor list (45 CFR 164.514(b)(2)), as far as a text can hold them."""


@dataclass(frozen=True)
class Identifier:
    """One finding in a text.

    Parameters
    ----------
    start, end : int
        Characters ``text[start:end]``.
    kind : str
        One of `KINDS`.
    engine : str
        What found it; names joined by ``+`` where several did.
    """

    start: int
    end: int
    kind: str
    engine: str


def merge(found: Iterable[Identifier], engines: Sequence[str] = ()) -> list[Identifier]:
    """Make one list without overlaps of the findings of all engines.

    Placeholders come first: what lies inside one is dropped, and what reaches beyond it is cut there. Other findings
    that share a character become one that covers them all, since a scrubber must leave no part of either. Its kind is
    that of the longest; among equally long ones that of the engine that was named first, then of the one that was
    found first. Findings that merely touch stay apart.

    Parameters
    ----------
    found : iterable of Identifier
        In any order.
    engines : sequence of str
        Names of the engines, the most trusted first.

    Returns
    -------
    list of Identifier
        By position.
    """
    rank = {name: place for place, name in enumerate(engines)}
    items = [item for item in found if item.end > item.start]
    placeholders = _union([item for item in items if item.kind == PLACEHOLDER], rank)
    others = [item for item in items if item.kind != PLACEHOLDER]
    if placeholders:
        others = [part for item in others for part in _outside(item, placeholders)]
    return sorted([*placeholders, *_union(others, rank)], key=lambda item: (item.start, item.end))


def _union(items: list[Identifier], rank: dict[str, int]) -> list[Identifier]:
    result: list[Identifier] = []
    group: list[Identifier] = []
    end = -1
    for item in [*sorted(items, key=lambda item: (item.start, -item.end)), None]:
        if group and (item is None or item.start >= end):
            result.append(_joined(group, end, rank))
            group = []
        if item is not None:
            end = max(end, item.end) if group else item.end
            group.append(item)
    return result


def _joined(group: list[Identifier], end: int, rank: dict[str, int]) -> Identifier:
    if len(group) == 1:
        return group[0]
    last = len(rank)
    best = max(group, key=lambda item: (item.end - item.start, -rank.get(item.engine, last)))
    names = sorted({item.engine for item in group}, key=lambda name: (rank.get(name, last), name))
    return Identifier(group[0].start, end, best.kind, "+".join(names))


def _outside(item: Identifier, placeholders: list[Identifier]) -> list[Identifier]:
    parts, start = [], item.start
    for hole in placeholders:
        if hole.end <= start or hole.start >= item.end:
            continue
        if hole.start > start:
            parts.append(replace(item, start=start, end=hole.start))
        start = max(start, hole.end)
    if start < item.end:
        parts.append(replace(item, start=start))
    return parts
