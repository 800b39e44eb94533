"""Whose a parameter of the network is, and what it is called where no adapter has been put around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peft.tuners.adaption_prompt.layer import _BaseAdaptedAttention
from torch import Tensor, nn
from transformers import PreTrainedModel

from clinstack.model.families import layers_of
from clinstack.model.lineage import PEFT_PREFIX
from clinstack.model.pooling import BY_CONVENTION, HeadInput

VIRTUAL_TOKENS = "virtual_tokens"
"""Name of the network's part that holds virtual tokens."""


def low_rank_owner(parameter: str) -> str | None:
    """Return the name of the low-rank adapter that a parameter belongs to, from ``….lora_A.<name>.weight``."""
    for mark in (".lora_", ".ranknum."):
        if mark in parameter:
            after = parameter.split(mark, 1)[1].split(".")
            return after[1] if mark == ".lora_" else after[0]
    return None


def is_adapters(parameter: str) -> bool:
    """Whether a parameter belongs to an adapter, and not to the base."""
    return (
        low_rank_owner(parameter) is not None
        or parameter.startswith(f"{VIRTUAL_TOKENS}.")
        or parameter.rsplit(".", 1)[-1].startswith("adaption_")
    )


def adapted_attentions(network: nn.Module) -> dict[str, nn.Module]:
    """Return the attention layers that carry adaption prompts, by their name in the network."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BaseAdaptedAttention)}


def plain_name(name: str, attentions: Iterable[str]) -> str:
    """Return the name that a tensor has where no other adapter is wrapped around its layer.

    ``attentions`` are the names of the network's `adapted_attentions`; finding them walks all modules, so it is done
    once for all tensors.
    """
    name = name.replace(".base_layer.", ".")
    for attention in attentions:
        name = name.replace(f"{attention}.model.", f"{attention}.")
    return name


def idle_tensors(weights: Mapping[str, Tensor], network: PreTrainedModel, reads: HeadInput) -> dict[str, Tensor]:
    """Return the weights of an adapter, named as in its file, for what the stack does not compute.

    That is every layer above the one that the head reads, and a pooler that an explicit pooling passes by.
    """
    if reads == BY_CONVENTION:
        return {}
    idle = {}
    layers, modules = layers_of(network)
    for key, tensor in weights.items():
        name = key.removeprefix(PEFT_PREFIX)
        if reads.layer is not None and name.startswith(f"{layers}."):
            above = int(name.removeprefix(f"{layers}.").split(".", 1)[0]) >= len(modules)
        else:
            above = reads.pooling != "auto" and ".pooler." in name
        if above:
            idle[key] = tensor
    return idle
