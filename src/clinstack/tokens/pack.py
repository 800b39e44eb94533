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
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clinstack.tokens.documents import Documents

IGNORED = -100


@dataclass(frozen=True)
class Segments:
    """Parts of documents that stand in one row: inputs ``[start, stop)``, each predicting the token after it.

    All are int32 arrays of the shape [segments], by document and start.
    """

    document: NDArray[np.int32]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each in its row, and predictions."""
        return self.stop - self.start

    def __len__(self) -> int:
        return len(self.document)


@dataclass(frozen=True)
class Rows:
    """Which segments stand in which row: those of row ``i`` are ``segments[offsets[i] : offsets[i + 1]]``.

    Parameters
    ----------
    offsets : int64 array [rows + 1]
    segments : int32 array [segments]
        Places in `Segments`, from left to right in each row.
    """

    offsets: NDArray[np.int64]
    segments: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.segments[self.offsets[row] : self.offsets[row + 1]]

    def fills(self, segments: Segments) -> NDArray[np.int64]:
        """Return the tokens in each row, shape [rows]."""
        ends = np.concatenate([[0], np.cumsum(segments.lengths[self.segments], dtype=np.int64)])
        filled: NDArray[np.int64] = ends[self.offsets[1:]] - ends[self.offsets[:-1]]
        return filled


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


def split_documents(lengths: ArrayLike, context: int) -> Segments:
    """Cut documents of ``lengths`` tokens into segments of at most ``context``; a document of one token has none."""
    predictions = np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0)
    parts = -(-predictions // context)
    document = np.repeat(np.arange(len(parts), dtype=np.int32), parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = (number * context).astype(np.int32)
    stop = np.minimum(start + context, predictions[document]).astype(np.int32)
    return Segments(document, start, stop)


def one_in_each_row(segments: Segments) -> Rows:
    """Return rows of one segment each."""
    return Rows(np.arange(len(segments) + 1, dtype=np.int64), np.arange(len(segments), dtype=np.int32))


def pack_segments(segments: Segments, context: int) -> Rows:
    """Fill rows of at most ``context`` tokens by best-fit decreasing: each segment goes where it leaves least room.

    Segments of one length differ in nothing that matters here, so all of them are placed together: a row with the
    least room that suffices takes as many as fit, because what it has left then is less still. The work grows with
    the number of lengths, not of segments.
    """
    lengths = segments.lengths
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    row_of = np.empty(len(order), dtype=np.int32)  # in the order of placing
    free = _Room(context)
    at = 0
    counts = np.bincount(lengths, minlength=context + 1)
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            rows, room = free.take(length, left)
            each = room // length
            full = min(len(rows), left // each)
            rest = left - full * each if full < len(rows) else 0
            placed = full * each + rest
            row_of[at : at + placed] = np.repeat(rows, each)[:placed]
            free.give(rows[:full], room - each * length)
            if rest:
                free.give(rows[full : full + 1], room - rest * length)
            free.give(rows[full + (rest > 0) :], room)
            at += placed
            left -= placed
    by_row = np.argsort(row_of, kind="stable")
    filled = np.bincount(row_of, minlength=free.rows)
    offsets = np.concatenate([[0], np.cumsum(filled)]).astype(np.int64)
    return Rows(offsets, order[by_row])


class _Room:
    """Rows by the room they have left."""

    def __init__(self, context: int) -> None:
        self.rows = 0
        self._context = context
        self._with: list[list[NDArray[np.int32]]] = [[] for _ in range(context + 1)]
        self._count = np.zeros(context + 1, dtype=np.int64)

    def take(self, length: int, most: int) -> tuple[NDArray[np.int32], int]:
        """Return rows with the least room that is enough, at most ``most``, and that room; new ones if there are none.

        New rows are as many as ``most`` segments need, so that none stays empty.
        """
        enough = np.flatnonzero(self._count[length:])
        if len(enough):
            room = length + int(enough[0])
            rows = self._with[room].pop()
            if len(rows) > most:
                self._with[room].append(rows[:-most])
                rows = rows[-most:]
            self._count[room] -= len(rows)
            return rows, room
        new = -(-most // (self._context // length))
        self.rows += new
        return np.arange(self.rows - new, self.rows, dtype=np.int32), self._context

    def give(self, rows: NDArray[np.int32], room: int) -> None:
        """Put rows back with the room they have left."""
        if len(rows) and room:
            self._with[room].append(rows)
            self._count[room] += len(rows)


def collate_rows(
    documents: Documents,
    segments: Segments,
    rows: Rows,
    chosen: Sequence[int],
    filler: int,
    *,
    width: int = 0,
    masked: bool = False,
) -> PackedBatch:
    """Lay rows out as tensors, as wide as the fullest of them.

    Parameters
    ----------
    documents, segments, rows
        All there are.
    chosen : sequence of int
        The numbers of the rows of this batch.
    filler : int
        Token that stands where nothing is; nobody sees it.
    width : int
        At least so many tokens.
    masked : bool
        Give an attention mask; for rows of one segment each.
    """
    parts = [rows[row] for row in chosen]
    width = max(width, *(int((segments.stop[part] - segments.start[part]).sum()) for part in parts))
    shape = (len(parts), width)
    input_ids: NDArray[np.int64] = np.full(shape, filler, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    owners = np.full(shape, -1, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    lengths: list[int] = []
    for index, part in enumerate(parts):
        at = 0
        for segment in part.tolist():
            document, start, stop = (
                int(column[segment]) for column in (segments.document, segments.start, segments.stop)
            )
            tokens = documents.part(document, start, stop + 1)
            here = slice(at, at + stop - start)
            input_ids[index, here] = tokens[:-1]
            labels[index, here] = tokens[1:]
            position_ids[index, here] = np.arange(stop - start)
            owners[index, here] = document
            at += stop - start
            lengths.append(stop - start)
        # Filler is a document of its own, so that nobody sees it; under a mask its positions only go on.
        position_ids[index, at:] = np.arange(at, width) if masked else np.arange(width - at)
        if at < width:
            lengths.append(width - at)
    mask = torch.from_numpy((owners >= 0).astype(np.int64)) if masked else None
    return PackedBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(labels),
        torch.from_numpy(owners),
        int((labels != IGNORED).sum()),
        tuple(lengths),
        mask,
    )
