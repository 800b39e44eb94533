"""The table of instructions: written and read, split by patient, refused where it is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.notes.attrition import Attrition
from clinstack.notes.instructions import COLUMNS, TASKS, Instructions, instruction_files, read_instructions
from clinstack.notes.instructions import write_instructions as write
from clinstack.notes.prepared import prepared_folder
from clinstack.notes.read import is_synthetic
from clinstack.notes.splits import SPLITS, assign_splits

PATIENTS = 30


def rows(patients: int = PATIENTS, **more: Any) -> pa.Table:
    """Two instructions about the one note of each patient."""
    places = [place for place in range(patients) for _ in range(2)]
    columns = {
        "example_id": [f"x{number}" for number in range(2 * patients)],
        "patient_id": [f"p{place}" for place in places],
        "note": [f"note of {place}, bp {100 + place}/70" for place in places],
        "question": ["What is the pressure?", "What is the rate?"] * patients,
        "answer": [f"{100 + place}/70" for place in places],
        "task": [TASKS[number % 8] for number in range(2 * patients)],
        "answerable": [True, False] * patients,
    }
    return pa.table(columns | more)


def prepare(folder: Path, table: pa.Table | list[pa.Table], splits: dict[str, str] | None = None) -> dict[str, Any]:
    attrition = Attrition()
    attrition.step("rows", 2 * PATIENTS)
    with prepared_folder(folder) as prepared:
        return write(prepared, table, attrition, {"source": "test", "synthetic": True}, seed=3, splits=splits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path / "data", rows())
    return tmp_path / "data"


def change(folder: Path, **columns: Any) -> None:
    path = folder / "instructions" / "instructions.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)


def test_written_and_read(tmp_path: Path) -> None:
    """Every row comes back once, in the split of its patient, in the table's order."""
    table = rows(model=["m"] * 60, seed=list(range(60)))
    facts = prepare(tmp_path / "data", [table.slice(0, 17), table.slice(17)])
    written = pq.read_table(tmp_path / "data" / "instructions" / "instructions.parquet")
    assert written.column_names == [*COLUMNS, "answerable", "model", "seed"]
    assert written.select(table.column_names).equals(table.select(table.column_names))
    found = read_instructions(tmp_path / "data")
    split_of = assign_splits([f"p{place}" for place in range(PATIENTS)], seed=3)
    assert sorted(name for part in found.values() for name in part.example_ids) == sorted(
        table["example_id"].to_pylist()
    )
    for split, part in found.items():
        assert {split_of[patient] for patient in part.patient_ids} == {split}
        assert part.example_ids == sorted(part.example_ids, key=lambda name: int(name[1:]))
        assert part.answerable == [int(name[1:]) % 2 == 0 for name in part.example_ids]
        assert facts["counts"]["patients"][split] == len(set(part.patient_ids))
    assert facts["counts"]["instructions"] == 60
    assert sum(facts["counts"]["tasks"].values()) == 60
    assert is_synthetic(tmp_path / "data")
    assert [file.name for file in instruction_files(tmp_path / "data")] == ["instructions.parquet", "splits.parquet"]
    attrition = read_json(tmp_path / "data" / "instructions" / "attrition.json")
    assert attrition["steps"] == [{"step": "rows", "kept": 60, "removed": 0}]
    assert sum(part["rows"] for part in attrition["splits"].values()) == 60
    assert sum(sum(part["tasks"].values()) for part in attrition["splits"].values()) == 60
    assert (tmp_path / "data" / "DATASHEET.md").is_file()


def test_equal_notes_are_one_string(folder: Path) -> None:
    part = read_instructions(folder)["train"]
    assert part.notes[0] == part.notes[1]
    assert part.notes[0] is part.notes[1]


