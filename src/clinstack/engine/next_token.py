"""Cross-entropy of next tokens without the full logits, and with the gradient made in the same pass.

::

    hidden [tokens, size] ──┬─ chunk ─▶ logits [chunk, vocabulary] ─▶ softmax - target ─▶ gradient of the chunk
                            ├─ chunk ─▶        (the same memory)
                            └─ ...

The logits of a chunk are made once: their softmax minus the target, times the output layer's weights, is already the
gradient for the hidden states, so nothing of the vocabulary's size is kept or made again for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits at once: 256 tokens of a vocabulary of 32,000 on a CPU. Fewer are slower, more hardly faster."""


def next_token_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, cap: float | None, *, summed: bool
) -> Tensor:
    """Return the cross-entropy of labels under ``softmax(hidden @ weight.T + bias)``.

    Parameters
    ----------
    hidden : Tensor [tokens, size]
    weight, bias : Tensor [vocabulary, size], Tensor [vocabulary] or None
        Of the output layer; they get gradients where they require them.
    labels : int64 tensor [tokens]
    cap : float or None
        Logits are capped softly, ``cap * tanh(logits / cap)``.
    summed : bool
        The sum with gradients, else each token's loss without.

    Returns
    -------
    float32 tensor, a scalar or [tokens]
    """
    if summed and torch.is_grad_enabled():
        total: Tensor = _NextTokenLoss.apply(hidden, weight, bias, labels, cap)  # type: ignore[no-untyped-call]
        return total
    with torch.no_grad():
        parts = [losses for losses, _, _ in _chunks(hidden, weight, bias, labels, cap, gradients=False)]
        each = torch.cat([hidden.new_zeros(0, dtype=torch.float32), *parts])
    return each.sum() if summed else each


class _NextTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, cap: float | None
    ) -> Tensor:
        _, of_weight, of_bias, *_ = ctx.needs_input_grad
        gradients: list[Tensor | None] = [
            torch.empty_like(hidden),
            torch.zeros_like(weight) if of_weight else None,
            torch.zeros_like(bias) if bias is not None and of_bias else None,
        ]
        for_hidden, for_weight, for_bias = gradients
        assert for_hidden is not None
        total = hidden.new_zeros((), dtype=torch.float32)
        for losses, chunk, of_logits in _chunks(hidden, weight, bias, labels, cap, gradients=True):
            total += losses.sum()
            torch.mm(of_logits, weight.to(of_logits.dtype), out=for_hidden[chunk])
            if for_weight is not None:
                for_weight += of_logits.T @ hidden[chunk]
            if for_bias is not None:
                for_bias += of_logits.sum(0)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if gradient is None else gradient * of_total.to(gradient.dtype) for gradient in ctx.gradients]
        return (*scaled, None, None)


_kept: dict[torch.device, Tensor] = {}
"""Memory for logits, of the last call. glibc would take it anew from the system, page by page, at every step."""


def _scratch(like: Tensor, numbers: int) -> Tensor:
    """Return uninitialised memory that the next call gets again."""
    kept = _kept.get(like.device)
    if kept is None or kept.dtype != like.dtype or len(kept) < numbers or kept.is_inference() != like.is_inference():
        kept = _kept[like.device] = like.new_empty(numbers)
    return kept[:numbers]


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, cap: float | None, *, gradients: bool
) -> Any:
    """Yield for each chunk of tokens their losses, their place, and the gradient of their logits.

    The gradient stands in memory that the next chunk uses again.
    """
    limit = _LOGITS.get(hidden.device.type, _LOGITS["cuda"])
    size = max(1, min(len(hidden), limit // len(weight)))
    columns = weight.to(hidden.dtype).T
    buffer = _scratch(hidden, size * len(weight)).view(size, len(weight))
    for start in range(0, len(hidden), size):
        chunk = slice(start, min(start + size, len(hidden)))
        target = labels[chunk, None]
        out = buffer[: len(target)]
        torch.mm(hidden[chunk], columns, out=out)
        if bias is not None:
            out += bias
        slope = None
        if cap is not None:
            slope = 1 - out.div_(cap).tanh_().float().square()
            out *= cap
        # On a float32 model this is the buffer itself; half precision is left for the matrix products only.
        logits = out.float()
        chosen = logits.gather(1, target)
        largest = logits.amax(1)
        probabilities = torch._softmax(logits, 1, False, out=logits)
        # The largest probability is at least 1 / vocabulary, so its logarithm is safe where the target's is not.
        losses = largest - probabilities.amax(1).log() - chosen[:, 0]
        if gradients:
            probabilities.scatter_add_(1, target, torch.full_like(chosen, -1.0))
            if slope is not None:
                probabilities *= slope
        yield losses, chunk, probabilities.to(hidden.dtype)
