"""The stage `clinstack sweep`: the published search over the values of a recipe (Gema et al. 2023, appendix A).

Each trial is an ordinary Run of an ordinary recipe, chosen among by its validation figures alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack.engine.progress import console
from clinstack.errors import ClinstackError
from clinstack.notes.instructions import instruction_files
from clinstack.notes.read import examples_files, input_hashes, is_synthetic, notes_files
from clinstack.recipe import InstructRecipe, PretrainRecipe, SweepRecipe, read_yaml, recipe_file, stack_label
from clinstack.run import Run, adapter_files, open_run
from clinstack.sweep.propose import number_of_trials
from clinstack.sweep.results import line_of, trial_result, write_results
from clinstack.sweep.space import Space, TrialRecipe
from clinstack.sweep.storage import forget, open_study
from clinstack.sweep.trials import SweepJob, work
from clinstack.sweep.workers import run_workers

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def sweep(recipe: SweepRecipe, *, fresh: bool = False) -> Run:
    """Run the sweep, or go on with it, and return its finished Run.

    Raises
    ------
    InputError
        If the space holds a value that the trials' recipe refuses, before the first trial.
    ClinstackError
        If every worker was killed; the next start goes on.
    """
    space = Space.of(recipe)
    trial_recipe = space.example
    data = _data(trial_recipe)
    hashes = _data_hashes(trial_recipe)
    inputs = {**hashes, **input_hashes([recipe_file(Path(recipe.recipe))])}
    task = data.name if trial_recipe.stage == "finetune" else None
    facts = {
        "stage": "sweep",
        "label": stack_label(trial_recipe.adapters),
        "task": task,
        "synthetic": is_synthetic(data),
    }
    with open_run(_as_begun(recipe), inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        job = SweepJob(recipe, run.folder, _study_name(recipe, space, hashes))
        if fresh and recipe.storage not in {"journal", "sqlite"}:
            forget(recipe, run.folder, job.study)
        total = number_of_trials(recipe, space)
        if total < recipe.trials:
            console.print(f"The space has {total} configurations: {total} trials instead of {recipe.trials}.")

        def say(trial: FrozenTrial) -> None:
            console.print(
                f"  {line_of(trial_result(trial, space), recipe.metric)}", highlight=False, markup=False, soft_wrap=True
            )

        with run.timed("trials"):
            if recipe.workers == 1:
                work(job, say)
            else:
                run_workers(job, say)
        with open_study(recipe, run.folder, job.study, space.validations) as (study, _):
            results = [trial_result(trial, space) for trial in study.get_trials(deepcopy=False)]
        write_results(run.folder, recipe, space, results)
        run.finish()
        return run


def sweep_inputs(recipe: SweepRecipe) -> dict[str, str]:
    """Return the hashes of what a sweep reads: the recipe of its trials, their notes and their adapters."""
    return {**_data_hashes(Space.of(recipe).example), **input_hashes([recipe_file(Path(recipe.recipe))])}


def _data_hashes(recipe: TrialRecipe) -> dict[str, str]:
    data = _data(recipe)
    files_of = {"pretrain": notes_files, "instruct": instruction_files, "finetune": examples_files}[recipe.stage]
    return input_hashes([*files_of(data), *adapter_files(recipe.adapters)])


def _data(recipe: TrialRecipe) -> Path:
    if isinstance(recipe, InstructRecipe):
        return Path(recipe.instructions)
    return Path(recipe.notes if isinstance(recipe, PretrainRecipe) else recipe.examples)


def _as_begun(recipe: SweepRecipe) -> SweepRecipe:
    """Return the recipe with the number of workers that the Run was begun with: another start may have another."""
    path = Path(recipe.run) / "recipe.yaml"
    if not path.is_file():
        return recipe
    try:
        workers = read_yaml(path).get("workers")
    except ClinstackError:
        return recipe  # damaged: opening the Run says so
    return recipe.model_copy(update={"workers": workers}) if isinstance(workers, int) else recipe


def _study_name(recipe: SweepRecipe, space: Space, inputs: dict[str, str]) -> str:
    """Name a study by what decides its trials, so that the same command on another machine joins it.

    Paths do not count, and the contents of the notes do.
    """
    settings: dict[str, Any] = recipe.model_dump(mode="json")
    for key in ("run", "workers", "storage", "recipe", "overrides", "evaluation"):
        del settings[key]
    elsewhere = {"run", "notes", "examples", "base", "share_features"}
    plain = {key: value for key, value in space.plain.items() if key not in elsewhere}
    adapters = [
        {key: value for key, value in adapter.items() if key != "path"} for adapter in plain.pop("adapters", [])
    ]
    parts = [settings, plain, Path(space.example.base).name, adapters, sorted(inputs.values())]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"clinstack-sweep-{digest[:16]}"
