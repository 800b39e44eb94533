"""Traps in the notes: which are kept, in what order they are joined, and how sections are found."""

from __future__ import annotations

from collections.abc import Callable

from clinstack.notes.cohort.discharge import addendum
from clinstack.notes.cohort.stay import Sections, Stay
from clinstack.notes.cohort.trap import Trap
from clinstack.notes.cohort.ward_notes import nursing_note

_COMPLAINT, _ILLNESS, _HISTORY = "Chief Complaint", "History of Present Illness", "Past Medical History"


def _plain(stay: Stay, **values: object) -> None:
    stay.summarize(stay.text(stay.sections()), **values)


def _rows(**values: object) -> Callable[[Stay], None]:
    """Plant a plain report with other columns than it should have."""
    return lambda stay: _plain(stay, **values)


def _sections(change: Callable[[Sections], Sections]) -> Callable[[Stay], None]:
    """Plant a report with changed sections."""
    return lambda stay: stay.summarize(stay.text(change(stay.sections())))


def _text(change: Callable[[str], str]) -> Callable[[Stay], None]:
    """Plant a report with a changed text."""
    return lambda stay: stay.summarize(change(stay.text(stay.sections())))


def _renamed(old: str, new: str) -> Callable[[Sections], Sections]:
    return lambda sections: {new if header == old else header: body for header, body in sections.items()}


def _inserted(before: str, header: str, body: str) -> Callable[[Sections], Sections]:
    def change(sections: Sections) -> Sections:
        changed: Sections = {}
        for name, text in sections.items():
            if name == before:
                changed[header] = body
            changed[name] = text
        return changed

    return change


def _no_hadm(stay: Stay) -> None:
    _plain(stay, HADM_ID=None)


def _no_admission(stay: Stay) -> None:
    _plain(stay)
    stay.drop("ADMISSIONS")


def _newborn(stay: Stay) -> None:
    _plain(stay)
    stay.edit("ADMISSIONS", ADMISSION_TYPE="NEWBORN")


def _not_available(stay: Stay) -> None:
    stay.summarize(stay.chance.pick(("NA", "null")))


def _physician(stay: Stay) -> None:
    _plain(stay)
    text = nursing_note(stay.chance, stay.patient, stay.admission)
    stay.note("Physician ", "Physician Resident Progress Note", text, -6)


def _nursing_only(stay: Stay) -> None:
    stay.drop("NOTEEVENTS", lambda row: row["CATEGORY"] == "Discharge summary")
    stay.note("Nursing", "Report", nursing_note(stay.chance, stay.patient, stay.admission), -6)


def _addendum_only(stay: Stay) -> None:
    _plain(stay, DESCRIPTION="Addendum")


def _addendum_before(stay: Stay) -> None:
    _plain(stay)
    text = stay.text({_COMPLAINT: "addendum written first", "Discharge Condition": "see the report"})
    stay.note("Discharge summary", "Addendum", text, -48)


def _addendum_same_day(stay: Stay) -> None:
    # The addendum stands first in the file, so that a stable sort by date alone puts it first in the text.
    report = stay.text(stay.sections())
    stay.summarize(addendum(stay.chance, stay.patient, stay.admission), DESCRIPTION="Addendum")
    stay.note("Discharge summary", "Report", report)


def _two_reports(stay: Stay) -> None:
    _plain(stay)
    sections = stay.sections() | {_COMPLAINT: "second report of the same stay"}
    stay.note("Discharge summary", "Report", stay.text(sections), 48)


def _same_admission_twice(stay: Stay) -> None:
    text = stay.text(stay.sections())
    stay.summarize(text)
    stay.note("Discharge summary", "Report", text, 24)


def _copied(copies: int, *, other_patient: bool, same_day: bool = False) -> Callable[[Stay], None]:
    """Plant the same text in further admissions."""

    def plant(stay: Stay) -> None:
        text = stay.text(stay.sections())
        stay.summarize(text)
        for number in range(copies):
            # A further stay lasts four days.
            twin = stay.twin(number, -4 if same_day else 9 + number, other_patient=other_patient)
            twin.note("Discharge summary", "Report", text)

    return plant


def _single_newlines(text: str) -> str:
    return text.replace(f"\n\n{_ILLNESS}:", f"\n{_ILLNESS}:").replace("\n\nFamily History:", "\nFamily History:")


def _last_open(sections: Sections) -> Sections:
    """End with the history: nothing after it closes it."""
    kept = (_COMPLAINT, _ILLNESS, "Social History")
    return {name: sections[name] for name in kept} | {_HISTORY: sections[_HISTORY]}


def _brackets(sections: Sections) -> Sections:
    return sections | {"Allergies": "[]", _COMPLAINT: f"[] {sections[_COMPLAINT]}"}


def _prose(text: str) -> str:
    return text.replace(f"\n\n{_HISTORY}:", f"\n\nShe said the following: it began at home.\n\n{_HISTORY}:")


def _blanks(text: str) -> str:
    return "  " + text.replace(", ", ",   ").replace("\n\nSocial", "  \n\n\n\nSocial") + "\n \n"


