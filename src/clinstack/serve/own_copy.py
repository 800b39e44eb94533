"""A stack with a base of its own: for adapters that are no factors, encoders, and bases in another precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clinstack.engine.pieces import Lengths, note_logits, reads_flat
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
        pieces = [piece for note in notes for piece in note]
        lengths = Lengths([len(piece) for piece in pieces], counts, flat=reads_flat(self.stack))
        result: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(notes)
        with torch.inference_mode():
            for batch in lengths.measuring_batches(_PADDED_NOTES):
                places, of_each = lengths.pieces_of(batch)
                logits = note_logits(self.stack, [pieces[place] for place in places], of_each)
                for place, row in zip(batch, logits, strict=True):
                    result[place] = row.float().cpu().numpy()
        return result
