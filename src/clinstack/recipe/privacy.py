"""Differentially private training, as a recipe writes it, and what a private training cannot have beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from clinstack.recipe.section import Section
from clinstack.recipe.training import TrainingRecipe

if TYPE_CHECKING:
    from clinstack.recipe.stage import TrainingStageRecipe

_GRADIENT_CLIP = TrainingRecipe.model_fields["gradient_clip"].default


class PrivacyRecipe(Section):
    """DP-SGD (Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1) by patient.

    What is hidden is whether a patient, with all notes, is among the training patients.
    """

    epsilon: float | None = Field(default=None, gt=0)
    """What the whole training may cost; the noise that this takes is computed. This or ``noise_multiplier``."""
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Standard deviation of the noise, in units of ``clip``; what it costs is computed."""
    delta: float | None = Field(default=None, gt=0, lt=1)
    """Chance that the bound of epsilon does not hold. Without it, (training patients) ** -1.1."""
    clip: float = Field(default=1.0, gt=0)
    """Largest Euclidean norm of one patient's gradient, over all trained tensors together."""
    patients_per_step: int = Field(ge=1)
    """Patients in a step on average: each is drawn with the chance ``patients_per_step / patients``, alone."""
    rows_per_patient: int = Field(default=4, ge=1)
    """Rows of ``context`` tokens (pretrain) or examples (finetune, instruct) that a patient who was drawn brings to the
    step at most; of a patient who has more, others are drawn each time."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> PrivacyRecipe:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon or noise_multiplier; the other one is computed from it")
        return self


def refuse_beside_privacy(recipe: TrainingStageRecipe) -> None:
    """Refuse what would break the guarantee of a private training, or would do nothing in one.

    Raises
    ------
    ValueError
        With the key and the remedy.
    """
    if recipe.privacy is None:
        return
    for key, value, allowed, why in _conflicts(recipe):
        if value != allowed:
            raise ValueError(f"privacy: {key} is {value!r}, and {why}; set it to {_yaml(allowed)}")


def _conflicts(recipe: TrainingStageRecipe) -> list[tuple[str, Any, Any, str]]:
    """Return (key, value, the only value that goes together with privacy, why) of each key that may be in the way."""
    training = recipe.training
    found: list[tuple[str, Any, Any, str]] = [
        (
            "training.accumulate",
            training.accumulate,
            1,
            "a private step is one Poisson sample of privacy.patients_per_step patients, whatever fits in a pass",
        ),
        (
            "training.batch_tokens",
            training.batch_tokens,
            None,
            "a private step draws patients; training.batch_size only says how many rows go through the network at once",
        ),
        (
            "training.spike_factor",
            training.spike_factor,
            None,
            "to stop at the loss of the training patients would tell something of them without noise",
        ),
        (
            "training.gradient_clip",
            training.gradient_clip,
            _GRADIENT_CLIP,
            "privacy.clip takes its place: the gradient of each patient is clipped before the noise",
        ),
        ("training.compile", training.compile, False, "compiled layers give no gradients of single patients"),
        (
            "dtype",
            recipe.dtype,
            "bfloat16" if recipe.dtype == "float16" else recipe.dtype,
            "its loss scale follows gradients before there is noise in them",
        ),
    ]
    if recipe.stage == "finetune":
        found.append(
            (
                "class_weights",
                getattr(recipe, "class_weights", "none"),
                "none",
                "balanced weights are counted from the labels of the training patients, without noise",
            )
        )
    if recipe.stage == "instruct":
        found.append(
            (
                "max_examples",
                getattr(recipe, "max_examples", None),
                None,
                "with one patient less it would draw other examples of all patients",
            )
        )
    return found


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
