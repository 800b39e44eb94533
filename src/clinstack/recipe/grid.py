"""The parts of a study that is a grid: bases, stacks on them, and what each searches for first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from clinstack.recipe.adapters import AdapterRecipe, stack_label
from clinstack.recipe.section import Section
from clinstack.recipe.sweep import Metric, Pruner, Sampler, SpaceEntry

CLINICAL = "{clinical}"
"""Stands in a stack's adapters for the path of its base's clinical adapter."""
PRETRAIN = "pretrain"
"""Folder of the Run that makes a base's clinical adapter."""
SEARCH = "search"
"""Folder of the sweep of a base, a stack and a task."""
_ROWS = {
    "head": "{base}*",
    "lora": "{base} + LoRA",
    "full": "{base}",
    "clinical-frozen": "{base} + Clinical LoRA (frozen)",
    "clinical-frozen+lora": "{base} + Clinical LoRA (frozen) + Downstream LoRA",
    "clinical-trainable": "{base} + Clinical LoRA (trainable)",
    "clinical-trainable+lora": "{base} + Clinical LoRA (trainable) + Downstream LoRA",
}
"""Heads of the paper's rows, by the label of the stack."""


class ClinicalRecipe(Section):
    """Where a base's clinical adapter comes from: a Run or a Stack that is there, or a recipe that is run first."""

    path: str | None = None
    recipe: str | None = None
    """A recipe or preset of `clinstack pretrain`."""
    notes: str | None = None
    """The Notes that it reads; the study's when not given."""
    overrides: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_two(self) -> ClinicalRecipe:
        if (self.path is None) == (self.recipe is None):
            raise ValueError("give either the path of a Run, or recipe: one that is run first")
        if self.path is not None and (self.notes is not None or self.overrides):
            raise ValueError("notes and overrides belong to recipe; a path names what is trained already")
        return self


class GridBase(Section):
    """A base of the grid."""

    name: str
    """Its folder below the study's ``run``."""
    base: str = "embedded"
    """As in a recipe: ``embedded``, ``embedded-encoder``, a local folder or a hub id."""
    row: str | None = None
    """Its name in the table; the paper's, or else ``name``, when not given."""
    paper: str | None = None
    """The paper's name of the base whose printed figures stand beside this one's."""
    clinical: ClinicalRecipe | None = None
    """Its clinical adapter, ``{clinical}`` in the stacks: a path, or a mapping with ``recipe``."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys of every fine-tuning on this base."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        return folder_name(name)

    @field_validator("clinical", mode="before")
    @classmethod
    def _a_word_is_a_path(cls, clinical: Any) -> Any:
        return {"path": clinical} if isinstance(clinical, str) else clinical

    @property
    def head(self) -> str:
        """What its rows begin with."""
        return self.row or self.paper or self.name


class GridSearch(Section):
    """What a stack searches for on the validation patients before its final Runs. The keys are those of a sweep."""

    space: dict[str, SpaceEntry] = Field(default_factory=dict)
    trials: int = Field(default=20, ge=1)
    metric: Metric = "score"
    sampler: Sampler = "gp"
    pruner: Pruner = "none"
    """Without pruning every trial is trained to its end, so that all rows have what their budget says."""
    seed: int = Field(default=0, ge=0)


class TaskChange(Section):
    """What is other in a stack for one task."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    search: GridSearch | None = None


class GridSpec(Section):
    """A stack of the grid, put on each base."""

    name: str | None = None
    """Its folder below each base's; the label of its adapters when not given."""
    row: str | None = None
    """Head of its row in the table; ``{base}`` stands for the base's name there."""
    recipe: str
    """A recipe or preset of `clinstack finetune`."""
    adapters: tuple[AdapterRecipe, ...] = ()
    """Its adapters, whatever the recipe has; the path ``{clinical}`` is the base's clinical adapter."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    search: GridSearch | None = None
    """The study's ``search`` with what stands here; null: no search, every task once with what the recipe says."""
    bases: tuple[str, ...] | None = None
    """Only on these; on all when not given."""
    tasks: dict[str, TaskChange] = Field(default_factory=dict)
    """What is other for single tasks."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str | None) -> str | None:
        return None if name is None else folder_name(name)

    @property
    def label(self) -> str:
        """Its name: the one it was given, or the label of its adapters."""
        return self.name or stack_label(self.adapters)

    @property
    def needs_clinical(self) -> bool:
        """Whether its base must have a clinical adapter."""
        return any(adapter.path == CLINICAL for adapter in self.adapters)

    @property
    def trains_head_only(self) -> bool:
        """Whether nothing below the head trains, so that features are computed once."""
        return not any(adapter.is_trainable for adapter in self.adapters)

    def row_on(self, base: GridBase) -> str:
        """Return the head of its row on a base."""
        known = _ROWS.get(self.label)
        return (self.row or known or f"{{base}} {self.label}").replace("{base}", base.head)


def folder_name(name: str) -> str:
    """Return a name that can be a folder of a grid.

    Raises
    ------
    ValueError
        If it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ValueError(f"{name!r}: use letters, digits, '_', '-', '+' and '.', beginning with a letter or digit")
    if name in {PRETRAIN, SEARCH}:
        raise ValueError(f"{name!r} is the name of another folder of the study; choose another")
    return name


def with_search_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's plain values in which every stack says what it searches for.

    A stack without the key ``search`` has the study's, where that has a space; what a stack or one of its tasks says
    stands over it; null is no search. Applied again, it changes nothing.
    """
    result = dict(values)
    defaults, specs = values.get("search"), values.get("specs")
    if not isinstance(specs, list | tuple):
        return result
    shared = dict(defaults) if isinstance(defaults, Mapping) else {}
    filled = []
    for spec in specs:
        if not isinstance(spec, Mapping):
            filled.append(spec)  # the schema refuses it
            continue
        own = dict(spec)
        if "search" not in own and shared.get("space"):
            own["search"] = dict(shared)
        elif isinstance(own.get("search"), Mapping):
            own["search"] = {**shared, **own["search"]}
        if isinstance(own.get("tasks"), Mapping):
            own["tasks"] = {task: _over(own.get("search"), change) for task, change in own["tasks"].items()}
        filled.append(own)
    result["specs"] = filled
    return result


def _over(search: Any, change: Any) -> Any:
    if not isinstance(change, Mapping) or not isinstance(search, Mapping):
        return change
    if isinstance(change.get("search"), Mapping):
        return {**change, "search": {**search, **change["search"]}}
    return change if "search" in change else {**change, "search": dict(search)}
