"""Logits of notes that come part by part, while the next part is read and tokenised beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clinstack.engine.pieces import Lengths, note_logits, reads_flat
from clinstack.model.stack import Stack
from clinstack.tokens.texts import EncodedTexts

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, each made by a thread while the one before it is worked on; at most two exist at a time."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting = thread.submit(next, iterator, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, iterator, None)
            yield item


def encoded_logits(stack: Stack, encoded: EncodedTexts, notes: int, batch_size: int) -> NDArray[np.float32]:
    """Return the logits of all notes in order, shape [notes, classes]; computed together by length, longest first.

    Parameters
    ----------
    encoded : EncodedTexts
        The pieces of ``notes`` notes.
    batch_size : int
        Notes of a padded batch; a flat row holds as many as fit.
    """
    classes = stack.head.out_features
    if not notes:
        return np.zeros((0, classes), dtype=np.float32)
    counts = np.bincount(encoded.owners, minlength=notes)
    lengths = Lengths([len(piece) for piece in encoded.pieces], counts, flat=reads_flat(stack))
    batches = lengths.measuring_batches(batch_size)
    found = []
    with torch.inference_mode():
        for batch in batches:
            places, of_each = lengths.pieces_of(batch)
            found.append(note_logits(stack, [encoded.pieces[place] for place in places], of_each).float())
        # Fetched once: asking for each batch would let a GPU wait.
        scores: NDArray[np.float32] = torch.cat(found).cpu().numpy()
    logits = np.empty((notes, classes), dtype=np.float32)
    logits[np.concatenate([np.asarray(batch) for batch in batches])] = scores
    return logits
