"""Keys and values of the rows that are decoded together: rows join, rows leave, and all of them grow by one column.

::

    columns     0 1 2 3 4 5 6 7 8
    row a       . . . p p p p a a        p of the prompt, a of the answer; rows are padded on the left, so that the
    row b       p p p p p p p a a        next token of every row goes into the same column
    row c       . . . . . . p p p        has just joined: its prompt was read alone, without padding

The libraries' own cache is copied whole for each new token. This one grows in blocks of columns and is copied when a
row joins or leaves, and once for each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_BLOCK = 64
"""Columns that a layer's tensors grow by."""


class RowsLayer(DynamicLayer):
    """One layer's keys and values, shape [rows, heads, columns, size], views of tensors that have room to grow.

    A layer with a sliding window keeps everything too: its mask hides what lies outside of the window.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put new columns behind those that are there, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.set(key_states, value_states)
            return key_states, value_states
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        if self._room is None or self._room[0].shape[2] < after:
            self._room = (
                _with_room(cast(Tensor, self.keys), after + _BLOCK),
                _with_room(cast(Tensor, self.values), after + _BLOCK),
            )
        keys, values = self._room
        keys[:, :, before:after] = key_states
        values[:, :, before:after] = value_states
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]
        return self.keys, self.values

    def set(self, keys: Tensor, values: Tensor) -> None:
        """Hold other keys and values from now on."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values, self._room = keys, values, None


def _with_room(states: Tensor, columns: int) -> Tensor:
    rows, heads, width, size = states.shape
    larger = states.new_empty(rows, heads, columns, size)
    larger[:, :, :width] = states
    return larger


class RowsCache(Cache):
    """The cache of all layers, with how many columns of each row are padding.

    Attributes
    ----------
    padding : list of int
        For each row the columns before its first token.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowsLayer)
        self.padding: list[int] = []

    @property
    def width(self) -> int:
        """How many columns there are."""
        return self.get_seq_length()

    def mask(self, device: torch.device) -> Tensor:
        """Return which columns each row sees with the next token, shape [rows, columns + 1]."""
        columns = torch.arange(self.width + 1, device=device)
        return (columns[None] >= torch.tensor(self.padding, device=device)[:, None]).long()

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of each row's next token, shape [rows, 1]."""
        return self.width - torch.tensor(self.padding, device=device)[:, None]

    def join(self, others: Sequence[RowsCache]) -> None:
        """Put the rows of other caches below those of this one; what is shorter gets padding on the left."""
        parts = [part for part in (self, *others) if part.padding]
        if not parts:
            return
        width = max(part.width for part in parts)
        padding = [count + width - part.width for part in parts for count in part.padding]
        while len(self.layers) < len(parts[0].layers):
            self.layers.append(RowsLayer())
        for place, layer in enumerate(self._rows_layers()):
            layers = [cast(RowsLayer, part.layers[place]) for part in parts]
            keys = torch.cat([_padded(cast(Tensor, each.keys), width) for each in layers])
            layer.set(keys, torch.cat([_padded(cast(Tensor, each.values), width) for each in layers]))
        self.padding = padding

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, in the given order, and the columns that are then padding in all of them."""
        if not rows:
            self.layers, self.padding = [], []
            return
        padding = [self.padding[row] for row in rows]
        unused = min(padding)
        for layer in self._rows_layers():
            keys, values = cast(Tensor, layer.keys), cast(Tensor, layer.values)
            index = torch.tensor(rows, device=keys.device)
            layer.set(keys[index, :, unused:], values[index, :, unused:])
        self.padding = [count - unused for count in padding]

    def _rows_layers(self) -> list[RowsLayer]:
        return cast(list[RowsLayer], self.layers)


def _padded(states: Tensor, width: int) -> Tensor:
    """Return states with zeros on the left, which are hidden; what is no number would spoil a sum all the same."""
    rows, heads, columns, size = states.shape
    if columns == width:
        return states
    return torch.cat([states.new_zeros(rows, heads, width - columns, size), states], 2)
