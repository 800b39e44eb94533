"""What the next trial is: a pure function of the seed, its number and the trials before it.

Optuna's samplers draw from generators of their own, which a killed process loses. Here each trial gets a new sampler,
seeded by its number and shown the trials before it, so a sweep that was killed proposes the same as one that was not.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clinstack.recipe import SweepRecipe
from clinstack.sweep.space import Space, Values, applies

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial


def number_of_trials(recipe: SweepRecipe, space: Space) -> int:
    """Return how many trials there are: as many as asked for, but each configuration once."""
    return recipe.trials if space.size is None else min(recipe.trials, space.size)


def propose(recipe: SweepRecipe, space: Space, earlier: Sequence[FrozenTrial], number: int) -> Values:
    """Return the values of the trial ``number``; they are those of no earlier trial.

    Parameters
    ----------
    recipe : SweepRecipe
    space : Space
    earlier : sequence of optuna.trial.FrozenTrial
        All trials so far, also those that run elsewhere.
    number : int
        Below `number_of_trials`.
    """
    if recipe.sampler == "grid":
        grid = list(space.configurations())
        random.Random(recipe.seed).shuffle(grid)
        return grid[number]
    seen = [space.values_of(trial.params) for trial in earlier]
    values = _sample(recipe, space, earlier, number)
    if values not in seen:
        return values
    # Training is a function of the recipe: the same again would teach nothing.
    chance = random.Random(f"{recipe.seed}/{number}")
    if space.size is None:
        return _sample(
            recipe.model_copy(update={"sampler": "random", "seed": chance.getrandbits(31)}), space, [], number
        )
    return chance.choice([values for values in space.configurations() if values not in seen])


def _sample(recipe: SweepRecipe, space: Space, earlier: Sequence[FrozenTrial], number: int) -> Values:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=_sampler(recipe, number), direction=recipe.direction)
        study.add_trials([shown for trial in earlier if (shown := _shown(trial, recipe.direction)) is not None])
        trial = study.ask()
        values: Values = {}
        for key, entry in space.entries.items():
            if applies(entry, values):
                values[key] = space.values_of({key: _suggest(trial, space, key)})[key]
        return values


def _sampler(recipe: SweepRecipe, number: int) -> BaseSampler:
    from optuna.samplers import GPSampler, RandomSampler, TPESampler

    seed = (recipe.seed * 1_000_003 + number) % 2**32
    if recipe.sampler == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if recipe.sampler == "tpe":
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    return RandomSampler(seed=seed)


def _shown(trial: FrozenTrial, direction: str) -> FrozenTrial | None:
    """Return a trial as the sampler sees it: one that was given up early counts with the best it reached.

    The GP sampler would look at complete trials only, and learn nothing from the others however many there are.
    """
    from optuna.trial import TrialState, create_trial

    value, state = trial.value, trial.state
    if state == TrialState.PRUNED:
        figures = trial.intermediate_values.values()
        value, state = (min(figures) if direction == "minimize" else max(figures)), TrialState.COMPLETE
    if state not in {TrialState.COMPLETE, TrialState.RUNNING}:
        return None
    return create_trial(state=state, value=value, params=trial.params, distributions=trial.distributions)


def _suggest(trial: Trial, space: Space, key: str) -> object:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distribution = space.distribution(key)
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
