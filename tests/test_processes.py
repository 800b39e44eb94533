"""Pools of worker processes: that they work, and one line when a worker is killed."""

from __future__ import annotations

import os
import signal

import pytest

from clinstack.errors import ClinstackError
from clinstack.processes import worker_pool


def test_work_is_done_in_other_processes() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


def lose_a_worker() -> None:
    with worker_pool(1) as pool:
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        for _ in range(100):
            pool.submit(os.getpid).result()


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(ClinstackError, match=r"^A worker process was killed, perhaps for want of memory"):
        lose_a_worker()
