"""`prepare ... --scrub`: what stands in the place of identifiers, and what is left of them in a prepared folder."""

from __future__ import annotations

import csv
import gzip
import json
import re
import stat
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.notes.cohort import write_cohort
from clinstack.notes.mimic3.prepare import prepare_mimic3
from clinstack.notes.read import section_spans
from clinstack.notes.scan import scan
from clinstack.notes.scrub import Scrub, scrubbing
from clinstack.privacy.identifiers import find_identifiers
from clinstack.privacy.identifiers.date_shift import shift_all
from clinstack.privacy.identifiers.key import read_key
from clinstack.privacy.identifiers.of_patient import OfPatient
from clinstack.privacy.identifiers.surrogates import Surrogates, apply_edits, moved_places

KEY = bytes(range(32))
TASKS = ("mortality",)
NOTE = (
    "Patient: SMITH, JOHN A  MRN: 233-05-28  DOB: 3/14/1950. Dr. van der Berg called at (617) 555-0123, fax: "
    "617-555-0124.\nLives at 45 N. Main St., Apt 4B, Springfield, MA 01101; jsmith@hospital.org; seen at St. Mary's "
    "Hospital on March 14th, 2012 and 3/21/12. 93 yo. MRN 2330528. [**Name 12**] and ___."
)


def _scrubbed(text: str, patient: str = "1", key: bytes = KEY, style: str = "surrogates") -> str:
    surrogates = Surrogates(key, style)  # type: ignore[arg-type]
    return apply_edits(text, surrogates.edits(patient, text, find_identifiers(text)))


def test_surrogates_keep_the_form_and_nothing_else() -> None:
    new = _scrubbed(NOTE)
    for item in find_identifiers(NOTE):
        if item.kind != "placeholder":
            assert NOTE[item.start : item.end] not in new
    form = re.compile(
        r"Patient: [A-Z]+, [A-Z]+ [A-Z]  MRN: (\d{3})-(\d\d)-(\d\d)  DOB: \d{1,2}/\d{1,2}/\d{4}\. "
        r"Dr\. van der [A-Z][a-z]+ called at \(\d{3}\) \d{3}-\d{4}, fax: \d{3}-\d{3}-\d{4}\.\nLives at \d\d N\. "
        r"[A-Z][a-z]+ St\., Apt \d[A-Z], [A-Z][a-z]+, MA \d{5}; [a-z.]+\d\d@example\.org; "
        r"seen at St\. [A-Z][a-z]+ Hospital on "
        r"[A-Z][a-z]+ "
        r"\d{1,2}(?:st|nd|rd|th), \d{4} and \d{1,2}/\d{1,2}/\d\d\. 90\+ yo\. MRN (\d{7})\. \[\*\*Name 12\*\*\] "
        r"and ___\."
    )
    match = form.fullmatch(new)
    assert match, new
    # The same number in another spelling stays the same number.
    assert "".join(match.groups()[:3]) == match[4]


def test_tags() -> None:
    assert _scrubbed("Dr. Roe on 3/14/2012, MRN 1234567, ___", style="tags") == "Dr. [NAME] on [DATE], MRN [MRN], ___"


def test_the_key_decides_and_the_patient_does() -> None:
    assert _scrubbed(NOTE) == _scrubbed(NOTE)
    assert len({_scrubbed(NOTE), _scrubbed(NOTE, "2"), _scrubbed(NOTE, key=bytes(32))}) == 3
    with pytest.raises(InputError, match="fewer than 16 bytes"):
        Surrogates(b"short")
    with pytest.raises(InputError, match="no style"):
        Surrogates(KEY, "stars")  # type: ignore[arg-type]


def test_names_are_the_same_in_every_spelling_of_a_patient() -> None:
    surrogates = Surrogates(KEY)
    upper, title, lower = (
        surrogates.replacement("1", "name", words) for words in ("SMITH, JOHN", "John Smith", "smith")
    )
    last, first = upper.split(", ")
    assert title == f"{first.capitalize()} {last.capitalize()}"
    assert lower == last.lower()


@pytest.mark.parametrize(
    ("words", "moved"),
    [
        ("03/14/2012", "05/02/2012"), ("3/4/12 08:15 AM", "4/22/12 08:15 AM"), ("2012-03-04T08:15", "2012-04-22T08:15"),
        ("March 14, 2012", "May 2, 2012"), ("Mar 14th", "May 2nd"), ("14 March 2012", "2 May 2012"),
        ("14-Mar-12", "2-May-12"), ("14MAR2012", "2MAY2012"), ("the 14th of March", "the 2nd of May"),
        ("March 2012", "May 2012"), ("March", "May"), ("3/14", "5/2"), ("3/14-3/17", "5/2-5/5"), ("3/2012", "5/2012"),
        ("20120314", "20120502"), ("14.03.2012", "02.05.2012"), ("DEC 31, 2112 at 10:00", "FEB 18, 2113 at 10:00"),
        ("March 14 and 15, 2012", "May 2 and 3, 2012"), ("jan 3, '99", "feb 21, '99"), ("12/25/99", "2/12/00"),
    ],
)  # fmt: skip
def test_dates_move_and_stay_as_they_were_written(words: str, moved: str) -> None:
    assert shift_all(words, 49) == moved


