"""A stack without memory: the real code's modules on PyTorch's meta device, which has shapes and no numbers.

Names, adapters and what trains are those of the real stack, so its parameters are counted and not computed by formulas.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from clinstack.errors import InputError
from clinstack.estimate.architectures import Architecture
from clinstack.model.base import Base, refuse_unknown_architecture, refuse_without_head
from clinstack.model.building import Adapter, Parts
from clinstack.model.config import is_quantised
from clinstack.model.families import head_parameters, is_heads
from clinstack.model.lineage import CONFIG_FILE, find_adapter_folder
from clinstack.model.methods import method_of
from clinstack.model.methods.place import place
from clinstack.model.methods.placed import Placed
from clinstack.model.pooling import BY_CONVENTION, HeadInput
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.recipe import PRESETS, AdapterRecipe, FinetuneRecipe, TrainingStageRecipe
from clinstack.recipe.adapters import SHAPE_KEYS
from clinstack.tasks import Task


class DryStack(Stack):
    """A `Stack` on the meta device: no tokenizer, no weights, nothing to save."""

    def __init__(self, parts: Parts) -> None:  # the tokenizer that a Stack opens is not needed, and may be far away
        self.base = parts.base
        self.network = parts.network
        self.adapters = parts.adapters
        self.task = parts.task
        self.dtype = parts.dtype
        self.quantize = parts.quantize
        self.max_tokens = 0
        self.reading = Reading()
        self.reads = parts.reads
        self.calibration = None
        self._placed = parts.placed
        self.settle()

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Return the tensors of an adapter that can be trained, by their names in the network."""
        own = set(self.placed(name).parameter_names())
        return {key: parameter for key, parameter in self.network.named_parameters() if key in own}

    def base_parameters(self) -> int:
        """Return how many parameters the base has, without adapters and head."""
        adapters = {id(p) for a in self.adapters if a.method != "full" for p in self._all_of(a.name)}
        return sum(
            parameter.numel()
            for name, parameter in self.network.named_parameters()
            if id(parameter) not in adapters and not (self.task is not None and is_heads(name))
        )

    def _all_of(self, name: str) -> list[nn.Parameter]:
        placed = self.placed(name)
        return [parameter for key, parameter in self.network.named_parameters() if placed.owns(key)]

    def is_base(self, parameter: str) -> bool:
        """Whether the network's parameter of that name is the frozen base's."""
        is_head = self.task is not None and is_heads(parameter)
        return not is_head and not any(placed.owns(parameter) for placed in self._placed)


def build_dry_stack(
    recipe: TrainingStageRecipe, architecture: Architecture, classes: int | None, depth: int | None = None
) -> DryStack:
    """Build a recipe's stack without memory.

    Parameters
    ----------
    classes : int or None
        Outputs of the head; None for a causal language model.
    depth : int, optional
        With so many layers only, to tell what each of them adds.

    Raises
    ------
    InputError
        If the base does not support what the recipe asks of it, with the key and the remedy.
    """
    base = Base(architecture.name, Path(), "")
    config = architecture.config()
    reads = HeadInput(recipe.pooling, recipe.layer) if isinstance(recipe, FinetuneRecipe) else BY_CONVENTION
    refuse_unknown_architecture(base, config, classes)
    if recipe.quantize != "none" and is_quantised(config):
        raise InputError(f"quantize: the files of {base.name} are quantised already; use quantize: none.")
    reads.keep_layers(base.name, config)
    HeadInput(layer=depth).keep_layers(base.name, config)
    described = [describe_adapter(adapter, index) for index, adapter in enumerate(recipe.adapters)]
    trains_base = any(adapter.method == "full" for adapter in described) and recipe.quantize == "none"
    network = _network_on_meta(base, config, "float32" if trains_base else recipe.dtype, classes, reads)
    placed: list[Placed] = []
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in described:
            placed.append(place(adapter, None, network, base, placed, classes, recipe.quantize, reads))
    records = [Adapter(a.name, a.method, a.is_trainable, True, False) for a in described]
    task = None if classes is None else Task("estimate", "multilabel", tuple(map(str, range(classes))))
    return DryStack(Parts(base, network, tuple(placed), tuple(records), task, recipe.dtype, recipe.quantize, reads))


