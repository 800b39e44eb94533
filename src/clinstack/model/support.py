"""What a base supports of a recipe, said from ``config.json`` and the tokenizer before any weight is read.

The architecture is built on PyTorch's meta device: it has names and shapes, and takes no memory. So a recipe for a base
of 70 billion parameters is checked, and its trainable parameters are counted, in a second on any machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.base import Base, locate_base, refuse_unknown_architecture, refuse_without_head
from clinstack.model.config import is_quantised, load_config
from clinstack.model.families import encoder_of, head_parameters, is_heads, projection_names
from clinstack.model.lineage import CONFIG_FILE, PEFT_PREFIX, find_adapter_folder
from clinstack.model.methods import adapter_config, linear_names
from clinstack.model.methods.configs import LOW_RANK
from clinstack.model.pooling import BY_CONVENTION, HeadInput
from clinstack.model.quantize import refuse_quantizing
from clinstack.model.tokenizer import tokenizer_repairs
from clinstack.recipe import AdapterRecipe, FinetuneRecipe, InstructRecipe, PretrainRecipe, TrainingStageRecipe

_VIRTUAL = ("prefix", "prompt", "p_tuning")
ENCODER = "encoder"
"""Stem of the file beside virtual tokens with the network that computes them while they train."""


@dataclass(frozen=True)
class Part:
    """What a recipe puts on its base.

    Parameters
    ----------
    name : str
        The adapter's, or ``head``.
    what : str
        Its method, or where it is read from.
    parameters : int
    trainable : bool
    """

    name: str
    what: str
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class Support:
    """What a recipe and its base come to.

    Parameters
    ----------
    base : Base
        Its fingerprint is empty: no weight was read.
    architecture : str
        Name of the class in transformers.
    parameters : int
        Of the base, without adapters and head.
    parts : tuple of Part
        Adapters in order, then the head of a classifier.
    notes : tuple of str
        What a person should know before training, one sentence each.
    """

    base: Base
    architecture: str
    parameters: int
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def trainable(self) -> int:
        """Parameters that the stage trains."""
        return sum(part.parameters for part in self.parts if part.trainable)


def check_support(recipe: TrainingStageRecipe, classes: int | None = None) -> Support:
    """Check that a recipe's base supports what the recipe asks of it, reading no weights.

    Parameters
    ----------
    classes : int or None
        Outputs of the head; None for a causal language model.

    Raises
    ------
    InputError
        If it does not; with the key and the remedy.
    """
    base = locate_base(recipe.base)
    config = load_config(base)
    refuse_quantizing(base, config, recipe.quantize)
    reads = HeadInput(recipe.pooling, recipe.layer) if isinstance(recipe, FinetuneRecipe) else BY_CONVENTION
    refuse_unknown_architecture(base, config, classes)
    reads.keep_layers(base.name, config)
    network = _on_meta(base, config, classes, reads)
    if recipe.training.gradient_checkpointing:
        _refuse_checkpointing(recipe, base, network)
    parts = []
    for index, adapter in enumerate(recipe.adapters):
        key = f"adapters.{index} ({adapter.name})"
        if adapter.path is not None:
            parts.append(_read_part(adapter, key))
            continue
        if adapter.method == "full" and (recipe.quantize != "none" or is_quantised(config)):
            raise InputError(f"{key}: full fine-tuning needs the base's own weights; set quantize: none, or use lora.")
        parts.append(_new_part(adapter, key, base, config, classes, reads))
    _refuse_long_rows(recipe, base, config)
    if classes is not None:
        head = sum(parameter.numel() for parameter in head_parameters(network).values())
        parts.append(Part("head", f"{classes} outputs", head, True))
    below = _size_below_head(network, classes)
    notes = (*tokenizer_repairs(base), *_notes(recipe, network))
    return Support(base, type(network).__name__, below, tuple(parts), notes)


def _on_meta(base: Base, config: PreTrainedConfig, classes: int | None, reads: HeadInput) -> PreTrainedModel:
    """Build the architecture without memory."""
    if classes is not None:
        config.num_labels = classes
    kind: Any = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: PreTrainedModel = kind.from_config(config)
    except (ValueError, ImportError) as error:
        raise InputError(f"base: {base.name}: {str(error).strip().splitlines()[0]}") from None
    finally:
        transformers_logging.set_verbosity(before)
    if classes is not None:
        reads.drop_unread(network)
        refuse_without_head(base, network)
    return network


def _refuse_checkpointing(recipe: TrainingStageRecipe, base: Base, network: PreTrainedModel) -> None:
    key = "training.gradient_checkpointing"
    if not network.supports_gradient_checkpointing:
        raise InputError(f"{key}: {base.name} ({type(network).__name__}) cannot do it; set it to false.")
    for adapter in recipe.adapters:
        if adapter.path is None and adapter.method == "prefix":
            raise InputError(
                f"{key}: the prefix {adapter.name!r} lies in the cache, which is off while layers are computed again; "
                "set it to false, or use prompt or p_tuning."
            )


def _new_part(
    adapter: AdapterRecipe, key: str, base: Base, config: PreTrainedConfig, classes: int | None, reads: HeadInput
) -> Part:
    """Count a new adapter's parameters by putting it on the architecture, which also refuses one that does not fit."""
    network = _on_meta(base, config, classes, reads)
    if adapter.method == "full":
        return Part(adapter.name, "full: the base's own weights", _size_below_head(network, classes), True)
    # The text of a prompt decides its first values, not its size.
    shape = adapter.model_copy(update={"initial_text": None})
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            placed = PeftModel(network, adapter_config(shape, network), adapter_name=adapter.name)
        except (ValueError, TypeError) as error:
            raise InputError(f"{key}: it does not fit the base: {str(error).splitlines()[0]}") from None
    count = sum(parameter.numel() for parameter in placed.parameters() if parameter.requires_grad)
    return Part(adapter.name, _described(adapter), count, True)


