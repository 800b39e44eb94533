"""One pattern: a regular expression that proposes, and checks that refuse what only looks alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clinstack.privacy.identifiers.identifier import Identifier

NAME = "patterns"
"""Of the engine."""
REACH = 48
"""Characters before a match in which `Pattern.before` looks."""


@dataclass(frozen=True)
class Pattern:
    """A kind of identifier as it is written in one way.

    Every repetition is bounded and begins at the edge of a word, so that the time is linear in the length of the text
    whatever it holds. An expression begins with a set of characters and looks back from the second one: Python's
    engine then leaps from one such character to the next, which is several times as fast. For the same reason it
    proposes the rarest part, such as a number, and the words before it are looked at only then.

    Parameters
    ----------
    kind : str
        One of `clinstack.privacy.identifiers.KINDS`.
    expression : re.Pattern
        The identifier is its group ``found``, or all of it where there is no such group.
    accept : callable, optional
        Whether a match counts.
    before : re.Pattern, optional
        Must match at the end of the `REACH` characters before. Where it has a group ``found``, the identifier begins
        there.
    needs : tuple of str
        A text without any of these strings has no match; spares a search.
    """

    kind: str
    expression: re.Pattern[str]
    accept: Callable[[re.Match[str]], bool] | None = None
    before: re.Pattern[str] | None = None
    needs: tuple[str, ...] = ()

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield what stands in ``text``, by position."""
        if self.needs and not any(part in text for part in self.needs):
            return
        group = "found" if "found" in self.expression.groupindex else 0
        for match in self.expression.finditer(text):
            if self.accept is not None and not self.accept(match):
                continue
            start = match.start(group)
            if self.before is not None:
                words = self.before.search(text, max(0, match.start() - REACH), match.start())
                if words is None:
                    continue
                if "found" in self.before.groupindex:
                    start = words.start("found")
            yield Identifier(start, match.end(group), self.kind, NAME)


def verbose(expression: str, flags: int = 0) -> re.Pattern[str]:
    """Compile an expression in which blanks and comments do not count."""
    return re.compile(expression, re.VERBOSE | flags)


def ending(expression: str) -> re.Pattern[str]:
    r"""Compile, as `verbose` does and whatever the case, what stands before something; it ends with ``\Z``."""
    return verbose(rf"(?<![A-Za-z0-9])(?:{expression})\Z", re.IGNORECASE)


def either(words: str) -> str:
    """Make an alternation of expressions that stand with commas between them, for `verbose`; a blank is a blank."""
    return "|".join(part.replace(" ", r"\ ") for part in re.split(r"\s*,\s*", words.strip()))
