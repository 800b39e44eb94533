"""Private training: DP-SGD by patient (Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1).

::

    all training patients ── each with the chance q, alone ──▶ the patients of a step, with a few rows of each
                                                                        │
      gradient of each patient, cut to the norm clip ◀── forward and backward passes
                  │
                sum  +  noise_multiplier * clip * N(0, 1)  ──  / patients_per_step ──▶ AdamW, as ever

A step of which no patient was drawn is a step too: it adds its noise and counts. Which patients are drawn and what the
noise is follow from a secret (`clinstack.engine.secret`), never from the recipe's seed. What is computed of training
patients before the noise, such as the loss, is neither logged nor shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from clinstack.engine.checkpoint import TrainingState
from clinstack.engine.distributed import world
from clinstack.engine.guards import is_out_of_memory, refuse_gradients
from clinstack.engine.patient_gradients import Drawn, Gradients, PatientGradients, PrivateObjective
from clinstack.engine.patients import PatientItems
from clinstack.engine.secret import Secret
from clinstack.engine.sharding import gradient_norm
from clinstack.engine.step import begin_random_numbers, cut_batches, forget
from clinstack.errors import InputError
from clinstack.files import write_json
from clinstack.privacy.guarantee import guarantee
from clinstack.recipe.privacy import PrivacyRecipe

if TYPE_CHECKING:
    from clinstack.engine.step import Objective
    from clinstack.model.stack import Stack
    from clinstack.recipe import TrainingRecipe
    from clinstack.run import Run


def training_patients(objective: Objective) -> PatientItems:
    """Return the items of each training patient of an objective that was made for private training."""
    patients = cast(PrivateObjective, objective).patients
    assert patients is not None
    return patients


@dataclass
class PrivateTraining:
    """What makes a training private. Make it with `begin`."""

    recipe: PrivacyRecipe
    patients: PatientItems
    sampling_rate: float
    noise_multiplier: float
    secret: Secret
    gradients: PatientGradients

    @classmethod
    def begin(
        cls, recipe: PrivacyRecipe, run: Run, stack: Stack, objective: Objective, steps: int, *, begun: bool
    ) -> PrivateTraining:
        """Return a training that is to begin or to go on; what it costs is in ``run.json`` from now on.

        Parameters
        ----------
        steps : int
            Planned.
        begun : bool
            Whether a checkpoint was restored.

        Raises
        ------
        InputError
            As `guarantee` and `Secret.open`, and for several processes.
        """
        if world().size > 1:
            raise InputError(
                "privacy: a private training runs in one process, which draws its patients and its noise; start "
                "clinstack alone, without accelerate launch or torchrun."
            )
        patients = training_patients(objective)
        if "privacy" not in run.record:
            run.record["privacy"] = guarantee(recipe, len(patients), steps)
            write_json(run.folder / "run.json", run.record)
        record = run.record["privacy"]
        return cls(
            recipe,
            patients,
            record["sampling_rate"],
            record["noise_multiplier"],
            Secret.open(run.checkpoints, begun=begun),
            PatientGradients(stack, cast(PrivateObjective, objective), stack.trainable_parameters()),
        )

    def draw(self, step: int) -> list[Drawn]:
        """Return the patients of a step (from 0), and which of their items are read."""
        chosen = np.flatnonzero(self.secret.uniform("patients", step, len(self.patients)) <= self.sampling_rate)
        most = self.recipe.rows_per_patient
        drawn, at = [], 0
        items_of = [self.patients[patient] for patient in chosen.tolist()]
        turns = self.secret.uniform("items", step, sum(map(len, items_of)))
        for patient, items in zip(chosen.tolist(), items_of, strict=True):
            turn = turns[at : at + len(items)]
            at += len(items)
            if len(items) > most:
                items = items[np.sort(np.argsort(turn, kind="stable")[:most])]
            drawn.append(Drawn(patient, items.tolist()))
        return drawn

    def compute_gradients(
        self, stack: Stack, state: TrainingState, settings: TrainingRecipe, parameters: dict[str, nn.Parameter]
    ) -> None:
        """Leave in each trainable tensor the noisy gradient of a step.

        Raises
        ------
        DivergedError
            If it is not finite, as no clipped sum is.
        ClinstackError
            If a single item does not fit in memory.
        """
        if not stack.network.training:
            stack.train()
        drawn = self.draw(state.step)
        total = self._clipped_sum(drawn, state, settings, parameters)
        if state.without_gradient:
            # Of the gradients themselves: noise would move a tensor that nothing depends on.
            state.without_gradient = [name for name in state.without_gradient if not bool(total[name].any())]
        self._add_noise(total, state.step)
        for name, parameter in parameters.items():
            parameter.grad = total[name].div_(self.recipe.patients_per_step)
        penalty = stack.penalty()  # of the weights alone
        if penalty is not None:
            penalty.backward()
        if not bool(torch.isfinite(gradient_norm(list(parameters.values())))):
            raise refuse_gradients(state)

    def _clipped_sum(
        self,
        drawn: list[Drawn],
        state: TrainingState,
        settings: TrainingRecipe,
        parameters: dict[str, nn.Parameter],
    ) -> Gradients:
        while True:
            # Dropout too is drawn by the secret: what it does to one patient depends on who else is in the pass.
            begin_random_numbers(self.secret.seed("dropout", state.step))
            size = min(settings.batch_size, state.largest_batch or settings.batch_size)
            try:
                return self.gradients.clipped_sum(drawn, self.recipe.clip, size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            forget(list(parameters.values()))
            cut_batches(state, size, world())

    def _add_noise(self, total: Gradients, step: int) -> None:
        """Add noise to the clipped sum, in place; in float64 until it is rounded to what the sum is held in."""
        counts = [tensor.numel() for tensor in total.values()]
        noise = self.secret.normal("noise", step, sum(counts)) * (self.noise_multiplier * self.recipe.clip)
        ends = np.cumsum(counts)
        for tensor, count, end in zip(total.values(), counts, ends.tolist(), strict=True):
            own = torch.from_numpy(noise[end - count : end]).view(tensor.shape)
            tensor.copy_(tensor.double().cpu() + own)
