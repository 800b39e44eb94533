"""Dates moved by whole days, written as they were: order, signs, zeros, names of months and times stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_NAME = (
    r"(?P<month>Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_ORDINAL = r"(?:st|nd|rd|th)"
_UNKNOWN_YEAR = 2001
"""Without a leap day; of a day and month whose year nobody says."""
_FIRST_OF_THIS_CENTURY = 70
"""Two digits from here on are of the 20th century."""


def shift_date(words: str, days: int, year: int | None = None) -> str | None:
    """Move a date.

    Parameters
    ----------
    words : str
        A date as `clinstack.privacy.identifiers.dates` finds it, a range of days included. Of two numbers the month
        comes first, unless it cannot.
    days : int
        By how much; of a month without a day its 15th is moved.
    year : int, optional
        Of a date that says none.

    Returns
    -------
    str or None
        None where the words are not understood.
    """
    for expression, move in _FORMS:
        match = expression.search(words)
        if match is not None:
            try:
                moved = move(match, days, year or _UNKNOWN_YEAR)
            except (ValueError, OverflowError):
                continue  # no such day, so it is another form
            return words[: match.start()] + moved + words[match.end() :]
    return None


def _iso(match: re.Match[str], days: int, year: int) -> str:
    moved = date(int(match[1]), int(match[3]), int(match[4])) + timedelta(days)
    sign = match[2]
    return f"{moved.year}{sign}{_padded(moved.month, match[3], match[4])}{sign}{_padded(moved.day, match[4], match[3])}"


def _compact(match: re.Match[str], days: int, year: int) -> str:
    return (date(int(match[1]), int(match[2]), int(match[3])) + timedelta(days)).strftime("%Y%m%d")


def _numeric(match: re.Match[str], days: int, year: int) -> str:
    one, other, said = match[1], match[3], match[4]
    return _day_and_month(one, other, match[2], _full_year(said), days, said)


def _day_and_month(one: str, other: str, sign: str, year: int, days: int, said: str = "") -> str:
    day_first = int(one) > 12
    month, day = (int(other), int(one)) if day_first else (int(one), int(other))
    moved = date(year, month, day) + timedelta(days)
    first, second = (moved.day, moved.month) if day_first else (moved.month, moved.day)
    result = f"{_padded(first, one, other)}{sign}{_padded(second, other, one)}"
    return f"{result}{sign}{_year_like(moved.year, said)}" if said else result


def _partial(match: re.Match[str], days: int, year: int) -> str:
    return _day_and_month(match[1], match[2], "/", year, days)


def _month_and_year(match: re.Match[str], days: int, year: int) -> str:
    moved = date(int(match[2]), int(match[1]), 15) + timedelta(days)
    return f"{_padded(moved.month, match[1], match[1])}/{moved.year}"


def _written(match: re.Match[str], days: int, year: int) -> str:
    """Move what the groups month, day, ordinal, day2, ordinal2 and year hold; the rest stays."""
    parts = match.groupdict()
    said = parts.get("year")
    month = next(place for place, name in enumerate(_MONTHS, 1) if name[:3] == parts["month"][:3].title())
    used = _full_year(said.lstrip("'")) if said else year
    day = parts.get("day")
    moved = date(used, month, int(day) if day else 15) + timedelta(days)
    new = {"month": _month_like(moved.month, parts["month"])}
    if said:
        new["year"] = "'" * said.startswith("'") + _year_like(moved.year, said.lstrip("'"))
    if day:
        new["day"] = _padded(moved.day, day, day)
    if parts.get("day2"):
        second = date(used, month, int(parts["day2"])) + timedelta(days)
        new["day2"] = str(second.day)
        if parts.get("ordinal2"):
            new["ordinal2"] = _ordinal(second.day)
    if parts.get("ordinal"):
        new["ordinal"] = _ordinal(moved.day)
    result, end = "", match.start()
    for name in sorted(new, key=match.start):
        result += match.string[end : match.start(name)] + new[name]
        end = match.end(name)
    return result + match.string[end : match.end()]


def _padded(number: int, like: str, beside: str) -> str:
    zeros = like.startswith("0") or (beside.startswith("0") and len(like) == 2)
    return f"{number:02d}" if zeros else str(number)


def _full_year(words: str) -> int:
    number = int(words)
    if len(words) > 2:
        return number
    return number + (1900 if number >= _FIRST_OF_THIS_CENTURY else 2000)


def _year_like(year: int, like: str) -> str:
    return f"{year % 100:02d}" if len(like) == 2 else str(year)


def _month_like(month: int, like: str) -> str:
    name = _MONTHS[month - 1] if len(like) > 4 or like.title() in ("June", "July", "May") else _MONTHS[month - 1][:3]
    return name.upper() if like.isupper() else name.lower() if like.islower() else name


def _ordinal(day: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th") if day not in (11, 12, 13) else "th"


_DAY = r"(?P<day>\d{1,2})"
_SECOND = rf"(?:(?:\s?-\s?|\s(?:to|and)\s)(?P<day2>\d{{1,2}})(?P<ordinal2>{_ORDINAL})?(?!\d))?"


def _expression(words: str) -> re.Pattern[str]:
    return re.compile(words, re.IGNORECASE)


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], int, int], str]], ...] = (
    (_expression(r"(?<!\d)((?:19|20|21)\d\d)([-/.])(\d{1,2})\2(\d{1,2})(?!\d)"), _iso),
    (_expression(r"(?<!\d)((?:19|20|21)\d\d)(\d\d)(\d\d)(?!\d)"), _compact),
    (_expression(r"(?<!\d)(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})(?!\d)"), _numeric),
    (_expression(r"(?<!\d)(\d{1,2})/((?:19|20|21)\d\d)(?!\d)"), _month_and_year),
    # 14 March 2012; 14-Mar-12; 14MAR2012
    (
        _expression(
            rf"(?<!\d){_DAY}(?P<ordinal>{_ORDINAL})?[ \-/.]?(?:of )?{_NAME}(?![a-z])\.?"
            r"(?:[ ,\-/]{0,2}(?P<year>(?:19|20|21)\d{2}|'?\d{2})(?!\w|:))?"
        ),
        _written,
    ),
    # March 14 and 15, 2012; Mar 14th
    (
        _expression(
            rf"\b{_NAME}\b\.?[ ,/\-]{{1,2}}(?:the )?{_DAY}(?!\d)(?P<ordinal>{_ORDINAL})?{_SECOND}"
            r"(?:(?:,?\s?(?:of\s)?|[/\-])(?P<year>(?:19|20|21)\d{2}|'\d{2}|(?<=[/\-])\d{2})(?!\w))?"
        ),
        _written,
    ),
    (_expression(rf"\b{_NAME}\b\.?[ ,/\-]{{1,2}}(?:of )?(?P<year>(?:19|20|21)\d{{2}}|'\d{{2}})(?!\w)"), _written),
    (_expression(rf"\b{_NAME}\b"), _written),
)
_PARTIAL = re.compile(r"(?<![\d/])(\d{1,2})/(\d{1,2})(?![\d/])")


def shift_all(words: str, days: int, year: int | None = None) -> str | None:
    """Move a date, or both ends of a range of days such as ``3/14-3/17``; None where the words are not understood."""
    moved = shift_date(words, days, year)
    if moved is not None:
        return moved
    if not _PARTIAL.search(words):
        return None
    try:
        return _PARTIAL.sub(lambda match: _partial(match, days, year or _UNKNOWN_YEAR), words)
    except ValueError:
        return None
