"""What finds identifiers: the engines by their names, and engines of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from clinstack.errors import InputError
from clinstack.privacy.identifiers import presidio, word_lists
from clinstack.privacy.identifiers.identifier import Identifier, merge
from clinstack.privacy.identifiers.patterns import PatternEngine

ENTRY_POINTS = "clinstack.identifier_engines"
"""Packages name engines of theirs under this group."""


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
    """Open an engine by its name; the same name gives the same object.

    Parameters
    ----------
    words : str
        ``patterns``; ``lists:FOLDER``; ``presidio`` or ``presidio:MODEL``; the name of an entry point of the group
        ``clinstack.identifier_engines``; or ``module:attribute``. The last two are engines, or functions without
        arguments that return one.

    Raises
    ------
    InputError
        If there is no such engine, or it is not installed.
    """
    name, _, rest = words.partition(":")
    if words == PatternEngine.name:
        return PatternEngine()
    if name == word_lists.NAME:
        if not rest:
            raise InputError(f"engine {name}: name the folder of lists, as in {name}:FOLDER.")
        return word_lists.WordLists(Path(rest))
    if name == presidio.NAME:
        return presidio.open_presidio(rest or presidio.MODEL)
    found = _named(words)
    if isinstance(found, type) or not isinstance(found, Engine):
        found = found() if _is_called_with_nothing(found) else None
    if not isinstance(found, Engine):
        raise InputError(
            f"engine: {words!r} is not what has a name and a method find(text), and returns no such thing."
        )
    return found


def _is_called_with_nothing(found: object) -> bool:
    if not callable(found):
        return False
    try:
        signature(found).bind()
    except (TypeError, ValueError):
        return False
    return True


def _named(words: str) -> Any:
    """Return what an entry point or a module has under this name."""
    for point in entry_points(group=ENTRY_POINTS, name=words):
        return point.load()
    module, _, attribute = words.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise InputError(
            f"engine: {words!r} is not known; use {PatternEngine.name}, {word_lists.NAME}:FOLDER, {presidio.NAME}, an "
            f"entry point of {ENTRY_POINTS}, or module:attribute."
        ) from None


def open_engines(engines: Sequence[str | Engine]) -> list[Engine]:
    """Open several engines, the most trusted first.

    Raises
    ------
    InputError
        If there is none, or one cannot be opened.
    """
    if not engines:
        raise InputError("engine: name at least one.")
    return [open_engine(item) if isinstance(item, str) else item for item in engines]


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
    opened = open_engines(engines)
    return merge((item for engine in opened for item in engine.find(text)), [engine.name for engine in opened])
