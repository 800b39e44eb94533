"""Who may ask, how much and how often: layers around the API, so that nothing is read before they agreed.

::

    a request ─▶ token ─▶ is the server stopping? ─▶ rate ─▶ in flight ─▶ size of the body, read here ─▶ the API
                 401          503                     429      429           413, 408

Plain ASGI: a framework's own middleware would start to read, or would know the routes, before the token was looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clinstack.serve.failures import ApiError
from clinstack.serve.settings import is_loopback

HEALTH = frozenset({"/healthz", "/readyz"})
"""Open to everyone: they say only whether the server lives."""
CLIENT = "clinstack.client"
"""Where a request's scope keeps who asks: a short hash of the token."""

Status = Literal["starting", "ready", "draining", "failed"]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""What a browser is told with every answer that does not say otherwise itself, as the web page's files do."""


class Gate:
    """Whether the server takes requests, and how many it is answering.

    Attributes
    ----------
    status : {"starting", "ready", "draining", "failed"}
    in_flight : int
        Requests behind the token that have no whole answer yet.
    """

    def __init__(self) -> None:
        self.status: Status = "starting"
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count a request that is taken."""
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a request that has its answer."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is in flight; return False when the time is over first."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Authentication:
    """Answers 401, always the same, to whoever does not send the token; also where there is no such path.

    Parameters
    ----------
    app : ASGI application
    token : str or None
        None: nobody is asked, but the Host header must name this machine, lest a page from elsewhere that a browser
        here opened reads answers through a name that it resolves to this machine (DNS rebinding).
    is_public : function from a path to bool
        Paths that anyone may GET.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, is_public: Callable[[str], bool]) -> None:
        self._app, self._is_public = app, is_public
        self._expected = None if token is None else _digest(b"Bearer " + token.encode())
        self._client = "anonymous" if token is None else client_id(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or (scope["method"] in {"GET", "HEAD"} and self._is_public(scope["path"])):
            await self._app(scope, receive, send)
            return
        if self._expected is None:
            if not is_loopback(_host(scope)):
                error = ApiError(403, "Without a token this server answers to loopback names only.")
                await error.response()(scope, receive, send)
                return
        elif not hmac.compare_digest(_digest(_only(scope, b"authorization")), self._expected):
            response = ApiError(401, "Send the token of this server as Authorization: Bearer.").response(
                {"WWW-Authenticate": "Bearer", "Connection": "close"}
            )
            await response(scope, receive, send)
            return
        scope[CLIENT] = self._client
        await self._app(scope, receive, send)


def client_id(token: str) -> str:
    """Return the short hash that stands for a token in the audit log."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def _digest(value: bytes) -> bytes:
    """Hash first: a comparison of two digests takes as long whatever the lengths were."""
    return hashlib.sha256(value).digest()


def _only(scope: Scope, name: bytes) -> bytes:
    """Return a header's value; nothing where it is missing or stands twice."""
    values = [value for key, value in scope["headers"] if key == name]
    scheme, _, rest = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    return b"Bearer " + rest if scheme.lower() == b"bearer" else b""


def _host(scope: Scope) -> str:
    value = next((value for key, value in scope["headers"] if key == b"host"), b"").decode("latin-1")
    return value.partition("]")[0] + "]" if value.startswith("[") else value.partition(":")[0]


class RequestLimit:
    """Answers 503 when the server stops, 429 to a client that asks too often and when too much is being answered.

    Parameters
    ----------
    app : ASGI application
    gate : Gate
    max_in_flight : int
    requests_per_minute : int
        Of one client, by token and address, all at once or spread; 0: no limit.
    clock : function returning seconds
    """

    _CLIENTS = 10_000

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        max_in_flight: int,
        requests_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._gate, self._max_in_flight = app, gate, max_in_flight
        self._per_minute, self._clock = requests_per_minute, clock
        self._left: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or CLIENT not in scope:  # health and the page's own files
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response({"Connection": "close"})(scope, receive, send)
            return
        self._gate.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._gate.leave()

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self._gate.status in {"draining", "failed"}:
            return ApiError(503, "The server is stopping.", retry_after=5)
        wait = self._seconds_to_wait((scope[CLIENT], (scope.get("client") or [""])[0]))
        if wait:
            return ApiError(429, f"More than {self._per_minute} requests a minute.", retry_after=wait)
        if self._gate.in_flight >= self._max_in_flight:
            return ApiError(429, "Too many requests are being answered.", retry_after=1, kind="overloaded")
        return None

    def _seconds_to_wait(self, client: tuple[str, str]) -> float:
        """Take one from what a client may still ask; it grows with time (a token bucket of one minute)."""
        if not self._per_minute:
            return 0.0
        now, rate = self._clock(), self._per_minute / 60
        left, before = self._left.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - before) * rate)
        allowed = left >= 1
        self._left[client] = (left - 1 if allowed else left, now)
        if len(self._left) > self._CLIENTS:
            self._left.popitem(last=False)  # who has not asked for longest, and so has the fullest bucket
        return 0.0 if allowed else (1 - left) / rate


class BodyLimit:
    """Reads a body, at most so many bytes and seconds; answers 413 and 408 without reading the rest.

    By the Content-Length before a byte is read, and while it arrives for a client that did not say or did not tell the
    truth. What is behind has the whole body at once.

    Parameters
    ----------
    app : ASGI application
    max_bytes : int
    seconds : float
        Until the whole body must be here.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        # A number that is none never comes so far: the server's parser refuses it.
        if said.isdigit() and int(said) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max_bytes:
                        await self._refuse(scope, receive, send)
                        return
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            error = ApiError(408, f"The body did not arrive within {self._seconds:g} seconds.")
            await error.response({"Connection": "close"})(scope, receive, send)
            return
        body: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}
        parts.clear()

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = body, None
            return message

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ApiError(413, f"A body has at most {self._max_bytes} bytes here.")
        await error.response({"Connection": "close"})(scope, receive, send)
