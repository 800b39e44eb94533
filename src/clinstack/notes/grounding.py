"""Does the note say what an answer says? Numbers, dates and drug names of an answer are looked for in the note.

What is looked for can be checked without a model: a dose, a laboratory value, a date, the name of a drug. An answer
that holds one the note does not hold has made it up, or has computed it (a length of stay from two dates, grams from
milligrams), which this check cannot tell apart. Diagnoses and everything else in words are not checked. The share of
facts found is therefore a check of copying, not of truth; a relative of it is the precision of named entities by which
summaries are measured (Nan et al. 2021, "Entity-level Factual Consistency of Abstractive Text Summarization").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path

KINDS = ("number", "date", "drug")

_DRUGS = Path(__file__).with_name("drugs.txt")
_STEMS = (
    "cillin|pril|olol|statin|floxacin|sartan|prazole|mycin|conazole|cycline|dipine|gliptin|gliflozin|parin|xaban|"
    "setron|triptan|barbital|azepam|azolam|oxetine|thiazide|semide|dronate|lukast|tidine|navir|ciclovir|cyclovir|"
    "zumab|ximab|tinib|ezolid|penem|glitazone|glinide|oxaban|gatran|afil|olone|cept|curium|curonium"
)
"""Endings of generic names that the WHO's list of stems gives to whole classes of drugs."""
_NO_DRUGS = frozenset({"april", "cystatin", "histidine", "concept", "accept", "except", "intercept", "precept"})
"""Words with such an ending that are no drug, or as often a laboratory value."""
_STEM = re.compile(rf"[a-z]{{2,}}(?:{_STEMS})")

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan",
            "february feb",
            "march mar",
            "april apr",
            "may",
            "june jun",
            "july jul",
            "august aug",
            "september sept sep",
            "october oct",
            "november nov",
            "december dec",
        ),
        start=1,
    )
    for name in names.split()
}
_MONTH = rf"(?P<name>{'|'.join(_MONTHS)})\b\.?"
_ORDINAL = r"(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<![\d.])(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})(?!\d)",
        r"(?<![\d./])(?P<month>\d{1,2})[-/.](?P<day>\d{1,2})[-/.](?P<year>\d{4}|\d{2})(?![\d/]|[-.]\d)",
        rf"\b{_MONTH}\s+(?P<day>\d{{1,2}}){_ORDINAL}\b(?!\s*[:%/]|\s*(?:mg|mcg|ml|g)\b)(?:,?\s+(?P<year>\d{{4}})\b)?",
        rf"(?<![\d.])(?P<day>\d{{1,2}}){_ORDINAL}\s+(?:of\s+)?{_MONTH}(?:,?\s+(?P<year>\d{{4}})\b)?",
        rf"\b{_MONTH},?\s+(?:of\s+)?(?P<year>\d{{4}})\b",
        r"\[\*\*(?P<month>\d{1,2})[-/](?P<day>\d{1,2})\*\*\]",  # MIMIC-III's dates without a year
    )
)
_PAIR = re.compile(r"(?<![\d./-])(\d{1,2})/(\d{1,2})(?![\d/]|\.\d)")
"""A date without a year, or a score such as 4/5: only the note knows which."""
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d*\.\d+|\d+")
_IN_A_NAME = re.compile(r"[a-z]-?$", re.IGNORECASE)
"""What stands before the digits of B12, SpO2 or COVID-19, which are part of a name."""
_LIST_NUMBER = re.compile(r"^[ \t]*\(?\d{1,2}[.)](?=\s)", re.MULTILINE)
_WORD = re.compile(r"[a-z][a-z0-9'-]*[a-z0-9]")
_NUMBER_WORDS = {
    word: Decimal(number)
    for number, words in {
        0: "zero",
        1: "one once first",
        2: "two twice second",
        3: "three third",
        4: "four fourth",
        5: "five fifth",
        6: "six",
        7: "seven",
        8: "eight",
        9: "nine",
        10: "ten",
        11: "eleven",
        12: "twelve",
        20: "twenty",
        30: "thirty",
        40: "forty",
        50: "fifty",
    }.items()
    for word in words.split()
}

