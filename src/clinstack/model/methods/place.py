"""Put an adapter of any method into a network."""

from __future__ import annotations

from collections.abc import Sequence

from peft import AdaptionPromptConfig, LoraConfig
from transformers import PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.base import Base
from clinstack.model.lineage import AdapterSource
from clinstack.model.methods.adaption_prompt import AdaptionPrompt
from clinstack.model.methods.configs import LOW_RANK, VIRTUAL, adapter_config, refuse_method
from clinstack.model.methods.full import Full
from clinstack.model.methods.low_rank import LowRank
from clinstack.model.methods.names import idle_tensors
from clinstack.model.methods.placed import Placed
from clinstack.model.methods.virtual_tokens import VirtualTokens
from clinstack.model.pooling import HeadInput
from clinstack.recipe import AdapterRecipe


def place(
    adapter: AdapterRecipe,
    source: AdapterSource | None,
    network: PreTrainedModel,
    base: Base,
    beneath: Sequence[Placed],
    classes: int | None,
    quantize: str,
    reads: HeadInput,
) -> Placed:
    """Put an adapter into a network on top of those that it has, with its weights if it was read.

    Raises
    ------
    InputError
        If it does not fit the base, or cannot be combined with what lies beneath.
    """
    name, trainable = adapter.name, adapter.is_trainable
    method = source.method if source else adapter.method
    refuse_method(name, method, network)
    idle = idle_tensors(source.weights, network, reads) if source else {}
    if idle and method == "adaption_prompt":
        raise InputError(
            f"layer: {name!r} is an adaption prompt of the whole base, whose layers are counted from the top; it does "
            "not fit a shorter one. Leave layer out, or use lora."
        )
    placed: Placed
    if method == "full":
        if beneath:
            raise InputError(
                f"adapters.{name}: full trains the base's own weights, so it is the first of a stack, and only once; "
                f"here {beneath[-1].name!r} lies beneath it."
            )
        if quantize != "none":
            raise InputError(
                f"adapters.{name}: full trains the base's own weights, and those of a base in {quantize} are not "
                "numbers that can be trained; use quantize: none, or lora."
            )
        placed = Full(name, trainable, network, base, classes, reads)
    else:
        config = source.config if source else adapter_config(adapter, network, base.folder)
        if method in LOW_RANK:
            assert isinstance(config, LoraConfig)
            _refuse_dora_with_dropout(name, trainable, config, beneath)
            if method == "dora" and quantize == "8bit":
                raise InputError(
                    f"adapters.{name}: a dora reads the base's weights to know their magnitudes, and PEFT leaves a "
                    "layer in 8 bits broken by that; use quantize: 4bit, or lora."
                )
            shared = next(
                (other.peft_model for other in beneath if isinstance(other, LowRank) and other.method != "adalora"),
                None,
            )
            placed = LowRank(name, method, trainable, network, config, None if method == "adalora" else shared)
        elif method in VIRTUAL:
            assert config is not None
            encoder = source.encoder if source else None
            placed = VirtualTokens(name, method, trainable, network, config, encoder, is_new=source is None)
        else:
            assert isinstance(config, AdaptionPromptConfig)
            placed = AdaptionPrompt(name, trainable, network, config)
    if source is not None:
        placed.idle = idle
        placed.load({key: tensor for key, tensor in source.weights.items() if key not in idle})
    return placed


def _refuse_dora_with_dropout(name: str, trainable: bool, config: LoraConfig, beneath: Sequence[Placed]) -> None:
    """Refuse what PEFT computes in two ways: with dropout, a DoRA scales the base's output without the adapters
    beneath, and without dropout, so also when it is evaluated, with them.
    """
    lower = next((other.name for other in beneath if isinstance(other, LowRank)), None)
    if config.use_dora and trainable and config.lora_dropout > 0 and lower is not None:
        raise InputError(
            f"adapters.{name}.dropout: above {lower!r} a dora with dropout would train as another model than it is "
            "evaluated as; use dropout: 0."
        )
