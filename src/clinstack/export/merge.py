"""Adapters folded into the weights of the layers that carry them.

LoRA, rsLoRA and AdaLoRA add a product of their factors to a layer's weights. DoRA rescales a layer by the norms of its
rows, and in a layer with other adapters beneath PEFT rescales what those add too; as every such layer is linear all the
same, its weights are then read off by giving it the unit vectors.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from clinstack.errors import InputError
from clinstack.model.methods.configs import LOW_RANK
from clinstack.model.stack import Stack

_UNITS = 512
"""Unit vectors that a layer reads at once."""


def merged_layers(stack: Stack, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of all layers that carry low-rank adapters, with those of the given names folded in.

    Returns
    -------
    dict of str to dict of str to Tensor
        By the layer's name: ``weight`` in float32 and in the shape in which the layer keeps it; ``bias`` where
        it has one.
    """
    others = [adapter.name for adapter in stack.adapters if adapter.name not in names]
    with ExitStack() as contexts, torch.no_grad():
        if others:
            contexts.enter_context(stack.switched_off(*others))
        return {name: _merged(layer) for name, layer in _outermost(stack.network)}


def refuse_unmergeable(stack: Stack, names: Collection[str], kind: str) -> None:
    """Raise an InputError for adapters that change no weights of the base."""
    for adapter in stack.adapters:
        if adapter.name in names and adapter.method not in (*LOW_RANK, "full"):
            what = "stands beside the attention" if adapter.method == "adaption_prompt" else "is tokens before the text"
            raise InputError(
                f"export: {adapter.name!r} is of the method {adapter.method}, which {what} and cannot be folded into "
                f"weights, so there is no {kind} of this stack; use --as peft."
            )


def unload(stack: Stack) -> PreTrainedModel:
    """Fold all low-rank adapters into a stack's network and take PEFT out of it; the stack cannot be used any more."""
    network = stack.network
    merged = merged_layers(stack, [adapter.name for adapter in stack.adapters])
    output = network.get_output_embeddings()
    for name, layer in _outermost(network):
        base: Any = layer.get_base_layer()
        is_tied = isinstance(base, nn.Embedding) and output is not None and output.weight is base.weight
        for key, tensor in merged[name].items():
            # New tensors: an output layer may share the old ones, which no adapter changed there.
            setattr(base, key, nn.Parameter(tensor, requires_grad=False))
        if is_tied:
            network.config.tie_word_embeddings = False
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, base)
    network.__dict__.pop("peft_config", None)
    return network


def _outermost(network: nn.Module) -> list[tuple[str, Any]]:
    """Return the low-rank layers that are in no other one: an AdaLoRA's are around a LoRA's."""
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    return [(name, module) for name, module in found if not name.endswith(".base_layer")]


def _merged(layer: Any) -> dict[str, Tensor]:
    base = layer.get_base_layer()
    chain = [layer]
    while isinstance(chain[-1].base_layer, LoraLayer):
        chain.append(chain[-1].base_layer)
    if any(name in part.lora_variant for part in chain for name in part.active_adapters):
        return _read_off(layer, base)
    weight = base.weight.detach().clone()
    for part in reversed(chain):
        for name in part.active_adapters:
            if name in part.lora_A or name in part.lora_embedding_A:
                weight += part.get_delta_weight(name).to(weight)
    bias = getattr(base, "bias", None)
    return {"weight": weight, **({} if bias is None else {"bias": bias.detach().clone()})}


def _read_off(layer: nn.Module, base: Any) -> dict[str, Tensor]:
    """Return the weights of a linear layer by what it makes of zero and of the unit vectors."""
    if isinstance(base, nn.Embedding):
        rows = torch.arange(base.num_embeddings)
        return {"weight": torch.cat([layer(part) for part in rows.split(_UNITS)]).detach().clone()}
    transposed = isinstance(base, Conv1D)
    inputs = base.weight.shape[0] if transposed else base.in_features
    zero = layer(torch.zeros(1, inputs))
    units = torch.eye(inputs).split(_UNITS)
    columns = torch.cat([layer(part) - zero for part in units])
    weight = columns if transposed else columns.T
    bias = getattr(base, "bias", None)
    return {"weight": weight.contiguous(), **({} if bias is None else {"bias": zero[0].clone()})}
