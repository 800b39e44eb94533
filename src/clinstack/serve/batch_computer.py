"""Computing a batch, in parts where it fails as a whole: one bad note takes no other with it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clinstack.serve.batching import Item
from clinstack.tokens.documents import Tokens

REGAINED = 1 / 128
"""Share of the full budget that a batch regains after a batch that fitted in memory."""

log = logging.getLogger(__name__)


class Classifier(Protocol):
    """What the thread needs of `clinstack.serve.shared_base.SharedBase`."""

    def classify(self, items: Sequence[tuple[str, Sequence[Tokens]]]) -> list[NDArray[np.float32]]:
        """Return raw logits, one array [classes] for each pair of a stack's name and the pieces of a note."""
        ...


class BatchComputer:
    """Asks a model for a batch, then for parts of it.

    Parameters
    ----------
    model : Classifier
    budget : int
        Tokens of a full batch.

    Attributes
    ----------
    fits : int
        Tokens of a batch that fit in memory, as far as is known.
    """

    def __init__(self, model: Classifier, budget: int) -> None:
        self._model = model
        self._budget = budget
        self.fits = budget

    def results(self, batch: list[Item]) -> Iterator[tuple[list[Item], list[NDArray[np.float32]] | Exception]]:
        """Yield parts of a batch with their logits, and single items with the error that they have alone.

        Where memory is full, halves are tried; after any other error each item alone. Items whose request is over by
        then are left out.

        Raises
        ------
        RuntimeError
            If a card computes nothing any more in this process.
        """
        parts = [batch]
        while parts:
            part = [item for item in parts.pop() if not item.request.over]
            if not part:
                continue
            result = self._logits(part)
            if isinstance(result, list) or len(part) == 1:
                yield part, result
            elif _memory_was_full(result):
                half = len(part) // 2
                self.fits = max(1, sum(item.tokens for item in part) // 2)
                log.warning("out of memory with %d notes: batches of at most %d tokens now", len(part), self.fits)
                parts += [part[half:], part[:half]]
            else:
                parts += [[item] for item in reversed(part)]

    def _logits(self, part: list[Item]) -> list[NDArray[np.float32]] | Exception:
        """Return the logits of some items, or the error without what it held in memory."""
        try:
            logits = self._model.classify([(item.stack, item.pieces) for item in part])
            if len(logits) != len(part):
                raise RuntimeError(f"{len(logits)} results for {len(part)} notes")
        except Exception as error:
            # Not its message: that could hold what it was working on.
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}:{where.lineno}"
            log.error("the model failed on %d notes: %s at %s", len(part), type(error).__name__, place)
            failure: Exception = error.with_traceback(None)
        else:
            self.fits = min(self._budget, self.fits + max(1, int(self._budget * REGAINED)))
            return logits
        if _memory_was_full(failure):
            _free_memory()
        elif "CUDA error" in str(failure):
            raise failure
        return failure


def _memory_was_full(error: Exception) -> bool:
    """Whether memory was full: Python's error, or torch's for a card or the CPU."""
    from clinstack.engine.guards import is_out_of_memory

    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


def _free_memory() -> None:
    """Give back what a failed pass left."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
