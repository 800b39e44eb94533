"""A stack that has been read and only waits to be added: all that takes long is done, in any thread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from clinstack.model.base import Base
from clinstack.serve.own_copy import OwnCopy
from clinstack.serve.served_stack import StackOnDisk
from clinstack.serve.shared_network import load_base


@dataclass(frozen=True)
class ReadStack:
    """A stack with all that adding it needs.

    Parameters
    ----------
    stack : StackOnDisk
    reason : str
        Why it cannot share the base; empty where it can.
    own_copy : OwnCopy or None
        Loaded, where there is a reason.
    causal : PreTrainedModel or None
        The base as a language model, where the shared network has no output layer yet and the stack needs one.
    """

    stack: StackOnDisk
    reason: str
    own_copy: OwnCopy | None
    causal: PreTrainedModel | None


def make_ready(
    stack: StackOnDisk, base: Base, precision: tuple[str, str], device: torch.device, *, lacks_output: bool
) -> ReadStack:
    """Load what a stack does not share with the others.

    Parameters
    ----------
    precision : (str, str)
        Dtype and quantization of the shared base.
    lacks_output : bool
        Whether the shared network has no output layer.

    Raises
    ------
    InputError
        If a base of its own cannot be loaded, or is not what the stack was saved on.
    """
    reason = stack.reason
    if not reason and stack.precision != precision:
        has, here = (" ".join(part for part in pair if part != "none") for pair in (stack.precision, precision))
        reason = f"it was made for a base in {has}, the others for one in {here}"
    if reason:
        return ReadStack(stack, reason, OwnCopy(stack.folder, str(base.folder), device), None)
    needs_output = lacks_output and not stack.is_classifier
    return ReadStack(stack, "", None, load_base(base, precision, causal=True) if needs_output else None)
