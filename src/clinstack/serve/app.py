"""The HTTP API as one ASGI application; `clinstack.serve.server` runs it.

::

    Observer ─▶ Authentication ─▶ RequestLimit ─▶ BodyLimit ─▶ routes ─▶ RequestQueue
    (every request: number, times, audit, 500)      (before a byte of the body is read)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from clinstack import __version__
from clinstack.serve import chat_api, page, predict_api, stacks_api
from clinstack.serve.failures import ApiError, validation_error
from clinstack.serve.observe import AuditLog, Metrics, Observer
from clinstack.serve.openapi import EVERYWHERE, describe_api
from clinstack.serve.refusals import (
    DeadlineExceeded,
    ModelFailed,
    QueueFull,
    RequestTooLarge,
    ShuttingDown,
    UnknownStack,
)
from clinstack.serve.schemas import Health
from clinstack.serve.security import HEADERS, HEALTH, Authentication, BodyLimit, Gate, RequestLimit
from clinstack.serve.settings import ServeSettings

if TYPE_CHECKING:
    from clinstack.serve.queue import RequestQueue


def create_app(
    queue: RequestQueue,
    settings: ServeSettings,
    *,
    token: str | None,
    metrics: Metrics | None = None,
    audit: AuditLog | None = None,
    gate: Gate | None = None,
) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    queue : RequestQueue
        Started when the application starts, and stopped when it ends.
    settings : ServeSettings
    token : str or None
        What clients send; None only with ``settings.no_token``.
    metrics : Metrics, optional
        The one that the queue tells what happens.
    audit : AuditLog, optional
        None: nothing is audited.
    gate : Gate, optional
        The one that whoever stops the server closes.
    """
    metrics, gate = metrics or Metrics(), gate or Gate()
    metrics.in_flight.set_function(lambda: gate.in_flight)
    metrics.queue_depth.set_function(lambda: queue.depth)
    metrics.stacks.set_function(lambda: len(queue.stacks))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await queue.start()
        gate.status = "ready"
        yield
        await queue.stop()

    app = FastAPI(
        title="clinstack",
        version=__version__,
        lifespan=lifespan,
        # The pages of the interactive documentation load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=EVERYWHERE,
    )
    app.state.gate, app.state.metrics = gate, metrics
    app.include_router(predict_api.router(queue, settings, metrics))
    app.include_router(stacks_api.router(queue, settings))
    app.include_router(chat_api.router(queue, settings, metrics))
    _add_health(app, gate, queue)
    _add_metrics(app, metrics)
    public = HEALTH
    if settings.ui:
        page.mount(app)
        public = HEALTH | page.PUBLIC_PATHS
    _add_failures(app)
    describe_api(app, settings, __version__)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.timeout_s)
    app.add_middleware(
        RequestLimit,
        gate=gate,
        max_in_flight=settings.max_in_flight,
        requests_per_minute=settings.requests_per_minute,
    )
    app.add_middleware(Authentication, token=token, is_public=public.__contains__)
    app.add_middleware(
        Observer, metrics=metrics, audit=audit, quiet=(public | {"/metrics"}).__contains__, headers=HEADERS
    )
    return app


def _add_health(app: FastAPI, gate: Gate, queue: RequestQueue) -> None:
    @app.get("/healthz", summary="Whether the process answers", response_model=Health, tags=["health"])
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get(
        "/readyz",
        summary="Whether it takes requests",
        response_model=Health,
        responses={503: {"model": Health, "description": "Not now."}},
        tags=["health"],
    )
    async def readyz(response: Response) -> Health:
        response.status_code = 200 if gate.status == "ready" else 503
        return Health(status=gate.status)


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["health"],
    )
    async def read_metrics() -> Response:
        return metrics.response()


def _add_failures(app: FastAPI) -> None:
    """Give every error one shape, and no error a word of the request."""

    def answers(kind: type[Exception], convert: Callable[..., ApiError]) -> None:
        @app.exception_handler(kind)
        async def handle(_: Request, error: Exception) -> Response:
            return convert(error).response()

    answers(ApiError, lambda error: error)
    answers(RequestValidationError, lambda error: validation_error(error.errors()))
    answers(QueueFull, lambda error: ApiError(429, str(error), retry_after=error.retry_after, kind="overloaded"))
    answers(RequestTooLarge, lambda error: ApiError(413, str(error)))
    answers(DeadlineExceeded, lambda error: ApiError(504, str(error)))
    answers(UnknownStack, lambda _: ApiError(404, "A stack of this request is served no longer."))
    answers(ShuttingDown, lambda error: ApiError(503, str(error), retry_after=5))
    answers(ModelFailed, lambda error: ApiError(500, str(error)))

    @app.exception_handler(HTTPException)
    async def handle(_: Request, error: HTTPException) -> Response:
        messages = {404: "There is no such path.", 405: "This path has no such method."}
        # What remains is a body that is no Unicode.
        status = error.status_code if error.status_code in messages else 422
        return ApiError(status, messages.get(status, "The body is no JSON.")).response(error.headers)
