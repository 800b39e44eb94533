"""The loss of next tokens in chunks: values and all gradients are those of the full logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clinstack.engine import next_token
from clinstack.engine.next_token import next_token_loss

TOKENS, SIZE, VOCABULARY = 23, 8, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(next_token._LOGITS, "cpu", 5 * VOCABULARY)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, SIZE, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, SIZE, requires_grad=True)
    bias = torch.randn(VOCABULARY, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, VOCABULARY, (TOKENS,))


def plainly(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, cap: float | None) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_those_of_the_full_logits(cap: float | None, with_bias: bool) -> None:
    hidden, weight, bias, labels = inputs()
    used = [hidden, weight, bias] if with_bias else [hidden, weight]
    ours = next_token_loss(hidden, weight, bias if with_bias else None, labels, cap, summed=True)
    theirs = plainly(hidden, weight, bias if with_bias else None, labels, cap)
    torch.testing.assert_close(ours, theirs.sum())
    each = next_token_loss(hidden, weight, bias if with_bias else None, labels, cap, summed=False)
    torch.testing.assert_close(each, theirs)
    assert not each.requires_grad
    # Scaled, as accumulation does it, so that the gradient from above counts too.
    for one, other in zip(
        torch.autograd.grad(ours / 7, used), torch.autograd.grad(theirs.sum() / 7, used), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, _, labels = inputs()
    weight.requires_grad_(False)
    next_token_loss(hidden, weight, None, labels, None, summed=True).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is None


def test_a_target_of_vanishing_probability_has_a_finite_loss() -> None:
    hidden = torch.tensor([[300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    loss = next_token_loss(hidden, weight, None, torch.tensor([1]), None, summed=True)
    assert float(loss) == pytest.approx(600.0)


def test_half_precision_is_left_for_matrix_products_only() -> None:
    hidden, weight, _, labels = inputs(torch.bfloat16)
    ours = next_token_loss(hidden, weight, None, labels, None, summed=True)
    theirs = plainly(hidden.float(), weight, None, labels, None).sum()
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(float(theirs), rel=0.01)
    (gradient,) = torch.autograd.grad(ours, [hidden])
    assert gradient.dtype == torch.bfloat16


def test_nothing_to_predict_is_no_loss() -> None:
    hidden, weight, _, labels = inputs()
    loss = next_token_loss(hidden[:0], weight, None, labels[:0], None, summed=True)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == 0
    assert next_token_loss(hidden[:0], weight, None, labels[:0], None, summed=False).shape == (0,)
