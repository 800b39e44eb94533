"""The trainer of all stages: a plain loop over optimizer steps that can be killed at any moment.

Everything random is a function of (seed, step) or (seed, epoch), so a checkpoint needs no generator's state and a
resumed run is, on the same machine, bit for bit the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clinstack.engine.checkpoint import (
    BEST,
    LAST,
    TrainingState,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from clinstack.engine.progress import console, progress_bar
from clinstack.errors import DivergedError
from clinstack.model.base import HEAD_MODULE
from clinstack.model.checks import StackError, check_active, check_trainable
from clinstack.model.lineage import tensors_hash
from clinstack.model.stack import Stack
from clinstack.recipe import TrainingRecipe
from clinstack.run import Run

OnValidation = Callable[[int, dict[str, float]], None]


class Objective(Protocol):
    """What a stage trains on."""

    unit: str
    """What `size` counts, for the rate: tokens or notes."""

    def epoch_batches(self, epoch: int) -> Sequence[Any]:
        """Return the epoch's batches, in order; a pure function of the epoch, as many in each."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, float]:
        """Return the summed loss of a batch and its weight."""
        ...

    def size(self, batch: Any) -> int:
        """Return how many units a batch holds."""
        ...

    def validate(self) -> dict[str, float]:
        """Return validation figures; ``score`` is the one to choose by, higher is better."""
        ...


def train(
    stack: Stack,
    run: Run,
    settings: TrainingRecipe,
    objective: Objective,
    description: str,
    on_validation: OnValidation | None = None,
) -> TrainingState:
    """Train what the stack's spec calls trainable; afterwards the stack holds the best epoch's weights.

    ``on_validation`` gets the number of each validation, from 1, and its figures. When it raises
    `clinstack.run.PrunedError`, training ends there, and so does the Run. A validation that is done again after a kill
    is handed to it again.

    Raises
    ------
    StackError
        If a frozen tensor changed, or a trainable one had no gradient or did not move.
    DivergedError
        If the loss is not finite; the last checkpoint is from before.
    """
    parameters = stack.trainable_parameters()
    optimizer = build_optimizer(stack, settings)
    check_optimizer(stack, optimizer)
    steps_per_epoch = math.ceil(len(objective.epoch_batches(0)) / settings.accumulate)
    total = min(steps_per_epoch * settings.epochs, settings.max_steps or steps_per_epoch * settings.epochs)
    last, best = run.checkpoints / LAST, run.checkpoints / BEST
    state = load_checkpoint(last, parameters, optimizer) or _begin(stack)
    run.rewind_log(state.log_size)
    if state.threads != torch.get_num_threads():
        console.print(
            f"[yellow]{run.folder} was begun with {state.threads} threads and goes on with {torch.get_num_threads()}: "
            "the result can differ in the last digits."
        )

    def keep() -> None:
        state.log_size = run.log_size()
        save_checkpoint(last, state, parameters, optimizer)

    batches: Sequence[Any] = []
    batches_of = -1
    with progress_bar(description, total, done=state.step, unit=objective.unit) as bar:
        while True:
            epochs_done = state.step // steps_per_epoch
            # The last step ends its epoch, also when max_steps cut it short.
            epochs_ended = math.ceil(state.step / steps_per_epoch) if state.step == total else epochs_done
            if epochs_ended > len(state.history):
                _validate(stack, run, state, objective, best, epochs_ended)
                if on_validation is not None:
                    on_validation(len(state.history), state.history[-1])
                keep()
            if state.step == total:
                break
            if batches_of != epochs_done:
                batches, batches_of = objective.epoch_batches(epochs_done), epochs_done
            at = (state.step % steps_per_epoch) * settings.accumulate
            chosen = batches[at : at + settings.accumulate]
            loss = _step(stack, state, settings, total, optimizer, objective, chosen, parameters)
            run.log({"step": state.step, "epoch": epochs_done, "loss": loss})
            if state.step % settings.checkpoint_every == 0:
                keep()
            bar.advance(sum(objective.size(batch) for batch in chosen), note=f"loss {loss:.3f}")
    check_training_kept_the_spec(stack, state)
    load_tensors(best, parameters)
    stack.eval()
    return state


