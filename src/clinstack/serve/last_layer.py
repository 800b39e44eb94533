"""The last layer where it is read: heads read one token of a piece, and nothing above it needs the others.

::

    a flat row                  A A A A B B C C C
    last layer, keys, values    k k k k k k k k k      what the last token attends to
    queries, output, MLP        . . . q . q . . q      only where a head reads; elsewhere zeros that nobody reads

Of a network of six layers this saves an eighth of all products, of deeper ones less. It holds for layers whose other
parts work token by token, which is tried once for each network and not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from clinstack.model.families import layers_of
from clinstack.serve.routing import Plan, Routing, RoutingError

_PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


class LastLayer:
    """Narrows parts of a network's last layer to some tokens of a flat row.

    Parameters
    ----------
    routing : Routing
        Told that the layers inside see these tokens only.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._places: Tensor | None = None
        self._plan: Plan | None = None
        self._width = 0
        self._handles: list[RemovableHandle] = []

    def attach(self, network: PreTrainedModel) -> None:
        """Put the hooks where the parts are now; again after one of them was put into a `RoutedLinear`."""
        self.detach()
        for part in parts_of(network):
            self._handles += [part.register_forward_pre_hook(self._narrow), part.register_forward_hook(self._widen)]

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def at(self, places: Tensor, plan: Plan) -> Iterator[None]:
        """Compute the parts at these places of the row only.

        Parameters
        ----------
        places : int64 Tensor [texts]
            The token of each text that is read.
        plan : Plan
            Of a row of these tokens alone.
        """
        self._places, self._plan = places, plan
        try:
            yield
        finally:
            self._places = self._plan = None

    def _narrow(self, part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._places is None or self._plan is None:
            return None
        inputs, *others = arguments
        self._width = inputs.shape[1]
        self._routing.narrow(self._plan)
        return inputs[:, self._places], *others

    def _widen(self, part: nn.Module, arguments: tuple[Any, ...], output: Any) -> Tensor | None:
        if self._places is None:
            return None
        self._routing.narrow(None)
        if not isinstance(output, Tensor):
            raise RoutingError(f"The last layer's {type(part).__name__} gives more than one tensor.")
        whole: Tensor = output.new_zeros(1, self._width, output.shape[-1])
        whole[:, self._places] = output
        return whole


def parts_of(network: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of a network's last layer that work token by token; none where it is not built as Llama's."""
    try:
        last = layers_of(network)[1][-1]
        return [last.get_submodule(name) for name in _PARTS]
    except (LookupError, AttributeError):
        return []


def is_same(narrowed: Tensor, whole: Tensor) -> bool:
    """Return whether two ways of computing features agree to float32's rounding."""
    return bool(torch.allclose(narrowed, whole, rtol=0, atol=1e-5 * max(1.0, float(whole.abs().max()))))
