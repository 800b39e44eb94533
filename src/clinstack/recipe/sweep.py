"""The recipe of `clinstack sweep`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clinstack.recipe.section import Section
from clinstack.recipe.stage import StageRecipe
from clinstack.recipe.training import EvaluationRecipe

Scalar = bool | int | float | str | None
Metric = Literal["score", "loss", "auroc", "auprc"]
Sampler = Literal["gp", "tpe", "random", "grid"]
Pruner = Literal["none", "median", "hyperband", "successive_halving"]
_PASSWORD = re.compile(r"://[^/@]*:[^/]*@|[?&]password=", re.IGNORECASE)


class SpaceEntry(Section):
    """The values that a sweep may give one key: a list of them, or a range."""

    choices: tuple[Any, ...] | None = Field(default=None, min_length=1)
    low: int | float | None = None
    high: int | float | None = None
    """The range holds both ends. It is of whole numbers when low, high and step are."""
    log: bool = False
    """Draw from the range by the logarithm, as suits a learning rate."""
    step: int | float | None = Field(default=None, gt=0)
    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict)
    """Keys that stand earlier in the space, and the value, or the values, at which this key is given one."""

    @field_validator("choices")
    @classmethod
    def _choices_differ(cls, choices: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        for index, choice in enumerate(choices or ()):
            if any(type(choice) is type(other) and choice == other for other in (choices or ())[:index]):
                raise ValueError(f"{choice!r} stands twice")
        return choices

    @model_validator(mode="after")
    def _choices_or_range(self) -> SpaceEntry:
        said = {"low": self.low, "high": self.high, "log": self.log or None, "step": self.step}
        numbers = [key for key, value in said.items() if value is not None]
        if self.choices is not None:
            if numbers:
                raise ValueError(f"give either choices or a range ({', '.join(numbers)})")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give choices: [...], or low and high")
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("log: a logarithmic range begins above 0")
        if self.log and self.step is not None:
            raise ValueError("step: a logarithmic range has no steps; take choices")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)


class SweepRecipe(StageRecipe):
    """Trials of one recipe with other values, and a search for the best of them on the validation patients.

    The defaults are the published search: Gaussian process, 20 trials (Gema et al. 2023, appendix A).
    """

    stage: Literal["sweep"] = "sweep"
    recipe: str
    """A recipe or preset of `clinstack pretrain` or `clinstack finetune`."""
    overrides: dict[str, Any] | tuple[str, ...] = Field(default_factory=dict)
    """What is other in it for all trials: a mapping of dotted keys, or a list of ``key.sub=value``."""
    space: dict[str, SpaceEntry] = Field(min_length=1)
    """The values of each dotted key, such as ``adapters.0.rank``."""
    trials: int = Field(default=20, ge=1)
    metric: Metric = "score"
    """The validation figure to choose by: at the epoch that the trial keeps. ``score`` is what its stage chooses by."""
    sampler: Sampler = "gp"
    pruner: Pruner = "successive_halving"
    """Which trials end early, by their validation figures so far. The default saved most of those measured."""
    workers: int = Field(default=1, ge=1)
    """Processes on this machine."""
    storage: str = "journal"
    """``journal`` or ``sqlite``: a file in the Run. ``postgresql://user@host/database``: for several machines."""
    seed: int = Field(default=0, ge=0)

    @field_validator("storage")
    @classmethod
    def _storage_is_known(cls, storage: str) -> str:
        if storage in {"journal", "sqlite"}:
            return storage
        if not storage.startswith(("postgresql://", "postgres://")):
            raise ValueError(f"{storage.partition('://')[0]!r}: use journal, sqlite or postgresql://user@host/database")
        if _PASSWORD.search(storage):
            raise ValueError("a password does not belong in a file; take it out and use PGPASSWORD or ~/.pgpass")
        return storage

    @model_validator(mode="after")
    def _no_evaluation(self) -> SweepRecipe:
        if self.evaluation != EvaluationRecipe():
            raise ValueError("evaluation belongs to the recipe of the trials; set it with overrides")
        return self

    @model_validator(mode="after")
    def _when_is_earlier(self) -> SweepRecipe:
        before: set[str] = set()
        for key, entry in self.space.items():
            for other in entry.when:
                if other not in before:
                    raise ValueError(f"space.{key}.when: {other} does not stand before it in the space")
            before.add(key)
        return self

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"sweep": self.seed}

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which figure is better, in Optuna's word."""
        return "minimize" if self.metric == "loss" else "maximize"
