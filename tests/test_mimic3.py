"""From MIMIC-III's tables to Notes: labels, order, splits, attrition and messages."""

import csv
import gzip
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.attrition import attrition_rows
from clinstack.notes.cohort import write_cohort
from clinstack.notes.labels import diagnosis_category, length_of_stay_class, procedure_category
from clinstack.notes.mimic3.prepare import prepare_mimic3
from clinstack.notes.splits import assign_splits
from clinstack.tasks import OUTCOMES, Task

SPLITS = ("train", "validation", "test")
ADMISSION = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "HOSPITAL_EXPIRE_FLAG")
NOTE = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
CODE = ("HADM_ID", "ICD9_CODE")
PLAIN = "Chief Complaint:\nfall\n\nHistory of Present Illness:\n{}\n\nBrief Hospital Course:\nuneventful\n"


class Hospital:
    """A few hand-made rows in MIMIC-III's tables."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {
            "ADMISSIONS": [], "NOTEEVENTS": [], "DIAGNOSES_ICD": [], "PROCEDURES_ICD": [],
            "PATIENTS": [], "ICUSTAYS": [], "CHARTEVENTS": [], "PROCEDUREEVENTS_MV": [],
        }  # fmt: skip
        self.columns = {
            "ADMISSIONS": ADMISSION, "NOTEEVENTS": NOTE, "DIAGNOSES_ICD": CODE, "PROCEDURES_ICD": CODE,
            "PATIENTS": ("SUBJECT_ID", "DOB", "DOD"), "ICUSTAYS": ("HADM_ID", "ICUSTAY_ID", "INTIME"),
            "CHARTEVENTS": ("ICUSTAY_ID", "ITEMID", "CHARTTIME", "VALUE", "ERROR"),
            "PROCEDUREEVENTS_MV": ("ICUSTAY_ID", "ITEMID", "STARTTIME"),
        }  # fmt: skip

    def admit(
        self, hadm: int, text: str | None = "tripped", days: float = 5, died: str = "0", kind: str = "URGENT"
    ) -> None:
        left = (
            f"2150-01-{1 + int(days):02d} {8 + round(days % 1 * 24):02d}:00:00" if days >= 0 else "2149-12-31 08:00:00"
        )
        self.rows["ADMISSIONS"].append((hadm, hadm, "2150-01-01 08:00:00", left, kind, died))
        if text is not None:
            self.note(hadm, PLAIN.format(text))

    def note(self, hadm: int | str, text: str, **other: Any) -> None:
        row = dict.fromkeys(NOTE, "") | {"CATEGORY": "Discharge summary", "DESCRIPTION": "Report", "TEXT": text}
        row |= {"ROW_ID": len(self.rows["NOTEEVENTS"]) + 1, "SUBJECT_ID": hadm, "HADM_ID": hadm}
        row |= {"CHARTDATE": "2150-01-06"} | other
        self.rows["NOTEEVENTS"].append(tuple(row[name] for name in NOTE))

    def write(self, folder: Path) -> Path:
        folder.mkdir()
        for table, rows in self.rows.items():
            with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([self.columns[table], *rows])
        return folder


def examples(out: Path, task: str) -> dict[str, dict[str, Any]]:
    return {
        row["example_id"]: row
        for split in SPLITS
        for row in pq.read_table(out / f"examples/{task}/{split}.parquet").to_pylist()
    }


def attrition(out: Path, task: str) -> dict[str, int]:
    return {row["step"]: row["removed"] for row in attrition_rows(out) if row["task"] == task}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "tables"
    write_cohort(folder, 250, 3)
    return folder


@pytest.fixture(scope="module")
def prepared(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("notes") / "out"
    prepare_mimic3(cohort, out, seed=1)
    return out


def test_output_is_the_same_again_and_complete(cohort: Path, prepared: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    facts = prepare_mimic3(cohort, tmp_path / "again", seed=1, progress=lambda *call: calls.append(call))
    files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    assert len(files) == 6 + 5 * len(OUTCOMES)
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for file in files:
        assert (prepared / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert facts == json.loads((prepared / "prepare.json").read_text())
    assert facts["synthetic"] is True
    assert facts["tables"]["NOTEEVENTS.csv"] == sha256_file(cohort / "NOTEEVENTS.csv")
    assert calls[-1][1] == calls[-1][2]


def test_files_have_the_contracts_columns(prepared: Path) -> None:
    notes = pq.read_table(prepared / "notes/notes.parquet")
    assert notes.column_names == [
        "note_id", "patient_id", "encounter_id", "charttime", "note_type", "text", "source",
    ]  # fmt: skip
    assert str(notes.schema.field("charttime").type).startswith("timestamp")
    assert set(notes["source"].to_pylist()) == {"synthetic cohort"}
    assert set(notes["note_type"].to_pylist()) == {"Discharge summary", "Radiology", "Nursing", "Nursing/other"}
    assert not any("[**" in text for text in notes["text"].to_pylist())
    for task in OUTCOMES:
        table = pq.read_table(prepared / f"examples/{task}/train.parquet")
        assert table.column_names == ["example_id", "patient_id", "encounter_id", "text", "label", "sections"]
        loaded = Task.load(prepared / "examples" / task)
        if loaded.kind == "multilabel":
            assert str(table.schema.field("label").type).startswith("list<")
            assert {code for row in table["label"].to_pylist() for code in row} <= set(loaded.classes)
        else:
            assert str(table.schema.field("label").type) == "int64"
            assert set(table["label"].to_pylist()) <= set(range(len(loaded.classes)))


def test_no_patient_is_on_two_sides_and_all_agree_with_the_split_table(prepared: Path) -> None:
    table = pq.read_table(prepared / "splits.parquet")
    split = dict(zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    for task in OUTCOMES:
        for name in SPLITS:
            patients = pq.read_table(prepared / f"examples/{task}/{name}.parquet")["patient_id"].to_pylist()
            assert {split[patient] for patient in patients} <= {name}
    shares = [list(split.values()).count(name) / len(split) for name in SPLITS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_attrition_adds_up(prepared: Path) -> None:
    for task in OUTCOMES:
        content = json.loads((prepared / f"examples/{task}/attrition.json").read_text())
        for before, after in zip(content["steps"], content["steps"][1:], strict=False):
            assert before["kept"] - after["removed"] == after["kept"]
            assert after["removed"] >= 0
        rows = sum(part["rows"] for part in content["splits"].values())
        assert content["steps"][-1]["kept"] == rows == len(examples(prepared, task))
    assert attrition(prepared, "mortality")["not a newborn's"] > 0


def test_splits_depend_on_ids_and_seed_alone() -> None:
    ids = [str(number) for number in range(1000)]
    split = assign_splits(ids, 0)
    assert split == assign_splits(reversed(ids), 0)
    assert split != assign_splits(ids, 1)
    assert [list(split.values()).count(name) for name in SPLITS] == [700, 100, 200]
    assert [split[patient] for patient in ids[:6]] == ["train", "test", "train", "train", "train", "validation"]


@pytest.mark.parametrize(
    ("code", "category"),
    [("0389", "038"), ("4019", "401"), ("V4581", "V45"), ("E8859", "E885"), ("038.9", "038"), (" v103", "V10")],
)  # fmt: skip
def test_diagnosis_categories(code: str, category: str) -> None:
    assert diagnosis_category(code) == category


def test_procedure_codes_keep_their_leading_zeros(tmp_path: Path) -> None:
    hospital = Hospital()
    for hadm, code in enumerate(["0331", "331", "0066", "66", "9604"] * 20, 1):
        hospital.admit(hadm)
        hospital.rows["PROCEDURES_ICD"].append((hadm, code))
    prepare_mimic3(hospital.write(tmp_path / "in"), tmp_path / "out", tasks=["procedures"], minimum_count=1)
    assert Task.load(tmp_path / "out/examples/procedures").classes == ("006", "033", "331", "66", "960")
    found = examples(tmp_path / "out", "procedures")
    assert [found[str(hadm)]["label"] for hadm in (1, 2, 3)] == [["033"], ["331"], ["006"]]
    assert procedure_category("0066") == "006"


def test_rare_and_unseen_codes_are_counted_and_an_admission_without_a_label_is_dropped(tmp_path: Path) -> None:
    hospital = Hospital()
    train = [hadm for hadm in range(1, 101) if assign_splits(map(str, range(1, 101)), 0)[str(hadm)] == "train"]
    test = [hadm for hadm in range(1, 101) if assign_splits(map(str, range(1, 101)), 0)[str(hadm)] == "test"]
    for hadm in range(1, 101):
        hospital.admit(hadm)
        hospital.rows["DIAGNOSES_ICD"] += [(hadm, "4019"), (hadm, "")] if hadm not in (train[0], test[0]) else []
    hospital.rows["DIAGNOSES_ICD"] += [(train[0], "7100"), (test[0], "340"), (test[1], "340")]
    prepare_mimic3(hospital.write(tmp_path / "in"), tmp_path / "out", tasks=["diagnoses"], minimum_count=2)
    content = json.loads((tmp_path / "out/examples/diagnoses/attrition.json").read_text())
    assert Task.load(tmp_path / "out/examples/diagnoses").classes == ("401",)
    assert (content["categories_below_minimum"], content["categories_unseen_in_training"]) == (1, 1)
    assert (content["labels_kept"], content["labels_left_out"]) == (98, 3)
    assert content["steps"][-1]["removed"] == 2
    assert content["splits"]["train"]["labels"] == {"401": len(train) - 1}
    assert examples(tmp_path / "out", "diagnoses")[str(test[1])]["label"] == ["401"]


def test_no_code_frequent_enough_is_an_error(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1)
    hospital.rows["DIAGNOSES_ICD"].append((1, "4019"))
    with pytest.raises(InputError, match="lower minimum_count"):
        prepare_mimic3(hospital.write(tmp_path / "in"), tmp_path / "out", tasks=["diagnoses"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("hours", "label"),
    [(0, 0), (71.9, 0), (72, 0), (72.01, 1), (73.3, 1), (168, 1), (168.1, 2), (336, 2), (336.1, 3), (-12, None)],
)  # fmt: skip
def test_stays_are_binned_by_exact_hours(hours: float, label: int | None) -> None:
    assert length_of_stay_class(timedelta(hours=hours)) == label


def test_length_of_stay_leaves_out_deaths_and_negative_stays(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1, days=3)
    hospital.admit(2, days=3.25)
    hospital.admit(3, days=-1)
    hospital.admit(4, died="1")
    hospital.admit(5, kind="NEWBORN")
    out = tmp_path / "out"
    prepare_mimic3(hospital.write(tmp_path / "in"), out, tasks=["length_of_stay"])
    assert {key: row["label"] for key, row in examples(out, "length_of_stay").items()} == {"1": 0, "2": 1}
    removed = attrition(out, "length_of_stay")
    assert (removed["left the hospital alive"], removed["discharged after admission"]) == (1, 1)


def test_mortality_drops_what_tells_the_death_and_counts_it_by_rule(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1, "took the expired insulin")
    hospital.admit(2, "pt expired before transfer", died="1")
    hospital.admit(3, "she expired", died="1")
    hospital.admit(4, "sob\n\nPhysical Exam:\ngen: cold. Pt died on day 3", died="1")
    hospital.admit(5, died="")
    out = tmp_path / "out"
    prepare_mimic3(hospital.write(tmp_path / "in"), out, tasks=["mortality"])
    found = examples(out, "mortality")
    assert {key: row["label"] for key, row in found.items()} == {"1": 0, "4": 1}
    assert "died" not in found["4"]["text"]
    assert "cold." in found["4"]["text"]
    removed = attrition(out, "mortality")
    assert removed["HOSPITAL_EXPIRE_FLAG is 0 or 1"] == 1
    assert removed["text free of: names the patient's death"] == 1
    assert removed["text free of: says that he or she expired"] == 1


def test_notes_are_joined_in_order_and_errors_and_lone_addenda_are_left_out(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1, None)
    hospital.note(1, "Addendum:\nsame day", DESCRIPTION="Addendum")
    hospital.note(1, "the report [**Hospital1 18**]\r\n\r\n\r\n\r\nHPI:   sob\t today")
    hospital.note(1, "Addendum:\nearlier", DESCRIPTION="Addendum", CHARTDATE="2150-01-02")
    hospital.note(1, "a mistake", ISERROR="1")
    hospital.admit(2, None)
    hospital.note(2, PLAIN.format("only an addendum"), DESCRIPTION="Addendum")
    hospital.admit(3, None)
    hospital.note(3, PLAIN.format("an error"), ISERROR="1")
    hospital.admit(4, "same words twice")
    hospital.note(4, PLAIN.format("same words twice"), CHARTDATE="2150-01-08")
    hospital.note("", "scan without an admission", SUBJECT_ID=4, CATEGORY="Radiology", CHARTTIME="2149-05-01 10:00:00")
    out = tmp_path / "out"
    facts = prepare_mimic3(hospital.write(tmp_path / "in"), out, text="full", tasks=["mortality"])
    found = examples(out, "mortality")
    assert set(found) == {"1", "4"}
    assert (
        found["1"]["text"] == "Addendum:\nearlier\n\nthe report Hospital1 18\n\nHPI: sob today\n\nAddendum:\nsame day"
    )
    assert found["4"]["text"].count("same words twice") == 1
    removed = attrition(out, "mortality")
    assert (removed["with a discharge summary"], removed["with a report, not addenda alone"]) == (1, 1)
    assert facts["counts"]["notes_marked_as_errors"] == 2
    assert facts["counts"]["notes_repeated_within_a_patient"] == 1
    notes = pq.read_table(out / "notes/notes.parquet").to_pylist()
    assert [note["encounter_id"] for note in notes if note["note_type"] == "Radiology"] == [None]
    assert {note["source"] for note in notes} == {"mimic3"}


def test_equal_texts_of_two_patients_both_stay(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1)
    hospital.admit(2)
    facts = prepare_mimic3(hospital.write(tmp_path / "in"), tmp_path / "out", tasks=["mortality"])
    assert facts["counts"]["texts_shared_by_patients"] == 1
    assert len(examples(tmp_path / "out", "mortality")) == 2


def test_prolonged_ventilation_is_a_span_with_grace_in_the_first_icu_stay_of_adults(tmp_path: Path) -> None:
    hospital = Hospital()

    def chart(stay: int, first: int, last: int, step: int = 6, item: int = 223849, error: str = "0") -> None:
        for hour in range(first, last + 1, step):
            moment = f"2150-01-{1 + hour // 24:02d} {hour % 24:02d}:00:00"
            hospital.rows["CHARTEVENTS"].append((stay, item, moment, "CMV", error))

    for hadm in range(1, 10):
        hospital.admit(hadm, days=20)
        hospital.rows["PATIENTS"].append((hadm, "2140-01-01" if hadm == 6 else "2090-01-01", ""))
        if hadm != 9:
            hospital.rows["ICUSTAYS"].append((hadm, hadm * 10, "2150-01-01 09:00:00"))
    chart(10, 0, 162)  # 6 h short of 7 days: the grace makes it positive
    chart(20, 0, 156)  # 12 h short
    chart(30, 0, 24)  # two periods with a long pause: the span counts
    chart(30, 150, 168)
    chart(40, 0, 0)  # one moment is no period
    chart(50, 0, 200, error="1")  # marked as errors
    chart(60, 0, 200)  # a child
    hospital.rows["ICUSTAYS"].append((7, 71, "2150-01-05 09:00:00"))
    chart(71, 0, 200)  # only in the second ICU stay
    chart(80, 0, 48)  # then extubated and never on a setting for longer than a moment
    hospital.rows["PROCEDUREEVENTS_MV"].append((80, 227194, "2150-01-03 01:00:00"))
    chart(80, 180, 180)
    out = tmp_path / "out"
    prepare_mimic3(hospital.write(tmp_path / "in"), out, tasks=["prolonged_ventilation"])
    found = {key: row["label"] for key, row in examples(out, "prolonged_ventilation").items()}
    assert found == {"1": 1, "2": 0, "3": 1, "8": 0}
    removed = attrition(out, "prolonged_ventilation")
    assert (removed["with an ICU stay"], removed["at least 18 years old"]) == (1, 1)


def test_golden_edge_cases_of_the_published_scripts_come_out_right(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "shared/golden/vanaken/input"
    if not source.is_dir():
        pytest.skip("the golden tables stand in ../shared, which is not here")
    prepare_mimic3(source, tmp_path / "out", tasks=["mortality", "length_of_stay", "procedures"], minimum_count=1)
    texts = [row["text"] for row in examples(tmp_path / "out", "mortality").values()]
    assert "PRESENT ILLNESS: real HPI text\n\nMEDICAL HISTORY: MH" in texts
    assert "CHIEF COMPLAINT: fall\n\nPHYSICAL EXAM: this is the last section of the note" in texts
    assert "CHIEF COMPLAINT: fall\n\nMEDICAL HISTORY: THE REAL PMH\n\nFAMILY HISTORY: MOTHER HAD CAD" in texts
    assert any("took the expired insulin at home" in text for text in texts)
    assert {"033", "331", "006"} <= set(Task.load(tmp_path / "out/examples/procedures").classes)
    assert attrition(tmp_path / "out", "length_of_stay")["discharged after admission"] == 1


def test_gzipped_tables_and_lower_case_columns_are_read(cohort: Path, prepared: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in cohort.glob("*.csv"):
        head, body = path.read_text().split("\n", 1)
        (source / f"{path.name}.gz").write_bytes(gzip.compress(f"{head.lower()}\n{body}".encode(), 1))
    prepare_mimic3(source, tmp_path / "out", seed=1)
    same = examples(tmp_path / "out", "diagnoses")
    assert same == examples(prepared, "diagnoses")
    assert json.loads((tmp_path / "out/prepare.json").read_text())["synthetic"] is False


def spoil(source: Path, table: str, old: str, new: str) -> None:
    path = source / f"{table}.csv"
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("NOTEEVENTS", "CATEGORY", "KIND", "NOTEEVENTS.csv has no column CATEGORY"),
        ("ADMISSIONS", "ADMITTIME", "ARRIVED", "ADMISSIONS.csv has no column ADMITTIME"),
        (
            "ADMISSIONS",
            "2150-01-01 08",
            "last Tuesday 08",
            "ADMISSIONS.csv, row 1: column ADMITTIME is not a date",
        ),
        ("DIAGNOSES_ICD", "1,4019", "one,4019", "DIAGNOSES_ICD.csv, row 1: column HADM_ID is not a whole number"),
        ("NOTEEVENTS", '"Chief', 'secret words "Chief', "NOTEEVENTS.csv, row 1 has a quote that is broken"),
    ],
)
def test_wrong_tables_are_named_and_nothing_is_written(
    tmp_path: Path, table: str, old: str, new: str, message: str
) -> None:
    hospital = Hospital()
    hospital.admit(1)
    hospital.rows["DIAGNOSES_ICD"].append((1, "4019"))
    source = hospital.write(tmp_path / "in")
    spoil(source, table, old, new)
    with pytest.raises(InputError, match=message) as error:
        prepare_mimic3(source, tmp_path / "out", tasks=["diagnoses"], minimum_count=1)
    assert "secret words" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_missing_table_is_named_with_the_remedy(cohort: Path, tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1)
    source = hospital.write(tmp_path / "in")
    (source / "CHARTEVENTS.csv").unlink()
    with pytest.raises(InputError, match=r"no CHARTEVENTS\.csv .* leave the task out"):
        prepare_mimic3(source, tmp_path / "out", tasks=["prolonged_ventilation"])
    prepare_mimic3(source, tmp_path / "out", tasks=["mortality"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "half"}, "admission or full"),
        ({"tasks": ["fever"]}, "choose from"),
        ({"minimum_count": 0}, "1 or more"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_mimic3(tmp_path, tmp_path / "out", **change)


def test_a_folder_of_something_else_is_not_overwritten(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not written by"):
        prepare_mimic3(cohort, tmp_path)


def test_a_failure_in_the_middle_leaves_the_earlier_output(cohort: Path, tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.admit(1)
    out = tmp_path / "out"
    prepare_mimic3(hospital.write(tmp_path / "in"), out, tasks=["mortality"])
    before = (out / "prepare.json").read_bytes()

    def fail(description: str, done: int, total: int) -> None:
        if description == "Labelling tasks" and done == 2:
            raise RuntimeError(description)

    with pytest.raises(RuntimeError, match="Labelling"):
        prepare_mimic3(cohort, out, progress=fail)
    assert (out / "prepare.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
