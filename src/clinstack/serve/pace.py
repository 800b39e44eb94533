"""How fast the model is: measured on batches, with all that runs between them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clinstack.serve.shared_base import SharedBase

REMEMBERED_SECONDS = 5.0
"""After so many seconds of work a measurement counts half."""
WARM_UP_SECONDS = 1.0
_WORDS = "the patient was admitted with chest pain and shortness of breath "


class Pace:
    """Tokens per second of classification while something waits for it.

    The clock goes on between batches that follow one another, so that decoding steps and whatever else takes the model
    or the machine is in the figure. A small batch shows less than the speed, because much of its time does not depend
    on its tokens; so it counts only where it was faster than what is known, or has a quarter of the budget.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """The measured speed; None before the first batch."""
        return self._tokens / self._seconds if self._seconds > 0 else None

    def measured(self, tokens: int, seconds: float, budget: int) -> None:
        """Count a batch.

        Parameters
        ----------
        tokens : int
            Of the batch.
        seconds : float
            Since the end of the batch before, or since this one could have begun.
        budget : int
            Tokens of a full batch.
        """
        known = self.tokens_per_second
        if known is not None and 4 * tokens < budget and tokens < known * seconds:
            return
        kept = 0.5 ** (seconds / REMEMBERED_SECONDS)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds

    def seconds_for(self, tokens: float) -> float:
        """Return how long so many tokens take; 0 where nothing was measured."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


def warm_up(shared: SharedBase, budget: int, pace: Pace) -> None:
    """Measure the speed before anybody asks, with made-up notes for about a second; nothing without a classifier.

    Parameters
    ----------
    shared : SharedBase
    budget : int
        Tokens of a full batch.
    pace : Pace
        Is told.
    """
    name = next((name for name, stack in shared.stacks.items() if stack.task is not None), None)
    if name is None:
        return

    def measured(count: int) -> tuple[int, float]:
        # No two alike: what is the same is computed once.
        notes = [shared.encode(name, f"{number} {_WORDS * 64}") for number in range(count)]
        began = time.monotonic()
        shared.classify([(name, note.pieces) for note in notes])
        return sum(note.tokens for note in notes), time.monotonic() - began

    measured(1)  # allocates what every later pass finds
    tokens, seconds = measured(1)
    notes = max(1, min(budget // tokens, int(WARM_UP_SECONDS / seconds)))
    ends = time.monotonic() + WARM_UP_SECONDS
    while True:
        tokens, seconds = measured(notes)
        pace.measured(tokens, seconds, tokens)
        if time.monotonic() > ends:
            return
