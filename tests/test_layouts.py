"""Packed, bucketed and padded rows: the same losses, and batches that are functions of seed and epoch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clinstack.engine.canary_planting import beginnings_read
from clinstack.engine.language_modelling import lay_out_notes, note_losses, published_perplexity
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, PretrainRecipe, TrainingRecipe, parse_recipe
from clinstack.stages import pretrain as stage
from clinstack.stages.pretrain import pretrain
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.layout import Layout, NoteRows, lay_out
from clinstack.tokens.notes import NoteTokens
from clinstack.tokens.pack import IGNORED

LAYOUTS: tuple[Layout, ...] = ("packed", "bucketed", "padded")
TEXTS = [
    "the patient was admitted with chest pain",
    "stable",
    "",
    "shortness of breath, admitted with the patient " * 3,
    "no pain",
    "pain",
]


@pytest.fixture(scope="module")
def stack(tiny_base: Path, perturbed: Callable[..., Stack]) -> Stack:
    recipe = AdapterRecipe(name="clinical", rank=4, alpha=8, target_modules="all-linear")
    return perturbed(Stack.build(str(tiny_base), [recipe]))


@pytest.fixture(scope="module")
def documents(stack: Stack) -> Documents:
    encoder = TextEncoder(stack.tokenizer)
    return Documents.of(encoder.ids(encoder.encode(TEXTS)))


def rows_of(lengths: list[int], layout: Layout, context: int) -> NoteRows:
    """Rows of documents in which no token occurs twice."""
    starts = np.cumsum([1, *lengths[:-1]])
    pairs = zip(starts, lengths, strict=True)
    return lay_out(Documents.of([np.arange(start, start + length) for start, length in pairs]), layout, context, 0)


# ---------------------------------------------------------------------- batches

CASES = {
    "lengths": st.lists(st.integers(2, 60), min_size=1, max_size=60),
    "context": st.integers(2, 30),
    "size": st.integers(1, 5),
    "layout": st.sampled_from(LAYOUTS),
}


@settings(max_examples=100, deadline=None)
@given(**CASES, seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_reads_each_row_once_and_is_a_function_of_seed_and_epoch(
    lengths: list[int], context: int, size: int, layout: Layout, seed: int, epoch: int
) -> None:
    rows = rows_of(lengths, layout, context)
    batches = rows.shuffled(size, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert list(batches) == list(rows.shuffled(size, seed, epoch))
    assert len(batches) == len(rows.shuffled(size, seed, epoch + 1))  # the trainer counts on it
    assert sorted(row for batch in rows.in_order(size) for row in batch) == list(range(len(rows)))
    assert batches[1:3] == list(batches)[1:3]
    assert batches[-1] == list(batches)[-1]
    with pytest.raises(IndexError):
        batches[len(batches)]


@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_batches_are_as_wide_as_the_layout_says_and_counted_before_they_are_made(
    lengths: list[int], context: int, size: int, layout: Layout
) -> None:
    rows = rows_of(lengths, layout, context)
    batches = rows.shuffled(size, 0, 0)
    positions = predictions = 0
    for batch in batches:
        laid = rows.collate(batch)
        count, width = laid.input_ids.shape
        assert laid.predictions == rows.predictions(batch) == int((laid.labels != IGNORED).sum())
        assert sum(laid.lengths) == count * width
        assert width <= context
        if layout == "packed":
            assert laid.attention_mask is None
        else:
            assert laid.attention_mask is not None
            assert torch.equal(laid.attention_mask.bool(), laid.documents >= 0)
            # On the right, and positions go on under the filler.
            assert (laid.attention_mask.diff(dim=1) <= 0).all()
            assert laid.position_ids.tolist() == [list(range(width))] * count
        if layout == "bucketed":
            assert count * width <= size * context
        else:
            assert count <= size
        if layout == "padded":
            assert width == context
        positions += count * width
        predictions += laid.predictions
    counts = rows.counts(batches)
    assert (counts["positions"], counts["read"]) == (positions, predictions)
    assert counts["notes"] == len(lengths)
    assert counts["useful"] == predictions / positions
    assert predictions + counts["cut"] == sum(lengths) - len(lengths)
    assert (counts["cut"] > 0) == (layout == "padded" and max(lengths) > context)


def test_bucketed_batches_have_similar_lengths_and_change_from_epoch_to_epoch() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 2000).astype(int) + 2
    rows = rows_of(lengths.tolist(), "bucketed", 128)
    one, two, other = (rows.shuffled(8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0)))
    assert rows.counts(one)["useful"] > 0.97
    assert rows.positions(one) == rows.positions(two)
    assert list(one) != list(two) != list(other) != list(one)
    assert {tuple(sorted(batch)) for batch in one} != {tuple(sorted(batch)) for batch in two}
    widths = [max(rows.fills[batch]) for batch in one]
    assert widths != sorted(widths)  # their order is shuffled too
    assert rows_of(lengths.tolist(), "padded", 128).counts(one)["useful"] < 0.8


def test_the_picture_in_the_module_is_what_happens() -> None:
    lengths = [4, 3, 10]
    bucketed = rows_of(lengths, "bucketed", 6)
    widths = [[int(bucketed.fills[row]) for row in batch] for batch in bucketed.in_order(1)]
    assert widths == [[6], [3, 3], [2]]
    padded = rows_of(lengths, "padded", 6)
    batch = padded.collate(range(3))
    assert batch.input_ids.tolist() == [[1, 2, 3, 0, 0, 0], [5, 6, 0, 0, 0, 0], [8, 9, 10, 11, 12, 0]]
    assert batch.labels[2].tolist() == [9, 10, 11, 12, 13, IGNORED]
    assert padded.cut == 4


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("context", [40, 256])
def test_notes_have_the_same_losses_in_rows_of_their_own_and_packed(
    stack: Stack, documents: Documents, context: int
) -> None:
    packed = note_losses(stack, lay_out_notes(stack, documents, "packed", context), 3)
    for batch_size in (1, 3):
        bucketed = note_losses(stack, lay_out_notes(stack, documents, "bucketed", context), batch_size)
        np.testing.assert_allclose(bucketed, packed, rtol=1e-5)


def test_padded_notes_have_the_losses_of_packed_ones_when_nothing_is_cut(stack: Stack, documents: Documents) -> None:
    """Between the same begin and end tokens: the tokenizer's own here, which has no end token."""
    padded = lay_out_notes(stack, documents, "padded", 200)
    assert padded.cut == 0
    assert padded.documents.lengths.tolist() == (documents.lengths + 1).tolist()
    others = [lay_out(padded.documents, layout, 200, 0) for layout in LAYOUTS[:2]]
    for other in others:
        np.testing.assert_allclose(note_losses(stack, padded, 4), note_losses(stack, other, 4), rtol=1e-5, atol=1e-5)


