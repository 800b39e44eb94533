"""The queue's promises, with a model that takes a known time for each token."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import clinstack.engine.guards  # noqa: F401  # the model's thread needs it where memory is full; it takes seconds
from clinstack.errors import InputError
from clinstack.model.reading import Reading
from clinstack.serve.queue import (
    DeadlineExceeded,
    ModelFailed,
    QueueFull,
    RequestQueue,
    RequestTooLarge,
    ShuttingDown,
    UnknownStack,
)
from fake_queue import SECONDS_PER_TOKEN, SECRET, FakeModel, Seen, Settings, firsts, note, waiting, with_queue


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinstack.serve.pace.WARM_UP_SECONDS", 0.1)


def test_a_request_gets_the_scores_of_its_notes_in_order() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        items = [("mortality", note(5, 10)), ("length_of_stay", note(6, 2500)), ("mortality", note(7, 20))]
        scored = await queue.classify(items, 60)
        assert firsts(scored) == [5, 6, 7]
        assert [(one.tokens, one.cut) for one in scored] == [(10, 0), (2000, 500), (20, 0)]
        assert await queue.classify([], 60) == []
        assert len(model.threads) == 2  # the model's and the encoder's; neither is the event loop's
        assert threading.current_thread().name not in model.threads

    with_queue(test)


def test_a_note_is_encoded_once_for_stacks_that_read_it_alike() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.encoded.clear()
        items = [(name, note(first)) for first in (5, 6, 5) for name in ("mortality", "length_of_stay")]
        assert firsts(await queue.classify(items, 60)) == [5, 5, 6, 6, 5, 5]
        assert sorted(first for _, first in model.encoded) == ["5", "6"]
        model.stacks["mortality"].reading = Reading(model.longest, keep="end")
        model.encoded.clear()
        await queue.classify(items[:2], 60)
        assert len(model.encoded) == 2

    with_queue(test)


def test_requests_that_come_within_the_window_share_a_batch() -> None:
    observer = Seen()

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        names = ("mortality", "length_of_stay")
        answers = await asyncio.gather(
            *(queue.classify([(names[user % 2], note(user + 1, 20))], 60, client=str(user)) for user in range(10))
        )
        assert [firsts(answer) for answer in answers] == [[user + 1] for user in range(10)]
        assert len(model.batches) == 1
        assert {name for name, _ in model.batches[0]} == set(names)

    with_queue(test, settings=Settings(window_ms=1000), observer=observer)
    # Told after the answers were, so read when the thread has ended.
    notes, tokens, seconds = observer.batches[0]
    assert (notes, tokens) == (10, 200)
    assert seconds >= 200 * SECONDS_PER_TOKEN
    assert len(observer.waits) == 10


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        began = time.monotonic()
        await queue.classify([("mortality", note(1, 500)), ("mortality", note(2, 500))], 60)
        assert time.monotonic() - began < 2

    with_queue(test, settings=Settings(window_ms=5000))


def test_batches_keep_to_the_budget_but_a_longer_note_goes_alone() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        lengths = [400, 400, 400, 1500, 300, 300, 300]
        await queue.classify([("mortality", note(1, length)) for length in lengths], 60)
        totals = [sum(length for _, length in batch) for batch in model.batches]
        assert sum(totals) == sum(lengths)
        assert all(total <= 1000 or len(batch) == 1 for total, batch in zip(totals, model.batches, strict=True))

    with_queue(test)


def test_one_note_does_not_wait_for_a_request_of_64() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        async def timed(client: str) -> float:
            await queue.classify([("mortality", note(1))], 60, client=client)
            return time.monotonic()

        large = asyncio.create_task(queue.classify([("mortality", note(2))] * 64, 60, client="large"))
        await waiting(queue, 54)  # the first batch has been taken
        small = await asyncio.gather(timed("other"), timed("large"))
        batches = len(model.batches)
        assert batches <= 3  # of seven
        assert not large.done()
        await large
        assert max(small) < time.monotonic()

    with_queue(test, model=FakeModel(seconds_per_token=1e-4))


def test_queue_full_says_when_there_is_room() -> None:
    observer = Seen()

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        first = asyncio.create_task(queue.classify([("mortality", note(1))] * 30, 60))
        await waiting(queue, 20)
        with pytest.raises(QueueFull) as refused:
            await queue.classify([("mortality", note(2))] * 20, 60)
        began = time.monotonic()
        # 2000 waiting, 2000 more, room for 3000: a thousand tokens have to be computed first, each 100 microseconds.
        assert refused.value.retry_after == pytest.approx(0.1, rel=0.5)
        await asyncio.sleep(refused.value.retry_after)
        while True:  # a batch ends as a whole
            try:
                await queue.classify([("mortality", note(3))] * 20, 60)
                break
            except QueueFull:
                assert time.monotonic() - began < 1
                await asyncio.sleep(0.01)
        await first
        assert queue.waiting_tokens == 0
        assert set(observer.refusals) == {"full"}

    with_queue(test, model=FakeModel(seconds_per_token=1e-4), settings=Settings(queue_tokens=3000), observer=observer)


def test_what_never_fits_is_refused_for_good() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        with pytest.raises(RequestTooLarge, match="3,500"):
            await queue.classify([("mortality", note(1))] * 35, 60)
        assert queue.waiting_tokens == 0
        assert firsts(await queue.classify([("mortality", note(1))] * 30, 60)) == [1] * 30

    with_queue(test, settings=Settings(queue_tokens=3000))


def test_what_would_wait_beyond_its_deadline_is_refused_at_once() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        first = asyncio.create_task(queue.classify([("mortality", note(1))] * 100, 60))  # a second of work
        await waiting(queue, 90)
        began = time.monotonic()
        with pytest.raises(QueueFull) as refused:
            await queue.classify([("mortality", note(2))], 0.3)
        assert time.monotonic() - began < 0.1
        assert 0.3 < refused.value.retry_after < 1.2
        assert firsts(await queue.classify([("mortality", note(3))], 60)) == [3]
        await first

    with_queue(test, model=FakeModel(seconds_per_token=1e-4))


def test_a_deadline_that_passes_while_waiting_drops_the_request() -> None:
    observer = Seen()

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.gate.clear()
        first = asyncio.create_task(queue.classify([("mortality", note(1))], 60))
        await asyncio.sleep(0.1)  # it is being computed, and does not come to its end
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await queue.classify([("mortality", note(2))], 0.3)
        assert 0.2 < time.monotonic() - began < 1
        assert queue.depth == 0
        model.gate.set()
        assert firsts(await first) == [1]
        assert [first for batch in model.batches for first in batch] == [("mortality", 100)]
        assert observer.refusals == ["deadline"]

    with_queue(test, observer=observer)


def test_a_started_request_is_answered_after_its_deadline() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        assert firsts(await queue.classify([("mortality", note(1, 1000))], 0.5)) == [1]

    with_queue(test, model=FakeModel(seconds_per_token=8e-4))


def test_a_client_that_goes_away_is_not_computed() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.gate.clear()
        first = asyncio.create_task(queue.classify([("mortality", note(1))], 60))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(queue.classify([("mortality", note(2))] * 20, 60))
        stays = asyncio.create_task(queue.classify([("mortality", note(3))], 60))
        await waiting(queue, 21)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert (queue.depth, queue.waiting_tokens) == (1, 100)
        model.gate.set()
        assert [firsts(await task) for task in (first, stays)] == [[1], [3]]
        assert sum(len(batch) for batch in model.batches) == 2

    with_queue(test)


@pytest.mark.parametrize("raises", [MemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_full_memory_halves_the_batch(raises: Callable[[], Exception]) -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.memory, model.memory_error = 300, raises
        scored = await queue.classify([("mortality", note(1 + place)) for place in range(8)], 60)
        assert firsts(scored) == list(range(1, 9))
        assert max(sum(length for _, length in batch) for batch in model.batches) <= 300
        model.batches.clear()
        # It has learned what fits, and tries more again little by little.
        await queue.classify([("mortality", note(1))] * 2, 60)
        assert len(model.batches) == 1
        model.memory = None
        await queue.classify([("mortality", note(1))] * 900, 60)
        assert max(len(batch) for batch in model.batches) == 10

    with_queue(test)


def test_a_note_that_does_not_fit_alone_is_an_error_of_its_own() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.memory = 300
        long, short = await asyncio.gather(
            queue.classify([("mortality", note(1, 400))], 60),
            queue.classify([("mortality", note(2))], 60),
            return_exceptions=True,
        )
        assert isinstance(long, ModelFailed)
        assert isinstance(short, list)

    with_queue(test)


def test_a_bad_note_does_not_take_its_batch_with_it(caplog: pytest.LogCaptureFixture) -> None:
    observer = Seen()

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        answers = await asyncio.gather(
            *(queue.classify([("mortality", note(first))], 60) for first in (1, 2, 666, 3)), return_exceptions=True
        )
        assert isinstance(answers[2], ModelFailed)
        assert "ValueError" in str(answers[2])
        assert [firsts(answer) for answer in (answers[0], answers[1], answers[3])] == [[1], [2], [3]]  # type: ignore[arg-type]
        assert firsts(await queue.classify([("mortality", note(4))], 60)) == [4]
        assert queue.is_working
        assert observer.failures == ["ValueError"]

    with caplog.at_level(logging.DEBUG):
        with_queue(test, settings=Settings(window_ms=50), observer=observer)
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_a_card_that_computes_nothing_any_more_ends_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        requests = (queue.classify([("mortality", note(first, 600))], 60) for first in (667, 1, 2))
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(answer, ShuttingDown) for answer in answers)
        assert not queue.is_working
        with pytest.raises(ShuttingDown):
            await queue.classify([("mortality", note(4))], 60)
        with pytest.raises(ShuttingDown):
            await queue.call(lambda: None)

    with_queue(test)
    assert SECRET not in caplog.text


def test_whatever_happens_each_request_is_answered_once_and_nothing_is_left() -> None:
    """Hundreds of requests of all kinds; some clients leave, some are in a hurry, some notes are bad."""

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        chance = random.Random(5)
        model.memory = 800
        outcomes: Counter[str] = Counter()

        async def ask(number: int) -> None:
            await asyncio.sleep(chance.random())
            bad = chance.random() < 0.03
            leaves = chance.random() < 0.1
            names = [chance.choice(["mortality", "length_of_stay"]) for _ in range(chance.choice([1, 1, 1, 5, 30]))]
            items = [(name, note(1 + number, chance.randrange(1, 300))) for name in names]
            if bad:
                items[-1] = (names[-1], note(666, 50))
            deadline = chance.choice([0.05, 1.0, 60.0])
            work = asyncio.ensure_future(queue.classify(items, deadline, client=str(number % 7)))
            if leaves:
                await asyncio.sleep(0.3 * chance.random())
                work.cancel()
            (result,) = await asyncio.gather(work, return_exceptions=True)
            if isinstance(result, list):
                assert not bad
                assert firsts(result) == [number + 1] * len(items)
                assert [one.tokens for one in result] == [len(text.split()) for _, text in items]
            else:
                assert isinstance(result, QueueFull | DeadlineExceeded | ModelFailed | asyncio.CancelledError)
                assert bad or not isinstance(result, ModelFailed)
            outcomes[type(result).__name__] += 1

        async def chat() -> None:
            for _ in range(50):
                await queue.call(lambda: time.sleep(0.002))

        await asyncio.gather(chat(), *(ask(number) for number in range(300)))
        assert outcomes.total() == 300
        assert outcomes["list"] > 10
        assert outcomes["CancelledError"] > 0
        assert queue.depth == queue.waiting_tokens == 0
        assert await queue.drain(10)

    with_queue(test, settings=Settings(queue_tokens=60_000))


def test_stacks_come_and_go_without_a_lost_request() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        with pytest.raises(UnknownStack):
            await queue.classify([("diagnoses", note(1))], 60)
        await queue.add("diagnoses", Path("folder"))
        assert set(queue.stacks) == {"mortality", "length_of_stay", "diagnoses"}
        with pytest.raises(InputError, match="taken"):
            await queue.add("diagnoses", Path("folder"))
        model.gate.clear()
        requests = [asyncio.create_task(queue.classify([("diagnoses", note(1 + n))] * 4, 60)) for n in range(5)]
        await waiting(queue, 10)  # ten are being computed
        removal = asyncio.create_task(queue.remove("diagnoses"))
        await asyncio.sleep(0.05)
        assert not removal.done()
        with pytest.raises(UnknownStack):
            await queue.classify([("diagnoses", note(9))], 60)
        other = asyncio.create_task(queue.classify([("mortality", note(7))], 60))
        await waiting(queue, 11)
        model.gate.set()
        await removal
        assert [firsts(await request) for request in requests] == [[1 + n] * 4 for n in range(5)]
        assert firsts(await other) == [7]
        assert set(queue.stacks) == set(model.stacks) == {"mortality", "length_of_stay"}
        with pytest.raises(UnknownStack):
            await queue.remove("diagnoses")

    with_queue(test, settings=Settings(window_ms=1000))  # so that the first batch is a full one


def test_calls_and_batches_share_the_model() -> None:
    """Steps of ten milliseconds against batches of a hundred: by turns alone, steps would have a tenth of the time."""

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        seconds = {"steps": 0.0, "batches": 0.0}
        ends = time.monotonic() + 3

        def step() -> None:
            time.sleep(0.01)
            seconds["steps"] += 0.01

        async def decode() -> None:
            while time.monotonic() < ends:
                await queue.call(step)

        async def classify(user: int) -> None:
            while time.monotonic() < ends:
                await queue.classify([("mortality", note(1))], 60, client=str(user))

        await asyncio.gather(decode(), *(classify(user) for user in range(20)))
        seconds["batches"] = sum(length for batch in model.batches for _, length in batch) * model.seconds_per_token
        assert 0.25 < seconds["steps"] / sum(seconds.values()) < 0.75
        assert sum(seconds.values()) > 2  # most of three seconds was work

    with_queue(test, model=FakeModel(seconds_per_token=1e-4))


def test_a_call_may_go_on_while_it_is_owed_time() -> None:
    """The caller needs 50 ms for its next call, as where the event loop is busy; so one step a call were too few."""

    async def test(queue: RequestQueue, model: FakeModel) -> None:
        steps, ends = 0, time.monotonic() + 3

        def several() -> None:
            nonlocal steps
            while True:
                time.sleep(0.01)
                steps += 1
                if not queue.has_turn():
                    return

        async def decode() -> None:
            while time.monotonic() < ends:
                await queue.call(several)
                await asyncio.sleep(0.05)

        async def classify(user: int) -> None:
            while time.monotonic() < ends:
                await queue.classify([("mortality", note(1))], 60, client=str(user))

        await queue.call(several)
        assert steps == 1  # nothing else waited
        await asyncio.gather(decode(), *(classify(user) for user in range(40)))
        batches = sum(length for batch in model.batches for _, length in batch) * model.seconds_per_token
        assert 0.25 < 0.01 * steps / (0.01 * steps + batches) < 0.75

    with_queue(test, model=FakeModel(seconds_per_token=1e-4))


def test_calls_return_results_and_raise_errors_and_can_be_cancelled() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        assert await queue.call(lambda: threading.current_thread().name) == "clinstack-model"
        with pytest.raises(ZeroDivisionError):
            await queue.call(lambda: 1 // 0)
        release, ran = threading.Event(), []
        first = asyncio.create_task(queue.call(release.wait))
        second = asyncio.create_task(queue.call(lambda: ran.append(1)))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        release.set()
        await first
        await queue.call(lambda: None)
        assert not ran

    with_queue(test)


def test_drain_finishes_what_was_taken_and_refuses_the_rest() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        taken = [asyncio.create_task(queue.classify([("mortality", note(1 + n))] * 5, 60)) for n in range(10)]
        await asyncio.sleep(0.02)
        drained = asyncio.create_task(queue.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await queue.classify([("mortality", note(1))], 60)
        with pytest.raises(ShuttingDown):
            await queue.add("diagnoses", Path("folder"))
        assert await drained
        assert [firsts(await task) for task in taken] == [[1 + n] * 5 for n in range(10)]

    with_queue(test)


def test_drain_gives_up_after_its_timeout_and_stop_refuses_what_waits() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.gate.clear()
        tasks = [asyncio.create_task(queue.classify([("mortality", note(1, 600))], 60)) for _ in range(3)]
        await waiting(queue, 2)
        assert not await queue.drain(0.05)
        stop = asyncio.create_task(queue.stop())
        await asyncio.sleep(0.05)
        model.gate.set()
        await stop
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert firsts(answers[0]) == [1]  # type: ignore[arg-type]
        assert all(isinstance(answer, ShuttingDown) for answer in answers[1:])

    with_queue(test)


def test_stop_refuses_what_is_being_encoded() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        model.encoding_seconds = 0.05
        request = asyncio.create_task(queue.classify([("mortality", note(1 + n)) for n in range(40)], 60))
        await asyncio.sleep(0.1)
        await queue.stop()
        with pytest.raises(ShuttingDown):
            await request
        assert len(model.encoded) < 40

    with_queue(test)


def test_a_use_over_several_calls_keeps_its_stack_and_the_queue() -> None:
    async def test(queue: RequestQueue, model: FakeModel) -> None:
        with queue.using("mortality"):
            removal = asyncio.create_task(queue.remove("mortality"))
            drained = asyncio.create_task(queue.drain(10))
            await asyncio.sleep(0.05)
            assert not removal.done()
            assert not drained.done()
            await queue.call(lambda: None)
        await removal
        assert await drained
        with pytest.raises(ShuttingDown), queue.using("length_of_stay"):
            pass

    with_queue(test)
