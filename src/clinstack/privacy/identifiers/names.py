"""Names of people, where the words around them say that they are names. A name without such words is not found."""

from __future__ import annotations

import re

from clinstack.privacy.identifiers.pattern import Pattern, either, verbose

_NOT_NAMES_WORDS = """
    a about above active acute additional admission admit admitted after age aged alert all allergies allergy also
    am an and any april are as assessment at attending august aunt aware away back be bed been before being below
    birth blood both brief brother but by called came can cardiac cardiology care case cc chest chief chronic clinic
    clip code comfortable comments complains complaint condition consent consult consulted contact continue
    continued continues contrast course cousin covering ct cxr daily date daughter dc deceased december deferred
    denies department dermatology diagnosis did discharge discharged discussed disposition dnr do does done dose
    drug drugs during ecg ed education ekg elderly emergency endocrine endocrinology er evening exam expired failed
    fall family father february fellow female final findings first floor follow followed following follows for found
    friday friend from full gastroenterology gender general gentleman geriatrics given goals good granddaughter
    grandson guardian gyn had has have he head health heart hematology heme her here him his history home hospital
    hospitalist house how husband i icu id if ill impression improved in indication infectious information informed
    ins instructions intern internal into intubated is issues it its january july june known lab labs last left line
    lives lying made male man managed march may md medical medication medications medicine met micu middle monday
    mother mr mri ms n/a na name namely nephew nephrology neuro neurology neurosurgery new newborn niece nkda no
    none nor normal not note noted nothing notified november now nurse nursing ob october of off office old on
    oncology one only operative ophthalmology or orders oriented orthopedic orthopedics other our out outpatient
    over paged pain palliative parents partner past pathology patient pending per phone physical physician plan
    plastic please podiatry post pre present presented presents primary prior procedure progress provider psych
    psychiatry pt pulmonary radiology re reason received recommendations recommends record referring refused
    regarding rehab remains renal report reports resident resting resulted results review reviewed rheumatology
    right rn room said same saturday saw says scan see seems seen self sent september service services sex she sicu
    signed significant since sister sleeping social son speaking spoke spouse stable staff started states status
    still stroke summary sunday surgeon surgery surgical tba tbd team tele telephone test tests than that the their
    them then there these they this thoracic those thursday to today tolerated tomorrow tonight took transfer
    transferred trauma tuesday type unable uncle under unit unknown unresponsive until up upon urology wants was we
    wednesday weight well were when where which while who wife will with within without woman work would xray year
    years yes yesterday you your
"""
_NOT_NAMES = frozenset(_NOT_NAMES_WORDS.split())
_WORD = r"[A-Z](?:[a-z]{1,20}|[A-Z]{1,20}|'[A-Z][a-zA-Z]{1,20}|[a-z]{1,3}[A-Z][a-z]{1,20})(?:-[A-Z][a-zA-Z]{1,20})?"
_INITIAL = r"[A-Z]\.?"
_PART = rf"(?:(?:(?:de|del|la|van|von|der|den|di|da|dos|al|el|bin|ben|[Ss]t\.)[ ]){{0,2}}{_WORD})"
_NAME = rf"""(?:
    {_PART},[ ]{{0,2}}{_WORD}(?:[ ](?:{_INITIAL}(?!\w)|{_WORD}))?
    | {_WORD}(?:[ ]{_INITIAL}(?!\w))?(?:[ ]{_PART}){{1,2}}
    | {_INITIAL}[ ]?(?:{_INITIAL}[ ]?)?{_PART}
    | {_PART}
)(?![a-z])"""
_LOWER_NAME = r"(?P<found>[a-z]{3,20}(?:-[a-z]{2,20})?)\b"
_PARTS = re.compile(r"[A-Za-z'/\-]{2,}")
_RELATIVES = either(
    r"""wife, husband, son, daughter, sister, brother, mother, father, mom, dad, niece, nephew, aunt, uncle, cousin,
    friend, grandson, granddaughter, grandmother, grandfather, spouse, partner, girlfriend, boyfriend, fianc[eé]e?,
    neighbor, daughter-in-law, son-in-law, guardian, proxy, hcp"""
)
_DONE = either(
    """signed, dictated, transcribed, interpreted, read, reviewed, approved, entered, written, attested, cosigned,
    verified, performed, completed, prepared, reported, ordered"""
)
_LABELS = either(
    rf"""patient(?:'s)? name, pt name, name of patient, name, patient, pt, resident name, last name, first name,
    surname, attending(?: (?:physician|md|surgeon))?, surgeon, assistants?, assistant surgeon, anesthesiologist,
    referring(?: (?:physician|md|provider))?, provider, pcp, primary care(?: (?:physician|provider))?, physician,
    doctor, nurse, author, dictator, transcriptionist, radiologist, pathologist, consultant,
    (?:electronically )?(?:{_DONE.replace("|", "!")})(?: electronically)? by, health care proxy, next of kin, nok,
    emergency contact, contact(?: (?:name|person))?, spokesperson, cc, from, to, re, {_RELATIVES.replace("|", ",")}"""
).replace("!", "|")
_TITLES = "(?:(?:Dr|DR|Mr|Mrs|Ms|MR|MRS|MS)\\.?[ ])?"
_CREDENTIALS = either(
    r"""M\.?D, R\.?N, D\.?O, N\.?P, P\.?A(?:-C)?, Ph\.?D, LICSW, LCSW, MSW, RRT, RPH, PharmD, CRNA, DPM, DDS, MBBS,
    APRN, CNM, CRNP, MPH, PGY-?[1-9]"""
)


