"""Pools of worker processes: that they work, and one line when a worker is killed."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

import pytest

from clinstack.errors import ClinstackError, InputError
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


def die_in_the_middle_of_the_answer() -> bytes:
    def write_half(pipe: Connection, data: bytes) -> None:
        os.write(pipe.fileno(), bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send = write_half  # type: ignore[attr-defined]
    return b"a" * 1_000_000


def test_half_an_answer_is_not_waited_for() -> None:
    # The standard library's pool waits for the other half for ever, while another worker lives.
    with pytest.raises(ClinstackError, match="A worker process was killed"), worker_pool(2) as pool:
        pool.submit(die_in_the_middle_of_the_answer).result()


def refuse(row: int) -> None:
    raise InputError(f"row {row}")


def test_an_error_is_raised_here_and_says_where_it_arose() -> None:
    with pytest.raises(InputError, match="row 3") as caught, worker_pool(1) as pool:
        pool.submit(refuse, 3).result()
    assert str(caught.value) == "row 3"
    assert "in refuse" in caught.value.__notes__[0]


def test_work_that_runs_is_finished_on_the_way_out_and_no_process_stays() -> None:
    with worker_pool(2) as pool:
        first = pool.submit(os.getpid)
        big = pool.submit(bytes, 50_000_000)
    assert len(big.result()) == 50_000_000
    with pytest.raises(ProcessLookupError):
        os.kill(first.result(), 0)
