"""Packing documents into rows without losing a token and without one seeing another.

::

    documents    A = a0 a1 a2 a3 | B = b0 b1 b2 | C = c0 ... c9      context 6

    row 0   input     c0 c1 c2 c3 c4 c5     C is longer than a row: the next part begins where this one ends,
            label     c1 c2 c3 c4 c5 c6     so every token but the first is predicted exactly once
    row 1   input     a0 a1 a2 c6 c7 c8     position ids begin anew at each part: the attention mask made
            label     a1 a2 a3 c7 c8 c9     from them is block-diagonal
            position   0  1  2  0  1  2
    row 2   input     b0 b1 __ __ __ __
            label     b1 b2  .  .  .  .     "." is ignored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.tokens.encode import Tokens

IGNORED = -100


@dataclass(frozen=True)
class Segment:
    """A part of a document that stands in one row: inputs ``[start, stop)``, each predicting the token after it."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens in the row, and predictions."""
        return self.stop - self.start


@dataclass(frozen=True)
class PackedBatch:
    """Rows of segments; all tensors are int64 of the shape [rows, tokens].

    Attributes
    ----------
    documents : Tensor
        Index of the document that each prediction belongs to, -1 where there is none.
    predictions : int
        Labels that count.
    lengths : tuple of int
        Lengths of the segments in reading order over the flattened rows, the stretches of filler too: their sum is
        rows * tokens.
    attention_mask : Tensor or None
        1 where a token is, 0 where filler is. None where rows are packed: several segments in a row, whose position
        ids begin anew at 0, are kept apart by them.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    documents: Tensor
    predictions: int
    lengths: tuple[int, ...]
    attention_mask: Tensor | None = None

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.labels.to(device),
            self.documents.to(device),
            self.predictions,
            self.lengths,
            mask,
        )


def split_documents(lengths: Sequence[int], context: int) -> list[Segment]:
    """Cut documents of ``lengths`` tokens into segments of at most ``context``; a document of one token has none."""
    return [
        Segment(document, start, min(start + context, length - 1))
        for document, length in enumerate(lengths)
        for start in range(0, length - 1, context)
    ]


def pack_segments(segments: Sequence[Segment], context: int) -> list[list[Segment]]:
    """Fill rows by best-fit decreasing: each segment goes where it leaves the least room.

    Returns
    -------
    list of rows, each a list of segments whose lengths add up to at most ``context``.
    """
    rows: list[list[Segment]] = []
    with_room: list[list[int]] = [[] for _ in range(context + 1)]  # rows by the room they have left
    for segment in sorted(segments, key=lambda item: (-item.length, item.document, item.start)):
        room = next((room for room in range(segment.length, context + 1) if with_room[room]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, context
        else:
            row = with_room[room].pop()
        rows[row].append(segment)
        with_room[room - segment.length].append(row)
    return rows


def collate_packed(documents: Sequence[Tokens], rows: Sequence[Sequence[Segment]], filler: int) -> PackedBatch:
    """Lay packed rows out as tensors, as wide as the fullest of them.

    Parameters
    ----------
    documents : sequence of int64 arrays
        All documents; segments refer to them by index.
    rows : sequence of rows
        As `pack_segments` returns them.
    filler : int
        Token that stands where nothing is; nobody sees it.
    """
    width = max(sum(segment.length for segment in row) for row in rows)
    shape = (len(rows), width)
    input_ids: NDArray[np.int64] = np.full(shape, filler, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    owners = np.full(shape, -1, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    lengths: list[int] = []
    for index, row in enumerate(rows):
        at = 0
        for segment in row:
            tokens = documents[segment.document]
            here = slice(at, at + segment.length)
            input_ids[index, here] = tokens[segment.start : segment.stop]
            labels[index, here] = tokens[segment.start + 1 : segment.stop + 1]
            position_ids[index, here] = np.arange(segment.length)
            owners[index, here] = segment.document
            at += segment.length
            lengths.append(segment.length)
        position_ids[index, at:] = np.arange(width - at)
        if at < width:
            lengths.append(width - at)
    return PackedBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(labels),
        torch.from_numpy(owners),
        int((labels != IGNORED).sum()),
        tuple(lengths),
    )
