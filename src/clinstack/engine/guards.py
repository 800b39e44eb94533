"""What ends a training before it spoils: figures that are not finite, a jump of the loss, tensors against the spec."""

from __future__ import annotations

import math
from statistics import median

import torch

from clinstack.engine.checkpoint import TrainingState
from clinstack.engine.sharding import WholeTensors
from clinstack.errors import ClinstackError, DivergedError
from clinstack.model.checks import StackError, check_active, check_trainable
from clinstack.model.lineage import tensors_hash
from clinstack.model.stack import Stack

WINDOW = 20
"""Steps whose losses a jump is known by."""
_REMEDY = (
    "The last checkpoint is from before, and stays. A Run keeps its recipe: lower training.learning_rate and begin "
    "anew with --fresh, or in another run directory."
)


def check_loss(loss: float, state: TrainingState, spike_factor: float | None) -> None:
    """Refuse a step whose loss is not finite or has jumped; else remember the loss.

    Raises
    ------
    DivergedError
        With the step and what to do.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"The loss is {loss} at step {state.step + 1}. {_REMEDY}")
    recent = state.recent_losses
    if spike_factor is not None and len(recent) == WINDOW and loss > spike_factor * median(recent):
        raise DivergedError(
            f"The loss is {loss:.4g} at step {state.step + 1}, more than training.spike_factor = {spike_factor:g} "
            f"times {median(recent):.4g}, the median of the {WINDOW} steps before. {_REMEDY}"
        )
    state.recent_losses = [*recent, loss][-WINDOW:]


def refuse_gradients(state: TrainingState) -> DivergedError:
    """Return the error for gradients that are not finite although the loss is."""
    return DivergedError(f"A gradient is not finite at step {state.step + 1}. {_REMEDY}")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    message = str(error)
    # The CPU's allocator says so in these words only, and is no class of its own.
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in message
        or "not enough memory" in message
    )


def refuse_single_item(state: TrainingState) -> ClinstackError:
    """Return the error for a batch that cannot be cut any further."""
    return ClinstackError(
        f"One item of a batch does not fit in memory at step {state.step + 1}. Set training.gradient_checkpointing: "
        "true, shorten context (pretrain) or max_tokens (finetune), or hold the base in fewer bits (dtype, quantize); "
        "then begin anew with --fresh."
    )


def check_training_kept_the_spec(stack: Stack, state: TrainingState) -> None:
    """Invariant 2 after training: what is frozen has its old hash, what is trainable had a gradient and moved.

    Raises
    ------
    StackError
        Naming the tensor.
    """
    check_active(stack)
    check_trainable(stack)
    if tensors_hash(WholeTensors(stack.frozen_tensors())) != state.frozen:
        raise StackError("A tensor that the spec calls frozen changed during training.")
    if state.step < 2:
        return  # In the first step a new LoRA's A has no gradient, because B is zero.
    if state.without_gradient:
        raise StackError(f"{state.without_gradient[0]} is trainable and never had a gradient.")
    parameters = WholeTensors(stack.trainable_parameters())
    for name in parameters:
        if tensors_hash({name: parameters[name]}) == state.initial[name]:
            raise StackError(f"{name} is trainable and did not move.")
