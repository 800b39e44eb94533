"""An answer on its way to its client: as one JSON object, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clinstack.errors import ClinstackError, InputError
from clinstack.serve.chat_messages import Conversation, EncodedQuestion
from clinstack.serve.chat_queue import AnswerStream, DecodingError, Piece
from clinstack.serve.chat_schemas import AnswerMessage, ChatCompletion, ChatRequest, Choice, Usage
from clinstack.serve.failures import ApiError
from clinstack.serve.refusals import DeadlineExceeded
from clinstack.serve.schemas import DISCLAIMER

if TYPE_CHECKING:
    from clinstack.serve.served_stack import ServedStack

_LOOK_SECONDS = 0.5
"""How often it is seen to whether a client that waits is still there."""


class GoneError(Exception):
    """The client went away."""


@dataclass(frozen=True)
class Question:
    """A request as it is decoded, and what its answer says of it.

    Parameters
    ----------
    body : ChatRequest
    stack : ServedStack
    conversation : Conversation
    encoded : EncodedQuestion
    id : str
        Of the answer.
    created : int
        Seconds since 1970.
    """

    body: ChatRequest
    stack: ServedStack
    conversation: Conversation
    encoded: EncodedQuestion
    id: str
    created: int

    def usage(self, tokens: int) -> Usage:
        """Return what was read, with so many tokens written."""
        read = len(self.encoded.ids)
        return Usage(
            prompt_tokens=read,
            completion_tokens=tokens,
            total_tokens=read + tokens,
            note_tokens_cut=self.encoded.cut,
            messages_ignored=self.conversation.ignored,
        )

    @property
    def notes(self) -> int:
        """How many notes it has, 0 or 1."""
        return 1 if self.conversation.note else 0

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says before its first word."""
        return {
            "X-Note-Tokens-Cut": str(self.encoded.cut),
            "X-Messages-Ignored": str(self.conversation.ignored),
        }


async def next_piece(stream: AnswerStream, request: Request, due: float | None = None) -> Piece:
    """Wait for news of an answer, as long as its client waits.

    Raises
    ------
    GoneError
    DeadlineExceeded
        If none came until ``due``.
    """
    while True:
        if await request.is_disconnected():
            raise GoneError
        if due is not None and time.monotonic() > due:
            raise DeadlineExceeded
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await stream.next()
        except TimeoutError:
            continue
        except DecodingError as error:
            raise ApiError(503, f"The answer was broken off: {error}", retry_after=5) from None
        except InputError as error:
            raise ApiError(400, f"model: {error}", param="model") from None


async def whole(
    question: Question, stream: AnswerStream, piece: Piece, request: Request, say: Callable[[Usage], None]
) -> Response:
    """Wait for the end of an answer and return all of it.

    Parameters
    ----------
    question : Question
    stream : AnswerStream
    piece : Piece
        The first one.
    request : Request
    say : callable
        Is told what was read and written.

    Raises
    ------
    GoneError, ApiError
    """
    text = [piece.text]
    while piece.finish is None:
        piece = await next_piece(stream, request)
        text.append(piece.text)
    usage = question.usage(piece.tokens)
    say(usage)
    completion = ChatCompletion(
        id=question.id,
        created=question.created,
        model=question.body.model,
        system_fingerprint=question.stack.fingerprint,
        choices=[Choice(message=AnswerMessage(content="".join(text)), finish_reason=piece.finish)],
        usage=usage,
    )
    return Response(completion.model_dump_json(), media_type="application/json", headers=question.headers)


class EventStream(StreamingResponse):
    """An answer as server-sent events; a client that goes away frees its row at once.

    Parameters
    ----------
    question : Question
    stream : AnswerStream
        Closed at the end.
    first : Piece
    say : callable
        Is told what was read and written.
    """

    def __init__(self, question: Question, stream: AnswerStream, first: Piece, say: Callable[[Usage], None]) -> None:
        self._stream = stream
        # Proxies would collect the pieces otherwise.
        headers = {**question.headers, "X-Accel-Buffering": "no"}
        events = _events(question, stream, first, say)
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _events(
    question: Question, stream: AnswerStream, piece: Piece, say: Callable[[Usage], None]
) -> AsyncIterator[str]:
    wants_usage = question.body.stream_options is not None and question.body.stream_options.include_usage
    chunk = partial(_chunk, question, wants_usage)
    yield chunk({"role": "assistant", "content": ""}, None, disclaimer=DISCLAIMER)
    while True:
        if piece.text:
            yield chunk({"content": piece.text}, None)
        if piece.finish is not None:
            break
        try:
            piece = await stream.next()
        except ClinstackError as error:
            # The status has been sent; this is how OpenAI's clients learn of a failure.
            failure = ApiError(503, f"The answer was broken off: {error}")
            yield f"data: {bytes(failure.response().body).decode()}\n\n"
            return
    yield chunk({}, piece.finish)
    usage = question.usage(piece.tokens)
    say(usage)
    if wants_usage:
        yield chunk(None, None, usage=usage.model_dump())
    yield "data: [DONE]\n\n"


def _chunk(question: Question, wants_usage: bool, delta: dict[str, str] | None, finish: str | None, **more: Any) -> str:
    """Return one event; without a delta the last one, which has the usage and no choice."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    event = {
        "id": question.id,
        "object": "chat.completion.chunk",
        "created": question.created,
        "model": question.body.model,
        "system_fingerprint": question.stack.fingerprint,
        "choices": choices,
        **({"usage": None} if wants_usage else {}),
        **more,
    }
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
