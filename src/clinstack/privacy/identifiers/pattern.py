"""One pattern: a regular expression that proposes, and a check that refuses what only looks alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clinstack.privacy.identifiers.identifier import Identifier

NAME = "patterns"
"""Of the engine."""


@dataclass(frozen=True)
class Pattern:
    """A kind of identifier as it is written in one way.

    Every repetition is bounded and every alternative begins at the edge of a word, so that the time is linear in the
    length of the text whatever it holds.

    Parameters
    ----------
    kind : str
        One of `clinstack.privacy.identifiers.KINDS`.
    expression : re.Pattern
        The identifier is its group ``found``, or all of it where there is no such group.
    accept : callable, optional
        Whether a match counts.
    needs : tuple of str
        A text without any of these strings has no match; spares a search.
    """

    kind: str
    expression: re.Pattern[str]
    accept: Callable[[re.Match[str]], bool] | None = None
    needs: tuple[str, ...] = ()

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield what stands in ``text``, by position."""
        if self.needs and not any(part in text for part in self.needs):
            return
        group = "found" if "found" in self.expression.groupindex else 0
        for match in self.expression.finditer(text):
            if self.accept is None or self.accept(match):
                yield Identifier(match.start(group), match.end(group), self.kind, NAME)


def verbose(expression: str, flags: int = 0) -> re.Pattern[str]:
    """Compile an expression in which blanks and comments do not count."""
    return re.compile(expression, re.VERBOSE | flags)


def either(words: str) -> str:
    """Make an alternation of expressions that stand with commas between them, for `verbose`; a blank is a blank."""
    return "|".join(part.replace(" ", r"\ ") for part in re.split(r"\s*,\s*", words.strip()))
