"""What is looked for in the note, and what counts as a refusal."""

from __future__ import annotations

import pytest

from clinstack.notes.grounding import check_grounding, is_refusal

NOTE = """Admission Date: 2150-03-04. Seen on [**3-9**] and [**2150-3-11**].
Started lasix 40mg q8h, Lopressor 12.5 mg, WBC-11.0, platelets 1,250. Strength 4/5, BP 120/80.
Given two units of blood. Follow-up in May 2151."""


@pytest.mark.parametrize(
    "answer",
    [
        "Furosemide 40 mg every 8 hours",  # the substance of a trade name, a number without its unit
        "metoprolol 12.50 mg",
        "WBC 11, platelets 1250",
        "March 4, 2150",
        "03/04/2150",
        "4th of March 2150",
        "3/9",
        "9 March 2150",  # the year stands in another date
        "on March 11",
        "strength 4/5 and pressure 120/80",
        "2 units",  # a word in the note
        "1. lasix\n2. Lopressor",  # numbers of a list
        "SpO2 and B12",  # digits of a name
        "in May 2151",
        "No drugs.",
        "",
    ],
)
def test_grounded(answer: str) -> None:
    assert check_grounding(answer, NOTE).is_grounded


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("85 mg", "number"),
        ("1.25 mg", "number"),
        ("platelets 250", "number"),
        ("9 days", "number"),  # part of a date, which is no number of the note
        ("March 5, 2150", "date"),
        ("2151-03-04", "date"),
        ("3/10", "date"),
        ("June 2151", "date"),
        ("aspirin", "drug"),
        ("Atorvastatin", "drug"),
        ("somethingcillin", "drug"),  # by its ending
    ],
)
def test_made_up(answer: str, kind: str) -> None:
    found = check_grounding(answer, NOTE)
    assert not found.is_grounded
    assert set(found.kinds) == {kind}


def test_counts_each_fact_once() -> None:
    found = check_grounding("Lasix 40 mg, lasix 40 mg again, and warfarin 7.0 mg or 7 mg on March 4, 2150.", NOTE)
    assert (found.checked, found.missing, found.kinds) == (5, 2, {"number": 1, "drug": 1})
    assert found.share == pytest.approx(0.6)
    assert check_grounding("Stable.", NOTE).share is None


def test_months_are_no_drugs() -> None:
    assert check_grounding("april and except", "nothing").checked == 0


@pytest.mark.parametrize(
    "answer",
    [
        "The note does not mention the dose.",
        "The discharge summary doesn't specify which antibiotic was given.",
        "This cannot be determined from the given summary.",
        "It is not stated in the note.",
        "Not documented.",
        "There is no information about allergies.",
        "The provided discharge summary does not provide enough detail.",
        "The note does not tell.",
        "He takes aspirin; the note does not say the dose.",
        "I cannot answer this question.",
        "Unable to answer based on the provided context.",
        "The record contains no mention of a fall.",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "No fever.",
        "Aspirin was not given.",
        "The etiology of the fever could not be determined.",
        "The cause could not be identified with the CT scan.",
        "The patient does not report chest pain.",
        "Discharged in stable condition with no complications.",
        "The note describes pneumonia, treated with ceftriaxone.",
        "The patient was not able to answer questions.",
    ],
)
def test_findings_are_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)