_TEXT = (
    r"(?:(?:discharge|clinical|hospital|medical|given|provided)\s+)*"
    r"(?:notes?|summary|records?|report|text|document(?:ation)?|chart|context|passage)"
)
_TOLD = (
    r"(?:mention|stat|say|specif|tell|told|provid|give|contain|includ|describ|document|record|report|indicat|disclos|"
    r"list|discuss|explain|address|reveal|show|have|not|answer)"
)
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # The note does not say it.
        rf"\b{_TEXT}\s+(?:does|do|did)\s*(?:not|n't|n’t)\s+(?:\w+\s+)?{_TOLD}",
        rf"\b{_TEXT}\s+(?:lacks?\b|(?:has|have|contains?|provides?|gives?|offers?)\s+no\s+)",
        # It is not mentioned in the note.
        rf"\bnot\s+(?:\w+ly\s+)?{_TOLD}\w*\s+(?:\w+\s+){{0,3}}?(?:in|by|within|from)\s+(?:the|this|these)\s+{_TEXT}",
        r"^\W*(?:(?:it|this|that|the answer)\s+(?:is|was)\s+)?not\s+(?:\w+ly\s+)?"
        r"(?:mentioned|stated|specified|documented|recorded|provided|available|given|reported|known)\W*$",
        # It cannot be told from the note; no answer can be given.
        r"\b(?:cannot|can\s+not|can't|can’t|could\s+not|couldn't|unable\s+to|(?:not|im)\s*possible\s+to)\b[^.]*\b(?:from|"
        rf"based\s+on|with|in|by|using)\s+(?:only\s+|just\s+)?(?:the|this|these)\s+(?:\w+\s+)?(?:{_TEXT}|information)",
        r"\b(?:cannot|can\s+not|can't|can’t|unable\s+to|(?:not|im)\s*possible\s+to)\s+(?:be\s+)?(?:\w+ly\s+)?answer",
        r"\bno\s+(?:\w+\s+){0,2}?(?:information|mention|details?|documentation)\b",
        r"\b(?:insufficient|not\s+enough|lack\s+of)\s+(?:\w+\s+)?(?:information|detail)",
    )
)


@dataclass(frozen=True)
class Grounding:
    """What of an answer was looked for in its note.

    Parameters
    ----------
    checked : int
        Different numbers, dates and drugs in the answer.
    missing : int
        Those that the note does not hold.
    kinds : dict of str to int
        The missing ones by kind: ``number``, ``date``, ``drug``.
    """

    checked: int
    missing: int
    kinds: dict[str, int]

    @property
    def is_grounded(self) -> bool:
        """Whether nothing is missing; also where there was nothing to check."""
        return self.missing == 0

    @property
    def share(self) -> float | None:
        """The share found, None where there was nothing to check."""
        return None if self.checked == 0 else 1 - self.missing / self.checked


@dataclass(frozen=True)
class _Date:
    """A date as a text gives it: some part may be absent, and a year may have two digits."""

    year: int | None
    month: int
    day: int | None


@dataclass(frozen=True)
class _Facts:
    numbers: frozenset[Decimal]
    dates: frozenset[_Date]
    pairs: frozenset[tuple[int, int]]
    drugs: frozenset[str]


def check_grounding(answer: str, note: str) -> Grounding:
    """Look for the numbers, dates and drug names of an answer in its note.

    Numbers are equal by value (1,000 and 1000, 5.0 and 5, "two" in the note and 2 in the answer), dates in any of the
    usual spellings, drugs by a list of names of the same substance (``drugs.txt``) or, where they only have the ending
    of a class of drugs, by their spelling. Digits within a name (B12) and the numbers of a list's items are not
    checked. Of a date the note may leave out the year when another date of it has that year.

    Parameters
    ----------
    answer, note : str

    Returns
    -------
    Grounding

    Examples
    --------
    >>> check_grounding("Lasix 40 mg since March 4, 2150", "2150-03-04: started furosemide 40mg").is_grounded
    True
    """
    said, told = _answer_facts(answer), _note_facts(note)
    missing = {
        "number": sum(number not in told.numbers for number in said.numbers),
        "date": sum(not _dated(date, told) for date in said.dates)
        + sum(pair not in told.pairs and not _dated(_Date(None, *pair), told) for pair in said.pairs),
        "drug": len(said.drugs - told.drugs),
    }
    checked = len(said.numbers) + len(said.dates) + len(said.pairs) + len(said.drugs)
    return Grounding(checked, sum(missing.values()), {kind: missing[kind] for kind in KINDS if missing[kind]})


