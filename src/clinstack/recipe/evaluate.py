"""The recipe of `clinstack evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.stage import StageRecipe


class EvaluateRecipe(StageRecipe):
    """A saved stack on Notes: perplexity for a language model, ranking metrics for a classifier."""

    stage: Literal["evaluate"] = "evaluate"
    stack: str
    """A Stack, or a finished Run."""
    base: str | None = None
    """Where the base is on this machine; as the stack recorded when not given."""
    notes: str | None = None
    """For a language model: a folder written by ``clinstack prepare``."""
    tokens: str | None = None
    """For a language model: folder of the tokenised notes; ``tokens`` in ``notes`` when not given."""
    examples: str | None = None
    """For a classifier: a task's folder with the same classes."""
    split: Literal["train", "validation", "test"] = "test"
    against: str | None = None
    """Another Run with predictions for the same examples; the paired difference to it is measured too."""
    batch_size: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> EvaluateRecipe:
        if (self.notes is None) == (self.examples is None):
            raise ValueError("give either notes (for a language model) or examples (for a classifier)")
        if self.tokens is not None and self.notes is None:
            raise ValueError("tokens: only notes are kept as tokens; leave it out for examples")
        if self.against is not None and self.examples is None:
            raise ValueError("against: paired differences are measured on examples")
        return self
