"""What is known of a patient: a name or number found once is found in all of the patient's texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from clinstack.privacy.identifiers.identifier import Identifier
from clinstack.privacy.identifiers.places import stays_in_address

NAME = "patient"
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_NUMBER = re.compile(r"(?<![\w.])[A-Z]{0,3}[0-9](?:[ .\-()/]?[0-9]){4,14}(?!\w)")
_DIGIT = re.compile(r"\D")
_SHORTEST_NAME, _SHORTEST_NUMBER = 3, 5
_NUMBERS = frozenset(("phone", "fax", "ssn", "mrn", "plan", "account", "license", "device"))


class OfPatient:
    """Names, towns and numbers of one patient, found where the words around them gave them away.

    A name counts where it is written as it was found, in capitals or with a first capital; unless the same text has the
    word in lower case too, since then it is an ordinary one, as in "White" and "white". Numbers count in any spelling.
    """

    name = NAME

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._numbers: dict[str, str] = {}

    def learn(self, text: str, found: Sequence[Identifier]) -> None:
        """Take the names and numbers of a text's findings."""
        for item in found:
            words = text[item.start : item.end]
            if item.kind in ("name", "address"):
                for word in _WORD.findall(words if item.kind == "name" else _town(words)):
                    if len(word) >= _SHORTEST_NAME and word[0].isupper():
                        self._names.setdefault(word.capitalize(), item.kind)
            elif item.kind in _NUMBERS:
                digits = _DIGIT.sub("", words).lstrip("0")
                if len(digits) >= _SHORTEST_NUMBER:
                    self._numbers.setdefault(digits, item.kind)

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield where they stand in a text."""
        if self._names:
            ordinary: set[str] | None = None
            for match in _WORD.finditer(text):
                word = match.group()
                if not word[0].isupper() or word.capitalize() not in self._names:
                    continue
                if ordinary is None:
                    ordinary = {word for word in _WORD.findall(text) if word[0].islower()}
                if word.lower() not in ordinary:
                    yield Identifier(match.start(), match.end(), self._names[word.capitalize()], NAME)
        if self._numbers:
            for match in _NUMBER.finditer(text):
                kind = self._numbers.get(_DIGIT.sub("", match.group()).lstrip("0"))
                if kind is not None:
                    yield Identifier(match.start(), match.end(), kind, NAME)


def _town(words: str) -> str:
    """Return the words of an address that name a town: after a comma, or before the first where no number stands."""
    first, *rest = words.split(",")
    parts = rest if any(letter.isdigit() for letter in first) else [first, *rest]
    return " ".join(word for word in _WORD.findall(" ".join(parts)) if not stays_in_address(word, ","))
