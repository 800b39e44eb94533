"""Language modelling on packed notes: what pretraining and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clinstack.engine.losses import causal_loss
from clinstack.engine.progress import progress_bar
from clinstack.model.stack import Stack
from clinstack.notes.read import NotesSplit
from clinstack.tokens.encode import Tokens, encode_documents
from clinstack.tokens.pack import PackedBatch, Segment, collate_packed, pack_segments, split_documents


@dataclass
class PackedNotes:
    """Notes as tokens and as rows to read."""

    documents: list[Tokens]
    rows: list[list[Segment]]
    filler: int

    @classmethod
    def of(cls, stack: Stack, texts: Sequence[str], context: int) -> PackedNotes:
        """Encode and pack texts; no token is lost."""
        documents = encode_documents(stack.tokenizer, texts)
        segments = split_documents([len(document) for document in documents], context)
        return cls(documents, pack_segments(segments, context), stack.tokenizer.pad_token_id or 0)

    def batches(self, batch_size: int, order: Sequence[int]) -> list[list[list[Segment]]]:
        """Group rows to batches in the given order."""
        rows = [self.rows[index] for index in order]
        return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]

    def collate(self, rows: list[list[Segment]], device: torch.device) -> PackedBatch:
        """Lay a batch out on a device."""
        return collate_packed(self.documents, rows, self.filler).to(device)


def losses_table(stack: Stack, notes: NotesSplit, split: str, context: int, batch_size: int) -> pa.Table:
    """Return one row for each note: its tokens, characters, and summed losses with and without the adapters."""
    packed = PackedNotes.of(stack, notes.texts, context)
    adapted = note_losses(stack, packed, batch_size, f"{split} notes, with adapters")
    with stack.switched_off():
        base = note_losses(stack, packed, batch_size, f"{split} notes, base alone")
    columns: dict[str, Any] = {
        "note_id": notes.note_ids,
        "patient_id": notes.patient_ids,
        "note_type": notes.note_types,
        "split": [split] * len(notes.texts),
        "tokens": [len(document) - 1 for document in packed.documents],
        "characters": [len(text) for text in notes.texts],
        "base_nll": base,
        "nll": adapted,
    }
    return pa.table(columns)


def note_losses(
    stack: Stack, notes: PackedNotes, batch_size: int, description: str | None = None
) -> NDArray[np.float64]:
    """Return the summed loss of each note in nats, shape [notes]."""
    sums = torch.zeros(len(notes.documents), dtype=torch.float64)
    stack.eval()
    batches = notes.batches(batch_size, range(len(notes.rows)))
    with torch.inference_mode(), progress_bar(description, len(batches)) as bar:
        for rows in batches:
            batch = notes.collate(rows, stack.device)
            each = causal_loss(stack, batch, reduction="none").double().cpu()
            owners = batch.documents.flatten().cpu()
            real = owners >= 0
            sums.index_add_(0, owners[real], each[real])
            bar.advance(batch.predictions)
    return sums.numpy()
