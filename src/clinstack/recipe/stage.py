"""What the recipes of all stages share."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from clinstack.recipe.adapters import AdapterRecipe
from clinstack.recipe.privacy import PrivacyRecipe, refuse_beside_privacy
from clinstack.recipe.section import Section
from clinstack.recipe.training import EvaluationRecipe, TrainingRecipe


class StageRecipe(Section):
    """What every stage has."""

    stage: str
    run: str
    """Directory of the Run."""
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"evaluation": self.evaluation.seed}


class TrainingStageRecipe(StageRecipe):
    """What every training stage has."""

    base: str = "embedded"
    """``embedded``, ``embedded-encoder``, a local folder, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the base; adapters and head are float32 whatever this says."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Hold the base's linear layers in so many bits (bitsandbytes): less memory, slightly other outputs."""
    adapters: tuple[AdapterRecipe, ...] = ()
    training: TrainingRecipe = TrainingRecipe()
    privacy: PrivacyRecipe | None = None
    """Train with differential privacy by patient; without it, nothing is promised."""

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"training": self.training.seed, **super().seeds_by_use}

    @model_validator(mode="after")
    def _names_differ(self) -> TrainingStageRecipe:
        names = [adapter.name for adapter in self.adapters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"adapters: the name {name!r} stands twice")
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> TrainingStageRecipe:
        if self.stage == "align" and self.privacy is not None:
            raise ValueError(
                "privacy: alignment cannot be private: its reference and its pairs' figures are computed from training "
                "patients without noise; remove it, or take pretrain, instruct or finetune"
            )
        refuse_beside_privacy(self)
        return self
