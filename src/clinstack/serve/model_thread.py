"""The one thread that owns the network: batches of notes, calls of others, and changes between them.

::

    event loop                                   model thread
    put(request) ──▶ WaitingItems ─────────────▶ a batch ──────▶ SharedBase.classify ──▶ deliver ──▶ event loop
    call(function) ─▶ calls (decoding steps) ──▶ one call         between two of these: changes (add, remove)

Whoever waits for batches and whoever waits for calls get the same share of the time: the thread notes how much longer
batches had it, and gives calls their turn until that is made up for. Decoding asks for its next step only when it has
the last one's result, so the thread waits for that step a moment (anticipatory scheduling, Iyer and Druschel 2001).
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinstack.serve.batch_computer import BatchComputer, Classifier
from clinstack.serve.batching import Item, Request, WaitingItems
from clinstack.serve.pace import Pace
from clinstack.serve.refusals import DeadlineExceeded, ModelFailed, ShuttingDown

CALL_GAP_SECONDS = 0.003
"""How long calls that are owed time may take to ask for their next turn."""
CALL_PAUSE_SECONDS = 0.25
"""Calls that pause no longer than this are taken to want the model all the time; the event loop may be busy."""
BATCH_SECONDS = 0.5
"""How long a batch should take at most: as long as it runs, nobody else has the model."""
SMALLEST_BUDGET = 2048
"""Tokens of a batch that is not made shorter for the sake of `BATCH_SECONDS`; a CPU computes rows of so many."""

log = logging.getLogger(__name__)


class QueueObserver:
    """Is told what happens; metrics override what they count. Called in the model thread unless it says otherwise."""

    def started(self, waited: float) -> None:
        """A note's computation begins after it waited so many seconds."""

    def batch(self, notes: int, tokens: int, seconds: float) -> None:
        """A batch was computed."""

    def failed(self, kind: str) -> None:
        """A note got an error; the type's name."""

    def refused(self, reason: str) -> None:
        """A request was refused: ``full``, ``deadline``, ``too_large`` or ``shutting_down``. In the event loop."""


@dataclass(eq=False)
class _Call:
    function: Callable[[], Any]
    answer: Future[Any]


