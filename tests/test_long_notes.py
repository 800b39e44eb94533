"""What of a long note is read: each strategy against the tokenizer's own truncation, and the report of what was cut."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.base import find_base
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.model.tokenizer import load_tokenizer
from clinstack.notes.read import read_examples
from clinstack.notes.sections.find import section_map
from clinstack.recipe import EvaluateRecipe, FinetuneRecipe, parse_recipe
from clinstack.stages.evaluate import evaluate
from clinstack.stages.finetune import finetune
from clinstack.tasks import Task
from clinstack.tokens.encode import TextEncoder, own_ends
from clinstack.tokens.shorten import kept_ranges
from clinstack.tokens.texts import EncodedTexts, cut_notes, encode_texts

WORDS = (
    "the patient",
    "was admitted",
    "with chest pain and",
    "shortness of breath,",
    "caf\u00e9",
    "\u20ac5",
    "500 mg;",
)
NOTE = "HPI:\nchest pain since noon\n\nPMH:\nthe patient was admitted before\n\nSocial History:\nlives alone\n"


def texts_of(seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    lengths = [0, 1, 2, 5, *(drawn.randint(1, 80) for _ in range(20))]
    return [" ".join(drawn.choices(WORDS, k=length)) for length in lengths]


def decoder(tiny_base: Path, ends: str) -> PreTrainedTokenizerBase:
    """The tiny base's tokenizer with what another family puts around a text."""
    loaded: Any = AutoTokenizer.from_pretrained(tiny_base)
    if ends == "qwen":
        loaded.backend_tokenizer.post_processor = processors.Sequence([])
        loaded.bos_token = None
    if ends == "both":
        loaded.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return loaded  # type: ignore[no-any-return]


@pytest.fixture(params=["llama", "qwen", "both", "embedded", "bert"])
def tokenizer(request: pytest.FixtureRequest, tiny_base: Path) -> PreTrainedTokenizerBase:
    """Tokenizers that put a begin token, nothing, or both ends around a text."""
    if request.param == "embedded":
        return load_tokenizer(find_base("embedded"))
    if request.param == "bert":
        folder = request.getfixturevalue("shared") / "assets" / "tokenizers" / "bert-base-uncased"
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        return loaded
    return decoder(tiny_base, request.param)


def rows(encoded: EncodedTexts) -> list[list[int]]:
    assert all(piece.dtype == np.int64 for piece in encoded.pieces)
    return [piece.tolist() for piece in encoded.pieces]


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def own(tokenizer: Any, texts: list[str], max_tokens: int, side: str = "right", **options: Any) -> Any:
    """The tokenizer's own truncation, which is what encoding has to be equal to."""
    kept, tokenizer.truncation_side = tokenizer.truncation_side, side
    try:
        return tokenizer(texts, truncation=True, max_length=max_tokens, **options)
    finally:
        tokenizer.truncation_side = kept


