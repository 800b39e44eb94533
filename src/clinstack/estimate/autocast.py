"""Autocast without memory: a whole base that trains in float32 and computes in less.

PyTorch's autocast leaves tensors of the meta device as they are. What it would do to them is done here: linear layers
and attention compute in the lower precision, from copies of their inputs and weights, which autograd keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clinstack.model.stack import Stack


def autocast_dtype(stack: Stack) -> torch.dtype | None:
    """Return what a stack's layers are cast to; None where they compute in their own dtype.

    As `clinstack.engine.precision.forward_precision` decides it.
    """
    whole = any(adapter.trainable and adapter.method == "full" for adapter in stack.adapters)
    dtype: torch.dtype = getattr(torch, stack.dtype)
    return dtype if whole and dtype != torch.float32 else None


@contextmanager
def cast_layers(network: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Let linear layers compute in a dtype, also when they are computed again in the backward pass."""
    changed: list[Any] = []
    if dtype is not None:
        changed = [module for module in network.modules() if type(module) is nn.Linear]
    for layer in changed:
        layer.forward = _Cast(layer, dtype)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


class _Cast:
    def __init__(self, layer: nn.Linear, dtype: torch.dtype | None) -> None:
        self._layer = layer
        self._dtype = dtype

    def __call__(self, inputs: Tensor) -> Tensor:
        bias = None if self._layer.bias is None else self._layer.bias.to(self._dtype)
        return functional.linear(inputs.to(self._dtype), self._layer.weight.to(self._dtype), bias)
