"""Adapter methods: from a recipe's entry to PEFT's configuration."""

from __future__ import annotations

from peft import LoraConfig, PeftConfig
from torch import nn
from transformers import PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.base import backbone
from clinstack.recipe import AdapterRecipe


def linear_names(network: PreTrainedModel) -> list[str]:
    """Return the last parts of the names of all linear layers below the head, also of those that carry adapters."""
    names = set()
    for name, module in backbone(network).named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            names.add(name.removesuffix(".base_layer").rsplit(".", 1)[-1])
    return sorted(names)


def adapter_config(adapter: AdapterRecipe, network: PreTrainedModel) -> PeftConfig:
    """Return a new PEFT configuration for an adapter.

    Always a new object, because PEFT extends a configuration's lists in place. ``task_type`` is None, because the
    wrappers that PEFT chooses by it demand a head in every adapter's file.

    Raises
    ------
    InputError
        If a target module is not in the base.
    """
    known = linear_names(network)
    if adapter.target_modules == "all-linear":
        # PEFT's own "all-linear" would put an adapter on the classifier head too.
        targets = known
    else:
        targets = list(adapter.target_modules)
        missing = [target for target in targets if target not in known]
        if missing:
            raise InputError(
                f"adapters.{adapter.name}.target_modules: the base has no {missing[0]!r}; it has {', '.join(known)}."
            )
    return LoraConfig(
        task_type=None,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        bias="none",
    )
