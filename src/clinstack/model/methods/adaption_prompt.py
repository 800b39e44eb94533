"""Adaption prompts (LLaMA-Adapter, Zhang et al. 2023): a gated prompt beside the attention of the top layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import AdaptionPromptConfig, PeftConfig
from peft.tuners.adaption_prompt import AdaptionPromptModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.methods.configs import refuse_adaption_prompt
from clinstack.model.methods.names import adapted_attentions
from clinstack.model.methods.placed import Placed

_PREFIX = "base_model.model."


class AdaptionPrompt(Placed):
    """An adaption prompt. A network carries at most one: it takes the place of the attention layers."""

    def __init__(self, name: str, trainable: bool, network: PreTrainedModel, config: AdaptionPromptConfig) -> None:
        super().__init__(name, "adaption_prompt", trainable, network)
        if adapted_attentions(network):
            raise InputError(
                f"adapters.{name}: a stack has at most one adaption_prompt, because it takes the place of the "
                "attention layers; use lora above it."
            )
        refuse_adaption_prompt(name, network)
        self._config = config
        try:
            AdaptionPromptModel(network, {name: config}, name)
        except ValueError as error:
            raise InputError(f"adapter {name}: it does not fit the base: {str(error).splitlines()[0]}") from None
        for attention in adapted_attentions(network).values():
            for parameter in _own(attention).values():
                parameter.data = parameter.data.float()
            if network.dtype != torch.float32:
                attention.register_forward_pre_hook(_lend_in(network.dtype), with_kwargs=True)
                attention.register_forward_hook(_take_back, always_call=True)

    def owns(self, parameter: str) -> bool:
        """Whether the network's parameter of that name is this adapter's."""
        return parameter.rsplit(".", 1)[-1].startswith("adaption_")

    def config(self) -> PeftConfig:
        """Return PEFT's configuration."""
        return self._config

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights in, named as PEFT names them in files."""
        own = {_PREFIX + name: value for name, value in self.network.named_parameters() if self.owns(name)}
        for key in sorted(own.keys() ^ weights.keys()):
            raise InputError(f"adapter {self.name}: its file does not fit the base (at {key}).")
        with torch.no_grad():
            for key, parameter in own.items():
                if parameter.shape != weights[key].shape:
                    raise InputError(
                        f"adapter {self.name}: its file does not fit the base (size mismatch at {key}: "
                        f"{tuple(weights[key].shape)}, the base wants {tuple(parameter.shape)})."
                    )
                parameter.copy_(weights[key])

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the names that PEFT gives them in files."""
        return {
            _PREFIX + name: parameter.detach() for name, parameter in self.network.named_parameters() if self.owns(name)
        }

    def complaint(self) -> str | None:
        """Say why the adapter is not part of the forward pass."""
        found = len(adapted_attentions(self.network))
        if found != self._config.adapter_layers:
            return f"The adapter {self.name!r} is in {found} layers; the spec says {self._config.adapter_layers}."
        return None

    def places(self) -> list[str]:
        """Return the names of the attention layers that carry it."""
        return list(adapted_attentions(self.network))

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Let the attention layers compute by themselves for a while."""
        attentions: list[Any] = list(adapted_attentions(self.network).values())
        try:
            for attention in attentions:
                attention.forward = attention.model.forward
            yield
        finally:
            for attention in attentions:
                attention.__dict__.pop("forward", None)


def _own(attention: nn.Module) -> dict[str, nn.Parameter]:
    return dict(attention.named_parameters(recurse=False))


def _lend_in(dtype: torch.dtype) -> Any:
    """Return a hook that shows a float32 prompt to PEFT's code in the base's dtype, which it expects."""

    def hook(attention: nn.Module, arguments: Any, keywords: Any) -> None:
        # An entry of the instance is found before the parameter of the same name.
        attention.__dict__.update({name: value.to(dtype) for name, value in _own(attention).items()})

    return hook


def _take_back(attention: nn.Module, arguments: Any, output: Any) -> None:
    for name in _own(attention):
        attention.__dict__.pop(name, None)
