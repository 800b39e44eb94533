"""The engine ``patterns``: regular expressions with checks; always there, and fast."""

from __future__ import annotations

from collections.abc import Iterator

from clinstack.privacy.identifiers.dates import AGES, DATES
from clinstack.privacy.identifiers.identifier import PLACEHOLDER, Identifier
from clinstack.privacy.identifiers.names import NAMES
from clinstack.privacy.identifiers.numbers import LABELLED, NETWORK, PHONES, UNLABELLED
from clinstack.privacy.identifiers.pattern import NAME, Pattern, verbose
from clinstack.privacy.identifiers.places import PLACES

PLACEHOLDERS = (
    # MIMIC-III's, MIMIC-IV's, and what `prepare --scrub=tags` writes.
    Pattern(PLACEHOLDER, verbose(r"\[\*\* [^\[\]]{0,200} \*\*\]"), None, ("[**",)),
    Pattern(PLACEHOLDER, verbose(r"(?<!_) ___ (?!_)"), None, ("___",)),
    Pattern(PLACEHOLDER, verbose(r"\[(?:[A-Z]{2,12}|REDACTED|90\+)\]"), None, ("[",)),
)
PATTERNS = (*PLACEHOLDERS, *NETWORK, *LABELLED, *PHONES, *DATES, *AGES, *UNLABELLED, *PLACES, *NAMES)
"""Of two that match the same characters the earlier gives the kind."""


class PatternEngine:
    """Finds what `PATTERNS` describe."""

    name = NAME

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield findings, which may overlap."""
        for pattern in PATTERNS:
            yield from pattern.find(text)
