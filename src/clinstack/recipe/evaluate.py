"""The recipe of `clinstack evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.generate import DecodingRecipe
from clinstack.recipe.stage import StageRecipe


class EvaluateRecipe(StageRecipe):
    """A saved stack on Notes: perplexity for a language model, ranking metrics for a classifier, answers to questions
    for a stack that was trained on instructions."""

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
    instructions: str | None = None
    """For a stack that was trained on instructions: a folder with others, or the same."""
    decoding: DecodingRecipe | None = None
    """For instructions: how answers are drawn; greedy when not given."""
    max_examples: int | None = Field(default=None, ge=1)
    """For instructions: at most so many questions, drawn by ``evaluation.seed``."""
    split: Literal["train", "validation", "test"] = "test"
    against: str | None = None
    """Another Run with predictions, or answers, for the same examples; the paired difference to it is measured too."""
    batch_size: int = Field(default=16, ge=1)
    """For instructions ``decoding.batch_size`` counts."""

    @model_validator(mode="after")
    def _one_source(self) -> EvaluateRecipe:
        if [self.notes, self.examples, self.instructions].count(None) != 2:
            raise ValueError(
                "give either notes (for a language model) or examples (for a classifier), or else instructions (for a "
                "stack that was trained on them)"
            )
        if self.tokens is not None and self.notes is None:
            raise ValueError("tokens: only notes are kept as tokens; leave it out")
        if self.against is not None and self.notes is not None:
            raise ValueError("against: paired differences are measured on examples or instructions")
        if self.instructions is None and (self.decoding is not None or self.max_examples is not None):
            raise ValueError("decoding and max_examples are for instructions; leave them out")
        return self

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        drawn = {} if self.decoding is None else {"decoding": self.decoding.seed}
        return {**super().seeds_by_use, **drawn}
