"""Between the event loop, where requests wait, and the model's thread, where their answers are decoded.

::

    event loop      open ─▶ arrived ─┐                        ┌─▶ pieces ─▶ AnswerStream ─▶ a client
                    close ─▶ closed ─┤                        │
    model thread                     └─▶ one step of Decoder ─┘     one `RequestQueue.call` a step, so classification
                                                                    has its turns between them
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from clinstack.errors import ClinstackError, InputError
from clinstack.serve.decoding import Answer, Decoder, DecodingRequest, Finish
from clinstack.serve.failures import describe
from clinstack.serve.lanes import Lanes
from clinstack.serve.refusals import ModelFailed, QueueFull

if TYPE_CHECKING:
    from clinstack.serve.queue import RequestQueue

log = logging.getLogger("clinstack.serve")
_FIRST_GUESS = 2.0
"""Seconds that an answer takes, before one was measured."""


@dataclass(frozen=True)
class ChatLimits:
    """How much is decoded at a time.

    Parameters
    ----------
    max_rows : int
        Answers that are written at a time.
    max_waiting : int
        Answers that wait for their first token; more get `QueueFull`.
    max_new_tokens : int
        Of one answer.
    prompt_tokens : int
        Of the prompts that are read between two tokens of the answers that are being written.
    """

    max_rows: int = 16
    max_waiting: int = 64
    max_new_tokens: int = 1024
    prompt_tokens: int = 1024


class DecodingError(ClinstackError):
    """One answer could not be written to its end; the message says why."""


@dataclass(frozen=True)
class Piece:
    """News of an answer.

    Parameters
    ----------
    text : str
        What came; may be empty.
    tokens : int
        New ones so far.
    finish : str or None
        Why it has ended; None while it goes on.
    """

    text: str
    tokens: int
    finish: Finish | None


class AnswerStream:
    """An answer on its way to its client. Whoever opened it closes it."""

    def __init__(self, owner: ChatQueue, request: DecodingRequest, uses: ExitStack) -> None:
        self.request = request
        self.answer: Answer | None = None
        """The model thread's."""
        self.has_begun = False
        self.opened = time.monotonic()
        self._owner = owner
        self._uses = uses
        self._news: asyncio.Queue[Piece | ClinstackError] = asyncio.Queue()

    async def next(self) -> Piece:
        """Wait for news.

        Raises
        ------
        DecodingError, ModelFailed, ShuttingDown, InputError
            If there will be none.
        """
        news = await self._news.get()
        if isinstance(news, ClinstackError):
            raise news
        return news

    def put(self, news: Piece | ClinstackError) -> None:
        """Take news."""
        self.has_begun = True
        self._news.put_nowait(news)

    def close(self) -> None:
        """Give the answer up, if it has not ended, and let its stack go."""
        self._owner.forget(self)
        self._uses.close()


