"""Prefix, prompt and P-tuning: virtual tokens that every text is read after.

PEFT's modules make the virtual tokens; what is done with them is here, because PEFT's wrappers drop position ids, pool
the wrong token of a padded row, and let no other adapter beside them. Outputs are those of plain PEFT.

::

    prompt, p_tuning:   v v v | the text's tokens     before the embedded tokens, in every layer
    prefix:             keys and values of v v v for each layer, as if they had been read before

While P-tuning or a projected prefix trains, a small network (the encoder) computes the virtual tokens. PEFT's file
holds only what it computed, so the encoder is saved beside it; a frozen adapter needs what it computed only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft.tuners import PrefixEncoder, PromptEmbedding, PromptEncoder
from peft.utils.other import _prepare_prompt_learning_config
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.base import backbone
from clinstack.model.methods.names import VIRTUAL_TOKENS
from clinstack.model.methods.placed import Placed

_KEY = "prompt_embeddings"
_ENCODED_TOLERANCE = 1e-3


class VirtualTokens(Placed):
    """An adapter of virtual tokens. A stack has at most one.

    Parameters
    ----------
    encoder : dict of str to Tensor, optional
        Weights of the encoder that computed the virtual tokens of a read adapter.
    is_new : bool
        Whether there are no weights to read, so that the encoder begins at random.
    """

    def __init__(
        self,
        name: str,
        method: str,
        trainable: bool,
        network: PreTrainedModel,
        config: PeftConfig,
        encoder: dict[str, Tensor] | None = None,
        *,
        is_new: bool,
    ) -> None:
        super().__init__(name, method, trainable, network)
        if hasattr(network, VIRTUAL_TOKENS):
            raise InputError(
                f"adapters.{name}: a stack has at most one of prefix, prompt and p_tuning; use lora above it."
            )
        if method == "prefix" and network.config.model_type in ("bloom", "gpt_bigcode"):
            raise InputError(
                f"adapters.{name}.method: a {network.config.model_type} keeps keys and values in a shape of its own, "
                "which a prefix does not fit; use prompt or lora."
            )
        self._config: Any = _prepare_prompt_learning_config(config, network.config)
        has_encoder = method == "p_tuning" or (method == "prefix" and self._config.prefix_projection)
        self._uses_encoder = has_encoder and trainable
        if self._uses_encoder and encoder is None and not is_new:
            raise InputError(
                f"adapters.{name}: its folder holds the virtual tokens, but not the encoder that computes them while "
                "they train (encoder.safetensors, which plain PEFT does not write). Without trainable: true it can be "
                "used."
            )
        self._kept_encoder = encoder or {}
        settings = copy.copy(self._config)
        # A prompt that is read begins at no text: PEFT would open the tokenizer that its file names, wherever that is.
        is_read_prompt = method == "prompt" and not is_new
        settings.inference_mode = is_read_prompt or (has_encoder and not self._uses_encoder)
        module = _module(settings, network).float()
        if self._uses_encoder and encoder is not None:
            self._load_encoder(module, encoder)
        self._module = module
        self._is_off = False
        network.add_module(VIRTUAL_TOKENS, nn.ModuleDict({name: module}))

    def owns(self, parameter: str) -> bool:
        """Whether the network's parameter of that name is this adapter's."""
        return parameter.startswith(f"{VIRTUAL_TOKENS}.{self.name}.")

    def config(self) -> PeftConfig:
        """Return PEFT's configuration."""
        return cast(PeftConfig, self._config)

    @property
    def count(self) -> int:
        """How many virtual tokens there are."""
        return int(self._config.num_virtual_tokens)

    @property
    def is_off(self) -> bool:
        """Whether it is out of the forward pass for a while."""
        return self._is_off

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights in; an encoder has its own already, and must compute these."""
        wanted = self.tensors()[_KEY]
        given = weights.get(_KEY)
        if given is None or set(weights) != {_KEY}:
            key = next(iter(set(weights) - {_KEY}), _KEY)
            raise InputError(f"adapter {self.name}: its file does not fit the method {self.method} (at {key}).")
        if given.shape != wanted.shape:
            raise InputError(
                f"adapter {self.name}: its file does not fit the base (size mismatch: {tuple(given.shape)}, the base "
                f"wants {tuple(wanted.shape)})."
            )
        if self._uses_encoder:
            allowed = _ENCODED_TOLERANCE * max(1.0, float(given.abs().max()))
            if not float((given - wanted).abs().max()) <= allowed:
                raise InputError(f"adapter {self.name}: its encoder computes other virtual tokens than its file holds.")
            return
        with torch.no_grad():
            self._module.embedding.weight.copy_(given)

    def _load_encoder(self, module: nn.Module, encoder: dict[str, Tensor]) -> None:
        try:
            module.load_state_dict(encoder)
        except RuntimeError:
            raise InputError(f"adapter {self.name}: its encoder.safetensors does not fit its configuration.") from None

    def tensors(self) -> dict[str, Tensor]:
        """Return the virtual tokens under the name that PEFT gives them in files."""
        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                return {_KEY: self._computed().detach()}
        finally:
            self._module.train(training)

    def encoder(self) -> dict[str, Tensor]:
        """Return the encoder's weights; empty for a method without one."""
        if self._uses_encoder:
            return {key: value.detach() for key, value in self._module.state_dict().items()}
        return self._kept_encoder

    def complaint(self) -> str | None:
        """Say why the adapter is not part of the forward pass."""
        held = getattr(self.network, VIRTUAL_TOKENS, {})
        if self.name not in held or held[self.name] is not self._module or self._is_off:
            return f"The virtual tokens of {self.name!r} are not in the network."
        return None

    def places(self) -> list[str]:
        """Return the name of the network's part that holds the virtual tokens."""
        return [f"{VIRTUAL_TOKENS}.{self.name}"]

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Read texts without the virtual tokens for a while."""
        before = self._is_off
        self._is_off = True
        try:
            yield
        finally:
            self._is_off = before

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Return the last layer's output of the text's tokens, shape [rows, tokens, hidden].

        Rows padded on the left are moved to the left first, so that nothing lies between virtual tokens and text.

        Raises
        ------
        ValueError
            If positions begin anew within a row: only the first of its documents would be read after the virtual
            tokens, and the others would see it.
        """
        rows, width = input_ids.shape
        back = None
        if position_ids is None:
            position_ids = torch.arange(width, device=input_ids.device).expand(rows, -1)
        elif attention_mask is None and bool((position_ids.diff(dim=1) != 1).any()):
            raise ValueError(f"Packed documents cannot be read with {self.method}.")
        if attention_mask is not None:
            order = (attention_mask == 0).int().argsort(dim=1, stable=True)
            back = order.argsort(dim=1)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
            position_ids = position_ids.gather(1, order)
            attention_mask = torch.cat([attention_mask.new_ones(rows, self.count), attention_mask], 1)
        position_ids = position_ids + self.count
        if self.method == "prefix":
            hidden = self._after_prefix(input_ids, attention_mask, position_ids)
        else:
            hidden = self._after_prompt(input_ids, attention_mask, position_ids)
        return hidden if back is None else hidden.gather(1, back[..., None].expand_as(hidden))

    def _after_prompt(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        embedded: Tensor = self.network.get_input_embeddings()(input_ids)
        virtual = self._computed().to(embedded.dtype).expand(len(embedded), -1, -1)
        first = torch.arange(self.count, device=input_ids.device).expand(len(embedded), -1)
        output: Any = backbone(self.network)(
            inputs_embeds=torch.cat([virtual, embedded], 1),
            attention_mask=attention_mask,
            position_ids=torch.cat([first, position_ids], 1),
            use_cache=False,
        )
        return cast(Tensor, output.last_hidden_state)[:, self.count :]

    def _after_prefix(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        output: Any = backbone(self.network)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=self.cache(len(input_ids)),
            use_cache=False,
        )
        return cast(Tensor, output.last_hidden_state)

    def _computed(self) -> Tensor:
        """Return the virtual tokens, shape [virtual tokens, hidden], or for a prefix [virtual tokens, all layers']."""
        if not self._uses_encoder:
            return cast(Tensor, self._module.embedding.weight)
        tokens = torch.arange(self.count, device=self._module.embedding.weight.device)
        return cast(Tensor, self._module(tokens[None])[0])

    def cache(self, rows: int) -> DynamicCache:
        """Return the prefix as each layer's keys and values, as PEFT lays them out."""
        heads = self._config.num_attention_heads
        states = self._computed().to(self.network.dtype)
        states = states.view(1, self.count, 2 * self._config.num_layers, heads, self._config.token_dim // heads)
        states = states.expand(rows, -1, -1, -1, -1).permute(2, 0, 3, 1, 4)
        layers = [(states[2 * index], states[2 * index + 1]) for index in range(self._config.num_layers)]
        if not self.network.config.model_type.startswith(("gemma2", "gemma3", "gemma4")):
            return DynamicCache(layers)
        # These mix layers with a window and without, which the cache must know.
        cache = DynamicCache(config=self.network.config.get_text_config())
        for index, (keys, values) in enumerate(layers):
            cache.update(keys, values, index)
        return cache


def _module(config: PeftConfig, network: PreTrainedModel) -> Any:
    if isinstance(config, PrefixTuningConfig):
        return PrefixEncoder(config)
    if isinstance(config, PromptEncoderConfig):
        return PromptEncoder(config)
    assert isinstance(config, PromptTuningConfig)
    return PromptEmbedding(config, network.get_input_embeddings())