def test_the_published_perplexity_is_that_of_the_published_loop(stack: Stack, documents: Documents) -> None:
    """Tokenise with truncation and padding, mask what is padded, take each batch's mean, then the mean of the means."""
    context, batch_size = 12, 2
    encoded = stack.tokenizer(
        TEXTS, truncation=True, max_length=context, padding="max_length", padding_side="right", return_tensors="pt"
    )
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, IGNORED)
    means, total, count = [], 0.0, 0
    stack.eval()
    with torch.inference_mode():
        for at in range(0, len(TEXTS), batch_size):
            here = slice(at, at + batch_size)
            logits: Any = stack.network(
                input_ids=encoded["input_ids"][here], attention_mask=encoded["attention_mask"][here]
            ).logits
            flat, wanted = logits[:, :-1].flatten(0, 1), labels[here, 1:].flatten()
            means.append(float(F.cross_entropy(flat, wanted, ignore_index=IGNORED)))
            total += float(F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="sum"))
            count += int((wanted != IGNORED).sum())
    ids = pa.table({"note_id": [str(n) for n in range(len(TEXTS))]})
    # The empty note has no prediction, hence no row; the published loop has one of padding only.
    figures = published_perplexity(stack, NoteTokens(ids, documents), context, batch_size)
    assert figures["tokens"] == count
    assert figures["by_token"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert figures["cut"] == int((documents.lengths + 1 - context).clip(0).sum()) > 0
    assert figures["notes"] == len(TEXTS)
    again = published_perplexity(stack, NoteTokens(ids, documents.chosen([0, 1])), context, batch_size)
    assert again["perplexity"] == pytest.approx(math.exp(means[0]), rel=1e-5)


# ---------------------------------------------------------------------- the stage


def recipe_for(run: Path, base: Path, notes: Path, **changes: Any) -> PretrainRecipe:
    values: dict[str, Any] = {
        "run": str(run),
        "base": str(base),
        "notes": str(notes),
        "context": 32,
        "adapters": [{"name": "clinical", "rank": 4, "alpha": 8}],
        "training": {"batch_size": 4, "max_steps": 6, "learning_rate": 0.02, "tracking": "none"},
        "evaluation": {"resamples": 100, "max_notes": 10},
    }
    recipe = parse_recipe(values | changes, "test", "pretrain")
    assert isinstance(recipe, PretrainRecipe)
    return recipe


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tiny_notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Run of each layout."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        pretrain(recipe_for(root / layout, tiny_base, tiny_notes, layout=layout))
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretraining_reads_every_layout(runs: Path, layout: Layout) -> None:
    metrics = read_json(runs / layout / "metrics.json")
    assert metrics["layout"] == layout
    for split in ("train", "test"):
        figures = metrics[split]
        assert figures["notes"] == 10
        assert figures["adapted"]["perplexity"]["value"] < figures["base"]["perplexity"]["value"]
        assert set(figures["by_note_type"]) == {"Discharge summary", "Nursing"}
        assert figures["adapted"]["bits_per_character"]["interval"]
        assert ("published" in figures) == (layout == "padded")
    train = metrics["tokens"]["train"]
    assert (train["cut"] > 0) == (layout == "padded")
    assert train["useful"] == train["read"] / train["positions"]
    assert train["useful"] > {"packed": 0.9, "bucketed": 0.9, "padded": 0.6}[layout]
    assert metrics["tokens"]["validation"]["notes"] <= 10
    assert read_json(runs / layout / "run.json")["tokens_per_second"] > 0


def test_whole_notes_are_measured_whatever_was_trained_with(runs: Path) -> None:
    tables = [pq.read_table(runs / layout / "losses.parquet") for layout in LAYOUTS]
    for other in tables[1:]:
        assert other.drop_columns(["base_nll", "nll"]).equals(tables[0].drop_columns(["base_nll", "nll"]))
        np.testing.assert_allclose(other["base_nll"], tables[0]["base_nll"], rtol=1e-5)
        assert np.abs(np.subtract(other["nll"], tables[0]["nll"])).max() > 0.1


def test_the_published_measure_can_be_asked_for(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    run = pretrain(recipe_for(tmp_path / "run", tiny_base, tiny_notes, published_perplexity=True))
    test = read_json(run.folder / "metrics.json")["test"]["published"]
    assert (test["context"], test["batch_size"], test["notes"]) == (32, 4, 10)
    assert test["perplexity"] > 1
    assert test["perplexity"] != test["by_token"]
    assert test["cut"] > 0


def test_a_method_that_cannot_keep_packed_documents_apart_gets_buckets_and_it_is_said(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = {"name": "clinical", "method": "prompt", "virtual_tokens": 2}
    run = pretrain(recipe_for(tmp_path / "run", tiny_base, tiny_notes, adapters=[prompt]))
    assert read_json(run.folder / "metrics.json")["layout"] == "bucketed"
    assert " ".join(capsys.readouterr().err.split()).count("(layout: bucketed)") == 1


def test_tokens_stay_with_the_notes_or_where_the_recipe_says(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(tiny_notes, tmp_path / "data", ignore=shutil.ignore_patterns("tokens")))
    pretrain(recipe_for(tmp_path / "one", tiny_base, data))
    stores = sorted(item.name for item in (data / "tokens").iterdir() if (item / "store.json").is_file())
    assert len(stores) == 3
    encoded: list[int] = []
    encode = TextEncoder.encode

    def counted(self: TextEncoder, texts: Any) -> Any:
        encoded.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    again = pretrain(recipe_for(tmp_path / "two", tiny_base, data, layout="padded"))
    assert not encoded  # one store serves every layout
    assert again.is_done
    pretrain(recipe_for(tmp_path / "three", tiny_base, data, tokens=str(tmp_path / "elsewhere")))
    assert sum(encoded) == 120
    assert sorted(item.name for item in (tmp_path / "elsewhere").iterdir() if item.name in stores) == stores


def test_notes_that_cannot_be_written_to_are_refused_in_one_line(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_notes, tmp_path / "data", ignore=shutil.ignore_patterns("tokens")))
    (data / "tokens").write_text("a file where the folder would be")
    with pytest.raises(InputError, match="name another folder with the key tokens") as caught:
        pretrain(recipe_for(tmp_path / "run", tiny_base, data))
    assert "\n" not in str(caught.value)


def test_batches_of_the_stage_can_be_sliced_and_their_losses_add_up(
    stack: Stack, documents: Documents, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    ids = pa.table({"note_id": [str(n) for n in range(len(TEXTS))]})
    notes = {split: NoteTokens(ids, documents) for split in ("train", "validation")}
    stack.eval()
    for layout in LAYOUTS:
        objective = stage.PretrainObjective(stack, recipe_for(tmp_path, tiny_base, tiny_notes, layout=layout), notes)
        for batch in objective.epoch_batches(0):
            assert isinstance(batch, list)
            whole, weight = objective.loss(batch)
            parts = [objective.loss(batch[at : at + 1]) for at in range(len(batch))]
            torch.testing.assert_close(whole, torch.stack([loss for loss, _ in parts]).sum(), rtol=1e-5, atol=1e-5)
            assert weight == sum(count for _, count in parts) == objective.size(batch)


@pytest.mark.parametrize("layout", ["packed", "bucketed", "padded"])
def test_which_documents_a_training_that_ends_early_has_begun(layout: Layout) -> None:
    """Each document's tokens are its own, so that a row's inputs say whose beginnings stand in it."""
    lengths = [5, 40, 16, 1, 90, 33, 8, 64, 12, 7] * 3
    starts = np.cumsum([1, *lengths[:-1]]).tolist()
    rows = rows_of(lengths, layout, 32)
    training = TrainingRecipe(batch_size=2, accumulate=2, max_steps=3, seed=5)
    batches = rows.shuffled(2, 5, 0)[: 3 * 2]
    seen = {int(token) for batch in batches for token in rows.collate(batch).input_ids.flatten()}
    begun = beginnings_read(rows, training)
    assert begun is not None
    assert begun.tolist() == [start in seen for start in starts]
    assert 0 < begun.sum() < len(starts)
    assert beginnings_read(rows, training.model_copy(update={"max_steps": None})) is None
    assert beginnings_read(rows, training.model_copy(update={"max_steps": 10**6})) is None
