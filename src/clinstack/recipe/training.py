"""How a stage trains and measures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clinstack.recipe.section import Section


class TrainingRecipe(Section):
    """How a stage trains."""

    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """End after so many optimizer steps, also in the middle of an epoch."""
    batch_size: int = Field(default=8, ge=1)
    """Packed rows (pretrain) or notes (finetune) in a forward pass."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """finetune: instead of ``batch_size`` notes, as many of similar length as have at most so many tokens."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes in an optimizer step; the loss is weighted as if they were one batch."""
    learning_rate: float = Field(default=3e-4, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    """For the classifier head; the learning rate of the adapters when not given."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of all optimizer steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints; a killed run repeats at most so many."""
    validate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two validations; without it, after each epoch. The end is always validated."""
    patience: int | None = Field(default=None, ge=1)
    """End after so many validations that brought nothing better; without it, all steps are done."""
    spike_factor: float | None = Field(default=None, gt=1)
    """Stop when a step's loss is more than so many times the median of the 20 before it; without it, go on."""
    gradient_checkpointing: bool = False
    """Compute each layer's inside again in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the decoder layers before training."""
    tracking: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Who draws the curves. TensorBoard's files lie in the Run; the other two write where they are configured to."""


class EvaluationRecipe(Section):
    """How a stage measures."""

    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples over patients."""
    seed: int = Field(default=0, ge=0)
    max_notes: int | None = Field(default=None, ge=1)
    """Perplexity is measured on at most so many notes of the held-out patients, drawn by ``seed``; all without it."""
    published: bool = False
    """For a classifier: also the figures as the published code computed them, for comparison with its tables."""
