"""The rule-based oracle: what it asks of the cohort's notes, and that its answers are right."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.notes.cohort import write_cohort
from clinstack.notes.grounding import check_grounding, is_refusal
from clinstack.notes.instructions import TASKS, read_instructions
from clinstack.notes.mimic3.prepare import prepare_mimic3
from clinstack.notes.oracle.abbreviations import ABBREVIATIONS, abbreviations_in, abbreviations_not_in, written_out
from clinstack.notes.oracle.parts import read_parts
from clinstack.notes.oracle.prepare import OracleOptions, prepare_oracle
from clinstack.notes.oracle.questions import PART_RULES
from clinstack.notes.oracle.rules import pairs_of

SUMMARY = """Synthetic General Hospital - invented patient
Name: Known lastname 1001 Unit No: Numeric Identifier 6862
Admission Date: 2137-3-10 Discharge Date: 2137-3-29
Sex: F Service: TRAUMA SURGERY

CC: s/p mvc

History of Present Illness:
62 yr old female with h/o seizure disorder, unrestrained passenger. on arrival bp 133/81, sat 95%, t 98.6, stable.

PMH:
1. htn
2. cad
3. ulcerative colitis

Medications on Admission:
1. dilantin
2. carvedilol

ALLERGIES: no known drug allergies

Labs: wbc 3.4 hct 28.3 na 142 cr 0.4

Brief Hospital Course: ex lap with splenectomy. on the ventilator 14 days. had intubation, arterial line. c/b ileus, \
delirium. she expired peacefully.

Discharge Diagnosis:
traumatic chest injury

DISCHARGE CONDITION:
expired
"""
NURSING = """Synthetic General Hospital - invented patient
neuro: obtunded
cv: bp 113/68, hr 91
resp: o2 weaned
social: family visited and updated
gu: foley, adequate uo
plan: continue to monitor
"""
RADIOLOGY = """Synthetic General Hospital - invented patient
2138-7-13 RENAL ULTRASOUND
Clip # Clip Number 616
Reason: flank pain

75 year old man

FINDINGS: no hydronephrosis. heart size is normal.

IMPRESSION: no hydronephrosis.
"""


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle")
    write_cohort(folder / "cohort", 50, 3)
    prepare_mimic3(folder / "cohort", folder / "data", seed=3, tasks=["mortality"])
    return folder / "data"


@pytest.fixture(scope="module")
def everything(notes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("pairs") / "all"
    facts = prepare_oracle(notes, out, OracleOptions(seed=1))
    return facts, pq.read_table(out / "instructions" / "instructions.parquet").to_pylist()


def answers(note: str, number: int = 0) -> dict[str, str]:
    return {pair.rule: pair.answer for pair in pairs_of(read_parts(note), note, lambda _, below: number % below)}


def test_discharge_summary() -> None:
    found = answers(SUMMARY)
    assert found["past medical history"] == "htn, cad, ulcerative colitis"
    assert found["past medical history in full words"] == "hypertension, coronary artery disease, ulcerative colitis"
    assert found["medications on admission"] == "dilantin, carvedilol"
    assert found["procedures"] == "intubation, arterial line"
    assert found["complications"] == "ileus, delirium"
    assert found["time on the ventilator"] == "14 days"
    assert found["vital signs"] == "bp 133/81, sat 95%, t 98.6"
    assert (found["blood pressure"], found["oxygen saturation"], found["temperature"]) == ("133/81", "95%", "98.6")
    assert (found["sodium"], found["creatinine"]) == ("142", "0.4")
    assert (found["admission date"], found["discharge date"]) == ("2137-3-10", "2137-3-29")
    assert found["service"] == "TRAUMA SURGERY"
    assert found["he, she, pt"] == "the patient, a 62 yr old female"
    assert found["summary"] == "Came with s/p mvc. ex lap with splenectomy. she expired peacefully."
    assert found["chief complaint in full words"] == "status post motor vehicle collision"
    assert found["no family history"] == "This cannot be answered: the note does not mention the family history."
    # It has no discharge medications and says nothing of a heart rate; of conditions it does speak.
    assert "no heart rate" in found
    assert "no discharge medications" in found
    assert "no discharge condition" not in found


def test_nursing_note_and_radiology_report() -> None:
    found = answers(NURSING)
    assert found["vital signs"] == "bp 113/68, hr 91"
    assert (found["heart rate"], found["breathing"], found["plan"]) == ("91", "o2 weaned", "continue to monitor")
    assert found["social history"] == "family visited and updated"
    assert found["quotation 1"] == "neuro: obtunded"
    assert {found[f"quotation {number}"] for number in range(1, 7)} == set(NURSING.splitlines()[1:])
    assert answers(NURSING, 2)["quotation 1"] == "resp: o2 weaned"
    found = answers(RADIOLOGY)
    assert (found["study"], found["study date"]) == ("RENAL ULTRASOUND", "2138-7-13")
    assert found["reason for the study"] == "flank pain"
    assert found["findings"] == "no hydronephrosis. heart size is normal."
    assert "no pain" not in found


def test_abbreviations() -> None:
    assert abbreviations_in("pt w/ htn, CHF and esrd on hd") == ["esrd", "htn"]
    assert "chf" not in abbreviations_not_in("pt w/ CHF")
    assert written_out("h/o htn, htn") == "history of hypertension, hypertension"
    assert written_out("nothing short") is None
    assert all(long and short == short.lower() for short, long in ABBREVIATIONS.items())


def test_answers_are_grounded_and_refusals_are_refusals(
    everything: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    _, rows = everything
    assert len(rows) > 1500
    for row in rows:
        assert is_refusal(row["answer"]) is not row["answerable"], row["answer"]
        if row["answerable"]:
            assert check_grounding(row["answer"], row["note"]).is_grounded, row["answer"]


def test_what_stands_in_the_note_is_quoted(everything: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """Answers of the rules for parts are the note's own words, but for how a list and lines are joined."""
    parts = {rule.part for rule in PART_RULES}
    for row in everything[1]:
        if row["rule"] in parts:
            flat = " ".join(row["note"].split())
            assert row["answer"] in flat or all(item in flat for item in row["answer"].split(", ")), row["answer"]


