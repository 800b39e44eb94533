"""Loss, Min-K% and Min-K%++ of notes and answers against a plain computation with transformers, note by note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clinstack.engine import attack_losses as module
from clinstack.engine.attack_losses import AttackLosses, attack_losses, note_beginnings
from clinstack.engine.instruction_tuning import lay_out_pairs
from clinstack.engine.language_modelling import lay_out_notes
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tokens.documents import Documents
from clinstack.tokens.prompts import EncodedPairs, EncodedPrompts
from methods import new

CONTEXT = 24
LENGTHS = (40, 3, 12, 1, 22, 23, 90, 8)


@pytest.fixture(scope="module")
def stack(clinical: Path) -> Stack:
    return Stack.load(clinical)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._LOGITS, "cpu", 5 * 300)


def notes() -> list[NDArray[np.int64]]:
    random = np.random.default_rng(0)
    return [random.integers(3, 300, length) for length in LENGTHS]


def plainly(
    stack: Stack, ids: list[int], answers_from: int, min_k: float, window: int | None = None
) -> tuple[float, ...]:
    """As in the published code of Min-K%++: all logits of one text, its tokens from ``answers_from`` on."""
    network: Any = stack.network
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([ids]).to(stack.device)).logits[0, :-1].float().cpu()
    targets = torch.tensor(ids[1:])
    logs = torch.log_softmax(logits, -1)
    probabilities = logs.exp()
    mean = (probabilities * logs).sum(-1)
    deviation = ((probabilities * logs.square()).sum(-1) - mean.square()).sqrt()
    own = logs.gather(-1, targets[:, None])[:, 0]
    scored = slice(answers_from - 1, None)
    standardized = ((own - mean) / deviation)[scored].sort().values
    own = own[scored]
    count = max(1, int(len(own) * min_k))
    return (
        len(own),
        -float(own.sum()),
        -float(own[:window].sum()),
        float(own.sort().values[:count].mean()),
        float(standardized[:count].mean()),
    )


def rows_of(found: AttackLosses) -> list[tuple[float, ...]]:
    columns = (found.tokens, found.nll, found.window_nll, found.min_k, found.min_k_plus_plus)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("min_k", [0.1, 0.5])
def test_notes_are_scored_as_each_alone(stack: Stack, batch_size: int, min_k: float) -> None:
    rows = note_beginnings(stack, Documents.of(notes()), CONTEXT)
    found = attack_losses(stack, rows, batch_size, min_k=min_k, window=7)
    # A note that is too long ends in the middle, without an end token.
    expected = [plainly(stack, [1, *tokens.tolist(), 2][: CONTEXT + 1], 1, min_k, window=7) for tokens in notes()]
    for ours, theirs in zip(rows_of(found), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert rows.cut == sum(max(0, length + 1 - CONTEXT) for length in LENGTHS)
    assert found.window_tokens.tolist() == [min(7, length + 1) for length in LENGTHS]


def test_the_base_is_scored_with_the_adapters_off(stack: Stack, tiny_base: Path) -> None:
    rows = note_beginnings(stack, Documents.of(notes()), CONTEXT)
    base = attack_losses(Stack.build(str(tiny_base)), rows, 4)
    with stack.switched_off():
        off = attack_losses(stack, rows, 4)
    for ours, theirs in zip(rows_of(off), rows_of(base), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert not np.allclose(attack_losses(stack, rows, 4).nll, off.nll)


def test_a_stack_with_virtual_tokens_is_scored_too(tiny_base: Path) -> None:
    stack = Stack.build(str(tiny_base), [new("prompt")])
    rows = note_beginnings(stack, Documents.of(notes()), CONTEXT)
    assert rows.layout == "bucketed"
    together = attack_losses(stack, rows, 4)
    alone = [
        attack_losses(stack, note_beginnings(stack, Documents.of([tokens]), CONTEXT), 1).nll[0] for tokens in notes()
    ]
    np.testing.assert_allclose(together.nll, alone, rtol=1e-4)


def test_only_answers_are_scored(stack: Stack) -> None:
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 300, length).tolist() for length in (5, 11, 2)]
    answers = [random.integers(3, 300, length).tolist() for length in (4, 1, 9)]
    pairs = EncodedPairs(EncodedPrompts(prompts, {}), answers)
    found = attack_losses(stack, lay_out_pairs(stack, pairs, "packed", CONTEXT), 2, min_k=0.4)
    for ours, prompt, answer in zip(rows_of(found), prompts, answers, strict=True):
        theirs = plainly(stack, [*prompt, *answer], len(prompt), 0.4)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        assert ours[0] == len(answer)


def test_half_precision_is_near(tiny_base: Path, stack: Stack) -> None:
    half = Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", rank=4, alpha=8)], dtype="bfloat16")
    rows = note_beginnings(half, Documents.of(notes()), CONTEXT)
    found = attack_losses(half, rows, 4)
    exact = attack_losses(Stack.build(str(tiny_base)), rows, 4)
    np.testing.assert_allclose(found.nll, exact.nll, rtol=0.02)
    np.testing.assert_allclose(found.min_k_plus_plus, exact.min_k_plus_plus, rtol=0.1, atol=0.1)


def test_a_model_that_is_sure_gives_finite_scores(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def sure(stack: Stack, hidden: torch.Tensor) -> Any:
        logs = torch.full((len(hidden), 300), -torch.inf)
        logs[:, 5] = 0.0
        yield slice(0, len(hidden)), logs

    monkeypatch.setattr(module, "log_distributions", sure)
    found = attack_losses(stack, note_beginnings(stack, Documents.of([np.full(4, 5)]), CONTEXT), 1, min_k=1.0)
    assert np.isfinite([found.nll, found.min_k, found.min_k_plus_plus]).all()


def test_a_note_in_several_segments_is_refused(stack: Stack) -> None:
    rows = lay_out_notes(stack, Documents.of(notes()), "packed", CONTEXT)
    with pytest.raises(ValueError, match="several segments"):
        attack_losses(stack, rows, 4)
