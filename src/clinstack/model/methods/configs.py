"""From a recipe's entry to PEFT's configuration, and back to the method's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from clinstack.errors import InputError
from clinstack.model.families import backbone, encoder_of, layers_of, projection_names
from clinstack.recipe import AdapterRecipe

LOW_RANK = ("lora", "dora", "rslora", "adalora")
VIRTUAL = ("prefix", "prompt", "p_tuning")


def linear_names(network: PreTrainedModel) -> list[str]:
    """Return the last parts of the names of all linear layers that adapters may be on, also where they are."""
    names = set()
    # Of an encoder its layers only: what is above them is read as the family has it.
    below = layers_of(network)[1] if encoder_of(network.config) else backbone(network)
    for name, module in below.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            names.add(name.removesuffix(".base_layer").rsplit(".", 1)[-1])
    return sorted(names)


def method_of(config: PeftConfig) -> str | None:
    """Return the method that a PEFT configuration is of; None for one that a stack cannot hold."""
    if isinstance(config, AdaLoraConfig):
        return "adalora"
    if isinstance(config, LoraConfig):
        return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
    kinds: dict[type[PeftConfig], str] = {
        AdaptionPromptConfig: "adaption_prompt",
        PrefixTuningConfig: "prefix",
        PromptEncoderConfig: "p_tuning",
        PromptTuningConfig: "prompt",
    }
    return kinds.get(type(config))


def refuse_method(name: str, method: str, network: PreTrainedModel) -> None:
    """Raise an InputError for a method that the base's family cannot carry."""
    if encoder_of(network.config) is not None and method not in (*LOW_RANK, "full"):
        raise InputError(
            f"adapters.{name}.method: {method} is for decoders, and {network.config.model_type} is an encoder; use "
            f"{', '.join(LOW_RANK)} or full."
        )


def adapter_config(adapter: AdapterRecipe, network: PreTrainedModel, tokenizer: Path | None = None) -> PeftConfig:
    """Return a new PEFT configuration for a new adapter of any method but ``full``.

    Always a new object, because PEFT extends a configuration's lists in place. ``task_type`` is None, because the
    wrappers that PEFT chooses by it demand a head in every adapter's file.

    Parameters
    ----------
    tokenizer : Path, optional
        The base's folder; asked for by a prompt with a text to begin with.

    Raises
    ------
    InputError
        If a target module is not in the base, or the base cannot carry the method.
    """
    refuse_method(adapter.name, adapter.method, network)
    if adapter.method in LOW_RANK:
        return _low_rank_config(adapter, network)
    if adapter.method == "adaption_prompt":
        return _adaption_config(adapter, network)
    values: dict[str, Any] = {"num_virtual_tokens": adapter.virtual_tokens, "num_transformer_submodules": 1}
    if adapter.encoder_hidden is not None:
        values["encoder_hidden_size"] = adapter.encoder_hidden
    if adapter.method == "prefix":
        return PrefixTuningConfig(**values, prefix_projection=adapter.projection)
    if adapter.method == "p_tuning":
        if adapter.encoder == "lstm":
            values |= {"encoder_num_layers": adapter.encoder_layers, "encoder_dropout": adapter.encoder_dropout}
        return PromptEncoderConfig(**values, encoder_reparameterization_type=adapter.encoder.upper())
    text: dict[str, Any] = {}
    if adapter.initial_text is not None:
        text = {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": adapter.initial_text,
            "tokenizer_name_or_path": str(tokenizer),
        }
    return PromptTuningConfig(**values, **text)


def _low_rank_config(adapter: AdapterRecipe, network: PreTrainedModel) -> LoraConfig:
    targets = _targets(adapter, network)
    shared: dict[str, Any] = {
        "task_type": None,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": targets,
        "bias": "none",
    }
    outside = _outside_layers(network, targets)
    if outside:
        shared["exclude_modules"] = outside
    if adapter.method == "adalora":
        return AdaLoraConfig(
            **shared,
            target_r=adapter.rank,
            init_r=adapter.initial_rank,
            tinit=adapter.warmup_steps,
            tfinal=adapter.final_steps,
            deltaT=adapter.allocate_every,
            beta1=adapter.beta,
            beta2=adapter.beta,
            orth_reg_weight=adapter.orthogonal,
            # The number of steps is known when training begins; `RankBudget` writes it here.
            total_step=adapter.warmup_steps + adapter.final_steps + 1,
        )
    for key in ("rank_pattern", "alpha_pattern"):
        _refuse_idle_patterns(adapter, key, getattr(adapter, key), targets, network)
    return LoraConfig(
        **shared,
        r=adapter.rank,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        use_dora=adapter.method == "dora",
        use_rslora=adapter.method == "rslora",
    )


