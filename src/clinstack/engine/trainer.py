"""The trainer of all stages: a plain loop over optimizer steps that can be killed at any moment.

Everything random is a function of (seed, step) or (seed, epoch), so a checkpoint needs no generator's state and a
resumed run is, on the same machine, bit for bit the uninterrupted one.

Of one subject each: `step` (gradients, whatever memory there is), `optimizer` (AdamW and its schedule), `guards` (what
ends a training), `precision`, `distributed` and `sharding` (several devices), `tracking` (curves), `checkpoint`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clinstack.engine.checkpoint import (
    BEST,
    LAST,
    TrainingState,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from clinstack.engine.distributed import world
from clinstack.engine.guards import check_training_kept_the_spec
from clinstack.engine.optimizer import build_optimizer, check_optimizer, set_learning_rate
from clinstack.engine.precision import first_scale, forward_precision
from clinstack.engine.private import PrivateTraining, training_patients
from clinstack.engine.progress import console, progress_bar
from clinstack.engine.secret import Secret
from clinstack.engine.sharding import WholeTensors
from clinstack.engine.step import Objective, compute_gradients
from clinstack.engine.tracking import tracked
from clinstack.model.lineage import tensors_hash
from clinstack.model.stack import Stack
from clinstack.privacy.guarantee import steps_in_an_epoch
from clinstack.recipe import TrainingRecipe
from clinstack.recipe.privacy import PrivacyRecipe
from clinstack.run import PrunedError, Run

OnValidation = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Plan:
    """How many steps there are, and after which of them the stack is validated."""

    steps_per_epoch: int
    total: int
    validate_every: int

    @classmethod
    def of(cls, objective: Objective, settings: TrainingRecipe, privacy: PrivacyRecipe | None = None) -> Plan:
        """Return the plan of a recipe. In an epoch of a private one each patient is drawn once on average."""
        if privacy is None:
            steps_per_epoch = math.ceil(len(objective.epoch_batches(0)) / settings.accumulate)
        else:
            steps_per_epoch = steps_in_an_epoch(privacy, len(training_patients(objective)))
        total = steps_per_epoch * settings.epochs
        return cls(steps_per_epoch, min(total, settings.max_steps or total), settings.validate_every or steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 1, that a number of finished steps ends in."""
        return math.ceil(step / self.steps_per_epoch)

    def validations_due(self, step: int) -> int:
        """Return how many validations belong before the next step; the end has one, also when `max_steps` made it."""
        return math.ceil(step / self.validate_every) if step == self.total else step // self.validate_every


