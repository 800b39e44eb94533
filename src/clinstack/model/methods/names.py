"""Whose a parameter of the network is, and what it is called where no adapter has been put around it."""

from __future__ import annotations

from peft.tuners.adaption_prompt.layer import _BaseAdaptedAttention
from torch import nn

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


def plain_name(name: str, network: nn.Module) -> str:
    """Return the name that a tensor has where no other adapter is wrapped around its layer."""
    name = name.replace(".base_layer.", ".")
    for attention in adapted_attentions(network):
        name = name.replace(f"{attention}.model.", f"{attention}.")
    return name
