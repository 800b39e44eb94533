"""What a private training costs, before its first step: steps, noise and patients are known then."""

from __future__ import annotations

import math
from typing import Any

from clinstack.errors import InputError
from clinstack.privacy.accountant import Mechanism, cost, find_noise_multiplier, usual_delta
from clinstack.recipe.privacy import PrivacyRecipe
from clinstack.recipe.training import TrainingRecipe

UNIT = "patient"


def steps_in_an_epoch(recipe: PrivacyRecipe, patients: int) -> int:
    """Return the steps after which each patient was drawn once on average."""
    return math.ceil(patients / recipe.patients_per_step)


def planned_steps(recipe: PrivacyRecipe, training: TrainingRecipe, patients: int) -> int:
    """Return the steps of a whole private training."""
    total = steps_in_an_epoch(recipe, patients) * training.epochs
    return min(total, training.max_steps or total)


def guarantee(recipe: PrivacyRecipe, patients: int, steps: int) -> dict[str, Any]:
    """Return what a training costs, as ``run.json`` has it.

    Parameters
    ----------
    recipe : PrivacyRecipe
    patients : int
        Training patients.
    steps : int
        Planned; a training that ends early has cost less.

    Returns
    -------
    dict
        ``unit, epsilon, delta, noise_multiplier, clip, sampling_rate, steps, patients, patients_per_step,
        rows_per_patient, accountant, epsilon_rdp``.

    Raises
    ------
    InputError
        If there are fewer patients than a step is to have, epsilon is out of reach, or Opacus is not installed.
    """
    if recipe.patients_per_step > patients:
        raise InputError(
            f"privacy.patients_per_step: {recipe.patients_per_step} of {patients} training patients cannot be drawn; "
            "lower it."
        )
    delta = usual_delta(patients) if recipe.delta is None else recipe.delta
    rate = recipe.patients_per_step / patients
    noise = recipe.noise_multiplier
    if noise is None:
        assert recipe.epsilon is not None
        noise = find_noise_multiplier(recipe.epsilon, delta, rate, steps)
    spent = cost([Mechanism(rate, noise, steps)], delta)
    return {
        "unit": UNIT,
        "epsilon": spent.epsilon,
        "delta": delta,
        "noise_multiplier": noise,
        "clip": recipe.clip,
        "sampling_rate": rate,
        "steps": steps,
        "patients": patients,
        "patients_per_step": recipe.patients_per_step,
        "rows_per_patient": recipe.rows_per_patient,
        "accountant": spent.accountant,
        "epsilon_rdp": spent.epsilon_rdp,
    }
