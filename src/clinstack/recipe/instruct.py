"""The recipe of `clinstack instruct`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.canaries import CanariesRecipe
from clinstack.recipe.prompt import PromptRecipe
from clinstack.recipe.stage import TrainingStageRecipe


class InstructRecipe(TrainingStageRecipe):
    """Instruction tuning of a causal language model: a note and a question are read, the answer is trained."""

    stage: Literal["instruct"] = "instruct"
    instructions: str
    """A folder with ``instructions/*.parquet``, as ``clinstack prepare`` or ``clinstack synthesize`` writes it."""
    tasks: tuple[str, ...] | None = None
    """Only these, such as ``Question Answering``; all when not given."""
    max_examples: int | None = Field(default=None, ge=1)
    """Train on at most so many examples, drawn by ``training.seed``; all when not given."""
    max_tokens: int = Field(default=512, ge=32)
    """Prompt and answer together; a longer note loses its middle, and how much is reported."""
    answer_tokens: int = Field(default=128, ge=1)
    """Of ``max_tokens`` every prompt leaves at least so many to its answer. What ``clinstack generate`` allows an
    answer (``decoding.max_new_tokens``) should be the same: long notes are then cut alike."""
    layout: Literal["packed", "bucketed"] = "packed"
    """``packed``: several examples in a row, which do not see each other; ``bucketed``: one in each row, in batches of
    similar lengths, which is also what an adapter method gets that cannot keep them apart."""
    prompt: PromptRecipe = PromptRecipe()
    canaries: CanariesRecipe | None = None
    """Plant invented identifiers behind answers of training examples, so that an audit can tell how well they are
    remembered; a number is how many. None are planted when not given."""

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        planted = {} if self.canaries is None else {"canaries": self.canaries.seed}
        return {**super().seeds_by_use, **planted}

    @model_validator(mode="after")
    def _is_trainable(self) -> InstructRecipe:
        if not any(adapter.is_trainable for adapter in self.adapters):
            raise ValueError("adapters: none is trainable; add one, such as {name: instruct, method: lora}")
        if self.prompt.shots:
            # They would also put notes into the saved stack.
            raise ValueError("prompt.shots: a stack that is trained needs none; `clinstack generate` takes shots")
        if self.answer_tokens >= self.max_tokens:
            raise ValueError(f"answer_tokens: {self.answer_tokens} of max_tokens {self.max_tokens} leave no prompt")
        return self
