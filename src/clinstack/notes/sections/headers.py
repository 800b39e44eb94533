"""The headers of clinical notes: their names, the other ways of writing them, and what a line's beginning means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

ADMISSION_SECTIONS: tuple[str, ...] = (
    "CHIEF COMPLAINT",
    "PRESENT ILLNESS",
    "MEDICAL HISTORY",
    "MEDICATION ON ADMISSION",
    "ALLERGIES",
    "PHYSICAL EXAM",
    "FAMILY HISTORY",
    "SOCIAL HISTORY",
)
"""The sections known on admission, in the order in which they are written."""

LONGEST_HEADER = 60
"""Characters before the colon, at most."""

_TABLE = """\
CHIEF COMPLAINT: chief complaints; chief complain; cc; c/c; presenting complaint; presenting complaints; primary
    complaint; reason for admission; reason for hospitalization; reason for visit; reason for presentation; reason for
    consultation; reason for consult; reason for referral; chief complaint/reason for admission
PRESENT ILLNESS: history of present illness; history of the present illness; hpi; hx of present illness; history of
    presenting illness; history of present complaint; history present illness; history of current illness; history of
    illness; brief history of present illness; history of presenting problem; history of present problem; history of
    present illness and past medical history; chief complaint and history of present illness; chief complaint/history
    of present illness; chief complaint/hpi; cc/hpi; hpi/interval history; history; hx; brief history; brief hpi;
    history and reason for hospitalization; history of present hospitalization; present illness/history; hopi; history
    of the presenting illness
MEDICAL HISTORY: past medical history; pmh; pmhx; pmx; pm hx; past medical hx; past med hx; past hx; past medical and
    surgical history; past medical history/past surgical history; past medical/surgical history; past medical/surgical
    hx; past medical history and past surgical history; pmh/psh; pmhx/pshx; past history; past medical problems; past
    medical; past medical history and review of systems; significant past medical history; pertinent past medical
    history; past medical history per omr; medical and surgical history; medical history/surgical history; medical
    problems; past medical illnesses; past medical history/problem list; problem list; active medical problems;
    chronic medical problems; history of past illness; pmh per omr; comorbidities; previous medical history; prior
    medical history; adult medical problems; significant medical history
MEDICATION ON ADMISSION: medications on admission; meds on admission; home medications; home medication; home meds;
    admission medications; admission meds; admitting medications; medications at home; meds at home; medications prior
    to admission; meds prior to admission; preadmission medications; pre-admission medications; preadmission
    medication list; outpatient medications; outpatient meds; medications on presentation; medications upon admission;
    medications at admission; medications on arrival; medications at the time of admission; medications at time of
    admission; current home medications; list of medications on admission; home medication list; medications prior to
    hospitalization; medications as outpatient; current outpatient medications
ALLERGIES: drug allergies; medication allergies; known allergies; known drug allergies; allergy; allergies to drugs;
    allergies to medications; allergies/adverse reactions; allergies and adverse reactions; allergies/adverse drug
    reactions; allergies and sensitivities; allergies/sensitivities; allergies/reactions; adverse reactions; allergies
    to medicines; all
FAMILY HISTORY: family medical history; family hx; fam hx; famhx; fh; fhx; family medical hx; past family history;
    family and genetic history; family health history; pertinent family history; fam hist
SOCIAL HISTORY: social hx; sh; shx; soc hx; sochx; soc history; personal and social history; personal history; social
    and occupational history; habits; psychosocial history; social; social history and habits; psh/social history;
    social/occupational history; past social history; family social history; social and family history; family and
    social history; family/social history; social/family history; shx/fhx; sh/fh; fhx/shx; fh/sh; habits and social
    history
SURGICAL HISTORY: past surgical history; psh; pshx; past surgical hx; past surgical; past surgeries; surgeries; past
    operations; prior surgeries; past surgical history/procedures; previous surgeries; prior operations; previous
    surgical history; prior surgical history; surgical hx
OTHER HISTORY: past psychiatric history; psychiatric history; past ob history; ob history; ob/gyn history; obstetric
    history; gynecologic history; gyn history; birth history; developmental history; past obstetric history; oncologic
    history; past oncologic history; onc history; oncology history; past cardiac history; cardiac history; transfusion
    history; immunizations; past ob/gyn history; past ob-gyn history; treatment history; cardiac risk factors;
    coronary risk factors; substance abuse history; substance use history; travel history; legal history; dialysis
    history
