"""A study: a grid of recipes, each cell an ordinary Run, resumable cell by cell, ending in a table of the paper."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clinstack.engine.progress import console
from clinstack.errors import InputError
from clinstack.files import write_text
from clinstack.notes.read import notes_files
from clinstack.recipe import (
    PretrainRecipe,
    StudyRecipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
    read_yaml,
    recipe_file,
    set_value,
)
from clinstack.run import locked_folder
from clinstack.study.cells import Cell, fail_if_any, is_done, run_cells, usual_workers
from clinstack.study.table2 import TablePaths, write_table2

EMBEDDED = "embedded"


def study(recipe: StudyRecipe, *, fresh: bool = False) -> TablePaths:
    """Run the cells of a study that are not done, and write its table.

    Parameters
    ----------
    recipe : StudyRecipe
    fresh : bool
        Begin every chosen cell anew.

    Raises
    ------
    InputError
        A cell's recipe is wrong, before anything runs; or ``run`` is the directory of something else.
    ClinstackError
        Cells failed; the table of the others is written all the same.
    """
    resolved = resolve(recipe)
    cells = study_cells(resolved)
    root = Path(resolved.run)
    with locked_folder(root, "study", lambda: _refuse_run(root)):
        write_text(root / "study.yaml", dump_recipe(resolved))
        left = cells if fresh else [cell for cell in cells if not is_done(cell)]
        if len(left) < len(cells):
            console.print(f"{len(cells) - len(left)} of {len(cells)} Runs are done already.")
        outcomes = {}
        if left:
            check_cells(left)
            workers, threads = _workers_and_threads(resolved, left)
            outcomes = run_cells(left, workers, threads=threads, fresh=fresh)
        failures = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure is not None}
        if len(failures) == len(cells):
            fail_if_any(outcomes, "the study")
        papers = {cell.name: cell.paper for cell in resolved.chosen}
        paths = write_table2(
            root,
            {cell.name: (Path(cell.recipe.run), papers[cell.name]) for cell in cells if cell.name not in failures},
            failures,
            resolved.evaluation,
        )
        if failures:
            paths.show(console)
        fail_if_any(outcomes, "the study")
    return paths


def resolve(recipe: StudyRecipe) -> StudyRecipe:
    """Return the study itself, or with the cells of the one that stands in for it on the embedded base."""
    if recipe.base != EMBEDDED or recipe.embedded is None:
        return recipe
    other = load_recipe(Path(recipe.embedded), stage="study")
    assert isinstance(other, StudyRecipe)
    console.print(f"The published sizes do not fit the embedded base: the cells are those of {recipe.embedded}.")
    values = recipe.model_dump(mode="json", exclude={"embedded"})
    values.update(
        cells=other.model_dump(mode="json")["cells"],
        # The user's stand last, so that they win.
        common=_joined(other.common, recipe.common),
        notes=recipe.notes or other.notes,
    )
    resolved = parse_recipe(values, recipe.embedded)
    assert isinstance(resolved, StudyRecipe)
    return resolved


def study_cells(recipe: StudyRecipe) -> list[Cell]:
    """Return the chosen cells with their resolved recipes.

    Raises
    ------
    InputError
        Naming the cell and what is wrong with its recipe.
    """
    cells = []
    for cell in recipe.chosen:
        source = f"cell {cell.name} ({cell.recipe})"
        values = read_yaml(recipe_file(Path(cell.recipe)))
        for key, value in _joined(cell.overrides, recipe.common).items():
            set_value(values, key, value, source)
        for key, value in (("base", recipe.base), ("notes", recipe.notes)):
            if value is not None:
                values[key] = value
        values["run"] = str(Path(recipe.run) / cell.name)
        parsed = parse_recipe(values, source)
        if not isinstance(parsed, PretrainRecipe):
            raise InputError(
                f"{source}: {recipe.table} is a table of pretrained stacks; this is a {parsed.stage} recipe."
            )
        cells.append(Cell(cell.name, parsed))
    return cells


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


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return overrides, flat with dotted keys; those of ``second`` stand last."""
    return {**_flat(first), **_flat(second)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def _workers_and_threads(recipe: StudyRecipe, cells: list[Cell]) -> tuple[int, int]:
    import torch

    gpu = torch.cuda.is_available()
    workers = recipe.workers or (1 if gpu else min(usual_workers(), len(cells)))
    toy = all(isinstance(cell.recipe, PretrainRecipe) and cell.recipe.base == EMBEDDED for cell in cells)
    return workers, 1 if toy and not gpu else max(1, (os.cpu_count() or 1) // workers)


def _refuse_run(root: Path) -> None:
    if (root / "run.json").exists():
        raise InputError(f"run: {root} is one Run; name another directory for the study.")
