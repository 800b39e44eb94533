"""The recipe of `clinstack study`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clinstack.recipe.section import Section
from clinstack.recipe.stage import StageRecipe


class StudyCell(Section):
    """One Run of a study."""

    name: str
    """Also its folder below the study's ``run``; parts may be joined with ``/``, such as ``llama/lora``."""
    recipe: str
    """A recipe file or a preset."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys that differ from the recipe, nested or with dots (``training.learning_rate``)."""
    paper: Literal["LLaMA", "PMC-LLaMA"] | None = None
    """The half of the paper's table whose printed figures of the same method stand beside this cell's."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*", name):
            raise ValueError(f"{name!r}: use small letters, digits, '_' and '-', parts joined with '/'")
        return name


class StudyRecipe(StageRecipe):
    """Several recipes, each one a Run below one folder, and the table that they end in."""

    stage: Literal["study"] = "study"
    table: Literal["table2"] = "table2"
    """What stands at the end: ``table2``, the pretrained stacks beside each other."""
    cells: tuple[StudyCell, ...] = Field(min_length=1)
    only: tuple[str, ...] | None = None
    """Only these cells, by name or by a part of it (``lora``, ``pmc-llama``); all when not given."""
    base: str | None = None
    """The base of every cell, in place of the one that its recipe names."""
    notes: str | None = None
    """The Notes of every cell, likewise."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Overrides of every cell, over its own."""
    embedded: str | None = None
    """The study whose cells stand in for these where ``base`` is ``embedded``: published sizes do not fit a toy."""
    workers: int | None = Field(default=None, ge=1)
    """Cells at a time. When not given: one on a GPU, else one for each core, at most four."""

    @model_validator(mode="after")
    def _cells_fit(self) -> StudyRecipe:
        names = [cell.name for cell in self.cells]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"cells: the name {name!r} stands twice")
        inside = next((name for name in names for other in names if name.startswith(f"{other}/")), None)
        if inside is not None:
            raise ValueError(f"cells: {inside!r} would lie in another cell's folder; name it otherwise")
        for wanted in self.only or ():
            if not any(matches(name, wanted) for name in names):
                raise ValueError(f"only: there is no cell {wanted!r}; the cells are {', '.join(names)}")
        return self

    @property
    def chosen(self) -> tuple[StudyCell, ...]:
        """The cells that ``only`` leaves."""
        return tuple(
            cell for cell in self.cells if self.only is None or any(matches(cell.name, wanted) for wanted in self.only)
        )


def matches(name: str, wanted: str) -> bool:
    """Whether ``wanted`` is a cell's name, or some of its parts in a row."""
    return f"/{wanted}/" in f"/{name}/"
