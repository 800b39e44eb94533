"""Finding sections, cutting the admission part, and mentions of death."""

from pathlib import Path

import pyarrow as pa
import pytest

from clinstack.notes.death_mentions import death_rule, without_charted_death
from clinstack.notes.sections.find import (
    SectionSpan,
    admission_sections,
    admission_text,
    admission_text_with_map,
    section_map,
    sections_type,
    split_sections,
)
from clinstack.notes.sections.headers import ADMISSION_SECTIONS, HEADERS, read_header
from clinstack.notes.sections.priority import PRIORITIES

NOTE = """Admission Date: 2150-1-1

Chief Complaint:
fall

History of Present Illness:
67 yo m
with chest pain

Past Medical History:
HTN, DM2
"""


def test_sections_come_in_fixed_order_and_empty_ones_are_left_out() -> None:
    note = "Allergies:\nNKDA\n\nPMH:\nchf\n\nHPI: sob\n\nFamily History:\n\nSocial History:\n[]\n\nLabs:\nNa 140\n"
    assert admission_text(note) == "PRESENT ILLNESS: sob\n\nMEDICAL HISTORY: chf\n\nALLERGIES: NKDA"


def test_the_last_section_of_a_note_counts() -> None:
    assert admission_sections(NOTE)["MEDICAL HISTORY"] == "HTN, DM2"


def test_lines_of_a_section_are_joined() -> None:
    assert admission_sections(NOTE)["PRESENT ILLNESS"] == "67 yo m with chest pain"


def test_an_empty_section_does_not_swallow_the_next() -> None:
    found = admission_sections("Chief Complaint:\n\nHistory of Present Illness:\nreal text\n\nPMH:\nMH\n")
    assert found == {"PRESENT ILLNESS": "real text", "MEDICAL HISTORY": "MH"}


@pytest.mark.parametrize("header", ["2. Labs", "Exam (brief)", "V/S at 9am", "3) Imaging", "Labs on admission (day 1)"])
def test_a_header_with_digits_or_brackets_closes_a_section(header: str) -> None:
    assert admission_sections(f"Chief Complaint:\nfall\n\n{header}: Na 140\n")["CHIEF COMPLAINT"] == "fall"


def test_a_colon_in_a_sentence_closes_nothing() -> None:
    note = "Chief Complaint:\nfall\n\nShe said the following: it hurts.\n\nHPI:\ntripped\n"
    assert admission_sections(note)["CHIEF COMPLAINT"] == "fall She said the following: it hurts."


def test_a_known_header_after_one_newline_counts() -> None:
    assert admission_sections("CC: fall\nHPI: tripped at 10:30\nPMH: none") == {
        "CHIEF COMPLAINT": "fall",
        "PRESENT ILLNESS": "tripped at 10:30",
        "MEDICAL HISTORY": "none",
    }


def test_a_header_inside_a_line_does_not_count() -> None:
    note = "Chief Complaint:\nfall History of Present Illness: tripped\n"
    assert admission_sections(note) == {"CHIEF COMPLAINT": "fall History of Present Illness: tripped"}


def test_family_medical_history_is_not_the_patients() -> None:
    found = admission_sections("Family Medical History:\nmother had CAD\n\nPast Medical History:\ngout\n")
    assert found == {"FAMILY HISTORY": "mother had CAD", "MEDICAL HISTORY": "gout"}


def test_the_parts_of_an_exam_stay_in_it() -> None:
    note = "HPI:\nsob\n\nPhysical Examination:\nVS: 98.6\n\nGen: NAD\n\nCV: RRR\n\nPertinent Results:\nNa 140\n"
    assert admission_sections(note)["PHYSICAL EXAM"] == "VS: 98.6 Gen: NAD CV: RRR"


def test_the_first_filled_section_of_a_name_wins() -> None:
    assert admission_sections("PMH:\n\nHPI: sob\n\nPMH:\nfirst\n\nPMH:\nsecond\n")["MEDICAL HISTORY"] == "first"


def test_a_note_without_the_main_sections_has_no_admission_text() -> None:
    assert admission_text("Allergies: NKDA\n\nPhysical Exam: NAD\n") is None


