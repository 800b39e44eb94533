"""A model that takes a known time for each token, behind the real queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.model.reading import Reading
from clinstack.serve.model_thread import QueueObserver
from clinstack.serve.queue import RequestQueue, Scored

SECONDS_PER_TOKEN = 20e-6
SECRET = "zebra quartz lantern"


@dataclass(frozen=True)
class Settings:
    queue_tokens: int = 100_000
    batch_tokens: int = 1000
    window_ms: float = 4.0


@dataclass
class FakeModel:
    """Has a token for each word. Takes its time for each, and answers with the number of the words and their first."""

    seconds_per_token: float = SECONDS_PER_TOKEN
    encoding_seconds: float = 0.0
    """Of each note."""
    longest: int = 2000
    batches: list[list[tuple[str, int]]] = field(default_factory=list)
    encoded: list[tuple[str, str]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    memory: int | None = None
    """Tokens of a batch that fit."""
    memory_error: Callable[[], Exception] = MemoryError

    def __post_init__(self) -> None:
        self.stacks = {name: self._stack() for name in ("mortality", "length_of_stay")}
        self.gate = threading.Event()
        """Closed, the model does not finish a batch of notes; the warm-up passes."""
        self.gate.set()

    def _stack(self) -> Any:
        return SimpleNamespace(task=object(), max_tokens=self.longest, reading=Reading(self.longest))

    def encode(self, name: str, text: str) -> Any:
        self.threads.add(threading.current_thread().name)
        words = text.split()
        time.sleep(self.encoding_seconds)
        self.encoded.append((name, words[0]))
        ids = np.array([int(word) if word.isdigit() else 0 for word in words[: self.longest]] or [0], dtype=np.int64)
        return SimpleNamespace(pieces=[ids], tokens=len(ids), cut=max(0, len(words) - self.longest))

    def classify(self, items: Sequence[tuple[str, Sequence[NDArray[np.int64]]]]) -> list[NDArray[np.float32]]:
        self.threads.add(threading.current_thread().name)
        assert all(name in self.stacks for name, _ in items)
        lengths = [(name, sum(map(len, pieces))) for name, pieces in items]
        firsts = [int(pieces[0][0]) for _, pieces in items]
        tokens = sum(length for _, length in lengths)
        if self.memory is not None and tokens > self.memory:
            raise self.memory_error()
        if 666 in firsts:
            raise ValueError(SECRET)
        if 667 in firsts:
            raise RuntimeError(f"CUDA error: device-side assert triggered {SECRET}")
        time.sleep(tokens * self.seconds_per_token)
        if all(0 not in pieces[0] for _, pieces in items):  # words of the warm-up are no numbers
            self.gate.wait()
            self.batches.append(lengths)
        return [np.array([first, length], dtype=np.float32) for first, (_, length) in zip(firsts, lengths, strict=True)]

    def read(self, folder: Path) -> Any:
        assert not threading.current_thread().name.startswith(("clinstack", "MainThread"))
        return folder

    def add(self, name: str, read: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        if name in self.stacks:
            raise InputError(f"{name}: the name is taken")
        self.stacks[name] = self._stack()
        return self.stacks[name]

    def remove(self, name: str) -> None:
        self.threads.add(threading.current_thread().name)
        del self.stacks[name]


@dataclass
class Seen(QueueObserver):
    waits: list[float] = field(default_factory=list)
    batches: list[tuple[int, int, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def started(self, waited: float) -> None:
        self.waits.append(waited)

    def batch(self, notes: int, tokens: int, seconds: float) -> None:
        self.batches.append((notes, tokens, seconds))

    def failed(self, kind: str) -> None:
        self.failures.append(kind)

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


def note(first: int, words: int = 100) -> str:
    """A text of so many words that the fake's answer tells from others by its first."""
    return " ".join([str(first), *(["1"] * (words - 1))])


def with_queue(
    test: Callable[[RequestQueue, FakeModel], Awaitable[None]],
    *,
    model: FakeModel | None = None,
    settings: Settings | None = None,
    observer: QueueObserver | None = None,
) -> None:
    async def run() -> None:
        fake = model or FakeModel()
        queue = RequestQueue(fake, settings or Settings(), observer)  # type: ignore[arg-type]  # a fake
        await queue.start()
        try:
            async with asyncio.timeout(120):
                await test(queue, fake)
        finally:
            fake.gate.set()
            await queue.stop()

    asyncio.run(run())


async def waiting(queue: RequestQueue, notes: int) -> None:
    while queue.depth != notes:
        await asyncio.sleep(0.001)


def firsts(scored: Sequence[Scored]) -> list[int]:
    return [int(one.logits[0]) for one in scored]
