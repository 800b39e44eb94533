"""Names of people, where the words around them say that they are names. A name without such words is not found."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clinstack.privacy.identifiers.identifier import Identifier
from clinstack.privacy.identifiers.pattern import NAME, REACH, Pattern, either, ending, verbose

_NOT_NAMES_WORDS = """
    a about above account acct active acute additional address admission admit admitted after age aged alert all
    allergies allergy also am ambulance an and any april are as assessment at attending august aunt aware away back
    be bed been before being below bipap birth blood both brief brother but by called came can cardiac cardiology
    care case cc cell chest chief chronic clinic clip clips code comfortable comments complains complaint condition
    consent consult consulted contact continue continued continues contrast course cousin covering cpap csn ct cxr
    daily date daughter dc dea deceased december deferred denies department dermatology diagnosis dictated did
    discharge discharged discussed disposition dnr do doa dob dod does done dose drug drugs during ecg ed education
    ekg elderly electronically email emergency ems encounter endocrine endocrinology er evening exam expired failed
    fall family father fax february fellow female fin final findings first floor follow followed following follows
    for found friday friend from full gastroenterology gender general gentleman geriatrics given goals good
    granddaughter grandson guardian gyn had has have hcp he head health heart hematology heme her here him his
    history home hospital hospitalist house how husband i icu id if ill impression improved in indication infectious
    information informed ins instructions insurance intern internal into intubated is issues it its january job july
    june known lab labs last left license line lives loc location los lying made male man managed march may md
    medical medication medications medicine met micu middle monday mother mr mri mrn ms n/a na name namely nephew
    nephrology neuro neurology neurosurgery new newborn niece nkda no nok none nor normal not note noted nothing
    notified november now npi number nurse nursing ob october of off office old on oncology one only operative
    ophthalmology or orders oriented orthopedic orthopedics osh ot other our out outpatient over paged pager pain
    palliative parents partner past pathology patient pcp pending per phone physical physician plan plastic please
    podiatry police portal post pre present presented presents primary prior procedure progress provider psych
    psychiatry pt pulmonary race radiology re reason received recommendations recommends record referring refused
    regarding rehab remains renal report reports resident resting resulted results review reviewed rheumatology
    right rm rn room said same saturday saw says scan scheduled see seems seen self sent september service services
    sex she sicu signed significant since sister sleeping snf social son speaking spoke spouse ssn stable staff
    started stat states status still stroke summary sunday surgeon surgery surgical sw tba tbd team tel tele
    telephone test tests than that the their them then there these they this thoracic those thursday to today
    tolerated tomorrow tonight took transfer transferred trauma tuesday type ua unable uncle under unit unknown
    unresponsive until up upon urology vent vna wants was we wednesday weight well were when where which while who
    wife will with within without woman work would xray year years yes yesterday you your
