"""Quantised linear layers without memory: what they weigh, and what they hold while they compute.

A layer in 4 bits (Dettmers et al. 2023, QLoRA, section 3): two numbers in a byte; for each block of 64 a scale, which
with double quantisation is one byte, and for each 256 scales one of 4 bytes. In 8 bits (Dettmers et al. 2022,
LLM.int8()): a byte a number, and 4 bytes for each row. Before each product, forwards and backwards, bitsandbytes turns
the layer's weights back into the dtype it computes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clinstack.model.families import HEAD_MODULES, backbone, encoder_of

_BLOCK, _SCALES = 64, 256
_TABLES = 4 * (16 + 256 + 1)
"""NF4's 16 values, the 256 of the quantised scales, and their mean, in bytes."""


def quantized_names(network: nn.Module) -> set[str]:
    """Return the names of the linear layers that bitsandbytes would hold in fewer bits: all below head and output."""
    base: Any = network
    family = encoder_of(base.config)
    kept = (*HEAD_MODULES, *([family.block] if family and family.block else []))
    below = {id(module) for module in backbone(base).modules()}
    return {
        name
        for name, module in network.named_modules()
        if type(module) is nn.Linear
        and id(module) in below
        and not any(part in name for part in (".lora_", "virtual_tokens"))
        and not any(name == part or name.startswith(f"{part}.") for part in kept)
    }


def quantized_bytes(shape: torch.Size, quantize: str) -> tuple[int, int]:
    """Return the bytes of a layer's numbers, and of what says how to read them."""
    numbers = math.prod(shape)
    if quantize == "8bit":
        return numbers, 4 * shape[0]
    blocks = math.ceil(numbers / _BLOCK)
    return math.ceil(numbers / 2), blocks + 4 * math.ceil(blocks / _SCALES) + _TABLES


@contextmanager
def quantized_layers(network: nn.Module, quantize: str, dtype: str, device: str) -> Iterator[None]:
    """Let linear layers of a base hold, while they compute, what quantised ones would."""
    if quantize == "none":
        yield
        return
    changed: list[Any] = [network.get_submodule(name) for name in quantized_names(network)]
    scales = quantize == "4bit"
    for layer in changed:
        layer.forward = _Quantized(layer, scales)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


class _Quantized:
    def __init__(self, layer: nn.Linear, scales: bool) -> None:
        self._layer = layer
        self._scales = scales

    def __call__(self, inputs: Tensor) -> Tensor:
        result: Tensor = _Product.apply(inputs, self._layer.weight, self._scales)  # type: ignore[no-untyped-call]
        return result if self._layer.bias is None else result + self._layer.bias


class _Product(torch.autograd.Function):
    """A product with weights that are made for it, and dropped after it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, scales: bool) -> Tensor:
        ctx.weight, ctx.scales = weight, scales
        return functional.linear(inputs, _made(weight, inputs, scales))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient @ _made(ctx.weight, gradient, ctx.scales), None, None


def _made(weight: Tensor, like: Tensor, scales: bool) -> Tensor:
    """Return a layer's weights as numbers; on the way the scales of its blocks are numbers too."""
    if scales:
        of_blocks = like.new_empty(math.ceil(weight.numel() / _BLOCK), dtype=torch.float32)
        made = like.new_empty(weight.shape)
        del of_blocks
        return made
    return like.new_empty(weight.shape)