def _unicode(sections: Sections) -> Sections:
    words = "na\u00efve caf\u00e9, 5 \u00b5g, \u2265 3 \u00d7, \u201cbetter\u201d,\u00a0no\u2028pain \u2764\ufe0f"
    return sections | {_ILLNESS: f"{sections[_ILLNESS]} {words}"}


def _quotes(sections: Sections) -> Sections:
    return sections | {_ILLNESS: f'he said, "it hurts, ""here""",\n"and there", {sections[_ILLNESS]}'}


def _without(*names: str) -> Callable[[Sections], Sections]:
    return lambda sections: {name: body for name, body in sections.items() if name not in names}


NOTE_TRAPS = (
    Trap("note-without-admission", "the discharge summary has no HADM_ID", _no_hadm),
    Trap("admission-row-missing", "the HADM_ID of a summary is not in ADMISSIONS", _no_admission),
    Trap("newborn-with-summary", "a summary of an admission of type NEWBORN", _newborn),
    Trap("empty-text", "a summary whose text is empty", lambda stay: stay.summarize("")),
    Trap("text-not-available", 'a summary whose text is "NA" or "null", which pandas reads as missing', _not_available),
    Trap("category-trailing-space", 'the category is "Discharge summary " ', _rows(CATEGORY="Discharge summary ")),
    Trap("physician-trailing-space", 'a note of the category "Physician ", as in MIMIC-III', _physician),
    Trap("nursing-only", "an admission with nursing notes and no summary", _nursing_only),
    Trap("marked-as-error", "the only summary has ISERROR = 1", _rows(ISERROR="1")),
    Trap("addendum-only", "an addendum without a report", _addendum_only),
    Trap("addendum-before-report", "an addendum with sections, dated two days before the report", _addendum_before),
    Trap("addendum-same-day", "an addendum of the report's day, before it in the file", _addendum_same_day),
    Trap("two-reports", "two reports of one admission, with different texts", _two_reports),
    Trap("copy-same-admission", "the same text twice in one admission", _same_admission_twice),
    Trap("copy-other-admission", "the same text in two admissions of a patient", _copied(1, other_patient=False)),
    Trap("copy-other-patient", "the same text in admissions of two patients", _copied(1, other_patient=True)),
    Trap(
        "copies-same-day",
        "the same text in admissions of six patients, all of one day",
        _copied(5, other_patient=True, same_day=True),
    ),
    Trap("single-newline-header", "headers after one line end instead of a blank line", _text(_single_newlines)),
    Trap("empty-section", "an empty chief complaint", _sections(lambda sections: sections | {_COMPLAINT: ""})),
    Trap("last-section-open", "the history is the last section: nothing closes it", _sections(_last_open)),
    Trap("header-with-digit", "the next header has a digit", _sections(_inserted(_ILLNESS, "2. Labs", "na 140"))),
    Trap("header-with-bracket", "the next header has brackets", _sections(_inserted(_ILLNESS, "Exam (brief)", "ok"))),
    Trap("header-with-dot", "the next header has a full stop", _sections(_inserted(_ILLNESS, "Dr. Known", "seen"))),
    Trap("colon-in-prose", "a paragraph of prose with a colon", _text(_prose)),
    Trap(
        "family-medical-history",
        '"Family Medical History:" before "Past Medical History:"',
        _sections(_inserted(_HISTORY, "Family Medical History", "mother had cad")),
    ),
    Trap(
        "physical-examination",
        'the header is "Physical Examination:"',
        _sections(_renamed("Physical Exam", "Physical Examination")),
    ),
    Trap(
        "home-medications",
        'the header is "Home Medications:"',
        _sections(_renamed("Medications on Admission", "Home Medications")),
    ),
    Trap(
        "admission-medications",
        'the header is "Admission Medications:"',
        _sections(_renamed("Medications on Admission", "Admission Medications")),
    ),
    Trap("empty-brackets", 'sections that begin with "[]"', _sections(_brackets)),
    Trap(
        "no-main-section",
        "no chief complaint, present illness or medical history",
        _sections(_without(_COMPLAINT, _ILLNESS, _HISTORY)),
    ),
    Trap(
        "history-only",
        "the past medical history is the only one of the three main sections",
        _sections(_without(_COMPLAINT, _ILLNESS)),
    ),
    Trap(
        "literal-backslash-n",
        "a backslash followed by an n in the text",
        _sections(lambda sections: sections | {_COMPLAINT: f"{sections[_COMPLAINT]} c:\\new\\name"}),
    ),
    Trap("several-blanks", "several blanks and blank lines in a row, also at both ends", _text(_blanks)),
    Trap("unicode", "letters and signs outside ASCII, a no-break space and a line separator", _sections(_unicode)),
    Trap("quotes-and-commas", "quotation marks, commas and line ends in the text", _sections(_quotes)),
    Trap("carriage-returns", "lines end with CR LF", _text(lambda text: text.replace("\n", "\r\n"))),
)
