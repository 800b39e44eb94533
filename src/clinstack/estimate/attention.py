"""Attention on the meta device: what each kernel keeps for the backward pass, by PyTorch's own shapes of it.

transformers asks PyTorch for attention, and PyTorch picks a kernel by device, dtype and mask. On the meta device it
would always pick the plain one, which holds every score. So each kernel is called here by its own name.

::

    documents   float32 on a CPU, packed rows: clinstack's own (`clinstack.model.attention`)
    cpu         PyTorch's flash attention for CPUs, with a mask or without
    flash       FlashAttention 2 (Dao 2023): half precision, no mask, NVIDIA Ampere and later
    efficient   memory-efficient attention (Rabe and Staats 2021): any mask, which it takes as numbers
    math        all scores [rows, heads, tokens, tokens]: grouped heads without FlashAttention, dropout on a CPU
    eager       transformers' own, for bases that cap the scores (Gemma 2)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from clinstack.model.attention import documents_attention

NAME = "clinstack_estimate"
_LARGEST_FLASH_HEAD = 256


@dataclass(frozen=True)
class AttentionSetting:
    """What decides on the kernel.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    masked : bool
        Whether a mask keeps packed documents apart, which on CUDA and for half precision has a row and a column for
        each token.
    has_flash : bool
        Whether the GPU has FlashAttention 2: compute capability 8.0 and later.
    cast_to : torch.dtype or None
        What autocast casts queries, keys and values to.
    """

    device: str = "cpu"
    masked: bool = False
    has_flash: bool = True
    cast_to: torch.dtype | None = None


_setting = AttentionSetting()


@contextmanager
def attention_setting(setting: AttentionSetting) -> Iterator[None]:
    """Let layers whose attention is called `NAME` compute under a setting for a while."""
    global _setting
    before = _setting
    _setting = setting
    try:
        yield
    finally:
        _setting = before


def estimated_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend in the form in which transformers calls it; shapes as in `documents_attention`."""
    if _setting.cast_to is not None:
        query, key, value = (states.to(_setting.cast_to) for states in (query, key, value))
    causal = bool(getattr(module, "is_causal", True)) and query.shape[2] > 1
    window = kwargs.get("sliding_window")
    needs_mask = _setting.masked or key.shape[2] != query.shape[2] or (window is not None and window < key.shape[2])
    if kwargs.get("softcap") is not None:
        eager: Callable[..., tuple[Tensor, Tensor]] = sys.modules[type(module).__module__].__dict__[
            "eager_attention_forward"
        ]
        mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
        return eager(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    if (
        _setting.device == "cpu" and _setting.masked and query.dtype == torch.float32 and not dropout and causal
    ) and not (window is not None and window < query.shape[2]):
        lengths = torch.empty(1, 1, 1, query.shape[0], dtype=torch.int64, device=query.device)
        return documents_attention(module, query, key, value, lengths, scaling=scaling)
    groups = query.shape[1] // key.shape[1]
    flash = _setting.has_flash and query.dtype != torch.float32 and query.shape[-1] <= _LARGEST_FLASH_HEAD
    if groups > 1 and not needs_mask and _setting.device == "cuda" and not flash:
        # transformers hands grouped heads to PyTorch as they are, which only FlashAttention takes of its fast kernels.
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        output = _every_score(query.float(), key.float(), value.float(), None, dropout).to(query.dtype)
        return output.transpose(1, 2).contiguous(), None
    if groups > 1 and needs_mask:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    bias = None
    if needs_mask:
        # PyTorch turns a mask of booleans into numbers for the kernel, anew in each layer.
        bias = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    output = _kernel(query, key, value, bias, dropout, scaling, causal=causal and bias is None, flash=flash)
    return output.transpose(1, 2).contiguous(), None


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    scaling: float | None,
    *,
    causal: bool,
    flash: bool,
) -> Tensor:
    """Return attention's output, shape [rows, heads, tokens, size], by the kernel that PyTorch would take."""
    kernels: Any = torch.ops.aten
    output: Tensor
    if _setting.device == "cpu":
        if dropout:
            return _every_score(query, key, value, bias, dropout)
        output, _ = kernels._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scaling
        )
        return output
    if flash and bias is None:
        output, *_ = kernels._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scaling)
        return output
    if bias is not None:
        bias = bias.expand(query.shape[0], query.shape[1], -1, -1)
    output, *_ = kernels._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout, causal, scale=scaling
    )
    return output


def _every_score(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores = query @ key.transpose(2, 3)
    if bias is not None:
        scores = scores + bias
    return nn.functional.dropout(scores.softmax(-1), dropout) @ value


AttentionInterface.register(NAME, estimated_attention)