def test_words_that_are_no_date_are_not_understood() -> None:
    assert shift_all("yesterday", 7) is None
    assert shift_all("45/67", 7) is None


@given(st.dates(date(1910, 1, 1), date(2190, 1, 1)), st.integers(-800, 800), st.sampled_from((
    "{0.month:02d}/{0.day:02d}/{0.year}", "{0.year}-{0.month:02d}-{0.day:02d}", "{0:%B} {0.day}, {0.year}",
    "{0.day} {0:%B} {0.year}", "{0:%Y%m%d}",
)))  # fmt: skip
def test_intervals_between_dates_stay(day: date, days: int, form: str) -> None:
    # Of two numbers the month comes first: where both orders are possible, that is what the form here says too.
    moved = shift_all(form.format(day), days)
    assert moved is not None
    # "10/10" does not say whether "9" would be "09".
    assert re.sub(r"\b0", "", moved) == re.sub(r"\b0", "", form.format(day + timedelta(days)))


def test_a_patients_dates_move_by_whole_weeks() -> None:
    days = {Surrogates(KEY).days(str(patient)) for patient in range(500)}
    assert all(number % 7 == 0 and 28 <= abs(number) <= 364 for number in days)
    assert len(days) > 80


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.text("xy", max_size=6)), max_size=5))
def test_places_move_with_the_text(gaps: list[tuple[int, int, str]]) -> None:
    text, edits, place = "", [], 0
    for gap, length, words in gaps:
        text += "a" * gap + "b" * length
        place += gap
        if length:
            edits.append((place, place + length, words))
        place += length
    text += "aaa"
    new = apply_edits(text, edits)
    moved = moved_places(list(range(len(text) + 1)), edits)
    assert moved == sorted(moved)
    assert moved[-1] == len(new)
    assert all(new[moved[at]] == "a" for at, letter in enumerate(text) if letter == "a")


def test_what_is_known_of_a_patient_is_found_where_nothing_announces_it() -> None:
    known = OfPatient()
    first = "Dr. White saw her; lives in Salem, MA. MRN 233-05-28."
    known.learn(first, find_identifiers(first))
    second = "White was called. Back in Salem. Number 2330528, not 2330529."
    assert [second[item.start : item.end] for item in known.find(second)] == ["White", "Salem", "2330528"]
    assert not list(known.find("White count and white cells"))  # an ordinary word in this text


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scrub") / "cohort"
    write_cohort(folder, 40, 3, identifiers=True)
    return folder


