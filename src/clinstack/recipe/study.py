"""The recipe of `clinstack study`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clinstack.recipe.grid import PRETRAIN, SEARCH, GridBase, GridSearch, GridSpec, with_search_defaults
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
    """Several recipes, each a Run below one folder, and the table that they end in.

    Either ``cells``, which are pretrained stacks (Table 2), or a grid of ``bases``, ``specs``, ``tasks`` and ``seeds``.
    """

    stage: Literal["study"] = "study"
    table: Literal["table2", "table3", "table4", "grid"] = "table2"
    """What stands at the end: ``table2``, pretrained stacks beside each other; ``table3`` and ``table4``, the paper's
    tables of tasks; ``grid``, the same for a grid of one's own."""
    title: str | None = None
    """Of the table."""
    cells: tuple[StudyCell, ...] = ()
    bases: tuple[GridBase, ...] = ()
    specs: tuple[GridSpec, ...] = ()
    tasks: tuple[str, ...] = ()
    """Folders below ``examples`` of the Notes."""
    seeds: tuple[int, ...] = (0,)
    """Of the final Runs: one Run for each. A search trains with the first."""
    search: GridSearch | None = None
    """What every stack of a grid searches for that says nothing else."""
    equal_budgets: bool = False
    """Refuse a grid whose rows differ in trials, epochs, batch size or the learning rates that they try."""
    only: tuple[str, ...] | None = None
    """Only these cells, by name or by a part of it (``lora``, ``pmc-llama``, ``mortality``), and what they need; all
    when not given."""
    base: str | None = None
    """The base of every cell, in place of the one that its recipe or the grid names."""
    notes: str | None = None
    """The Notes of every cell, likewise."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Overrides of every cell, over its own; of a grid, of every fine-tuning."""
    embedded: str | None = None
    """The study whose cells stand in for these where ``base`` is ``embedded``: published sizes do not fit a toy."""
    workers: int | None = Field(default=None, ge=1)
    """Cells at a time. When not given: one on each GPU, else one for each core, at most four."""
    devices: tuple[int, ...] | None = Field(default=None, min_length=1)
    """The GPUs by number, one for a worker; all that there are when not given."""

    @model_validator(mode="before")
    @classmethod
    def _every_stack_has_its_search(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        grid = bool(values.get("bases") or values.get("specs"))
        return with_search_defaults({"table": "grid", **values} if grid else values)

    @field_validator("tasks")
    @classmethod
    def _tasks_are_folders(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", task):
                raise ValueError(f"{task!r} is no name of a folder below examples")
            if task in {PRETRAIN, SEARCH}:
                raise ValueError(f"{task!r} is the name of another folder of the study; rename the task's folder")
        return tasks

    @field_validator("seeds")
    @classmethod
    def _seeds_count_up(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or min(seeds) < 0:
            raise ValueError("give one or more numbers from 0")
        return seeds

    @model_validator(mode="after")
    def _cells_or_grid(self) -> StudyRecipe:
        if self.cells and (self.bases or self.specs):
            raise ValueError("give either cells or a grid of bases and specs")
        if self.is_grid:
            self._check_grid()
        elif not self.cells:
            raise ValueError("cells: a study needs at least 1 item there, or a grid of bases and specs")
        elif self.table != "table2":
            raise ValueError(f"table: {self.table} is a table of tasks; it needs bases, specs and tasks, not cells")
        for key in ("tasks", "seeds"):
            _refuse_twice(key, [str(item) for item in getattr(self, key)])
        _refuse_twice("cells", [cell.name for cell in self.cells])
        _refuse_inside([cell.name for cell in self.cells])
        for wanted in self.only or ():
            if not any(matches(name, wanted) for name in self.cell_names):
                known = ", ".join(self.cell_names[:12]) + (" ..." if len(self.cell_names) > 12 else "")
                raise ValueError(f"only: there is no cell {wanted!r}; the cells are {known}")
        return self

    def _check_grid(self) -> None:
        for key in ("bases", "specs", "tasks"):
            if not getattr(self, key):
                raise ValueError(f"{key}: a grid needs at least one")
        if self.table == "table2":
            raise ValueError("table: table2 is a table of cells; a grid ends in table3, table4 or grid")
        if self.notes is None:
            raise ValueError("notes: name the folder of Notes, which has the tasks in its folder examples")
        _refuse_twice("bases", [base.name for base in self.bases])
        names = {base.name for base in self.bases}
        for index, spec in enumerate(self.specs):
            for name in spec.bases or ():
                if name not in names:
                    raise ValueError(f"specs.{index} ({spec.label}): bases: there is no base {name!r}")
            for task in spec.tasks:
                # `tasks` may be fewer on the command line, so a change for another task does no harm; a slip does.
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", task):
                    raise ValueError(f"specs.{index} ({spec.label}): tasks: {task!r} is no name of a task")
            for where, search in [("search", spec.search), *((f"tasks.{k}", t.search) for k, t in spec.tasks.items())]:
                if search is not None and not search.space:
                    raise ValueError(f"specs.{index} ({spec.label}): {where}: the key space is missing")
                if search is not None and "training.seed" in search.space:
                    raise ValueError(f"specs.{index} ({spec.label}): {where}: training.seed is set by seeds")
        for base in self.bases:
            on_it = [spec for spec in self.specs if spec.bases is None or base.name in spec.bases]
            _refuse_twice(f"specs on {base.name}", [spec.label for spec in on_it])
            for spec in on_it:
                if spec.needs_clinical and base.clinical is None:
                    raise ValueError(
                        f"bases ({base.name}): the stack {spec.label} needs its key clinical: a Run, or a recipe"
                    )

    @property
    def is_grid(self) -> bool:
        """Whether the study is a grid of bases and stacks."""
        return bool(self.bases or self.specs)

    @property
    def chosen(self) -> tuple[StudyCell, ...]:
        """The cells that ``only`` leaves."""
        return tuple(cell for cell in self.cells if self.wants(cell.name))

    @property
    def cell_names(self) -> list[str]:
        """The names of all cells; of a grid, those of its final Runs."""
        if not self.is_grid:
            return [cell.name for cell in self.cells]
        return [
            f"{base.name}/{spec.label}/{task}/seed-{seed}"
            for base in self.bases
            for spec in self.specs
            if spec.bases is None or base.name in spec.bases
            for task in self.tasks
            for seed in self.seeds
        ]

    def wants(self, name: str) -> bool:
        """Whether ``only`` leaves the cell of this name."""
        return self.only is None or any(matches(name, wanted) for wanted in self.only)


def matches(name: str, wanted: str) -> bool:
    """Whether ``wanted`` is a cell's name, or some of its parts in a row."""
    return f"/{wanted}/" in f"/{name}/"


def _refuse_twice(key: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{key}: the name {name!r} stands twice")


def _refuse_inside(names: list[str]) -> None:
    inside = next((name for name in names for other in names if name.startswith(f"{other}/")), None)
    if inside is not None:
        raise ValueError(f"cells: {inside!r} would lie in another cell's folder; name it otherwise")
