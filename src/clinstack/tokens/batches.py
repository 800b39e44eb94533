"""Which notes or rows are computed together.

Where a batch is one flat row there is no padding, and batches are random. Where it is padded, notes of similar length
stand together. Either way an epoch's batches are a pure function of (seed, epoch), and as many in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clinstack.tokens.documents import Tokens

_POOL = 16
"""Batches in a pool that is sorted by length: larger saves more padding, smaller leaves more chance."""


@dataclass(frozen=True)
class Batches(Sequence[Any]):
    """Batches of row numbers, each a list; kept as two arrays, for there can be millions.

    Parameters
    ----------
    order : integer array [rows]
        Row numbers.
    offsets : int64 array [batches + 1]
        Batch ``i`` is ``order[offsets[i] : offsets[i + 1]]``.
    """

    order: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> list[int]: ...

    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...

    def __getitem__(self, at: int | slice) -> list[int] | list[list[int]]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        rows: list[int] = self.order[self.offsets[number] : self.offsets[number + 1]].tolist()
        return rows

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    def turned(self, random: np.random.Generator) -> Batches:
        """Return the same batches in a random order."""
        sizes = np.diff(self.offsets)
        turn = random.permutation(len(self))
        starts = np.repeat(self.offsets[:-1][turn], sizes[turn])
        offsets = np.concatenate([[0], np.cumsum(sizes[turn])])
        within = np.arange(len(self.order)) - np.repeat(offsets[:-1], sizes[turn])
        return Batches(self.order[starts + within], offsets)


def every(count: int, size: int) -> NDArray[np.int64]:
    """Return the offsets of batches of ``size`` rows each, the last one with what is left."""
    return np.append(np.arange(0, count, size, dtype=np.int64), count)


def random_batches(count: int, batch_size: int, seed: int, epoch: int) -> Batches:
    """Return the batches of an epoch for rows whose lengths do not matter: shuffled, ``batch_size`` rows each."""
    return Batches(np.random.default_rng([seed, epoch]).permutation(count), every(count, batch_size))


def shuffled_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch: shuffled, then sorted by length within pools of batches, then shuffled.

    A pure function of its arguments, so that a resumed epoch has the same batches.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[list[int]] = []
    pool = batch_size * _POOL
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool].tolist(), key=lambda index: lengths[index])
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def filled_batches(lengths: ArrayLike, budget: int, seed: int, epoch: int) -> Batches:
    """Return the batches of an epoch for rows that are not padded: random ones of at most ``budget`` tokens each.

    The shuffled rows lie in one line, which is cut into equal lengths; a row belongs to the part that it begins in. So
    every part has about as many tokens, and no epoch has another number of parts. Where the longest row alone has more
    than half of the budget, this could leave parts empty, and rows of similar length stand together as in `by_length`.

    Parameters
    ----------
    lengths : int array [rows]
        Tokens of each row; one that is longer than ``budget`` is a batch by itself.
    """
    size = np.asarray(lengths, dtype=np.int64)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(size))
    total, longest = int(size.sum()), int(size.max())
    if total <= budget:
        return Batches(order, np.array([0, len(order)], dtype=np.int64))
    if budget < 2 * longest or (parts := -(-total // (budget - longest))) * longest > total:
        return by_length(size, budget, order).turned(random)
    starts = np.cumsum(size[order]) - size[order]
    return Batches(order, np.append(np.searchsorted(starts * parts, np.arange(parts) * total), len(order)))


def by_length(
    widths: ArrayLike, budget: int, order: NDArray[Any] | None = None, *, pieces: NDArray[np.int64] | None = None
) -> Batches:
    """Return batches for padding: the longest rows first, and in each batch at most ``budget`` tokens, filler counted.

    Parameters
    ----------
    widths : int array [rows]
        Tokens of each row; one that is longer than ``budget`` is a batch by itself.
    order : integer array [rows], optional
        In which rows of one width are taken; as they stand without it.
    pieces : int64 array [rows], optional
        As how many rows of this width each counts; 1 without it.
    """
    widths = np.asarray(widths, dtype=np.int64)
    counts = np.ones_like(widths) if pieces is None else pieces
    order = np.arange(len(widths)) if order is None else order
    # Stable, and equal only where both agree: so the number of batches is the same whatever the order.
    order = order[np.lexsort((-counts[order], -widths[order]))]
    widths, ends = widths[order], np.cumsum(counts[order])
    offsets = [0]
    while offsets[-1] < len(order):
        at = offsets[-1]
        room = budget // int(widths[at]) + (int(ends[at - 1]) if at else 0)
        offsets.append(max(at + 1, int(np.searchsorted(ends, room, side="right"))))
    return Batches(order, np.array(offsets, dtype=np.int64))


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches for evaluation: by length, longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def pad(sequences: Sequence[Tokens], filler: int) -> tuple[Tensor, Tensor]:
    """Pad on the right.

    Returns
    -------
    input_ids, attention_mask : int64 tensors [rows, tokens]
    """
    width = max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), filler, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
