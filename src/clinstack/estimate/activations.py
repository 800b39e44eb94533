"""What training steps would hold in memory, counted while the real code runs on the meta device.

There a tensor has a size and no numbers. Every storage that an operation makes is counted from then until nobody holds
it any more, so the count follows PyTorch's own life of a tensor: what autograd keeps, what a layer drops on its way,
what checkpointing gives up and makes again. Parts that the meta device does not have are stood in for: attention
(`clinstack.estimate.attention`) and quantised layers (`clinstack.estimate.quantized`).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clinstack.engine import next_token
from clinstack.engine.next_token import next_token_loss
from clinstack.engine.optimizer import build_optimizer
from clinstack.estimate.attention import NAME, AttentionSetting, attention_setting
from clinstack.estimate.autocast import cast_layers
from clinstack.estimate.parameters import DryStack
from clinstack.estimate.quantized import quantized_layers
from clinstack.recipe import TrainingRecipe

PHASES = ("forward", "loss", "backward", "step")
_META = torch.device("meta")


@dataclass(frozen=True)
class Workload:
    """What goes through a stack in an optimizer step.

    Parameters
    ----------
    rows, tokens : int
        Of a batch.
    predicted : float
        Share of the tokens whose next one is predicted.
    settings : TrainingRecipe
    attention : AttentionSetting
    full_logits : bool
        Make all logits at once, as transformers' own loss does, to compare.
    """

    rows: int
    tokens: int
    settings: TrainingRecipe
    attention: AttentionSetting
    predicted: float = 1.0
    full_logits: bool = False

    def with_rows(self, rows: int) -> Workload:
        """Return the same with another number of rows."""
        return replace(self, rows=rows)


@dataclass(frozen=True)
class Trace:
    """What was held beyond weights, in bytes.

    Parameters
    ----------
    peaks : dict of str to int
        The most in each phase of an optimizer step.
    parts : dict of str to dict of str to int
        For each phase what that was, by its part; they add up to it.
    kept : int
        What the forward pass leaves for the backward pass: the activations.
    gradients, optimizer : int
        All of them, though gradients are not there all the time.
    """

    peaks: dict[str, int]
    parts: dict[str, dict[str, int]]
    kept: int
    gradients: int
    optimizer: int

    @property
    def peak(self) -> int:
        """The most."""
        return max(self.peaks.values())

    @property
    def when(self) -> str:
        """The phase of the peak."""
        return max(self.peaks, key=lambda phase: self.peaks[phase])

    def towards(self, other: Trace, share: float) -> Trace:
        """Return what lies on the straight line through this and another one, at a share of the way.

        Each phase by itself: which of them is the highest may change on the way.
        """

        def mixed(first: int, second: int) -> int:
            return max(0, round(first + (second - first) * share))

        parts = {
            phase: {
                kind: mixed(self.parts[phase].get(kind, 0), other.parts[phase].get(kind, 0))
                for kind in self.parts[phase].keys() | other.parts[phase].keys()
            }
            for phase in PHASES
        }
        return Trace(
            {phase: sum(parts[phase].values()) for phase in PHASES},
            parts,
            mixed(self.kept, other.kept),
            mixed(self.gradients, other.gradients),
            mixed(self.optimizer, other.optimizer),
        )


@dataclass
class _Held:
    """A counted storage: what it is, its bytes, and what says that nobody holds it any more."""

    kind: str
    size: int
    reference: weakref.ref[Any] | None = None


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operations made and somebody holds, by what they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = "forward"
        self.now: Counter[str] = Counter()
        self.peaks: dict[str, int] = {}
        self.parts: dict[str, dict[str, int]] = {}
        self._total = 0
        self._phase = "forward"
        self._seen: dict[int, _Held] = {}

    def enter(self, phase: str, kind: str | None = None) -> None:
        """Begin a phase; what is made from now on is of a kind."""
        self._phase, self.kind = phase, kind or phase
        self._measure()

    def begin_anew(self) -> None:
        """Forget the peaks until now."""
        self.peaks.clear()
        self.parts.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        held = self._seen[key] = _Held(self.kind, size)

        def forget(_: Any) -> None:
            self._seen.pop(key, None)
            self.now[held.kind] -= held.size
            self._total -= held.size

        held.reference = weakref.ref(storage, forget)
        self.now[self.kind] += size
        self._total += size
        self._measure()

    def _measure(self) -> None:
        if self._total > self.peaks.get(self._phase, -1):
            self.peaks[self._phase] = self._total
            self.parts[self._phase] = dict(self.now)

    def rename(self, tensor: Tensor, kind: str) -> None:
        """Say what a counted storage is."""
        held = self._seen.get(tensor.untyped_storage()._cdata)
        if held is not None:
            self.now[held.kind] -= held.size
            held.kind = kind
            self.now[kind] += held.size

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out storages that were there before, and will be there afterwards."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()._cdata] = _Held("before", 0)


def trace(stack: DryStack, work: Workload) -> Trace:
    """Take an optimizer step without memory, and return what it would hold once the optimizer has its state.

    The stack is used up by it: its hooks and its checkpointing stay.
    """
    network = stack.network
    parameters = stack.trainable_parameters()
    live = LiveStorages()
    live.ignore([*network.parameters(), *network.buffers()])
    with ExitStack() as contexts:
        contexts.enter_context(_attention_by_name(network))
        contexts.enter_context(attention_setting(work.attention))
        contexts.enter_context(quantized_layers(network, stack.quantize, stack.dtype, work.attention.device))
        contexts.enter_context(cast_layers(network, work.attention.cast_to))
        contexts.enter_context(_logits_of(work.attention.device))
        if work.settings.gradient_checkpointing:
            stack.use_gradient_checkpointing()
        stack.train()
        for parameter in parameters.values():
            parameter.grad = None
            parameter.register_post_accumulate_grad_hook(lambda p: live.rename(p.grad, "gradients"))
        with live:
            live.enter("step", "optimizer")
            stack.begin_training(1_000_000)
            optimizer = build_optimizer(stack, work.settings)
            for group in optimizer.param_groups:
                # What PyTorch decides by the device of the parameters, which here is neither.
                group["foreach"] = work.attention.device == "cuda"
            _make_state(optimizer, parameters, live)
            if work.settings.accumulate > 1:
                # Those of the passes before stand there already.
                live.enter("forward", "gradients")
                for parameter in parameters.values():
                    parameter.grad = torch.empty_like(parameter)
            live.begin_anew()
            kept = _forward_and_backward(stack, work, live)
            live.enter("step", "temporary")
            penalty = stack.penalty()
            if penalty is not None:
                penalty.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    return Trace(
        {phase: live.peaks.get(phase, 0) for phase in PHASES},
        {phase: {kind: size for kind, size in live.parts.get(phase, {}).items() if size} for phase in PHASES},
        kept,
        gradients,
        live.now["optimizer"],
    )


def _make_state(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], live: LiveStorages) -> None:
    """Let the optimizer make what it keeps from its first step on."""
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                live.rename(value, "optimizer")
    optimizer.zero_grad(set_to_none=True)


def _forward_and_backward(stack: DryStack, work: Workload, live: LiveStorages) -> int:
    """Return the bytes that the forward pass leaves for the backward pass."""
    live.enter("forward", "activations")
    before = live.now["activations"]
    input_ids = torch.empty(work.rows, work.tokens, dtype=torch.int64, device=_META)
    if stack.task is None:
        hidden = stack.hidden_states(input_ids).flatten(0, 1)
        kept = live.now["activations"] - before
        live.enter("loss", "logits")
        loss = _language_loss(stack, work, hidden)
        del hidden
    else:
        loss = _head_loss(stack, work, input_ids, live)
        kept = live.now["activations"] - before
    live.enter("backward", "temporary")
    loss.backward()
    return kept


def _language_loss(stack: DryStack, work: Workload, hidden: Tensor) -> Tensor:
    """Return the loss as `clinstack.engine.losses.causal_loss` has it; there the labels decide which rows are read."""
    output: Any = stack.network.get_output_embeddings()
    count = max(1, round(len(hidden) * work.predicted))
    labels = torch.empty(count, dtype=torch.int64, device=_META)
    if work.full_logits:
        return functional.cross_entropy(output(hidden).float()[:count], labels)
    chosen = hidden[torch.empty(count, dtype=torch.int64, device=_META)]
    cap = getattr(stack.network.config, "final_logit_softcapping", None)
    return next_token_loss(chosen, output.weight, getattr(output, "bias", None), labels, cap, summed=True)


def _head_loss(stack: DryStack, work: Workload, input_ids: Tensor, live: LiveStorages) -> Tensor:
    below = torch.no_grad() if stack.backbone_is_frozen else torch.enable_grad()
    with below:
        mask = torch.empty_like(input_ids)
        features = stack.features_from(_pooled(stack.hidden_states(input_ids), mask, stack.pooling))
    live.enter("loss", "logits")
    logits: Tensor = stack.head(features)
    return functional.cross_entropy(logits, torch.empty(len(logits), dtype=torch.int64, device=_META))


def _pooled(hidden: Tensor, mask: Tensor, kind: str) -> Tensor:
    if kind == "mean":
        weights = mask[:, :, None].float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    return hidden[:, 0].float()


@contextmanager
def _attention_by_name(network: nn.Module) -> Iterator[None]:
    config: Any = network.config
    before = config._attn_implementation
    network.set_attn_implementation(NAME)  # type: ignore[operator]  # a PreTrainedModel's
    try:
        yield
    finally:
        network.set_attn_implementation(before)  # type: ignore[operator]


def logits_at_once(device: str) -> int:
    """Return how many logits the loss makes at once on a device."""
    return next_token._LOGITS[device]


@contextmanager
def _logits_of(device: str) -> Iterator[None]:
    """Let the loss make as many logits at once as on a device, with memory of its own."""
    kept: dict[torch.device, Tensor] = next_token._kept
    limits = next_token._LOGITS
    kept.pop(_META, None)
    limits["meta"] = limits[device]
    try:
        yield
    finally:
        kept.pop(_META, None)
        del limits["meta"]
