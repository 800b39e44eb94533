"""A study: a grid of recipes, each cell an ordinary Run, resumable cell by cell, ending in a table of the paper."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clinstack.engine.progress import console
from clinstack.errors import InputError
from clinstack.files import write_text
from clinstack.recipe import PretrainRecipe, StudyRecipe, TrainingStageRecipe, dump_recipe, load_recipe, parse_recipe
from clinstack.run import locked_folder
from clinstack.study.cells import Cell, Outcome, fail_if_any, is_done, run_cells, usual_workers
from clinstack.study.cost import Cost, cell_costs, machine_speed
from clinstack.study.devices import device_names
from clinstack.study.grid import GridCell, check_equal_budgets, grid_cells
from clinstack.study.overrides import joined, resolved_recipe
from clinstack.study.preview import cost_table
from clinstack.study.record import write_record
from clinstack.study.reporting import Written
from clinstack.study.schedule import in_order
from clinstack.study.support import check_cells, check_grid
from clinstack.study.table2 import write_table2

EMBEDDED = "embedded"
ENCODER = "embedded-encoder"
_OF_THE_USER = ("run", "notes", "tasks", "seeds", "only", "workers", "devices", "evaluation", "common")
"""Keys of a study that stay where another study's cells stand in for its own."""


@dataclass(frozen=True)
class Means:
    """What a study runs on.

    Parameters
    ----------
    workers : int
        Cells at a time.
    threads : int
        Of PyTorch in each worker.
    devices : tuple of str
        ``CUDA_VISIBLE_DEVICES`` of the workers; empty without GPUs.
    """

    workers: int
    threads: int
    devices: tuple[str, ...]


def study(recipe: StudyRecipe, *, fresh: bool = False) -> Written:
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
    if resolved.is_grid:
        return _run_grid(resolved, fresh)
    cells = study_cells(resolved)
    root = Path(resolved.run)
    with locked_folder(root, "study", lambda: _refuse_run(root)):
        write_text(root / "study.yaml", dump_recipe(resolved))
        left = _not_done(cells, fresh)
        outcomes: dict[str, Outcome] = {}
        if left:
            check_cells(left)
            means = means_of(resolved, left)
            outcomes = run_cells(left, means.workers, threads=means.threads, fresh=fresh, devices=means.devices)
        failures = _failures(outcomes)
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


def _run_grid(recipe: StudyRecipe, fresh: bool) -> Written:
    cells = grid_cells(recipe)
    if recipe.equal_budgets:
        check_equal_budgets(cells)
    root = Path(recipe.run)
    with locked_folder(root, "study", lambda: _refuse_run(root)):
        write_text(root / "study.yaml", dump_recipe(recipe))
        names = {cell.name for cell in _not_done([one.cell for one in cells], fresh)}
        outcomes: dict[str, Outcome] = {}
        if names:
            means = means_of(recipe, [one.cell for one in cells])
            costs = grid_costs(cells, means)
            left = in_order([one for one in cells if one.cell.name in names], _seconds(costs))
            console.print(cost_table(left, costs, means.workers, "What there is to do"))
            write_record(root, recipe, cells)
            outcomes = run_cells(
                [one.cell for one in left],
                means.workers,
                threads=means.threads,
                fresh=fresh,
                devices=means.devices,
                costs=_seconds(costs),
            )
        failures = _failures(outcomes)
        write_record(root, recipe, cells, failures)
        if not any(is_done(one.cell) for one in cells if one.role == "final"):
            fail_if_any(outcomes, "the study")
        from clinstack.report.study_report import write_study_report

        paths: Written = write_study_report(root, recipe.evaluation, failures)
        if failures:
            paths.show(console)
        fail_if_any(outcomes, "the study")
    return paths


def grid_costs(cells: Sequence[GridCell], means: Means) -> dict[str, Cost]:
    """Check a grid's cells, and return the estimated cost of each on this machine.

    Raises
    ------
    InputError
        Naming the cell that would fail.
    """
    supports = check_grid(cells)

    @lru_cache
    def speed_of(width: int) -> object:
        return machine_speed(width, means.threads)

    return cell_costs(cells, supports, speed_of)  # type: ignore[arg-type]  # what lru_cache makes of it


def resolve(recipe: StudyRecipe) -> StudyRecipe:
    """Return the study itself, or with the cells of the one that stands in for it on the embedded base."""
    if recipe.base != EMBEDDED or recipe.embedded is None:
        return recipe
    other = load_recipe(Path(recipe.embedded), stage="study")
    assert isinstance(other, StudyRecipe)
    console.print(f"The published sizes do not fit the embedded base: the cells are those of {recipe.embedded}.")
    values = recipe.model_dump(mode="json", exclude={"embedded"})
    if other.is_grid:
        # The bases are the stand-in's too: an encoder does not become the decoder of that name.
        own = {key: values[key] for key in _OF_THE_USER}
        values = {**other.model_dump(mode="json", exclude={"embedded"}), **own, "table": recipe.table}
    else:
        values["cells"] = other.model_dump(mode="json")["cells"]
    # The user's stand last, so that they win.
    values.update(common=joined(other.common, recipe.common), notes=recipe.notes or other.notes)
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
    if recipe.is_grid:
        return [one.cell for one in grid_cells(recipe)]
    cells = []
    for cell in recipe.chosen:
        source = f"cell {cell.name} ({cell.recipe})"
        own = {key: value for key, value in (("base", recipe.base), ("notes", recipe.notes)) if value is not None}
        own["run"] = str(Path(recipe.run) / cell.name)
        parsed = resolved_recipe(cell.recipe, joined(cell.overrides, recipe.common, own), source)
        if not isinstance(parsed, PretrainRecipe):
            raise InputError(
                f"{source}: {recipe.table} is a table of pretrained stacks; this is a {parsed.stage} recipe."
            )
        cells.append(Cell(cell.name, parsed))
    return cells


def means_of(recipe: StudyRecipe, cells: Sequence[Cell]) -> Means:
    """Return how many cells run at a time, and on what."""
    import torch

    devices = device_names(torch.cuda.device_count(), recipe.devices)
    workers = recipe.workers or (len(devices) if devices else min(usual_workers(), len(cells)))
    recipes = [cell.recipe for cell in cells if isinstance(cell.recipe, TrainingStageRecipe)]
    toy = all(one.base in {EMBEDDED, ENCODER} for one in recipes)
    threads = 1 if toy and not devices else max(1, (os.cpu_count() or 1) // workers)
    return Means(workers, threads, devices)


def _not_done(cells: Sequence[Cell], fresh: bool) -> list[Cell]:
    left = list(cells) if fresh else [cell for cell in cells if not is_done(cell)]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} Runs are done already.")
    return left


def _seconds(costs: Mapping[str, Cost]) -> dict[str, float]:
    return {name: cost.seconds for name, cost in costs.items()}


def _failures(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure is not None}


def _refuse_run(root: Path) -> None:
    if (root / "run.json").exists():
        raise InputError(f"run: {root} is one Run; name another directory for the study.")