class ChatQueue:
    """Takes requests for answers, and has them decoded together. All methods are called in one event loop.

    Parameters
    ----------
    queue : RequestQueue
        Its thread computes the steps.
    lanes : Lanes
    limits : ChatLimits
    """

    def __init__(self, queue: RequestQueue, lanes: Lanes, limits: ChatLimits) -> None:
        self._queue, self._lanes, self.limits = queue, lanes, limits
        self._decoder = self._new_decoder()
        self._of_answer: dict[Answer, AnswerStream] = {}
        self._streams: set[AnswerStream] = set()
        self._arrived: list[AnswerStream] = []
        self._closed: list[AnswerStream] = []
        self._driver: asyncio.Task[None] | None = None
        self._seconds = _FIRST_GUESS

    def _new_decoder(self) -> Decoder:
        return Decoder(self._lanes, max_rows=self.limits.max_rows, prompt_tokens=self.limits.prompt_tokens)

    @property
    def open_answers(self) -> int:
        """Answers that wait or are being written."""
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """Answers that wait for their first token."""
        return sum(not stream.has_begun for stream in self._streams)

    def check_room(self) -> None:
        """Refuse at once what would wait too long.

        Raises
        ------
        QueueFull
        """
        if self.waiting >= self.limits.max_waiting:
            raise QueueFull(max(1.0, self._seconds * self.waiting / self.limits.max_rows))

    def open(self, request: DecodingRequest) -> AnswerStream:
        """Have an answer decoded.

        Raises
        ------
        QueueFull, UnknownStack, ShuttingDown
        """
        self.check_room()
        with ExitStack() as uses:
            uses.enter_context(self._queue.using(request.stack))
            stream = AnswerStream(self, request, uses.pop_all())
        self._streams.add(stream)
        self._arrived.append(stream)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        return stream

    def forget(self, stream: AnswerStream) -> None:
        """Stop decoding what nobody reads any more."""
        if stream in self._streams:
            self._streams.discard(stream)
            self._closed.append(stream)

    async def _drive(self) -> None:
        """Have step after step computed, as long as there is something to decode."""
        while self._streams or self._closed:
            arrived, self._arrived = self._arrived, []
            closed, self._closed = self._closed, []
            try:
                news = await self._queue.call(partial(self._step, arrived, closed))
            except ClinstackError as error:
                self._give_up(error)
            except Exception as error:
                # Not its message: that could hold what it was working on.
                log.error("decoding failed: %s", describe(error))
                self._give_up(ModelFailed(error))
            else:
                for stream, item in news:
                    self._deliver(stream, item)

    def _step(
        self, arrived: Sequence[AnswerStream], closed: Sequence[AnswerStream]
    ) -> list[tuple[AnswerStream, Piece | ClinstackError]]:
        """Compute a step, and more while classification has had more of the model; return the news of each stream.

        In the model's thread. Several in one call, for the event loop is late with the next one when it has just
        answered a whole batch of notes.
        """
        news = self._begin_and_end(arrived, closed)
        while True:
            news += self._decode()
            if not self._of_answer or not self._queue.has_turn():
                return news

    def _begin_and_end(
        self, arrived: Sequence[AnswerStream], closed: Sequence[AnswerStream]
    ) -> list[tuple[AnswerStream, Piece | ClinstackError]]:
        """Begin the answers of new streams and cancel those of closed ones; return what is refused."""
        news: list[tuple[AnswerStream, Piece | ClinstackError]] = []
        for stream in arrived:
            try:
                stream.answer = self._decoder.start(stream.request)
            except InputError as error:
                news.append((stream, error))
            else:
                self._of_answer[stream.answer] = stream
        for stream in closed:
            if stream.answer is not None:
                self._decoder.cancel(stream.answer)
                self._of_answer.pop(stream.answer, None)
        return news

    def _decode(self) -> list[tuple[AnswerStream, Piece | ClinstackError]]:
        """Compute one step of all answers."""
        news: list[tuple[AnswerStream, Piece | ClinstackError]] = []
        for answer in self._decoder.step():
            found = self._of_answer.get(answer)
            if found is None:
                continue
            if answer.finish == "failed":
                news.append((found, DecodingError(f"{answer.problem}.")))
            else:
                news.append((found, Piece(answer.take(), answer.tokens, answer.finish)))
            if answer.finish is not None:
                del self._of_answer[answer]
        return news

    def _deliver(self, stream: AnswerStream, item: Piece | ClinstackError) -> None:
        if stream not in self._streams:
            return
        stream.put(item)
        if isinstance(item, Piece) and item.finish is not None:
            # A moving average over about ten answers: a guess of how long those that wait will wait.
            self._seconds += 0.1 * (time.monotonic() - stream.opened - self._seconds)
        if isinstance(item, ClinstackError) or item.finish is not None:
            self._streams.discard(stream)

    def _give_up(self, error: ClinstackError) -> None:
        """End all answers, and begin anew: what a step left behind that failed is not to be trusted."""
        for stream in self._streams:
            stream.put(error)
        self._streams.clear()
        self._arrived.clear()
        self._closed.clear()
        self._decoder, self._of_answer = self._new_decoder(), {}
