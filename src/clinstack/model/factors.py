"""Low-rank adapters as plain factors: what is added to a layer's weights, W + B A, without PEFT around it.

::

    LoRA, rsLoRA     W + scaling B A               scaling: alpha / r, or alpha / sqrt(r), by layer
    AdaLoRA          W + scaling B diag(E) A       E that the budget has set to zero is left out

The scaling is folded into B and the singular values into A, so adapters one above the other are one adapter: the A's
below one another, the B's beside one another. Formulas as PEFT computes them: ``tuners/lora/layer.py`` and
``tuners/adalora/layer.py`` of PEFT 0.21.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clinstack.errors import InputError
from clinstack.model.base import Base
from clinstack.model.lineage import PEFT_PREFIX, AdapterSource, read_adapter, refuse_wrong_base

LOW_RANK_FACTORS = ("lora", "rslora", "adalora")
"""Methods that are nothing but factors."""
_FIRST_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter that leave the base's weights as they are; others subtract from them."""
_RANKNUM_OFFSET = 1e-5
"""What PEFT adds to AdaLoRA's rank before it divides by it."""


class NotLowRankError(InputError):
    """An adapter cannot be written as factors of the base's linear layers. The message says why."""


@dataclass(frozen=True)
class Factors:
    """What a low-rank adapter adds to the base's linear layers.

    Parameters
    ----------
    layers : dict of str to (Tensor [r, in], Tensor [out, r])
        A and B in float32 by the layer's name in the network, such as ``model.layers.0.self_attn.q_proj``. The layer
        adds ``x @ A.T @ B.T``; all scaling is in them. ``in`` and ``out`` are the layer's own, also where it keeps its
        weights transposed (GPT-2).
    """

    layers: dict[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """The largest rank of a layer; 0 without any."""
        return max((len(first) for first, _ in self.layers.values()), default=0)

    def negated(self) -> Factors:
        """Return what takes these factors away again."""
        return Factors({name: (first, -second) for name, (first, second) in self.layers.items()})

    def to(self, device: torch.device | str) -> Factors:
        """Return the same factors on a device."""
        return Factors({name: (first.to(device), second.to(device)) for name, (first, second) in self.layers.items()})


def factors_of(source: AdapterSource, key: str) -> Factors:
    """Return the factors of an adapter that was read from disk.

    Parameters
    ----------
    source : AdapterSource
        As `clinstack.model.lineage.read_adapter` returns it.
    key : str
        What it is called in messages.

    Raises
    ------
    NotLowRankError
        If its method is none of lora, rslora and adalora, or it adapts embeddings, biases or other layers than linear
        ones, or began by changing the base.
    InputError
        If a factor is missing.
    """
    config = source.config
    if source.method not in LOW_RANK_FACTORS or not isinstance(config, LoraConfig):
        raise NotLowRankError(f"{key}: {_ABOUT.get(source.method, 'it is no low-rank adapter')}.")
    _refuse_variants(config, key)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in source.weights.items():
        layer, factor = _layer_and_factor(name, key)
        found.setdefault(layer, {})[factor] = tensor.float()
    layers = {}
    for layer, parts in found.items():
        wanted = ("A", "B", "E") if isinstance(config, AdaLoraConfig) else ("A", "B")
        lacking = [part for part in wanted if part not in parts]
        if lacking:
            raise InputError(f"{key}: its file has no lora_{lacking[0]} for the layer {layer}.")
        if any(part.dim() != 2 for part in parts.values()):
            raise NotLowRankError(f"{key}: it adapts {layer}, which is no linear layer.")
        if isinstance(config, AdaLoraConfig):
            layers[layer] = _of_adalora(config, parts)
        else:
            layers[layer] = parts["A"], parts["B"] * _scaling(config, layer, len(parts["A"]))
    return Factors(layers)


def read_adapters(folder: Path, record: Mapping[str, Any], base: Base) -> dict[str, AdapterSource]:
    """Read the adapters of a saved stack from the base upwards, and verify what ``stack.json`` says of them.

    Parameters
    ----------
    folder : Path
        A Stack.
    record : mapping
        Its ``stack.json``.
    base : Base
        What they must have been trained on.

    Raises
    ------
    InputError
        If the base or an adapter is not the recorded one; the message says which.
    """
    if base.fingerprint != record["base"]["fingerprint"]:
        raise InputError(
            f"{folder}: the base {base.name} is not the one that this stack was built on "
            f"(fingerprint {base.fingerprint[:19]}, recorded {record['base']['fingerprint'][:19]})."
        )
    sources: dict[str, AdapterSource] = {}
    beneath: list[tuple[str, str]] = []
    for item in record["adapters"]:
        key = f"{folder}, adapter {item['name']}"
        source = read_adapter(folder / item["folder"], key)
        refuse_wrong_base(source, key, base, beneath)
        beneath.append((item["name"], source.fingerprint))
        sources[item["name"]] = source
    return sources


def concatenated(*factors: Factors) -> Factors:
    """Return one adapter that adds what all of them add: its rank in a layer is the sum of theirs."""
    names = list(dict.fromkeys(name for part in factors for name in part.layers))
    layers = {}
    for name in names:
        pairs = [part.layers[name] for part in factors if name in part.layers]
        layers[name] = torch.cat([first for first, _ in pairs]), torch.cat([second for _, second in pairs], 1)
    return Factors(layers)


def fold_into(network: nn.Module, factors: Factors) -> None:
    """Add ``B @ A`` to the weights of a network's layers, in place.

    The sum is computed in float32 and rounded to the weights' dtype, so only in float32 is it what the adapter adds.

    Raises
    ------
    InputError
        If the network lacks a layer, its shape differs, or its weights are quantised. Nothing is changed then.
    """
    changes = [(_weight(network, name, pair), _change(network, name, pair)) for name, pair in factors.layers.items()]
    with torch.no_grad():
        for weight, change in changes:
            weight.copy_(weight.float() + change.to(weight.device))


def check_layer(network: nn.Module, name: str, pair: tuple[Tensor, Tensor]) -> nn.Module:
    """Return the layer that a pair of factors belongs to.

    Raises
    ------
    InputError
        If the network has no linear layer of that name and shape.
    """
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        raise InputError(f"The base has no layer {name}, which the adapter changes.") from None
    shape = _shape(layer)
    if shape is None:
        raise NotLowRankError(f"The layer {name} is no linear layer ({type(layer).__name__}).")
    first, second = pair
    if (second.shape[0], first.shape[1]) != shape:
        raise InputError(
            f"The layer {name} has {shape[1]} inputs and {shape[0]} outputs; the adapter was made for "
            f"{first.shape[1]} and {second.shape[0]}."
        )
    return layer


def _shape(layer: nn.Module) -> tuple[int, int] | None:
    """Return a linear layer's outputs and inputs; None for any other."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, Conv1D):  # its weights are [in, out]
        return int(layer.weight.shape[1]), int(layer.weight.shape[0])
    return None


def _weight(network: nn.Module, name: str, pair: tuple[Tensor, Tensor]) -> Tensor:
    weight: Any = check_layer(network, name, pair).weight
    if not weight.is_floating_point():
        raise InputError(f"The weights of {name} are quantised ({weight.dtype}); adapters cannot be added to them.")
    return weight  # type: ignore[no-any-return]


def _change(network: nn.Module, name: str, pair: tuple[Tensor, Tensor]) -> Tensor:
    first, second = pair
    change = second @ first
    return change.T if isinstance(network.get_submodule(name), Conv1D) else change


_ABOUT = {
    "dora": "it is a DoRA, which divides by the norm of the whole layer, so it is more than a product of two factors",
    "adaption_prompt": "it is an adaption prompt, which stands beside the attention and changes no layer's weights",
    "full": "it is a fully fine-tuned model, whose changes have full rank",
    **{
        method: f"it holds virtual tokens ({method}), which stand before the text and change no layer's weights"
        for method in ("prefix", "prompt", "p_tuning")
    },
}
"""What methods are that are no factors."""


def _refuse_variants(config: LoraConfig, key: str) -> None:
    """Refuse what PEFT can do with a LoRA beside adding a product."""
    for field in dataclasses.fields(config):
        if field.metadata.get("is_lora_variant") and getattr(config, field.name):
            raise NotLowRankError(f"{key}: {field.name} makes it more than a product of two factors.")
    for name in ("lora_bias", "use_qalora", "layer_replication", "target_parameters", "trainable_token_indices"):
        if getattr(config, name, None):
            raise NotLowRankError(f"{key}: {name} changes more than the weights of linear layers.")
    if config.init_lora_weights not in _FIRST_WEIGHTS:
        raise NotLowRankError(
            f"{key}: it began by changing the base's weights (init_lora_weights: {config.init_lora_weights}); convert "
            "it to an ordinary LoRA with PEFT's path_initial_model_for_weight_conversion."
        )


def _layer_and_factor(name: str, key: str) -> tuple[str, str]:
    """Return a tensor's layer and which factor it is, from ``base_model.model.<layer>.lora_A.weight``."""
    match = re.fullmatch(r"(.+)\.lora_([ABE])(\.weight)?", name.removeprefix(PEFT_PREFIX))
    if match is not None:
        return match[1], match[2]
    if ".lora_embedding_" in name:
        raise NotLowRankError(f"{key}: it adapts the embeddings, which are looked up and no linear layer.")
    raise NotLowRankError(f"{key}: {name} is no factor of a linear layer.")


def _scaling(config: LoraConfig, layer: str, rank: int) -> float:
    alpha = _by_pattern(config.alpha_pattern or {}, layer, config.lora_alpha)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _by_pattern(pattern: Mapping[str, int], layer: str, default: float) -> float:
    """Return the value of the first pattern that is the end of a layer's name, as PEFT's ``get_pattern_key`` does."""
    return next((value for end, value in pattern.items() if re.match(rf"(.*\.)?({end})$", layer)), default)


def _of_adalora(config: AdaLoraConfig, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors of the ranks in use. PEFT divides by the rank that the layer began with, whatever is left."""
    singular = parts["E"]
    kept = (singular[:, 0] != 0).nonzero().flatten()
    alpha = config.lora_alpha if config.lora_alpha > 0 else float(config.init_r)
    scaling = alpha / (config.init_r + _RANKNUM_OFFSET)
    return parts["A"][kept] * singular[kept], parts["B"][:, kept] * scaling
