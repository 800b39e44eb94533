"""Document attention: equal to PyTorch's with a mask, in outputs and gradients, and used where it should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from clinstack.model import attention
from clinstack.model.attention import (
    attends_by_document,
    boundaries_mask,
    document_attention,
    documents_attention,
    use_document_attention,
)
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe


def positions(rows: list[list[int]]) -> Tensor:
    return torch.tensor([[place for length in row for place in range(length)] for row in rows])


def states(rows: int, heads: int, tokens: int, size: int = 8) -> Tensor:
    return torch.randn(rows, heads, tokens, size, requires_grad=True)


def by_mask(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> Tensor:
    """PyTorch's attention with a mask of all pairs of a row."""
    document = (position_ids == 0).cumsum(1)
    seen = (document[:, :, None] == document[:, None, :]) & torch.ones(2 * [position_ids.shape[1]]).tril().bool()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None]).transpose(1, 2)


@given(st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=4), min_size=1, max_size=3), st.sampled_from([1, 2]))
@settings(max_examples=20, deadline=None)
def test_documents_attend_as_with_a_mask_of_all_pairs(rows: list[list[int]], shared: int) -> None:
    width = max(sum(row) for row in rows)
    rows = [[*row, width - sum(row)] if sum(row) < width else row for row in rows]
    torch.manual_seed(sum(map(sum, rows)))
    query, key, value = (
        states(len(rows), 2, width),
        states(len(rows), 2 // shared, width),
        states(len(rows), 2 // shared, width),
    )
    position_ids = positions(rows)
    weights = torch.randn(len(rows), width, 2, 8)
    results = []
    mask = boundaries_mask(position_ids)
    assert mask.flatten().tolist() == [length for row in rows for length in row]
    for output in (
        documents_attention(torch.nn.Identity(), query, key, value, mask)[0],
        by_mask(query, key, value, position_ids),
    ):
        gradients = torch.autograd.grad((output * weights).sum(), [query, key, value])
        results.append([output, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_operator_keeps_pytorchs_rules_for_operators() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 70, 4, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(document_attention, (*inputs, torch.tensor([66, 4]), 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_take_pytorchs_attention_with_the_same_boundaries(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 4, dtype=dtype) for _ in range(3))
    position_ids = positions([[4, 5]])
    ours, _ = documents_attention(torch.nn.Identity(), query, key, value, boundaries_mask(position_ids))
    torch.testing.assert_close(ours, by_mask(query, key, value, position_ids))


def test_a_window_shorter_than_the_row_is_kept() -> None:
    torch.manual_seed(0)
    query, key, value = states(1, 2, 9), states(1, 2, 9), states(1, 2, 9)
    mask = boundaries_mask(positions([[9]]))
    module = torch.nn.Identity()
    whole, _ = documents_attention(module, query, key, value, mask, sliding_window=9)
    short, _ = documents_attention(module, query, key, value, mask, sliding_window=3)
    assert torch.allclose(whole[:, :3], short[:, :3], atol=1e-6)
    assert not torch.allclose(whole[:, 8], short[:, 8], atol=1e-3)
    alone = F.scaled_dot_product_attention(query[:, :, 8:], key[:, :, 6:], value[:, :, 6:]).transpose(1, 2)
    torch.testing.assert_close(short[:, 8:], alone)


def test_a_window_wider_than_every_document_needs_no_mask_however_long_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = states(1, 2, 9), states(1, 2, 9), states(1, 2, 9)
    mask = boundaries_mask(positions([[4, 5]]))
    plain, _ = documents_attention(torch.nn.Identity(), query, key, value, mask)
    monkeypatch.setattr("clinstack.model.attention._dense_mask", None)
    windowed, _ = documents_attention(torch.nn.Identity(), query, key, value, mask, sliding_window=5)
    assert torch.equal(windowed, plain)
    with pytest.raises(TypeError):
        documents_attention(torch.nn.Identity(), query, key, value, mask, sliding_window=4)


def test_a_stack_on_the_cpu_uses_it_and_gives_what_the_mask_gives(
    tiny_base: Path, perturbed: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", rank=4)]))
    assert attends_by_document(stack.network)
    torch.manual_seed(0)
    tokens = torch.randint(3, 300, (2, 100))
    position_ids = positions([[70, 30], [100]])
    calls: list[int] = []
    original = attention._blocks
    monkeypatch.setattr(attention, "_blocks", lambda lengths: calls.append(len(lengths)) or original(lengths))
    ours = stack.hidden_states(tokens, position_ids=position_ids)
    assert calls == [3, 3]  # a call for each layer, with three documents
    stack.network.set_attn_implementation("sdpa")
    assert not attends_by_document(stack.network)
    theirs = stack.hidden_states(tokens, position_ids=position_ids)
    assert len(calls) == 2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_capped_scores_keep_transformers_own_attention() -> None:
    network = Gemma2ForCausalLM(Gemma2Config(**SMALL))
    before = network.config._attn_implementation
    use_document_attention(network)
    assert network.config._attn_implementation == (attention.NAME if before == "sdpa" else before)
    if before == "sdpa":
        assert network.config.attn_logit_softcapping is None


def test_a_model_with_windows_keeps_documents_and_windows() -> None:
    torch.manual_seed(0)
    network = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6)).eval()
    tokens = torch.randint(0, 64, (1, 20))
    position_ids = positions([[12, 8]])
    with torch.inference_mode():
        theirs = network.model(tokens, position_ids=position_ids, use_cache=False).last_hidden_state
        use_document_attention(network)
        assert attends_by_document(network)
        mask = boundaries_mask(position_ids)
        ours = network.model(tokens, mask, position_ids=position_ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
