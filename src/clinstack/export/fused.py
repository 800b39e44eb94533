"""``fused``: all adapters of a stack in one ordinary LoRA on the plain base, with the stack's head.

::

    W x + B1 A1 x + B2 A2 x  =  W x + [B1 B2] [A1; A2] x          rank r1 + r2, nothing is rounded or left out

A layer that has less (only one of the adapters is there, or AdaLoRA has left it fewer ranks) is filled with zeros, so
that all layers have one rank. vLLM has kernels for certain ranks only; the rank is filled up to the next of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clinstack.errors import InputError
from clinstack.export.adapter import open_adapter, write_adapter
from clinstack.export.check import Measured, compare, padding_of, plain_outputs, probe_rows, stack_outputs
from clinstack.export.merged import refuse_reading
from clinstack.export.source import Source, loadable_name
from clinstack.model.factors import Factors, NotLowRankError, concatenated, factors_of, read_adapters
from clinstack.model.lineage import PEFT_PREFIX
from clinstack.model.stack import Stack

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM 0.33 takes for ``--max-lora-rank``."""


def write_fused(source: Source, folder: Path) -> Measured:
    """Write the adapter and compare.

    Raises
    ------
    InputError
        If the stack has no adapter, one is no product of factors, or the head reads what plain PEFT cannot give it.
    ExportError
        If outputs differ.
    """
    stack = source.stack
    _refuse(stack)
    factors = stack_factors(source)
    rank = filled_rank(factors.rank)
    layers = _same_everywhere(stack, factors)
    tensors = {}
    for name, (first, second) in layers.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = _filled(first, rank, 0)
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = _filled(second, rank, 1)
    write_adapter(folder, fused_config(stack, layers, rank), tensors, stack, loadable_name(stack.base))
    rows, padding = probe_rows(stack), padding_of(stack)
    model = open_adapter(folder, stack, source.dtype)
    found = plain_outputs(model, rows, padding, is_classifier=stack.task is not None)
    measured = compare(stack_outputs(stack, rows), found, "the folder, opened with plain PEFT,")
    facts = {"rank": rank, "ranks_in_use": factors.rank, "layers": len(layers)}
    return replace(measured, opened_with=f"peft, {type(model).__name__}", facts=facts)


def stack_factors(source: Source) -> Factors:
    """Return all adapters of a stack as one.

    Raises
    ------
    InputError
        If one is no product of factors.
    """
    read = read_adapters(source.folder, source.record, source.stack.base)
    try:
        return concatenated(*(factors_of(found, f"adapter {name!r}") for name, found in read.items()))
    except NotLowRankError as error:
        raise InputError(f"export: {error} It has no place in one LoRA; use --as merged or --as peft.") from None


def filled_rank(rank: int) -> int:
    """Return the next rank that vLLM has, or the same where it is above all of them."""
    return next((known for known in RANKS if known >= rank), rank)


def fused_config(stack: Stack, layers: dict[str, tuple[Tensor, Tensor]], rank: int) -> dict[str, Any]:
    """Return PEFT's configuration: alpha is the rank, so nothing is scaled."""
    targets = sorted({name.rsplit(".", 1)[-1] for name in layers})
    # An encoder has layers of these names outside of its transformer layers.
    outside = [name for name in _linear_layers(stack, targets) if name not in layers]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, exclude_modules=outside or None, bias="none")
    values: dict[str, Any] = config.to_dict()
    values["target_modules"] = targets
    values["exclude_modules"] = outside or None
    return values


def _refuse(stack: Stack) -> None:
    if not stack.adapters:
        raise InputError("export: the stack is a head on its base and has no adapter to fuse; use --as merged.")
    refuse_reading(stack, "fused adapter", has_own_config=False)


def _same_everywhere(stack: Stack, factors: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors with those of rank 0 in layers that are called alike and have none.

    PEFT finds layers by the end of their names, so an adapter on some of them would lack the tensors of the others.
    """
    layers = dict(factors.layers)
    if stack.is_encoder:
        return layers
    targets = sorted({name.rsplit(".", 1)[-1] for name in layers})
    for name, (inputs, outputs) in _linear_layers(stack, targets).items():
        if name not in layers:
            layers[name] = torch.zeros(0, inputs), torch.zeros(outputs, 0)
    return layers


def _linear_layers(stack: Stack, targets: list[str]) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the network's linear layers with these last names, by their plain names."""
    found = {}
    for name, module in stack.network.named_modules():
        plain = name.replace(".base_layer", "")
        if plain.rsplit(".", 1)[-1] in targets and ".lora_" not in name:
            if isinstance(module, nn.Linear):
                found[plain] = module.in_features, module.out_features
            elif isinstance(module, Conv1D):
                found[plain] = int(module.weight.shape[0]), int(module.weight.shape[1])
    return found


def _filled(factor: Tensor, rank: int, dimension: int) -> Tensor:
    """Return a factor with zeros up to a rank."""
    shape = list(factor.shape)
    shape[dimension] = rank - shape[dimension]
    return torch.cat([factor, factor.new_zeros(shape)], dimension)
