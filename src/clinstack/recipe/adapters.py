"""The adapters of a stack, as a recipe writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from clinstack.recipe.section import Section

RESERVED_ADAPTER_NAMES = frozenset({"default", "head", "base"})


class AdapterRecipe(Section):
    """One adapter of a stack: read from ``path``, or created by ``method``.

    The defaults of a new LoRA are those of the paper's clinical adapter (Gema et al. 2023: rank 16, alpha 32, query
    and value projections).
    """

    name: str
    path: str | None = None
    """A Run, a Stack with one adapter, or a PEFT folder. Without it the adapter is new."""
    trainable: bool | None = None
    """New adapters are trainable unless this says otherwise, read ones frozen."""
    method: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        # PEFT turns the name into a module name (no dots) and searches for it inside "lora_..." keys.
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ValueError(f"{name!r}: use small letters, digits, '_' and '-', beginning with a letter")
        if name in RESERVED_ADAPTER_NAMES or name in "lora_a lora_b lora_embedding":
            raise ValueError(f"{name!r} is taken by the library; use a name such as 'clinical' or 'task'")
        return name

    @model_validator(mode="after")
    def _path_or_method(self) -> AdapterRecipe:
        if self.path is not None:
            shape = {"method", "rank", "alpha", "dropout", "target_modules"} & self.model_fields_set
            if shape:
                raise ValueError(f"{', '.join(sorted(shape))} belong to the adapter at path; remove them here")
        elif self.trainable is False:
            raise ValueError("a new adapter that is not trainable does nothing; give it a path or remove it")
        return self

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
