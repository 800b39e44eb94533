"""What a worker does: take a trial, run it to its end or until the pruner ends it, and take the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clinstack.errors import DivergedError, InputError
from clinstack.files import read_json
from clinstack.recipe import InstructRecipe, PretrainRecipe, SweepRecipe
from clinstack.run import PrunedError, Run
from clinstack.sweep.propose import number_of_trials, propose
from clinstack.sweep.space import Space, TrialRecipe
from clinstack.sweep.storage import Locks, Release, open_study

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_PAUSE = 0.5
"""Seconds between two looks at trials that others work on."""


@dataclass(frozen=True)
class SweepJob:
    """All that a worker has to know.

    Parameters
    ----------
    recipe : SweepRecipe
    folder : Path
        The sweep's Run.
    study : str
        Name of the study in its storage.
    """

    recipe: SweepRecipe
    folder: Path
    study: str

    def run_of(self, number: int) -> Path:
        """Return the folder of a trial's Run."""
        return self.folder / "trials" / str(number)


def work(job: SweepJob, on_trial: Callable[[FrozenTrial], None] | None = None) -> None:
    """Run trials until all of the sweep are done, here or elsewhere.

    Parameters
    ----------
    job : SweepJob
    on_trial : callable, optional
        Gets each trial that this worker finished.
    """
    space = Space.of(job.recipe)
    total = number_of_trials(job.recipe, space)
    with open_study(job.recipe, job.folder, job.study, space.validations) as (study, locks):
        while True:
            taken = _take(job, space, study, locks, total)
            if taken is not None:
                number, release = taken
                try:
                    _run_trial(job, space, study, number)
                finally:
                    release()
                if on_trial is not None:
                    on_trial(study.get_trials(deepcopy=False)[number])
            elif sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)) >= total:
                return
            else:
                time.sleep(_PAUSE)


def _take(job: SweepJob, space: Space, study: optuna.Study, locks: Locks, total: int) -> tuple[int, Release] | None:
    """Lock a trial whose worker is gone, or else propose a new one; None when there is neither."""
    from optuna.trial import TrialState, create_trial

    with locks.alone():
        trials = study.get_trials(deepcopy=False)
        for number in range(min(len(trials), total)):
            if trials[number].state.is_finished():
                continue
            release = locks.take(number)
            if release is None:
                continue
            # Finished, perhaps, between the look and the lock.
            if study.get_trials(deepcopy=False)[number].state.is_finished():
                release()
                continue
            return number, release
        number = len(trials)
        if number >= total:
            return None
        release = locks.take(number)
        assert release is not None  # nobody else makes trials now, and nobody locks one that is not made
        values = propose(job.recipe, space, trials, number)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=space.parameters_of(values),
                distributions={key: space.distribution(key) for key in values},
            )
        )
        return number, release


def _run_trial(job: SweepJob, space: Space, study: optuna.Study, number: int) -> None:
    """Run a trial, or what is left of it, and tell the study how it ended."""
    import optuna
    from optuna.trial import TrialState

    storage = study._storage
    trial = optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
    values = space.values_of(trial.params)
    recipe = space.recipe_of(values, job.run_of(number))

    def on_validation(step: int, figures: dict[str, float]) -> None:
        if step not in storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(_figure(figures, job.recipe.metric), step)
        if trial.user_attrs.get("pruned_after") == step or trial.should_prune():
            trial.set_user_attr("pruned_after", step)
            raise PrunedError

    try:
        run = run_stage(recipe, on_validation)
    except PrunedError:
        trial.set_user_attr("seconds", _seconds(job.run_of(number)))
        study.tell(number, state=TrialState.PRUNED)
    except (DivergedError, InputError) as error:
        # A loss that is no number, or values that this base cannot have: others can do better.
        trial.set_user_attr("reason", str(error))
        study.tell(number, state=TrialState.FAIL)
    else:
        figures = kept_figures(run)
        trial.set_user_attr("seconds", _seconds(run.folder))
        trial.set_user_attr("validation", figures)
        study.tell(number, _figure(figures, job.recipe.metric))


def run_stage(recipe: TrialRecipe, on_validation: Callable[[int, dict[str, float]], None] | None = None) -> Run:
    """Run the stage of a recipe."""
    if isinstance(recipe, PretrainRecipe):
        from clinstack.stages.pretrain import pretrain

        return pretrain(recipe, on_validation=on_validation)
    if isinstance(recipe, InstructRecipe):
        from clinstack.stages.instruct import instruct

        return instruct(recipe, on_validation=on_validation)
    from clinstack.stages.finetune import finetune

    return finetune(recipe, on_validation=on_validation)


def kept_figures(run: Run) -> dict[str, float]:
    """Return the validation figures of the weights that a Run keeps: the first with the best score.

    The Run's metrics also hold test figures; a sweep does not look at them.
    """
    history: Sequence[dict[str, float]] = read_json(run.folder / "metrics.json")["validation"]
    return max(history, key=lambda figures: figures["score"])


def _figure(figures: dict[str, float], metric: str) -> float:
    if metric not in figures:
        raise InputError(f"metric: {metric} is unknown, the validation patients have one class only; choose loss.")
    return figures[metric]


def _seconds(folder: Path) -> float:
    """Return how long a Run took, in its last start where it had several."""
    seconds: dict[str, float] = read_json(folder / "run.json")["seconds"]
    return seconds.get("total", 0.0)