def is_refusal(answer: str) -> bool:
    """Whether an answer says that the note does not tell, as the answers of Asclepius do (Kweon et al. 2023).

    "The note does not mention the dose", "This cannot be determined from the given summary", "Not documented." A
    negative finding ("no fever", "aspirin was not given") is none. An answer that tells one part and says of another
    that the note does not tell it is one.
    """
    return any(pattern.search(answer) for pattern in _REFUSALS)


def _answer_facts(answer: str) -> _Facts:
    return _facts(_LIST_NUMBER.sub(" ", answer), in_names=False)


@lru_cache(maxsize=64)
def _note_facts(note: str) -> _Facts:
    """Return what a note holds. Kept for the next question: several are asked of one note."""
    facts = _facts(note, in_names=True)
    words = {_NUMBER_WORDS[word] for word in _WORD.findall(note.lower()) if word in _NUMBER_WORDS}
    years = {Decimal(date.year) for date in facts.dates if date.year is not None}
    parts = {Decimal(part) for pair in facts.pairs for part in pair}
    return _Facts(facts.numbers | words | years | parts, facts.dates, facts.pairs, facts.drugs)


def _facts(text: str, *, in_names: bool) -> _Facts:
    """Return what a text holds; dates are taken out before pairs, and pairs before numbers."""
    drugs = frozenset(_drugs(text.lower()))
    dates, text = _take_dates(text)
    pairs: set[tuple[int, int]] = set()

    def take_pair(match: re.Match[str]) -> str:
        first, second = int(match[1]), int(match[2])
        if not (1 <= first <= 12 and 1 <= second <= 31):
            return match[0]
        pairs.add((first, second))
        return " "

    text = _PAIR.sub(take_pair, text)
    numbers = frozenset(
        Decimal(match[0].replace(",", "")).normalize()
        for match in _NUMBER.finditer(text)
        if in_names or not _IN_A_NAME.search(text, max(0, match.start() - 2), match.start())
    )
    return _Facts(numbers, frozenset(dates), frozenset(pairs), drugs)


def _take_dates(text: str) -> tuple[set[_Date], str]:
    """Return the dates of a text, and the text without them."""
    dates: set[_Date] = set()

    def take(match: re.Match[str]) -> str:
        found = match.groupdict()
        named = found.get("name")
        month = _MONTHS[named.lower()] if named else int(found["month"])
        day = int(found["day"]) if found.get("day") else None
        year = int(found["year"]) if found.get("year") else None
        if not named and day is not None and month > 12 >= day:
            month, day = day, month
        if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
            return match[0]
        dates.add(_Date(year, month, day))
        return " "

    for pattern in _DATES:
        text = pattern.sub(take, text)
    return dates, text


def _dated(date: _Date, note: _Facts) -> bool:
    """Whether a note holds a date."""
    years = {other.year for other in note.dates}
    for other in note.dates:
        if other.month != date.month or (date.day is not None and date.day != other.day):
            continue
        if date.year is None or _same_year(date.year, other.year):
            return True
        if other.year is None and any(_same_year(date.year, year) for year in years):
            return True
    pair = (date.month, date.day)
    return pair in note.pairs and (date.year is None or any(_same_year(date.year, year) for year in years))


def _same_year(one: int, other: int | None) -> bool:
    if other is None:
        return False
    return one == other or (min(one, other) < 100 and one % 100 == other % 100)


def _drugs(text: str) -> Iterator[str]:
    """Yield the substances of a text in small letters."""
    names = _drug_names()
    for word in _WORD.findall(text):
        # "beta-lactam", "aspirin-dipyridamole": also each part by itself.
        for part in dict.fromkeys((word, *word.split("-"))):
            if part in names:
                yield names[part]
            elif part not in _NO_DRUGS and _STEM.fullmatch(part):
                yield part


@cache
def _drug_names() -> dict[str, str]:
    """Return the substance of each name in ``drugs.txt``: a line holds the names of one, the first is its own."""
    lines = (line.split("#")[0].split() for line in _DRUGS.read_text(encoding="utf-8").splitlines())
    return {name: names[0] for names in lines for name in names}
