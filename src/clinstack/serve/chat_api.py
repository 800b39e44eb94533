"""``POST /v1/chat/completions``: questions about notes, in the form that OpenAI's clients speak."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from prometheus_client import Counter, Gauge

from clinstack.errors import InputError
from clinstack.recipe.generate import DecodingRecipe
from clinstack.serve.chat_answers import EventStream, GoneError, Question, next_piece, whole
from clinstack.serve.chat_messages import Conversation, EncodedQuestion, MessageError, QuestionEncoder, read_messages
from clinstack.serve.chat_queue import ChatLimits, ChatQueue
from clinstack.serve.chat_schemas import (
    IGNORED,
    REFUSED,
    ChatCompletion,
    ChatRequest,
    Usage,
)
from clinstack.serve.decoding import DecodingRequest
from clinstack.serve.failures import ApiError
from clinstack.serve.lanes import SharedLanes
from clinstack.serve.observe import Metrics, note_audit
from clinstack.serve.openapi import ERRORS
from clinstack.serve.schemas import ErrorResponse
from clinstack.serve.settings import ServeSettings

if TYPE_CHECKING:
    from clinstack.serve.queue import RequestQueue
    from clinstack.serve.served_stack import ServedStack

UNTOUCHED = ":base"
"""Behind a stack's name: its base, without any adapter."""
DEFAULT_NEW_TOKENS = 128
"""As `clinstack generate` has it."""
_SHORTEST_PROMPT = 16
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
            question = Question(body, stack, conversation, encoded, f"chatcmpl-{uuid4().hex}", int(time.time()))
            stream = self._answers.open(
                DecodingRequest(stack.name, encoded.ids, encoded.ends, decoding, untouched, body.stops)
            )
        try:
            first = await next_piece(stream, request, due)
        except BaseException as error:
            stream.close()
            if isinstance(error, GoneError):
                return Response(status_code=_GONE)
            raise
        if body.stream:
            return EventStream(question, stream, first, self._said(question, request))
        try:
            return await whole(question, stream, first, request, self._said(question, request))
        except GoneError:
            return Response(status_code=_GONE)
        finally:
            stream.close()

    def _said(self, question: Question, request: Request) -> Callable[[Usage], None]:
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
