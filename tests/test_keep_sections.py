"""Long texts lose whole sections, the least important first: the choice, the tokens, the column and the recipe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from clinstack.engine.classification import EncodedExamples
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.notes.read import Examples, read_examples
from clinstack.notes.sections.find import SectionSpan, admission_text_with_map, section_map, sections_type
from clinstack.notes.sections.headers import ADMISSION_SECTIONS, HEADERS
from clinstack.notes.sections.priority import PRIORITIES, default_priority, text_kind
from clinstack.recipe import FinetuneRecipe, parse_recipe
from clinstack.stages.evaluate import evaluate
from clinstack.stages.finetune import finetune
from clinstack.tasks import Task
from clinstack.tokens.shorten import importance, keep_sections
from clinstack.tokens.texts import EncodedTexts, encode_texts
from tiny_notes import write_tiny_notes

ORDER = ("PRESENT ILLNESS", "MEDICAL HISTORY", None, "SOCIAL HISTORY")
NAMES = [*ORDER, "ALLERGIES"]
NOTE = "HPI:\nchest pain\n\nPMH:\nthe patient was admitted\n\nSocial History:\nlives alone\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    return loaded


def spans_of(names: list[str | None]) -> list[SectionSpan]:
    return [SectionSpan(name, place, place + 1) for place, name in enumerate(names)]


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (100, [0, 1, 2, 3]),  # all fit
        (99, [0, 1, 3]),  # the social history goes first, though it stands in the middle
        (60, [1, 3]),  # then what has no name, and nothing of a section
        (30, [3]),  # the present illness is the last to stay
        (29, [3]),  # and stays where it has to be cut
    ],
)
def test_the_least_important_goes_first_and_whole(budget: int, kept: list[int]) -> None:
    spans = spans_of([None, "MEDICAL HISTORY", "SOCIAL HISTORY", "PRESENT ILLNESS"])
    assert keep_sections(spans, [35, 30, 5, 30], budget, ORDER) == kept


def test_what_is_dropped_comes_back_where_there_is_room() -> None:
    spans = spans_of(["PRESENT ILLNESS", "MEDICAL HISTORY", "SOCIAL HISTORY"])
    assert keep_sections(spans, [30, 50, 10], 45, ORDER) == [0, 2]


def test_of_equal_names_the_first_stays() -> None:
    spans = spans_of(["MEDICAL HISTORY", "SOCIAL HISTORY", "MEDICAL HISTORY"])
    assert importance(spans, ORDER) == [0, 2, 1]
    assert keep_sections(spans, [10, 10, 10], 10, ORDER) == [0]
    assert keep_sections([], [], 10, ORDER) == []


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 50)), max_size=12), st.integers(0, 200))
def test_a_section_never_gives_way_to_a_lesser_one(parts: list[tuple[str | None, int]], budget: int) -> None:
    spans, lengths = spans_of([name for name, _ in parts]), [length for _, length in parts]
    kept = keep_sections(spans, lengths, budget, ORDER)
    order = importance(spans, ORDER)
    assert kept == sorted(set(kept))
    if order:
        assert order[0] in kept
    if sum(lengths) <= budget:
        assert kept == list(range(len(spans)))
    if sum(lengths[place] for place in kept) > budget:
        assert kept == [order[0]]
        return
    for rank, place in enumerate(order):
        if place not in kept:
            above = sum(lengths[other] for other in order[:rank] if other in kept)
            assert above + lengths[place] > budget


def test_priorities_name_sections_once() -> None:
    for names in PRIORITIES.values():
        assert len(names) == len(set(names))
        assert set(names) - {None} <= set(HEADERS)
        assert None in names
    assert set(PRIORITIES["admission"]) - {None} == set(ADMISSION_SECTIONS)
    assert set(PRIORITIES["summary"]) - {None} == set(HEADERS)


def test_the_kind_of_a_text_follows_from_its_sections() -> None:
    assert text_kind(section_map("HPI: a\nPMH: b")) == "admission"
    assert text_kind(section_map("HPI: a\nPMH: b\n\nHospital Course: c")) == "summary"
    assert text_kind(section_map("Indication: a\nTechnique: b\nFindings: c\nImpression: d")) == "report"
    assert default_priority(section_map("Findings: c\nTechnique: b"))[0] == "IMPRESSION"


# ---------------------------------------------------------------------- tokens


def read_sections(
    tokenizer: object, texts: list[str], max_tokens: int, suffix: str = "", spans: list[list[SectionSpan]] | None = None
) -> EncodedTexts:
    reading = Reading(max_tokens=max_tokens, keep="sections", suffix=suffix)
    return encode_texts(cast(PreTrainedTokenizerBase, tokenizer), reading, texts, spans)


def test_whole_sections_are_dropped_under_max_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = [NOTE[span.start : span.end] for span in section_map(NOTE)]
    length = [len(ids) for ids in tokenizer(pieces, add_special_tokens=False)["input_ids"]]
    whole = len(tokenizer(NOTE)["input_ids"])
    suffix = tokenizer(" ward", add_special_tokens=False)["input_ids"]
    limit = whole - 1 + len(suffix)
    kept = read_sections(tokenizer, [NOTE, "hi"], limit, " ward")
    text = "".join(pieces[:2]).strip()
    assert kept.pieces[0].tolist() == [*tokenizer(text)["input_ids"], *suffix]
    assert kept.pieces[1].tolist() == [*tokenizer("hi")["input_ids"], *suffix]
    assert kept.owners.tolist() == [0, 1]
    assert kept.cut["cut_by_section"] == {"SOCIAL HISTORY": length[2]}
    assert (kept.cut["cut"], kept.cut["texts_cut"], kept.cut["notes_cut_inside_a_section"]) == (length[2], 1, 0)


def test_only_the_most_important_section_is_ever_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = read_sections(tokenizer, [NOTE], 8)
    assert kept.pieces[0].tolist() == tokenizer("HPI:\nchest pain")["input_ids"][:8]
    assert kept.cut["notes_cut_inside_a_section"] == 1
    assert set(kept.cut["cut_by_section"]) == {"PRESENT ILLNESS", "MEDICAL HISTORY", "SOCIAL HISTORY"}
    assert kept.cut["cut"] == sum(kept.cut["cut_by_section"].values())
    with pytest.raises(InputError, match="leaves no room"):
        read_sections(tokenizer, [NOTE], 8, "DIAGNOSIS:")


@pytest.mark.parametrize("limit", [2, 5, 9, 17, 30, 60, 200])
def test_no_row_is_longer_than_asked(tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    texts = [NOTE, "", "x" * 90, "  \n\n PMH: a", NOTE * 3]
    kept = read_sections(tokenizer, texts, limit)
    assert all(1 <= len(row) <= limit for row in kept.pieces)
    if limit == 200:
        assert kept.cut["cut"] == 0
        assert [row.tolist() for row in kept.pieces] == tokenizer(texts)["input_ids"]


class Joining:
    """A tokenizer by letters to which "ab" is three tokens: sections are longer together than apart."""

    bos_token_id = None
    pad_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(128)}

    def __call__(self, texts: str | list[str], **_: object) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self([texts])["input_ids"][0]}
        return {"input_ids": [[ord(letter) for letter in text.replace("ab", "a-b")] for text in texts]}


def test_sections_that_are_longer_together_than_apart_fit_too() -> None:
    spans = [SectionSpan("PRESENT ILLNESS", 0, 3), SectionSpan("MEDICAL HISTORY", 3, 6), SectionSpan("ALLERGIES", 6, 9)]
    kept = read_sections(Joining(), ["xxabxxzzz"], 6, spans=[spans])
    assert "".join(map(chr, kept.pieces[0])) == "xxa"
    assert kept.cut["cut_by_section"] == {"MEDICAL HISTORY": 3, "ALLERGIES": 3}
    assert kept.cut["notes_cut_inside_a_section"] == 0


# ---------------------------------------------------------------------- the column and the stages


def with_column(folder: Path, column: pa.Array) -> None:
    table = pq.read_table(folder / "test.parquet")
    pq.write_table(table.append_column("sections", column), folder / "test.parquet")


def mapped(folder: Path, text: str, maps: list[list[SectionSpan] | None]) -> Path:
    """Write every text of the test split as ``text``, with these maps in turn."""
    table = pq.read_table(folder / "test.parquet").drop_columns(["text"])
    rows = table.num_rows
    table = table.append_column("text", pa.array([text] * rows))
    values = [maps[row % len(maps)] for row in range(rows)]
    column = pa.array([None if m is None else [s._asdict() for s in m] for m in values], type=sections_type())
    pq.write_table(table.append_column("sections", column), folder / "test.parquet")
    return folder


def test_the_column_is_read_where_it_stands(tmp_path: Path) -> None:
    folder = write_tiny_notes(tmp_path / "data") / "examples" / "mortality"
    assert read_examples(folder)[1]["test"].sections is None
    found = admission_text_with_map(NOTE)
    assert found is not None
    text, spans = found
    mapped(folder, text, [spans, None])
    examples = read_examples(folder)[1]["test"]
    assert examples.sections is not None
    assert examples.sections[:2] == [spans, None]


@pytest.mark.parametrize(
    "spans",
    [
        [SectionSpan("PRESENT ILLNESS", 0, 5)],
        [SectionSpan("PRESENT ILLNESS", 1, len(NOTE))],
        [SectionSpan("PRESENT ILLNESS", 0, 90), SectionSpan(None, 90, len(NOTE))],
        [SectionSpan("A", 0, 9), SectionSpan("B", 8, len(NOTE))],
        [],
    ],
)
def test_a_map_that_does_not_fit_its_text_is_refused(tmp_path: Path, spans: list[SectionSpan]) -> None:
    folder = write_tiny_notes(tmp_path / "data") / "examples" / "mortality"
    mapped(folder, NOTE, [section_map(NOTE), spans])
    with pytest.raises(InputError, match=r"test\.parquet, row 2: its sections do not cover the text"):
        read_examples(folder)


def test_a_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_notes(tmp_path / "data") / "examples" / "mortality"
    rows = pq.read_table(folder / "test.parquet").num_rows
    with_column(folder, pa.array([[7]] * rows))
    with pytest.raises(InputError, match=r"row 1: sections is not a list of name, start and end"):
        read_examples(folder)


def test_the_map_in_the_notes_is_used_and_found_where_it_is_missing(mortality: Task, mortality_stack: Stack) -> None:
    text = "Social History: " + "lives alone " * 9 + "\n\nHPI: chest pain"
    other = [SectionSpan("PRESENT ILLNESS", 0, 20), SectionSpan("SOCIAL HISTORY", 20, len(text))]
    examples = Examples(["a", "b"], ["p", "p"], [text, text], [0, 1], [None, other])
    encoded = EncodedExamples(mortality_stack, mortality, examples)
    read = [mortality_stack.tokenizer.decode(row[1:]) for row in encoded.encoded.pieces]
    assert read == ["HPI: chest pain", text[:20].strip()]
    counts = encoded.token_counts()
    assert counts["cut"] == sum(counts["cut_by_section"].values()) > 0
    assert counts["notes_cut_inside_a_section"] == 0


@pytest.fixture
def mortality_stack(tiny_base: Path, mortality: Task) -> Stack:
    stack = Stack.build(str(tiny_base), [], mortality, seed=0)
    stack.reading = Reading(max_tokens=24, keep="sections")
    return stack


def test_a_recipe_keeps_sections_from_training_to_evaluation(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_notes, data)
    folder = data / "examples" / "mortality"
    for split in ("train", "validation", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        texts = [f"SH: lives alone {'and well ' * 9}\nHPI: {text}" for text in table["text"].to_pylist()]
        place = table.column_names.index("text")
        pq.write_table(table.set_column(place, "text", pa.array(texts)), folder / f"{split}.parquet")
    values = {
        "run": str(tmp_path / "run"),
        "base": str(tiny_base),
        "examples": str(folder),
        "max_tokens": 48,
        "keep": "sections",
        "training": {"epochs": 1, "batch_size": 8},
        "evaluation": {"resamples": 100},
    }
    recipe = parse_recipe(values, "test", "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    run = finetune(recipe)
    metrics = read_json(run.folder / "metrics.json")
    assert metrics["tokens"]["test"]["cut_by_section"]["SOCIAL HISTORY"] > 0
    assert read_json(run.folder / "stack" / "stack.json")["keep"] == "sections"
    assert Stack.load(run.folder).reading.keep == "sections"
    again = parse_recipe(
        {
            "run": str(tmp_path / "again"),
            "stack": str(run.folder),
            "examples": str(folder),
            "evaluation": {"resamples": 100},
        },
        "test",
        "evaluate",
    )
    scores = pq.read_table(evaluate(again).folder / "predictions.parquet")["score"].to_pylist()
    written = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    expected = [row["score"] for row in written if row["split"] == "test"]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="keep"):
        parse_recipe(values | {"keep": "middle"}, "test", "finetune")
