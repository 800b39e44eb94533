"""``POST /v1/chat/completions``: questions about notes, in the form that OpenAI's clients speak."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from prometheus_client import Counter, Gauge
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clinstack.errors import ClinstackError, InputError
from clinstack.recipe.generate import DecodingRecipe
from clinstack.serve.chat_messages import Conversation, EncodedQuestion, MessageError, QuestionEncoder, read_messages
from clinstack.serve.chat_queue import AnswerStream, ChatLimits, ChatQueue, DecodingError, Piece
from clinstack.serve.chat_schemas import (
    IGNORED,
    REFUSED,
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    Usage,
)
from clinstack.serve.decoding import DecodingRequest
from clinstack.serve.failures import ApiError
from clinstack.serve.lanes import SharedLanes
from clinstack.serve.observe import Metrics, note_audit
from clinstack.serve.openapi import ERRORS
from clinstack.serve.refusals import DeadlineExceeded
from clinstack.serve.schemas import DISCLAIMER, ErrorResponse
from clinstack.serve.settings import ServeSettings

if TYPE_CHECKING:
    from clinstack.serve.queue import RequestQueue
    from clinstack.serve.served_stack import ServedStack

UNTOUCHED = ":base"
"""Behind a stack's name: its base, without any adapter."""
DEFAULT_NEW_TOKENS = 128
"""As `clinstack generate` has it."""
_SHORTEST_PROMPT = 16
_LOOK_SECONDS = 0.5
"""How often it is seen to whether a client that waits is still there."""
_GONE = 499
"""What the logs say of a client that went away before its answer (nginx's number)."""


def router(queue: RequestQueue, settings: ServeSettings, metrics: Metrics | None = None) -> APIRouter:
    """Return the route.

    Parameters
    ----------
    queue : RequestQueue
    settings : ServeSettings
    metrics : Metrics, optional
        Gets the tokens that were read and written by model, and how many answers are open.
    """
    routes = APIRouter()
    chat = _Chat(queue, settings, ChatLimits(), metrics or Metrics())
    wrong = {"model": ErrorResponse, "description": "A parameter that a stack cannot keep to; `param` says which."}

    @routes.post(
        "/v1/chat/completions",
        summary="Ask a question about a note",
        response_model=ChatCompletion,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            400: wrong,
            404: ERRORS[404],
            504: ERRORS[504],
        },
        tags=["instructions"],
    )
    async def complete(body: ChatRequest, request: Request) -> Response:
        """Answer one question, as a whole or, with ``stream``, as server-sent events that end with ``[DONE]``.

        A stack answers one question about one note: earlier questions and answers of the conversation are not read.
        """
        return await chat.answer(body, request)

    return routes


class _GoneError(Exception):
    """The client went away."""


@dataclass(frozen=True)
class _Question:
    """A request as it is decoded, and what its answer says of it."""

    body: ChatRequest
    stack: ServedStack
    conversation: Conversation
    encoded: EncodedQuestion
    id: str
    created: int

    def usage(self, tokens: int) -> Usage:
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
        return 1 if self.conversation.note else 0

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-Note-Tokens-Cut": str(self.encoded.cut),
            "X-Messages-Ignored": str(self.conversation.ignored),
        }


def _count_answers(metrics: Metrics, answers: ChatQueue) -> Counter:
    """Add the metrics of answers, and return the one that counts tokens."""
    make: dict[str, Any] = {"namespace": "clinstack", "registry": metrics.registry}
    Gauge("answers_open", "Answers that wait or are being written.", **make).set_function(lambda: answers.open_answers)
    Gauge("answers_waiting", "Answers that wait for their first token.", **make).set_function(lambda: answers.waiting)
    return Counter("answer_tokens", "Tokens of answers, by model: read and written.", ["model", "kind"], **make)