def test_refusals_name_what_the_note_lacks(everything: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    refused = [row for row in everything[1] if not row["answerable"]]
    assert len(refused) == pytest.approx(0.15 * len(everything[1]), abs=1)
    for row in refused:
        missing = row["rule"].removeprefix("no ")
        if missing != "abbreviation":
            assert missing in row["answer"]
            assert not re.search(rf"\b{missing}\b", row["note"].lower())
            assert missing not in read_parts(row["note"])


def test_splits_are_those_of_the_notes(notes: Path, tmp_path: Path) -> None:
    facts = prepare_oracle(notes, tmp_path / "out", OracleOptions(pairs=500))
    split_of = dict(zip(*pq.read_table(notes / "splits.parquet").to_pydict().values(), strict=True))
    found = read_instructions(tmp_path / "out")
    for split, part in found.items():
        assert {split_of[patient] for patient in part.patient_ids} == {split}
        assert part.answerable is not None
    assert sum(map(len, found.values())) == facts["counts"]["instructions"] == 500
    assert facts["synthetic"]


def test_tasks_and_wordings(everything: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    facts, rows = everything
    assert set(facts["counts"]["tasks"]) | set(facts["tasks_left_out"]) == set(TASKS)
    assert len({row["example_id"] for row in rows}) == len(rows)
    questions = {row["question"] for row in rows if row["rule"] == "heart rate"}
    assert len(questions) == 4


def test_the_same_seed_gives_the_same_file(notes: Path, tmp_path: Path) -> None:
    def pairs(name: str, **options: Any) -> bytes:
        prepare_oracle(notes, tmp_path / name, OracleOptions(**options))
        return (tmp_path / name / "instructions" / "instructions.parquet").read_bytes()

    first = pairs("a", seed=4, pairs=300)
    assert pairs("b", seed=4, pairs=300) == first
    assert pairs("c", seed=5, pairs=300) != first


def test_drawn_rules_take_turns(notes: Path, tmp_path: Path) -> None:
    """No rule has a second pair before each has its first, as far as notes can."""
    options = OracleOptions(pairs=150, unanswerable=0, note_types=("Nursing",), longest=300)
    facts = prepare_oracle(notes, tmp_path / "out", options)
    rows = pq.read_table(tmp_path / "out" / "instructions" / "instructions.parquet").to_pylist()
    assert len(rows) == 150
    assert all(len(row["note"]) <= 300 and row["answerable"] for row in rows)
    of = [sum(row["rule"] == rule for row in rows) for rule in ("heart rate", "plan", "vital signs", "quotation 2")]
    assert max(of) - min(of) <= 1
    assert facts["counts"]["notes_of_other_types"] > 0


def test_other_notes_are_refused(notes: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    shutil.copytree(notes, real)
    write_json(real / "prepare.json", {**read_json(real / "prepare.json"), "synthetic": False})
    with pytest.raises(InputError, match="does not say that its notes are synthetic"):
        prepare_oracle(real, tmp_path / "out")
    facts = prepare_oracle(real, tmp_path / "out", OracleOptions(pairs=100, any_notes=True))
    assert not facts["synthetic"]
    for options, message in (({"unanswerable": 1.0}, "share from 0"), ({"pairs": 0}, "--pairs is 0")):
        with pytest.raises(InputError, match=message):
            OracleOptions(**options)
    with pytest.raises(InputError, match="No instruction is left"):
        prepare_oracle(notes, tmp_path / "none", OracleOptions(longest=5))
    assert not (tmp_path / "none").exists()


def test_command(notes: Path, tmp_path: Path) -> None:
    command = ["prepare", "oracle", str(notes), "--out", str(tmp_path / "out"), "--pairs", "200", "--longest", "260"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "Synthetic" in words
    assert "200 instructions of" in words
    assert "No pair of Summarization" in words
