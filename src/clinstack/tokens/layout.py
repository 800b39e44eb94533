"""How notes stand in batches: packed, bucketed by length, or padded as in the published code.

::

    context 6                packed             bucketed             padded

    A = a0 a1 a2 a3          c0 c1 c2 c3 c4 c5  c0 c1 c2 c3 c4 c5    a0 a1 a2 __ __ __
    B = b0 b1 b2             a0 a1 a2 c6 c7 c8                       b0 b1 __ __ __ __
    C = c0 ... c9            b0 b1 __ __ __ __  a0 a1 a2             c0 c1 c2 c3 c4 __
                                                c6 c7 c8
                                                b0 b1 __

Packed rows hold several documents, which do not see each other. Bucketed rows hold one segment, in batches of similar
lengths and of about as many tokens each. Both lose nothing. Padded rows hold the first ``context`` tokens of a note and
nothing of its rest. The last token of a row is a label only, so it is not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clinstack.tokens.batches import Batches, by_length, every
from clinstack.tokens.documents import Documents
from clinstack.tokens.pack import (
    PackedBatch,
    Rows,
    Segments,
    collate_rows,
    one_in_each_row,
    pack_segments,
    split_documents,
)

Layout = Literal["packed", "bucketed", "padded"]


@dataclass(frozen=True)
class NoteRows:
    """Documents laid out in rows. Make it with `lay_out`.

    Parameters
    ----------
    documents : Documents
    segments : Segments
    rows : Rows
    layout : {"packed", "bucketed", "padded"}
    context : int
        Tokens in a row at most.
    filler : int
        Token that stands where nothing is.
    cut : int
        Tokens of the documents that no row has.
    """

    documents: Documents
    segments: Segments
    rows: Rows
    layout: Layout
    context: int
    filler: int
    cut: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fills(self) -> NDArray[np.int64]:
        """Tokens in each row, which is also its predictions; shape [rows]."""
        return self.rows.fills(self.segments)

    def predictions(self, chosen: Sequence[int]) -> int:
        """Return how many tokens are predicted in a batch."""
        return int(self.fills[chosen].sum())

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> Batches:
        """Return the batches of an epoch: a pure function of its arguments, and as many in each epoch.

        Bucketed batches have at most ``batch_size * context`` tokens, filler counted; the others ``batch_size`` rows.
        """
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self))
        if self.layout != "bucketed":
            return Batches(order, every(len(order), batch_size))
        # Rows of one length change places between batches, so that the batches differ in each epoch.
        return by_length(self.fills, batch_size * self.context, order).turned(random)

    def in_order(self, batch_size: int) -> Batches:
        """Return batches for measuring: bucketed ones by length, the longest first, the others as the rows stand."""
        if self.layout == "bucketed":
            return by_length(self.fills, batch_size * self.context)
        return Batches(np.arange(len(self)), every(len(self), batch_size))

    def positions(self, batches: Batches) -> int:
        """Return the positions that a model computes for batches, filler counted."""
        if self.layout == "padded":
            return len(batches.order) * self.context
        widest = np.maximum.reduceat(self.fills[batches.order], batches.offsets[:-1])
        return int((widest * np.diff(batches.offsets)).sum())

    def counts(self, batches: Batches) -> dict[str, int | float]:
        """Return what a Run says about the rows in batches.

        Returns
        -------
        dict
            ``notes``; ``read``, the predicted tokens; ``cut``, the tokens that the layout leaves out; ``positions``
            computed, filler counted; ``useful``, the share of ``read`` in them.
        """
        read, positions = int(self.fills.sum()), self.positions(batches)
        return {
            "notes": len(self.documents),
            "read": read,
            "cut": self.cut,
            "positions": positions,
            "useful": read / positions,
        }

    def collate(self, chosen: Sequence[int]) -> PackedBatch:
        """Lay rows out as tensors."""
        return collate_rows(
            self.documents,
            self.segments,
            self.rows,
            chosen,
            self.filler,
            width=self.context if self.layout == "padded" else 0,
            masked=self.layout != "packed",
        )


def lay_out(documents: Documents, layout: Layout, context: int, filler: int) -> NoteRows:
    """Lay documents out in rows of at most ``context`` tokens.

    Parameters
    ----------
    documents : Documents
        For "padded" between the tokenizer's own begin and end tokens, as in the published code.
    layout : {"packed", "bucketed", "padded"}
    context : int
    filler : int
        Token that stands where nothing is.
    """
    cut = 0
    if layout == "padded":
        whole, documents = documents, documents.cut(context)
        cut = int(whole.predictions.sum() - documents.predictions.sum())
    segments = split_documents(documents.lengths, context)
    rows = pack_segments(segments, context) if layout == "packed" else one_in_each_row(segments)
    return NoteRows(documents, segments, rows, layout, context, filler, cut)
