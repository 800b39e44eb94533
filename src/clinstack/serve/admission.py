"""Which requests the queue takes: what fits, and what can be done in time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from clinstack.serve.batching import Request
from clinstack.serve.model_thread import ModelThread
from clinstack.serve.refusals import QueueFull, RequestTooLarge

if TYPE_CHECKING:
    from clinstack.serve.served_stack import ServedStack

HEADROOM = 0.5
"""Share of a request's time that it may be expected to wait: also at half the speed it is answered in time."""
CHARACTERS_PER_TOKEN = 3.0
"""Before any note was encoded."""
RETRY_SECONDS = 1.0
"""After which a refused request may come again where no speed has been measured yet."""


class QueueSettings(Protocol):
    """What the queue reads of `clinstack.serve.settings.ServeSettings`."""

    @property
    def queue_tokens(self) -> int:
        """Tokens that may wait."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass, at most, but for a single longer note."""
        ...

    @property
    def window_ms(self) -> float:
        """How long the first note of a batch waits for others."""
        ...


class Admission:
    """Says before a request is encoded, and once more when its tokens are known, whether there is room for it.

    Parameters
    ----------
    limit : int
        Tokens that may wait.
    thread : ModelThread
    """

    def __init__(self, limit: int, thread: ModelThread) -> None:
        self._limit = limit
        self._thread = thread
        self._characters_per_token: float | None = None
        self._reserved = 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait, with what requests that are being encoded probably come to."""
        return self._reserved + self._thread.waiting.tokens

    @contextmanager
    def reserved(self, notes: Sequence[tuple[ServedStack, str]], due: float, client: str) -> Iterator[None]:
        """Keep room for notes while they are encoded.

        Parameters
        ----------
        notes : sequence of (ServedStack, str)
            A stack and a note's text.
        due : float
            When all of them must have been started, by `time.monotonic`.
        client : str

        Raises
        ------
        QueueFull
        """
        guess = sum(self._guess(stack, len(text)) for stack, text in notes)
        # No more than the limit: a guess is no reason to refuse a request for good.
        guess = min(guess, self._limit)
        self.check(len(notes), guess, due, client)
        self._reserved += guess
        try:
            yield
        finally:
            self._reserved -= guess

    def _guess(self, stack: ServedStack, characters: int) -> int:
        tokens = 1 + int(characters / (self._characters_per_token or CHARACTERS_PER_TOKEN))
        return tokens if stack.reading.keep == "chunks" else min(tokens, stack.max_tokens)

    def check_encoded(self, request: Request, characters: int) -> None:
        """Refuse an encoded request for which there is no room after all, and learn what texts come to.

        Raises
        ------
        RequestTooLarge, QueueFull
        """
        tokens = request.waiting_tokens
        known, seen = self._characters_per_token, characters / tokens
        self._characters_per_token = seen if known is None else known + 0.1 * (seen - known)
        if tokens > self._limit:
            raise RequestTooLarge(tokens, self._limit)
        self.check(len(request.waiting), tokens, request.deadline, request.client)

    def check(self, notes: int, tokens: int, due: float, client: str) -> None:
        """Refuse what does not fit into the queue now, or would wait longer than it may.

        Raises
        ------
        QueueFull
        """
        thread = self._thread
        too_many = self.waiting_tokens + tokens - self._limit
        with thread.lock:
            if too_many > 0:
                raise QueueFull(thread.pace.seconds_for(too_many) or RETRY_SECONDS)
            before = self._reserved + thread.computing_tokens
            wait = thread.pace.seconds_for(before + thread.waiting.until_done(client, notes, tokens))
            until_empty = thread.pace.seconds_for(self.waiting_tokens)
        allowed = HEADROOM * (due - time.monotonic())
        # Where nothing waits, a request is tried: the speed may have become better since it was measured.
        if wait > allowed and self.waiting_tokens:
            raise QueueFull(min(wait - allowed, until_empty))
