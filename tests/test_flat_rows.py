"""Notes in one row without padding: the same logits and gradients as padded ones; batches by token budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clinstack.engine import classification, pieces
from clinstack.engine.classification import EncodedExamples
from clinstack.engine.pieces import Lengths, flat_rows, piece_features, pool_pieces, reads_flat
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.notes.read import Examples
from clinstack.recipe import TrainingRecipe
from clinstack.tasks import Task
from clinstack.tokens.batches import by_length, filled_batches
from methods import new

TEXTS = [
    "sepsis",
    "the patient was admitted with heart failure and pain " * 4,
    "stable on the ward " * 3,
    "shock",
    "died " * 30,
]
SPECS = ("lora", "dora", "adalora", "adaption_prompt", "full")


def encoded(stack: Stack, task: Task, keep: str = "beginning", pooling: str = "mean") -> EncodedExamples:
    stack.reading = Reading(max_tokens=40, keep=keep, chunk_pooling=pooling)
    labels = [index % 2 for index in range(len(TEXTS))]
    names = [str(index) for index in range(len(TEXTS))]
    return EncodedExamples(stack, task, Examples(names, names, TEXTS, labels))


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let everything be padded from now on."""

    def switch() -> None:
        for module in (pieces, classification):
            monkeypatch.setattr(module, "reads_flat", lambda stack: False)

    return switch


def logits_and_gradients(stack: Stack, examples: EncodedExamples) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    stack.train()
    logits = examples.logits(range(len(examples)))
    torch.nn.functional.cross_entropy(logits, examples.targets).backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in stack.trainable_parameters().items()
        if parameter.grad is not None
    }
    stack.network.zero_grad()
    return logits.detach(), gradients