@pytest.fixture(scope="module")
def scrubbed(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scrub")
    with scrubbing(Scrub(key_file=folder / "key")):
        prepare_mimic3(cohort, folder / "data", tasks=TASKS)
    return folder


def _texts(folder: Path) -> dict[str, str]:
    table = pq.read_table(folder / "notes" / "notes.parquet", columns=["note_id", "text"])
    return dict(zip(table["note_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_what_the_scan_found_is_gone_and_little_of_the_rest_is_left(cohort: Path, scrubbed: Path) -> None:
    notes = _texts(scrubbed / "data")
    with (cohort / "NOTEEVENTS.csv").open(encoding="utf-8", newline="") as file:
        originals = {row["ROW_ID"]: row["TEXT"] for row in csv.DictReader(file)}
    known, left = Counter[str](), Counter[str]()
    with gzip.open(cohort / "identifiers.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["ROW_ID"] not in notes or row["HELD_OUT"] == "1":
                continue
            text = originals[row["ROW_ID"]]
            words = text[int(row["START"]) : int(row["END"])]
            known[row["KIND"]] += 1
            left[row["KIND"]] += re.search(rf"(?<!\w){re.escape(words)}(?!\w)", notes[row["ROW_ID"]]) is not None
    assert left["date"] / known["date"] < 0.01  # another date may have moved to where this one was
    for kind in known.keys() - {"name", "address", "date"}:
        assert left[kind] == 0, kind
    # Names that no word announces in any note of the patient.
    assert left["name"] / known["name"] < 0.1
    assert left["address"] / known["address"] < 0.2
    assert left.total() / known.total() < 0.04


def test_examples_lose_what_their_notes_lost_and_keep_their_maps(cohort: Path, scrubbed: Path, tmp_path: Path) -> None:
    prepare_mimic3(cohort, tmp_path / "data", tasks=TASKS)
    for file in sorted((tmp_path / "data" / "examples").rglob("*.parquet")):
        before, after = pq.read_table(file), pq.read_table(scrubbed / "data" / file.relative_to(tmp_path / "data"))
        assert before.schema.equals(after.schema)
        same = [name for name in before.column_names if name not in ("text", "sections")]
        assert before.select(same).equals(after.select(same))
        assert section_spans(after, file) is not None  # raises where the map does not cover the text
        for one, other in zip(before.to_pylist(), after.to_pylist(), strict=True):
            assert [span["name"] for span in one["sections"]] == [span["name"] for span in other["sections"]]
            for span, moved in zip(one["sections"], other["sections"], strict=True):
                assert one["text"][span["start"]] == other["text"][moved["start"]]


def test_the_folder_says_that_it_was_scrubbed(scrubbed: Path) -> None:
    facts = json.loads((scrubbed / "data" / "prepare.json").read_text(encoding="utf-8"))["scrub"]
    assert facts["engines"] == ["patterns"]
    assert facts["key"] == "kept by its owner"
    assert facts["complete"] is False
    assert facts["identifiers"]["name"] > 200
    assert sorted(path.name for path in (scrubbed / "data").rglob(".*")) == []
    key = (scrubbed / "key").read_text(encoding="ascii").strip()
    assert stat.S_IMODE((scrubbed / "key").stat().st_mode) == 0o600
    for file in (scrubbed / "data").rglob("*"):
        assert file.is_dir() or key.encode() not in file.read_bytes()


def test_the_same_key_gives_the_same_bytes(cohort: Path, scrubbed: Path, tmp_path: Path) -> None:
    with scrubbing(Scrub(key_file=scrubbed / "key")):
        prepare_mimic3(cohort, tmp_path / "same", tasks=TASKS)
    with scrubbing(Scrub()):
        prepare_mimic3(cohort, tmp_path / "other", tasks=TASKS)
    assert _texts(tmp_path / "same") == _texts(scrubbed / "data")
    for file in (scrubbed / "data").rglob("*.parquet"):
        assert (tmp_path / "same" / file.relative_to(scrubbed / "data")).read_bytes() == file.read_bytes()
    assert _texts(tmp_path / "other") != _texts(scrubbed / "data")


def test_tags_leave_placeholders_only(cohort: Path, tmp_path: Path) -> None:
    with scrubbing(Scrub("tags")):
        prepare_mimic3(cohort, tmp_path / "data", tasks=TASKS)
    found = scan([tmp_path / "data" / "notes"])
    assert found["placeholders"] > 500
    assert found["identifiers"] < 0.01 * found["placeholders"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    made = read_key(key)
    assert read_key(key) == made
    assert len(made) == 32
    key.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_key(key)
    key.chmod(0o600)
    key.write_text("secret", encoding="ascii")
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        read_key(key)
    with pytest.raises(InputError, match="is no file"):
        read_key(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        read_key(tmp_path / "nowhere" / "key")
    assert read_key(None) != read_key(None)


def test_the_command_line(cohort: Path, tmp_path: Path) -> None:
    def run(*words: object) -> object:
        out = tmp_path / "data"
        return CliRunner().invoke(
            app, ["prepare", "mimic3", "--source", str(cohort), "--out", str(out), *map(str, words)]
        )

    for words, message in (
        (("--scrub-with", "tags"), "need --scrub"),
        (("--scrub", "--scrub-with", "stars"), "no style"),
        (("--scrub", "--scrub-engine", "magic"), "is not known"),
        (("--scrub", "--scrub-key", tmp_path / "data" / "key"), "keep the key elsewhere"),
        (("--scrub", "--export-csv", tmp_path / "csv"), "does not reach"),
    ):
        result = run(*words)
        assert isinstance(result.exception, InputError), words  # type: ignore[attr-defined]
        assert message in str(result.exception)  # type: ignore[attr-defined]
        assert not (tmp_path / "data").exists()
    result = run("--scrub", "--tasks", "mortality")
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    assert "Scrubbed: " in result.output  # type: ignore[attr-defined]
    facts = json.loads((tmp_path / "data" / "prepare.json").read_text(encoding="utf-8"))["scrub"]
    assert facts["key"] == "forgotten"


def test_instructions_are_scrubbed_in_every_column(cohort: Path, tmp_path: Path) -> None:
    prepare_mimic3(cohort, tmp_path / "data", tasks=TASKS)
    arguments = ["prepare", "oracle", tmp_path / "data", "--out", tmp_path / "out", "--scrub", "--pairs", 60]
    result = CliRunner().invoke(app, [str(word) for word in [*arguments, "--scrub-with", "tags"]])
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out" / "instructions" / "instructions.parquet")
    notes = " ".join(table["note"].to_pylist())
    assert notes.count("[NAME]") > 50
    assert notes.count("[DATE]") > 50


def test_processes_find_the_same(cohort: Path, scrubbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinstack.notes.scrub._WORTH_PROCESSES", 1)
    with scrubbing(Scrub(key_file=scrubbed / "key")):
        prepare_mimic3(cohort, tmp_path / "data", tasks=TASKS)
    assert _texts(tmp_path / "data") == _texts(scrubbed / "data")


def test_a_failed_builder_leaves_nothing(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("clinstack.notes.scrub._rewrite", fail)
    with scrubbing(Scrub()), pytest.raises(RuntimeError, match="in the middle"):
        prepare_mimic3(cohort, tmp_path / "data", tasks=TASKS)
    assert list(tmp_path.iterdir()) == []