def describe_adapter(adapter: AdapterRecipe, index: int) -> AdapterRecipe:
    """Return an adapter as if it were new: one that is read from a folder by its configuration.

    Raises
    ------
    InputError
        If it is read from a folder that is not there, or of a method that a stack cannot hold.
    """
    if adapter.path is None:
        # The text of a prompt decides its first values, not its size.
        return adapter.model_copy(update={"initial_text": None})
    key = f"adapters.{index} ({adapter.name})"
    changes: dict[str, Any] = {"path": None, "trainable": adapter.is_trainable}
    if not Path(adapter.path).exists() and (planned := planned_adapter(adapter.path)) is not None:
        shape = planned[1].model_dump(include={"method", *SHAPE_KEYS})
        return adapter.model_copy(update={**shape, **changes, "initial_text": None})
    folder = find_adapter_folder(Path(adapter.path), key)
    if not (folder / CONFIG_FILE).is_file():
        return adapter.model_copy(update={**changes, "method": "full"})
    config = PeftConfig.from_pretrained(str(folder))
    method = method_of(config)
    if method is None:
        raise InputError(f"{key}: {folder} holds a {config.peft_type}, which a stack cannot hold.")
    return adapter.model_copy(update={**changes, "method": method, **_shape_of(config)})


@lru_cache
def planned_adapter(run: str) -> tuple[str, AdapterRecipe] | None:
    """Return the preset whose Run has this path, and its one new adapter: what the path will hold once it has run."""
    for file in sorted(PRESETS.rglob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        adapters: list[dict[str, Any]] = values.get("adapters") or []
        if values.get("run") == run and len(adapters) == 1 and "path" not in adapters[0]:
            name = str(file.relative_to(PRESETS).with_suffix(""))
            return name, AdapterRecipe.model_validate(adapters[0])
    return None


def _shape_of(config: Any) -> dict[str, Any]:
    """Return a PEFT configuration in the recipe's words, as far as it decides sizes."""
    if hasattr(config, "lora_alpha"):
        targets = config.target_modules
        return {
            "rank": config.r,
            "initial_rank": getattr(config, "init_r", 12),
            "target_modules": targets if isinstance(targets, str) else tuple(sorted(targets or ())),
            "rank_pattern": dict(config.rank_pattern),
        }
    if hasattr(config, "adapter_len"):
        return {"adapter_length": config.adapter_len, "adapter_layers": config.adapter_layers}
    return {
        "virtual_tokens": config.num_virtual_tokens,
        "encoder_hidden": getattr(config, "encoder_hidden_size", None),
        "encoder": str(getattr(config, "encoder_reparameterization_type", "mlp")).rsplit(".", 1)[-1].lower(),
        "encoder_layers": getattr(config, "encoder_num_layers", 2),
        "projection": getattr(config, "prefix_projection", False),
    }


def _network_on_meta(
    base: Base, config: PreTrainedConfig, dtype: str, classes: int | None, reads: HeadInput
) -> PreTrainedModel:
    if classes is not None:
        config.num_labels = classes
    kind: Any = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: PreTrainedModel = kind.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, ImportError) as error:
        raise InputError(f"base: {base.name}: {str(error).strip().splitlines()[0]}") from None
    finally:
        transformers_logging.set_verbosity(before)
    network.config.use_cache = False
    if classes is not None:
        reads.drop_unread(network)
        refuse_without_head(base, network)
        for parameter in head_parameters(network).values():
            parameter.data = parameter.data.float()
    return network


def count(parameters: Sequence[nn.Parameter]) -> int:
    """Return how many numbers parameters hold."""
    return sum(parameter.numel() for parameter in parameters)
