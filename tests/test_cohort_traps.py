"""Traps of the synthetic cohort: each is there when it is switched on, and not otherwise.

What a trap does to the published scripts is checked with their rules, written down here once more.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from clinstack.errors import InputError
from clinstack.notes.cohort import traps as cohort_traps
from clinstack.notes.cohort import write_cohort
from clinstack.notes.cohort.codes import diagnosis_titles
from clinstack.notes.cohort.tables import COLUMNS
from clinstack.notes.cohort.traps import TRAPS, chosen_traps, trap_of
from clinstack.notes.cohort.traps_tables import BOUNDARY_DAYS, CHUNK, NO_SPLIT

PATIENTS = 160
SEED = 3
ALONE = sorted(name for name, trap in TRAPS.items() if trap.alone)
ON = [name for name in TRAPS if name not in ALONE]
Row = dict[str, str]


def read(folder: Path, table: str) -> list[Row]:
    with (folder / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Tables:
    """A written cohort, by admission."""

    def __init__(self, folder: Path) -> None:
        self.rows = {table: read(folder, table) for table in COLUMNS if not table.startswith("D_")}
        self.subject = {row["HADM_ID"]: row["SUBJECT_ID"] for row in self.rows["ADMISSIONS"]}

    def of(self, table: str, hadm: int) -> list[Row]:
        return [row for row in self.rows[table] if row["HADM_ID"] == str(hadm)]

    def admission(self, hadm: int) -> Row:
        return self.of("ADMISSIONS", hadm)[0]

    def summaries(self, hadm: int) -> list[Row]:
        return [row for row in self.of("NOTEEVENTS", hadm) if row["CATEGORY"] == "Discharge summary"]

    def text(self, hadm: int) -> str:
        """The reports and addenda of an admission, joined by date."""
        return "\n\n".join(row["TEXT"] for row in sorted(self.summaries(hadm), key=lambda row: row["CHARTDATE"]))

    def codes(self, table: str, hadm: int) -> list[str]:
        return [row["ICD9_CODE"] for row in self.of(table, hadm)]

    def days(self, hadm: int) -> float:
        row = self.admission(hadm)
        return (moment(row["DISCHTIME"]) - moment(row["ADMITTIME"])) / timedelta(days=1)

    def copies(self, hadm: int) -> list[Row]:
        """Summaries with the text of this admission's."""
        text = self.summaries(hadm)[0]["TEXT"] if self.summaries(hadm) else None
        return [row for row in self.rows["NOTEEVENTS"] if row["TEXT"] == text and row["CATEGORY"][0] == "D"]

    def settings(self, hadm: int, error: str = "0") -> list[tuple[datetime, str]]:
        rows = self.of("CHARTEVENTS", hadm)
        kept = [row for row in rows if row["ITEMID"] in ("223849", "220339", "223848") and row["ERROR"] == error]
        return sorted((moment(row["CHARTTIME"]), row["ICUSTAY_ID"]) for row in kept)

    def span(self, hadm: int) -> timedelta:
        """From the first setting to the last, over all gaps."""
        times = [time for time, _ in self.settings(hadm)]
        return times[-1] - times[0] if times else timedelta()

    def pauses(self, hadm: int) -> list[timedelta]:
        times = [time for time, _ in self.settings(hadm)]
        return [later - earlier for earlier, later in pairwise(times)] or [timedelta()]


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")


def section(header: str, text: str) -> str:
    """Find a section as the published expression does."""
    flat = text.replace("\n", "\\n")
    found = re.search(re.escape(header) + r"(.+?)\\n\\n[^(\\|\d|\.)]+?:", flat, re.IGNORECASE)
    return found.group(1).replace("\\n", " ").strip() if found else ""


def complaint(tables: Tables, hadm: int) -> str:
    return section("chief complaint:", tables.text(hadm))


def illness(tables: Tables, hadm: int) -> str:
    return section("present illness:", tables.text(hadm))


def history(tables: Tables, hadm: int) -> str:
    return section("medical history:", tables.text(hadm))