def is_name(words: str) -> bool:
    """Whether no word is one that stands where names stand and is none."""
    parts = _PARTS.findall(words)
    return bool(parts) and not any(part.lower() in _NOT_NAMES for part in parts)


def _is_name(match: re.Match[str]) -> bool:
    return is_name(match["found"])


def _begins_as_name(match: re.Match[str]) -> bool:
    """After a title the first word decides: in "Dr. Smith Cardiology" the name is cut by nothing."""
    parts = _PARTS.findall(match["found"])
    return bool(parts) and parts[0].lower() not in _NOT_NAMES


NAMES = (
    # Name: Smith, John
    Pattern(
        "name",
        verbose(rf"(?<!\w) (?i:{_LABELS}) [ ]?[:\#][ \t]{{0,8}} {_TITLES} (?P<found>{_NAME})"),
        _is_name,
        (":", "#"),
    ),
    # signed by Jane Roe; accompanied by her daughter Jane
    Pattern(
        "name",
        verbose(
            rf"""\b(?i:{_DONE}|seen|evaluated|followed|referred|accompanied|brought[ ]in)[ ](?i:electronically[ ])?
            (?i:by)[ ] (?:(?:his|her|the|their)[ ](?:{_RELATIVES}|nurse)[ ])? {_TITLES} (?P<found>{_NAME})"""
        ),
        _is_name,
        ("by", "BY", "By"),
    ),
    # Dr. Smith; Drs. Smith and Jones
    Pattern(
        "name",
        verbose(rf"\b(?:Dr|DR|dr|Drs|[Dd]octor|Prof|Professor|[Aa]ttending)\b\.?[ ]{{1,2}}(?P<found>{_NAME})"),
        _begins_as_name,
        ("Dr", "DR", "dr", "octor", "rof", "ttending"),
    ),
    Pattern(
        "name",
        verbose(rf"\b(?:Drs|Doctors)\b\.?[ ]{_NAME}(?:,[ ]{_NAME})?,?[ ](?:and|&)[ ](?P<found>{_NAME})"),
        _begins_as_name,
        ("Drs", "octors"),
    ),
    Pattern("name", verbose(rf"\bdr\.?[ ]{_LOWER_NAME}"), _is_name, ("dr",)),
    # Mr. Smith. MR and ms are magnetic resonance, mitral regurgitation, mental status
    Pattern(
        "name",
        verbose(
            rf"""\b(?:(?:Mr|Ms)\b\.?|M[RS]\.|M(?:rs|RS)\b\.?|Miss|Mister|Madame|Mme|Sister|Father|Rev\.?|Reverend|Nurse)
            [ ]{{1,2}}(?P<found>{_NAME})"""
        ),
        _begins_as_name,
        ("M", "Sister", "Father", "Rev", "Nurse"),
    ),
    Pattern("name", verbose(rf"\bmrs\.?[ ]{_LOWER_NAME}"), _is_name, ("mrs",)),
    # J. Smith, MD
    Pattern("name", verbose(rf"(?<![\w.]) (?P<found>{_NAME}),?[ ](?:{_CREDENTIALS})\b(?![a-z])"), _is_name),
    # her daughter Jane; wife (Jane Roe)
    Pattern(
        "name",
        verbose(
            rf"""\b(?i:{_RELATIVES}|pcp|named|nurse|social[ ]worker|case[ ]manager) (?:,[ ]|[ ]\(|[ ]is[ ]|[ ])
            {_TITLES} (?P<found>{_NAME})"""
        ),
        _is_name,
    ),
)
"""A name is ``Smith, John A``, ``John A. van Smith``, ``J. A. Smith`` or ``Smith``."""
