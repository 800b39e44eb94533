"""The data sheet: figures worked out by hand, small cells hidden, and never a word of a note."""

from __future__ import annotations

import itertools
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.notes.sheet.datasheet import write_datasheet
from clinstack.notes.sheet.small_cells import HIDDEN, hide_small_cells
from clinstack.notes.sheet.text_lengths import TokenCounter, count_words, measure_texts
from clinstack.tasks import Task
from tiny_notes import CANARY

LENGTHS = {"train": [100, 200, 600, 3000], "validation": [10, 0], "test": [128, 129]}
"""Words of each text of the known folder; its tokenizer has one token for each."""
DEATHS = {"train": [1, 0, 0, 0], "validation": [0, 1], "test": [0, 0]}
CODES = {"train": [["a"], ["a", "b"], ["b"], ["a"]], "validation": [["a"], ["c"]], "test": [["b", "a"], ["a"]]}
AGES = {"train": [20.0, 40.0, 60.0, 300.0], "validation": [50.0, None], "test": [30.0, 32.0]}


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with one token for each word, and none besides."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "pain": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # As some published ones do: a data sheet that kept to this would find no long texts.
    tokenizer.enable_truncation(max_length=64)
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A folder of eight examples, each of another patient, whose figures are plain to see above."""
    folder = tmp_path / "known"
    patients, notes, admissions = [], [], []
    for name, kind, labels in (
        ("mortality", "binary", DEATHS),
        ("diagnoses", "multilabel", CODES),
    ):
        place = folder / "examples" / name
        place.mkdir(parents=True)
        Task(name, kind, ("survived", "died") if kind == "binary" else ("a", "b", "c")).save(place)  # type: ignore[arg-type]
        steps = [{"step": "admissions", "kept": 9, "removed": 0}, {"step": "grown | up", "kept": 8, "removed": 1}]
        changes = [{"fix": "codes", "quirk": 7, "rows": 1234, "what": "codes keep their zeros"}]
        facts = {"task": name, "steps": steps} | ({"changes": changes} if name == "mortality" else {})
        write_json(place / "attrition.json", facts)
        for split, words in LENGTHS.items():
            rows = [
                {
                    "example_id": f"{split}{index}",
                    "patient_id": f"p{split}{index}",
                    "encounter_id": f"e{split}{index}",
                    "text": " ".join([CANARY] * (count // 3) + ["pain"] * (count % 3)),
                    "label": labels[split][index],
                }
                for index, count in enumerate(words)
            ]
            pq.write_table(pa.Table.from_pylist(rows), place / f"{split}.parquet")
    for split, words in LENGTHS.items():
        for index in range(len(words)):
            patients.append({"patient_id": f"p{split}{index}", "split": split})
            notes.append({"patient_id": f"p{split}{index}", "note_type": "Nursing", "text": CANARY})
            came = datetime(2120, 1, 1)
            admissions.append(
                {
                    "encounter_id": f"e{split}{index}",
                    "patient_id": f"p{split}{index}",
                    "admitted": came,
                    "discharged": came + timedelta(hours=36 * (index + 1)),
                    "age": AGES[split][index],
                    "sex": "F" if index % 2 else "M",
                    "insurance": None if split == "test" else "Private",
                    "died": DEATHS[split][index],
                }
            )
    # Admitted, but without an example: not described.
    admissions.append({**admissions[0], "encounter_id": "other", "sex": "X", "age": 99.0})
    notes.append({"patient_id": "ptrain0", "note_type": "Radiology", "text": CANARY})
    (folder / "notes").mkdir()
    pq.write_table(pa.Table.from_pylist(patients), folder / "splits.parquet")
    pq.write_table(pa.Table.from_pylist(notes), folder / "notes" / "notes.parquet")
    pq.write_table(pa.Table.from_pylist(admissions), folder / "admissions.parquet")
    facts = {
        "source": "mimic3",
        "synthetic": False,
        "seed": 7,
        "text": "full",
        "tables": {"ADMISSIONS.csv": "sha256:ab"},
    }
    write_json(folder / "prepare.json", {**facts, "database": "postgresql://me:secret@host/db", "clinstack": "0.9"})
    return folder


def _figures(folder: Path, **options: Any) -> dict[str, Any]:
    write_datasheet(folder, **options)
    figures: dict[str, Any] = read_json(folder / "datasheet.json")
    return figures


def test_cut_shares_by_hand(known: Path, word_tokenizer: Path) -> None:
    tasks = _figures(known, tokenizer=str(word_tokenizer))["tasks"]
    tokens = tasks["mortality"]["lengths"]["train"]["tokens"]
    assert tokens["sampled"] == 4
    assert (tokens["mean"], tokens["median"], tokens["max"]) == (975.0, 400.0, 3000)
    assert tokens["contexts"] == {
        "128": {"texts_cut": 0.75, "tokens_lost": round((72 + 472 + 2872) / 3900, 6)},
        "512": {"texts_cut": 0.5, "tokens_lost": round((88 + 2488) / 3900, 6)},
        "2048": {"texts_cut": 0.25, "tokens_lost": round(952 / 3900, 6)},
    }
    # 128 tokens fit into 128, 129 do not.
    assert tasks["mortality"]["lengths"]["test"]["tokens"]["contexts"]["128"]["texts_cut"] == 0.5
    empty = tasks["mortality"]["lengths"]["validation"]
    assert (empty["texts"], empty["empty"], empty["words"]["max"]) == (2, 1, 10)
    sheet = (known / "DATASHEET.md").read_text(encoding="utf-8")
    assert "| mortality | train | 75.0 % | 87.6 % | 50.0 % | 66.1 % | 25.0 % | 24.4 % |" in sheet
    assert "| mortality | train | 4 | 975.0 | 400.0 | 2,280.0 | 2,928.0 | 3,000 |" in sheet
    assert "*words* (2 entries" in sheet


def test_table_one_by_hand(known: Path) -> None:
    figures = _figures(known, small_cells=1)
    cohort = figures["cohort"]
    assert cohort["admissions"] == {"train": 4, "validation": 2, "test": 2, "all": 8}
    age = cohort["measures"]["age"]
    # 300 counts as 90; the unknown age of a validation patient does not count.
    assert age["train"] == {"known": 4, "mean": 52.5, "sd": 29.9, "median": 50.0, "p25": 35.0, "p75": 67.5}
    assert age["validation"]["known"] == 1
    assert age["all"]["known"] == 7
    assert cohort["measures"]["stay"]["train"]["median"] == 3.8  # 1.5, 3, 4.5 and 6 days
    assert cohort["categories"]["sex"] == [
        {"value": "F", "train": 2, "validation": 1, "test": 1, "all": 4},
        {"value": "M", "train": 2, "validation": 1, "test": 1, "all": 4},
    ]
    assert cohort["categories"]["insurance"] == [
        {"value": "Private", "train": 4, "validation": 2, "test": 0, "all": 6},
        {"value": "not recorded", "train": 0, "validation": 0, "test": 2, "all": 2},
    ]
    assert "ethnicity" not in cohort["categories"]
    sheet = (known / "DATASHEET.md").read_text(encoding="utf-8")
    assert "| Died in hospital: yes | 1 (25.0 %) | 1 (50.0 %) | 0 (0.0 %) | 2 (25.0 %) |" in sheet
    assert "lacks the columns: ethnicity, language, admission type." in sheet
    assert figures["counts"]["notes"] == [
        {"note_type": "Nursing", "train": 4, "validation": 2, "test": 2, "all": 8},
        {"note_type": "Radiology", "train": 1, "validation": 0, "test": 0, "all": 1},
        {"note_type": "all", "train": 5, "validation": 2, "test": 2, "all": 9},
    ]


def test_labels_by_hand(known: Path) -> None:
    tasks = _figures(known, small_cells=1)["tasks"]
    assert tasks["mortality"]["labels"]["classes"] == [
        {"class": "survived", "train": 3, "validation": 1, "test": 2, "all": 6},
        {"class": "died", "train": 1, "validation": 1, "test": 0, "all": 2},
    ]
    labels = tasks["diagnoses"]["labels"]
    assert labels["labels_per_example"]["train"] == {"mean": 1.25, "median": 1.0, "max": 2}
    assert labels["most_frequent"] == [
        {"class": "a", "train": 3, "validation": 1, "test": 2},
        {"class": "b", "train": 2, "validation": 0, "test": 1},
        {"class": "c", "train": 0, "validation": 1, "test": 0},
    ]
    assert {split: value["first"] for split, value in labels["absent"].items()} == {
        "train": ["c"],
        "validation": ["b"],
        "test": ["c"],
    }
    sheet = (known / "DATASHEET.md").read_text(encoding="utf-8")
    assert "| a | 3 (75.0 %) | 1 (50.0 %) | 2 (100.0 %) |" in sheet
    assert r"| grown \| up | 8 | 1 |" in sheet
    assert "| codes keep their zeros | 7 | 1,234 | – |" in sheet


def test_small_cells_hide_counts_and_measures(known: Path) -> None:
    figures = _figures(known)
    assert figures["cohort"]["measures"]["age"]["train"] == {
        "known": "<10",
        **dict.fromkeys(("mean", "sd", "median", "p25", "p75")),
    }
    assert figures["tasks"]["mortality"]["labels"]["classes"][1] == {
        "class": "died",
        "train": "<10",
        "validation": "<10",
        "test": 0,
        "all": "<10",
    }
    assert figures["tasks"]["diagnoses"]["labels"]["most_frequent"][0]["train"] == "<10"
    sheet = (known / "DATASHEET.md").read_text(encoding="utf-8")
    assert "| died | <10 | <10 | 0 | <10 |" in sheet
    assert "| Age, years: mean (SD) | – (–) |" in sheet
    assert "from 1 to 9 are shown as <10" in sheet


def test_a_small_cell_cannot_be_worked_out() -> None:
    # Men 5, women 45, 50 in all: without the women hidden, 50 - 45 tells the men.
    assert hide_small_cells([[5], [45], [50]], 10, total_row=True) == [["<10"], [HIDDEN], [50]]
    assert hide_small_cells([[40, 5, 12, 57]], 10, total_column=True) == [[40, "<10", HIDDEN, 57]]
    assert hide_small_cells([[5, 45]], 10) == [["<10", 45]]
    assert hide_small_cells([[5, 0, 5]], 10, total_column=True) == [["<10", 0, "<10"]]
    assert hide_small_cells([[1, 2, 3]], 1, total_column=True) == [[1, 2, 3]]


@given(st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=6))
def test_no_hidden_cell_is_alone_in_its_line(counts: list[list[int]]) -> None:
    table = [[*row, sum(row)] for row in counts]
    table.append([sum(column) for column in zip(*table, strict=True)])
    shown = hide_small_cells(table, 10, total_column=True, total_row=True)
    for row, true in zip(shown, table, strict=True):
        for cell, count in zip(row, true, strict=True):
            assert cell in (count, HIDDEN) if not 0 < count < 10 else cell == "<10"
    for line in itertools.chain(shown, zip(*shown, strict=True)):
        assert sum(isinstance(cell, str) for cell in line) != 1


def test_no_note_text_and_no_password(known: Path, tiny_notes: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_notes, tmp_path / "tiny")
    for folder in (known, tmp_path / "tiny"):
        write_datasheet(folder, small_cells=1)
        for name in ("DATASHEET.md", "datasheet.json"):
            text = (folder / name).read_text(encoding="utf-8")
            assert not any(word in text for word in (CANARY, *CANARY.split(), "secret")), (folder, name)


def test_synthetic_is_said_first_and_only_then(known: Path) -> None:
    write_datasheet(known)
    sheet = (known / "DATASHEET.md").read_text(encoding="utf-8")
    assert "ynthetic" not in sheet
    assert sheet.startswith("# Data sheet: MIMIC-III\n")
    assert "Beth Israel" in sheet
    write_json(known / "prepare.json", {**read_json(known / "prepare.json"), "synthetic": True})
    write_datasheet(known)
    lines = (known / "DATASHEET.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Data sheet: a synthetic cohort in the form of MIMIC-III"
    assert lines[2].startswith("> **Synthetic data: every patient, note and figure below is invented.**")
    assert "Beth Israel" not in "\n".join(lines)
    assert read_json(known / "datasheet.json")["synthetic"] is True


def test_without_admissions_and_without_notes(known: Path) -> None:
    (known / "admissions.parquet").unlink()
    shutil.rmtree(known / "notes")
    (known / "examples" / "mortality" / "attrition.json").unlink()
    assert _figures(known)["cohort"] is None
    sheet = (known / "DATASHEET.md").read_text(encoding="utf-8")
    assert "are not available: the folder has no `admissions.parquet`." in sheet
    assert "no table of notes" in sheet
    assert "Steps are not recorded for: mortality." in sheet


def test_identifiers_may_be_numbers_in_the_admissions(known: Path) -> None:
    for file in (known / "examples").glob("*/*.parquet"):
        table = pq.read_table(file)
        numbers = pa.array([str(index) for index in range(table.num_rows)])
        pq.write_table(table.set_column(table.column_names.index("encounter_id"), "encounter_id", numbers), file)
    admissions = pa.table({"encounter_id": [0, 1, 2, 3], "sex": ["F", "F", "M", "M"]})
    pq.write_table(admissions, known / "admissions.parquet")
    sexes = _figures(known, small_cells=1)["cohort"]["categories"]["sex"]
    assert {row["value"]: row["train"] for row in sexes} == {"F": 2, "M": 2}


def test_rare_values_count_together(known: Path) -> None:
    table = pq.read_table(known / "admissions.parquet")
    origins = [f"origin {index}" for index in range(table.num_rows)]
    pq.write_table(table.append_column("ethnicity", pa.array(origins)), known / "admissions.parquet")
    assert len(_figures(known, small_cells=1)["cohort"]["categories"]["ethnicity"]) == 8
    for task in ("mortality", "diagnoses"):
        place = known / "examples" / task / "train.parquet"
        examples = [dict(row) for row in pq.read_table(place).to_pylist() * 4]
        for index, row in enumerate(examples):
            row.update(example_id=f"n{index}", encounter_id=f"n{index}")
        pq.write_table(pa.Table.from_pylist(examples), place)
    names = [str(index) for index in range(16)]
    extra = pa.table({"encounter_id": [f"n{name}" for name in names], "ethnicity": names})
    pq.write_table(extra, known / "admissions.parquet")
    listed = _figures(known, small_cells=1)["cohort"]["categories"]["ethnicity"]
    assert len(listed) == 11
    assert listed[-1] == {"value": "6 other values", "train": 6, "validation": 0, "test": 0, "all": 6}


def test_sample_is_seeded_and_shared_by_tasks(
    known: Path, word_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _figures(known, tokenizer=str(word_tokenizer), sample=2)["tasks"]
    again = _figures(known, tokenizer=str(word_tokenizer), sample=2)["tasks"]
    assert first == again
    assert first["mortality"]["lengths"] == first["diagnoses"]["lengths"]
    assert first["mortality"]["lengths"]["train"]["tokens"]["sampled"] == 2
    assert first["mortality"]["lengths"]["train"]["texts"] == 4
    counter = TokenCounter(str(word_tokenizer))
    measure_texts(known / "examples" / "mortality" / "train.parquet", counter, 2, 0)
    monkeypatch.setattr(counter, "_tokenizer", None)  # a shared text is not encoded again
    with pytest.raises(AttributeError):
        counter.count(["unseen"])
    measure_texts(known / "examples" / "diagnoses" / "train.parquet", counter, 2, 0)


def test_embedded_tokens_are_those_a_classifier_reads(known: Path) -> None:
    from clinstack.model.base import find_base, load_tokenizer
    from clinstack.model.reading import Reading
    from clinstack.tokens.texts import encode_texts

    texts = ["chest pain\n\n[**Name**], 5 mg", "", "Ünïcode ½ words"]
    rows = encode_texts(load_tokenizer(find_base("embedded")), Reading(max_tokens=100), texts).pieces
    assert TokenCounter("embedded").count(texts) == [len(row) for row in rows]


@given(st.lists(st.text(alphabet="aé½ \n\t\x00𝄞", max_size=12), max_size=6), st.integers(0, 3))
def test_words_are_counted_across_a_slice(texts: list[str], start: int) -> None:
    counts = count_words(pa.array(texts, pa.string())[start:]).tolist()
    assert counts == [len(text.replace("\x00", " ").split()) for text in texts[start:]]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "prepare.json").unlink(), "prepare.json is missing"),
        (lambda folder: (folder / "splits.parquet").unlink(), "splits.parquet is missing"),
        (lambda folder: (folder / "examples" / "mortality" / "test.parquet").unlink(), "test.parquet is missing"),
        (
            lambda folder: pq.write_table(pa.table({"sex": ["F"]}), folder / "admissions.parquet"),
            "the column encounter_id is missing; it has sex",
        ),
        (
            lambda folder: pq.write_table(pa.table({"encounter_id": ["e", "e"]}), folder / "admissions.parquet"),
            "empty or repeated values",
        ),
    ],
)
def test_wrong_input_is_named_and_nothing_written(known: Path, break_it: Any, message: str) -> None:
    break_it(known)
    with pytest.raises(InputError, match=message):
        write_datasheet(known)
    assert not (known / "DATASHEET.md").exists()
    assert not (known / "datasheet.json").exists()


def test_verb(known: Path, word_tokenizer: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["prepare", "datasheet", str(known), "--tokenizer", str(word_tokenizer)])
    assert result.exit_code == 0, result.output
    figures = json.loads((known / "datasheet.json").read_text(encoding="utf-8"))
    assert figures["tokenizer"]["name"] == "words"
    # A file works as well as its folder.
    assert TokenCounter(str(word_tokenizer / "tokenizer.json")).vocabulary == 2
    with pytest.raises(InputError, match=r"name a folder with tokenizer\.json"):
        write_datasheet(known, tokenizer=str(known))
    with pytest.raises(InputError, match="small_cells is 0"):
        write_datasheet(known, small_cells=0)


def test_every_table_is_one(known: Path, tiny_notes: Path, tmp_path: Path) -> None:
    """Markdown shows a table only behind an empty line, and cells only where each row has as many as the head."""
    odd = known / "examples" / "mortality"
    Task("mortality", "binary", ("a|b", "<b>line\nbreak</b> *x* _y_"), "One | two.").save(odd)
    shutil.copytree(tiny_notes, tmp_path / "tiny")
    shutil.copytree(known, tmp_path / "bare")
    (tmp_path / "bare" / "admissions.parquet").unlink()
    for folder in (known, tmp_path / "tiny", tmp_path / "bare"):
        write_datasheet(folder)
        tables: list[list[str]] = []
        before = ""
        for line in (folder / "DATASHEET.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("|"):
                if not before.startswith("|"):
                    assert before == "", line
                    tables.append([])
                tables[-1].append(line.replace("\\|", ""))
            before = line
        assert len(tables) > 5
        for table in tables:
            assert set(table[1]) <= set("|-:"), table[:2]
            assert len(table) > 2
            assert {row.count("|") for row in table} == {table[0].count("|")}, table
    assert r"| &lt;b>line break&lt;/b> \*x\* \_y\_ |" in (known / "DATASHEET.md").read_text(encoding="utf-8")
