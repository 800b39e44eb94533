"""The cells of a grid: for each base, stack and task a search, where it has one, and a final Run for each seed.

<run>/<base>/pretrain                         the base's clinical adapter, where a recipe makes it
<run>/<base>/<stack>/<task>/search            a sweep on the validation patients
<run>/<base>/<stack>/<task>/seed-<seed>       the final Runs, with the best values of the search
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.recipe import (
    AdapterRecipe,
    FinetuneRecipe,
    PretrainRecipe,
    StudyRecipe,
    SweepRecipe,
    parse_recipe,
)
from clinstack.recipe.grid import CLINICAL, PRETRAIN, SEARCH, GridBase, GridSearch, GridSpec, TaskChange
from clinstack.study.cells import Cell
from clinstack.study.overrides import joined, resolved_recipe
from clinstack.sweep.propose import number_of_trials
from clinstack.sweep.space import Space


@dataclass(frozen=True)
class GridCell:
    """A cell, and where it stands in the grid.

    Parameters
    ----------
    cell : Cell
    role : {"pretrain", "search", "final"}
    base : GridBase
    spec : GridSpec or None
        None for a pretraining.
    task : str or None
    seed : int
        A search's is that of its trials.
    shares : bool
        Whether its features are those that another cell has computed.
    trials : int
        Of a search, or of the one behind a final Run: each configuration of its space once at most. 1 without one.
    """

    cell: Cell
    role: str
    base: GridBase
    spec: GridSpec | None = None
    task: str | None = None
    seed: int = 0
    shares: bool = False
    trials: int = 1


def grid_cells(recipe: StudyRecipe) -> list[GridCell]:
    """Return the cells that ``only`` leaves, and those that they need, with their recipes.

    Raises
    ------
    InputError
        Naming the base, the stack, the task and the key that is wrong.
    """
    result: list[GridCell] = []
    for base in recipe.bases:
        specs = [spec for spec in recipe.specs if spec.bases is None or base.name in spec.bases]
        finals = [cell for spec in specs for cell in _spec_cells(recipe, base, spec)]
        if any(one.spec is not None and one.spec.needs_clinical for one in finals):
            result += _pretrain_cells(recipe, base)
        result += finals
    return result


def _pretrain_cells(recipe: StudyRecipe, base: GridBase) -> list[GridCell]:
    clinical = base.clinical
    assert clinical is not None  # the schema has seen to it
    if clinical.recipe is None:
        if not Path(str(clinical.path)).exists():
            raise InputError(
                f"bases ({base.name}): clinical: {clinical.path} does not exist; name a Run or a Stack, or give "
                "clinical: {recipe: ...} to train one first."
            )
        return []
    source = f"bases ({base.name}): clinical ({clinical.recipe})"
    own = {"base": recipe.base or base.base, "run": _clinical_path(recipe, base)}
    notes = clinical.notes or recipe.notes
    parsed = resolved_recipe(clinical.recipe, joined(clinical.overrides, {**own, "notes": notes}), source, PRETRAIN)
    assert isinstance(parsed, PretrainRecipe)
    return [GridCell(Cell(f"{base.name}/{PRETRAIN}", parsed), "pretrain", base, seed=parsed.training.seed)]


def _clinical_path(recipe: StudyRecipe, base: GridBase) -> str:
    assert base.clinical is not None
    return base.clinical.path or str(Path(recipe.run) / base.name / PRETRAIN)


def _spec_cells(recipe: StudyRecipe, base: GridBase, spec: GridSpec) -> list[GridCell]:
    """Return the cells of a stack on a base; where its features are frozen, the first computes them for all tasks."""
    result: list[GridCell] = []
    names = {
        task: [name for seed in recipe.seeds if recipe.wants(name := f"{base.name}/{spec.label}/{task}/seed-{seed}")]
        for task in recipe.tasks
    }
    tasks = [task for task in recipe.tasks if names[task]]
    for task in tasks:
        shared = [other for other in tasks if other != task] if spec.trains_head_only and not result else []
        own = _task_cells(recipe, base, spec, task, set(names[task]), shared)
        if spec.trains_head_only and result:
            first = result[0].cell.name
            own = [_behind(cell, first) for cell in own]
        result += own
    return result


def _behind(one: GridCell, first: str) -> GridCell:
    return replace(one, cell=replace(one.cell, after=(*one.cell.after, first)), shares=True)


def _task_cells(
    recipe: StudyRecipe, base: GridBase, spec: GridSpec, task: str, wanted: set[str], shared: Sequence[str]
) -> list[GridCell]:
    change = spec.tasks.get(task, TaskChange(search=spec.search))
    place = f"{base.name}/{spec.label}/{task}"
    values = _overrides(recipe, base, spec, task, change, shared)
    needs = (f"{base.name}/{PRETRAIN}",) if _waits(base, spec) else ()
    # Without a search: its own schema names a wrong key best.
    plain = resolved_recipe(spec.recipe, {**values, "run": "-"}, f"{place} ({spec.recipe})", "finetune")
    result: list[GridCell] = []
    search, trials = None, 1
    if change.search is not None:
        search, space = _sweep(recipe, spec, change.search, values, place)
        # The first values of the space, in the place of those that are not known yet.
        plain, trials = space.example, number_of_trials(search, space)
        cell = Cell(f"{place}/{SEARCH}", search, needs)
        result.append(GridCell(cell, "search", base, spec, task, recipe.seeds[0], trials=trials))
        needs = (cell.name,)
    assert isinstance(plain, FinetuneRecipe)
    for seed in recipe.seeds:
        name = f"{place}/seed-{seed}"
        if name not in wanted:
            continue
        final = plain.model_copy(
            update={
                "run": str(Path(recipe.run) / name),
                "training": plain.training.model_copy(update={"seed": seed}),
            }
        )
        # Its features are there when its search, or the Run of another seed, is done.
        first = () if not result or not spec.trains_head_only else (result[0].cell.name,)
        after = tuple(name for name in first if name not in needs)
        cell = Cell(name, final, needs, after, search)
        result.append(GridCell(cell, "final", base, spec, task, seed, shares=bool(result), trials=trials))
    return result


def _waits(base: GridBase, spec: GridSpec) -> bool:
    return spec.needs_clinical and base.clinical is not None and base.clinical.recipe is not None


def _overrides(
    recipe: StudyRecipe, base: GridBase, spec: GridSpec, task: str, change: TaskChange, shared: Sequence[str]
) -> dict[str, Any]:
    examples = Path(str(recipe.notes)) / "examples"
    own: dict[str, Any] = {
        "base": recipe.base or base.base,
        "examples": str(examples / task),
        "adapters": [_plain(adapter, recipe, base) for adapter in spec.adapters],
        "training.seed": recipe.seeds[0],
    }
    if shared:
        own["share_features"] = [str(examples / other) for other in shared]
    return joined(own, base.overrides, spec.overrides, change.overrides, recipe.common)


def _plain(adapter: AdapterRecipe, recipe: StudyRecipe, base: GridBase) -> dict[str, Any]:
    values = adapter.model_dump(mode="json")
    if adapter.path == CLINICAL:
        values["path"] = _clinical_path(recipe, base)
    return values


def _sweep(
    recipe: StudyRecipe, spec: GridSpec, search: GridSearch, overrides: dict[str, Any], place: str
) -> tuple[SweepRecipe, Space]:
    source = f"{place}/{SEARCH} ({spec.recipe})"
    values = {
        "stage": "sweep",
        "run": str(Path(recipe.run) / place / SEARCH),
        "recipe": spec.recipe,
        "overrides": overrides,
        **search.model_dump(mode="json"),
    }
    sweep = parse_recipe(values, source)
    assert isinstance(sweep, SweepRecipe)
    try:
        return sweep, Space.of(sweep)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def check_equal_budgets(cells: Sequence[GridCell]) -> None:
    """Refuse a grid whose rows do not have the same chances.

    Raises
    ------
    InputError
        Naming two cells and in what they differ: trials, epochs, batch size, or the learning rates that they try.
    """
    finals = [one for one in cells if one.role == "final"]
    for one in finals[1:]:
        first, own = (budget(cell) for cell in (finals[0], one))
        for key, value in own.items():
            if first[key] != value:
                raise InputError(
                    f"equal_budgets: {finals[0].cell.name} has {key} {first[key]}, {one.cell.name} has {value}; make "
                    "them equal, or set equal_budgets: false."
                )


def budget(one: GridCell) -> dict[str, Any]:
    """Return what a final Run was given: trials before it, epochs, steps, batch size, tokens, learning rates tried."""
    recipe = one.cell.recipe
    assert isinstance(recipe, FinetuneRecipe)
    search, training = one.cell.best_of, recipe.training
    rates = None if search is None else search.space.get("training.learning_rate")
    tried = training.learning_rate if rates is None else rates.model_dump(mode="json", exclude_defaults=True)
    return {
        "trials": one.trials,
        "epochs": training.epochs,
        "max_steps": training.max_steps,
        "batch_size": training.batch_size * training.accumulate,
        "batch_tokens": training.batch_tokens,
        "max_tokens": recipe.max_tokens,
        "learning_rates": tried,
    }