def train(
    stack: Stack,
    run: Run,
    settings: TrainingRecipe,
    objective: Objective,
    description: str,
    on_validation: OnValidation | None = None,
    *,
    frozen: str | None = None,
    privacy: PrivacyRecipe | None = None,
) -> TrainingState:
    """Train what the stack's spec calls trainable; afterwards the stack holds the weights of the best validation.

    ``on_validation`` gets the number of each validation, from 1, and its figures. When it raises
    `clinstack.run.PrunedError`, training ends there, and so does the Run. A validation that is done again after a kill
    is handed to it again. ``frozen`` is the hash of the frozen tensors, where an earlier training of this network has
    left it in its state. With ``privacy`` the training is private by patient: see `clinstack.engine.private`.

    Raises
    ------
    StackError
        If a frozen tensor changed, or a trainable one had no gradient or did not move.
    DivergedError
        If the loss or a gradient is not finite, or the loss jumped; the last checkpoint is from before.
    """
    plan = Plan.of(objective, settings, privacy)
    _prepare(stack, settings, plan)
    optimizer = build_optimizer(stack, settings)
    check_optimizer(stack, optimizer)
    last, best = run.checkpoints / LAST, run.checkpoints / BEST
    restored = load_checkpoint(last, stack, optimizer)
    state = restored or _begin(stack, frozen)
    private = None
    if privacy is not None and state.step < plan.total and not _is_out_of_patience(state, settings):
        private = PrivateTraining.begin(privacy, run, stack, objective, plan.total, begun=restored is not None)
    run.rewind_log(state.log_size)
    _say_what_differs(run, state)
    parameters = stack.trainable_parameters()
    batches: Sequence[Sequence[Any]] = []
    batches_of = -1
    with (
        tracked(run, settings.tracking, description, state.step) as tracker,
        progress_bar(description, plan.total, done=state.step, unit=objective.unit if privacy is None else "") as bar,
    ):

        def keep() -> None:
            tracker.flush()
            state.log_size = run.log_size()
            save_checkpoint(last, state, stack, optimizer)

        while True:
            if plan.validations_due(state.step) > len(state.history):
                figures = _validate(stack, state, objective, best, plan)
                run.log({"step": state.step, "epoch": plan.epoch_of(state.step), **figures})
                tracker.log(figures, state.step)
                if on_validation is not None:
                    _tell(on_validation, state, run)
                keep()
            if state.step == plan.total or _is_out_of_patience(state, settings):
                break
            epoch = state.step // plan.steps_per_epoch
            began = time.monotonic()
            units, figures = 0, {}
            if private is not None:
                private.compute_gradients(stack, state, settings, parameters)
            else:
                if batches_of != epoch:
                    batches, batches_of = objective.epoch_batches(epoch), epoch
                at = (state.step % plan.steps_per_epoch) * settings.accumulate
                chosen = batches[at : at + settings.accumulate]
                loss, norm = compute_gradients(stack, state, settings, objective, chosen, parameters)
                units = sum(objective.size(batch) for batch in chosen)
                figures = {"loss": loss, "gradient_norm": norm}
            figures["learning_rate"] = set_learning_rate(optimizer, state.step, plan.total, settings)
            optimizer.step()
            state.step += 1
            stack.after_step(state.step)
            optimizer.zero_grad(set_to_none=True)
            run.log({"step": state.step, "epoch": epoch, **figures})
            if private is None:  # how many tokens a step has read tells whom it drew
                figures[f"{objective.unit}_per_second"] = units / max(time.monotonic() - began, 1e-9)
            tracker.log(figures, state.step)
            # Where a validation is due, the checkpoint follows it: one of this step always holds both.
            if state.step % settings.checkpoint_every == 0 and plan.validations_due(state.step) == len(state.history):
                keep()
            bar.advance(units, note=f"loss {figures['loss']:.3f}" if private is None else "")
    if privacy is not None:
        Secret.forget(run.checkpoints)  # after the last checkpoint no step is taken any more
    check_training_kept_the_spec(stack, state)
    world().wait()  # the main process may still be writing
    load_tensors(best, stack)
    stack.eval()
    return state


def _prepare(stack: Stack, settings: TrainingRecipe, plan: Plan) -> None:
    if settings.gradient_checkpointing:
        stack.use_gradient_checkpointing()
    if settings.compile:
        from clinstack.engine.compile import compile_layers

        compile_layers(stack)
    stack.begin_training(plan.total)


def _begin(stack: Stack, frozen: str | None) -> TrainingState:
    parameters = WholeTensors(stack.trainable_parameters())
    return TrainingState(
        initial={name: tensors_hash({name: parameters[name]}) for name in parameters},
        frozen=frozen or tensors_hash(WholeTensors(stack.frozen_tensors())),
        without_gradient=sorted(parameters),
        loss_scale=first_scale(stack),
        threads=torch.get_num_threads(),
        processes=world().size,
    )


def _say_what_differs(run: Run, state: TrainingState) -> None:
    """Say what makes the rest of a run differ in the last digits from what it would have been."""
    here = world()
    for what, then, now in (
        ("threads", state.threads, torch.get_num_threads()),
        ("processes", state.processes, here.size),
    ):
        if then != now:
            console.print(
                f"[yellow]{run.folder} was begun with {then} {what} and goes on with {now}: "
                "the result can differ in the last digits."
            )


def _validate(stack: Stack, state: TrainingState, objective: Objective, best: Path, plan: Plan) -> dict[str, float]:
    """Measure, keep the weights when they are the best so far (the earlier ones on a tie), and return what to log."""
    stack.eval()
    with torch.inference_mode(), forward_precision(stack):
        # All decide by the same figures, also where two devices round differently.
        figures = world().send(objective.validate())
    best_score = state.best_score
    state.history.append({**figures, "step": state.step, "epoch": plan.epoch_of(state.step)})
    if best_score is None or figures["score"] > best_score:
        state.best = len(state.history) - 1
        save_tensors(best, stack)
    return {f"validation_{key}": value for key, value in figures.items()}


def _tell(on_validation: OnValidation, state: TrainingState, run: Run) -> None:
    try:
        on_validation(len(state.history), state.history[-1])
    except PrunedError:
        Secret.forget(run.checkpoints)  # no step follows
        raise


def _is_out_of_patience(state: TrainingState, settings: TrainingRecipe) -> bool:
    if settings.patience is None or state.best is None:
        return False
    return len(state.history) - 1 - state.best >= settings.patience
