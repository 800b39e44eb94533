"""LoRA, DoRA, rsLoRA and AdaLoRA: low-rank factors beside the base's layers.

LoRA, DoRA and rsLoRA of one stack share one `PeftModel`. Each AdaLoRA has one of its own, because PEFT trains only one
in a model and mixes it with no other; its layers then wrap the others' (or are wrapped by them), and all are active.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.methods.adalora import RankBudget
from clinstack.model.methods.names import adapted_attentions, low_rank_owner, plain_name
from clinstack.model.methods.placed import Placed

_PREFIX = "base_model.model."


def lora_layers(network: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that carry low-rank adapters, by their name in the network."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


class LowRank(Placed):
    """A low-rank adapter."""

    def __init__(
        self,
        name: str,
        method: str,
        trainable: bool,
        network: PreTrainedModel,
        config: LoraConfig,
        shared: PeftModel | None,
    ) -> None:
        super().__init__(name, method, trainable, network)
        self.budget: RankBudget | None = None
        """AdaLoRA's, once training has begun."""
        with warnings.catch_warnings():
            # PEFT asks transformers for an attribute by a name that is being retired.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            try:
                if shared is not None:
                    shared.add_adapter(name, config)
                    self.peft_model = shared
                else:
                    # Without this, PEFT would write the new configuration among those of the other kind.
                    network.__dict__.pop("peft_config", None)
                    self.peft_model = PeftModel(network, config, adapter_name=name)
            except (ValueError, TypeError) as error:
                detail = str(error).splitlines()[0]
                raise InputError(f"adapter {name}: it does not fit the base: {detail}") from None
        for parameter_name, parameter in network.named_parameters():
            if self.owns(parameter_name) and parameter.is_floating_point():
                parameter.data = parameter.data.float()
        for layer in lora_layers(network).values():
            if type(layer).__name__ == "SVDLinear8bitLt" and name in layer.lora_A:
                cast(nn.Module, layer).register_forward_hook(_in_the_inputs_dtype)

    def owns(self, parameter: str) -> bool:
        """Whether the network's parameter of that name is this adapter's."""
        return low_rank_owner(parameter) == self.name

    def config(self) -> PeftConfig:
        """Return PEFT's configuration."""
        return self.peft_model.peft_config[self.name]

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights in, named as PEFT names them in files."""
        inside = {}
        attentions = [f"{_PREFIX}{name}." for name in adapted_attentions(self.network)]
        for key, tensor in weights.items():
            for attention in attentions:
                key = key.replace(attention, f"{attention}model.")
            inside[key] = tensor
        try:
            result: Any = set_peft_model_state_dict(self.peft_model, inside, adapter_name=self.name)
        except (RuntimeError, AttributeError) as error:
            detail = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"adapter {self.name}: its file does not fit the base ({detail})") from None
        missing = [key for key in result.missing_keys if f".{self.name}." in f"{key}." and ".ranknum." not in key]
        if missing or result.unexpected_keys:
            key = (missing or result.unexpected_keys)[0]
            raise InputError(f"adapter {self.name}: its file does not fit the base (at {key}).")

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the names that PEFT gives them in files."""
        tensors = {}
        attentions = adapted_attentions(self.network)
        for name, tensor in self.network.state_dict().items():
            if self.owns(name) and ".ranknum." not in name:
                key = plain_name(name, attentions)
                # DoRA's magnitudes are a module of their own in PEFT, but not in its files.
                end = f".{self.name}.weight" if ".lora_magnitude_vector." in key else f".{self.name}"
                tensors[_PREFIX + key.replace(end, "")] = tensor.detach()
        return tensors

    def complaint(self) -> str | None:
        """Say why the adapter is not part of the forward pass."""
        return None if self.places() else f"The adapter {self.name!r} is in no layer."

    def places(self) -> list[str]:
        """Return the names of the layers that carry it."""
        return [
            name
            for name, layer in lora_layers(self.network).items()
            if self.name in layer.lora_A or self.name in layer.lora_embedding_A
        ]

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Take the adapter out of each layer's list of active ones.

        Not by PEFT's ``disable_adapter`` or ``set_adapter``, which give frozen adapters back trainable, and not by its
        scaling, which leaves DoRA's magnitudes in.
        """
        before = {layer: list(layer.active_adapters) for layer in lora_layers(self.network).values()}
        try:
            for layer, active in before.items():
                layer._active_adapter = [name for name in active if name != self.name]
            yield
        finally:
            for layer, active in before.items():
                layer._active_adapter = active


def _in_the_inputs_dtype(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """AdaLoRA's float32 divisor turns what an 8-bit layer gives into float32, which the base does not expect."""
    return output.to(arguments[0].dtype)


def activate(network: nn.Module, adapters: Sequence[LowRank]) -> None:
    """Make low-rank adapters active in every layer, in their order, and still the frozen ones' dropout.

    PEFT makes them trainable by that; who may train is settled afterwards.
    """
    names = [adapter.name for adapter in adapters]
    shared = {id(adapter.peft_model): adapter.peft_model for adapter in adapters}
    for peft_model in shared.values():
        tuner: Any = peft_model.base_model
        tuner.set_adapter([name for name in names if name in peft_model.peft_config])
    for layer in lora_layers(network).values():
        layer.set_adapter(names)
        for adapter in adapters:
            if not adapter.trainable and adapter.name in layer.lora_dropout:
                # Dropout would still fire in a frozen adapter and make its part of the output random.
                layer.lora_dropout[adapter.name] = nn.Identity()
