"""The recipe of `clinstack generate`, and how answers are drawn from a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.prompt import PromptRecipe
from clinstack.recipe.section import Section
from clinstack.recipe.stage import StageRecipe

Split = Literal["train", "validation", "test"]


class DecodingRecipe(Section):
    """How a model's probabilities become an answer. The default takes the likeliest token each time (greedy)."""

    max_new_tokens: int = Field(default=128, ge=1)
    """An answer that has no end by then is cut."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy; above it tokens are drawn, by seed."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that hold this share of the probability (nucleus sampling)."""
    num_beams: int = Field(default=1, ge=1)
    """Beam search with so many beams; with temperature 0 only."""
    seed: int = Field(default=0, ge=0)
    """Of the draws."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts that are answered together; fewer where memory runs out."""

    @model_validator(mode="after")
    def _fits_together(self) -> DecodingRecipe:
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams: beam search draws nothing; use temperature: 0, or num_beams: 1")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError("top_p: nothing is drawn at temperature 0; give a temperature, or leave it out")
        return self


class GenerateRecipe(StageRecipe):
    """Answers of a saved stack, or of an untouched base with a prompt, to the questions of instructions."""

    stage: Literal["generate"] = "generate"
    stack: str | None = None
    """A Stack that was trained on instructions, or its finished Run; without it an untouched base answers."""
    base: str | None = None
    """Without a stack the model itself, ``embedded`` when not given; with one where its base is on this machine."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the base; float32 when not given, with a stack as it was saved."""
    quantize: Literal["none", "8bit", "4bit"] | None = None
    """Of the base; none when not given, with a stack as it was saved."""
    prompt: PromptRecipe | None = None
    """The text around note and question, also with solved examples (``shots``). A stack that was trained on
    instructions has its own, which is the one it was trained with."""
    prompt_seed: int = Field(default=0, ge=0)
    """Draws the solved examples from the training patients."""
    instructions: str
    """A folder with instructions, written by ``clinstack prepare`` or ``clinstack synthesize``."""
    splits: tuple[Split, ...] = ("test",)
    tasks: tuple[str, ...] | None = None
    """Names of the tasks whose questions are asked; all when not given."""
    max_examples: int | None = Field(default=None, ge=1)
    """At most so many questions of each split, drawn by ``evaluation.seed``."""
    max_tokens: int | None = Field(default=None, ge=16)
    """Of prompt and answer together; of a stack what it was trained with, of a base what it can read (2,048 at most)
    when not given."""
    decoding: DecodingRecipe = DecodingRecipe()

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"prompt": self.prompt_seed, "decoding": self.decoding.seed, **super().seeds_by_use}

    @model_validator(mode="after")
    def _splits_are_named_once(self) -> GenerateRecipe:
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError("splits: name each of train, validation and test once at most, and one at least")
        return self
