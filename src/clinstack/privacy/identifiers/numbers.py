"""Telephone and fax numbers, record and account numbers, network addresses, and other numbers of one person."""

from __future__ import annotations

import re

from clinstack.privacy.identifiers.pattern import Pattern, either, verbose

_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ ]?\#?\d{2,6}(?!\w))?"
_NORTH_AMERICAN = rf"""
    (?: \+?1[ .\-]? )?
    (?: \(\d{{3}}\)[ .\-]{{0,2}}\d{{3}}[ .\-]\d{{4}}
      | [2-9]\d{{2}}[.\-/][2-9]\d{{2}}[.\-]\d{{4}} )
    (?![\w]|[.\-]\d) {_EXTENSION}"""
_AFTER_A_LABEL = rf"""(?P<found> \+?\(?\d(?:[ .\-()/]{{0,2}}\d){{3,14}} (?!\w) {_EXTENSION})"""
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


_NUMBER = r"(?:[ ]?(?:no|number|num|phone|\#))?"

PHONES = (
    Pattern(
        "fax",
        verbose(
            rf"\b(?:fax|facsimile)\b {_NUMBER} [ .:\#]{{0,3}} (?:is[ ]|to[ ]|at[ ])? {_AFTER_A_LABEL}", re.IGNORECASE
        ),
        needs=("ax", "AX", "acsim", "ACSIM"),
    ),
    # 617-555-0123, (617) 555-0123
    Pattern("phone", verbose(rf"(?<![\w(+]) (?<!\d[.\-]) {_NORTH_AMERICAN}"), _is_no_measure),
    Pattern("phone", verbose(rf"(?<!\w) (?=[+(]) {_NORTH_AMERICAN}"), _is_no_measure),
    # 555-0123
    Pattern(
        "phone",
        verbose(rf"(?<![\w.\-/()+,]) [2-9]\d{{2}}-\d{{4}} (?![\w/]|[.\-]\d) {_EXTENSION}"),
        _is_no_measure,
    ),
    # +44 20 7946 0958
    Pattern(
        "phone",
        verbose(r"(?<![\w+]) (?:\+|00)[1-9]\d{0,2} (?:[ .\-]?\(0\))? (?:[ .\-/]?\d{1,5}){2,6} (?!\w)"),
        lambda match: 8 <= _digits(match.group()) <= 15,
        ("+", "00"),
    ),
    Pattern(
        "phone",
        verbose(
            rf"""\b(?:tel|telephone|phone|cell|mobile|pager|beeper|paged?|call|called|reach(?:ed)?[ ]at|home|work
            |contact|ext|extension)\b {_NUMBER} [ .:\#]{{1,3}} (?:is[ ]|at[ ])? {_AFTER_A_LABEL}""",
            re.IGNORECASE,
        ),
        _is_called,
    ),
    # x4321, x5-4321: within the house
    Pattern("phone", verbose(r"(?<![\w.*]) [xX] (?:\d-)?\d{4,5} (?![\w%]|[.,\-/]\d)"), None, ("x", "X")),
)

_VALUE = r"(?P<found> (?=[A-Za-z\-]{0,4}\d) [A-Za-z0-9](?:[\-./]?[A-Za-z0-9]){3,24} ) (?!\w)"


def _labelled(kind: str, labels: str) -> Pattern:
    """Describe a number of four digits or more after what it is called; ``N`` stands for "number", "no.", "id", "#"."""
    called = re.sub(r"\bN\b", r"(?:id|no\\.?|number|nbr|num|\\#)", either(labels))
    expression = verbose(
        rf"""(?<!\w) (?:{called}) (?:[ ]?(?:number|no\.?|num\.?|nbr|id|\#))? (?!\w) [ \t]?[:\#=]{{0,2}}[ \t]{{0,3}}
        (?:is[ ]|was[ ])? {_VALUE}""",
        re.IGNORECASE,
    )
    return Pattern(kind, expression, lambda match: _digits(match["found"]) >= 4)


