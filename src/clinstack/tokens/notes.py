"""Notes as tokens, with what is known about each."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pyarrow as pa

from clinstack.tokens.documents import Documents


@dataclass(frozen=True)
class NoteTokens:
    """The tokenised notes of one split's patients.

    Parameters
    ----------
    index : pyarrow.Table
        ``note_id, patient_id, note_type`` (strings) and ``characters`` (int64) of each note.
    documents : Documents
        The tokens of each, without begin and end tokens.
    """

    index: pa.Table
    documents: Documents

    def __len__(self) -> int:
        return len(self.documents)

    def sample(self, most: int | None, seed: int) -> NoteTokens:
        """Return at most ``most`` notes, drawn by ``seed``, in their order."""
        if most is None or most >= len(self):
            return self
        places = sorted(random.Random(seed).sample(range(len(self)), most))
        return NoteTokens(self.index.take(pa.array(places)), self.documents.chosen(places))
