"""Counts of identifiers in many texts, by kind and engine, without the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clinstack.privacy.identifiers.engines import Engine, find_identifiers
from clinstack.privacy.identifiers.identifier import KINDS, PLACEHOLDER, Identifier


@dataclass
class IdentifierCounts:
    """What was found so far.

    Attributes
    ----------
    texts, characters : int
        Read in all.
    texts_with : int
        With an identifier; placeholders do not count.
    found, texts_of : Counter of str
        Findings, and texts with at least one, of each kind.
    engines : Counter of str
        Identifiers of each engine; one that several engines found counts for each of them.
    patients : set of str
        All patients of the texts.
    patients_of : dict of str to set of str
        Patients with a finding of each kind.
    """

    texts: int = 0
    characters: int = 0
    texts_with: int = 0
    found: Counter[str] = field(default_factory=Counter)
    texts_of: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    patients: set[str] = field(default_factory=set)
    patients_of: dict[str, set[str]] = field(default_factory=dict)

    def add(self, length: int, patient: str | None, found: Sequence[Identifier]) -> None:
        """Count the findings of one text of so many characters."""
        self.texts += 1
        self.characters += length
        kinds = {item.kind for item in found}
        self.texts_with += bool(kinds - {PLACEHOLDER})
        self.found.update(item.kind for item in found)
        self.texts_of.update(kinds)
        self.engines.update(name for item in found if item.kind != PLACEHOLDER for name in item.engine.split("+"))
        if patient is not None:
            self.patients.add(patient)
            for kind in kinds:
                self.patients_of.setdefault(kind, set()).add(patient)

    @property
    def identifiers(self) -> int:
        """Return the number of identifiers, without placeholders."""
        return sum(count for kind, count in self.found.items() if kind != PLACEHOLDER)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures: totals, ``kinds`` (those found, in the order of `KINDS`) and ``engines``."""
        affected = set[str]().union(*(ids for kind, ids in self.patients_of.items() if kind != PLACEHOLDER))
        return {
            "texts": self.texts,
            "characters": self.characters,
            "texts_with_identifiers": self.texts_with,
            "patients": len(self.patients),
            "patients_with_identifiers": len(affected),
            "identifiers": self.identifiers,
            "identifiers_per_1000_texts": self._per_thousand(self.identifiers),
            "placeholders": self.found[PLACEHOLDER],
            "kinds": {
                kind: {
                    "found": self.found[kind],
                    "per_1000_texts": self._per_thousand(self.found[kind]),
                    "texts": self.texts_of[kind],
                    "patients": len(self.patients_of.get(kind, ())),
                }
                for kind in KINDS
                if self.found[kind] and kind != PLACEHOLDER
            },
            "engines": dict(self.engines),
        }

    def _per_thousand(self, count: int) -> float:
        return round(1000 * count / self.texts, 2) if self.texts else 0.0


def scan_texts(texts: Iterable[str], engines: Sequence[str | Engine] = ("patterns",)) -> IdentifierCounts:
    """Count the identifiers of texts, read one at a time."""
    counts = IdentifierCounts()
    for text in texts:
        counts.add(len(text), None, find_identifiers(text, engines))
    return counts