DIED = r"(?:expired|died|passed away|deceased)"


def dropped_for_death(tables: Tables, hadm: int) -> bool:
    """Whether the published filter drops the admission text."""
    parts = [
        f"PHYSICAL EXAM: {section('physical exam:', tables.text(hadm))}",
        f"MEDICATION ON ADMISSION: {section('medications on admission:', tables.text(hadm))}",
        *(section(header, tables.text(hadm)) for header in ("family history:", "social history:")),
        *(words(tables, hadm) for words in (complaint, illness, history)),
    ]
    text = "\n\n".join(
        re.sub(rf"^(P|M)(.*?)(?:patient|pt)?\s+(?:had |has )?{DIED}", r"\1\2", part, count=1, flags=re.I)
        if part.startswith(("PHYSICAL", "MEDICATION"))
        else part
        for part in parts
    )
    rules = (rf"(?:patient|pt)\s+(?:had\s|has\s)?{DIED}", "he expired", "pronounced expired", "time of death")
    return any(re.search(rule, text, re.IGNORECASE) for rule in rules)


def flag(tables: Tables, hadm: int) -> str:
    return tables.admission(hadm)["HOSPITAL_EXPIRE_FLAG"]


def died_and_dropped(tables: Tables, hadm: int) -> bool:
    return flag(tables, hadm) == "1" and dropped_for_death(tables, hadm)


def lives_and_dropped(tables: Tables, hadm: int) -> bool:
    return flag(tables, hadm) == "0" and dropped_for_death(tables, hadm)


def says(words: str) -> Callable[[Tables, int], bool]:
    return lambda tables, hadm: words in tables.text(hadm)


def has(condition: Callable[[Tables, int], bool], words: str) -> Callable[[Tables, int], bool]:
    return lambda tables, hadm: words in tables.text(hadm) and condition(tables, hadm)


def coded(table: str, *codes: str) -> Callable[[Tables, int], bool]:
    return lambda tables, hadm: tables.codes(table, hadm) == list(codes)


def kinds(tables: Tables, hadm: int) -> list[tuple[str, str]]:
    return [(row["CHARTDATE"], row["DESCRIPTION"]) for row in tables.summaries(hadm)]


def no_summary_but(category: str) -> Callable[[Tables, int], bool]:
    return lambda tables, hadm: (
        not tables.summaries(hadm) and any(row["CATEGORY"] == category for row in tables.of("NOTEEVENTS", hadm))
    )


def out_of_order(table: str) -> Callable[[Tables, int], bool]:
    def check(tables: Tables, hadm: int) -> bool:
        numbers = [int(row["SEQ_NUM"]) for row in tables.of(table, hadm)]
        short = [code[:3] for code in tables.codes(table, hadm)]
        return numbers != sorted(numbers) and len(set(short)) < len(short)

    return check


def without_admission(tables: Tables, hadm: int) -> bool:
    subject = tables.admission(hadm)["SUBJECT_ID"]
    return not tables.summaries(hadm) and any(
        row["SUBJECT_ID"] == subject and not row["HADM_ID"] and row["CATEGORY"] == "Discharge summary"
        for row in tables.rows["NOTEEVENTS"]
    )


def second_stay(tables: Tables, hadm: int) -> bool:
    stays = sorted(tables.of("ICUSTAYS", hadm), key=lambda row: row["INTIME"])
    spans = []
    for stay in stays:
        times = [time for time, icu in tables.settings(hadm) if icu == stay["ICUSTAY_ID"]]
        spans.append(times[-1] - times[0] if times else timedelta())
    return len(spans) == 2 and spans[0] < timedelta(days=6) and spans[1] > timedelta(days=7)


def oxygen_between(tables: Tables, hadm: int) -> bool:
    times = [time for time, _ in tables.settings(hadm)]
    given = [moment(row["CHARTTIME"]) for row in tables.of("CHARTEVENTS", hadm) if row["ITEMID"] == "226732"]
    within_hours = max(tables.pauses(hadm)) <= timedelta(hours=8)
    return within_hours and tables.span(hadm) > timedelta(days=7) and any(times[0] < at < times[-1] for at in given)


