"""Dates, with their times: numeric, ISO, written, without a year or without a day; and ages over 89.

A bare year is no identifier under Safe Harbor; neither are days of the week, and times without a date.
"""

from __future__ import annotations

import re

from clinstack.privacy.identifiers.pattern import Pattern, either, ending, verbose

MONTHS = either(
    """January, February, March, April, May, June, July, August, September, October, November, December,
    Jan, Feb, Mar, Apr, Jun, Jul, Aug, Sept, Sep, Oct, Nov, Dec"""
)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_TIME = r"(?:(?:T|,?[ ](?:at[ ])?|[ ]?@[ ]?)\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:[ ]?[AaPp]\.?[Mm]\b\.?)?Z?)?"
_YEAR = r"(?:19|20|21)\d{2}"
_REST_OF_A_MONTH = r"""(?i:(?<=j)(?:an(?:uary)?|une?|uly?)|(?<=f)eb(?:ruary)?|(?<=m)(?:ar(?:ch)?|ay)
    |(?<=a)(?:pr(?:il)?|ug(?:ust)?)|(?<=s)ept?(?:ember)?|(?<=o)ct(?:ober)?|(?<=n)ov(?:ember)?|(?<=d)ec(?:ember)?)\b"""
"""After its first letter."""
_ORDINAL = r"(?:st|nd|rd|th)?"
_HAS_YEAR = re.compile(_YEAR)


def is_day(month: int, day: int) -> bool:
    """Whether a year can have such a day."""
    return 1 <= month <= 12 and 1 <= day <= _DAYS[month - 1]


def _either_order(one: int, other: int) -> bool:
    return is_day(one, other) or is_day(other, one)


def _is_numeric(match: re.Match[str]) -> bool:
    first, second, year = match["first"], match["second"], match["year"]
    if match["sign"] == "." and len(year) == 2 and (len(first) != 2 or len(second) != 2):
        return False  # 1.2.12 is a section or a version
    return _either_order(int(first), int(second))


def _is_iso(match: re.Match[str]) -> bool:
    return is_day(int(match["month"]), int(match["day"]))


_MEASURED = re.compile(
    r"\s*(?:%|(?:"
    + either(
        r"""months?, mos?, weeks?, wks?, days?, hours?, hrs?, years?, yrs?, systolic, diastolic, murmur\w*, SEM,
        strength, pain, tab\w*, pills?, mm, mg, cc, ml, cm, inch\w*, in, of, normal, NS, pulses?, edema, minutes?,
        ppd, pack\w*, cups?, bottles?, doses?, positive, bilat\w*, throughout, reflex\w*, grade, scale, stage,
        nodes?, LN, criteria, points?, samples?, patients, sets?, vessels?, extremit\w*, hard, beats?, words,
        objects, at, sharp, crampy, L, liters?"""
    )
    + r")\b)",
    re.IGNORECASE,
)


def _is_partial(match: re.Match[str]) -> bool:
    """Whether a day and month without a year are one: not a murmur, a strength, a dose, a share."""
    one, other = int(match["month"]), int(match["day"])
    return _either_order(one, other) and not _MEASURED.match(match.string, match.end("found"))


def _is_written(match: re.Match[str]) -> bool:
    """Whether the month is not the verb: "2 may be removed", "may 2"."""
    words = match.group()
    return "may" not in words or _HAS_YEAR.search(words) is not None


_BEFORE_A_DAY_WORDS = either(
    r"""on, since, from, until, till, by, before, after, dated?, as of, through, thru, started, starting, ended, ending,
    last, due, admit, admitted, admission, adm, disch, discharge, discharged, d/c'?d?, dc'?d, seen, appointment, appt,
    surgery, placed, removed, repeat, follow-?up, CTA?, MRI, CXR, KUB, TTE, TEE, echo, E[KC]G, US, u/s, EGD, labs?,
    cultures?, cx, [bu]cx, cath, EEG, PET, biopsy, tap, bronch, LP, x-?ray, scan, d\.?o\.?b\.?, date of birth,
    birth date"""
)
_BEFORE_A_DAY = ending(rf"(?:{_BEFORE_A_DAY_WORDS})[ :]{{1,2}}(?:the[ ]|on[ ]|of[ ])?")
_DAY_AND_MONTH = r"(?P<month>[0-9](?<![\w/.,:\-].)\d?)/(?P<day>\d{1,2})"

