"""The networks that answers are decoded on: which rows go through which, with which adapters.

::

    SharedLanes    one base for all stacks: a row's own factors beside it     ── one lane for all of them
                   a stack that cannot share it (DoRA, a prefix, all weights) ── a lane of its own
    StackLanes     one Stack alone, as in the terminal                        ── a lane, and one without adapters
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from clinstack.engine.precision import forward_precision
from clinstack.errors import InputError
from clinstack.model.methods.virtual_tokens import VirtualTokens
from clinstack.model.stack import Stack
from clinstack.serve.decoding_cache import RowsCache

if TYPE_CHECKING:
    from clinstack.serve.shared_base import SharedBase

_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Layers whose whole state is the keys and values of earlier tokens."""


class Lane:
    """A network, and how rows are routed through it.

    Parameters
    ----------
    network : PreTrainedModel
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
    routed : callable
        Takes a stack's name for each row, None for the untouched base, and returns the context in which these rows
        are computed.
    virtual : VirtualTokens, optional
        What stands before each prompt.

    Raises
    ------
    InputError
        If the network keeps other states than keys and values.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        routed: Callable[[Sequence[str | None]], AbstractContextManager[object]],
        virtual: VirtualTokens | None = None,
    ) -> None:
        kinds = set(getattr(network.config.get_text_config(), "layer_types", None) or ())
        if kinds - _LAYER_TYPES:
            raise InputError(
                f"base: a {network.config.model_type} has layers of the kind {min(kinds - _LAYER_TYPES)}, whose states "
                "rows cannot be joined by; use `clinstack generate`."
            )
        self.network = network
        self.tokenizer = tokenizer
        self.routed = routed
        self._virtual = virtual
        # Else the scores of a whole prompt would be computed: for 2,000 tokens a quarter of a gigabyte.
        keeps = "logits_to_keep" in inspect.signature(network.forward).parameters
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def read(self, prompt: Sequence[int], cache: RowsCache) -> Tensor:
        """Read a prompt into an empty cache, and return the scores of the next token, float32, shape [1, vocabulary].

        Virtual tokens of a prefix are in the cache already; those of a prompt or of P-tuning are read with it.
        """
        ids = torch.tensor([list(prompt)], device=self.device)
        inputs: dict[str, Tensor] = {"input_ids": ids}
        virtual, before = self._virtual, 0
        if virtual is not None and virtual.method == "prefix":
            before = virtual.count
            for place, layer in enumerate(cast(list[DynamicLayer], virtual.cache(1).layers)):
                cache.update(cast(Tensor, layer.keys), cast(Tensor, layer.values), place)
        elif virtual is not None:
            embedded: Tensor = cast(Any, self.network).get_input_embeddings()(ids)
            tokens = virtual.tensors()["prompt_embeddings"].to(embedded.dtype)
            inputs = {"inputs_embeds": torch.cat([tokens[None], embedded], 1)}
        count = next(iter(inputs.values())).shape[1]
        mask = torch.ones(1, before + count, dtype=torch.long, device=self.device)
        positions = torch.arange(before, before + count, device=self.device)[None]
        return self.forward(inputs, mask, positions, cache)

    def forward(self, inputs: dict[str, Tensor], mask: Tensor, positions: Tensor, cache: RowsCache) -> Tensor:
        """Compute tokens behind those of a cache, add them to it, and return the scores of the next ones.

        Parameters
        ----------
        inputs : dict
            ``input_ids``, shape [rows, tokens], or ``inputs_embeds``.
        mask : int64 tensor [rows, columns + tokens]
            1 where a row has a token.
        positions : int64 tensor [rows, tokens]
        cache : RowsCache

        Returns
        -------
        float32 tensor [rows, vocabulary]
        """
        output: Any = self.network(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        return cast(Tensor, output.logits)[:, -1].float()


class Lanes(Protocol):
    """All networks of a decoder."""

    def lane(self, stack: str, untouched: bool) -> Lane:
        """Return the lane of a stack, or of the base below it.

        Raises
        ------
        InputError
            If there is no such stack, or it is a classifier.
        """
        ...


class SharedLanes:
    """A `SharedBase`: one lane for all stacks that share its network and for the untouched base.

    Parameters
    ----------
    shared : SharedBase
        Stacks may come and go between two steps.
    """

    def __init__(self, shared: SharedBase) -> None:
        self._shared = shared
        self._lane: Lane | None = None
        self._own: dict[str, StackLanes] = {}

    def lane(self, stack: str, untouched: bool) -> Lane:
        """Return the lane that all share, or one of the stack's own."""
        served = self._shared.stacks.get(stack)
        if served is None or served.task is not None:
            raise InputError("no such stack answers questions here")
        copy = self._shared.own_copies.get(stack)
        if copy is None or (untouched and self._has_the_base_of(copy.stack)):
            return self._common()
        lanes = self._own.get(stack)
        if lanes is None or lanes.stack is not copy.stack:
            self._own = {name: one for name, one in self._own.items() if name in self._shared.own_copies}
            lanes = self._own[stack] = StackLanes(copy.stack)
        return lanes.lane(stack, untouched)

    def _has_the_base_of(self, stack: Stack) -> bool:
        """Whether the shared network, without adapters, is a stack's untouched base."""
        sharing = any(served.task is None and not served.own_copy for served in self._shared.stacks.values())
        if not sharing or stack.quantize != "none":  # without any sharing one it may have no language model's output
            return False
        network = self._shared.network
        return not getattr(network, "is_quantized", False) and network.dtype == getattr(torch, stack.dtype)

    def _common(self) -> Lane:
        if self._lane is None or self._lane.network is not self._shared.network:
            self._lane = Lane(self._shared.network, self._shared.tokenizer, self._shared.routed)
        return self._lane


class StackLanes:
    """One Stack: its network with all adapters, and the same network without them.

    Parameters
    ----------
    stack : Stack
        A causal language model.

    Raises
    ------
    InputError
        If it is a classifier.
    """

    def __init__(self, stack: Stack) -> None:
        if stack.task is not None:
            raise InputError(
                f"stack: it is a classifier for {stack.task.name} and writes no text; name a stack that was trained on "
                "instructions, or use `clinstack predict`."
            )
        stack.eval()
        self.stack = stack
        self._whole = Lane(stack.network, stack.tokenizer, self._as_it_is, stack.virtual_tokens)
        self._untouched: Lane | None = None

    def lane(self, stack: str, untouched: bool) -> Lane:
        """Return the lane with the adapters, or the one without; there is one stack, whatever its name."""
        if not untouched or not self.stack.adapters:
            return self._whole
        if self._untouched is None:
            self._untouched = _without_adapters(self.stack)
        return self._untouched

    @contextmanager
    def _as_it_is(self, names: Sequence[str | None]) -> Iterator[None]:
        with forward_precision(self.stack):
            yield


def _without_adapters(stack: Stack) -> Lane:
    """Return the lane of a stack's base: the same network, but where the stack has changed the base's own weights."""
    if any(adapter.method == "full" for adapter in stack.adapters):
        base = Stack.build(str(stack.base.folder), dtype=stack.dtype, quantize=stack.quantize)
        base.to(stack.device)
        base.eval()
        return Lane(base.network, stack.tokenizer, lambda names: nullcontext())

    @contextmanager
    def switched_off(names: Sequence[str | None]) -> Iterator[None]:
        with stack.switched_off():
            yield

    return Lane(stack.network, stack.tokenizer, switched_off)