@dataclass(eq=False)
class ModelThread:
    """Runs `Classifier` on what waits. All methods but `start` may be called from any thread.

    It ends by itself after an error of its own or one that a card does not recover from; then only a new process helps.

    Parameters
    ----------
    model : Classifier
    budget : int
        Tokens of a batch, at most, but for a single longer note. On a slow machine batches are smaller.
    window : float
        Seconds that the first of a batch waits for more.
    loop : AbstractEventLoop
        Where answers go.
    observer : QueueObserver
    """

    model: Classifier
    budget: int
    window: float
    loop: AbstractEventLoop
    observer: QueueObserver = field(default_factory=QueueObserver)
    waiting: WaitingItems = field(default_factory=WaitingItems)
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        self.lock = threading.Condition()
        self.broken = False
        """Whether the thread ended by an error of its own; nothing is answered any more."""
        self._changes: deque[_Call] = deque()
        self._calls: deque[_Call] = deque()
        self._stopping = False
        self._computer = BatchComputer(self.model, self.budget)
        self._owed = 0.0
        """Seconds that batches had more of the model than calls while both wanted it."""
        self._call_began = self._last_call_ended = float("-inf")
        self._last_batch_ended = float("-inf")
        self._computing: list[Item] = []
        self._thread = threading.Thread(target=self._run, name="clinstack-model", daemon=True)

    # ------------------------------------------------------------------ from the event loop

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being computed, refuse what waits, and end; returns when the thread has ended."""
        with self.lock:
            self._stopping = True
            self.lock.notify()
        if self._thread.is_alive():
            self._thread.join()

    def put(self, request: Request) -> None:
        """Let a request wait for its turn."""
        with self.lock:
            if self._stopping or self.broken:
                raise ShuttingDown
            self.waiting.put(request)
            self.lock.notify()

    def forget(self, request: Request) -> None:
        """Do not compute what of a request has not been started: nobody waits for it any more."""
        with self.lock:
            self.waiting.discard(request)
            request.over = True

    def expire(self, request: Request) -> bool:
        """Forget a request of which something has not been started; return whether it is one."""
        with self.lock:
            if request.over or not request.waiting:
                return False
            self.waiting.discard(request)
            request.over = True
            return True

    def call(self, function: Callable[[], Any], answer: Future[Any], *, change: bool = False) -> None:
        """Run a function in the thread, after what runs now; a change goes before all batches and calls."""
        with self.lock:
            if self._stopping or self.broken:
                raise ShuttingDown
            (self._changes if change else self._calls).append(_Call(function, answer))
            self.lock.notify()

    @property
    def computing_tokens(self) -> int:
        """Of the batch that is computed now, from its begin to its end."""
        return sum(item.tokens for item in self._computing)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                job()
        except BaseException as error:
            # Whoever waits must not wait for ever.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.critical("the model thread ended: %s\n%s", type(error).__name__, where)
            self.broken = True
        finally:
            self._refuse_all()

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None when it is time to end."""
        with self.lock:
            while True:
                if self._stopping:
                    return None
                if self._changes:
                    change = self._changes.popleft()
                    return lambda: self._answer_call(change)
                wait = self._until_batch()
                if self._calls and (wait is None or wait > 0 or self._owed >= 0):
                    call = self._calls.popleft()
                    return lambda: self._run_call(call, batches_wait=self.waiting.items > 0)
                if wait is not None and wait <= 0:
                    gap = self._last_call_ended + CALL_GAP_SECONDS - time.monotonic()
                    if self._calls or self._owed <= 0 or gap <= 0:
                        return self._take_batch
                    wait = gap
                self.lock.wait(wait)

    def _until_batch(self) -> float | None:
        """Return in how many seconds a batch may begin; None where nothing waits."""
        if not self.waiting.items:
            return None
        if self.waiting.tokens >= self._limit():
            return 0.0
        return self.waiting.since + self.window - time.monotonic()

    def _limit(self) -> int:
        """Return how many tokens the next batch may have."""
        wanted = int(BATCH_SECONDS * (self.pace.tokens_per_second or 0.0))
        return min(self._computer.fits, max(wanted, SMALLEST_BUDGET))

    def _run_call(self, call: _Call, *, batches_wait: bool) -> None:
        self._call_began = time.monotonic()
        self._answer_call(call)
        self._last_call_ended = time.monotonic()
        if batches_wait:
            self._owed -= self._last_call_ended - self._call_began
        else:
            self._owed = 0.0

    def has_turn(self) -> bool:
        """Whether the call that runs now may go on; in the thread only. See `RequestQueue.has_turn`."""
        with self.lock:
            others = self._stopping or self._changes or self._calls
            spent = time.monotonic() - self._call_began
            return not others and self.waiting.items > 0 and spent < self._owed

    def _answer_call(self, call: _Call) -> None:
        if call.answer.done():  # whoever asked has gone away
            return
        try:
            result = call.function()
        except Exception as error:
            self._tell(_set_exception, call.answer, error)
        else:
            self._tell(_set_result, call.answer, result)

    def _take_batch(self) -> None:
        with self.lock:
            calls_wait, limit = bool(self._calls), self._limit()
            since = max(self._last_batch_ended, self.waiting.since)
            batch, late = self._without_late(self.waiting.take(limit, time.monotonic()))
            self._computing = batch
        for request in late:
            self._tell(_set_exception, request.answer, DeadlineExceeded())
        if not batch:
            return
        began = time.monotonic()
        for item in batch:
            self.observer.started(began - item.request.arrived)
        self._compute(batch)
        ended = self._last_batch_ended = time.monotonic()
        tokens = sum(item.tokens for item in batch)
        self.observer.batch(len(batch), tokens, ended - began)
        with self.lock:
            self._computing = []
            self.pace.measured(tokens, ended - since, limit)
            # Calls that came meanwhile wanted the model, too.
            wanted = calls_wait or self._calls or began - self._last_call_ended < CALL_PAUSE_SECONDS
            self._owed = min(self._owed + ended - began, BATCH_SECONDS) if wanted else 0.0

    def _without_late(self, batch: list[Item]) -> tuple[list[Item], list[Request]]:
        """Return what of a batch is to be computed, and requests whose time is over though something still waited."""
        now = time.monotonic()
        late: list[Request] = []
        for item in batch:
            request = item.request
            if not request.over and request.deadline < now:
                self.waiting.discard(request)
                request.over = True
                late.append(request)
        return [item for item in batch if not item.request.over], late

    def _compute(self, batch: list[Item]) -> None:
        """Compute a batch, and answer the requests that it completes."""
        for part, result in self._computer.results(batch):
            if isinstance(result, list):
                self._finish(part, result)
            else:
                self._fail(part[0], result)

    def _finish(self, part: list[Item], logits: list[NDArray[np.float32]]) -> None:
        done: list[Request] = []
        with self.lock:
            for item, values in zip(part, logits, strict=True):
                request = item.request
                if request.finish(item, values) and not request.over:
                    request.over = True
                    done.append(request)
        if done:
            self._tell(_deliver, done)

    def _fail(self, item: Item, error: Exception) -> None:
        """Refuse the request of an item that failed alone; what else of it waits is not computed."""
        self.observer.failed(type(error).__name__)
        request = item.request
        with self.lock:
            if request.over:
                return
            self.waiting.discard(request)
            request.over = True
        self._tell(_set_exception, request.answer, ModelFailed(error))

    def _refuse_all(self) -> None:
        with self.lock:
            self._stopping = True
            requests = self.waiting.requests() + [item.request for item in self._computing]
            calls = [*self._changes, *self._calls]
            answers: list[Future[Any]] = [*(request.answer for request in requests), *(call.answer for call in calls)]
            for request in requests:
                self.waiting.discard(request)
                request.over = True
            self._computing = []
            self._changes.clear()
            self._calls.clear()
        for answer in answers:
            self._tell(_set_exception, answer, ShuttingDown())

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the event loop; if that has ended, nobody waits any more."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *arguments)


def _deliver(requests: list[Request]) -> None:
    for request in requests:
        _set_result(request.answer, request.scored())


def _set_result(answer: Future[Any], result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _set_exception(answer: Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
