"""The recipe of `clinstack pretrain`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.stage import TrainingStageRecipe


class PretrainRecipe(TrainingStageRecipe):
    """Continued pretraining of a causal language model on notes."""

    stage: Literal["pretrain"] = "pretrain"
    notes: str
    """A folder written by ``clinstack prepare``, with ``notes/*.parquet``."""
    note_types: tuple[str, ...] | None = None
    """Only these; all when not given."""
    context: int = Field(default=512, ge=16)
    """Tokens in a packed row."""

    @model_validator(mode="after")
    def _something_trains(self) -> PretrainRecipe:
        if not any(adapter.is_trainable for adapter in self.adapters):
            raise ValueError("adapters: none is trainable; add one, such as {name: clinical, method: lora}")
        return self
