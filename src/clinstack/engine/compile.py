"""Compiling a stack's layers with torch.compile: the same figures, fewer passes over memory."""

from __future__ import annotations

import shutil
from typing import Any

from clinstack.errors import InputError
from clinstack.model.families import layers_of
from clinstack.model.stack import Stack


def compile_layers(stack: Stack) -> None:
    """Compile each transformer layer in place, on its first use; they are alike, so the first one's time is the most.

    Names, weights and what PEFT knows of them stay as they are.

    Raises
    ------
    InputError
        If this machine has no C++ compiler, or the base's layers cannot be found.
    """
    if stack.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++", "gcc"))):
        raise InputError("training.compile: torch.compile needs a C++ compiler (g++) on this machine; install one.")
    try:
        layers: Any = layers_of(stack.network)[1]
    except LookupError:
        raise InputError(
            f"training.compile: {stack.base.name} keeps its layers in another place; leave it out."
        ) from None
    for layer in layers:
        layer.compile()
