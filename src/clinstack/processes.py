"""Worker processes that end with the process that started them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread

from clinstack.errors import ClinstackError


@contextmanager
def worker_pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes, as many as there are cores, but eight at most, unless told.

    Raises
    ------
    ClinstackError
        If a worker is killed.
    """
    # Each takes a hundred megabytes, and more than eight wait for the one that feeds them.
    workers = workers or min(os.cpu_count() or 1, 8)
    # Spawned: a fork of a process whose libraries run threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise ClinstackError("A worker process was killed, perhaps for want of memory; run it again.") from None


def end_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for work for ever."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
