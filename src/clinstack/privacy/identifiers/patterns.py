"""The engine ``patterns``: regular expressions with checks; always there, and fast."""

from __future__ import annotations

from collections.abc import Iterator

from clinstack.privacy.identifiers.dates import AGES, DATES
from clinstack.privacy.identifiers.identifier import KINDS, PLACEHOLDER, Identifier
from clinstack.privacy.identifiers.names import NAMES
from clinstack.privacy.identifiers.numbers import NETWORK, PHONES, UNLABELLED, LabelledNumbers
from clinstack.privacy.identifiers.pattern import NAME, Pattern, verbose
from clinstack.privacy.identifiers.places import PLACES

PLACEHOLDERS = (
    # MIMIC-III's, MIMIC-IV's, and what `prepare --scrub --scrub-with tags` writes.
    Pattern(PLACEHOLDER, verbose(r"\[\*\* [^\[\]]{0,200} \*\*\]")),
    Pattern(PLACEHOLDER, verbose(r"___ (?<!____) (?!_)")),
    Pattern(PLACEHOLDER, verbose(rf"\[(?:{'|'.join(kind.upper() for kind in KINDS)}|REDACTED)\]")),
)
PATTERNS = (
    *PLACEHOLDERS,
    *NETWORK,
    LabelledNumbers(),
    *PHONES,
    *DATES,
    *AGES,
    *UNLABELLED,
    *PLACES,
    *NAMES,
)
"""Of two that match the same characters the earlier gives the kind."""


class PatternEngine:
    """Finds what `PATTERNS` describe."""

    name = NAME

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield findings, which may overlap."""
        for pattern in PATTERNS:
            yield from pattern.find(text)