DATES = (
    # 2012-03-14T08:15
    Pattern(
        "date",
        verbose(
            rf"""[12](?<![\w/.\-].)(?:(?<=1)9|(?<=2)[01])\d\d (?P<sign>[-/.]) (?P<month>\d{{1,2}}) (?P=sign)
            (?P<day>\d{{1,2}}) (?!\d|[-/.]\d) {_TIME} (?!\d)"""
        ),
        _is_iso,
    ),
    # 03/14/2012 08:15 AM, 14.03.12, 3-14-12
    Pattern(
        "date",
        verbose(
            rf"""(?P<first>[0-9](?<![\w/.].)(?<!\d-.)\d?) (?P<sign>[-/.]) (?P<second>\d{{1,2}}) (?P=sign)
            (?P<year>{_YEAR}|\d{{2}}) (?!\d|[/.]\d|-\d{{1,2}}-) {_TIME} (?!\d)"""
        ),
        _is_numeric,
    ),
    # 3/2012
    Pattern("date", verbose(rf"[0-9](?<![\w/.\-,].)(?:(?<=1)[0-2]|(?<=0)[1-9]|(?<=[1-9])) / {_YEAR} (?![\w/]|[.,]\d)")),
    # 20120314
    Pattern(
        "date",
        verbose(
            r"""[12](?<![\w/.\-].)(?:(?<=1)9|(?<=2)[01])\d\d (?P<month>0[1-9]|1[0-2]) (?P<day>[0-2]\d|3[01])
            (?![\w/]|[.\-]\d)"""
        ),
        _is_iso,
    ),
    # March 14, 2012; Mar. 14th; March 14 and 15; March 2012
    Pattern(
        "date",
        verbose(
            rf"""[JFMASONDjfmasond](?<![A-Za-z].){_REST_OF_A_MONTH}\.? (?:
                [ ,/\-]{{1,2}} (?:the[ ])? \d{{1,2}} {_ORDINAL} (?![\w/%]|[.:]\d)
                    (?: (?:[ ]?-[ ]?|[ ](?:to|and)[ ])\d{{1,2}}{_ORDINAL}(?!\w) )?
                    (?: ,?[ ]?(?:of[ ])? (?:{_YEAR}|'\d{{2}}) (?!\w) | [/\-](?:{_YEAR}|\d{{2}})(?!\w) )? {_TIME}
                | [ ,/\-]{{1,2}} (?:of[ ])? (?:{_YEAR}|'\d{{2}}) (?!\w)
            )"""
        ),
        _is_written,
    ),
    # 14 March 2012; 14th of March; 14-Mar-12
    Pattern(
        "date",
        verbose(
            rf"""[0-9](?<![\w/.\-].)(?:(?<=[12])\d|(?<=3)[01]|(?<=0)[1-9]|(?<=[1-9])) {_ORDINAL} [ \-/.]? (?:of[ ])?
            (?i:{MONTHS})\b\.? (?: [ ,\-/]{{1,2}} (?:{_YEAR}|'?\d{{2}}(?!\w|[/.:%])) )? (?!\d) {_TIME}"""
        ),
        _is_written,
    ),
    # 14MAR2012
    Pattern(
        "date",
        verbose(
            r"""[0-9](?<![\w/.\-].)\d? (?:JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC) (?:19|20|21)?\d{2} (?!\w)"""
        ),
    ),
    # in March
    Pattern(
        "date",
        verbose(
            r"""(?:January|February|March|April|May|June|July|August|September|October|November|December
            |Jan|Feb|Aug|Sept|Oct|Nov|Dec) (?![\w']) (?!\.?[ ]\d)"""
        ),
        before=ending(r"(?:in|since|until|till|early|mid|late|last|this|next|during|by|from)[ \-]"),
    ),
    # on 3/14; CXR 3/14; admitted 3/14-3/17
    Pattern(
        "date",
        verbose(rf"(?P<found>{_DAY_AND_MONTH}{_TIME}(?:[ ]?-[ ]?\d{{1,2}}/\d{{1,2}})?)(?![\w/]|[.,:\-]\d)"),
        _is_partial,
        _BEFORE_A_DAY,
    ),
    # A line that begins with a day: "3/14: extubated"
    Pattern(
        "date",
        verbose(rf"(?P<found>{_DAY_AND_MONTH}{_TIME})(?=:(?!\d)|[ ]?-[ ]|[\])])"),
        _is_partial,
        verbose(r"(?:^|\n)[ \t]{0,8}[\-*\[(]?[ ]?\Z"),
    ),
    # 3/14 08:15
    Pattern(
        "date",
        verbose(
            rf"""(?P<found>{_DAY_AND_MONTH}(?:[ ](?:at[ ])?|[ ]?@[ ]?)\d{{1,2}}:\d{{2}}(?:[ ]?[AaPp]\.?[Mm]\b\.?)?)
            (?![\d/])"""
        ),
        _is_partial,
    ),
)
"""A day that no month has, such as that of a blood pressure, is none."""


def _is_exact(match: re.Match[str]) -> bool:
    """Whether the age is not "over 90", which is what a de-identified text says."""
    return not match.string[max(0, match.start() - 5) : match.start()].rstrip().endswith(("over", ">", "\u2265"))


_AGE = r"(?P<found>[91](?<![\w/.\-].)(?:(?<=9)\d|(?<=1)[0-2]\d))"
AGES = (
    # 93 year old, 93yo, 93 M with; degrees Fahrenheit end in F as well
    Pattern(
        "age",
        verbose(
            rf"""{_AGE} (?i:
                [ \-]?(?:years?|yrs?|yr\.)[ \-]?(?:old|of[ ]age)\b
                | [ \-]?y[ ]?[/.]?[ ]?o\b
                | [ ]?(?-i:M)\b(?=[ ,])
                | [ ]?(?-i:F)\b(?=[ ,]{{1,2}}(?:with|w/|who|h/o|s/p|p/w|presents|admitted|hx|c/o|transferred|found)\b)
            )"""
        ),
        _is_exact,
    ),
    Pattern("age", verbose(rf"{_AGE}(?![\w/%+]|\.\d)"), before=ending(r"aged?[ :]{1,2}(?:of[ ])?")),
)
"""Over 89: the others are no identifiers."""
