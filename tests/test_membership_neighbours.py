"""Neighbours of notes: a few tokens replaced by what the base expects, and their losses against a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clinstack.audit.neighbours import CANDIDATES, SHARE, Replacements, draw_replacements, neighbour_losses
from clinstack.engine.attack_losses import attack_losses, note_beginnings
from clinstack.engine.instruction_tuning import lay_out_pairs
from clinstack.model.stack import Stack
from clinstack.tokens.documents import Documents
from clinstack.tokens.layout import NoteRows
from clinstack.tokens.prompts import EncodedPairs, EncodedPrompts

CONTEXT, NEIGHBOURS = 24, 3
LENGTHS = (40, 3, 12, 22, 0)


@pytest.fixture(scope="module")
def stack(clinical: Path) -> Stack:
    return Stack.load(clinical)


@pytest.fixture
def rows(stack: Stack) -> NoteRows:
    random = np.random.default_rng(0)
    return note_beginnings(stack, Documents.of([random.integers(3, 300, length) for length in LENGTHS]), CONTEXT)


def texts(rows: NoteRows, found: Replacements, note: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    whole = rows.documents[note]
    changed = []
    for places, tokens in zip(found.places[note], found.tokens[note], strict=True):
        changed.append(whole.copy())
        changed[-1][places] = tokens
    return whole, changed


def test_a_share_of_the_tokens_is_replaced_by_what_the_base_expects(stack: Stack, rows: NoteRows) -> None:
    with stack.switched_off():
        found = draw_replacements(stack, rows, 2, NEIGHBOURS, seed=0)
        for note, length in enumerate(LENGTHS[:-1]):
            whole, changed = texts(rows, found, note)
            free = min(length, CONTEXT)
            with torch.no_grad():
                logits = stack.network(input_ids=torch.tensor(whole)[None]).logits[0].clone()
            logits[:, stack.tokenizer.all_special_ids] = -torch.inf
            for other in changed:
                places = np.flatnonzero(whole != other)
                assert len(places) == max(1, round(SHARE * free))
                # Never the begin token, nor the end token, nor what lies behind the context.
                assert places.min() >= 1
                assert places.max() <= free
                for place in places:
                    best = logits[place - 1].clone()
                    best[whole[place]] = -torch.inf
                    assert other[place] in best.topk(CANDIDATES).indices
        assert found.places[-1].shape == (NEIGHBOURS, 0)  # only an end token to predict


def test_neighbours_depend_on_the_seed_and_not_on_the_batches(stack: Stack, rows: NoteRows) -> None:
    one, same, other = (
        draw_replacements(stack, rows, size, NEIGHBOURS, seed) for size, seed in ((1, 4), (8, 4), (8, 5))
    )
    for note in range(len(LENGTHS)):
        np.testing.assert_array_equal(one.places[note], same.places[note])
        np.testing.assert_array_equal(one.tokens[note], same.tokens[note])
    assert any(not np.array_equal(same.places[note], other.places[note]) for note in range(len(LENGTHS)))
    # The neighbours of a note differ from each other.
    assert len({tuple(places) for places in one.places[0].tolist()}) == NEIGHBOURS


def test_losses_are_those_of_the_changed_texts(stack: Stack, rows: NoteRows) -> None:
    found = draw_replacements(stack, rows, 2, NEIGHBOURS, seed=0)
    losses = neighbour_losses(stack, rows, found, 2)
    for note in range(len(LENGTHS)):
        _, changed = texts(rows, found, note)
        each = []
        for text in changed:
            ids = torch.tensor(text[: CONTEXT + 1])[None]
            with torch.no_grad():
                logs = torch.log_softmax(stack.network(input_ids=ids).logits[0, :-1], -1)
            each.append(-float(logs.gather(1, ids[0, 1:, None]).sum()))
        assert losses[note] == pytest.approx(np.mean(each), rel=1e-4)
    # Nothing replaced, nothing changed.
    assert losses[-1] == pytest.approx(attack_losses(stack, rows, 2).nll[-1])


def test_prompts_of_answers_stay(stack: Stack) -> None:
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 300, length).tolist() for length in (5, 11)]
    answers = [[*random.integers(3, 300, 8).tolist(), 2], [7, 2]]
    rows = lay_out_pairs(stack, EncodedPairs(EncodedPrompts(prompts, {}), answers), "packed", CONTEXT)
    found = draw_replacements(stack, rows, 2, NEIGHBOURS, seed=0)
    for note, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert found.places[note].min() >= len(prompt)
        assert found.places[note].max() < len(prompt) + len(answer) - 1
    assert (neighbour_losses(stack, rows, found, 2) != attack_losses(stack, rows, 2).nll).all()
