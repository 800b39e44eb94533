"""What stands in the place of identifiers: invented ones of the same form, the same in all texts of a patient.

Everything invented is a keyed hash (HMAC-SHA-256) of the patient, the kind and the words. So nothing has to be
remembered, two runs with the same key write the same bytes, and without the key nobody can tell what stood there. Who
has the key can test a guess; so it is forgotten unless its owner asks to keep it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Literal, get_args

from clinstack.errors import InputError
from clinstack.privacy.identifiers.date_shift import shift_all
from clinstack.privacy.identifiers.identifier import PLACEHOLDER, Identifier
from clinstack.privacy.identifiers.places import is_generic, stays_in_address
from clinstack.privacy.identifiers.surrogate_names import NAMES, PLACES

Style = Literal["surrogates", "tags"]
Edit = tuple[int, int, str]
"""Characters ``start`` to ``end`` become a string."""
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_WORD_OR_DIGITS = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*|\d+")
_NOT_NAMED = frozenset(
    ("de", "del", "la", "van", "von", "der", "den", "di", "da", "dos", "al", "el", "bin", "ben", "and")
)
_WEEKS = (4, 52)
"""Dates move by so many whole weeks at least and at most, to the past or to the future: days of the week stay."""
_YEAR = re.compile(r"(?<!\d)(?:19|20|21)\d\d(?!\d)")


class Surrogates:
    """Invents what replaces identifiers.

    Parameters
    ----------
    key : bytes
        The secret.
    style : {"surrogates", "tags"}
        Invented identifiers, or ``[NAME]``, ``[DATE]`` and so on.

    Raises
    ------
    InputError
        If the style is not known or the key is shorter than 16 bytes.
    """

    def __init__(self, key: bytes, style: Style = "surrogates") -> None:
        if style not in get_args(Style):
            raise InputError(f"scrub: {style!r} is no style; use {' or '.join(get_args(Style))}.")
        if len(key) < 16:
            raise InputError("scrub: the key has fewer than 16 bytes; use one of 32 random bytes.")
        self._key = key
        self.style = style

    def edits(self, patient: str, text: str, found: Sequence[Identifier]) -> list[Edit]:
        """Return what to replace in a text; placeholders stay.

        Parameters
        ----------
        patient : str
            Whose text it is.
        text : str
        found : sequence of Identifier
            Without overlaps, by position.
        """
        year = _usual_year(text, found)
        return [
            (item.start, item.end, self.replacement(patient, item.kind, text[item.start : item.end], year))
            for item in found
            if item.kind != PLACEHOLDER
        ]

    def replacement(self, patient: str, kind: str, words: str, year: int | None = None) -> str:
        """Return what stands for some words of a kind; ``year`` is that of a date without one."""
        if self.style == "tags":
            return f"[{kind.upper()}]"
        if kind == "date":
            return shift_all(words, self.days(patient), year) or "[DATE]"
        if kind == "age":
            return "90+"
        if kind == "name":
            return _WORD.sub(lambda match: self._name(patient, match.group()), words)
        if kind == "hospital":
            return _WORD.sub(lambda match: self._place(patient, match.group(), is_generic(match.group())), words)
        if kind == "address":
            return self._address(patient, words)
        if kind == "email":
            one, other = self._draw(patient, kind, words, 2)
            name = f"{NAMES[one % len(NAMES)]}.{NAMES[other % len(NAMES)]}".lower()
            return f"{name}{one % 90 + 10}@example.org"
        if kind == "url":
            return f"https://www.example.org/{self._draw(patient, kind, words, 1)[0] % 10**8:08d}"
        if kind == "ip":
            number = self._draw(patient, kind, words, 1)[0]
            return f"192.0.2.{number % 254 + 1}" if "." in words else f"2001:db8::{number % 0xFFFF:x}"
        return self._number(patient, kind, words)

    def days(self, patient: str) -> int:
        """Return by how many days the dates of a patient move."""
        number = self._draw(patient, "days", "", 1)[0]
        least, most = _WEEKS
        weeks = least + number // 2 % (most - least + 1)
        return 7 * weeks * (1 if number % 2 else -1)

    def _draw(self, patient: str, kind: str, words: str, count: int) -> list[int]:
        """Return whole numbers below 2**32 that depend on the key and all arguments."""
        message = "\0".join((patient, kind, words)).encode()
        result: list[int] = []
        block = 0
        while len(result) < count:
            digest = hmac.digest(self._key, message + b"\0%d" % block, hashlib.sha256)
            result += [int.from_bytes(digest[place : place + 4]) for place in range(0, 32, 4)]
            block += 1
        return result[:count]

    def _name(self, patient: str, word: str) -> str:
        if word.lower() in _NOT_NAMED:
            return word
        drawn = self._draw(patient, "name", word.casefold(), 4)
        if len(word) == 1:
            return "ABCDEGHJKLMNPRSTW"[drawn[0] % 17]
        return _cased(_other_than(word, [NAMES[number % len(NAMES)] for number in drawn]), word)

    def _place(self, patient: str, word: str, stays: bool) -> str:
        if stays or len(word) == 1:
            return word
        drawn = self._draw(patient, "place", word.casefold(), 4)
        return _cased(_other_than(word, [PLACES[number % len(PLACES)] for number in drawn]), word)

    def _address(self, patient: str, words: str) -> str:
        def part(match: re.Match[str]) -> str:
            word = match.group()
            if word.isdigit():
                return self._number(patient, "address", word)
            return self._place(patient, word, stays_in_address(word, words[: match.start()]))

        return _WORD_OR_DIGITS.sub(part, words)

    def _number(self, patient: str, kind: str, words: str) -> str:
        """Replace digits by digits and capitals by capitals; the same digits written in another way give the same."""
        same = "".join(letter for letter in words if letter.isdigit() or letter.isupper())
        for attempt in range(4):
            drawn = iter(self._draw(patient, "number", f"{same}{attempt or ''}", len(same)))
            result = []
            for place, letter in enumerate(words):
                if letter.isdigit():
                    leading = letter != "0" and not any(before.isalnum() for before in words[:place])
                    number = next(drawn)
                    result.append(str(number % 9 + 1) if leading else str(number % 10))
                elif letter.isupper():
                    result.append("ABCDEFGHJKLMNPRSTUVWXYZ"[next(drawn) % 23])
                else:
                    result.append(letter)
            if "".join(result) != words or not same:
                break
        return "".join(result)


def _usual_year(text: str, found: Sequence[Identifier]) -> int | None:
    """Return the year that the text's dates name most often, the first of several."""
    years = [
        int(match.group())
        for item in found
        if item.kind == "date"
        for match in _YEAR.finditer(text, item.start, item.end)
    ]
    return max(years, key=years.count) if years else None


def _other_than(word: str, candidates: Sequence[str]) -> str:
    return next((name for name in candidates if name.casefold() != word.casefold()), candidates[0])


def _cased(name: str, like: str) -> str:
    return name.upper() if like.isupper() else name.lower() if like.islower() else name


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """Return a text with its edits, which are by position and without overlaps."""
    parts, end = [], 0
    for start, stop, words in edits:
        parts += [text[end:start], words]
        end = stop
    return "".join([*parts, text[end:]])


def moved_places(places: Sequence[int], edits: Sequence[Edit]) -> list[int]:
    """Return where places of a text, in ascending order, are after its edits; inside a replaced part its beginning."""
    result, shift, number = [], 0, 0
    for place in places:
        while number < len(edits) and edits[number][1] <= place:
            start, end, words = edits[number]
            shift += len(words) - (end - start)
            number += 1
        inside = number < len(edits) and edits[number][0] < place
        result.append((edits[number][0] if inside else place) + shift)
    return result