def _size_below_head(network: PreTrainedModel, classes: int | None) -> int:
    return sum(
        parameter.numel() for name, parameter in network.named_parameters() if classes is None or not is_heads(name)
    )


def _described(adapter: AdapterRecipe) -> str:
    """Return the method and what shapes it."""
    if adapter.method in _VIRTUAL:
        encoder = (
            f", {adapter.encoder}" if adapter.method == "p_tuning" else ", projected" if adapter.projection else ""
        )
        return f"{adapter.method}: {adapter.virtual_tokens} virtual tokens{encoder}"
    if adapter.method == "adaption_prompt":
        return f"{adapter.method}: {adapter.adapter_length} tokens in {adapter.adapter_layers} layers"
    targets = adapter.target_modules if isinstance(adapter.target_modules, str) else ", ".join(adapter.target_modules)
    return f"{adapter.method}: rank {adapter.rank} on {targets}"


def _read_part(adapter: AdapterRecipe, key: str) -> Part:
    """Count the parameters in a saved adapter's files by their headers."""
    folder = find_adapter_folder(Path(str(adapter.path)), key)
    count = 0
    for file in folder.glob("*.safetensors"):
        if file.stem == ENCODER:
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                names = [name for name in opened.keys() if not is_heads(name.removeprefix(PEFT_PREFIX))]  # noqa: SIM118
                count += sum(prod(opened.get_slice(name).get_shape()) for name in names)
        except SafetensorError:
            raise InputError(f"{key}: {file} is damaged (not a whole safetensors file).") from None
    return Part(adapter.name, f"from {adapter.path}", count, adapter.is_trainable)


def _refuse_long_rows(recipe: TrainingStageRecipe, base: Base, config: PreTrainedConfig) -> None:
    """Refuse rows that, with the virtual tokens before them, have more positions than the base was made for."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is None:
        return
    family = encoder_of(config)
    if family is not None and family.offset_positions:
        most -= config.pad_token_id + 1
    if isinstance(recipe, PretrainRecipe):
        key, length = "context", recipe.context
    elif isinstance(recipe, FinetuneRecipe | InstructRecipe):
        key, length = "max_tokens", recipe.max_tokens
    else:
        return
    virtual = sum(_virtual_tokens(adapter) for adapter in recipe.adapters)
    if length + virtual > most:
        before = f" and {virtual} virtual tokens" if virtual else ""
        raise InputError(
            f"{key}: {length} tokens{before} are more than the {most} positions of {base.name}; "
            f"set {key} to {most - virtual} or less."
        )


def _virtual_tokens(adapter: AdapterRecipe) -> int:
    if adapter.path is None:
        return adapter.virtual_tokens if adapter.method in _VIRTUAL else 0
    file = find_adapter_folder(Path(adapter.path), f"adapters ({adapter.name})") / CONFIG_FILE
    try:
        return int(read_json(file).get("num_virtual_tokens") or 0) if file.is_file() else 0
    except ValueError:
        raise InputError(f"{file} is damaged (not JSON).") from None


def _notes(recipe: TrainingStageRecipe, network: PreTrainedModel) -> Iterator[str]:
    virtual = [adapter.name for adapter in recipe.adapters if _virtual_tokens(adapter)]
    if virtual and isinstance(recipe, PretrainRecipe | InstructRecipe) and recipe.layout == "packed":
        what = "document" if isinstance(recipe, PretrainRecipe) else "example"
        yield (
            f"The virtual tokens of {virtual[0]} cannot keep packed {what}s apart: one {what} in each row instead, "
            "in batches of similar lengths (layout: bucketed)."
        )
    names = projection_names(network.config)
    for adapter in recipe.adapters:
        if adapter.path is None and adapter.method in LOW_RANK and adapter.target_modules != "all-linear":
            called = [name for name in adapter.target_modules if name in names and name not in linear_names(network)]
            if called:
                own = " and ".join(dict.fromkeys(names[name] for name in called))
                yield f"{adapter.name}: {' and '.join(called)} of the recipe are called {own} in this base."
    if recipe.quantize != "none":
        kept = "embeddings, norms and head" if isinstance(recipe, FinetuneRecipe) else "embeddings, norms and output"
        yield f"The base's linear layers are held in {recipe.quantize[0]} bits; {kept} stay {recipe.dtype}."
