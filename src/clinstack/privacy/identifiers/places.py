"""Postal addresses with their codes, and hospitals and other institutions by the words that end their names."""

from __future__ import annotations

import re

from clinstack.privacy.identifiers.pattern import Pattern, either, ending, verbose

_STATE = either(
    r"""AL, AK, AZ, AR, CA, CO, CT, DE, DC, FL, GA, HI, ID, IL, IN, IA, KS, KY, LA, ME, MD, MA, MI, MN, MS, MO, MT,
    NE, NV, NH, NJ, NM, NY, NC, ND, OH, OK, OR, PA, PR, RI, SC, SD, TN, TX, UT, VT, VA, WA, WV, WI, WY, Alabama,
    Alaska, Arizona, Arkansas, California, Colorado, Connecticut, Delaware, Florida, Georgia, Hawaii, Idaho,
    Illinois, Indiana, Iowa, Kansas, Kentucky, Louisiana, Maine, Maryland, Massachusetts, Mass, Michigan, Minnesota,
    Mississippi, Missouri, Montana, Nebraska, Nevada, New Hampshire, New Jersey, New Mexico, New York, North
    Carolina, North Dakota, Ohio, Oklahoma, Oregon, Pennsylvania, Rhode Island, South Carolina, South Dakota,
    Tennessee, Texas, Utah, Vermont, Virginia, Washington, West Virginia, Wisconsin, Wyoming"""
)
_STREET = either(
    """Street, St, Avenue, Ave, Av, Road, Rd, Lane, Ln, Drive, Dr, Boulevard, Blvd, Court, Ct, Place, Pl, Terrace, Ter,
    Circle, Cir, Way, Square, Sq, Highway, Hwy, Parkway, Pkwy, Turnpike, Tpke, Row, Trail, Path, Crescent, Close, Alley,
    STREET, ST, AVENUE, AVE, ROAD, RD, LANE, LN, DRIVE, DR, BOULEVARD, BLVD, COURT, PLACE, TERRACE, CIRCLE, WAY"""
)
_UNIT = r"(?:,?[ ](?:(?:Apt|APT|apt|Apartment|Unit|Suite|Ste|Rm|Room|Floor|Fl)\.?[ ]?\#?|\#[ ]?)[A-Za-z0-9\-]{1,6})?"
_ZIP = r"\d{5}(?:-\d{4})?(?!\w|-\d)"
_CITY = r"[A-Z][A-Za-z.'\-]{1,20}(?:[ ][A-Z][A-Za-z.'\-]{1,20}){0,2}"
_TAIL = rf"""(?: ,[ ]{_CITY}(?<!\.)(?=[.;\n]|,[ ]?[a-z]|\Z)
    | (?:,[ ]?|[ ]|[ ]?\n[ ]{{0,12}}){_CITY},?[ ](?:{_STATE})\b\.?(?:,?[ ]{{1,2}}{_ZIP})? )?"""
_NO_STREET = re.compile(
    r"\b(?:"
    + either(
        r"""lead, depression, elevation, segment, the, a, an, in, on, of, per, to, with, and, or, at, by, for, chest,
        head, abd\w*, pelvi\w*, neck, mg, ml, mm, cm, mcg, units?, days?, weeks?, months?, hours?, times, tabs?,
        drops?, qd, bid, tid, po, iv, no, new, repeat, last, first, seen"""
    )
    + r")\b",
    re.IGNORECASE,
)
_GENERIC_WORDS = """
    a acute admission admitting adult aids all allergy an and another anticoagulation any area arrival arthritis
    asthma at back behavioral breast brief burn cancer cardiac cardiology care center children's childrens chronic
    clinic college community comprehensive coumadin county course current day dental dermatology diabetes dialysis
    discharge disease during ed emergency endocrine ent epilepsy er eye failure family fellow first follow followup
    foot for fracture free from general geriatric gi group gyn hand he headache health healthcare heart hematology
    hepatitis her his hiv home homeless hospice hospital hospitalist house hypertension icu in infectious inpatient
    internal is last lipid liver local long long-term loss main management medical medicine memory men's mental
    methadone metropolitan micu military my naval nearby nephrology neurology neurosurgery new no nursing ob of old
    on oncology or orthopedic orthopedics other our outpatient outside pain patient per physical plastic podiatry
    post previous primary prior private psych psychiatric psychiatry pt pulmonary receiving referring regional rehab
    rehabilitation renal research respiratory rheumatology same screening second service services she short
    short-term sicu skilled sleep social specialty spine state stroke suburban surgery surgical synthetic teaching
    tertiary that the their this to transferring transplant trauma travel tumor unit university urgent urology va
    vascular via visiting voiding walk-in weight wellness women's wound your
"""
_GENERIC = frozenset(_GENERIC_WORDS.split()) | {"history", "course"}
"""What an institution is called without being named: "Primary Care Clinic", "Outside Hospital"."""
_INSTITUTION = either(
    r"""Hospital, Hosp\b, HOSPITAL, Medical Cent(?:er|re), MEDICAL CENTER, Med(?:ical)? Ctr\b, Infirmary, Sanatorium,
    Hospice, Nursing (?:Home|Center), Rehab(?:ilitation)?(?: (?:Center|Hospital|Facility))?, Health
    (?:Center|System|Care), Healthcare, Clinic, Medical (?:Group|Associates), Manor, Care Center, Extended Care,
    Surgery Center, Dialysis Center, VAMC, VA Medical Center"""
)
_WORDS = re.compile(r"[A-Za-z'\-]{2,}")