REVIEW OF SYSTEMS: ros; review of symptoms; system review; systems review; review of system
ADMISSION DIAGNOSIS: admission diagnoses; admitting diagnosis; admitting diagnoses; diagnosis on admission; diagnoses
    on admission; initial diagnosis; provisional diagnosis; initial diagnoses; diagnosis at admission; diagnoses at
    admission; working diagnosis
MEDICATIONS: meds; medication; current medications; current meds; medication list; current medication; medication
    history; medicines; present medications
MEDICATIONS ON TRANSFER: meds on transfer; transfer medications; transfer meds; medications at transfer; medications
    at the time of transfer; medications upon transfer
TRANSFER EXAM: transfer physical exam; physical exam on transfer; exam on transfer; physical examination on transfer;
    pe on transfer; micu physical exam on transfer; exam at transfer; transfer pe
PERTINENT RESULTS: pertinent labs; pertinent laboratory data; pertinent data; labs; lab; lab data; lab results;
    labs/studies; labs and studies; labs/imaging; labs and imaging; laboratory data; laboratory; laboratories;
    laboratory results; laboratory studies; laboratory values; laboratory findings; laboratory examination; laboratory
    evaluation; laboratory and radiologic data; laboratory and imaging data; data; results; test results; imaging;
    imaging studies; imaging results; images; radiology; radiologic studies; radiology results; radiological studies;
    radiographic studies; radiographs; x-rays; studies; other studies; diagnostic studies; diagnostic data; diagnostic
    tests; diagnostics; microbiology; micro; micro data; reports; admission labs; labs on admission; labs at
    admission; laboratory data on admission; laboratories on admission; laboratory values on admission; admission
    laboratory data; discharge labs; labs on discharge; labs at discharge; pertinent results on admission; pertinent
    studies; relevant imaging; pathology; hemodynamic data; pertinent x-rays; pertinent findings; pertinent lab
    results; initial labs; significant labs; radiology/studies; radiologic data; laboratory and diagnostic data;
    pertinent imaging; other pertinent results
PROCEDURE: major surgical or invasive procedure; major surgical or invasive procedures; procedures; procedure
    performed; procedures performed; procedure done; name of procedure; title of procedure; title of procedures;
    principal procedure; principal procedures; operation; operations; operation performed; operations performed;
    operative procedure; operative procedures; title of operation; name of operation; operative procedure performed;
    surgical procedures; surgical procedure; major procedures; procedures and operations; operations and procedures;
    operations this admission; procedures during hospitalization; procedures during admission; invasive procedures;
    surgical or invasive procedures; main procedure; treatments/procedures
HOSPITAL COURSE: brief hospital course; hospital course by systems; hospital course by system; hospital course by
    problem; hospital course by problems; hospital course by issue; hospital course by issues; hospital course by
    issue/system; brief hospital course by problem; brief hospital course by problems; brief hospital course by
    system; brief hospital course by systems; brief hospital course by issue; brief hospital course by issues; summary
    of hospital course; brief summary of hospital course; brief summary of hospitalization; hospital course and
    treatment; hospital course including; summary of hospitalization; icu course; micu course; sicu course; ccu
    course; nicu course; micu/icu course; floor course; ed course and hospital course; course; course in hospital;
    course in the hospital; clinical course; concise summary of hospital course by issue/system; summary of hospital
    course by systems; summary of hospital course by system; postoperative course; post-operative course;
    hospitalization course; hospital course and medical decision making; brief course; hospital course/assessment and
    plan; acute issues; active issues; chronic issues; transitional issues; inpatient course; hospital summary;
    summary of course; brief icu course; brief micu course; hospital course to date
CONSULTATIONS: consults; consultation; consultants; consulting physicians
DISCHARGE MEDICATIONS: discharge meds; medications on discharge; medications at discharge; meds on discharge;
    discharge medication; discharge medication list; medications upon discharge; medications at the time of discharge;
    medications at time of discharge; d/c medications; d/c meds; discharge prescriptions; current medications on
    discharge; dc medications; dc meds; new medications; medication changes; changes to medications; prescriptions;
    medications prescribed; medications on discharge from hospital
