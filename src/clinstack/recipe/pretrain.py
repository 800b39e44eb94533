"""The recipe of `clinstack pretrain`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.canaries import CanariesRecipe
from clinstack.recipe.stage import TrainingStageRecipe


class PretrainRecipe(TrainingStageRecipe):
    """Continued pretraining of a causal language model on notes."""

    stage: Literal["pretrain"] = "pretrain"
    notes: str
    """A folder written by ``clinstack prepare``, with ``notes/*.parquet``."""
    note_types: tuple[str, ...] | None = None
    """Only these; all when not given."""
    context: int = Field(default=512, ge=16)
    """Tokens in a row at most."""
    layout: Literal["packed", "bucketed", "padded"] = "packed"
    """``packed``: several documents in a row, which do not see each other; ``bucketed``: one in each row, in batches
    of similar lengths, which is also what an adapter method gets that cannot keep packed documents apart; ``padded``:
    the first ``context`` tokens of each note and nothing of its rest, as in the published code."""
    published_perplexity: bool = False
    """Measure perplexity as the published code did too; always with the layout ``padded``."""
    tokens: str | None = None
    """Folder of the tokenised notes; ``tokens`` in ``notes`` when not given. Tokens can be read back as text."""
    canaries: CanariesRecipe | None = None
    """Plant invented identifiers in training notes, so that an audit can tell how well they are remembered; a number
    is how many. None are planted when not given."""

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        planted = {} if self.canaries is None else {"canaries": self.canaries.seed}
        return {**super().seeds_by_use, **planted}

    @model_validator(mode="after")
    def _something_trains(self) -> PretrainRecipe:
        if not any(adapter.is_trainable for adapter in self.adapters):
            raise ValueError("adapters: none is trainable; add one, such as {name: clinical, method: lora}")
        return self
