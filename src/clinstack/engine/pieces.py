"""What the head reads of pieces of notes: in one row without padding where the stack can, else padded.

::

    notes A, B, C        one flat row                     padded
                         A A A A B B C C C C C C          A A A A _ _
                         0 1 2 3 0 1 0 1 2 3 4 5          B B _ _ _ _
                         (positions begin anew)           C C C C C C

In the flat row no filler is computed, and attention goes piece by piece (`clinstack.model.attention`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.model.attention import attends_by_document
from clinstack.model.pooling import pool_flat
from clinstack.model.stack import Stack
from clinstack.recipe import TrainingRecipe
from clinstack.tokens.batches import (
    Batches,
    by_length,
    filled_batches,
    pad,
    random_batches,
    shuffled_batches,
    sorted_batches,
)
from clinstack.tokens.documents import Tokens

ROW_TOKENS = 2048
"""Tokens of a flat row. What a layer computes of more does not stay in a core's cache: on a CPU longer rows are slower,
and shorter ones make worse matrix products."""


def reads_flat(stack: Stack) -> bool:
    """Whether pieces can follow one another in a row: decoders without virtual tokens, in float32 on a CPU."""
    return stack.can_pack and not stack.is_encoder and attends_by_document(stack.network)


def piece_features(stack: Stack, pieces: Sequence[Tokens]) -> Tensor:
    """Return what the stack's head reads of pieces, float32, shape [pieces, features]."""
    if not reads_flat(stack):
        input_ids, mask = pad(pieces, stack.tokenizer.pad_token_id or 0)
        return stack.pooled(input_ids.to(stack.device), mask.to(stack.device))
    rows = [_flat_features(stack, pieces[row]) for row in flat_rows([len(piece) for piece in pieces])]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _flat_features(stack: Stack, pieces: Sequence[Tokens]) -> Tensor:
    lengths = [len(piece) for piece in pieces]
    input_ids = torch.from_numpy(np.concatenate(pieces))
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
    hidden = stack.hidden_states(input_ids[None], position_ids=positions[None])[0]
    return stack.features_from(pool_flat(hidden, torch.tensor(lengths), stack.pooling))


def flat_rows(lengths: Sequence[int], most: int | None = None) -> Iterator[slice]:
    """Yield which pieces, in their order, stand together in a row, or alone in one that is longer.

    Parameters
    ----------
    most : int, optional
        Tokens of a row; `ROW_TOKENS` when not given.
    """
    most = ROW_TOKENS if most is None else most
    begin, filled = 0, 0
    for place, length in enumerate(lengths):
        if filled and filled + length > most:
            yield slice(begin, place)
            begin, filled = place, 0
        filled += length
    if filled:
        yield slice(begin, len(lengths))


def pool_pieces(features: Tensor, counts: Sequence[int], kind: str) -> Tensor:
    """Return each note's features from those of its pieces, which stand together: shape [notes, features].

    Parameters
    ----------
    features : Tensor [pieces, features]
    counts : sequence of int
        Pieces of each note, at least 1.
    kind : {"mean", "max"}
    """
    if len(counts) == len(features):
        return features
    pooled: Tensor = torch.segment_reduce(features, kind, lengths=torch.tensor(counts, device=features.device), axis=0)
    return pooled


def note_logits(stack: Stack, pieces: Sequence[Tokens], counts: Sequence[int]) -> Tensor:
    """Return a stack's logits of notes, shape [notes, classes].

    Parameters
    ----------
    pieces : sequence of int64 arrays
        Of all notes; those of a note stand together.
    counts : sequence of int
        Pieces of each note, at least 1.
    """
    logits: Tensor = stack.head(pool_pieces(piece_features(stack, pieces), counts, stack.reading.chunk_pooling))
    return logits


class Lengths:
    """How long notes are in tokens, and which of them to compute together.

    Parameters
    ----------
    pieces : sequence of int
        Tokens of each piece; those of a note stand together.
    counts : int64 array [notes]
        Pieces of each note.
    flat : bool
        Whether a batch is a flat row, which nothing pads.
    """

    def __init__(self, pieces: Sequence[int], counts: NDArray[np.int64], *, flat: bool) -> None:
        first = np.cumsum(counts) - counts
        lengths = np.array(pieces, dtype=np.int64)
        self._flat = flat
        self._counts, self._first = counts, first
        self.tokens: NDArray[np.int64] = np.add.reduceat(lengths, first) if len(first) else lengths
        self.longest: NDArray[np.int64] = np.maximum.reduceat(lengths, first) if len(first) else lengths

    def epoch_batches(self, settings: TrainingRecipe, epoch: int) -> Sequence[list[int]]:
        """Return the batches of an epoch by (seed, epoch), as many in each: random where nothing is padded."""
        seed, budget = settings.seed, settings.batch_tokens
        if budget is None:
            if self._flat:
                return random_batches(len(self.tokens), settings.batch_size, seed, epoch)
            return shuffled_batches(self.longest.tolist(), settings.batch_size, seed, epoch)
        if self._flat:
            return filled_batches(self.tokens, budget, seed, epoch)
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self.tokens))
        return by_length(self.longest, budget, order, pieces=self._counts).turned(random)

    def pieces_of(self, notes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the places of some notes' pieces, one note after another, and how many pieces each of them has."""
        counts: list[int] = self._counts[notes].tolist()
        places = [
            first + place
            for first, count in zip(self._first[notes].tolist(), counts, strict=True)
            for place in range(count)
        ]
        return places, counts

    def measuring_batches(self, batch_size: int) -> Sequence[list[int]]:
        """Return batches for one pass over all notes, the longest first."""
        if not self._flat:
            return sorted_batches(self.longest.tolist(), batch_size)
        order = np.argsort(-self.tokens, kind="stable")
        ends = [row.stop for row in flat_rows(self.tokens[order].tolist())]
        return Batches(order, np.array([0, *ends], dtype=np.int64))
