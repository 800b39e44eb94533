"""What the cells of a study need, checked before anything runs: Notes, tasks, and bases that support their stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clinstack.errors import InputError
from clinstack.notes.read import examples_files, notes_files
from clinstack.recipe import FinetuneRecipe, PretrainRecipe, TrainingStageRecipe
from clinstack.study.cells import Cell
from clinstack.study.grid import GridCell
from clinstack.tasks import Task

if TYPE_CHECKING:
    from clinstack.model.support import Support

_NO_MATTER = {"run", "examples", "share_features", "evaluation"}
"""Keys that do not change what a base supports."""


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuse what would fail sooner or later: no Notes, or a base that does not support a method. Reads no weights.

    Raises
    ------
    InputError
        Naming the cell.
    """
    from clinstack.model.support import check_support

    for cell in cells:
        assert isinstance(cell.recipe, PretrainRecipe)
        try:
            notes_files(Path(cell.recipe.notes))
            check_support(cell.recipe, None)
        except InputError as error:
            raise InputError(f"cell {cell.name}: {error}") from None


def check_grid(cells: Sequence[GridCell]) -> dict[str, Support]:
    """Check a grid's cells in the same way, and return what its pretrainings and final Runs come to, by cell.

    A clinical adapter that is made on the way counts with the sizes that its recipe gives it.

    Raises
    ------
    InputError
        Naming the cell.
    """
    from clinstack.model.support import check_support

    made = {one.cell.recipe.run: one.cell.recipe for one in cells if isinstance(one.cell.recipe, PretrainRecipe)}
    known: dict[tuple[int | None, str], Support] = {}
    result = {}
    for one in cells:
        recipe = one.cell.recipe
        if not isinstance(recipe, TrainingStageRecipe):
            continue  # a search's recipe is that of its final Runs
        try:
            classes = _check_files(recipe)
            checked = _as_if_made(recipe, made)
            key = (classes, checked.model_dump_json(exclude=_NO_MATTER))
            if key not in known:
                known[key] = check_support(checked, classes)
            result[one.cell.name] = known[key]
        except InputError as error:
            raise InputError(f"{one.cell.name}: {error}") from None
    return result


def _check_files(recipe: TrainingStageRecipe) -> int | None:
    """Refuse missing tables; return the number of a task's classes."""
    if isinstance(recipe, FinetuneRecipe):
        examples_files(Path(recipe.examples))
        return len(Task.load(Path(recipe.examples)).classes)
    assert isinstance(recipe, PretrainRecipe)
    notes_files(Path(recipe.notes))
    return None


def _as_if_made(recipe: TrainingStageRecipe, made: Mapping[str, PretrainRecipe]) -> TrainingStageRecipe:
    """Return a recipe in which adapters that a pretraining will make are new ones of the same sizes."""
    adapters = []
    for adapter in recipe.adapters:
        source = made.get(str(adapter.path))
        if source is None or (Path(str(adapter.path)) / "stack").is_dir():
            adapters.append(adapter)
            continue
        shape = source.adapters[-1]
        adapters.append(shape.model_copy(update={"name": adapter.name}))
    return recipe.model_copy(update={"adapters": tuple(adapters)})