def test_the_hospital_course_is_never_part_of_the_admission() -> None:
    note = "HPI:\nsob\n\nBrief Hospital Course:\npt expired\n\nDischarge Condition:\nexpired\n"
    assert admission_text(note) == "PRESENT ILLNESS: sob"


def test_all_text_is_in_some_section() -> None:
    bodies = " ".join(section.body for section in split_sections("before any header\n" + NOTE))
    assert "before any header" in bodies
    assert "HTN, DM2" in bodies


# What the published expression makes of each of these is named behind it.
PUBLISHED_FAILS_ON = {
    "last section": (
        "Chief Complaint:\nfall\n\nHospital Course:\nok\n\nPhysical Exam:\nthe last of the note",
        {"CHIEF COMPLAINT": "fall", "PHYSICAL EXAM": "the last of the note"},
    ),  # loses the exam: no header closes it
    "one newline": (
        "Chief Complaint: fall\nHistory of Present Illness: tripped\n\nPast Medical History: none\n\nLabs: ok",
        {"CHIEF COMPLAINT": "fall", "PRESENT ILLNESS": "tripped", "MEDICAL HISTORY": "none"},
    ),  # "fall History of Present Illness: tripped"
    "empty section": (
        "Chief Complaint:\n\nHistory of Present Illness:\nreal HPI text\n\nPMH:\nMH\n\nLabs:\nok",
        {"PRESENT ILLNESS": "real HPI text", "MEDICAL HISTORY": "MH"},
    ),  # the complaint swallows the next header and its text
    "digit or bracket in the next header": (
        "Chief Complaint:\nfall\n\n2. Labs: Na 140\n\nExam (brief): ok\n\nV/S at 9am: fine\n\nName: x",
        {"CHIEF COMPLAINT": "fall", "PHYSICAL EXAM": "ok V/S at 9am: fine"},
    ),  # the complaint runs on to the name
    "colon in prose": (
        "Chief Complaint:\nfall\n\nShe said the following: it hurts.\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "fall She said the following: it hurts."},
    ),  # the sentence closes the complaint
    "family first": (
        "Chief Complaint:\nfall\n\nFamily Medical History:\nMOTHER HAD CAD\n\n"
        "Past Medical History:\nTHE REAL PMH\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "fall", "MEDICAL HISTORY": "THE REAL PMH", "FAMILY HISTORY": "MOTHER HAD CAD"},
    ),  # the mother's history is the patient's
    "physical examination": (
        "Chief Complaint:\nfall\n\nPhysical Examination:\nNAD\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "fall", "PHYSICAL EXAM": "NAD"},
    ),  # no exam
    "home medications": (
        "Chief Complaint:\nfall\n\nHome Medications:\naspirin\n\nAdmission Medications:\nsame\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "fall", "MEDICATION ON ADMISSION": "aspirin"},
    ),  # no medications
    "placeholder": (
        "Chief Complaint:\n[] nothing\n\nAllergies:\n[]\n\nSocial History:\n___\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "[] nothing"},
    ),  # allergies are "[]"
    "backslash": (
        "Chief Complaint:\npath c:\\new\\name\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "path c:\\new\\name"},
    ),  # "path c: ew ame"
    "spaces": (
        "Chief Complaint:\nchest    pain\n   wrapped\n\nLabs:\nok",
        {"CHIEF COMPLAINT": "chest pain wrapped"},
    ),  # inner blanks stay
    "only a past medical history": ("Past Medical History:\nCHF\n\nLabs: ok", {"MEDICAL HISTORY": "CHF"}),
}