def only_errors_are_long(tables: Tables, hadm: int) -> bool:
    wrong = tables.settings(hadm, "1")
    return bool(wrong) and tables.span(hadm) == timedelta(days=2) and wrong[-1][0] - wrong[0][0] > timedelta(days=5)


def boundary(tables: Tables, hadm: int) -> bool:
    subject = tables.admission(hadm)["SUBJECT_ID"]
    days = {round(tables.days(int(other)), 4) for other, owner in tables.subject.items() if owner == subject}
    return set(BOUNDARY_DAYS) <= days


def gap(tables: Tables, hadm: int) -> bool:
    """The span reaches seven days, and the ventilation without the long pauses does not."""
    long = [pause for pause in tables.pauses(hadm) if pause > timedelta(hours=8)]
    week = timedelta(days=7)
    return bool(long) and tables.span(hadm) >= week and tables.span(hadm) - sum(long, timedelta()) < week


def exam_once(tables: Tables, hadm: int) -> bool:
    exam = section("physical exam:", tables.text(hadm))
    return len(re.findall(rf"patient {DIED}", exam, re.I)) == 1 and not dropped_for_death(tables, hadm)


CHECKS: dict[str, Callable[[Tables, int], bool]] = {
    "note-without-admission": without_admission,
    "admission-row-missing": lambda tables, hadm: bool(tables.summaries(hadm)) and not tables.of("ADMISSIONS", hadm),
    "newborn-with-summary": lambda tables, hadm: tables.admission(hadm)["ADMISSION_TYPE"] == "NEWBORN",
    "empty-text": lambda tables, hadm: [row["TEXT"] for row in tables.summaries(hadm)] == [""],
    "text-not-available": lambda tables, hadm: tables.text(hadm) in ("NA", "null"),
    "category-trailing-space": no_summary_but("Discharge summary "),
    "physician-trailing-space": lambda tables, hadm: (
        "Physician " in [row["CATEGORY"] for row in tables.of("NOTEEVENTS", hadm)]
    ),
    "nursing-only": no_summary_but("Nursing"),
    "marked-as-error": lambda tables, hadm: [row["ISERROR"] for row in tables.summaries(hadm)] == ["1"],
    "addendum-only": lambda tables, hadm: [kind for _, kind in kinds(tables, hadm)] == ["Addendum"],
    "addendum-before-report": lambda tables, hadm: (
        [kind for _, kind in sorted(kinds(tables, hadm))] == ["Addendum", "Report"]
        and complaint(tables, hadm) == "addendum written first"
    ),
    "addendum-same-day": lambda tables, hadm: (
        [kind for _, kind in kinds(tables, hadm)] == ["Addendum", "Report"]
        and len({date for date, _ in kinds(tables, hadm)}) == 1
        and tables.summaries(hadm)[0]["TEXT"] not in tables.summaries(hadm)[1]["TEXT"]
    ),
    "two-reports": lambda tables, hadm: (
        len({row["TEXT"] for row in tables.summaries(hadm)}) == 2
        and [kind for _, kind in kinds(tables, hadm)] == ["Report"] * 2
    ),
    "copy-same-admission": lambda tables, hadm: [row["HADM_ID"] for row in tables.copies(hadm)] == [str(hadm)] * 2,
    "copy-other-admission": lambda tables, hadm: (
        len({row["HADM_ID"] for row in tables.copies(hadm)}) == 2
        and len({row["SUBJECT_ID"] for row in tables.copies(hadm)}) == 1
    ),
    "copy-other-patient": lambda tables, hadm: len({row["SUBJECT_ID"] for row in tables.copies(hadm)}) == 2,
    "copies-same-day": lambda tables, hadm: (
        len({row["SUBJECT_ID"] for row in tables.copies(hadm)}) == 6
        and len({row["CHARTDATE"] for row in tables.copies(hadm)}) == 1
    ),
    "single-newline-header": lambda tables, hadm: "History of Present Illness:" in complaint(tables, hadm),
    "empty-section": lambda tables, hadm: complaint(tables, hadm).startswith("History of Present Illness:"),
    "last-section-open": lambda tables, hadm: (
        "Past Medical History:" in tables.text(hadm) and not history(tables, hadm)
    ),
    "header-with-digit": lambda tables, hadm: "2. Labs:" in complaint(tables, hadm),
    "header-with-bracket": lambda tables, hadm: "Exam (brief):" in complaint(tables, hadm),
    "header-with-dot": lambda tables, hadm: "Dr. Known:" in complaint(tables, hadm),
    "colon-in-prose": has(
        lambda tables, hadm: "following" not in illness(tables, hadm), "\n\nShe said the following: "
    ),
    "family-medical-history": lambda tables, hadm: history(tables, hadm) == "mother had cad",
    "physical-examination": has(
        lambda tables, hadm: not section("physical exam:", tables.text(hadm)), "\n\nPhysical Examination:\n"
    ),
    "home-medications": has(
        lambda tables, hadm: not section("medications on admission:", tables.text(hadm)), "\n\nHome Medications:\n"
    ),
    "admission-medications": has(
        lambda tables, hadm: not section("medications on admission:", tables.text(hadm)), "\n\nAdmission Medications:\n"
    ),
    "empty-brackets": lambda tables, hadm: (
        section("allergies:", tables.text(hadm)) == "[]" and complaint(tables, hadm).startswith("[]")
    ),
    "no-main-section": lambda tables, hadm: (
        not any(words(tables, hadm) for words in (complaint, illness, history))
        and bool(section("social history:", tables.text(hadm)))
    ),
    "history-only": lambda tables, hadm: (
        bool(history(tables, hadm)) and not complaint(tables, hadm) and not illness(tables, hadm)
    ),
    "literal-backslash-n": lambda tables, hadm: "c: ew ame" in complaint(tables, hadm),
    "several-blanks": lambda tables, hadm: (
        "\n\n\n\nSocial" in tables.text(hadm) and tables.text(hadm) != tables.text(hadm).strip(" ")
    ),
    "unicode": lambda tables, hadm: "\u00a0no\u2028pain" in tables.text(hadm),
    "quotes-and-commas": says('he said, "it hurts, ""here""",\n"and there", '),
    "carriage-returns": lambda tables, hadm: tables.text(hadm).count("\r\n") == tables.text(hadm).count("\n") > 0,
    "death-in-exam": exam_once,
    "death-twice-in-exam": has(died_and_dropped, "patient expired on day 3. Pt died in the icu"),
    "death-in-exam-no-subject": has(
        lambda tables, hadm: not dropped_for_death(tables, hadm), "mother died before; he has expired"
    ),
    "death-in-medication": has(lambda tables, hadm: not dropped_for_death(tables, hadm), "aspirin; pt has died"),
    "death-in-illness": has(died_and_dropped, "the patient died on arrival"),
    "death-in-complaint": has(died_and_dropped, "pt had passed away"),
    "death-inpatient": has(lives_and_dropped, "inpatient died"),
    "death-except": has(lives_and_dropped, "except expired"),
    "death-of-insulin": has(lives_and_dropped, "the expired insulin"),
    "death-she-expired": has(lives_and_dropped, "she expired at 50"),
    "death-pronounced": has(died_and_dropped, "was pronounced expired"),
    "death-time": has(died_and_dropped, "time of death 05:00"),
    "death-of-relatives": has(
        lambda tables, hadm: not dropped_for_death(tables, hadm), "mother died of cad, father dec"
    ),
    "death-of-husband": has(lambda tables, hadm: not dropped_for_death(tables, hadm), "patient's husband died"),
    "death-in-course-only": has(
        lambda tables, hadm: flag(tables, hadm) == "1" and not dropped_for_death(tables, hadm), "time of death 03:00"
    ),
    "stay-boundaries": boundary,
    "stay-zero": lambda tables, hadm: tables.days(hadm) == 0,
    "stay-negative": lambda tables, hadm: tables.days(hadm) == -0.5,
    "dx-leading-zero": coded("DIAGNOSES_ICD", "0389", "99591", "0054"),
    "dx-v-and-e": coded("DIAGNOSES_ICD", "V4581", "V45", "E8859"),
    "dx-short": coded("DIAGNOSES_ICD", "042", "78", "4"),
    "dx-null": coded("DIAGNOSES_ICD", ""),
    "dx-order": out_of_order("DIAGNOSES_ICD"),
    "px-0331": coded("PROCEDURES_ICD", "0331"),
    "px-331": coded("PROCEDURES_ICD", "331"),
    "px-0066": coded("PROCEDURES_ICD", "0066", "3601", "0040"),
    "px-order": out_of_order("PROCEDURES_ICD"),
    "px-none": coded("PROCEDURES_ICD"),
    "px-empty": lambda tables, hadm: "" in tables.codes("PROCEDURES_ICD", hadm),
    "no-expire-flag": lambda tables, hadm: flag(tables, hadm) == "",
    "ventilation-gap": lambda tables, hadm: gap(tables, hadm) and max(tables.pauses(hadm)) == timedelta(days=2),
    "ventilation-grace": lambda tables, hadm: tables.span(hadm) == timedelta(days=6, hours=18),
    "ventilation-below-grace": lambda tables, hadm: tables.span(hadm) == timedelta(days=6, hours=17, minutes=59),
    "ventilation-oxygen": oxygen_between,
    "ventilation-silence": lambda tables, hadm: (
        gap(tables, hadm) and max(tables.pauses(hadm)) == timedelta(hours=8, minutes=1)
    ),
    "ventilation-errors": only_errors_are_long,
    "ventilation-one-moment": lambda tables, hadm: len(tables.settings(hadm)) == 1,
    "ventilation-second-stay": second_stay,
}
OF_ALL_COHORTS = {"px-none"}
"""Seen without a trap, too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "trapped"
    write_cohort(out, PATIENTS, SEED, traps=["all", "px-empty", "no-expire-flag"], split_lists=True)
    return out


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "traps.json").read_text())


@pytest.fixture(scope="module")
def trapped(folder: Path) -> Tables:
    return Tables(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    out = tmp_path_factory.mktemp("cohort") / "plain"
    write_cohort(out, PATIENTS, SEED)
    return Tables(out)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_trap_is_there_when_it_is_on_and_only_then(
    name: str, trapped: Tables, plain: Tables, manifest: dict[str, Any]
) -> None:
    planted = manifest[name]["HADM_ID"]
    assert planted
    first = [hadm for hadm in planted if str(hadm) in plain.subject]
    assert first
    assert all(CHECKS[name](trapped, hadm) for hadm in first)
    if name not in OF_ALL_COHORTS:
        assert not any(CHECKS[name](plain, hadm) for hadm in first)


def test_every_trap_is_checked() -> None:
    assert set(CHECKS) == set(TRAPS) - {CHUNK, NO_SPLIT}
    assert set(ALONE) == {CHUNK, "px-empty", "no-expire-flag"}


def test_the_manifest_names_rows_that_are_there(folder: Path, trapped: Tables, manifest: dict[str, Any]) -> None:
    assert sorted(manifest) == sorted([*ON, "px-empty", "no-expire-flag"])
    assert json.loads((folder / "cohort.json").read_text())["traps"] == list(manifest)
    for name, found in manifest.items():
        assert found["shows"] == TRAPS[name].shows
        for table, numbers in found["ROW_ID"].items():
            rows = {int(row["ROW_ID"]): row for row in trapped.rows[table]}
            assert {int(rows[number]["SUBJECT_ID"]) for number in numbers} <= set(found["SUBJECT_ID"]), (name, table)
    zeros = manifest["dx-leading-zero"]["ROW_ID"]["DIAGNOSES_ICD"]
    codes = {int(row["ROW_ID"]): row["ICD9_CODE"] for row in trapped.rows["DIAGNOSES_ICD"]}
    assert {codes[number] for number in zeros} == {"0389", "99591", "0054"}
    empty = manifest["empty-text"]["ROW_ID"]["NOTEEVENTS"]
    assert [row["TEXT"] for row in trapped.rows["NOTEEVENTS"] if int(row["ROW_ID"]) in empty] == [""] * len(empty)
    assert "traps.json" in (folder / "SYNTHETIC.md").read_text()


def test_an_empty_text_is_quoted_and_a_missing_code_is_not(folder: Path) -> None:
    # pandas and DuckDB tell the two apart, as MIMIC-III's files do.
    assert ',"Discharge summary","Report",,,""\n' in (folder / "NOTEEVENTS.csv").read_text()
    assert ",1,\n" in (folder / "DIAGNOSES_ICD.csv").read_text()


def test_patients_without_a_trap_are_as_they_were(trapped: Tables, plain: Tables, manifest: dict[str, Any]) -> None:
    touched = {str(subject) for found in manifest.values() for subject in found["SUBJECT_ID"]}
    assert len(touched) < len(plain.subject)
    for table in trapped.rows:
        kept, before = (
            [list(row.values())[1:] for row in tables.rows[table] if row["SUBJECT_ID"] not in touched]
            for tables in (trapped, plain)
        )
        assert kept == before, table
    assert Counter(row["HADM_ID"] for row in trapped.rows["ADMISSIONS"]).most_common(1)[0][1] == 1
    assert Counter(row["SUBJECT_ID"] for row in trapped.rows["PATIENTS"]).most_common(1)[0][1] == 1
    assert all(
        row["SUBJECT_ID"] in {line["SUBJECT_ID"] for line in trapped.rows["PATIENTS"]}
        for row in trapped.rows["NOTEEVENTS"]
    )


def test_one_trap_goes_to_one_patient_in_ten(tmp_path: Path) -> None:
    write_cohort(tmp_path / "out", 100, 0, traps=["carriage-returns"])
    found = json.loads((tmp_path / "out" / "traps.json").read_text())
    assert list(found) == ["carriage-returns"]
    assert len(found["carriage-returns"]["HADM_ID"]) == 10
    assert not (tmp_path / "out" / "split_lists").exists()


def test_split_lists_are_by_patient_with_a_row_for_every_admission(
    folder: Path, trapped: Tables, manifest: dict[str, Any]
) -> None:
    lists = {}
    for name in ("train", "val", "test"):
        lines = (folder / "split_lists" / f"mimic_{name}.csv").read_text().splitlines()
        assert lines[0] == "SUBJECT_ID"
        lists[name] = lines[1:]
    patients = {name: set(rows) for name, rows in lists.items()}
    assert not patients["train"] & patients["val"]
    assert not (patients["train"] | patients["val"]) & patients["test"]
    in_all = sum(map(len, patients.values()))
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(len(patients[name]) - share * in_all) <= 1
    left_out = {str(subject) for subject in manifest[NO_SPLIT]["SUBJECT_ID"]}
    assert left_out
    expected = Counter(row["SUBJECT_ID"] for row in trapped.rows["ADMISSIONS"] if row["ADMISSION_TYPE"] != "NEWBORN")
    assert Counter(row for rows in lists.values() for row in rows) == {
        subject: count for subject, count in expected.items() if subject not in left_out
    }


def test_workers_and_long_notes_leave_traps_as_they_are(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_cohort(tmp_path / str(workers), 180, 1, notes=4500, workers=workers, traps=["all"], split_lists=True)
    for path in sorted((tmp_path / "1").rglob("*.*")):
        other = tmp_path / "2" / path.relative_to(tmp_path / "1")
        assert path.read_bytes() == other.read_bytes(), path.name
    tables = Tables(tmp_path / "1")
    found = json.loads((tmp_path / "1" / "traps.json").read_text())
    assert len(tables.rows["NOTEEVENTS"]) == 4500
    for name in ("empty-text", "last-section-open", "carriage-returns", "copies-same-day", "death-of-husband"):
        assert CHECKS[name](tables, found[name]["HADM_ID"][0]), name
    copied = {str(hadm) for name in found if name.startswith("cop") for hadm in found[name]["HADM_ID"]}
    odd = {str(hadm) for name in ("empty-text", "text-not-available") for hadm in found[name]["HADM_ID"]}
    texts = [row["TEXT"] for row in tables.rows["NOTEEVENTS"] if row["HADM_ID"] not in copied | odd]
    assert len(set(texts)) == len(texts)


def test_a_chunk_without_v_and_e_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_traps, "CHUNK_PATIENTS", 50)
    monkeypatch.setattr(cohort_traps, "_CHUNK_LEAST", 60)
    write_cohort(tmp_path / "out", 120, 0, traps=[CHUNK, "dx-v-and-e"])
    letters = [row["ICD9_CODE"][:1] in "VE" for row in read(tmp_path / "out", "DIAGNOSES_ICD")]
    first = letters.index(True)
    assert first > 400
    assert sum(letters[first:]) > 50
    assert any(code[0] == "V" for code in diagnosis_titles())
    found = json.loads((tmp_path / "out" / "traps.json").read_text())
    assert len(found[CHUNK]["SUBJECT_ID"]) == 50
    assert found[CHUNK]["ROW_ID"] == {}


def test_enough_patients_have_more_rows_than_pandas_types_at_once() -> None:
    assert cohort_traps.CHUNK_PATIENTS * 9 > 131_072
    assert chosen_traps([CHUNK], cohort_traps.CHUNK_PATIENTS * 2, split_lists=False) == (CHUNK,)


def test_every_trap_has_a_patient_in_the_smallest_cohort() -> None:
    names = chosen_traps(["all"], len(ON), split_lists=True)
    assert names == tuple(ON)
    given = [trap_of(index, 5, names, len(ON)) for index in range(len(ON))]
    assert sorted(trap.name for trap in given if trap) == sorted(ON)


@pytest.mark.parametrize(
    ("names", "patients", "message"),
    [
        (["no-such"], 100, r"trap 'no-such' is unknown; `clinstack prepare cohort --list-traps` lists them"),
        (["all"], 10, rf"{len(ON) - 1} traps need {len(ON) - 1} patients or more; there are 10"),
        ([NO_SPLIT], 100, "give --split-lists too"),
        ([CHUNK], 100, "needs 20000 patients or more; there are 100"),
    ],
)
def test_impossible_traps_are_refused(tmp_path: Path, names: list[str], patients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_cohort(tmp_path / "out", patients, 1, traps=names)
    assert not (tmp_path / "out").exists()


def test_the_command_lists_and_plants_traps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from clinstack.cli import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["clinstack", "prepare", "cohort", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = run("--list-traps")
    assert code == 0
    assert all(name in said for name in TRAPS)
    assert said.count("(not in all)") == len(ALONE)
    out = tmp_path / "out"
    options = ("--patients", 20, "--trap", "dx-short", "--trap", NO_SPLIT, "--split-lists", "--gzip")
    assert run("--out", out, *options)[0] == 0
    assert set(json.loads((out / "traps.json").read_text())) == {"dx-short", NO_SPLIT}
    assert (out / "split_lists" / "mimic_val.csv").is_file()
    assert (out / "NOTEEVENTS.csv.gz").is_file()
    code, said = run("--out", out, "--trap", "nothing")
    assert (code, "trap 'nothing' is unknown" in said) == (2, True)
    code, said = run("--out", out, "--notes", 3)
    assert (code, "notes is 3; use 25 or more" in said) == (2, True)


def test_the_page_tells_of_every_trap_once() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cohort.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z0-9-]+)`(?: \(\d\))* \|", page.split("## Traps")[1], re.MULTILINE)
    assert named == list(TRAPS)
    marked = re.findall(r"^\| `([a-z0-9-]+)` \(1\)", page, re.MULTILINE)
    assert sorted(marked) == ALONE