def filled(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> list[list[int]]:
    """An empty text of a tokenizer without ends is one token all the same."""
    filler = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    return [row or [filler] for row in ids]


# ---------------------------------------------------------------------- strategies


@pytest.mark.parametrize("max_tokens", [8, 24, 1000])
def test_beginning_and_end_are_the_tokenizers_own_truncation(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    texts = texts_of()
    for keep, side in (("beginning", "right"), ("end", "left")):
        encoded = encode_texts(tokenizer, Reading(max_tokens=max_tokens, keep=keep), texts)
        assert rows(encoded) == filled(tokenizer, own(tokenizer, texts, max_tokens, side)["input_ids"])
        assert encoded.owners.tolist() == list(range(len(texts)))
        assert encoded.cut["cut"] == sum(
            len(whole) - len(cut)
            for whole, cut in zip(
                tokenizer(texts)["input_ids"], own(tokenizer, texts, max_tokens, side)["input_ids"], strict=True
            )
        )


@pytest.mark.parametrize(("max_tokens", "overlap"), [(8, 0), (16, 5), (24, 21), (1000, 3)])
def test_chunks_are_the_tokenizers_own_overflowing_pieces(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int, overlap: int
) -> None:
    texts = texts_of()
    reading = Reading(max_tokens=max_tokens, keep="chunks", chunk_overlap=overlap, max_chunks=10**6)
    expected = own(tokenizer, texts, max_tokens, stride=overlap, return_overflowing_tokens=True)
    encoded = encode_texts(tokenizer, reading, texts)
    assert rows(encoded) == filled(tokenizer, expected["input_ids"])
    assert encoded.owners.tolist() == list(expected["overflow_to_sample_mapping"])
    assert (encoded.cut["cut"], encoded.cut["texts_cut"]) == (0, 0)
    each = Counter(Counter(encoded.owners.tolist()).values())
    assert encoded.cut["chunks"] == {str(number): each[number] for number in sorted(each)}

    few = encode_texts(tokenizer, Reading(**(reading.to_dict() | {"max_chunks": 2})), texts)
    number = Counter[int]()
    kept = []
    for row, owner in zip(rows(encoded), encoded.owners.tolist(), strict=True):
        number[owner] += 1
        if number[owner] <= 2:
            kept.append(row)
    assert rows(few) == kept
    if max_tokens == 8:
        assert few.cut["cut"] > 0
        assert set(few.cut["chunks"]) == {"1", "2"}


def test_both_ends_have_the_published_shares() -> None:
    assert kept_ranges(600, 510, Reading(keep="both_ends")) == (
        [[range(128), range(600 - 382, 600)]],
        range(128, 600 - 382),
    )


def test_both_ends_stand_in_one_row_between_the_tokenizers_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    before, after = own_ends(tokenizer)
    texts = texts_of()
    max_tokens = 20
    room = max_tokens - len(before) - len(after)
    encoded = encode_texts(tokenizer, Reading(max_tokens=max_tokens, keep="both_ends", beginning_share=0.4), texts)
    head = round(0.4 * room)
    expected = []
    for text in texts:
        ids = plain(tokenizer, text)
        expected.append([*before, *(ids if len(ids) <= room else [*ids[:head], *ids[head - room :]]), *after])
    assert rows(encoded) == filled(tokenizer, expected)
    assert max(map(len, encoded.pieces)) == max_tokens


@pytest.mark.parametrize("keep", ["beginning", "end", "both_ends", "sections", "chunks"])
def test_the_suffix_ends_the_text_of_every_piece(tokenizer: PreTrainedTokenizerBase, keep: str) -> None:
    before, after = own_ends(tokenizer)
    suffix = plain(tokenizer, " Diagnosis:")
    texts = [*texts_of(), NOTE]
    room = 9
    max_tokens = room + len(before) + len(suffix) + len(after)
    encoded = encode_texts(tokenizer, Reading(max_tokens=max_tokens, keep=keep, suffix=" Diagnosis:"), texts)
    ends = [*suffix, *after]
    for piece in rows(encoded):
        assert piece[: len(before)] == before
        assert piece[len(piece) - len(ends) :] == ends
        assert len(piece) <= max_tokens
    without = encode_texts(
        tokenizer, Reading(max_tokens=max_tokens - len(suffix), keep=keep), [text or "x" for text in texts]
    )
    for piece, same, owner in zip(rows(encoded), rows(without), encoded.owners.tolist(), strict=True):
        if texts[owner]:
            assert piece == [*same[: len(same) - len(after)], *ends]


@pytest.mark.parametrize("keep", ["beginning", "end", "both_ends", "sections", "chunks"])
def test_texts_that_fit_are_what_the_tokenizer_makes_of_them(tokenizer: PreTrainedTokenizerBase, keep: str) -> None:
    texts = [*texts_of(), NOTE]
    encoded = encode_texts(tokenizer, Reading(max_tokens=1000, keep=keep), texts)
    assert rows(encoded) == filled(tokenizer, tokenizer(texts)["input_ids"])
    assert (encoded.cut["cut"], encoded.cut["share_cut"], encoded.cut["texts_cut"]) == (0, 0, 0)
    assert encode_texts(tokenizer, Reading(keep=keep), []).pieces == []


@given(
    count=st.integers(0, 300),
    room=st.integers(1, 40),
    keep=st.sampled_from(["beginning", "end", "both_ends", "chunks"]),
    share=st.floats(0.01, 0.99),
    overlap=st.integers(0, 39),
    most=st.integers(1, 9),
)
def test_pieces_fit_and_nothing_is_lost_without_being_counted(
    count: int, room: int, keep: str, share: float, overlap: int, most: int
) -> None:
    reading = Reading(keep=keep, beginning_share=share, chunk_overlap=min(overlap, room - 1), max_chunks=most)
    pieces, gap = kept_ranges(count, room, reading)
    assert 1 <= len(pieces) <= (most if keep == "chunks" else 1)
    assert all(sum(map(len, piece)) <= room for piece in pieces)
    read = {token for piece in pieces for part in piece for token in part}
    assert read.isdisjoint(gap)
    assert read | set(gap) == set(range(count))
    if count > room:
        assert all(len(piece[0]) == room for piece in pieces[:-1])
        assert len(read) >= room
    if keep == "both_ends" and count > room > 1:
        assert {0, count - 1} <= read


# ---------------------------------------------------------------------- what is refused


def test_what_leaves_no_room_is_refused(tiny_base: Path) -> None:
    tokenizer = decoder(tiny_base, "both")
    with pytest.raises(
        InputError, match=r"suffix: it has \d+ tokens and leaves no room for notes in max_tokens 8; set"
    ):
        encode_texts(tokenizer, Reading(max_tokens=8, suffix="DIAGNOSIS:"), ["a"])
    with pytest.raises(InputError, match=r"max_tokens: .* leaves no room .* set max_tokens to 3 or more"):
        encode_texts(tokenizer, Reading(max_tokens=2), ["a"])
    assert rows(encode_texts(tokenizer, Reading(max_tokens=3), ["chest pain"]))[0][::2] == [1, 2]
    with pytest.raises(InputError, match=r"chunk_overlap: 6 tokens, but a chunk has room for 6 .* to 5 or less"):
        encode_texts(tokenizer, Reading(max_tokens=8, keep="chunks", chunk_overlap=6), ["a"])
    with pytest.raises(ValueError, match="'middle'"):
        encode_texts(tokenizer, Reading(max_tokens=8, keep="middle"), ["chest pain " * 9])


class Changing:
    """A tokenizer whose begin token swallows the first token of a text."""

    bos_token_id = 1
    pad_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {"a": 1}

    def __call__(self, texts: Any, add_special_tokens: bool = True, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [1, 8] if add_special_tokens else [7, 8]}


def test_a_tokenizer_that_changes_the_text_between_its_ends_is_refused() -> None:
    with pytest.raises(InputError, match="base: its tokenizer changes a text between its special tokens"):
        encode_texts(Changing(), Reading(), ["a"])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the report


def test_the_report_counts_tokens_texts_and_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = texts_of()
    report = encode_texts(tokenizer, Reading(max_tokens=16), texts).cut
    lengths = [len(plain(tokenizer, text)) for text in texts]
    room = 16 - sum(map(len, own_ends(tokenizer)))
    assert report["texts"] == len(texts)
    assert report["texts_cut"] == sum(length > room for length in lengths) > 0
    assert report["cut"] == sum(max(0, length - room) for length in lengths)
    assert report["share_cut"] == pytest.approx(report["cut"] / sum(lengths))
    assert report["lengths"]["p100"] == max(lengths)
    assert report["lengths"]["p50"] == np.median(lengths)
    assert list(report["lengths"]) == ["p50", "p90", "p95", "p99", "p100"]
    assert "cut_by_section" not in report
    assert "chunks" not in report
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("keep", ["beginning", "end", "both_ends", "chunks"])
def test_what_was_cut_is_told_by_section_where_they_are_known(tokenizer: PreTrainedTokenizerBase, keep: str) -> None:
    spans = section_map(NOTE)
    reading = Reading(max_tokens=14, keep=keep, max_chunks=1)
    encoded = encode_texts(tokenizer, reading, [NOTE, NOTE, "x"], [spans, None, None])
    ids = plain(tokenizer, NOTE)
    starts = [
        begin for begin, _ in tokenizer(NOTE, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    _, gap = kept_ranges(len(ids), 14 - sum(map(len, own_ends(tokenizer))), reading)
    expected = Counter(next(span.name for span in spans if span.start <= starts[token] < span.end) for token in gap)
    assert encoded.cut["cut_by_section"] == dict(expected)
    assert encoded.cut["cut"] == 2 * sum(expected.values()), "the second note is counted, without its sections"
    assert set(expected) <= {"PRESENT ILLNESS", "MEDICAL HISTORY", "SOCIAL HISTORY"}


def test_a_person_is_told_what_is_cut(tiny_base: Path) -> None:
    reading = Reading(max_tokens=14, keep="end")
    tokenizer = decoder(tiny_base, "llama")
    cut = encode_texts(tokenizer, reading, [NOTE, "x"]).cut
    length = len(plain(tokenizer, NOTE))
    assert cut_notes(reading, cut, "train") == [
        "train: 1 of 2 notes are longer than what is read (max_tokens 14, keep end); "
        f"{round(100 * (length - 13) / (length + 1))}% of all tokens are cut."
    ]
    assert cut_notes(reading, encode_texts(tokenizer, reading, ["x"]).cut, "train") == []


def test_large_splits_go_to_the_tokenizer_in_batches(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = decoder(tiny_base, "llama")
    texts = [*texts_of(), NOTE]
    whole = {keep: encode_texts(tokenizer, Reading(max_tokens=20, keep=keep), texts) for keep in ("chunks", "sections")}
    sizes = []
    encode = TextEncoder.encode

    def watched(self: TextEncoder, batch: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        return encode(self, batch, **options)

    monkeypatch.setattr("clinstack.tokens.texts._BATCH", 4)
    monkeypatch.setattr(TextEncoder, "encode", watched)
    parts = {keep: encode_texts(tokenizer, Reading(max_tokens=20, keep=keep), texts) for keep in whole}
    for keep, encoded in whole.items():
        assert rows(parts[keep]) == rows(encoded)
        assert parts[keep].owners.tolist() == encoded.owners.tolist()
        assert parts[keep].cut == encoded.cut
    assert sizes[:6] == [4] * 6


# ---------------------------------------------------------------------- the stack remembers it


def test_a_reading_is_the_recipes_and_goes_through_a_record() -> None:
    values = {
        "run": "run",
        "examples": "examples",
        "max_tokens": 64,
        "keep": "chunks",
        "suffix": " Diagnosis:",
        "beginning_share": 0.5,
        "max_chunks": 3,
        "chunk_overlap": 7,
        "chunk_pooling": "max",
    }
    recipe = parse_recipe(values, "test", "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    reading = Reading.of(recipe)
    assert reading == Reading(64, "chunks", " Diagnosis:", 0.5, 3, 7, "max")
    assert Reading.from_dict({"other": 1, **json.loads(json.dumps(reading.to_dict()))}) == reading
    assert Reading.of(FinetuneRecipe(run="run", examples="examples")) == Reading()


def test_a_saved_stack_reads_as_before_also_one_of_an_older_version(
    tiny_base: Path, mortality: Task, tmp_path: Path
) -> None:
    stack = Stack.build(str(tiny_base), [], mortality)
    stack.reading = Reading(24, "chunks", " ward", 0.5, 3, 7, "max")
    stack.save(tmp_path / "stack")
    assert Stack.load(tmp_path / "stack").reading == stack.reading
    file = tmp_path / "stack" / "stack.json"
    record = json.loads(file.read_text())
    for key in ("beginning_share", "max_chunks", "chunk_overlap", "chunk_pooling"):
        del record[key]
    file.write_text(json.dumps(record | {"keep": "end"}))
    assert Stack.load(tmp_path / "stack").reading == Reading(24, "end", " ward")


def test_a_language_model_keeps_its_context(tiny_base: Path, tmp_path: Path) -> None:
    stack = Stack.build(str(tiny_base))
    stack.max_tokens = 40
    stack.save(tmp_path / "stack")
    assert Stack.load(tmp_path / "stack").max_tokens == 40


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": "both_ends", "adapters": [{"name": "task", "rank": 2, "alpha": 4}]},
        {"keep": "chunks", "chunk_overlap": 3, "adapters": [{"name": "task", "rank": 2, "alpha": 4}]},
        {"keep": "chunks", "max_chunks": 2, "chunk_pooling": "max", "suffix": " ward"},
    ],
)
def test_the_stages_read_a_note_as_its_pieces_one_by_one(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = tiny_notes / "examples" / "mortality"
    values = {
        "run": str(tmp_path / "run"),
        "base": str(tiny_base),
        "examples": str(folder),
        "max_tokens": 16,
        "training": {"max_steps": 2, "batch_size": 8},
        "evaluation": {"resamples": 100},
    }
    recipe = parse_recipe(values | changes, "test", "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    run = finetune(recipe)
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
    assert isinstance(again, EvaluateRecipe)
    measured = pq.read_table(evaluate(again).folder / "predictions.parquet")["score"].to_pylist()

    _, examples = read_examples(folder)
    stack = Stack.load(run.folder)
    stack.eval()
    encoded = encode_texts(stack.tokenizer, Reading.of(recipe), examples["test"].texts)
    expected = []
    with torch.inference_mode():
        for place in range(len(examples["test"].texts)):
            pieces = [torch.tensor(encoded.pieces[piece])[None] for piece in np.flatnonzero(encoded.owners == place)]
            features = torch.cat([stack.pooled(piece, torch.ones_like(piece)) for piece in pieces])
            pooled = features.amax(0) if recipe.chunk_pooling == "max" else features.mean(0)
            expected.append(stack.head(pooled).tolist())
    trained = [
        row["score"] for row in pq.read_table(run.folder / "predictions.parquet").to_pylist() if row["split"] == "test"
    ]
    np.testing.assert_allclose(trained, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-5)
    report = read_json(run.folder / "metrics.json")["tokens"]["test"]
    assert report == encoded.cut
    if recipe.keep == "chunks":
        assert len(report["chunks"]) > 1
