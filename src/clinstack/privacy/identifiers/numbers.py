"""Telephone and fax numbers, record and account numbers, network addresses, and other numbers of one person."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clinstack.privacy.identifiers.identifier import Identifier
from clinstack.privacy.identifiers.pattern import NAME, REACH, Pattern, either, ending, verbose

_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ ]?\#?\d{2,6}(?!\w))?"
_MEASURE = re.compile(
    r"\s*(?:-\s*)?(?:%|/|x10|(?:"
    + either(
        r"""mg, mcg, ug, g, grams?, ml, cc, units?, iu, kg, lbs?, meq, mmol, k, cal, kcal, hours?, hrs?, steps, feet,
        ft, mm, cm, ng, pg, cells, copies"""
    )
    + r")\b)",
    re.IGNORECASE,
)
_BARE_YEAR = re.compile(r"(?:19|20|21)\d\d$")


def _is_no_measure(match: re.Match[str]) -> bool:
    return not _MEASURE.match(match.string, match.end())


def _digits(words: str) -> int:
    return sum(letter.isdigit() for letter in words)


def _is_called(match: re.Match[str]) -> bool:
    return _digits(match["found"]) >= 4 and not _BARE_YEAR.match(match["found"]) and _is_no_measure(match)


def _is_social_security(match: re.Match[str]) -> bool:
    area, group, serial = match["area"], match["group"], match["serial"]
    return area not in ("000", "666") and group != "00" and serial != "0000"


def _is_internet_address(match: re.Match[str]) -> bool:
    return all(int(part) < 256 for part in match.group().split("."))


PHONES = (
    # 617-555-0123, 1-617-555-0123
    Pattern(
        "phone",
        verbose(
            rf"""[0-9](?<![\w(+].)(?<!\d[.\-].) (?: (?<=1)[ .\-]?[2-9])? (?<=[2-9])\d{{2}}[.\-/][2-9]\d{{2}}[.\-]\d{{4}}
            (?!\w|[.\-]\d) {_EXTENSION}"""
        ),
        _is_no_measure,
    ),
    # (617) 555-0123, +1 617 555 0123
    Pattern(
        "phone",
        verbose(
            rf"""[+(](?<!\w.) (?: (?<=\+)1[ .\-]?\(? | (?<=\() ) \d{{3}}\)?[ .\-]{{0,2}}\d{{3}}[ .\-]\d{{4}}
            (?!\w|[.\-]\d) {_EXTENSION}"""
        ),
        _is_no_measure,
    ),
    # 555-0123
    Pattern(
        "phone",
        verbose(rf"[2-9](?<![\w.\-/()+,].)\d{{2}}-\d{{4}} (?![\w/]|[.\-]\d) {_EXTENSION}"),
        _is_no_measure,
    ),
    # +44 20 7946 0958
    Pattern(
        "phone",
        verbose(r"[+0](?<![\w+].)(?:(?<=\+)|(?<=0)0)[1-9]\d{0,2} (?:[ .\-]?\(0\))? (?:[ .\-/]?\d{1,5}){2,6} (?!\w)"),
        lambda match: 8 <= _digits(match.group()) <= 15,
    ),
    # x4321, x5-4321: within the house
    Pattern("phone", verbose(r"[xX](?<![\w.*].) (?:\d-)?\d{4,5} (?![\w%]|[.,\-/]\d)")),
)

_N = r"(?:id|no\.?|number|nbr|num\.?|\#)"


def _called(labels: str) -> str:
    """Make an expression of what a number is called; ``N`` stands for "number", "no.", "id" or "#"."""
    return re.sub(r"\bN\b", lambda _: _N, either(labels))


_LABELS = {
    "ssn": _called(r"ssn, ss\#, soc(?:ial|\.)? sec(?:urity|\.)?"),
    "mrn": _called(
        r"""mrn, mr N, mr\#, med(?:ical)?\.? rec(?:ord)?s?, unit N, hospital N, chart, record N, empi, hrn, nhs,
        (?:patient|pt|pat|hosp)[ .]?N"""
    ),
    "account": _called(
        r"""acct\.?, account, encounter, visit, csn, fin, har, case, accession, acc\#, admission N, specimen, order
        N, job, document, dictation, confirmation, report N, clip, protocol, study id"""
    ),
    "plan": _called(
        r"""(?:health[ ]?)?plan N, policy, member, subscriber, beneficiary, group N, medicare, medicaid, hicn?, mbi,
        insurance N"""
    ),
    "license": _called(r"lic(?:ense|ence)?\.?, dea, npi, upin, certificate, passport, driver'?s? lic(?:ense|ence)?"),
    "vehicle": _called(r"vin, vehicle N, registration"),
    "device": _called(r"serial, s/n, sn, lot, device N, udi, imei"),
    "fax": r"fax|facsimile",
    "phone": either(
        """tel, telephone, phone, cell, mobile, pager, beeper, paged?, call, called, reached at, reach at, home,
        work, contact, ext, extension"""
    ),
}
_LABEL = verbose(
    r"(?<!\w) (?:"
    + "|".join(f"(?P<{kind}>{labels})" for kind, labels in _LABELS.items())
    + rf""") (?:[ ]?{_N})? (?!\w) [ \t]?[.:\#=]{{0,2}}[ \t]{{0,3}} (?:(?:is|was|at|to)[ ])?
    (?P<prefix>[+(]{{0,2}}|[A-Za-z]{{1,4}}-?)\Z""",
    re.IGNORECASE,
)
_CUES_WORDS = """
    ssn ss# sec mrn mr med unit hosp chart record empi hrn nhs pat pt acc encounter visit csn fin har case admission
    specimen order job doc dictation confirmation report clip protocol study plan policy member subscriber benef
    group medic hic mbi insurance lic dea npi upin certif passport vin plate registr serial s/n sn lot device
    udi imei fax facsi tel phone cell mobile pager beeper page call reach home work contact ext
"""
_CUES = tuple(_CUES_WORDS.split())
"""One of them stands in each label; looked for first."""
_DIGITS = verbose(r"[0-9](?<!\d.)(?:[ .\-()/]{0,2}\d){3}")
_PHONE_VALUE = verbose(rf"[+(]{{0,2}}\d(?:[ .\-()/]{{0,2}}\d){{3,15}}(?!\w){_EXTENSION}")
_ID_VALUE = verbose(r"[A-Za-z0-9](?:[\-./]?[A-Za-z0-9]){3,24}(?!\w)")
_SOCIAL_SECURITY = verbose(r"(?P<area>\d{3})[ \-]?(?P<group>\d{2})[ \-]?(?P<serial>\d{4})(?!\w|-\d)")
_NO_NUMBER = verbose(
    r"""\d{1,2}([/.])\d{1,2}\1\d{2,4} | \d{1,2}-\d{1,2}-(?:19|20|21)\d\d
    | (?:19|20|21)\d\d(?:([/\-.])\d{1,2}\2\d{1,2})? | \d{1,4}\.\d{1,3} | \d{1,3}/\d{1,3}"""
)


class LabelledNumbers:
    """Numbers of four digits or more after what they are called."""

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield what stands in ``text``, by position."""
        for digits in _DIGITS.finditer(text):
            start = digits.start()
            first = max(0, start - REACH)
            words = text[first:start].lower()
            if not any(cue in words for cue in _CUES):
                continue
            label = _LABEL.search(text, first, start)
            if label is None:
                continue
            kind = next(name for name in _LABELS if label[name] is not None)
            expression = {"ssn": _SOCIAL_SECURITY, "phone": _PHONE_VALUE, "fax": _PHONE_VALUE}.get(kind, _ID_VALUE)
            value = expression.match(text, label.start("prefix"))
            if value is None or _digits(value.group()) < 4 or _NO_NUMBER.fullmatch(value.group()):
                continue
            if _is_social_security(value) if kind == "ssn" else _is_no_measure(value):
                yield Identifier(value.start(), value.end(), kind, NAME)


UNLABELLED = (
    Pattern(
        "ssn",
        verbose(r"(?P<area>[0-8](?<![\w\-.].)\d{2})-(?P<group>\d{2})-(?P<serial>\d{4}) (?!\w|-\d)"),
        _is_social_security,
    ),
    # 12345678, A1234567, 123-45-67, 123-456-789
    Pattern("mrn", verbose(r"[0-9](?<![\w.\-/+(].) \d{6,11} (?![\w/%]|[.\-]\d)"), _is_no_measure),
    Pattern("mrn", verbose(r"[A-Z](?<!\w.) (?:[A-Z]{0,2}-?) \d{6,12} (?![\w/%]|[.\-]\d)")),
    Pattern("mrn", verbose(r"[0-9](?<![\w.\-/].) \d{2}-\d{2}-\d{2}(?:-\d)? (?!\w|-\d)")),
    Pattern("mrn", verbose(r"[0-9](?<![\w.\-/].) \d{1,2}-\d{3}-\d{3} (?!\w|-\d)")),
    # The Medicare beneficiary identifier
    Pattern("plan", verbose(r"[1-9](?<!\w.)[A-Z][A-Z0-9]\d-?[A-Z][A-Z0-9]\d-?[A-Z]{2}\d{2}(?!\w)")),
    # 17 letters and digits without I, O and Q (ISO 3779)
    Pattern("vehicle", verbose(r"[A-HJ-NPR-Z0-9](?<!\w.)(?<=[A-Z1-9])(?=\d{0,10}[A-Z])[A-HJ-NPR-Z0-9]{10}\d{6}(?!\w)")),
    Pattern(
        "vehicle",
        verbose(r"[A-Z0-9](?<!\w.)[A-Z0-9]{1,3}[ \-]?[A-Z0-9]{2,4}(?!\w)"),
        lambda match: any(letter.isdigit() for letter in match.group()),
        ending(r"(?:license|licence|number)[ ]plates?[ ]?:?[ ]{0,2}|plates?[ ]?(?:no\.?|number|\#|:)[ ]?:?[ ]{0,2}"),
        ("late", "LATE"),
    ),
    # The address of a network card
    Pattern("device", verbose(r"[0-9A-Fa-f](?<![\w:\-].)[0-9A-Fa-f](?:[:\-][0-9A-Fa-f]{2}){5} (?![\w:\-])")),
)
"""Numbers that look like nothing else in medicine."""

_PATH = r"""(?:/[^\s<>"']{0,2000}(?<![.,;:!?)\]]))?"""
NETWORK = (
    Pattern(
        "email",
        verbose(r"@ (?:[A-Za-z0-9\-]{1,63}\.){1,5} [A-Za-z]{2,24} \b"),
        before=re.compile(r"(?<![\w.%+\-])(?P<found>[\w.%+\-]{1,64})\Z"),
    ),
    Pattern("url", verbose(r"""(?i:https?|ftp)://[^\s<>"']{2,2000}(?<![.,;:!?)\]])"""), needs=("://",)),
    Pattern("url", verbose(rf"[Ww](?<![\w./@].)[Ww]{{2}}\.[\w\-]{{1,63}}(?:\.[\w\-]{{1,63}}){{1,5}}{_PATH}")),
    Pattern(
        "url",
        verbose(rf"\. (?:com|org|net|edu|gov|info|co\.uk|ac\.uk|nhs\.uk|io|health) (?![\w\-]|\.\w) {_PATH}"),
        before=re.compile(r"(?<![\w./@\-])(?P<found>[A-Za-z0-9][\w\-]{0,40}(?:\.[\w\-]{1,40}){0,3})\Z"),
    ),
    Pattern("ip", verbose(r"[0-9](?<![\w.].)\d{0,2}(?:\.\d{1,3}){3} (?!\w|\.\d)"), _is_internet_address),
    Pattern(
        "ip",
        verbose(
            r"""[0-9A-Fa-f](?<![\w:].) (?: [0-9A-Fa-f]{0,3}(?::[0-9A-Fa-f]{1,4}){7}
            | [0-9A-Fa-f]{0,3}:(?:[0-9A-Fa-f]{1,4}:){0,5}(?::[0-9A-Fa-f]{1,4}){1,6} ) (?![\w:])"""
        ),
    ),
)