class _Chat:
    def __init__(self, queue: RequestQueue, settings: ServeSettings, limits: ChatLimits, metrics: Metrics) -> None:
        self._queue, self._settings, self._limits = queue, settings, limits
        self._answers = ChatQueue(queue, SharedLanes(queue.shared), limits)
        self._tokens = _count_answers(metrics, self._answers)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clinstack-prompt")
        self._encoder: QuestionEncoder | None = None

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        stack, untouched = self._stack(body.model)
        refuse_others(body)
        most = max_new_tokens(body, stack, self._limits)
        conversation = self._conversation(body)
        decoding = decoding_of(body, most)
        note_audit(request, tasks=[body.model], notes=1 if conversation.note else 0)
        due = time.monotonic() + self._settings.timeout_s
        self._answers.check_room()
        with self._queue.using(stack.name):
            encoded = await self._encode(stack, conversation, most)
            question = _Question(body, stack, conversation, encoded, f"chatcmpl-{uuid4().hex}", int(time.time()))
            stream = self._answers.open(
                DecodingRequest(stack.name, encoded.ids, encoded.ends, decoding, untouched, body.stops)
            )
        try:
            first = await _next(stream, request, due)
        except BaseException as error:
            stream.close()
            if isinstance(error, _GoneError):
                return Response(status_code=_GONE)
            raise
        if body.stream:
            return _EventStream(question, stream, first, self._said(question, request))
        try:
            return await _whole(question, stream, first, request, self._said(question, request))
        except _GoneError:
            return Response(status_code=_GONE)
        finally:
            stream.close()

    def _said(self, question: _Question, request: Request) -> Callable[[Usage], None]:
        """Return what tells the audit log and the metrics of an answer at its end."""

        def say(usage: Usage) -> None:
            model = question.body.model
            note_audit(request, tasks=[model], notes=question.notes, tokens=usage.total_tokens)
            self._tokens.labels(model, "read").inc(usage.prompt_tokens)
            self._tokens.labels(model, "written").inc(usage.completion_tokens)

        return say

    def _stack(self, model: str) -> tuple[ServedStack, bool]:
        name, untouched = model.removesuffix(UNTOUCHED), model.endswith(UNTOUCHED)
        stack = self._queue.stacks.get(name)
        if stack is None:
            raise ApiError(404, "model: no such stack is served here; GET /v1/models lists what is.", param="model")
        if stack.task is not None:
            raise ApiError(404, "model: it is a classifier and writes no text: use /v1/predict.", param="model")
        return stack, untouched

    def _conversation(self, body: ChatRequest) -> Conversation:
        try:
            conversation = read_messages(body.messages, body.note)
        except MessageError as error:
            raise ApiError(400, f"{error}.", param=error.param) from None
        longest = max(len(conversation.note), len(conversation.question))
        if longest > self._settings.max_characters:
            most = self._settings.max_characters
            raise ApiError(422, f"messages: a note has at most {most} characters here.", param="messages")
        return conversation

    async def _encode(self, stack: ServedStack, conversation: Conversation, new_tokens: int) -> EncodedQuestion:
        def encode() -> EncodedQuestion:
            if self._encoder is None:
                self._encoder = QuestionEncoder(self._queue.shared.tokenizer)
            return self._encoder.encode(
                stack.prompt, conversation.note, conversation.question, stack.max_tokens, new_tokens
            )

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, encode)
        except InputError as error:
            raise ApiError(400, f"messages: {error}.", param="messages") from None


def refuse_others(body: ChatRequest) -> None:
    """Refuse parameters that would change the answer and are not there.

    Raises
    ------
    ApiError
        400; a name that nobody knows is not repeated.
    """
    for name, value in body.others.items():
        if value is None or name in IGNORED:
            continue
        if name not in REFUSED:
            raise ApiError(400, "There is a parameter that this server does not know; leave it out.")
        harmless, reason = REFUSED[name]
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless):
            raise ApiError(400, f"{name}: {reason}.", param=name)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only with stream: true.", param="stream_options")


def max_new_tokens(body: ChatRequest, stack: ServedStack, limits: ChatLimits) -> int:
    """Return how many tokens an answer has at most.

    Raises
    ------
    ApiError
        400, if the request asks for more than the stack can write beside a prompt, or than the server allows.
    """
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked is None:
        return min(DEFAULT_NEW_TOKENS, stack.max_tokens // 2, limits.max_new_tokens)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    most = min(stack.max_tokens - _SHORTEST_PROMPT, limits.max_new_tokens)
    if asked > most:
        raise ApiError(
            400,
            f"{name}: at most {most} for this stack, which reads and writes {stack.max_tokens} together.",
            param=name,
        )
    return asked


def decoding_of(body: ChatRequest, new_tokens: int) -> DecodingRecipe:
    """Return how tokens are chosen; greedy where the request does not say.

    Raises
    ------
    ApiError
        400, if it has ``top_p`` and no temperature: nothing would be drawn.
    """
    temperature, top_p = body.temperature, 1.0 if body.top_p is None else body.top_p
    if temperature is None and top_p < 1:
        raise ApiError(400, "top_p: give a temperature too; without one the likeliest token is taken.", param="top_p")
    seed = secrets.randbits(32) if body.seed is None else body.seed % 2**63
    if not temperature:
        return DecodingRecipe(max_new_tokens=new_tokens)
    return DecodingRecipe(max_new_tokens=new_tokens, temperature=temperature, top_p=top_p, seed=seed)


async def _next(stream: AnswerStream, request: Request, due: float | None = None) -> Piece:
    """Wait for news of an answer, as long as its client waits.

    Raises
    ------
    _GoneError
    DeadlineExceeded
        If none came until ``due``.
    """
    while True:
        if await request.is_disconnected():
            raise _GoneError
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


async def _whole(
    question: _Question, stream: AnswerStream, piece: Piece, request: Request, say: Callable[[Usage], None]
) -> Response:
    text = [piece.text]
    while piece.finish is None:
        piece = await _next(stream, request)
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


class _EventStream(StreamingResponse):
    """An answer as server-sent events; a client that goes away frees its row at once."""

    def __init__(self, question: _Question, stream: AnswerStream, first: Piece, say: Callable[[Usage], None]) -> None:
        self._stream = stream
        # Proxies would collect the pieces otherwise.
        headers = {**question.headers, "X-Accel-Buffering": "no"}
        events = _events(question, stream, first, say)
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _events(
    question: _Question, stream: AnswerStream, piece: Piece, say: Callable[[Usage], None]
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


def _chunk(
    question: _Question, wants_usage: bool, delta: dict[str, str] | None, finish: str | None, **more: Any
) -> str:
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