DISCHARGE DIAGNOSIS: discharge diagnoses; final diagnosis; final diagnoses; diagnosis on discharge; diagnoses on
    discharge; diagnosis at discharge; principal diagnosis; principal diagnoses; primary diagnosis; primary diagnoses;
    secondary diagnosis; secondary diagnoses; discharge diagnosis/diagnoses; principal discharge diagnosis; primary
    discharge diagnosis; secondary discharge diagnosis; primary discharge diagnoses; secondary discharge diagnoses;
    d/c diagnosis; associated diagnoses; additional diagnoses; other diagnoses; postmortem diagnosis
DISCHARGE CONDITION: condition on discharge; condition at discharge; condition upon discharge; condition at the time
    of discharge; condition at time of discharge; condition; condition upon disposition; discharge status; status on
    discharge; status at discharge; patient condition; condition of patient; condition of the patient on discharge;
    patient condition on discharge; code status at discharge
DISCHARGE DISPOSITION: disposition; dispo; disposition on discharge; disposition at discharge; discharged to;
    discharge to; discharge disposition/location; discharge location; d/c disposition
DISCHARGE INSTRUCTIONS: instructions; patient instructions; discharge diet; diet on discharge; instructions on
    discharge; discharge instructions/follow-up; discharge instructions and followup; discharge plan; discharge plans;
    discharge plan/follow-up; plan on discharge; discharge recommendations; discharge activity; discharge activities;
    post procedure instructions; postoperative instructions; activity on discharge; care recommendations;
    care/recommendations; recommendations at discharge; discharge instruction; diet at discharge
FOLLOW-UP: followup instructions; follow-up instructions; follow up instructions; followup; follow up; follow-up
    plans; followup plans; follow-up plan; followup plan; follow-up appointments; followup appointments; discharge
    follow-up; discharge followup; discharge follow up; recommended follow-up; follow-up care; follow up care; pending
    results; pending results at discharge; follow-up appointment; follow up appointments; follow-up appointments
    scheduled/recommended; appointments; pending studies; issues for follow-up; follow-up recommendations; for
    follow-up
ADDENDUM: addenda; discharge summary addendum; addendum to discharge summary
DEMOGRAPHICS: name; patient name; unit no; mrn; medical record number; admission date; date of admission; discharge
    date; date of discharge; date of birth; dob; sex; age; gender; service; attending; attending physician; attending
    md; facility; admitted; discharged; date of service; primary care physician; pcp; referring physician; provider;
    date; surgeon; assistant; identifying data; identification; birthdate; date of procedure; date of operation;
    hospital; completed by; dictated by; signed by; electronically signed by; job number; medquist36; signed
    electronically by
SUBJECTIVE: interval history; 24 hour events; overnight events
OBJECTIVE:
ASSESSMENT AND PLAN: assessment/plan; a/p; a and p; plan; plans; assessment; impression and plan; impression/plan;
    impression and recommendations; assessment and recommendations; plan and recommendations; recommendations;
    recommendation; treatment plan; medical decision making; discussion; formulation; impression/recommendations;
    plan/recommendations; ap; recommendations/plan; plan of care; summary and plan; summary
DIAGNOSIS: diagnoses; diagnostic impression; clinical impression; problems/diagnoses
IMPRESSION: impressions; final impression; conclusion; conclusions; interpretation; opinion; wet read
FINDINGS: intraoperative findings; operative findings; gross findings; major findings; angiographic findings; finding;
    findings and procedure; description of findings; abnormal findings
INDICATION: indications; indications for procedure; indication for procedure; indications for operation; indication
    for operation; indications for surgery; indication for surgery; indications for the procedure; indication for the
    procedure; clinical history; clinical information; clinical indication; reason for exam; reason for this
    examination; reason for examination; reason for study; reason for test; medical condition; clinical
TECHNIQUE: procedure in detail; procedure detail; procedure details; description of procedure; description of the
    procedure; details of procedure; details of the procedure; description of operation; description of the operation;
    operative procedure in detail; operation in detail; operative technique; procedure note; operative note; details
    of the operation; procedure description; protocol; procedure and findings; technique and findings; description of
    procedure in detail; description of technique
COMPARISON: comparisons; comparison study; compared to; prior studies; prior study
PREOPERATIVE DIAGNOSIS: preoperative diagnoses; pre-operative diagnosis; preop diagnosis; pre-op diagnosis;
    preprocedure diagnosis; pre-procedure diagnosis; preoperative dx; preop dx
