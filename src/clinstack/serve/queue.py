"""The bounded queue between HTTP and the model.

What it promises:

- Every request that it takes is answered once: by scores, or by one of the errors of `clinstack.serve.refusals`.
- What waits is bounded, in tokens. What would have to wait longer than its deadline is refused at once, with the time
  after which there is room.
- Nobody starves: clients take turns, their requests take turns, and so do classification and calls (decoding).
- What nobody waits for any more is not computed.
- Stacks come and go between two batches. A stack that goes away first answers what it took.

One thread of its own owns the model; one other turns texts into tokens, so that the event loop only waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clinstack.serve.admission import Admission, QueueSettings
from clinstack.serve.batching import Request, Scored
from clinstack.serve.model_thread import ModelThread, QueueObserver
from clinstack.serve.pace import warm_up
from clinstack.serve.refusals import (
    DeadlineExceeded,
    ModelFailed,
    QueueFull,
    RequestTooLarge,
    ShuttingDown,
    UnknownStack,
)

if TYPE_CHECKING:
    from clinstack.model.reading import Reading
    from clinstack.serve.served_stack import EncodedNote, ServedStack
    from clinstack.serve.shared_base import SharedBase

__all__ = [
    "DeadlineExceeded",
    "ModelFailed",
    "QueueFull",
    "QueueObserver",
    "RequestQueue",
    "RequestTooLarge",
    "Scored",
    "ShuttingDown",
    "UnknownStack",
]

Result = TypeVar("Result")

_REASONS: dict[type[Exception], str] = {
    QueueFull: "full",
    RequestTooLarge: "too_large",
    DeadlineExceeded: "deadline",
    ShuttingDown: "shutting_down",
}
"""What metrics call a refusal."""


@dataclass(frozen=True)
class _Started:
    thread: ModelThread
    admission: Admission


class RequestQueue:
    """Takes notes from many clients, and gives them to one `SharedBase` in batches.

    All methods are called in one event loop.

    Parameters
    ----------
    shared : SharedBase
        From now on used by nobody else, but for what `call` runs in the model's thread.
    settings : QueueSettings
    observer : QueueObserver, optional
        Is told of batches, waits and refusals.

    Attributes
    ----------
    stacks : dict of str to ServedStack
        What is served now, for the event loop to read.
    draining : bool
        Whether nothing new is taken.
    """

    def __init__(self, shared: SharedBase, settings: QueueSettings, observer: QueueObserver | None = None) -> None:
        self.shared = shared
        self.stacks: Mapping[str, ServedStack] = dict(shared.stacks)
        self.draining = False
        self._stopped = False
        self._settings = settings
        self._observer = observer or QueueObserver()
        self._running: _Started | None = None
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clinstack-encode")
        self._uses: Counter[str] = Counter()
        self._open_calls = 0
        self._leaving: dict[str, asyncio.Event] = {}
        self._idle = asyncio.Event()

    # ------------------------------------------------------------------ its life

    async def start(self) -> None:
        """Start the model's thread, and measure its speed with made-up notes for about a second."""
        settings = self._settings
        thread = ModelThread(
            self.shared,
            settings.batch_tokens,
            settings.window_ms / 1000,
            asyncio.get_running_loop(),
            self._observer,
        )
        self._running = _Started(thread, Admission(settings.queue_tokens, thread))
        thread.start()
        await self.call(lambda: warm_up(self.shared, settings.batch_tokens, thread.pace))

    async def drain(self, timeout: float) -> bool:
        """Take nothing new, finish what was taken, and return whether all of it was within so many seconds.

        Calls go on, so that what is being decoded comes to its end. What is left is refused by `stop`.
        """
        self.draining = True
        self._check_idle()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End the threads after what they compute now. What still waits is refused."""
        self.draining = self._stopped = True
        if self._running is not None:
            await asyncio.to_thread(self._running.thread.stop)
        await asyncio.to_thread(self._encoder.shutdown)

    @property
    def _started(self) -> _Started:
        if self._running is None:
            raise RuntimeError("the queue has not been started")
        return self._running

    # ------------------------------------------------------------------ what HTTP asks about

    @property
    def is_working(self) -> bool:
        """Whether the model's thread runs; once it does not, only a new process helps."""
        return self._running is not None and not self._running.thread.broken

    @property
    def depth(self) -> int:
        """Notes, each for one stack, that wait."""
        return self._running.thread.waiting.items if self._running is not None else 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait, with what requests that are being encoded probably come to."""
        return self._running.admission.waiting_tokens if self._running is not None else 0

    @property
    def tokens_per_second(self) -> float | None:
        """The speed that was measured last; None before."""
        return self._running.thread.pace.tokens_per_second if self._running is not None else None

    # ------------------------------------------------------------------ classifying

    async def classify(self, items: Sequence[tuple[str, str]], deadline: float, *, client: str = "") -> list[Scored]:
        """Return what stacks say of notes.

        A call that is cancelled, because its client went away, gives its place free at once.

        Parameters
        ----------
        items : sequence of (str, str)
            A stack's name and a note's text.
        deadline : float
            Seconds from now, within which all of them must have been started.
        client : str
            Who takes turns with the others.

        Raises
        ------
        UnknownStack
            If one of the stacks is not served.
        RequestTooLarge
            If it would not fit into the empty queue.
        QueueFull
            If it does not fit now, or would wait too long for its deadline.
        DeadlineExceeded
            If it waited too long all the same; nothing of it is kept.
        ModelFailed
            If the model raises an error on one of the notes alone.
        ShuttingDown
            If the queue takes nothing new, or ends before the request is done.
        """
        due = time.monotonic() + deadline
        try:
            with self.using(*{name for name, _ in items}):
                if not items:
                    return []
                return await self._answer(await self._encoded(items, due, client))
        except tuple(_REASONS) as error:
            self._observer.refused(_REASONS[type(error)])
            raise

    async def _encoded(self, items: Sequence[tuple[str, str]], due: float, client: str) -> Request:
        """Return the request that the notes come to, if there is room for it.

        Notes are encoded one by one, so that requests take turns with the encoder, and once for all stacks that read
        them in the same way. What is refused by a guess of its tokens costs no more than the guess.
        """
        loop, admission = asyncio.get_running_loop(), self._started.admission
        request = Request(client, due, loop.create_future(), time.monotonic())
        with admission.reserved([(self.stacks[name], text) for name, text in items], due, client):
            known: dict[tuple[Reading, str], EncodedNote] = {}
            for name, text in items:
                key = self.stacks[name].reading, text
                if self._stopped:
                    raise ShuttingDown
                if key not in known:
                    known[key] = await loop.run_in_executor(self._encoder, self.shared.encode, name, text)
                request.add(name, known[key].pieces, known[key].cut)
                if time.monotonic() > due:
                    raise DeadlineExceeded
        admission.check_encoded(request, sum(len(text) for _, text in items))
        return request

    async def _answer(self, request: Request) -> list[Scored]:
        thread = self._started.thread
        thread.put(request)
        timer = asyncio.get_running_loop().call_later(request.deadline - time.monotonic(), self._expire, request)
        try:
            return await request.answer
        finally:
            timer.cancel()
            thread.forget(request)

    def _expire(self, request: Request) -> None:
        if self._started.thread.expire(request) and not request.answer.done():
            request.answer.set_exception(DeadlineExceeded())

    # ------------------------------------------------------------------ everything else the model does

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function in the model's thread and return its result, or raise its error.

        Calls get the same share of the time as classification while both want the model; a function should take no
        longer than a batch. One whose caller went away before it began is skipped.

        Raises
        ------
        ShuttingDown
            If the queue has been stopped.
        """
        return await self._called(function, change=False)

    def has_turn(self) -> bool:
        """Whether what `call` runs now may do more, because notes wait and had more of the model until now.

        For a function that would only be called again: until its caller comes with the next call, the event loop may
        have the answers of a whole batch to write. To be asked within such a function.
        """
        return self._started.thread.has_turn()

    async def _called(self, function: Callable[[], Result], *, change: bool) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._started.thread.call(function, answer, change=change)
        self._open_calls += 1
        try:
            return await answer
        finally:
            self._open_calls -= 1
            self._check_idle()

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Keep stacks from being removed, and the queue from being drained, for a while.

        For whoever uses stacks over several calls, such as an answer that is being decoded.

        Raises
        ------
        ShuttingDown, UnknownStack
        """
        if self.draining:
            raise ShuttingDown
        for name in names:
            if name not in self.stacks or name in self._leaving:
                raise UnknownStack(name)
        self._uses.update(names)
        try:
            yield
        finally:
            self._uses.subtract(names)
            for name in names:
                if not self._uses[name]:
                    del self._uses[name]
                    if name in self._leaving:
                        self._leaving[name].set()
            self._check_idle()

    async def add(self, name: str, folder: Path) -> ServedStack:
        """Serve another stack from the next batch on. It is read beside the model's work, which waits only a moment.

        Raises
        ------
        InputError
            If the name is taken or the stack does not fit.
        ShuttingDown
        """
        if self.draining:
            raise ShuttingDown
        read = await asyncio.to_thread(self.shared.read, folder)
        added = await self._called(lambda: self.shared.add(name, read), change=True)
        self.stacks = dict(self.shared.stacks)
        return added

    async def remove(self, name: str) -> None:
        """Take nothing new for a stack, finish what was taken for it, then remove it.

        Raises
        ------
        UnknownStack
        """
        if name not in self.stacks or name in self._leaving:
            raise UnknownStack(name)
        unused = self._leaving[name] = asyncio.Event()
        try:
            if self._uses[name]:
                await unused.wait()
            await self._called(lambda: self.shared.remove(name), change=True)
            self.stacks = dict(self.shared.stacks)
        finally:
            del self._leaving[name]

    def _check_idle(self) -> None:
        if not self._uses and not self._open_calls:
            self._idle.set()
        else:
            self._idle.clear()
