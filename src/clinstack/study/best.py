"""The final Run of a cell with a search: the recipe with the best values, or the trial that was this Run already."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory, write_json, write_text
from clinstack.recipe import StageRecipe, SweepRecipe, TrainingStageRecipe, dump_recipe
from clinstack.sweep.space import Space, TrialRecipe

_NOT_COPIED = ("checkpoints", ".lock")


def recipe_with_best(search: SweepRecipe, template: StageRecipe) -> TrialRecipe:
    """Return the recipe of a search's trials with its best values, and the seed and the folder of a final Run.

    Parameters
    ----------
    search : SweepRecipe
        Finished.
    template : StageRecipe
        Its ``run`` and its seed are taken.

    Raises
    ------
    InputError
        If the search is not finished.
    """
    assert isinstance(template, TrainingStageRecipe)
    metrics = Path(search.run) / "metrics.json"
    if not metrics.is_file():
        raise InputError(f"{search.run}: this search has no result yet; run the study again.")
    best = read_json(metrics)["best"]["params"]
    return Space.of(search).recipe_of({**best, "training.seed": template.training.seed}, Path(template.run))


def adopt_trial(search: SweepRecipe, recipe: TrialRecipe) -> Path | None:
    """Copy the best trial to a final Run's folder where it is that Run: the same recipe in another folder.

    Training is a function of the recipe, so a second time would bring the same. Nothing is copied over a Run that has
    begun.

    Returns
    -------
    Path or None
        The folder; None where the trial had another seed, or there is something in the folder.
    """
    number = read_json(Path(search.run) / "metrics.json")["best"]["number"]
    trial, target = Path(search.run) / "trials" / str(number), Path(recipe.run)
    record = trial / "run.json"
    if not record.is_file() or read_json(record).get("status") != "done" or (target / "run.json").exists():
        return None
    if (trial / "recipe.yaml").read_text("utf-8") != dump_recipe(recipe.model_copy(update={"run": str(trial)})):
        return None
    with replacing_directory(target) as temporary:
        shutil.copytree(
            trial,
            temporary,
            dirs_exist_ok=True,
            ignore=lambda folder, names: [name for name in names if name in _NOT_COPIED],
        )
        write_text(temporary / "recipe.yaml", dump_recipe(recipe))
        copied_from = os.path.relpath(trial, target)
        write_json(temporary / "run.json", {**read_json(record), "copied_from": copied_from})
    return target