@pytest.mark.parametrize("keep", ["beginning", "chunks"])
@pytest.mark.parametrize("method", [*SPECS, "head"])
def test_a_flat_row_gives_the_logits_and_gradients_of_padded_rows(
    tiny_base: Path,
    mortality: Task,
    perturbed: Callable[..., Stack],
    padded: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    keep: str,
) -> None:
    monkeypatch.setattr(pieces, "ROW_TOKENS", 60)  # so that there are several rows, of several pieces
    stack = perturbed(Stack.build(str(tiny_base), [] if method == "head" else [new(method)], mortality))
    for adapter in stack.adapters:
        assert adapter.trainable
    for module in stack.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert reads_flat(stack)
    flat = encoded(stack, mortality, keep)
    assert len(flat.encoded.pieces) == (5 if keep == "beginning" else 11)
    logits, gradients = logits_and_gradients(stack, flat)
    measured = flat.all_logits(2)
    np.testing.assert_allclose(measured, logits.numpy(), rtol=0, atol=1e-5)
    padded()
    other = encoded(stack, mortality, keep)
    other_logits, other_gradients = logits_and_gradients(stack, other)
    torch.testing.assert_close(logits, other_logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(other.all_logits(2), measured, rtol=0, atol=1e-5)
    assert gradients.keys() == other_gradients.keys()
    assert gradients
    for name, gradient in gradients.items():
        allowed = 1e-5 * max(1.0, float(other_gradients[name].abs().max()))
        torch.testing.assert_close(gradient, other_gradients[name], rtol=0, atol=allowed, msg=name)


def test_a_flat_row_is_one_row_with_positions_that_begin_anew(
    tiny_base: Path, mortality: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack.build(str(tiny_base), [], mortality)
    seen: list[tuple[list[int], list[int]]] = []
    run = Stack.hidden_states

    def recording(self: Stack, input_ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any:
        assert attention_mask is None
        seen.append((list(input_ids.shape), position_ids[0].tolist()))
        return run(self, input_ids, attention_mask, position_ids)

    monkeypatch.setattr(Stack, "hidden_states", recording)
    with torch.inference_mode():
        piece_features(stack, [np.array([1, 5, 6]), np.array([1]), np.array([1, 7])])
    assert seen == [([1, 6], [0, 1, 2, 0, 0, 1])]


@pytest.mark.parametrize("method", ["p_tuning", "prefix"])
def test_virtual_tokens_stand_before_one_note_only_and_are_padded(
    tiny_base: Path, mortality: Task, method: str
) -> None:
    stack = Stack.build(str(tiny_base), [new(method)], mortality)
    assert not reads_flat(stack)
    assert encoded(stack, mortality).all_logits(2).shape == (5, 2)


def test_a_base_in_half_precision_is_padded(tiny_base: Path, mortality: Task) -> None:
    assert not reads_flat(Stack.build(str(tiny_base), [], mortality, dtype="bfloat16"))


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_chunks_of_a_note_are_pooled(kind: str) -> None:
    features = torch.tensor([[1.0, 4.0], [3.0, 0.0], [5.0, 6.0]], requires_grad=True)
    expected = [[2.0, 2.0], [5.0, 6.0]] if kind == "mean" else [[3.0, 4.0], [5.0, 6.0]]
    pooled = pool_pieces(features, [2, 1], kind)
    assert pooled.tolist() == expected
    pooled.sum().backward()
    share = [[0.5, 0.5], [0.5, 0.5]] if kind == "mean" else [[0.0, 1.0], [1.0, 0.0]]
    assert features.grad is not None
    assert features.grad.tolist() == [*share, [1.0, 1.0]]


def test_the_pooling_of_chunks_is_the_readings(tiny_base: Path, mortality: Task) -> None:
    stack = Stack.build(str(tiny_base), [], mortality)
    with torch.inference_mode():
        for kind in ("mean", "max"):
            examples = encoded(stack, mortality, "chunks", kind)
            of_pieces = [piece_features(stack, [piece])[0] for piece in examples.encoded.pieces]
            for note, owned in enumerate(np.bincount(examples.encoded.owners)):
                first = int((examples.encoded.owners < note).sum())
                part = torch.stack(of_pieces[first : first + owned])
                expected = stack.head(part.mean(0) if kind == "mean" else part.amax(0))
                torch.testing.assert_close(examples.logits([note])[0], expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- batches


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 400), st.integers(0, 3))
def test_filled_batches_hold_each_row_once_within_the_budget_and_are_as_many_in_each_epoch(
    lengths: list[int], budget: int, seed: int
) -> None:
    epochs = [list(filled_batches(lengths, budget, seed, epoch)) for epoch in range(3)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(batches)
        assert all(len(batch) == 1 or sum(lengths[row] for row in batch) <= budget for batch in batches)
    assert len({len(batches) for batches in epochs}) == 1
    assert epochs[1] == list(filled_batches(lengths, budget, seed, 1))


def test_filled_batches_are_random_and_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(20, 513, 2000)
    first, second = (filled_batches(lengths, 8192, 0, epoch) for epoch in (0, 1))
    assert [sorted(batch) for batch in first] != [sorted(batch) for batch in second]
    assert lengths.sum() / len(first) > 0.9 * 8192
    spread = [lengths[batch].std() for batch in first]
    assert min(spread) > 0.7 * lengths.std()  # no batch of similar lengths


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), min_size=1, max_size=80), st.integers(1, 400))
def test_padded_batches_keep_to_the_budget_filler_counted(notes: list[tuple[int, int]], budget: int) -> None:
    widths, counts = (np.array(part) for part in zip(*notes, strict=True))
    found = set()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(notes))
        batches = list(by_length(widths, budget, order, pieces=counts))
        found.add(len(batches))
        assert sorted(row for batch in batches for row in batch) == list(range(len(notes)))
        for batch in batches:
            assert len(batch) == 1 or max(widths[batch]) * counts[batch].sum() <= budget
    assert len(found) == 1


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("budget", [None, 600])
def test_an_epoch_is_a_pure_function_of_seed_and_epoch(flat: bool, budget: int | None) -> None:
    random = np.random.default_rng(1)
    counts = random.integers(1, 4, 50)
    notes = Lengths(random.integers(5, 90, counts.sum()).tolist(), counts, flat=flat)
    training = TrainingRecipe(batch_size=4, batch_tokens=budget)
    epochs = [[list(batch) for batch in notes.epoch_batches(training, epoch)] for epoch in range(3)]
    assert epochs[0] == [list(batch) for batch in notes.epoch_batches(training, 0)]
    assert epochs[0] != epochs[1]
    assert len({len(batches) for batches in epochs}) == 1
    other = training.model_copy(update={"seed": 1})
    assert epochs[0] != [list(batch) for batch in notes.epoch_batches(other, 0)]
    for batches in (*epochs, notes.measuring_batches(4)):
        assert sorted(row for batch in batches for row in batch) == list(range(50))


def test_flat_rows_hold_neighbours_up_to_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "ROW_TOKENS", 10)
    rows = [range(6)[row] for row in flat_rows([4, 6, 1, 30, 2, 8])]
    assert [list(row) for row in rows] == [[0, 1], [2], [3], [4, 5]]