@pytest.mark.parametrize(("note", "expected"), PUBLISHED_FAILS_ON.values(), ids=PUBLISHED_FAILS_ON)
def test_cases_in_which_the_published_expression_fails(note: str, expected: dict[str, str]) -> None:
    assert admission_sections(note) == expected


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("HISTORY OF PRESENT ILLNESS", "PRESENT ILLNESS"),
        ("3. Past Medical History", "MEDICAL HISTORY"),
        ("II. PMH/PSH", "MEDICAL HISTORY"),
        ("ADMISSION MEDICATIONS", "MEDICATION ON ADMISSION"),
        ("Major Surgical or Invasive Procedure", "PROCEDURE"),
        ("Pertinent Results", "PERTINENT RESULTS"),
        ("Brief Hospital Course", "HOSPITAL COURSE"),
        ("HPI and hospital course", "HOSPITAL COURSE"),
        ("Discharge Medications", "DISCHARGE MEDICATIONS"),
        ("Final Diagnoses", "DISCHARGE DIAGNOSIS"),
        ("Condition on Discharge", "DISCHARGE CONDITION"),
        ("Discharge Instructions", "DISCHARGE INSTRUCTIONS"),
        ("Physical Exam on Discharge", "DISCHARGE EXAM"),
        ("PHYSICAL EXAMINATION ON ADMISSION (per ED)", "PHYSICAL EXAM"),
        ("Follow-up Instructions", "FOLLOW-UP"),
        ("**Chief Complaint**", "CHIEF COMPLAINT"),
        ("Allergies ___", "ALLERGIES"),
        ("Social & Occupational History", "SOCIAL HISTORY"),
    ],
)
def test_headers_have_names_however_written(header: str, name: str) -> None:
    assert [(section.name, section.header) for section in split_sections(f"{header}: text")] == [(name, header)]


def test_each_way_of_writing_has_one_name() -> None:
    ways = [alias for aliases in HEADERS.values() for alias in aliases]
    assert len(ways) == len(set(ways))
    for name, aliases in HEADERS.items():
        for alias in aliases:
            header = read_header(alias.upper())
            assert header is not None
            assert header.name == name
    assert set(ADMISSION_SECTIONS) < set(HEADERS)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_every_newline_ends_a_line(newline: str) -> None:
    assert admission_sections(NOTE.replace("\n", newline)) == admission_sections(NOTE)
    assert len(admission_sections(NOTE)) == 3


def test_a_long_header_alone_on_its_line_needs_no_colon() -> None:
    note = "PAST MEDICAL HISTORY\ngout\n\nSocial History\n----\nlives alone\n\nsmokes\nphysical exam\ngood\n"
    assert admission_sections(note) == {
        "MEDICAL HISTORY": "gout",
        "SOCIAL HISTORY": "lives alone smokes physical exam good",
    }


def test_a_broken_header_below_an_empty_section_counts() -> None:
    note = "HPI: sob\nSOCIAL HISTORY\nFAMILY MEDICAL\nHISTORY: CAD\n"
    assert admission_sections(note) == {"PRESENT ILLNESS": "sob", "FAMILY HISTORY": "CAD"}


def test_a_note_that_lost_its_newlines_has_its_sections_by_capitals() -> None:
    note = (
        "CHIEF COMPLAINT:,Fall.,HISTORY OF PRESENT ILLNESS: , She tripped. PAST MEDICAL HISTORY:, 1.  Gout. "
        "VITAL SIGNS: ok; ALLERGIES: none.  HOSPITAL COURSE: well. A FAMILY HISTORY: unknown"
    )
    assert admission_sections(note) == {
        "CHIEF COMPLAINT": "Fall.",
        "PRESENT ILLNESS": "She tripped.",
        "MEDICAL HISTORY": "1. Gout. VITAL SIGNS: ok;",
        "ALLERGIES": "none.",
    }


def test_an_exam_or_medications_of_the_discharge_are_not_of_the_admission() -> None:
    note = (
        "HPI:\nsob\n\nHospital Course:\nwell\n\nMedications:\naspirin\n\nDischarge Condition:\ngood\n\n"
        "Physical Exam:\nwell\n\ncc: Dr. X\n"
    )
    assert admission_sections(note) == {"PRESENT ILLNESS": "sob"}
    early = "HPI:\nsob\n\nMedications:\naspirin\n\nPhysical Exam:\nVS: ok\n\nOn Discharge: walks\n"
    assert admission_sections(early) == {
        "PRESENT ILLNESS": "sob",
        "MEDICATION ON ADMISSION": "aspirin",
        "PHYSICAL EXAM": "VS: ok",
    }


def test_the_report_behind_an_addendum_has_its_own_exam() -> None:
    note = "Addendum:\nx\n\nDischarge Disposition:\nhome\n\nChief Complaint:\nfall\n\nPhysical Exam:\nNAD\n"
    assert admission_sections(note)["PHYSICAL EXAM"] == "NAD"


