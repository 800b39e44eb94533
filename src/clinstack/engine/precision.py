"""Precision of the forward and the backward pass.

The weights that train are float32 whatever the base is, so there is no second copy of them to keep. A float16 base has
gradients so small that float16 makes them 0: the loss is scaled up before the backward pass and the gradients down
after it (Micikevicius et al. 2018, "Mixed precision training", section 3.2). A scale that is too large shows as a
gradient that is not finite; the step is then computed anew with half the scale, so no step is lost.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from clinstack.model.stack import Stack

FIRST_SCALE = 2.0**16
SMALLEST_SCALE = 2.0**-10
"""With a gradient that is not finite even so, the scale is not what is wrong."""
GROW_AFTER = 2000
"""Steps in a row without a halving, after which the scale is doubled."""


def first_scale(stack: Stack) -> float:
    """Return the scale to begin with; 1 where the base's numbers reach far enough without."""
    return FIRST_SCALE if stack.dtype == "float16" else 1.0


def forward_precision(stack: Stack) -> AbstractContextManager[object]:
    """Return the context of forward passes: autocast where the whole base trains in float32 and computes in less."""
    trains_whole = any(adapter.trainable and adapter.method == "full" for adapter in stack.adapters)
    if trains_whole and stack.dtype != "float32":
        return torch.autocast(stack.device.type, dtype=getattr(torch, stack.dtype))
    return nullcontext()