def build_optimizer(stack: Stack, settings: TrainingRecipe) -> torch.optim.Optimizer:
    """Return AdamW over exactly the stack's trainable tensors; the head may have a learning rate of its own."""
    head: list[nn.Parameter] = []
    adapters: list[nn.Parameter] = []
    for name, parameter in stack.trainable_parameters().items():
        (head if name == f"{HEAD_MODULE}.weight" else adapters).append(parameter)
    groups = [
        {"params": adapters, "peak": settings.learning_rate},
        {"params": head, "peak": settings.head_learning_rate or settings.learning_rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )


def check_optimizer(stack: Stack, optimizer: torch.optim.Optimizer) -> None:
    """Invariant 2: the optimizer holds exactly the tensors that the spec calls trainable, and they are trainable.

    Raises
    ------
    StackError
        Naming a tensor that is there and should not be, or is missing.
    """
    check_active(stack)
    check_trainable(stack)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in stack.network.named_parameters():
        if (id(parameter) in held) != parameter.requires_grad:
            raise StackError(
                f"{name} is {'in' if id(parameter) in held else 'not in'} the optimizer, against the spec."
            )


def learning_rate_factor(step: int, total: int, settings: TrainingRecipe) -> float:
    """Return the share of the peak learning rate at a step (from 0): linear warm-up, then the schedule to 0."""
    warmup = int(settings.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "linear":
        return 1.0 - done
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def check_training_kept_the_spec(stack: Stack, state: TrainingState) -> None:
    """Invariant 2 after training: what is frozen has its old hash, what is trainable had a gradient and moved.

    Raises
    ------
    StackError
        Naming the tensor.
    """
    check_active(stack)
    check_trainable(stack)
    if tensors_hash(stack.frozen_tensors()) != state.frozen:
        raise StackError("A tensor that the spec calls frozen changed during training.")
    if state.step < 2:
        return  # In the first step a new LoRA's A has no gradient, because B is zero.
    if state.without_gradient:
        raise StackError(f"{state.without_gradient[0]} is trainable and never had a gradient.")
    for name, parameter in stack.trainable_parameters().items():
        if tensors_hash({name: parameter}) == state.initial[name]:
            raise StackError(f"{name} is trainable and did not move.")


def _begin(stack: Stack) -> TrainingState:
    parameters = stack.trainable_parameters()
    return TrainingState(
        initial={name: tensors_hash({name: parameter}) for name, parameter in parameters.items()},
        frozen=tensors_hash(stack.frozen_tensors()),
        without_gradient=sorted(parameters),
        threads=torch.get_num_threads(),
    )


def _step(
    stack: Stack,
    state: TrainingState,
    settings: TrainingRecipe,
    total: int,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Sequence[Any],
    parameters: dict[str, nn.Parameter],
) -> float:
    """Do one optimizer step over ``batches`` and return its loss."""
    torch.manual_seed(settings.seed * 1_000_003 + state.step)
    stack.train()
    losses = 0.0
    weights = 0.0
    for batch in batches:
        loss, weight = objective.loss(batch)
        loss.backward()
        losses += loss.item()
        weights += weight
    value = losses / weights
    if not math.isfinite(value):
        raise DivergedError(
            f"The loss is {value} at step {state.step + 1}; the last checkpoint is from before. "
            "Lower training.learning_rate and begin anew with --fresh."
        )
    for parameter in parameters.values():
        if parameter.grad is not None:
            parameter.grad.div_(weights)
    if state.without_gradient:
        state.without_gradient = [name for name in state.without_gradient if not _has_gradient(parameters[name])]
    nn.utils.clip_grad_norm_(list(parameters.values()), settings.gradient_clip)
    factor = learning_rate_factor(state.step, total, settings)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return value


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def _validate(stack: Stack, run: Run, state: TrainingState, objective: Objective, best: Any, epoch: int) -> None:
    """Measure, and keep the weights when they are the best so far (the earlier epoch on a tie)."""
    stack.eval()
    with torch.inference_mode():
        figures = objective.validate()
    scores = [entry["score"] for entry in state.history]
    state.history.append(figures)
    if not scores or figures["score"] > max(scores):
        state.best_epoch = epoch
        save_tensors(best, stack.trainable_parameters())
    run.log({"step": state.step, "epoch": epoch, **{f"validation_{key}": value for key, value in figures.items()}})
