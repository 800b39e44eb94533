"""The recipe of `clinstack finetune`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clinstack.recipe.stage import TrainingStageRecipe


class FinetuneRecipe(TrainingStageRecipe):
    """A classifier head, and adapters where the stack has them, on one task's examples."""

    stage: Literal["finetune"] = "finetune"
    examples: str
    """A task's folder, such as ``data/examples/mortality``."""
    max_tokens: int = Field(default=512, ge=8)
    """Longer notes are cut to this; how much was cut is reported."""
    keep: Literal["beginning", "end", "sections"] = "beginning"
    """Which part of a longer note stays. ``sections`` drops whole sections, the least important first."""
    suffix: str = ""
    """Written after every note, also a cut one, within ``max_tokens``. The head reads the last token: a suffix such as
    a section's header makes that the same token everywhere, at which a model that has read notes sums them up."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """Weights of the classes in the loss, in training and in validation."""
    select: Literal["auroc", "loss"] = "auroc"
    """The validation figure that chooses the epoch."""
