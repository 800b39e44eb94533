"""The gradients of one optimizer step: exact whatever the batch is cut into, and repeatable when it has to be cut.

A step is a function of (weights, seed, step number). When memory runs out, or float16 overflows, its gradients are
thrown away and it is computed anew, in smaller parts or with a smaller scale; so nothing of the failed try stays.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clinstack.engine.checkpoint import TrainingState
from clinstack.engine.distributed import World, world
from clinstack.engine.guards import check_loss, is_out_of_memory, refuse_gradients, refuse_single_item
from clinstack.engine.precision import GROW_AFTER, SMALLEST_SCALE, forward_precision
from clinstack.engine.progress import console
from clinstack.engine.sharding import gradient_norm, local
from clinstack.errors import ClinstackError
from clinstack.model.stack import Stack
from clinstack.recipe import TrainingRecipe


class Objective(Protocol):
    """What a stage trains on."""

    unit: str
    """What `size` counts, for the rate: tokens or notes."""

    def epoch_batches(self, epoch: int) -> Sequence[Sequence[Any]]:
        """Return the epoch's batches, in order, each a sequence of items; a pure function of the epoch."""
        ...

    def loss(self, batch: Sequence[Any]) -> tuple[Tensor, float]:
        """Return the summed loss of a batch and its weight; the sums over its parts add up to it."""
        ...

    def size(self, batch: Sequence[Any]) -> int:
        """Return how many units a batch holds."""
        ...

    def validate(self) -> dict[str, float]:
        """Return validation figures; ``score`` is the one to choose by, higher is better. All processes call it."""
        ...


@dataclass
class _Try:
    """What one pass over a step's batches came to, in all processes."""

    loss: float
    weight: float
    largest_part: int
    out_of_memory: bool


def compute_gradients(
    stack: Stack,
    state: TrainingState,
    settings: TrainingRecipe,
    objective: Objective,
    batches: Sequence[Sequence[Any]],
    parameters: dict[str, nn.Parameter] | None = None,
) -> tuple[float, float]:
    """Leave in each trainable tensor the clipped gradient of the step's mean loss.

    Parameters
    ----------
    parameters : dict of str to Parameter, optional
        The stack's trainable tensors, where the caller has them at hand: looking for them takes longer than a step of
        a head alone.

    Returns
    -------
    loss : float
        Mean over all rows of the step, in all processes.
    norm : float
        Euclidean norm of the gradient before it was clipped.

    Raises
    ------
    DivergedError
        If the loss or the gradient is not finite, or the loss jumped.
    ClinstackError
        If a single item does not fit in memory.
    """
    here = world()
    parameters = stack.trainable_parameters() if parameters is None else parameters
    tensors = list(parameters.values())
    if not stack.network.training:  # as a validation leaves it; telling every module takes a while
        stack.train()
    while True:
        tried = _forward_and_backward(stack, state, settings, objective, batches, here)
        if tried.out_of_memory:
            forget(tensors)
            cut_batches(state, tried.largest_part, here)
            continue
        loss = tried.loss / tried.weight
        if not math.isfinite(loss):
            check_loss(loss, state, None)
        here.sum_gradients(tensors)
        for tensor in tensors:
            if tensor.grad is not None:
                tensor.grad.div_(tried.weight * state.loss_scale)
        penalty = stack.penalty()
        if penalty is not None:
            penalty.backward()
        norm = float(gradient_norm(tensors))
        if math.isfinite(norm):
            break
        forget(tensors)
        if state.loss_scale <= SMALLEST_SCALE or stack.dtype != "float16":
            raise refuse_gradients(state)
        state.loss_scale, state.steps_since_halving = state.loss_scale / 2, 0
    check_loss(loss, state, settings.spike_factor)
    if stack.dtype == "float16":
        state.steps_since_halving += 1
        if state.steps_since_halving == GROW_AFTER:
            state.loss_scale, state.steps_since_halving = state.loss_scale * 2, 0
    if state.without_gradient:
        state.without_gradient = _still_without(state.without_gradient, parameters, here)
    # As torch.nn.utils.clip_grad_norm_, which does not take sharded and whole tensors together.
    shrink = min(1.0, settings.gradient_clip / (norm + 1e-6))
    if shrink < 1:
        for tensor in tensors:
            if tensor.grad is not None:
                tensor.grad.mul_(shrink)
    return loss, norm


def _forward_and_backward(
    stack: Stack,
    state: TrainingState,
    settings: TrainingRecipe,
    objective: Objective,
    batches: Sequence[Sequence[Any]],
    here: World,
) -> _Try:
    # Each process draws its own dropout, and draws the same again when the step is computed anew.
    begin_random_numbers(settings.seed * 1_000_003 + state.step + here.rank * 2**40)
    tried = _Try(0.0, 0.0, 1, False)
    try:
        for batch in batches:
            for part in _parts(batch, state.largest_batch, here):
                tried.largest_part = max(tried.largest_part, len(part))
                with forward_precision(stack):
                    loss, weight = objective.loss(part or batch[:1])
                if not part:
                    # Sharded layers need every process in every pass; this row is another's.
                    loss, weight = loss * 0.0, 0.0
                (loss if state.loss_scale == 1.0 else loss * state.loss_scale).backward()
                tried.loss += loss.item()
                tried.weight += weight
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if here.shards:
            raise ClinstackError(
                f"Memory ran out at step {state.step + 1}. With sharded layers a batch is not cut by itself: halve "
                "training.batch_size, double training.accumulate, and begin anew with --fresh."
            ) from None
        tried.out_of_memory = True
    if here.size > 1:
        tried.loss, tried.weight, failed = here.sum_numbers([tried.loss, tried.weight, float(tried.out_of_memory)])
        tried.out_of_memory = failed > 0
    return tried


def begin_random_numbers(seed: int) -> None:
    """Set the generators of the CPU and of this process's device.

    `torch.manual_seed` does the same, and keeps a traceback for every other kind of device that it knows of.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def _parts(batch: Sequence[Any], largest: int | None, here: World) -> list[Sequence[Any]]:
    """Return this process's rows of a batch in parts that fit; with sharded layers, as many in each process."""
    mine = batch[here.rank :: here.size]
    longest = math.ceil(len(batch) / here.size)
    size = min(longest, largest or longest)
    parts = [mine[at : at + size] for at in range(0, longest, size)]
    return parts if here.shards else [part for part in parts if part]


def cut_batches(state: TrainingState, largest_part: int, here: World) -> None:
    """Halve what goes through the network at once; the batch of the optimizer's step stays what it is."""
    if here.size > 1:
        largest_part = max(here.gather(largest_part))
    if largest_part == 1:
        raise refuse_single_item(state)
    state.largest_batch = math.ceil(largest_part / 2)
    console.print(
        f"[yellow]Memory ran out at step {state.step + 1}: from here on at most {state.largest_batch} items of a batch "
        "go through the network at once. The optimizer's batch, and so the result, stays what the recipe says."
    )


def forget(tensors: Sequence[nn.Parameter]) -> None:
    """Drop the gradients of a try that failed, and what the accelerator keeps for it."""
    for tensor in tensors:
        tensor.grad = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _still_without(names: Sequence[str], parameters: dict[str, nn.Parameter], here: World) -> list[str]:
    gradients = [parameters[name].grad for name in names]
    found = [gradient is not None and bool(local(gradient).any()) for gradient in gradients]
    seen = here.sum_numbers([float(item) for item in found])
    return [name for name, count in zip(names, seen, strict=True) if count == 0]