def test_patients_keep_their_side_of_the_notes(tmp_path: Path) -> None:
    """Given splits are used as they are, cut down to the patients with a row."""
    splits = {f"p{place}": SPLITS[place % 3] for place in range(PATIENTS + 5)}
    prepare(tmp_path / "data", rows(), splits)
    for split, part in read_instructions(tmp_path / "data").items():
        assert {splits[patient] for patient in part.patient_ids} == {split}
    assert pq.read_table(tmp_path / "data" / "splits.parquet").num_rows == PATIENTS
    del splits["p7"]
    with pytest.raises(InputError, match="patient p7 of the notes"):
        prepare(tmp_path / "other", rows(), splits)
    assert not (tmp_path / "other").exists()


def test_without_splits_or_answerable(folder: Path) -> None:
    (folder / "splits.parquet").unlink()
    change(folder, answerable=None)
    found = read_instructions(folder)
    assert sum(map(len, found.values())) == 2 * PATIENTS
    assert all(part.answerable is None for part in found.values())
    assert found["train"].chosen([3, 1]).example_ids == [found["train"].example_ids[3], found["train"].example_ids[1]]


def test_required_splits(tmp_path: Path) -> None:
    prepare(tmp_path / "data", rows(), dict.fromkeys((f"p{place}" for place in range(PATIENTS)), "test"))
    with pytest.raises(InputError, match="no rows of train patients"):
        read_instructions(tmp_path / "data")
    found = read_instructions(tmp_path / "data", required=["test"])
    assert [len(found[split]) for split in SPLITS] == [0, 0, 2 * PATIENTS]


def test_sample_depends_on_ids_and_seed(folder: Path) -> None:
    part = read_instructions(folder)["train"]
    drawn = part.sample(10, seed=1)
    assert len(drawn) == 10
    assert drawn.example_ids == [name for name in part.example_ids if name in drawn.example_ids]
    assert set(part.sample(5, seed=1).example_ids) < set(drawn.example_ids)
    assert part.sample(10, seed=2).example_ids != drawn.example_ids
    backwards = part.chosen(range(len(part) - 1, -1, -1))
    assert set(backwards.sample(10, seed=1).example_ids) == set(drawn.example_ids)
    assert part.sample(None, seed=1) is part
    assert part.sample(10_000, seed=1) is part


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": None}, "the column answer is missing"),
        ({"answer": ["yes"] * 6 + [""] + ["no"] * 53}, "row 7: answer is empty"),
        ({"note": [None, *["n"] * 59]}, "row 1: note is empty"),
        ({"example_id": ["a", "b", "a", *[f"c{place}" for place in range(57)]]}, "row 3: the example_id a also stands"),
        ({"patient_id": list(range(60))}, "the column patient_id holds int64; write it as text"),
        ({"answerable": ["yes"] * 60}, "the column answerable holds string"),
        ({"answerable": [None, *[True] * 59]}, "row 1: answerable is empty"),
        ({"patient_id": ["stranger"] * 60}, "the patient stranger of the instructions"),
    ],
)
def test_broken_tables_are_refused(folder: Path, columns: dict[str, Any], message: str) -> None:
    change(folder, **columns)
    with pytest.raises(InputError, match=message):
        read_instructions(folder)


def test_broken_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no instructions/\*\.parquet"):
        instruction_files(tmp_path)
    pq.write_table(pa.table({"patient_id": ["p0"], "split": ["dev"]}), folder / "splits.parquet")
    with pytest.raises(InputError, match="the split 'dev' is none of"):
        read_instructions(folder)
    (folder / "instructions" / "instructions.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_instructions(folder)


def test_answers_in_the_column_task_are_refused_and_not_quoted(tmp_path: Path) -> None:
    prepare(tmp_path / "data", rows(100))
    change(tmp_path / "data", task=[f"the answer {number}" for number in range(200)])
    with pytest.raises(InputError, match="200 different tasks, and 64 are the most") as caught:
        read_instructions(tmp_path / "data")
    assert "the answer" not in str(caught.value)


def test_nothing_left_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No instruction is left \(rows: 60\)"):
        prepare(tmp_path / "data", rows().slice(0, 0))
    assert not (tmp_path / "data").exists()


def test_instructions_have_a_length() -> None:
    assert len(Instructions()) == 0