def test_headers_of_parts_stay_in_the_hospital_course() -> None:
    note = "Hospital Course:\n# PE: heparin\n\nNeuro: fine\n\nLabs: ok\nImpression: good\n\nDischarge Condition:\ngood"
    assert [section.name for section in split_sections(note)] == [
        "HOSPITAL COURSE",
        "PERTINENT RESULTS",
        "DISCHARGE CONDITION",
    ]
    assert "Neuro: fine" in split_sections(note)[0].body


def test_an_exam_with_parts_called_exam_is_one() -> None:
    note = "Physical Exam:\n====\nADMISSION EXAM:\nVS: ok\nDrains: two\n\nExam:\nNAD\n\nDISCHARGE EXAM:\nwalks\n"
    assert admission_sections("HPI: a\n" + note)["PHYSICAL EXAM"] == "VS: ok Drains: two Exam: NAD"


def test_the_page_lists_every_way_of_writing() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sections.md").read_text(encoding="utf-8")
    for name, aliases in HEADERS.items():
        if name not in ("PHYSICAL EXAM", "DISCHARGE EXAM"):  # made by rule, and described as such
            assert f"| {name} | {', '.join(aliases[1:])} |" in page
    for kind, names in PRIORITIES.items():
        listed = ", ".join(name or "(sections without a listed name)" for name in names)
        assert f"- **{kind}**: {listed}\n" in page


def test_the_map_covers_the_text() -> None:
    text = "\n\nintro\n\nHPI: sob\n\nTypes: a\nPMH:\nchf\n"
    spans = section_map(text)
    assert [(span.name, text[span.start : span.end]) for span in spans] == [
        (None, "\n\nintro\n\n"),
        ("PRESENT ILLNESS", "HPI: sob\n\n"),
        (None, "Types: a\n"),
        ("MEDICAL HISTORY", "PMH:\nchf\n"),
    ]
    assert section_map("") == []
    assert section_map(" \n") == [SectionSpan(None, 0, 2)]


def test_the_map_of_an_admission_text_refers_to_it() -> None:
    found = admission_text_with_map("PMH: chf\n\nHPI: sob\n\nSH: []\n")
    assert found is not None
    text, spans = found
    assert [(span.name, text[span.start : span.end]) for span in spans] == [
        ("PRESENT ILLNESS", "PRESENT ILLNESS: sob\n\n"),
        ("MEDICAL HISTORY", "MEDICAL HISTORY: chf"),
    ]
    assert admission_text_with_map("Allergies: none") is None


def test_the_map_is_a_column() -> None:
    spans = section_map(NOTE)
    column = pa.array([[span._asdict() for span in spans], None], type=sections_type())
    assert column.to_pylist()[0] == [span._asdict() for span in spans]


@pytest.mark.parametrize(
    "text",
    [
        "MEDICATION ON ADMISSION: used the expired insulin",
        "PRESENT ILLNESS: inpatient died nearby",
        "PRESENT ILLNESS: forced expiratory time, except expired vials",
        "FAMILY HISTORY: mother died of CAD, father deceased",
        "SOCIAL HISTORY: patient's husband died",
    ],
)
def test_death_of_others_and_expired_things_are_kept(text: str) -> None:
    assert death_rule(text) is None
    assert without_charted_death(text) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("PRESENT ILLNESS: the patient passed away", "names the patient's death"),
        ("PRESENT ILLNESS: Pt had expired", "names the patient's death"),
        ("PRESENT ILLNESS: she expired at noon", "says that he or she expired"),
        ("PRESENT ILLNESS: pronounced dead", "pronounced dead"),
        ("PHYSICAL EXAM: time of death 9:40", "time of death"),
    ],
)
def test_death_of_the_patient_is_found_by_rule(text: str, rule: str) -> None:
    assert death_rule(text) == rule


def test_all_charted_deaths_go_from_exam_and_medication_and_from_nowhere_else() -> None:
    text = "PHYSICAL EXAM: pt died on day 3. cold. Expired on day 3.\n\nSOCIAL HISTORY: pt died"
    assert without_charted_death(text) == "PHYSICAL EXAM: on day 3. cold. on day 3.\n\nSOCIAL HISTORY: pt died"
