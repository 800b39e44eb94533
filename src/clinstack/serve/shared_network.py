"""The network that stacks share: loaded once, its common adapters folded in, and every route beside its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from clinstack.engine.guards import is_out_of_memory
from clinstack.engine.pieces import flat_rows
from clinstack.errors import ClinstackError, InputError
from clinstack.model.attention import attends_by_document, boundaries_mask
from clinstack.model.base import Base, backbone, load_network
from clinstack.model.config import vocabulary_size
from clinstack.model.factors import concatenated, fold_into
from clinstack.model.pooling import pool, pool_flat
from clinstack.serve.folding import Adapters, common_bottom
from clinstack.serve.last_layer import LastLayer, is_same, parts_of
from clinstack.serve.routing import Plan, RoutedLinear, Routing, RoutingError, refuse_unfit, route_layers
from clinstack.tokens.batches import by_length, pad
from clinstack.tokens.documents import Tokens

_ROW_TOKENS = 1024
"""Tokens of a flat row: fewer than in training, for without gradients the cache is all that counts."""
_PADDED_TOKENS = 16384
"""Tokens of a padded batch, filler counted."""


@dataclass(frozen=True)
class Piece:
    """A piece of a note on its way through the network.

    Parameters
    ----------
    route : str
        The adapters that it goes through.
    pooling : {"last", "first", "mean"}
        What the head reads of it.
    tokens : int64 array
    """

    route: str
    pooling: str
    tokens: Tokens


class SharedNetwork:
    """A base network with routes.

    Parameters
    ----------
    base : Base
    precision : (str, str)
        Dtype of the weights, and their quantization.
    device : torch.device
        Where it computes; a quantized base stays where its layers were made.
    folded : Adapters
        Added to the weights; every route is understood on top of them.
    causal : bool
        Whether it writes text.

    Attributes
    ----------
    network : PreTrainedModel
    untouched : str
        The route of the base without any adapter.
    """

    def __init__(
        self, base: Base, precision: tuple[str, str], device: torch.device, folded: Adapters, *, causal: bool
    ) -> None:
        self.base = base
        self.precision = precision
        self.folded = folded
        self.is_causal = causal
        self.network = load_base(base, precision, causal=causal)
        if folded:
            fold_into(self.network, concatenated(*(factors for _, factors in folded)))
        if precision[1] == "none":
            self.network.to(device)  # type: ignore[arg-type]  # transformers' stub wants its own type
        self._routing = Routing()
        self._routed: dict[str, RoutedLinear] = {}
        self._users: dict[str, int] = {}
        self._padded_tokens = _PADDED_TOKENS
        self._last_layer: LastLayer | None = None
        self.untouched = self.add(())
        if attends_by_document(self.network):
            self._try_last_layer()

    @property
    def _hidden_size(self) -> int:
        return int(self.network.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def become_causal(self, loaded: PreTrainedModel | None = None) -> None:
        """Put the output layer of the base's language model on top; what is below it stays as it is.

        Parameters
        ----------
        loaded : PreTrainedModel, optional
            That language model; loaded here without it, and its own body is forgotten again.
        """
        if self.is_causal:
            return
        whole: Any = loaded or load_base(self.base, self.precision, causal=True)
        body: Any = backbone(self.network)
        output = whole.get_output_embeddings()
        is_tied = output.weight is whole.get_input_embeddings().weight
        setattr(whole, whole.base_model_prefix, body)
        if is_tied:
            output.weight = body.get_input_embeddings().weight
        if self.precision[1] == "none":
            whole.to(self.device)
        self.network, self.is_causal = whole, True

    # ------------------------------------------------------------------ routes

    def add(self, adapters: Adapters) -> str:
        """Make room for a stack's adapters and return its route; stacks with the same adapters share one.

        Raises
        ------
        InputError
            If they do not fit the base's layers.
        """
        same = common_bottom(adapters, self.folded)
        taken_away, added = self.folded[same:], adapters[same:]
        route = " ".join([*(f"-{digest}" for digest, _ in taken_away), *(digest for digest, _ in added)])
        if route not in self._users:
            factors = concatenated(
                *(factors.negated() for _, factors in taken_away), *(factors for _, factors in added)
            )
            refuse_unfit(self.network, factors)
            self._routed |= route_layers(self.network, factors.layers, self._routing)
            for name, (first, second) in factors.to(self.device).layers.items():
                self._routed[name].put(route, first, second)
            if self._last_layer is not None:
                self._last_layer.attach(self.network)
        self._users[route] = self._users.get(route, 0) + 1
        return route

    def drop(self, route: str) -> None:
        """Give a route back; its factors go with the last stack that used it."""
        self._users[route] -= 1
        if not self._users[route]:
            del self._users[route]
            for layer in self._routed.values():
                layer.drop(route)

    @contextmanager
    def routed(self, routes: Sequence[str]) -> Iterator[PreTrainedModel]:
        """Let forward passes inside take each padded row along its route."""
        with self._routing.along(Plan.rows(routes, self.device)):
            yield self.network

    # ------------------------------------------------------------------ computing

    def features(self, pieces: Sequence[Piece]) -> Tensor:
        """Return what heads read of pieces, float32, shape [pieces, hidden].

        On a CPU in float32 in flat rows, sorted by route; elsewhere padded, sorted by length.
        """
        with torch.inference_mode():
            return self._flat(pieces) if attends_by_document(self.network) else self._padded(pieces)

    def hidden_states(self, input_ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Return the last layer's output of a routed pass, shape [rows, tokens, hidden]."""
        output: Any = backbone(self.network)(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
        )
        return cast(Tensor, output.last_hidden_state)

    def _flat(self, pieces: Sequence[Piece]) -> Tensor:
        order = sorted(range(len(pieces)), key=lambda place: pieces[place].route)
        result = torch.empty(len(pieces), self._hidden_size, dtype=torch.float32)
        for row in flat_rows([len(pieces[place].tokens) for place in order], _ROW_TOKENS):
            places = order[row]
            result[places] = self._flat_row([pieces[place] for place in places])
        return result

    def _flat_row(self, pieces: Sequence[Piece]) -> Tensor:
        lengths = [len(piece.tokens) for piece in pieces]
        input_ids = torch.from_numpy(np.concatenate([piece.tokens for piece in pieces]))[None]
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None]
        routes = [piece.route for piece in pieces]
        narrowed: AbstractContextManager[None] = nullcontext()
        if self._last_layer is not None and all(piece.pooling == "last" for piece in pieces):
            ends = torch.from_numpy(np.cumsum(lengths) - 1)
            narrowed = self._last_layer.at(ends, Plan.flat(routes, [1] * len(routes)))
        with self._routing.along(Plan.flat(routes, lengths)), narrowed:
            hidden = self.hidden_states(input_ids, boundaries_mask(positions), positions)[0]
        return _by_kind(pieces, lambda kind: pool_flat(hidden, torch.tensor(lengths), kind))

    def _try_last_layer(self) -> None:
        """Compute the last layer where it is read from now on, if this network's features are the same so."""
        if not parts_of(self.network):
            return
        random = np.random.default_rng(0)
        vocabulary = vocabulary_size(self.network.config)
        pieces = [Piece(self.untouched, "last", random.integers(vocabulary, size=length)) for length in (9, 14, 1)]
        whole = self.features(pieces)
        self._last_layer = LastLayer(self._routing)
        self._last_layer.attach(self.network)
        try:
            fits = is_same(self.features(pieces), whole)
        except RoutingError:
            fits = False
        if not fits:
            self._last_layer.detach()
            self._last_layer = None

    def _padded(self, pieces: Sequence[Piece]) -> Tensor:
        lengths = np.array([len(piece.tokens) for piece in pieces])
        result = torch.empty(len(pieces), self._hidden_size, dtype=torch.float32, device=self.device)
        waiting = np.arange(len(pieces))
        while len(waiting):
            # The longest first: what does not fit shows at once.
            first = by_length(lengths[waiting], self._padded_tokens)[0]
            batch = sorted(waiting[first].tolist(), key=lambda place: pieces[place].route)
            try:
                result[batch] = self._padded_batch([pieces[place] for place in batch])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ClinstackError("Memory is full with a single note: take a larger card.") from None
                self._padded_tokens = int(len(batch) * lengths[batch].max()) // 2
                torch.cuda.empty_cache()
                continue
            waiting = np.delete(waiting, first)
        return result

    def _padded_batch(self, pieces: Sequence[Piece]) -> Tensor:
        ids, mask = pad([piece.tokens for piece in pieces], 0)
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self.routed([piece.route for piece in pieces]):
            hidden = self.hidden_states(ids, mask, positions)
        return _by_kind(pieces, lambda kind: pool(hidden, mask, kind))


def _by_kind(pieces: Sequence[Piece], pooled: Callable[[str], Tensor]) -> Tensor:
    """Return each piece's features by its own pooling, shape [pieces, hidden]."""
    kinds = sorted({piece.pooling for piece in pieces})
    result = pooled(kinds[0])
    for kind in kinds[1:]:
        is_kind = torch.tensor([piece.pooling == kind for piece in pieces], device=result.device)
        result = torch.where(is_kind[:, None], pooled(kind), result)
    return result


def load_base(base: Base, precision: tuple[str, str], *, causal: bool) -> PreTrainedModel:
    """Load the base. What is not causal gets a head of one class that nothing reads: the heads are the stacks'."""
    dtype, quantize = precision
    network = load_network(base, classes=None if causal else 1, dtype=dtype, seed=0, quantize=quantize)
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def find_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises
    ------
    InputError
        If this machine has none of it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is no device; use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {name} is asked for, and PyTorch finds no CUDA device here; use auto or cpu.")
    return device
