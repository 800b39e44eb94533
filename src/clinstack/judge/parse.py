"""Reading the grades out of a judge's reply. What cannot be read without doubt is a failure, never a grade."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clinstack.judge.rubric import GRADES, letter

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHTS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_NUMBER = r"-?\d+(?:\.\d+)?(?!\.?\d|\s*%)(?:\s*/\s*4(?!\.?\d))?"
_NAME = r"(?:(?:score|grade)\s+(?:for\s+|of\s+)?)?[\[(]?(?:(?:answer|response|candidate)\s+)?([A-Z])[\])]?"
_LABELLED = re.compile(
    rf"{_NAME}(?:\s*(?:[:=]|->|→)|\s+[-–])\s*(?:(?:score|grade)\s*[:=]?\s*)?({_NUMBER})(?:\s*[,;|.]\s*|\s+and\s+|\s*)",
    re.IGNORECASE,
)
_MOST_BRACKETS = 64
"""So many brackets are tried as the beginning of JSON: a broken model may repeat one thousands of times."""
_BULLET = re.compile(r"^(?:[-•]\s*|\d+[.)]\s*)")
_HEAD = re.compile(
    r"^(?:(?:the\s+)?(?:scores?|grades?|ratings?|first line|line 1)(?:\s+are)?\s*[:=]\s*)", re.IGNORECASE
)
_PLAIN = re.compile(rf"^[\[(]?\s*({_NUMBER}(?:\s*[,;|]\s*|\s+and\s+|\s+)?)+\s*[\])]?\s*[.;]?$", re.IGNORECASE)


def parse_scores(text: str, count: int) -> list[int] | None:
    """Return one grade for each answer, in the order shown, or None.

    Read are, in this order: the first line, as the rubric asks for it; JSON (also fenced, or inside other text); the
    first line that is nothing but numbers; grades behind the answers' letters (``A: 3, B: 4``) at the head of a line
    or of several. Thoughts between ``<think>`` marks are left out before. Numbers may be written ``3``, ``3.0`` or
    ``3/4``.

    None, a failure, is what has another number of grades than there are answers, a grade that is not one of 1 to 4
    (0, 5, 3.5), a letter twice with different grades, or a letter that no answer has.

    Parameters
    ----------
    text : str
        The reply.
    count : int
        How many answers were shown.
    """
    text = _THOUGHTS.sub("", text)
    if _OPEN_THOUGHTS.search(text):
        return None  # cut off while it still thought: the numbers so far are no grades
    text = re.sub(r"[ \t]+", " ", text.replace("*", "").replace("`", "").strip().removeprefix("json").strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = _plain_numbers(lines[0]) if lines else []
    if len(plain) == count:
        return _checked(plain, count)
    for start, value in _json_values(text):
        # A list of numbers further back may be anything, such as references.
        found = _from_json(value, count) if start == 0 or not _is_list_of_numbers(value) else None
        if found is not None:
            return _checked(found, count)
    return _from_lines(lines, count)


def _checked(values: Sequence[Any], count: int) -> list[int] | None:
    grades = [_grade(value) for value in values]
    known = [grade for grade in grades if grade is not None]
    return known if len(known) == len(grades) == count else None


def _grade(value: Any) -> int | None:
    """Return one of the four grades, None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(str(value).partition("/")[0])
    except ValueError:
        return None
    return int(number) if number in GRADES else None


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the outermost JSON objects and lists in a text, each with its place."""
    decoder = json.JSONDecoder()
    at = 0
    for _ in range(_MOST_BRACKETS):
        start = min((place for place in (text.find("{", at), text.find("[", at)) if place >= 0), default=-1)
        if start < 0:
            return
        try:
            value, at = decoder.raw_decode(text, start)
            yield start, value
        except (ValueError, RecursionError):
            at = start + 1


def _from_json(value: Any, count: int) -> Sequence[Any] | None:
    """Return what stands for grades in a JSON value, None where it does not look like an answer to the question."""
    if isinstance(value, dict):
        by_word = {str(key).strip().lower(): item for key, item in value.items()}
        for word in ("scores", "grades", "ratings"):
            if word in by_word:
                return _from_json(by_word[word], count)
        return _by_letter({key.removeprefix("answer").strip(" _-"): item for key, item in by_word.items()}, count)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        lowered = [{str(key).lower(): entry for key, entry in item.items()} for item in value]
        grades = [_first(item, ("score", "grade", "rating")) for item in lowered]
        names = [_first(item, ("answer", "letter", "name", "id")) for item in lowered]
        if any(grade is None for grade in grades):
            return None
        if all(isinstance(name, str) for name in names):
            by_name = {
                name.lower().removeprefix("answer").strip(): grade for name, grade in zip(names, grades, strict=True)
            }
            return _by_letter(by_name, count) if len(by_name) == len(names) else ()
        return grades
    return value if _is_list_of_numbers(value) else None


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _by_letter(values: Mapping[str, Any], count: int) -> Sequence[Any] | None:
    """Return the values of the letters in their order; empty, a failure, where a letter is missing or unknown."""
    letters = [letter(place).lower() for place in range(count)]
    single = {key: value for key, value in values.items() if len(key) == 1 and key.isalpha()}
    if not single:
        return None
    if set(single) != set(letters):
        return ()
    items = [single[name] for name in letters]
    return [_first(item, ("score", "grade", "rating")) if isinstance(item, dict) else item for item in items]


def _from_lines(lines: Sequence[str], count: int) -> list[int] | None:
    found: dict[str, set[int | None]] = {}
    for place, line in enumerate(lines):
        numbers = _plain_numbers(line)
        if numbers and not found:
            if len(numbers) == 1:  # one grade a line, where each line has one
                rows = [_plain_numbers(further) for further in lines[place : place + count + 1]]
                end = next((at for at, row in enumerate(rows) if len(row) != 1), len(rows))
                numbers = [row[0] for row in rows[:end]]
            return _checked(numbers, count)
        rest = _BULLET.sub("", line)
        while match := _LABELLED.match(rest):
            found.setdefault(match[1].lower(), set()).add(_grade(match[2]))
            rest = rest[match.end() :]
    if any(len(grades) > 1 for grades in found.values()):
        return None
    return _checked(_by_letter({name: next(iter(grades)) for name, grades in found.items()}, count) or (), count)


def _plain_numbers(line: str) -> list[str]:
    """Return the numbers of a line that is nothing else, none of any other."""
    line = _HEAD.sub("", line)
    return [found[0] for found in re.finditer(_NUMBER, line)] if _PLAIN.match(line) else []
