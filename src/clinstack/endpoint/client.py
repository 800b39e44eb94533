"""Asking an endpoint: many requests at a time, replies in the order of the requests, each kept before it is used.

requests ─▶ in the store? ─▶ reply
                │ no
                ▼
            budget ─▶ rate limits ─▶ openai client ─▶ store ─▶ reply
                          ▲               │
                          └── back-off ◀──┘ 429, 5xx, silence, a lost connection, a broken reply
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from clinstack.endpoint.call import Caller, EndpointError, Failed
from clinstack.endpoint.cost import Work, cost, estimate_work
from clinstack.endpoint.health import ServerHealth
from clinstack.endpoint.hosts import remote_host
from clinstack.endpoint.limits import RateLimits
from clinstack.endpoint.requests import BUDGET_SPENT, Reply, Request
from clinstack.endpoint.store import ReplyStore
from clinstack.recipe.endpoint import EndpointRecipe

Progress = Callable[[str, int, int], None]
_AHEAD = 16
"""Requests that are read ahead for each one under way, so that a slow one holds nobody up."""
_LAST_WORDS = 3.0
"""Seconds that replies under way are waited for after control-C, since they are paid for."""
_LONGEST_BACKOFF = 60.0


class Endpoint:
    """An OpenAI-compatible server with a store of its replies. A context manager.

    Parameters
    ----------
    recipe : EndpointRecipe
        Address, model, sampling, limits.
    store : Path
        SQLite file of the replies; made when it is missing. It holds what was answered and is as confidential as Notes.
    progress : callable, optional
        Called with the title, the replies so far and the requests in all.

    Attributes
    ----------
    remote : str or None
        The host that text goes to if it leaves this machine and its private network; say so with `warning`.
    budget_spent : bool
        Whether requests were left out because of the token budget.
    failures : Counter
        What went wrong for good, by reason; `retried` counts what was tried again, likewise.

    Raises
    ------
    InputError
        If the host is remote and that was not allowed, the key is missing, `openai` is not installed, or another
        process uses the store.
    """

    def __init__(self, recipe: EndpointRecipe, store: Path, progress: Progress | None = None) -> None:
        self.recipe = recipe
        self.remote = remote_host(recipe.base_url, recipe.allow_remote)
        self._caller = Caller(recipe, self.remote is not None)
        self.store = ReplyStore(store)
        self.progress = progress
        self.failures: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.budget_spent = False
        self.from_store = 0
        self._limits = RateLimits(recipe.requests_per_minute, recipe.tokens_per_minute)
        self._stop = threading.Event()
        self._lock = threading.Condition()
        self._turn = threading.Lock()
        self._reserved = 0
        self._under_way = 0
        self._health = ServerHealth(recipe)
        self._queue: queue.SimpleQueue[tuple[Request, str, Future[Reply]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._flying: dict[str, Future[Reply]] = {}

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def warning(self) -> str | None:
        """What a person must be told before text is sent to another house, or None."""
        return None if self.remote is None else remote_warning(self.remote)

    @property
    def answered(self) -> int:
        """Requests that the server answered since the start."""
        return self._health.answered

    def close(self) -> None:
        """Wait a moment for replies under way, and close the store."""
        self._stop.set()
        with self._lock:
            self._lock.notify_all()
            deadline = time.monotonic() + _LAST_WORDS
            while self._under_way and time.monotonic() < deadline:
                self._lock.wait(deadline - time.monotonic())
        for _ in self._threads:
            self._queue.put(None)
        self.store.close()
        if not self._under_way:
            self._caller.close()

    def has(self, request: Request) -> bool:
        """Whether a request is answered already."""
        return request.digest(self.recipe) in self.store

    def estimate(self, requests: Iterable[Request]) -> dict[str, Any]:
        """Return requests, tokens, cost and time of what the store does not hold yet; nothing is sent.

        As `clinstack.endpoint.cost.estimate_work` says them, with as many answered tokens as are allowed: an upper
        bound; ``in_store`` counts what is answered already.
        """
        todo, stored = Work(0, 0, 0), 0
        for request in requests:
            if self.has(request):
                stored += 1
            else:
                todo += Work(1, request.prompt_tokens(), request.max_tokens or self.recipe.max_tokens)
        return {**estimate_work(todo, self.recipe), "in_store": stored}

    def summary(self) -> dict[str, Any]:
        """Return what was asked since the start, and what the store holds, for people and for ``prepare.json``."""
        return {
            "answered": self.answered,
            "from_store": self.from_store,
            "failed": dict(self.failures),
            "retried": dict(self.retried),
            "prompt_tokens": self.store.prompt_tokens,
            "completion_tokens": self.store.completion_tokens,
            "cost": cost(self.store.prompt_tokens, self.store.completion_tokens, self.recipe),
        }

    def ask(
        self, requests: Iterable[Request | None], title: str, total: int | None = None, ahead: int | None = None
    ) -> Iterator[Reply]:
        """Yield a reply for each request, in the order of the requests.

        Parameters
        ----------
        requests : iterable of Request
            Read lazily. A generator that makes requests out of earlier replies yields None for "not before you have
            used another reply".
        title : str
            For the progress.
        total : int, optional
            Requests in all; ``len(requests)`` where it has a length.
        ahead : int, optional
            At most so many requests are under way or wait to be yielded.

        Raises
        ------
        EndpointError
            If the server cannot be used, or no longer. All replies so far are kept.
        """
        if total is None:
            total = len(requests) if isinstance(requests, Sized) else 0
        ahead = ahead or self.recipe.concurrency * _AHEAD
        source = iter(requests)
        window: deque[Future[Reply]] = deque()
        done, exhausted = 0, False
        end = object()
        if self.progress:
            self.progress(title, 0, total)
        while True:
            while not exhausted and len(window) < ahead:
                request = next(source, end)
                if request is end:
                    exhausted = True
                elif isinstance(request, Request):
                    window.append(self._start(request))
                else:
                    break
            if not window:
                if exhausted:
                    return
                raise RuntimeError("The requests wait for a reply, and none is under way.")
            reply = window.popleft().result()
            done += 1
            if self.progress:
                self.progress(title, done, max(total, done))
            yield reply

    def _start(self, request: Request) -> Future[Reply]:
        """Answer from the store, or give the request to a thread."""
        digest = request.digest(self.recipe)
        with self._lock:
            future = self._flying.get(digest)
        if future is not None:
            return future  # the same request twice is paid once
        future = Future()
        stored = self.store.get(digest)
        if stored is not None:
            self.from_store += 1
            future.set_result(stored)
            return future
        if len(self._threads) < self.recipe.concurrency:
            # Daemons: a server that hangs must not keep the process alive after control-C.
            thread = threading.Thread(target=self._work, name=f"endpoint-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        with self._lock:
            self._flying[digest] = future
        self._queue.put((request, digest, future))
        return future

    def _work(self) -> None:
        while not self._stop.is_set():
            # One after another, so that a budget is spent in the order of the requests, whoever is faster.
            with self._turn:
                item = self._queue.get()
                if item is None:
                    return
                request, digest, future = item
                tokens = request.prompt_tokens() + (request.max_tokens or self.recipe.max_tokens)
                reserved = self._reserve(tokens)
            try:
                future.set_result(self._answer(request, digest, tokens, reserved))
            except BaseException as error:  # whatever it is, it is raised in the thread that waits for the reply
                future.set_exception(error)
            with self._lock:
                del self._flying[digest]
                self._reserved -= tokens if reserved else 0
                self._lock.notify_all()

    def _answer(self, request: Request, digest: str, tokens: int, reserved: bool) -> Reply:
        """Return the reply to a request that the store did not hold when it was queued."""
        # The same request again, just when the first one's reply came.
        stored = self.store.get(digest)
        if stored is not None:
            self.from_store += 1
            return stored
        if not reserved:
            return self._failure(request, BUDGET_SPENT)
        return self._try(request, digest, tokens)

    def _try(self, request: Request, digest: str, tokens: int) -> Reply:
        """Ask; retry, and keep what comes."""
        attempt = -1
        while True:
            attempt += 1
            admission = self._limits.admit(tokens, self._stop)
            self._health.check()
            with self._lock:
                if admission is None or self._stop.is_set():
                    raise EndpointError("The endpoint was closed.")
                self._under_way += 1
            try:
                result = self._caller.call(request)
                if isinstance(result, Reply):
                    self.store.put(digest, result)
            except EndpointError as error:
                self._health.end(error)
                raise
            finally:
                with self._lock:
                    self._under_way -= 1
                    self._lock.notify_all()
            if isinstance(result, Reply):
                self._limits.correct(admission, result.prompt_tokens + result.completion_tokens)
                self._health.answer()
                return result
            self._health.failed_once(result)
            if not result.may_heal or attempt == self.recipe.retries:
                self._health.failed_for_good(result, f"{self.store.count:,} replies are kept in {self.store.path}")
                return self._failure(request, result.what)
            with self._lock:
                self.retried[result.what] += 1
            self._back_off(result, attempt)

    def _failure(self, request: Request, what: str) -> Reply:
        with self._lock:
            self.failures[what] += 1
        return Reply(request.key, None, None, 0, 0, self.recipe.model, what)

    def _back_off(self, failed: Failed, attempt: int) -> None:
        """Wait before a retry: as long as the server says, else twice as long each time, with jitter."""
        if failed.wait is not None and failed.for_all:
            self._limits.pause(failed.wait)
        seconds = failed.wait
        if seconds is None:
            seconds = min(self.recipe.backoff * 2**attempt, _LONGEST_BACKOFF)
            seconds *= random.uniform(0.5, 1.0)
        else:
            seconds += random.uniform(0.0, 0.1 * self.recipe.backoff)
        self._stop.wait(seconds)

    def _reserve(self, tokens: int) -> bool:
        """Set tokens aside from the budget; wait where those under way decide; return False when it is spent."""
        budget = self.recipe.token_budget
        with self._lock:
            while not self._stop.is_set():
                if budget is None or self.store.tokens + self._reserved + tokens <= budget:
                    self._reserved += tokens
                    return True
                if self.budget_spent or self.store.tokens + tokens > budget:
                    self.budget_spent = True
                    return False
                self._lock.wait()
        return False


def remote_warning(host: str) -> str:
    """Return what a person must be told before text is sent to a host of another house."""
    return f"Text leaves this machine: prompts, with the notes in them, go to {host}."
