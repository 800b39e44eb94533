"""What finds identifiers: the engines by their names, and engines of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

from clinstack.errors import InputError
from clinstack.privacy.identifiers.identifier import Identifier, merge
from clinstack.privacy.identifiers.patterns import PatternEngine


@runtime_checkable
class Engine(Protocol):
    """What finds identifiers in a text."""

    name: str
    """Shown in counts, and in the column ``engine`` of a table of findings."""

    def find(self, text: str) -> Iterable[Identifier]:
        """Return the findings; they may overlap and come in any order."""
        ...


@lru_cache(maxsize=32)
def open_engine(words: str) -> Engine:
    """Open an engine by its name.

    Raises
    ------
    InputError
        If there is no such engine.
    """
    if words == PatternEngine.name:
        return PatternEngine()
    raise InputError(f"engine: {words!r} is not known; use {PatternEngine.name}.")


def find_identifiers(text: str, engines: Sequence[str | Engine] = ("patterns",)) -> list[Identifier]:
    """Find the identifiers of a text.

    Parameters
    ----------
    text : str
        Any text.
    engines : sequence of str or Engine
        The most trusted first; see `open_engine`.

    Returns
    -------
    list of Identifier
        By position, without overlaps; see `merge`. Those of kind ``placeholder`` are no identifiers.
    """
    opened = [open_engine(item) if isinstance(item, str) else item for item in engines]
    return merge((item for engine in opened for item in engine.find(text)), [engine.name for engine in opened])
