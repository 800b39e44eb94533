"""Which notes form a batch, and how fast the model is: the parts of the queue that know of no threads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clinstack.serve.batching import TURN_TOKENS, Request, WaitingItems
from clinstack.serve.pace import Pace


def put(line: WaitingItems, client: str, *lengths: int, deadline: float = math.inf) -> Request:
    request = Request(client, deadline, None, 0.0)  # type: ignore[arg-type]  # nobody waits
    for length in lengths:
        request.add("mortality", [np.zeros(length, dtype=np.int64)], 0)
    line.put(request)
    return request


def take_all(line: WaitingItems, budget: int) -> list[list[tuple[str, int]]]:
    batches = []
    while line.items:
        batches.append([(item.request.client, item.tokens) for item in line.take(budget, 0.0)])
    return batches


def test_clients_take_turns_by_tokens() -> None:
    line = WaitingItems()
    put(line, "short", *[100] * 100)
    put(line, "long", *[1000] * 10)
    first = [item for batch in take_all(line, 1000)[:10] for item in batch]
    shares = {client: sum(tokens for name, tokens in first if name == client) for client in ("short", "long")}
    assert min(shares.values()) >= 0.4 * sum(shares.values())
    assert line.tokens == line.items == 0


def test_a_client_that_comes_again_and_again_does_not_overtake_for_ever() -> None:
    line = WaitingItems()
    long = put(line, "long", 4000)
    for turn in range(20):
        for client in range(5):
            put(line, str(client), 100)
        taken = line.take(500, 0.0)
        if any(item.request is long for item in taken):
            assert turn <= 4000 // TURN_TOKENS
            break
    else:
        pytest.fail("the long note was never taken")


def test_a_request_goes_before_all_turns_when_half_of_its_time_is_over() -> None:
    line = WaitingItems()
    large = put(line, "large", *[400] * 10, deadline=10.0)
    for client in range(20):
        put(line, str(client), 300)
    assert sum(item.request is large for item in line.take(2000, 4.9)) == 1
    sooner = put(line, "sooner", 500, deadline=9.0)
    assert [item.request for item in line.take(2000, 5.1)] == [sooner, large, large, large]
    assert sum(item.request is large for item in line.take(2500, 5.2)) == 6
    left = line.items
    assert sum(len(line.take(2000, 6.0)) for _ in range(20)) == left
    assert line.tokens == line.items == 0


def test_the_time_until_a_request_is_done_counts_those_who_come_again() -> None:
    line = WaitingItems()
    for client in range(10):
        put(line, str(client), 100)
    assert line.until_done("new", 1, 100) == 1100
    assert line.until_done("new", 64, 6400) == pytest.approx(6400 + 13 * 1000)
    assert line.until_done("0", 1, 100) == 1100
    assert WaitingItems().until_done("new", 64, 6400) == 6400


def test_discarded_requests_leave_the_counts_right() -> None:
    line = WaitingItems()
    first, second = put(line, "a", 100, 200), put(line, "a", 300)
    assert {item.tokens for item in line.take(100, 0.0)} == {100}
    line.discard(first)
    line.discard(first)
    assert (line.items, line.tokens) == (1, 300)
    assert line.requests() == [second]
    assert [item.tokens for item in line.take(1, 0.0)] == [300]
    assert (line.items, line.tokens) == (0, 0)


def test_small_batches_count_only_where_they_are_faster() -> None:
    assert Pace().tokens_per_second is None
    pace = Pace()
    assert pace.seconds_for(1000) == 0
    pace.measured(1000, 1.0, 1000)
    pace.measured(10, 1.0, 1000)
    assert pace.tokens_per_second == pytest.approx(1000)
    pace.measured(100, 0.01, 1000)
    assert pace.tokens_per_second is not None
    assert pace.tokens_per_second > 1000
    for _ in range(20):
        pace.measured(1000, 10.0, 1000)
    assert pace.tokens_per_second == pytest.approx(100, rel=0.05)
