"""The published builders, bit for bit: the golden cohort, and each rule for itself."""

from __future__ import annotations

import gzip
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.notes.mimic3.official.admission_text import SECTIONS, official_admission_text, official_mortality_text
from clinstack.notes.mimic3.official.labels import shuffled
from clinstack.notes.mimic3.official.pandas_types import chunk_rows, guessed
from clinstack.notes.mimic3.official.texts import official_order
from clinstack.notes.mimic3.options import Mimic3Options
from clinstack.notes.mimic3.prepare import prepare_mimic3, read_split_lists

GOLDEN = Path(__file__).parent / "golden" / "vanaken"
TASKS = ("mortality", "length_of_stay", "diagnoses", "procedures")


def unpacked(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.glob("*.gz"):
        (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return target


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(GOLDEN / "splits", tmp_path_factory.mktemp("golden") / "splits")


@pytest.fixture(scope="module", params=["admission", "full"])
def built(request: pytest.FixtureRequest, splits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    options = Mimic3Options(compat="official", splits=splits, export_csv=folder / "csv", notes=False)
    prepare_mimic3(GOLDEN / "input", folder / "out", text=request.param, options=options)
    return request.param, folder


def test_the_golden_files_are_byte_identical(built: tuple[str, Path]) -> None:
    text, folder = built
    expected = {
        str(path.relative_to(GOLDEN / "expected" / text).with_suffix("")): gzip.decompress(path.read_bytes())
        for path in (GOLDEN / "expected" / text).rglob("*.gz")
    }
    written = {str(path.relative_to(folder / "csv")): path for path in (folder / "csv").rglob("*") if path.is_file()}
    assert len(expected) == 14
    assert written.keys() == expected.keys()
    assert [name for name, path in written.items() if path.read_bytes() != expected[name]] == []


def test_examples_hold_what_the_files_hold_in_their_order(built: tuple[str, Path]) -> None:
    text, folder = built
    middle = "_adm" if text == "admission" else ""
    published = (folder / "csv" / "los" / f"LOS_WEEKS{middle}_train.csv").read_text(encoding="utf-8")
    rows = pq.read_table(folder / "out/examples/length_of_stay/train.parquet").to_pylist()
    ids = re.findall(r'^"(\d{6})",', published, re.MULTILINE)
    assert [row["example_id"] for row in rows] == ids
    assert f'"{rows[0]["example_id"]}","{rows[0]["text"]}","{rows[0]["label"]}"\n' in published
    assert read_json(folder / "out/examples/mortality/attrition.json")["compat"] == "official"


def test_the_fixed_tasks_name_each_fix_with_its_rows(splits: Path, tmp_path: Path) -> None:
    prepare_mimic3(GOLDEN / "input", tmp_path / "out", options=Mimic3Options(splits=splits))
    found = {
        task: {
            row["fix"]: row["rows"] for row in read_json(tmp_path / f"out/examples/{task}/attrition.json")["changes"]
        }
        for task in TASKS
    }
    assert found["procedures"]["leading_zeros"] > 50
    assert found["diagnoses"]["v_codes"] > 100
    assert found["length_of_stay"]["exact_hours"] == 11
    assert found["length_of_stay"]["negative_stays"] == 1
    # except expired, the expired insulin, and two alike; kept here
    assert found["mortality"]["death_false_positives"] == 4
    for task in TASKS:
        assert found[task]["order_of_notes"] == 16
        assert found[task]["duplicates_across_patients"] == 6
        assert found[task]["errors"] == 1
        assert found[task]["patients_in_no_list"] == 1
        assert found[task]["empty_brackets"] == 1
        assert found[task]["line_breaks"] == 0
    sheet = (tmp_path / "out" / "DATASHEET.md").read_text(encoding="utf-8")
    assert "leading zeros" in sheet


def test_a_foreign_file_is_not_replaced_by_an_export(splits: Path, tmp_path: Path) -> None:
    mine = tmp_path / "csv" / "mp" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    options = Mimic3Options(compat="official", splits=splits, export_csv=tmp_path / "csv", notes=False)
    with pytest.raises(InputError, match=r"thesis\.txt is not one of the published files"):
        prepare_mimic3(GOLDEN / "input", tmp_path / "out", tasks=["mortality"], options=options)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_split_lists_that_overlap_are_refused(splits: Path, tmp_path: Path) -> None:
    lists = unpacked(GOLDEN / "splits", tmp_path / "lists")
    shared = (lists / "mimic_train.csv").read_text().splitlines()[1]
    with (lists / "mimic_test.csv").open("a") as file:
        file.write(f"{shared}\n")
    with pytest.raises(InputError, match=f"mimic_test.csv: the patient {shared} is also in mimic_train.csv"):
        read_split_lists(lists)
    (lists / "mimic_val.csv").unlink()
    with pytest.raises(InputError, match=r"no mimic_val\.csv"):
        read_split_lists(lists)


def reference_admission_text(text: str) -> str | None:
    """The published expressions, as the research page states them."""
    text = text.replace("\n", "\\n")
    found = []
    for _, header in SECTIONS:
        match = re.search(rf"(?i){header}(.+?)\\n\\n[^(\\|\d|\.)]+?:", text)
        found.append(re.sub(r"\\n", " ", match.group(1)).strip() if match else "")
    if not any(found[:3]):
        return None
    return "\n\n".join(f"{title}: {part}" for (title, _), part in zip(SECTIONS, found, strict=True))


def test_admission_texts_equal_the_published_expressions() -> None:
    chance = random.Random(3)
    pieces = [header for _, header in SECTIONS] + [header.title() for _, header in SECTIONS]
    pieces += ["\n", "\n\n", "\n\n\n", "\\n", "\\", "n", ":", "Foo:", "2. Labs:", " (x)", ".", "a b", "\r\n", "é", "|"]
    pieces += ["ſocial history:", "foo bar:", "\t", "\x0c"]
    for _ in range(20_000):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 14))).strip()
        assert official_admission_text(text) == reference_admission_text(text), repr(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PHYSICAL EXAM: patient has expired today", "PHYSICAL EXAM:  today"),
        ("PHYSICAL EXAM: mother died, cold", "PHYSICAL EXAM: mother, cold"),
        ("PHYSICAL EXAM: pt died. pt died", None),
        ("FAMILY HISTORY: mother died", "FAMILY HISTORY: mother died"),
        ("PRESENT ILLNESS: inpatient died", None),
        ("PRESENT ILLNESS: all drugs except expired ones", None),
        ("PRESENT ILLNESS: the expired insulin", None),
        ("PRESENT ILLNESS: pronounced expired", None),
        ("PRESENT ILLNESS: time of death 5am", None),
        ("PRESENT ILLNESS: patient's husband died", "PRESENT ILLNESS: patient's husband died"),
        ("MEDICATION ON ADMISSION: \n\nALLERGIES: pt expired", None),
    ],
)
def test_death_mentions_as_published(text: str, expected: str | None) -> None:
    result = official_mortality_text(text)
    assert result == (expected if expected is None else expected.replace("patient has ", ""))


