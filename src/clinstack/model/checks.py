"""The invariants of a Stack, asserted each time one is built or loaded. Each guards against a silent fault seen in the
libraries or in published code; the message says which adapter or tensor breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clinstack.errors import ClinstackError
from clinstack.model.methods.configs import LOW_RANK

if TYPE_CHECKING:
    from clinstack.model.stack import Stack

_PROBE_TOKENS = 12
_CAUSAL_OUTPUTS = 16
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


class StackError(ClinstackError):
    """An invariant of a Stack does not hold. Training or predicting with it would be wrong without a word."""


def check_stack(stack: Stack) -> None:
    """Assert what must hold before a stack is used.

    Raises
    ------
    StackError
        If an adapter is not active in a layer that carries it, does not change the output, a tensor is trainable
        against the spec, a trained tensor is not float32, or packed documents see each other.
    """
    check_active(stack)
    check_trainable(stack)
    check_float32(stack)
    check_adapters_change_output(stack)
    if stack.task is None and stack.can_pack:
        check_packing(stack)


def check_active(stack: Stack) -> None:
    """Invariant 1: each adapter is part of the forward pass, and each layer's active ones are the spec's, in order.

    PEFT's own model status calls a good stack "irregular", so each layer is asked.
    """
    wanted = [adapter.name for adapter in stack.adapters if adapter.method in LOW_RANK]
    for name, layer in stack.lora_layers().items():
        active = list(layer.active_adapters)
        if active != wanted:
            raise StackError(f"{name}: the adapters {active} are active; the spec says {wanted}.")
        if layer.merged:
            raise StackError(f"{name}: adapters are merged into the base; a stack keeps them apart.")
    for adapter in stack.adapters:
        complaint = stack.placed(adapter.name).complaint()
        if complaint:
            raise StackError(complaint)


def check_trainable(stack: Stack) -> None:
    """Invariant 2, first half: exactly the spec's tensors require gradients."""
    wanted = stack.trainable_parameters()
    for name, parameter in stack.network.named_parameters():
        if parameter.requires_grad != (name in wanted):
            state = "trainable" if parameter.requires_grad else "frozen"
            raise StackError(f"{name} is {state}; the spec says otherwise.")


def check_float32(stack: Stack) -> None:
    """Invariant 5: adapters and head are float32 whatever the base's dtype."""
    owned = {name for adapter in stack.adapters for name in stack.placed(adapter.name).parameter_names()}
    head = stack.head_parameters()
    for name, parameter in stack.network.named_parameters():
        if (name in owned or name in head) and parameter.dtype != torch.float32:
            raise StackError(f"{name} is {parameter.dtype}; adapters and head must be float32.")


def check_adapters_change_output(stack: Stack) -> None:
    """Invariant 1: overwriting an adapter with noise changes the output. A new adapter is zero, so its own effect
    cannot tell; in the published code of the paper this difference was exactly 0 for the second adapter.
    """
    before = probe_output(stack)
    for adapter in stack.adapters:
        with _overwritten_with_noise(stack, adapter.name):
            difference = float((probe_output(stack) - before).abs().max())
        if not difference > 0:
            raise StackError(f"The adapter {adapter.name!r} is not in the forward pass: noise in it changes nothing.")
    if float((probe_output(stack) - before).abs().max()) != 0:
        raise StackError("The stack's output is not repeatable.")


def check_packing(stack: Stack) -> None:
    """Invariant 4: two documents in one row give the same hidden states as each alone."""
    first, second = _probe_tokens(stack)
    second = second[: _PROBE_TOKENS // 2]
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))]).to(stack.device)
    with torch.inference_mode(), _evaluating(stack):
        packed = stack.hidden_states(torch.cat([first, second])[None], position_ids=positions[None])[0]
        alone = torch.cat([stack.hidden_states(document[None])[0] for document in (first, second)])
    difference = float((packed - alone).abs().max() / alone.abs().max())
    if difference > _tolerance(stack):
        raise StackError(f"Packed documents see each other with this base (difference {difference:.2g}).")


def check_probe(stack: Stack, recorded: Tensor) -> None:
    """Invariant 3: a loaded stack gives what it gave in memory when it was saved."""
    difference = float((probe_output(stack).cpu() - recorded).abs().max())
    allowed = _tolerance(stack) * max(1.0, float(recorded.abs().max()))
    if not difference <= allowed:
        raise StackError(f"The loaded stack gives other outputs than when it was saved (difference {difference:.2g}).")


def _tolerance(stack: Stack) -> float:
    """Return how far two ways of computing the same may be apart, as a share of the largest number."""
    # 8 bits round activations too, by the largest in a token: a last bit there is a hundredth.
    return max(_TOLERANCE[stack.dtype], 0.1) if stack.quantize == "8bit" else _TOLERANCE[stack.dtype]


def effects(stack: Stack) -> dict[str, float]:
    """Return how much each adapter changes the probe's output when it is switched off; 0 for one never trained."""
    whole = probe_output(stack)
    result = {}
    for adapter in stack.adapters:
        with stack.switched_off(adapter.name):
            result[adapter.name] = float((probe_output(stack) - whole).abs().max())
    return result


def probe_output(stack: Stack) -> Tensor:
    """Return the stack's output on two fixed rows of random tokens, shape [2, outputs]; no note is involved."""
    tokens = _probe_tokens(stack)
    with torch.inference_mode(), _evaluating(stack):
        if stack.task is not None:
            return stack.logits(tokens, torch.ones_like(tokens))
        hidden = stack.hidden_states(tokens)[:, -1]
        logits: Tensor = stack.network.get_output_embeddings()(hidden)
        return logits[:, :_CAUSAL_OUTPUTS].float()


def _probe_tokens(stack: Stack) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(stack.network.config.vocab_size), (2, _PROBE_TOKENS), generator=generator)
    return tokens.to(stack.device)


@contextmanager
def _evaluating(stack: Stack) -> Iterator[None]:
    training = stack.network.training
    stack.eval()
    try:
        yield
    finally:
        stack.network.train(training)


@contextmanager
def _overwritten_with_noise(stack: Stack, name: str) -> Iterator[None]:
    generator = torch.Generator().manual_seed(1)
    placed = stack.placed(name)
    names = set(placed.parameter_names())
    tensors = [parameter for key, parameter in stack.network.named_parameters() if key in names]
    if placed.method == "full":
        # The layers' norms are enough, and small.
        tensors = [tensor for tensor in tensors if tensor.dim() == 1] or tensors
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, before, strict=True):
                tensor.copy_(values)
