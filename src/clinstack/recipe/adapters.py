"""The adapters of a stack, as a recipe writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from clinstack.recipe.section import Section

RESERVED_ADAPTER_NAMES = frozenset({"default", "head", "base"})

Method = Literal["lora", "dora", "rslora", "adalora", "adaption_prompt", "prefix", "prompt", "p_tuning", "full"]
METHODS: tuple[str, ...] = get_args(Method)

_LOW_RANK = ("rank", "alpha", "dropout", "target_modules")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_BUDGET = ("initial_rank", "warmup_steps", "final_steps", "allocate_every", "beta", "orthogonal")
METHOD_KEYS: dict[str, tuple[str, ...]] = {
    "lora": (*_LOW_RANK, *_PATTERNS),
    "dora": (*_LOW_RANK, *_PATTERNS),
    "rslora": (*_LOW_RANK, *_PATTERNS),
    "adalora": (*_LOW_RANK, *_BUDGET),
    "adaption_prompt": ("adapter_length", "adapter_layers"),
    "prefix": ("virtual_tokens", "projection", "encoder_hidden"),
    "prompt": ("virtual_tokens", "initial_text"),
    "p_tuning": ("virtual_tokens", "encoder", "encoder_hidden", "encoder_layers", "encoder_dropout"),
    "full": (),
}
"""What each method can be told, besides its name."""
SHAPE_KEYS = frozenset(key for keys in METHOD_KEYS.values() for key in keys)
_DEFAULTS: dict[str, dict[str, Any]] = {"adalora": {"rank": 8}, "prompt": {"virtual_tokens": 15}}
"""Where a method's default is not the field's."""


class AdapterRecipe(Section):
    """One adapter of a stack: read from ``path``, or created by ``method``.

    The defaults are those of the paper where it used the method (Gema et al. 2023: LoRA of rank 16, alpha 32, on the
    query and value projections; 20 tokens for prefix and P-tuning, 15 for a prompt; adaption prompts of length 10 in
    30 layers), and of the method's own paper otherwise (AdaLoRA, Zhang et al. 2023).
    """

    name: str
    path: str | None = None
    """A Run, a Stack with one adapter, a PEFT folder, or the folder of a fully fine-tuned model. Without it the adapter
    is new."""
    trainable: bool | None = None
    """New adapters are trainable unless this says otherwise, read ones frozen."""
    method: Method = "lora"
    rank: int = Field(default=16, ge=1)
    """Of LoRA, DoRA and rsLoRA 16; of AdaLoRA the mean rank of a layer at the end, 8."""
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")
    """Names of layers, also of the input embeddings (``embed_tokens``); or all linear layers below the head. What a
    base calls otherwise than q_proj, k_proj and v_proj (encoders, Phi-3) is meant by these names too."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Another rank for layers by the end of their name, such as ``{down_proj: 4}`` or ``{layers.0.mlp.up_proj: 2}``."""
    alpha_pattern: dict[str, int] = Field(default_factory=dict)
    """Another alpha, in the same way."""
    initial_rank: int = Field(default=12, ge=1)
    """AdaLoRA: the rank of each layer before the budget shrinks."""
    warmup_steps: int = Field(default=0, ge=0)
    """AdaLoRA: optimizer steps before the budget shrinks."""
    final_steps: int = Field(default=0, ge=0)
    """AdaLoRA: optimizer steps at the end with ranks that stay."""
    allocate_every: int = Field(default=1, ge=1)
    """AdaLoRA: optimizer steps between two allocations."""
    beta: float = Field(default=0.85, gt=0, lt=1)
    """AdaLoRA: how long importance is remembered."""
    orthogonal: float = Field(default=0.5, ge=0)
    """AdaLoRA: weight of the penalty that keeps its factors orthogonal."""
    virtual_tokens: int = Field(default=20, ge=1)
    """Prefix and P-tuning 20, prompt 15."""
    projection: bool = False
    """Prefix: computed by a small network while it trains."""
    encoder_hidden: int | None = Field(default=None, ge=1)
    """Width of the network that computes virtual tokens; the base's hidden size when not given."""
    initial_text: str | None = None
    """Prompt: begins with the embeddings of this text, repeated or cut; at random when not given."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    encoder_layers: int = Field(default=2, ge=1)
    """P-tuning: layers of the LSTM; the MLP always has three."""
    encoder_dropout: float = Field(default=0.0, ge=0, lt=1)
    """P-tuning: between the layers of the LSTM; the MLP has none."""
    adapter_length: int = Field(default=10, ge=1)
    """Adaption prompt: its tokens in a layer."""
    adapter_layers: int = Field(default=30, ge=1)
    """Adaption prompt: how many layers have one, counted from the top; at most those of the base."""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        # PEFT turns the name into a module name (no dots) and searches for it inside "lora_..." keys.
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ValueError(f"{name!r}: use small letters, digits, '_' and '-', beginning with a letter")
        if name in RESERVED_ADAPTER_NAMES or name in "lora_a lora_b lora_embedding":
            raise ValueError(f"{name!r} is taken by the library; use a name such as 'clinical' or 'task'")
        return name

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_are_positive(cls, pattern: dict[str, int]) -> dict[str, int]:
        for layer, value in pattern.items():
            if value < 1:
                raise ValueError(f"{layer}: {value} is no rank or alpha; use 1 or more")
        return pattern

    @model_validator(mode="before")
    @classmethod
    def _keys_of_the_method(cls, values: Any) -> Any:
        """Refuse what another method has; fill in the defaults that are the method's own."""
        if not isinstance(values, dict):
            return values
        method = values.get("method", "lora")
        given = SHAPE_KEYS & values.keys()
        if values.get("path") is not None:
            if strangers := {*given, *({"method"} & values.keys())}:
                raise ValueError(f"{', '.join(sorted(strangers))} belong to the adapter at path; remove them here")
            return values
        if method not in METHOD_KEYS:
            return values  # the field itself says so
        for key in sorted(given - set(METHOD_KEYS[method])):
            owners = ", ".join(other for other in METHODS if key in METHOD_KEYS[other])
            raise ValueError(f"{key}: the method {method} has no such key; {owners} has it")
        return {**_DEFAULTS.get(method, {}), **values}

    @model_validator(mode="after")
    def _fits_together(self) -> AdapterRecipe:
        if self.path is None and self.trainable is False:
            raise ValueError("a new adapter that is not trainable does nothing; give it a path or remove it")
        if self.method == "adalora" and self.path is None and self.initial_rank < self.rank:
            raise ValueError(
                f"initial_rank: AdaLoRA begins with {self.initial_rank} and cannot grow to rank {self.rank}; "
                "give an initial_rank above rank"
            )
        if self.path is None and self.encoder_hidden is not None and self.method == "prefix" and not self.projection:
            raise ValueError("encoder_hidden: a prefix has an encoder only with projection: true")
        return self

    @model_serializer(mode="wrap")
    def _only_its_own_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        foreign = SHAPE_KEYS | {"method"} if self.path is not None else SHAPE_KEYS - set(METHOD_KEYS[self.method])
        return {key: value for key, value in values.items() if key not in foreign}

    @property
    def is_trainable(self) -> bool:
        """Whether the stage trains this adapter."""
        return self.path is None if self.trainable is None else self.trainable


def stack_label(adapters: Sequence[AdapterRecipe]) -> str:
    """Name a stack by its adapters.

    Examples
    --------
    ``head`` (no adapter), ``lora`` (one new LoRA), ``clinical-frozen+lora``: the six rows of the paper's Table 3.
    """
    parts = [
        adapter.method
        if adapter.path is None
        else f"{adapter.name}-{'trainable' if adapter.is_trainable else 'frozen'}"
        for adapter in adapters
    ]
    return "+".join(parts) or "head"
