"""Which tokens go through which adapter, in one forward pass of one network.

::

    a flat row           A A A A A B B B C C          notes of three stacks, sorted by stack
    base                 W W W W W W W W W W          one product for all
    adapters             a a a a a b b b . .          a product of two small factors for each segment; C has none here

A `Plan` says it for one forward pass. The one `Routing` of a network holds the plan that is in force, and every
`RoutedLinear` asks it: a pass without a plan is an error and never the untouched base without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from clinstack.errors import ClinstackError
from clinstack.model.factors import Factors, check_layer


class RoutingError(ClinstackError):
    """A forward pass and its plan do not fit together; what it computed would be another stack's."""


@dataclass(frozen=True)
class Part:
    """Rows (or tokens of a flat row) that go through the same adapters.

    Parameters
    ----------
    route : str
        Which adapters.
    places : slice or int64 Tensor
        A slice where they stand together.
    """

    route: str
    places: slice | Tensor


@dataclass(frozen=True)
class Plan:
    """Which adapters each part of a forward pass goes through.

    Parameters
    ----------
    parts : tuple of Part
    count : int
        Tokens of the flat row, or rows.
    is_flat : bool
        Whether the input is one row of many texts.
    """

    parts: tuple[Part, ...]
    count: int
    is_flat: bool

    @classmethod
    def flat(cls, routes: Sequence[str], lengths: Sequence[int]) -> Plan:
        """Return the plan of a flat row of texts, given each text's route and tokens; equal neighbors are one part."""
        parts: list[Part] = []
        end = 0
        for route, length in zip(routes, lengths, strict=True):
            start, end = end, end + length
            if parts and parts[-1].route == route:
                start = cast(slice, parts.pop().places).start
            parts.append(Part(route, slice(start, end)))
        return cls(tuple(parts), end, True)

    @classmethod
    def rows(cls, routes: Sequence[str], device: torch.device | str = "cpu") -> Plan:
        """Return the plan of padded rows, given each row's route, in any order."""
        places: dict[str, list[int]] = {}
        for row, route in enumerate(routes):
            places.setdefault(route, []).append(row)
        parts = []
        for route, rows in places.items():
            together = rows[-1] - rows[0] + 1 == len(rows)
            chosen = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows, device=device)
            parts.append(Part(route, chosen))
        return cls(tuple(parts), len(routes), False)


class Routing:
    """Holds the plan in force. One for each network; not for several threads at once."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._narrowed: Plan | None = None

    @contextmanager
    def along(self, plan: Plan) -> Iterator[None]:
        """Let the forward passes inside follow a plan.

        Raises
        ------
        RoutingError
            If another plan is in force.
        """
        if self._plan is not None:
            raise RoutingError("A forward pass is routed already; one plan is in force at a time.")
        self._plan = plan
        try:
            yield
        finally:
            self._plan = self._narrowed = None

    def narrow(self, plan: Plan | None) -> None:
        """Let the next layers follow another plan, for they see some tokens of the row only; None ends that."""
        self._narrowed = plan

    def parts(self, inputs: Tensor) -> tuple[Part, ...]:
        """Return the parts of a layer's input [rows, tokens, in].

        Raises
        ------
        RoutingError
            If there is no plan, or the input has other rows than the plan.
        """
        plan = self._narrowed or self._plan
        if plan is None:
            raise RoutingError("No plan says which stack's adapters this forward pass goes through.")
        expected = (1, plan.count) if plan.is_flat else (plan.count, inputs.shape[1] if inputs.dim() > 1 else 0)
        if inputs.dim() != 3 or tuple(inputs.shape[:2]) != expected:
            raise RoutingError(
                f"A layer's input has the shape {tuple(inputs.shape)}; the plan is for "
                f"{f'one row of {plan.count} tokens' if plan.is_flat else f'{plan.count} rows'}."
            )
        return plan.parts

    @property
    def is_flat(self) -> bool:
        """Whether the plan in force is of a flat row."""
        return self._plan is not None and self._plan.is_flat


class RoutedLinear(nn.Module):
    """A linear layer of the base, and beside it the factors of every route that changes it.

    Parameters
    ----------
    layer : Module
        The base's, which computes all rows at once.
    routing : Routing
        Asked at each forward pass.
    """

    def __init__(self, layer: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.layer = layer
        self._routing = routing
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def weight(self) -> Tensor:
        """The base's weights, for code that asks a layer for their dtype or device."""
        return cast(Tensor, self.layer.weight)

    def put(self, route: str, first: Tensor, second: Tensor) -> None:
        """Add the factors of a route, A [r, in] and B [out, r]."""
        self._factors[route] = first.T.contiguous(), second.T.contiguous()

    def drop(self, route: str) -> None:
        """Forget the factors of a route."""
        self._factors.pop(route, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the base's output with each part's own factors added."""
        output: Tensor = self.layer(inputs)
        parts = self._routing.parts(inputs)
        if self._routing.is_flat:
            seen, written = inputs[0], output[0]
        else:
            seen, written = inputs, output
        for part in parts:
            factors = self._factors.get(part.route)
            if factors is not None:
                _add_product(written, seen, part.places, *factors)
        return output


def _add_product(output: Tensor, inputs: Tensor, places: slice | Tensor, first: Tensor, second: Tensor) -> None:
    """Add ``inputs @ first @ second`` to the places of an output, in place; float32 inside, as PEFT computes it."""
    if isinstance(places, slice) and output.dtype == torch.float32:
        rows = output[places].view(-1, output.shape[-1])
        rows.addmm_(inputs[places].reshape(-1, inputs.shape[-1]) @ first, second)
        return
    change = inputs[places].float() @ first @ second
    output[places] = (output[places].float() + change).to(output.dtype)


def route_layers(network: nn.Module, names: Mapping[str, Any], routing: Routing) -> dict[str, RoutedLinear]:
    """Put a `RoutedLinear` in the place of each named layer that is none yet, and return them by name."""
    routed = {}
    for name in names:
        module = network.get_submodule(name)
        if not isinstance(module, RoutedLinear):
            parent, _, last = name.rpartition(".")
            module = RoutedLinear(module, routing)
            setattr(network.get_submodule(parent), last, module)
        routed[name] = module
    return routed


def refuse_unfit(network: nn.Module, factors: Factors) -> None:
    """Raise an InputError for factors that do not fit the network's layers, routed or not."""
    for name, pair in factors.layers.items():
        try:
            inside = isinstance(network.get_submodule(name), RoutedLinear)
        except AttributeError:
            inside = False
        check_layer(network, f"{name}.layer" if inside else name, pair)
