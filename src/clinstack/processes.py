"""Worker processes that end with the process that started them, and whose death is noticed at any moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from traceback import format_exc
from typing import ParamSpec, TypeVar

from clinstack.errors import ClinstackError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class WorkerKilledError(ClinstackError):
    """A worker process ended in the middle of its work."""


class WorkerPool:
    """Processes that run functions, and a thread for each that waits for it.

    The standard library's pool reads the results of all workers from one pipe, whose other end stays open as long as
    any process holds it: a worker killed while it writes a large result leaves the reader waiting for the rest for
    ever. Here each worker has a pipe of its own, which ends when the worker does.

    Parameters
    ----------
    workers : int
        Number of processes.
    """

    def __init__(self, workers: int) -> None:
        context = get_context("spawn")  # A fork of a process whose libraries run threads may hang.
        self._free = SimpleQueue[Connection]()
        self._pipes, self._processes = [], []
        # Control-C reaches workers too, and would end them in the middle of their imports: it is held back until they
        # ignore it. This process decides what becomes of them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(workers):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there,), daemon=True)
                process.start()
                there.close()
                self._pipes.append(here)
                self._processes.append(process)
                self._free.put(here)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._threads = ThreadPoolExecutor(workers)

    def submit(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        """Let a free worker call a function of some module.

        Returns
        -------
        Future
            Its result raises WorkerKilledError if the worker died.
        """
        return self._threads.submit(self._call, function, args, kwargs)

    def _call(self, function: Callable[..., _Result], args: object, kwargs: object) -> _Result:
        pipe = self._free.get()
        try:
            pipe.send((function, args, kwargs))
            result, error = pipe.recv()
        except (EOFError, OSError):
            raise WorkerKilledError("A worker process was killed, perhaps for want of memory; run it again.") from None
        finally:
            self._free.put(pipe)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def close(self, *, kill: bool) -> None:
        """End the workers: after the calls that run, or at once."""
        if kill:
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


@contextmanager
def worker_pool(workers: int | None = None) -> Iterator[WorkerPool]:
    """Yield a pool of processes, as many as there are cores, but eight at most, unless told.

    Raises
    ------
    WorkerKilledError
        If a worker is killed.
    """
    # Each takes a hundred megabytes, and more than eight wait for the one that feeds them.
    pool = WorkerPool(workers or min(os.cpu_count() or 1, 8))
    try:
        yield pool
    except BaseException:
        pool.close(kill=True)
        raise
    pool.close(kill=False)


def _work(pipe: Connection) -> None:
    """Call what comes through a pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        answer: tuple[object, Exception | None]
        try:
            answer = function(*args, **kwargs), None
        except Exception as error:
            error.add_note(f"In a worker process:\n{format_exc()}")
            answer = None, error
        pipe.send(answer)


def end_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for work for ever."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
