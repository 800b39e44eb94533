"""What a server tells about itself: metrics, the audit log, a number for each request. Never the text of a note.

The outermost layer around the API. It sees every request, also the refused ones, and every exception.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clinstack.serve.failures import ApiError, describe
from clinstack.serve.model_thread import QueueObserver
from clinstack.serve.security import CLIENT
from clinstack.serve.settings import AUDIT_FILE

logger = logging.getLogger("clinstack.serve")

STRANGERS_PER_MINUTE = 60
"""Lines of the audit log for requests without the token; those beyond are counted."""
_KEY = "clinstack.audit"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_NOTES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics(QueueObserver):
    """Prometheus metrics in a registry of their own.

    Routes are the API's own, such as ``/v1/stacks/{name}``; a path that a client invents is ``other``.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"namespace": "clinstack", "registry": self.registry}
        times = {**make, "buckets": _SECONDS}
        self.requests = Counter("requests", "Requests answered.", ["method", "route", "status"], **make)
        self.seconds = Histogram("request_seconds", "From arrival to the answer's end.", ["route"], **times)
        self.notes = Counter("notes", "Notes scored, by stack.", ["stack"], **make)
        self.tokens = Counter("tokens", "Tokens read of notes, by stack.", ["stack"], **make)
        self.batch_notes = Histogram("batch_notes", "Notes of one forward pass.", buckets=_NOTES, **make)
        self.batch_tokens = Histogram("batch_tokens", "Tokens of one forward pass.", buckets=_TOKENS, **make)
        self.batch_seconds = Histogram("batch_seconds", "Duration of one forward pass.", **times)
        self.wait_seconds = Histogram("wait_seconds", "How long a note waited for its batch.", **times)
        self.refusals = Counter("queue_refusals", "Requests that the queue refused.", ["reason"], **make)
        self.failures = Counter(
            "model_failures", "Notes that the model failed on, by the error's type.", ["type"], **make
        )
        self.in_flight = Gauge("in_flight", "Requests that are being answered.", **make)
        self.queue_depth = Gauge("queue_notes", "Notes that wait for the model.", **make)
        self.stacks = Gauge("stacks", "Stacks that are served.", **make)
        self.audit_failures = Counter("audit_failures", "Lines of the audit log that could not be written.", **make)

    def started(self, waited: float) -> None:
        """Count how long a note waited."""
        self.wait_seconds.observe(waited)

    def batch(self, notes: int, tokens: int, seconds: float) -> None:
        """Count one forward pass."""
        self.batch_notes.observe(notes)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a note that the model failed on."""
        self.failures.labels(kind).inc()

    def refused(self, reason: str) -> None:
        """Count a request that the queue refused."""
        self.refusals.labels(reason).inc()

    def response(self) -> Response:
        """Return the text that Prometheus reads."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class AuditLog:
    """Who asked for what when, one JSON object a line, readable by its owner only, rotated by size.

    Parameters
    ----------
    folder : Path
    max_bytes : int
        A line that would go beyond begins a new file.
    keep : int
        Older files, ``audit.jsonl.1`` the youngest.
    """

    def __init__(self, folder: Path, max_bytes: int, keep: int) -> None:
        self.path = folder / AUDIT_FILE
        self._max_bytes, self._keep = max_bytes, keep
        self._lock = threading.Lock()
        self._file = self._open()

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(descriptor, 0o600)
        return descriptor

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line, in one call: lines of two writers never mix.

        Raises
        ------
        OSError
            Such as a full disk.
        """
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        with self._lock:
            if os.fstat(self._file).st_size + len(line) > self._max_bytes and os.fstat(self._file).st_size:
                self._rotate()
            if os.write(self._file, line) < len(line):
                raise OSError("the audit log's disk is full")

    def _rotate(self) -> None:
        def numbered(number: int) -> Path:
            return self.path.with_name(f"{self.path.name}.{number}")

        numbered(self._keep).unlink(missing_ok=True)
        for number in range(self._keep - 1, 0, -1):
            if numbered(number).exists():
                os.replace(numbered(number), numbered(number + 1))
        os.replace(self.path, numbered(1))
        os.close(self._file)
        self._file = self._open()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._file)


def note_audit(
    request: Request, *, tasks: Sequence[str], notes: int = 0, ids: Sequence[str] = (), tokens: int = 0
) -> None:
    """Say for the audit log what a request asks: names of stacks, ids that the client gave, and counts only."""
    request.scope[_KEY] |= {"tasks": list(tasks), "notes": notes, "ids": list(ids), "tokens": tokens}


class Allowance:
    """So many a minute, and a count of those beyond.

    Parameters
    ----------
    per_minute : int
    clock : function returning seconds
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._minute, self._taken = -1, 0
        self.missed = 0

    def take(self) -> bool:
        """Return whether one more is within the allowance of this minute."""
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._taken = minute, 0
        self._taken += 1
        if self._taken <= self._per_minute:
            return True
        self.missed += 1
        return False

    def forget(self) -> int:
        """Return how many were beyond since the last call."""
        missed, self.missed = self.missed, 0
        return missed


class Observer:
    """ASGI layer: numbers, times, counts and audits each request; turns what nobody caught into a plain 500.

    Parameters
    ----------
    app : ASGI application
    metrics : Metrics
    audit : AuditLog or None
    quiet : function from a path to bool
        Paths that are counted but audited only when they are refused: what asks nothing of a stack.
    headers : mapping
        Added to every answer that does not have them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        audit: AuditLog | None,
        quiet: Callable[[str], bool],
        headers: Mapping[str, str],
    ) -> None:
        self._app, self._metrics, self._audit, self._quiet = app, metrics, audit, quiet
        self._strangers = Allowance(STRANGERS_PER_MINUTE)
        self._added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started, begun = time.monotonic(), False
        scope[_KEY] = {}
        request_id, status = uuid4().hex, 0
        own = (b"x-request-id", request_id.encode())

        async def send_with_headers(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                given = list(message.get("headers", []))
                names = {name.lower() for name, _ in given}
                message = {**message, "headers": [*given, *(item for item in self._added if item[0] not in names), own]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            logger.error("request %s failed: %s", request_id, describe(error))
            status = 500
            if not begun:
                message = f"Something failed here. The server's log has more under {request_id}."
                await ApiError(500, message).response()(scope, receive, send_with_headers)
        finally:
            # Without a status the client went away before there was one.
            self._finish(scope, request_id, status or 499, time.monotonic() - started)

    def _finish(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._audit is None or (status < 400 and self._quiet(scope["path"])):
            return
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": request_id,
            "client": scope.get(CLIENT),
            "address": (scope.get("client") or [None])[0],
            "endpoint": f"{method} {route}",
            **scope[_KEY],
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        if entry["client"] is None:
            # Whoever has no token must not be able to push the others' lines out of the log.
            if not self._strangers.take():
                return
            entry |= {"not_written": self._strangers.forget()} if self._strangers.missed else {}
        try:
            self._audit.write(entry)
        except OSError as error:
            self._metrics.audit_failures.inc()
            logger.error("the audit log %s cannot be written: %s", self._audit.path, error.strerror or error)


_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
