"""The synthetic cohort: its files, its balance, and that nobody in it could be taken for real."""

import csv
import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from clinstack.errors import InputError
from clinstack.notes.cohort import write_cohort
from clinstack.notes.cohort.codes import PROCEDURE_TITLES, diagnosis_titles
from clinstack.notes.cohort.complications import COMPLICATIONS
from clinstack.notes.cohort.patient import PROBLEMS, _pairs, _preferences
from clinstack.notes.cohort.tables import COLUMNS
from clinstack.notes.cohort.wording import HOSPITAL_LINE
from clinstack.notes.sections.find import admission_text

PATIENTS = 600
SECONDS_A_DAY = 86400


def read(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "tables"
    write_cohort(out, PATIENTS, 7)
    return out


@pytest.fixture(scope="module")
def grown(cohort: Path) -> list[dict[str, str]]:
    return [row for row in read(cohort, "ADMISSIONS") if row["ADMISSION_TYPE"] != "NEWBORN"]


def test_the_same_patients_and_seed_give_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    rows = write_cohort(tmp_path / "again", PATIENTS, 7)
    for file in sorted(cohort.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert rows == json.loads((cohort / "cohort.json").read_text())["rows"]
    assert {name: len(read(cohort, name)) for name in COLUMNS} == rows


def test_a_patient_is_the_same_in_a_smaller_cohort_and_another_with_another_seed(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "small", 20, 7)
    write_cohort(tmp_path / "other", 20, 8)
    for table in ("NOTEEVENTS", "DIAGNOSES_ICD", "ADMISSIONS", "CHARTEVENTS", "PATIENTS", "ICUSTAYS"):
        small = (tmp_path / "small" / f"{table}.csv").read_text()
        assert (cohort / f"{table}.csv").read_text().startswith(small)
        assert (tmp_path / "other" / f"{table}.csv").read_text() != small


def test_tables_have_the_names_and_columns_of_mimic(cohort: Path) -> None:
    first = (cohort / "NOTEEVENTS.csv").read_text().splitlines()[0]
    assert first == (
        '"ROW_ID","SUBJECT_ID","HADM_ID","CHARTDATE","CHARTTIME","STORETIME","CATEGORY","DESCRIPTION","CGID","ISERROR",'
        '"TEXT"'
    )
    assert sorted(path.name for path in cohort.iterdir()) == sorted(
        ["SYNTHETIC.md", "cohort.json", *(f"{name}.csv" for name in COLUMNS)]
    )
    categories = {row["CATEGORY"] for row in read(cohort, "NOTEEVENTS")}
    assert categories == {"Discharge summary", "Radiology", "Nursing", "Nursing/other"}


def test_it_says_everywhere_that_it_is_invented(cohort: Path) -> None:
    assert json.loads((cohort / "cohort.json").read_text())["synthetic"] is True
    assert "invented" in (cohort / "SYNTHETIC.md").read_text()
    for row in read(cohort, "NOTEEVENTS"):
        assert row["TEXT"].startswith(HOSPITAL_LINE)
        assert int(row["SUBJECT_ID"]) >= 9_000_000


def test_outcomes_are_balanced_as_in_the_papers_data(cohort: Path, grown: list[dict[str, str]]) -> None:
    died = sum(row["HOSPITAL_EXPIRE_FLAG"] == "1" for row in grown) / len(grown)
    assert 0.07 < died < 0.13
    assert 1.15 < len(grown) / PATIENTS < 1.35
    days = [
        (datetime.fromisoformat(row["DISCHTIME"]) - datetime.fromisoformat(row["ADMITTIME"])).total_seconds()
        / SECONDS_A_DAY
        for row in grown
        if row["HOSPITAL_EXPIRE_FLAG"] == "0"
    ]
    bins = Counter(sum(day > bound for bound in (3, 7, 14)) for day in days)
    shares = [bins[index] / len(days) for index in range(4)]
    for share, expected in zip(shares, (0.13, 0.37, 0.28, 0.22), strict=True):
        assert abs(share - expected) < 0.09, shares
    newborn = len(read(cohort, "ADMISSIONS")) - len(grown)
    assert 0 < newborn < 0.05 * PATIENTS
    ventilated = {row["HADM_ID"] for row in read(cohort, "CHARTEVENTS") if row["ITEMID"] != "226732"}
    assert 0.3 < len(ventilated) / len(grown) < 0.5


def test_codes_have_a_long_tail_and_leading_zeros(cohort: Path) -> None:
    diagnoses = Counter(row["ICD9_CODE"][:3] for row in read(cohort, "DIAGNOSES_ICD"))
    assert len(diagnoses) > 150
    assert {"401", "428", "427", "414", "584", "250", "518", "038"} <= {code for code, _ in diagnoses.most_common(50)}
    assert sum(count <= 5 for count in diagnoses.values()) > 40
    assert any(code.startswith("V") for code in diagnoses)
    assert any(code.startswith("E") for code in diagnoses)
    procedures = Counter(row["ICD9_CODE"] for row in read(cohort, "PROCEDURES_ICD"))
    assert {"0331", "0066", "9604", "9671", "9672", "3893"} <= set(procedures)


def test_every_code_has_a_title(cohort: Path) -> None:
    titled = {row["ICD9_CODE"] for row in read(cohort, "D_ICD_DIAGNOSES")}
    assert {row["ICD9_CODE"] for row in read(cohort, "DIAGNOSES_ICD")} <= titled
    known = {code for problem in PROBLEMS for code, _ in _pairs(problem.extra)}
    assert known | {code for problem in PROBLEMS for code in problem.codes.split()} <= set(diagnosis_titles())
    assert {code for problem in PROBLEMS for code, _ in _pairs(problem.procedures)} <= set(PROCEDURE_TITLES)


def test_every_preference_names_a_condition_or_problem() -> None:
    for item in (*PROBLEMS, *COMPLICATIONS):
        for key, _ in _pairs(item.likes):
            found = _preferences(item.name, item.likes)
            assert any(name.lower().startswith(key.lower()) for name in found), (item.name, key)


def test_the_admission_part_does_not_tell_the_outcome_and_is_short(cohort: Path, grown: list[dict[str, str]]) -> None:
    died = {row["HADM_ID"] for row in grown if row["HOSPITAL_EXPIRE_FLAG"] == "1"}
    told, lengths = 0, []
    for row in read(cohort, "NOTEEVENTS"):
        if row["CATEGORY"] != "Discharge summary" or row["DESCRIPTION"] != "Report" or row["HADM_ID"] not in died:
            continue
        part = admission_text(row["TEXT"])
        assert part is not None
        assert "expired" not in part
        assert "pt died" not in part
        told += "expired" in row["TEXT"]
        lengths.append(len(part))
    assert told > 0.9 * len(lengths)
    assert sorted(lengths)[len(lengths) // 2] < 700


def test_sicker_words_go_with_death(cohort: Path, grown: list[dict[str, str]]) -> None:
    died = {row["HADM_ID"]: row["HOSPITAL_EXPIRE_FLAG"] == "1" for row in grown}
    grave: list[bool] = []
    mild: list[bool] = []
    for row in read(cohort, "NOTEEVENTS"):
        part = admission_text(row["TEXT"]) if row["DESCRIPTION"] == "Report" and row["HADM_ID"] in died else None
        if part and any(words in part for words in ("pressors", "levophed", "obtunded", "toxic appearing")):
            grave.append(died[row["HADM_ID"]])
        elif part and any(words in part for words in ("comfortable and walking", "hemodynamically stable")):
            mild.append(died[row["HADM_ID"]])
    assert sum(grave) / len(grave) > 3 * sum(mild) / len(mild)


@pytest.mark.parametrize(("patients", "seed"), [(0, 1), (-5, 1), (10, -1), (10**9, 1)])
def test_wrong_numbers_are_refused(tmp_path: Path, patients: int, seed: int) -> None:
    with pytest.raises(InputError, match="use"):
        write_cohort(tmp_path / "out", patients, seed)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not an earlier cohort"):
        write_cohort(tmp_path, 3, 0)
    assert (tmp_path / "thesis.tex").exists()


def test_a_failure_on_the_way_leaves_the_earlier_cohort(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_cohort(out, 5, 0)
    before = (out / "NOTEEVENTS.csv").read_bytes()

    def fail(description: str, done: int, total: int) -> None:
        raise RuntimeError(description)

    with pytest.raises(RuntimeError, match="Inventing"):
        write_cohort(out, 9, 1, fail)
    assert (out / "NOTEEVENTS.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
