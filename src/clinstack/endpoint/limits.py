"""Rate limits: how much may be asked in any 60 seconds, and pauses that the server asks for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 60.0
"""Seconds."""


@dataclass
class Admission:
    """A request that was let through: when, and with how many tokens; the count is put right when they are known."""

    at: float
    tokens: int


class RateLimits:
    """Holds threads back so that no 60 seconds see more requests or tokens than allowed.

    A request that alone is larger than the limit of tokens is let through when nothing else is in the window.

    Parameters
    ----------
    requests_per_minute, tokens_per_minute : int or None
        None for no limit.
    clock : callable
        Seconds that only grow.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._admitted: deque[Admission] = deque()
        self._paused_until = float("-inf")
        self._lock = threading.Lock()

    def admit(self, tokens: int, stop: threading.Event) -> Admission | None:
        """Wait until a request of about so many tokens may go; return None if ``stop`` was set meanwhile."""
        while not stop.is_set():
            admission, wait = self.try_admit(tokens)
            if admission is not None:
                return admission
            stop.wait(wait)
        return None

    def try_admit(self, tokens: int) -> tuple[Admission | None, float]:
        """Let a request through, or say how many seconds to wait before asking again."""
        with self._lock:
            now = self._clock()
            if now < self._paused_until:
                return None, self._paused_until - now
            while self._admitted and self._admitted[0].at + WINDOW <= now:
                self._admitted.popleft()
            used = sum(entry.tokens for entry in self._admitted) if self.tokens_per_minute else 0
            too_many = self.requests_per_minute is not None and len(self._admitted) >= self.requests_per_minute
            too_much = self.tokens_per_minute is not None and used + tokens > self.tokens_per_minute
            if self._admitted and (too_many or too_much):
                return None, self._admitted[0].at + WINDOW - now
            admission = Admission(now, tokens)
            if self.requests_per_minute is not None or self.tokens_per_minute is not None:
                self._admitted.append(admission)
            return admission, 0.0

    def correct(self, admission: Admission, tokens: int) -> None:
        """Put the tokens of a request right, now that the server has counted them."""
        with self._lock:
            admission.tokens = tokens

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long: the server said that it has too much to do."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)
