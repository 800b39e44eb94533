"""Finding sections, cutting the admission part, and mentions of death."""

import pytest

from clinstack.notes.death_mentions import death_rule, without_charted_death
from clinstack.notes.sections import admission_sections, admission_text, split_sections

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
