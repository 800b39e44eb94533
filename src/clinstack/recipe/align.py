"""The recipe of `clinstack align`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.prompt import PromptRecipe
from clinstack.recipe.stage import TrainingStageRecipe

PreferenceLossName = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
]
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


class AlignRecipe(TrainingStageRecipe):
    """Preference optimization of a language model that follows instructions already (DPO, Rafailov et al. 2023).

    The reference, which the trained stack is held to, is the stack of the adapters as they are read: without the ones
    that are new, and with the first weights of those that are continued.
    """

    stage: Literal["align"] = "align"
    preferences: str
    """A folder written by ``clinstack prepare preferences``."""
    prompt: PromptRecipe | None = None
    """Only where no adapter was trained with a prompt: else that one is read, so that answers follow the same text."""
    loss: PreferenceLossName = "sigmoid"
    """A loss of TRL's DPOTrainer by its name there; ``sigmoid`` is DPO's own."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the reference holds the stack; IPO's tau."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """robust, aot: the share of pairs that may be the wrong way round, below 0.5; exo_pair: its epsilon, above 0."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' mean cross-entropy beside the loss: it keeps their probability from falling with
    that of the rejected ones (Pang et al. 2024, "Iterative Reasoning Preference Optimization")."""
    max_tokens: int = Field(default=512, ge=16)
    """Of prompt and answer together. Of a longer note its middle is left out; a pair whose answers leave no room for
    its prompt is left out and counted."""
    answer_tokens: int = Field(default=128, ge=1)
    """Of ``max_tokens`` every prompt leaves at least so many to its answers, as in instruction tuning."""

    @model_validator(mode="after")
    def _prompts_have_room(self) -> AlignRecipe:
        if self.answer_tokens >= self.max_tokens:
            raise ValueError(f"answer_tokens: {self.answer_tokens} of max_tokens {self.max_tokens} leave no prompt")
        return self

    @model_validator(mode="after")
    def _something_trains(self) -> AlignRecipe:
        if not any(adapter.is_trainable for adapter in self.adapters):
            raise ValueError(
                "adapters: none is trainable; add one above the others, such as {name: align, method: lora}"
            )
        return self

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> AlignRecipe:
        if self.label_smoothing and self.loss not in _SMOOTHED:
            raise ValueError(f"label_smoothing: {self.loss} has none; {', '.join(_SMOOTHED)} have")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("label_smoothing: exo_pair needs it above 0; its paper takes 0.001")
        if self.loss != "exo_pair" and self.label_smoothing >= 0.5:
            raise ValueError("label_smoothing: from 0.5 on the pairs would count the wrong way round")
        return self

    @model_validator(mode="after")
    def _without_dropout(self) -> AlignRecipe:
        for index, adapter in enumerate(self.adapters):
            if adapter.dropout or adapter.encoder_dropout:
                raise ValueError(
                    f"adapters.{index}.dropout: policy and reference are compared without dropout; leave it out"
                )
        return self