def _targets(adapter: AdapterRecipe, network: PreTrainedModel) -> list[str]:
    known = linear_names(network)
    if adapter.target_modules == "all-linear":
        # PEFT's own "all-linear" would put an adapter on the classifier head too.
        return known
    key = f"adapters.{adapter.name}.target_modules"
    embeddings = _last_name(network, network.get_input_embeddings())
    output = _last_name(network, network.get_output_embeddings())
    names = projection_names(network.config)
    targets = list(
        dict.fromkeys(target if target in known else names.get(target, target) for target in adapter.target_modules)
    )
    for target in targets:
        if target == embeddings and adapter.method == "adalora":
            raise InputError(f"{key}: AdaLoRA has no form for embeddings; use lora, dora or rslora for {target!r}.")
        if target in known or target == embeddings:
            continue
        if target in ("lm_head", output):
            raise InputError(
                f"{key}: an adapter on the output layer {target!r} is not possible: the loss reads that layer's "
                "weights in chunks, and would pass the adapter by. Adapt the layers below, or the embeddings."
            )
        present = ", ".join([*known, *filter(None, [embeddings])])
        raise InputError(f"{key}: the base has no {target!r}; it has {present}.")
    return targets


def _outside_layers(network: PreTrainedModel, targets: list[str]) -> list[str]:
    """Return an encoder's linear layers outside of its transformer layers that are called like a target.

    BERT's pooler and RoBERTa's head have a layer ``dense`` each, as the transformer layers have.
    """
    if encoder_of(network.config) is None:
        return []
    layers = layers_of(network)[0]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets and not name.startswith(f"{layers}.")
    ]


def _last_name(network: PreTrainedModel, wanted: nn.Module | None) -> str | None:
    for name, module in network.named_modules():
        if wanted is not None and module is wanted:
            return str(name).removesuffix(".base_layer").rsplit(".", 1)[-1]
    return None


def _refuse_idle_patterns(
    adapter: AdapterRecipe, key: str, pattern: dict[str, int], targets: list[str], network: PreTrainedModel
) -> None:
    """Refuse a pattern that fits no layer with this adapter: PEFT would pass it by without a word."""
    layers = [name.removesuffix(".base_layer") for name, _ in network.named_modules()]
    layers = [name for name in layers if name.rsplit(".", 1)[-1] in targets]
    for wanted in pattern:
        try:
            fits = any(re.match(rf"(.*\.)?({wanted})$", name) for name in layers)
        except re.error:
            fits = False
        if not fits:
            raise InputError(
                f"adapters.{adapter.name}.{key}: {wanted!r} is the end of no layer's name that the adapter is on "
                f"({', '.join(targets)})."
            )


def _adaption_config(adapter: AdapterRecipe, network: PreTrainedModel) -> AdaptionPromptConfig:
    refuse_adaption_prompt(adapter.name, network)
    layers = int(network.config.num_hidden_layers)
    if adapter.adapter_layers > layers:
        raise InputError(
            f"adapters.{adapter.name}.adapter_layers: {adapter.adapter_layers} are more than the base's {layers} "
            f"layers; use at most {layers}."
        )
    return AdaptionPromptConfig(
        task_type=None, adapter_len=adapter.adapter_length, adapter_layers=adapter.adapter_layers
    )


def refuse_adaption_prompt(name: str, network: PreTrainedModel) -> None:
    """Raise an InputError for a base whose attention PEFT cannot give adaption prompts."""
    kind = network.config.model_type
    if kind not in TRANSFORMERS_MODEL_CONFIG:
        raise InputError(
            f"adapters.{name}.method: adaption_prompt exists for {', '.join(sorted(TRANSFORMERS_MODEL_CONFIG))}; "
            f"the base is a {kind}. Use lora or prefix."
        )
