"""Losses are sums with a weight: a packed document costs what it costs alone, and batches of any size add up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from clinstack.engine import next_token
from clinstack.engine.language_modelling import lay_out_notes, losses_table, note_losses
from clinstack.engine.losses import causal_loss, class_weights, classification_loss, encode_labels
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.layout import Layout, NoteRows
from clinstack.tokens.notes import NoteTokens

Perturbed = Callable[..., Stack]
TEXTS = [
    "the patient was admitted with chest pain",
    "stable",
    "",
    "shortness of breath, admitted with the patient " * 3,
    "no pain",
]
MULTICLASS = Task("length_of_stay", "multiclass", ("a", "b", "c", "d"))
MULTILABEL = Task("diagnoses", "multilabel", ("038", "428", "486"))


@pytest.fixture(scope="module")
def stack(tiny_base: Path, perturbed: Perturbed) -> Stack:
    recipe = AdapterRecipe(name="clinical", rank=4, alpha=8, target_modules="all-linear")
    return perturbed(Stack.build(str(tiny_base), [recipe]))


def documents_of(stack: Stack, texts: list[str]) -> Documents:
    encoder = TextEncoder(stack.tokenizer)
    return Documents.of(encoder.ids(encoder.encode(texts)))


def rows_of(stack: Stack, texts: list[str], context: int, layout: Layout = "packed") -> NoteRows:
    return lay_out_notes(stack, documents_of(stack, texts), layout, context)


def gradients(stack: Stack) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in stack.trainable_parameters().items():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


# ---------------------------------------------------------------------- language modelling


@pytest.mark.parametrize("context", [16, 40, 256])
def test_invariant_4_packed_documents_have_the_loss_and_the_gradients_they_have_alone(
    stack: Stack, context: int
) -> None:
    packed = rows_of(stack, TEXTS, context)
    stack.eval()
    whole = torch.zeros(())
    for rows in packed.in_order(3):
        loss = causal_loss(stack, packed.collate(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        whole = whole + loss.detach()
    together = gradients(stack)

    alone = torch.zeros(())
    for document in packed.documents:
        # Each part of a document longer than a row stands alone too: that is what the context is.
        for start in range(0, len(document) - 1, context):
            tokens = torch.from_numpy(document[start : start + context + 1])[None]
            logits: Any = stack.network(input_ids=tokens[:, :-1]).logits
            loss = F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            alone = alone + loss.detach()
    assert whole.item() == pytest.approx(alone.item(), rel=1e-5)
    for name, gradient in gradients(stack).items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_invariant_4_a_neighbour_does_not_change_the_loss(stack: Stack) -> None:
    """A mask of ones, as most collators make it, lets packed documents see each other; this is what would show it."""
    packed = rows_of(stack, TEXTS[:2], 256)
    assert [len(row) for row in packed.rows] == [2]
    batch = packed.collate([0])
    stack.eval()
    with torch.inference_mode():
        right = causal_loss(stack, batch)
        hidden = stack.hidden_states(batch.input_ids, torch.ones_like(batch.input_ids), batch.position_ids)
        logits: Any = stack.network.get_output_embeddings()(hidden)
        wrong = F.cross_entropy(logits[0], batch.labels[0], reduction="sum")
    assert abs(float(right - wrong)) > 0.01


def test_the_loss_in_chunks_is_that_of_the_full_logits(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = rows_of(stack, TEXTS, 48)
    batch = packed.collate(range(len(packed)))
    assert batch.predictions < batch.labels.numel()  # some positions predict nothing
    stack.eval()
    monkeypatch.setitem(next_token._LOGITS, "cpu", 7 * 300)  # 7 tokens of the vocabulary
    summed = causal_loss(stack, batch)
    each = causal_loss(stack, batch, reduction="none")
    summed.backward()  # type: ignore[no-untyped-call]
    in_chunks = gradients(stack)

    hidden = stack.hidden_states(batch.input_ids, position_ids=batch.position_ids)
    logits: Any = stack.network.get_output_embeddings()(hidden)
    full = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    full.sum().backward()
    torch.testing.assert_close(each, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed, full.sum(), rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(stack).items():
        torch.testing.assert_close(in_chunks[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_mean_over_batches_weighs_every_token_the_same(stack: Stack) -> None:
    packed = rows_of(stack, TEXTS, 50)
    stack.eval()
    with torch.inference_mode():
        parts = []
        for rows in packed.in_order(1):
            batch = packed.collate(rows)
            parts.append((float(causal_loss(stack, batch)), batch.predictions))
    assert len({count for _, count in parts}) > 1  # rows differ in tokens, so a mean of means would be another figure
    by_token = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
    by_row = sum(loss / count for loss, count in parts) / len(parts)
    nll = note_losses(stack, packed, 2)
    assert by_token == pytest.approx(nll.sum() / sum(len(document) - 1 for document in packed.documents), rel=1e-6)
    assert abs(by_token - by_row) > 1e-4


def test_losses_of_notes_are_theirs_whatever_the_batches(stack: Stack) -> None:
    alone = []
    with torch.inference_mode():
        for text in TEXTS:
            one = rows_of(stack, [text], 64)
            batch = one.collate(range(len(one)))
            alone.append(float(causal_loss(stack, batch)))
    for batch_size in (1, 3, 50):
        nll = note_losses(stack, rows_of(stack, TEXTS, 64), batch_size)
        np.testing.assert_allclose(nll, alone, rtol=1e-5)


def test_the_table_of_losses_has_base_and_adapters_and_no_text(stack: Stack, tiny_base: Path) -> None:
    ids = [f"n{index}" for index in range(len(TEXTS))]
    index = {"note_id": ids, "patient_id": [f"p{item}" for item in ids], "note_type": ["Nursing"] * len(ids)}
    notes = NoteTokens(pa.table(index | {"characters": [len(text) for text in TEXTS]}), documents_of(stack, TEXTS))
    table = losses_table(stack, notes, "test", 64, 2)
    assert table.column_names == [
        "note_id", "patient_id", "note_type", "split", "tokens", "characters", "base_nll", "nll"
    ]  # fmt: skip
    assert table["tokens"].to_pylist() == [len(document) - 1 for document in rows_of(stack, TEXTS, 64).documents]
    assert table["characters"].to_pylist() == [len(text) for text in TEXTS]
    np.testing.assert_array_equal(table["nll"], note_losses(stack, rows_of(stack, TEXTS, 64), 2))
    base = Stack.build(str(tiny_base))
    np.testing.assert_allclose(table["base_nll"], note_losses(base, rows_of(base, TEXTS, 64), 2), rtol=1e-6)
    assert np.abs(np.subtract(table["nll"], table["base_nll"])).min() > 1e-3


# ---------------------------------------------------------------------- classification


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=targets.numpy())
    weights = class_weights(MULTICLASS, targets, "balanced")
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    assert class_weights(MULTICLASS, targets, "none") is None


def test_a_class_that_never_occurs_weighs_one(mortality: Task) -> None:
    weights = class_weights(mortality, torch.tensor([0, 0, 0]), "balanced")
    assert weights is not None
    assert weights.tolist() == [0.5, 1.0]


def test_positives_of_a_code_weigh_negatives_over_positives() -> None:
    targets = encode_labels(MULTILABEL, [["038"], ["038", "428"], [], ["038"], []])
    assert targets.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    weights = class_weights(MULTILABEL, targets, "balanced")
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 4.0, 1.0]))


def test_multilabel_loss_is_the_mean_over_codes_and_the_sum_over_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator)
    targets = encode_labels(MULTILABEL, [["038"], ["038", "428"], [], ["486"], []])
    loss, weight = classification_loss(MULTILABEL, logits, targets, None)
    assert float(weight) == 5
    torch.testing.assert_close(loss / weight, F.binary_cross_entropy_with_logits(logits, targets))
    weighted, weight = classification_loss(MULTILABEL, logits, targets, torch.tensor([2.0, 3.0, 1.0]))
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([2.0, 3.0, 1.0]))
    torch.testing.assert_close(weighted / weight, expected)


@pytest.mark.parametrize("mode", ["balanced", "none"])
def test_weighted_batches_of_any_size_add_up_to_the_loss_of_the_whole(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, generator=generator)
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    weights = class_weights(MULTICLASS, targets, mode)
    parts = [
        classification_loss(MULTICLASS, logits[at : at + 3], targets[at : at + 3], weights) for at in range(0, 10, 3)
    ]
    total = torch.stack([loss for loss, _ in parts]).sum() / torch.stack([weight for _, weight in parts]).sum()
    torch.testing.assert_close(total, F.cross_entropy(logits, targets, weight=weights))
