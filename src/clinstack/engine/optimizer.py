"""The optimizer over what trains, and its learning rate at each step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from clinstack.model.checks import StackError, check_active, check_trainable
from clinstack.model.stack import Stack
from clinstack.recipe import TrainingRecipe


def build_optimizer(stack: Stack, settings: TrainingRecipe) -> torch.optim.Optimizer:
    """Return AdamW over exactly the stack's trainable tensors; the head may have a learning rate of its own."""
    head: list[nn.Parameter] = []
    adapters: list[nn.Parameter] = []
    of_head = stack.head_parameters()
    for name, parameter in stack.trainable_parameters().items():
        (head if name in of_head else adapters).append(parameter)
    groups = [
        {"params": adapters, "peak": settings.learning_rate},
        {"params": head, "peak": settings.head_learning_rate or settings.learning_rate},
    ]
    sharded = any(isinstance(parameter, DTensor) for parameter in adapters)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        # The kernel for many tensors at once does not take sharded and whole ones together.
        foreach=False if sharded else None,
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
    """Return the share of the peak learning rate at a step (from 0): linear warm-up, then the schedule to 0.

    The warm-up is a share of all steps. (The paper's code hands the share to an argument that takes a number of steps,
    so its warm-up is 0 steps whatever the recipe says.)
    """
    warmup = int(settings.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "linear":
        return 1.0 - done
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total: int, settings: TrainingRecipe) -> float:
    """Set each group's learning rate for a step (from 0), and return that of the first."""
    factor = learning_rate_factor(step, total, settings)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return float(optimizer.param_groups[0]["lr"])
