"""From text to rows: nothing lost, nothing twice, nobody sees a neighbour, and batches are functions of their seed."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from clinstack.tokens.batches import pad, shuffled_batches, sorted_batches
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import TextEncoder, encode_documents, own_ends
from clinstack.tokens.pack import IGNORED, PackedBatch, Segments, collate_rows, pack_segments, split_documents

LENGTHS = st.lists(st.integers(0, 90), min_size=1, max_size=40)
CONTEXTS = st.integers(2, 40)
FILLER = 0


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    return loaded


def documents_of(lengths: list[int]) -> Documents:
    """Documents in which no token occurs twice, so that each one can be found again."""
    starts = np.cumsum([1, *lengths[:-1]])
    return Documents.of([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])


def packed(lengths: list[int], context: int) -> tuple[Segments, list[list[int]], PackedBatch | None]:
    """Segments, rows as lists of them, and all rows in one batch."""
    segments = split_documents(lengths, context)
    rows = pack_segments(segments, context)
    batch = collate_rows(documents_of(lengths), segments, rows, range(len(rows)), FILLER) if len(rows) else None
    return segments, [row.tolist() for row in rows], batch


# ---------------------------------------------------------------------- documents


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
    most=st.integers(0, 12),
    data=st.data(),
)
def test_parts_of_documents_are_those_of_the_whole_between_its_ends(
    lengths: list[int], before: int, after: int, most: int, data: st.DataObject
) -> None:
    begin, end = [-1, -2][:before], [-3, -4][:after]
    plain = [tokens.tolist() for tokens in documents_of(lengths)]
    documents = documents_of(lengths).between(begin, end)
    assert [tokens.tolist() for tokens in documents] == [[*begin, *tokens, *end] for tokens in plain]
    assert documents.lengths.tolist() == [len(tokens) for tokens in documents]
    document = data.draw(st.integers(0, len(lengths) - 1))
    start = data.draw(st.integers(0, len(documents[document])))
    stop = data.draw(st.integers(start, len(documents[document])))
    assert documents.part(document, start, stop).tolist() == documents[document][start:stop].tolist()
    short = documents.cut(most)
    room = max(0, most - before - after)
    assert [tokens.tolist() for tokens in short] == [[*begin, *tokens[:room], *end] for tokens in plain]
    places = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=4))
    assert [tokens.tolist() for tokens in short.chosen(places)] == [short[place].tolist() for place in places]


# ---------------------------------------------------------------------- packing


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_every_token_but_the_first_is_predicted_exactly_once(lengths: list[int], context: int) -> None:
    documents = documents_of(lengths)
    _, _, batch = packed(lengths, context)
    if batch is None:
        assert max(lengths) <= 1
        return
    real = batch.labels != IGNORED
    assert sorted(batch.labels[real].tolist()) == [token for document in documents for token in document[1:].tolist()]
    # The prediction is of the token that follows its input in the same document.
    assert torch.equal(batch.labels[real], batch.input_ids[real] + 1)
    owners = [index for index, length in enumerate(lengths) for _ in range(length - 1)]
    by_token = dict(zip(batch.labels[real].tolist(), batch.documents[real].tolist(), strict=True))
    assert [by_token[token] for token in sorted(by_token)] == owners
    assert batch.predictions == len(owners)
    assert set(batch.documents[~real].tolist()) <= {-1}
    assert set(batch.input_ids[~real].tolist()) <= {FILLER}


def best_fit_decreasing(lengths: list[int], context: int) -> list[int]:
    """What each row holds, by the textbook: one segment after another into the row where it leaves least."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(rows)) if rows[row] + length <= context]
        if fitting:
            rows[max(fitting, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return sorted(rows)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_rows_are_those_of_best_fit_decreasing(lengths: list[int], context: int) -> None:
    segments, rows, _ = packed(lengths, context)
    assert sorted(segment for row in rows for segment in row) == list(range(len(segments)))
    each = segments.lengths.tolist()
    fills = [sum(each[segment] for segment in row) for row in rows]
    assert all(0 < fill <= context for fill in fills)
    assert sorted(fills) == best_fit_decreasing(each, context)
    # A row is begun only when no other has room: at most one of them is half empty.
    assert all(first + second > context for first, second in itertools.pairwise(sorted(fills)))
    assert pack_segments(segments, context).fills(segments).tolist() == fills


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_positions_begin_anew_with_each_document(lengths: list[int], context: int) -> None:
    segments, rows, batch = packed(lengths, context)
    if batch is None:
        return
    each = segments.lengths.tolist()
    in_reading_order = []
    for index, row in enumerate(rows):
        expected = [position for segment in row for position in range(each[segment])]
        rest = batch.position_ids.shape[1] - len(expected)
        # What fills the row is a document of its own, so that nobody sees it either.
        assert batch.position_ids[index].tolist() == [*expected, *range(rest)]
        in_reading_order += [*(each[segment] for segment in row), *([rest] if rest else [])]
    assert batch.position_ids.shape == batch.input_ids.shape == batch.labels.shape == batch.documents.shape
    assert batch.input_ids.shape[1] == max(sum(each[segment] for segment in row) for row in rows)
    assert list(batch.lengths) == in_reading_order
    assert sum(batch.lengths) == batch.input_ids.numel()
    assert batch.attention_mask is None


def test_the_picture_in_the_module_is_what_happens() -> None:
    documents = Documents.of([np.arange(10, 14), np.arange(20, 23), np.arange(30, 40)])
    segments = split_documents([4, 3, 10], 6)
    rows = pack_segments(segments, 6)
    batch = collate_rows(documents, segments, rows, range(3), FILLER)
    assert batch.input_ids.tolist() == [
        [30, 31, 32, 33, 34, 35],
        [10, 11, 12, 36, 37, 38],
        [20, 21, 0, 0, 0, 0],
    ]
    assert batch.labels.tolist() == [
        [31, 32, 33, 34, 35, 36],
        [11, 12, 13, 37, 38, 39],
        [21, 22, IGNORED, IGNORED, IGNORED, IGNORED],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]
    assert batch.documents.tolist() == [[2, 2, 2, 2, 2, 2], [0, 0, 0, 2, 2, 2], [1, 1, -1, -1, -1, -1]]
    assert batch.lengths == (6, 3, 3, 2, 4)


def test_hundreds_of_thousands_of_notes_are_packed_at_once_and_leave_little_room() -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 0.8, 300_000).astype(int) + 2
    began = time.process_time()
    segments = split_documents(lengths, 512)
    rows = pack_segments(segments, 512)
    assert time.process_time() - began < 2  # a loop over segments would take half a minute for the whole of MIMIC-IV
    assert int((lengths - 1).sum()) / (len(rows) * 512) > 0.98
    assert sorted(rows.segments.tolist()) == list(range(len(segments)))


def test_a_document_of_one_token_predicts_nothing() -> None:
    segments = split_documents([1, 0, 2], 8)
    assert (segments.document.tolist(), segments.start.tolist(), segments.stop.tolist()) == ([2], [0], [1])


# ---------------------------------------------------------------------- encoding


def test_documents_are_whole_between_begin_and_end(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the patient was admitted", "", "chest pain " * 400]
    encoded = encode_documents(tokenizer, texts)
    assert [int(tokens[0]) for tokens in encoded] == [tokenizer.bos_token_id] * 3
    assert [int(tokens[-1]) for tokens in encoded] == [tokenizer.eos_token_id] * 3
    assert len(encoded[1]) == 2
    assert [tokenizer.decode(tokens[1:-1]) for tokens in encoded] == texts


def test_documents_have_the_tokens_that_a_call_of_the_tokenizer_gives(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the patient was admitted </s> with", "", " x\u00e9\n\n"]
    tokenizer(["a", "the patient was"], truncation=True, max_length=2, padding="max_length")  # leaves its settings
    encoder = TextEncoder(tokenizer)
    ids = encoder.ids(encoder.encode(texts))
    assert [item.tolist() for item in ids] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert {item.dtype for item in ids} == {np.dtype(np.uint16)}


class Slow:
    """As much of a tokenizer without a fast half as encoding needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def get_vocab(self) -> dict[str, int]:
        return {**self._tokenizer.get_vocab(), "beyond": 70_000}

    def __call__(self, texts: list[str], **options: Any) -> Any:
        return self._tokenizer(texts, **options)


def test_a_slow_tokenizer_gives_the_same_and_large_vocabularies_four_bytes(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the patient", "chest pain"]
    fast, slow = TextEncoder(tokenizer), TextEncoder(cast(PreTrainedTokenizerBase, Slow(tokenizer)))
    pairs = zip(fast.ids(fast.encode(texts)), slow.ids(slow.encode(texts)), strict=True)
    assert all(one.tolist() == other.tolist() for one, other in pairs)
    assert slow.dtype == np.uint32
    assert slow.fingerprint != fast.fingerprint


def test_a_fingerprint_is_of_the_tokenizer_and_not_of_its_last_call(tiny_base: Path) -> None:
    one, other = (AutoTokenizer.from_pretrained(tiny_base) for _ in range(2))
    other(["a", "the patient was"], truncation=True, max_length=2, padding="max_length")
    assert TextEncoder(one).fingerprint == TextEncoder(other).fingerprint
    other.add_tokens(["pneumonia"])
    assert TextEncoder(one).fingerprint != TextEncoder(other).fingerprint


def test_what_a_tokenizer_itself_puts_around_a_text(tiny_base: Path) -> None:
    from tokenizers import processors

    loaded = AutoTokenizer.from_pretrained(tiny_base)
    assert own_ends(loaded) == ([loaded.bos_token_id], [])
    loaded.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert own_ends(loaded) == ([1], [2])


def test_a_tokenizer_without_a_begin_token_ends_documents_all_the_same(tiny_base: Path) -> None:
    plain = AutoTokenizer.from_pretrained(tiny_base)
    plain.bos_token = None
    assert encode_documents(plain, [""])[0].tolist() == [plain.eos_token_id]


# ---------------------------------------------------------------------- batches


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
)
def test_an_epoch_has_each_example_once_and_is_a_function_of_seed_and_epoch(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    batches = shuffled_batches(lengths, size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert len(batches) == math.ceil(len(lengths) / size)  # as many in each epoch: the trainer counts on it
    assert batches == shuffled_batches(lengths, size, seed, epoch)


def test_epochs_and_seeds_have_other_orders() -> None:
    lengths = list(range(100))
    orders = [shuffled_batches(lengths, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_batches_are_of_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 400).tolist()
    batches = shuffled_batches(lengths, 8, 0, 0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert sum(lengths) / padded > 0.9
    assert len({len(batch) for batch in batches}) == 1


def test_evaluation_begins_with_the_longest() -> None:
    batches = sorted_batches([3, 9, 1, 9], 2)
    assert batches == [[1, 3], [0, 2]]


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = pad([np.array([5, 6, 7]), np.array([8])], filler=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