def test_types_are_guessed_chunk_by_chunk() -> None:
    assert chunk_rows(5) == 131_072
    assert chunk_rows(19) == 32_768
    assert guessed(["0331", "66"], 5) == [331, 66]
    assert guessed(["0331", None], 5) == [331.0, None]
    assert str(guessed(["0066", ""], 5)[0])[:3] == "66."
    assert guessed(["0331", "V45"], 5) == ["0331", "V45"]
    assert guessed(["NA", "x\0y"], 5) == [None, "x"]
    wide = 2**18  # two rows a chunk
    assert chunk_rows(wide) == 2
    assert guessed(["01", "02", "V1", "03", "04", None], wide) == [1, 2, "V1", "03", 4.0, None]
    assert guessed(["01", "02", "04", None], wide) == [1.0, 2.0, 4.0, None]


def test_the_unstable_order_of_equal_dates() -> None:
    days = ["2150-01-02" if place % 3 else "2150-01-01" for place in range(40)]
    order = official_order([*days, None, *days]).tolist()
    assert order[-1] == 40
    keys = np.array(days + days, dtype=object)
    expected = [place + (place >= 40) for place in keys.argsort(kind="quicksort").tolist()]
    assert order[:-1] == expected
    stable = [place + (place >= 40) for place in keys.argsort(kind="stable").tolist()]
    assert order[:-1] != stable


def test_rows_are_shuffled_as_a_data_frame_was() -> None:
    assert shuffled(list("abcdefgh"), 123) == [list("abcdefgh")[i] for i in np.random.RandomState(123).permutation(8)]
    assert shuffled([], 123) == []
