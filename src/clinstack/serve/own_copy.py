"""A stack with a base of its own: for adapters that are no factors, encoders, and bases in another precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.pieces import Lengths, piece_features, pool_pieces, reads_flat
from clinstack.model.stack import Stack
from clinstack.tokens.documents import Tokens

_PADDED_NOTES = 16
"""Notes of a batch where they are padded."""


class OwnCopy:
    """A whole `Stack` behind the same call as the stacks that share a base.

    Attributes
    ----------
    stack : Stack
        Loaded, verified against its probe, and in evaluation mode.
    """

    def __init__(self, folder: Path, base: str, device: torch.device) -> None:
        self.stack = Stack.load(folder, base).to(device)
        for parameter in self.stack.network.parameters():
            parameter.requires_grad_(False)

    def classify(self, notes: Sequence[Sequence[Tokens]]) -> list[NDArray[np.float32]]:
        """Return the raw logits [classes] of each note, given its pieces."""
        counts = np.array([len(pieces) for pieces in notes], dtype=np.int64)
        pieces = [len(piece) for note in notes for piece in note]
        lengths = Lengths(pieces, counts, flat=reads_flat(self.stack))
        result: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(notes)
        with torch.inference_mode():
            for batch in lengths.measuring_batches(_PADDED_NOTES):
                chosen = [notes[place] for place in batch]
                for place, logits in zip(batch, self._logits(chosen), strict=True):
                    result[place] = logits.float().cpu().numpy()
        return result

    def _logits(self, notes: Sequence[Sequence[Tokens]]) -> Tensor:
        features = piece_features(self.stack, [piece for note in notes for piece in note])
        pooled = pool_pieces(features, [len(note) for note in notes], self.stack.reading.chunk_pooling)
        logits: Tensor = self.stack.head(pooled)
        return logits