def _is_street(match: re.Match[str]) -> bool:
    return not _NO_STREET.search(match["street"])


def _is_named(match: re.Match[str]) -> bool:
    """Whether one word of the name is more than what any institution has."""
    return any(word.lower() not in _GENERIC for word in _WORDS.findall(match["name"]))


PLACES = (
    # 45 N. Main St., Apt 4B, Springfield, MA 01101
    Pattern(
        "address",
        verbose(
            rf"""[0-9](?<![\w.,:/\-\#].)\d{{0,4}}[A-Z]?,?[ ](?P<street>(?:[NSEW]\.?[ ]|(?:North|South|East|West)[ ])?
            (?:[A-Z][A-Za-z.'\-]{{1,20}}[ ]|\d{{1,3}}(?:st|nd|rd|th)[ ]){{1,3}}) (?:{_STREET})\b\.? {_UNIT}{_TAIL}"""
        ),
        _is_street,
    ),
    Pattern(
        "address",
        verbose(
            r"""[0-9](?<![\w.,:/\-\#].)\d{0,4}[ ](?P<street>(?:[a-z][a-z.'\-]{2,20}[ ]){1,2})
            (?:street|avenue|ave|road|rd|lane|drive|boulevard|blvd|court|terrace|circle)\b\.?"""
        ),
        _is_street,
    ),
    Pattern(
        "address", verbose(rf"[Pp](?<!\w.)(?:(?i:\.?[ ]?O\.?)|ost[ ]Office)[ ]?[Bb](?:ox|OX)[ ]\#?\d{{1,6}}{_TAIL}")
    ),
    # Springfield, MA 01101
    Pattern(
        "address",
        verbose(r"[0-9](?<![\w\-.].)\d{4}(?:-\d{4})?(?!\w|-\d)"),
        before=verbose(rf"(?<!\w) (?P<found>{_CITY},?[ ](?:{_STATE})\.?,?[ ]{{1,2}})\Z"),
    ),
    Pattern(
        "address",
        verbose(r"[0-9](?<![\w\-.].)\d{4}(?:-\d{4})?(?!\w|-\d)"),
        before=ending(r"zip(?:[ ]?code)?[ :\#]{1,3}"),
    ),
    Pattern("address", verbose(r"[0-9](?<![\w\-.].)\d{4}-\d{4}(?!\w|-\d)")),
    # lives in Salem, MA
    Pattern(
        "address",
        verbose(rf",[ ](?:{_STATE})\b"),
        before=verbose(
            rf"""(?<!\w)(?i:lives|living|resides|residing|resident|born|raised|grew[ ]up|moved|visiting|home|works|from
            |native)[ ](?:(?:in|from|of|near|to|at)[ ])?(?P<found>{_CITY})\Z"""
        ),
    ),
    # St. Mary's Hospital
    Pattern(
        "hospital",
        verbose(
            rf"""(?P<name>[A-Z](?<![\w'&\-].)(?:[A-Za-z'&\-]{{1,24}}|t\.)[ ]
            (?:(?:[A-Z][A-Za-z'&\-]{{1,24}}|St\.|Mt\.|of|the|and|&)[ ]){{0,4}}?) (?:{_INSTITUTION})(?!\w)"""
        ),
        _is_named,
    ),
)

_INSTITUTION_WORDS = """
    hospital hosp medical centre center ctr med infirmary sanatorium hospice nursing rehab rehabilitation facility
    health system clinic group associates manor extended dialysis vamc st mt of the and
"""
_ADDRESS_WORDS = """
    north south east west apt apartment unit suite ste rm room floor fl po box post office zip code p o n s e w th
    rd nd
"""
_INSTITUTIONAL = frozenset(_INSTITUTION_WORDS.split())
_IN_ADDRESSES = frozenset(_ADDRESS_WORDS.split()) | {word.strip().lower() for word in _STREET.split("|")}
_STATE_WORDS = frozenset(part for state in _STATE.split("|") for part in state.replace("\\", "").split())


def is_generic(word: str) -> bool:
    """Whether a word of an institution's name names none by itself."""
    return word.lower() in _GENERIC or word.lower() in _INSTITUTIONAL


def stays_in_address(word: str, before: str) -> bool:
    """Whether a word of an address says how it is written, or is a state: not those of "Washington Street"."""
    if word in _STATE_WORDS:
        return len(word) == 2 or before.rstrip().endswith(",")
    return word.lower() in _IN_ADDRESSES