POSTOPERATIVE DIAGNOSIS: postoperative diagnoses; post-operative diagnosis; postop diagnosis; post-op diagnosis;
    postprocedure diagnosis; post-procedure diagnosis; postoperative dx; postop dx
OPERATION FACTS: anesthesia; complications; estimated blood loss; ebl; blood loss; specimens; specimen; drains; drain;
    fluids; iv fluids; fluids received; urine output; tourniquet time; total tourniquet time; hemostasis; implants;
    counts; tubes and drains; premedication; premedications; informed consent; consent; specimens removed; specimen
    removed
"""
_EXAM = "physical exam; physical examination; pe; px; pex; exam; examination; physical; phys exam; physical findings"
_AT_ADMISSION = """\
{}; admission {}; admitting {}; initial {}; {} on admission; {} at admission; {} upon admission; {} on arrival;
    {} on presentation; {} at presentation; {} at time of admission; {} at the time of admission; {} in the ed
"""
_AFTERWARDS = """\
discharge {}; d/c {}; dc {}; {} on discharge; {} at discharge; {} upon discharge; {} prior to discharge;
    {} at time of discharge; {} at the time of discharge; {} on day of discharge; {} on the day of discharge
"""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(";") if item.strip())


def _filled(patterns: str, words: str) -> tuple[str, ...]:
    return tuple(pattern.format(word) for word in _listed(words) for pattern in _listed(patterns))


def _headers() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for entry in re.split(r"\n(?=\S)", _TABLE):
        name, _, aliases = entry.partition(":")
        # A name is always a way of writing itself, so that what this package writes is read back.
        found[name] = (name.lower(), *_listed(aliases))
    found["PHYSICAL EXAM"] = (
        "physical exam",
        *_filled(_AT_ADMISSION, _EXAM),
        "admission vitals and physical exam",
        "general physical examination",
    )
    found["DISCHARGE EXAM"] = _filled(_AFTERWARDS, f"exam; {_EXAM}; vitals; vital signs; vs; mental status")
    return {name: tuple(dict.fromkeys(aliases)) for name, aliases in found.items()}


HEADERS = _headers()
"""Names of sections, each with its ways of writing, in lower case and without numbers and brackets; its own first."""

_NAME_OF = {alias: name for name, aliases in HEADERS.items() for alias in aliases}

_ALONE = frozenset(alias for alias, name in _NAME_OF.items() if len(alias) >= 8 and name != "DEMOGRAPHICS") - {
    "past medical",
    "past surgical",
    "physical",
}
"""Those that are a header without a colon, alone on their line; shorter ones are words of many meanings."""

SOFT = frozenset(
    _listed(
        """
        MEDICATIONS; OTHER HISTORY; SUBJECTIVE; OBJECTIVE; ASSESSMENT AND PLAN; DIAGNOSIS; IMPRESSION; FINDINGS;
        INDICATION; TECHNIQUE; COMPARISON; OPERATION FACTS; CONSULTATIONS; REVIEW OF SYSTEMS
        """
    )
)
"""Inside a named section that is not of the admission, these open a new one only after a blank line: a hospital course
or a list of results has an "Impression:" of its own."""

_EXAM_WORDS = frozenset(
    _listed(
        """
        vs; v/s; vitals; vital; gen; general; heent; head; eyes; ears; nose; throat; mouth; oropharynx; op; ent;
        neck; cv; cvs; cor; cardiac; cardiovascular; heart; lungs; lung; pulm; pulmonary; resp; respiratory; chest;
        thorax; abd; abdomen; abdominal; gi; gu; gastrointestinal; genitourinary; genitalia; ext; extr; extrem;
        extremity; extremities; neuro; neurologic; neurological; cns; skin; integumentary; psych; psychiatric;
        rectal; msk; ms; musculoskeletal; back; spine; lymph; lymphatic; lymphatics; nodes; pulses; vascular; t; tm;
        tc; temp; temperature; bp; hr; rr; pulse; weight; height; wt; o2; spo2; sat; sats; breast; breasts; pelvic;
        mental; motor; sensory; sensation; reflexes; reflex; gait; station; coord; coordination; cranial; cn; dtr;
        dtrs; tone; strength; language; orientation; attention; constitutional; appearance; wound; incision;
        dermatologic; access; lines; endocrine; hematologic; on; at; admission; arrival; micu; icu; floor
        """
    )
)
_RESULT_WORDS = frozenset(
    _listed(
        """
        ct; cta; mri; mra; xray; x-ray; x-rays; cxr; us; u/s; ultrasound; cath; catheterization; echo; tte; tee;
        enzymes; labs; radiograph; film; films; scan; biopsy; culture; cultures; ekg; ecg; study; studies; course;
        discharge; d/c; surgery; transfer
        """
    )
)
_ILLNESS_PARTS = frozenset(
    _listed(
        """
        ed course; ed; in ed; in the ed; emergency department course; emergency room course; in the emergency
        department; initial vitals; initial vital signs; vitals; vital signs; vs; ed vitals; triage vitals; on
        arrival; upon arrival; on the floor; on arrival to the floor; on arrival to the micu; currently; on
        presentation; at osh; osh course; in er; er course; in the ed, initial vitals; vitals in the ed; vitals on
        arrival; in the er; interval history
        """
    )
)
_PROSE = frozenset(
    _listed(
        """
        he; she; they; we; i; it; his; her; their; this; that; these; there; the; a; an; pt; patient; per; please
        """
    )
)

DECORATION = "#*=_•·>|~ \t"
"""What may stand around a header: signs of lists, tables and marked-up text."""

_NUMBERING = re.compile(r"^(?:\(?\d{1,2}[.)]|[ivx]{1,4}[.)]|[a-h][.)])\s*")
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_AT_DISCHARGE = re.compile(
    r"^(?:discharge|d/c)\b|\b(?:on|upon|at|before|prior to|of)(?: the)?(?: day of| time of)? (?:discharge|d/c)\b"
)


@dataclass(frozen=True)
class Header:
    """What the beginning of a line means as a header.

    Parameters
    ----------
    words : str
        As compared: in lower case, without numbers, brackets and decoration.
    name : str or None
        A key of `HEADERS`, or None for a header without a name.
    certain : bool
        Whether it is a header wherever a line begins; else only after a blank line.
    exam_part, illness_part : bool
        Whether it belongs to a physical exam, or to the story of the illness, when it stands in one.
    at_discharge : bool
        Whether it says that what follows was written at discharge.
    """

    words: str
    name: str | None
    certain: bool
    exam_part: bool = False
    illness_part: bool = False
    at_discharge: bool = False


@lru_cache(maxsize=1 << 14)
def read_header(written: str) -> Header | None:
    """Return what the words before a colon mean, or None when they are no header.

    Parameters
    ----------
    written : str
        A line as far as its first colon.
    """
    bare = written.strip(DECORATION)
    if not bare or len(bare) > LONGEST_HEADER:
        return None
    words = _plain(bare)
    name = _NAME_OF.get(words)
    if name is not None:
        # "# PE:" in a list of problems is an embolism; decoration goes with long names only.
        decorated = written.lstrip()[:1] in DECORATION
        return None if decorated and len(words) < 8 else Header(words, name, certain=True)
    parts = words.split()
    if "hospital course" in words and len(parts) <= 9:
        # Also "HPI and hospital course": what tells the course is not of the admission.
        return Header(words, "HOSPITAL COURSE", certain=True)
    if not parts or len(bare.split()) > 5 or parts[0] in _PROSE:
        return None
    if _AT_DISCHARGE.search(words):
        return Header(words, None, certain=True, at_discharge=True)
    # "# CHF:" is an item of a list; a digit may begin a header ("2. Labs"), but a date is none.
    begins = bare[0]
    if not (begins.isupper() or begins.isdigit()) or ". " in _NUMBERING.sub("", bare.lower()):
        return None
    if not any(letter.isalpha() for letter in words):
        return None
    exam_part = parts[0] in _EXAM_WORDS and _RESULT_WORDS.isdisjoint(parts)
    return Header(words, None, certain=False, exam_part=exam_part, illness_part=words in _ILLNESS_PARTS)


def header_alone(line: str) -> bool:
    """Whether a line without a colon is a known header and nothing else."""
    return line.strip().strip(DECORATION).lower() in _ALONE


def name_in_capitals(words: str) -> str | None:
    """Return the name of a header written in capitals in the middle of a line, or None."""
    return _NAME_OF.get(words.lower())


def _plain(words: str) -> str:
    plain = _BRACKETS.sub(" ", _NUMBERING.sub("", words.lower())).replace("&", " and ").replace("_", " ")
    return " ".join(plain.split()).replace(" / ", "/").strip(" .,-–—;'\"*")