"""
_NOT_NAMES = frozenset(_NOT_NAMES_WORDS.split())
_WORD = r"[A-Z](?:[a-z]{1,3}[A-Z][a-z]{1,20}|[a-z]{1,20}|[A-Z]{1,20}|'[A-Z][a-zA-Z]{1,20})(?:-[A-Z][a-zA-Z]{1,20})?"
_INITIAL = r"[A-Z]\.?"
_PARTICLES = "de|del|la|van|von|der|den|di|da|dos|al|el|bin|ben"
_PART = rf"(?:(?:(?:{_PARTICLES}|[Ss]t\.)[ ]){{0,2}}{_WORD})"
_NAME = rf"""(?:
    {_PART},[ ]{{0,2}}{_WORD}(?:[ ](?:{_INITIAL}(?!\w)|{_WORD}))?
    | {_WORD}(?:[ ]{_INITIAL}(?!\w))?(?:[ ]{_PART}){{1,2}}
    | {_INITIAL}[ ]?(?:{_INITIAL}[ ]?)?{_PART}
    | {_PART}
)(?![A-Za-z])"""
"""``Smith, John A``, ``John A. van Smith``, ``J. A. Smith`` or ``Smith``."""
_NAME_HERE = verbose(_NAME)
_LONGEST_SHORT_FORM = 4
_TITLE_HERE = verbose(r"(?:Dr|DR|Mr|Mrs|Ms|MR|MRS|MS)\.?[ ]")
_SECOND_HERE = verbose(rf"(?:,[ ]{_NAME})?,?[ ](?:and|&)[ ](?P<found>{_NAME})")
_PARTS = re.compile(r"[A-Za-z'/\-]{2,}")
_MAY_BEGIN = verbose(rf"[ \t(:\#](?=[A-Z]|(?:{_PARTICLES})[ ][A-Za-z])")
_CUE = verbose(
    r"""(?<![A-Za-z])(?P<word>[A-Za-z\-]{2,24})
    (?: (?P<label>[ ]?[:\#][ \t]{0,8}) | (?P<title>\.?[ ]{1,2}) | (?P<apposition>,[ ]|[ ]\(|[ ]is[ ]) )\Z"""
)
_RELATIVES_WORDS = """
    wife husband son daughter sister brother mother father mom dad niece nephew aunt uncle cousin friend grandson
    granddaughter grandmother grandfather spouse partner girlfriend boyfriend fiance fiancee neighbor
    daughter-in-law son-in-law sister-in-law brother-in-law guardian proxy hcp pcp named nurse manager worker
    cardiologist oncologist nephrologist neurologist urologist pulmonologist gastroenterologist hematologist
    psychiatrist endocrinologist rheumatologist dermatologist ophthalmologist podiatrist pediatrician internist
    hospitalist surgeon therapist radiologist pathologist anesthesiologist obstetrician
"""
_RELATIVES = frozenset(_RELATIVES_WORDS.split())
"""``daughter Jane``, ``wife (Jane Roe)``, ``proxy is Jane``."""
_LABELS_WORDS = """
    name names patient pt resident surname attending surgeon surgeons assistant assistants anesthesiologist referring
    provider care physician doctor md author dictator transcriptionist radiologist pathologist consultant by kin nok
    contact person spokesperson cc from to re
"""
_LABELS = frozenset(_LABELS_WORDS.split()) | _RELATIVES
"""The last word before a colon: ``Patient Name:``, ``Next of kin:``, ``Electronically signed by:``."""
_TITLES_WORDS = """
    Dr DR dr Drs Doctor Doctors doctor Prof Professor Attending attending Mr Mrs MRS Ms Miss Mister Madame Mme Rev
    Reverend Nurse
"""
_TITLES = frozenset(_TITLES_WORDS.split())
"""As they are written: MR and ms are magnetic resonance, mitral regurgitation, mental status."""
_DOTTED_TITLES = frozenset(("MR", "MS"))
_WITH = ending(r"(?:spoke|spoken|talked|discussed|reviewed|met|d/w)(?:[ ](?:by[ ]phone|at[ ]length))?[ ]with[ ]|d/w[ ]")
_BY = ending(
    either(
        """signed, dictated, transcribed, interpreted, read, reviewed, approved, entered, written, attested, cosigned,
        verified, performed, completed, prepared, reported, ordered, seen, evaluated, referred, accompanied,
        brought in"""
    ).join(("(?:", r")[ ](?:electronically[ ])?by[ ]"))
)


def is_name(words: str) -> bool:
    """Whether no word is one that stands where names stand and is none."""
    parts = _PARTS.findall(words)
    return bool(parts) and not any(part.lower() in _NOT_NAMES for part in parts)


def name_length(words: str) -> int:
    """Return how many characters are a name before the first word that is none: "Smith" of "Smith Cardiology"."""
    end = 0
    for part in _PARTS.finditer(words):
        if part.group().lower() in _NOT_NAMES:
            return end
        end = part.end()
    return len(words) if end else 0


class CuedNames:
    """Names after a word that announces one: a title, a label with its colon, a relative, "signed by"."""

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield what stands in ``text``, by position."""
        for begin in _MAY_BEGIN.finditer(text):
            start = begin.end()
            cue = _CUE.search(text, max(0, start - REACH), start)
            if cue is None:
                continue
            titled = self._is_title(cue)
            if not (titled or self._announces(text, cue)):
                continue
            title = None if titled else _TITLE_HERE.match(text, start)
            name = _NAME_HERE.match(text, title.end() if title else start)
            length = name_length(name.group()) if name else 0
            if name is None or not length:
                continue
            if cue["apposition"] is not None and length <= _LONGEST_SHORT_FORM and name.group()[:length].isupper():
                continue  # "mother (CAD, MI)"
            yield Identifier(name.start(), name.start() + length, "name", NAME)
            second = _SECOND_HERE.match(text, name.end()) if cue["word"] in ("Drs", "Doctors") else None
            if second is not None and is_name(second["found"]):
                yield Identifier(second.start("found"), second.end("found"), "name", NAME)

    @staticmethod
    def _is_title(cue: re.Match[str]) -> bool:
        word, sign = cue["word"], cue["title"]
        return sign is not None and (word in _TITLES or (word in _DOTTED_TITLES and sign[0] == "."))

    @staticmethod
    def _announces(text: str, cue: re.Match[str]) -> bool:
        word = cue["word"].lower()
        if cue["label"] is not None:
            return word in _LABELS and cue["word"] != "CC"  # the chief complaint, where cc: are copies
        if word in ("by", "with", "w"):
            expression = _BY if word == "by" else _WITH
            return expression.search(text, max(0, cue.end() - REACH), cue.end()) is not None
        return word in _RELATIVES and cue["title"] != ". "


class SignedNames:
    """Names before a degree: ``J. Smith, MD``."""

    _degree = verbose(
        r"""[MRDNPLACD](?<=[ ].)(?<=[A-Za-z.,][ ].)
        (?:(?<=M)\.?D|(?<=R)\.?N|(?<=D)\.?O|(?<=N)\.?P|(?<=P)\.?A(?:-C)?|(?<=P)h\.?D|(?<=L)ICSW|(?<=L)CSW|(?<=M)SW|(?<=R)RT
        |(?<=R)PH|(?<=P)harmD|(?<=C)RNA|(?<=D)PM|(?<=D)DS|(?<=M)BBS|(?<=A)PRN|(?<=C)NM|(?<=C)RNP|(?<=M)PH|(?<=P)GY-?[1-9])
        (?!\w)"""
    )
    _name = verbose(rf"(?<![\w.]) (?P<found>{_NAME}),?[ ]\Z")

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield what stands in ``text``, by position."""
        for degree in self._degree.finditer(text):
            start, end = max(0, degree.start() - REACH), degree.start()
            # The longest row of words comes first; "Attending Jane Roe, MD" leaves "Jane Roe" at the second try.
            for _ in range(4):
                name = self._name.search(text, start, end)
                if name is None or is_name(name["found"]):
                    break
                start = name.start("found") + 1
            if name is not None and is_name(name["found"]):
                yield Identifier(name.start("found"), name.end("found"), "name", NAME)


_LOWER_NAME = r"\.?[ ](?P<found>(?:[a-z]')?[a-z]{3,20}(?:-[a-z]{2,20})?)\b"
NAMES = (
    CuedNames(),
    SignedNames(),
    Pattern("name", verbose(rf"dr(?<![A-Za-z]dr){_LOWER_NAME}"), lambda match: is_name(match["found"])),
    Pattern("name", verbose(rf"mrs(?<![A-Za-z]mrs){_LOWER_NAME}"), lambda match: is_name(match["found"])),
)
