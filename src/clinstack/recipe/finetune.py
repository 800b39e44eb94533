"""The recipe of `clinstack finetune`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.section import Section
from clinstack.recipe.stage import TrainingStageRecipe


class LossRecipe(Section):
    """What a classifier minimises.

    Focal (Lin et al. 2017) and asymmetric loss (Ridnik et al. 2021) lower the weight of what is easy already, as suits
    code tasks with a long tail of rare codes.
    """

    name: Literal["cross_entropy", "focal", "asymmetric"] = "cross_entropy"
    gamma: float = Field(default=2.0, ge=0)
    """Focal: how much easy examples lose weight; 0 is the cross-entropy."""
    gamma_positive: float = Field(default=0.0, ge=0)
    """Asymmetric: the same for labels that are there."""
    gamma_negative: float = Field(default=4.0, ge=0)
    """Asymmetric: and for those that are not."""
    clip: float = Field(default=0.05, ge=0, lt=1)
    """Asymmetric: probabilities of absent labels below this cost nothing."""


class FinetuneRecipe(TrainingStageRecipe):
    """A classifier head, and adapters where the stack has them, on one task's examples."""

    stage: Literal["finetune"] = "finetune"
    examples: str
    """A task's folder, such as ``data/examples/mortality``."""
    max_tokens: int = Field(default=512, ge=8)
    """Longer notes are cut to this, or cut into chunks of this; how much was cut is reported."""
    keep: Literal["beginning", "end", "both_ends", "sections", "chunks"] = "beginning"
    """What of a longer note is read. ``sections`` drops whole sections, the least important first; ``chunks`` reads all
    of it in pieces and pools what the head reads of them."""
    beginning_share: float = Field(default=0.25, gt=0, lt=1)
    """both_ends: the share of the room that the beginning has (Sun et al. 2019: 128 of 512)."""
    max_chunks: int = Field(default=8, ge=1)
    """chunks: at most so many of a note; what lies behind them is cut."""
    chunk_overlap: int = Field(default=0, ge=0)
    """chunks: tokens that a chunk shares with the one before it."""
    chunk_pooling: Literal["mean", "max"] = "mean"
    """chunks: how what was read becomes one vector."""
    suffix: str = ""
    """Written after every note, also a cut one, within ``max_tokens``. The head reads the last token: a suffix such as
    a section's header makes that the same token everywhere, at which a model that has read notes sums them up."""
    pooling: Literal["auto", "last", "first", "mean"] = "auto"
    """What the head reads of a note. ``auto`` is the convention of the base's family: a decoder's last token, BERT's
    first token through its pooler, ModernBERT's as its configuration says."""
    layer: int | None = Field(default=None, ge=1)
    """Read the output of the base's layer of this number, from 1, instead of the last; those above are not computed."""
    loss: LossRecipe = LossRecipe()
    class_weights: Literal["balanced", "none"] = "balanced"
    """Weights of the classes in the loss, in training and in validation."""
    select: Literal["auroc", "auprc", "loss"] = "auroc"
    """The validation figure that chooses the epoch, and that ``training.patience`` watches."""
    share_features: tuple[str, ...] = ()
    """Other tasks' folders whose notes are read in the same pass where nothing below the head trains. It changes when
    features are computed, never the result."""

    @model_validator(mode="after")
    def _chunks_move_on(self) -> FinetuneRecipe:
        if self.keep == "chunks" and self.chunk_overlap >= self.max_tokens:
            raise ValueError(f"chunk_overlap: chunks of {self.max_tokens} tokens would not move on; give less")
        return self