LABELLED = (
    Pattern(
        "ssn",
        verbose(r"(?<![\w\-.]) (?P<area>[0-8]\d{2})-(?P<group>\d{2})-(?P<serial>\d{4}) (?!\w|-\d)"),
        _is_social_security,
        ("-",),
    ),
    Pattern(
        "ssn",
        verbose(
            rf"""\b(?:ssn|ss\#|soc(?:ial|\.)?[ ]sec(?:urity|\.)?) {_NUMBER} [ :\#]{{0,3}} (?:is[ ])?
            (?P<found>(?P<area>\d{{3}})[ \-]?(?P<group>\d{{2}})[ \-]?(?P<serial>\d{{4}})) (?!\w)""",
            re.IGNORECASE,
        ),
        _is_social_security,
    ),
    _labelled(
        "mrn",
        r"""mrn, mr N, mr\#, med(?:ical)?\.? rec(?:ord)?s?, unit N, hospital N, chart, record N, empi, hrn, nhs,
        (?:patient|pt|pat|hosp)[ .]?N""",
    ),
    _labelled(
        "account",
        r"""acct\.?, account, encounter, visit, csn, fin, har, case, accession, acc\#, admission N, specimen, order
        N, job, document, dictation, confirmation, report N, clip, protocol, study id""",
    ),
    _labelled(
        "plan",
        r"""(?:health[ ]?)?plan N, policy, member, subscriber, beneficiary, group N, medicare, medicaid, hicn?, mbi,
        insurance N""",
    ),
    _labelled("license", r"lic(?:ense|ence)?\.?, dea, npi, upin, certificate, passport, driver'?s? lic(?:ense|ence)?"),
    _labelled("vehicle", r"vin, (?:license|licence|number) plate, plate, registration"),
    _labelled("device", r"serial, s/n, sn, lot, model N, device N, udi, imei"),
)
"""Numbers after what they are called."""

UNLABELLED = (
    # 12345678, A1234567, 123-45-67, 123-456-789
    Pattern("mrn", verbose(r"(?<![\w.\-/+\#(]) \#?(?:[A-Z]{1,3}-?)?\d{7,12} (?![\w/%]|[.\-]\d)"), _is_no_measure),
    Pattern("mrn", verbose(r"(?<![\w.\-/]) \d{3}-\d{2}-\d{2}(?:-\d)? (?!\w|-\d)"), None, ("-",)),
    Pattern("mrn", verbose(r"(?<![\w.\-/]) \d{2,3}-\d{3}-\d{3} (?!\w|-\d)"), None, ("-",)),
    # 17 letters and digits without I, O and Q (ISO 3779)
    Pattern(
        "vehicle",
        verbose(r"\b (?=[0-9]{0,10}[A-HJ-NPR-Z]) [A-HJ-NPR-Z0-9]{11}\d{6} \b"),
    ),
    # The address of a network card
    Pattern("device", verbose(r"\b [0-9A-Fa-f]{2}(?:[:\-][0-9A-Fa-f]{2}){5} (?![\w:\-])")),
)
"""Numbers that look like nothing else in medicine."""

_PATH = r"""(?:/[^\s<>"']{0,2000}(?<![.,;:!?)\]]))?"""
NETWORK = (
    Pattern(
        "email",
        verbose(r"(?<![\w.%+\-]) [\w.%+\-]{1,64} @ (?:[A-Za-z0-9\-]{1,63}\.){1,5} [A-Za-z]{2,24} \b"),
        needs=("@",),
    ),
    Pattern("url", verbose(r"""\b(?:https?|ftp)://[^\s<>"']{2,2000}(?<![.,;:!?)\]])""", re.IGNORECASE), needs=("://",)),
    Pattern("url", verbose(rf"(?<![\w./@]) [Ww]{{3}}\.[\w\-]{{1,63}}(?:\.[\w\-]{{1,63}}){{1,5}}{_PATH}")),
    Pattern(
        "url",
        verbose(
            rf"""(?<![\w./@\-]) (?:[A-Za-z0-9\-]{{1,63}}\.){{1,4}} (?:com|org|net|edu|gov|info|co\.uk|ac\.uk|nhs\.uk|io
            |health) (?![\w\-]) {_PATH}"""
        ),
        needs=(".com", ".org", ".net", ".edu", ".gov", ".info", ".uk", ".io", ".health"),
    ),
    Pattern("ip", verbose(r"(?<![\w.]) \d{1,3}(?:\.\d{1,3}){3} (?!\w|\.\d)"), _is_internet_address),
    Pattern(
        "ip",
        verbose(
            r"""(?<![\w:]) (?: (?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}
            | (?:[0-9A-Fa-f]{1,4}:){1,6}(?::[0-9A-Fa-f]{1,4}){1,6} ) (?![\w:])"""
        ),
    ),
)
