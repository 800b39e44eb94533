"""Running the API: the state folder, the socket, the log, and an end that finishes what was taken.

::

    first SIGTERM or SIGINT ─▶ new requests get 503 ─▶ those in flight are answered ─▶ exit 0
                                                       not within drain_s: they get 503 ─▶ exit 1
    second ──────────────────▶ ends at once
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import uvicorn

from clinstack.errors import ClinstackError, InputError
from clinstack.serve.app import create_app
from clinstack.serve.failures import describe
from clinstack.serve.observe import AuditLog, Metrics
from clinstack.serve.queue import RequestQueue
from clinstack.serve.security import Gate
from clinstack.serve.settings import ServeSettings
from clinstack.serve.shared_base import SharedBase
from clinstack.serve.state import server_token, state_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("clinstack.serve")


@dataclass(frozen=True)
class Started:
    """A server that takes requests.

    Parameters
    ----------
    url : str
    shared : SharedBase
    token_file : Path or None
        Where the token is kept; None where it was given, or nobody is asked for one.
    new_token : str or None
        The token, the one time that it may be shown: at the start that generated it.
    seconds : float
        How long it took to read the stacks.
    """

    url: str
    shared: SharedBase
    token_file: Path | None
    new_token: str | None
    seconds: float


def serve(settings: ServeSettings, announce: Callable[[Started], None]) -> None:
    """Serve until a signal comes.

    Parameters
    ----------
    settings : ServeSettings
    announce : function
        Called once, when requests are taken.

    Raises
    ------
    InputError
        A stack, the address or the state folder is wrong.
    ClinstackError
        The server could not start, or requests that it had taken were not finished in time.
    """
    began = time.monotonic()
    log_to_stderr()
    with ExitStack() as held:
        # First what fails at once; stacks take seconds to read.
        held.enter_context(state_folder(settings.state))
        listener = held.enter_context(listening_socket(settings))
        token, token_file, is_new = server_token(settings)
        audit = AuditLog(settings.state, settings.audit_bytes, settings.audit_files)
        held.callback(audit.close)
        if settings.threads is not None:
            import torch

            torch.set_num_threads(settings.threads)
        shared = SharedBase.open(settings.stacks, base=settings.base, device=settings.device, fold=settings.fold)
        seconds = time.monotonic() - began
        metrics, gate = Metrics(), Gate()
        queue = RequestQueue(shared, settings, metrics)
        app = create_app(queue, settings, token=token, metrics=metrics, audit=audit, gate=gate)
        started = Started(_url(listener), shared, token_file, token if is_new else None, seconds)
        server = Server(app, settings, gate, queue, lambda: announce(started))
        server.run(sockets=[listener])
    if not server.started:
        raise ClinstackError("The server could not start; the lines above say why.")
    if server.model_failed:
        raise ClinstackError("The model computes nothing any more; the lines above say why. Start the server again.")
    if server.unfinished:
        raise ClinstackError(
            f"{server.unfinished} requests were not finished within {settings.drain_s:g} seconds; they were refused."
        )


class Server(uvicorn.Server):
    """uvicorn, with an end of its own.

    Its own closes the listening socket at the first signal, so that a proxy sees refused connections and not a 503; it
    also ends with the signal and not with 0.

    Attributes
    ----------
    unfinished : int
        Requests that were taken and refused all the same, because the time was over.
    model_failed : bool
        Whether it ended because the model's thread did: whoever watches the process is to start a new one.
    """

    _WATCH_SECONDS = 1.0

    def __init__(
        self,
        app: FastAPI,
        settings: ServeSettings,
        gate: Gate,
        queue: RequestQueue,
        on_start: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                # One parser everywhere, whatever else is installed; nothing here speaks WebSocket.
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,  # it would hold paths as clients send them
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=2,  # by then everything has been answered
            )
        )
        self.unfinished, self.model_failed = 0, False
        self._settings, self._gate, self._queue, self._on_start = settings, gate, queue, on_start
        self._ending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests, and say so."""
        asyncio.get_running_loop().set_exception_handler(_log_quietly)
        await super().startup(sockets)
        if self.started:
            self._watching = asyncio.get_running_loop().create_task(self._watch_model())
            self._on_start()

    async def _watch_model(self) -> None:
        while self._queue.is_working:
            await asyncio.sleep(self._WATCH_SECONDS)
        self._gate.status = "failed"
        self.model_failed = self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server as this module says, while it runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _end(self, number: signal.Signals) -> None:
        if self._ending is not None:
            os._exit(128 + number)  # the model's thread may be in a pass that nobody can stop
        self._gate.status = "draining"
        logger.info("stopping: %d requests are being finished", self._gate.in_flight)
        self._ending = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        if not await self._gate.wait_idle(self._settings.drain_s):
            self.unfinished = self._gate.in_flight
            logger.error("stopping: %d requests are refused, their time is over", self.unfinished)
            await self._queue.stop()  # those that wait get their 503
            await self._gate.wait_idle(1.0)
        self.should_exit = True


@contextmanager
def listening_socket(settings: ServeSettings) -> Iterator[socket.socket]:
    """Bind the address.

    Raises
    ------
    InputError
        It is taken, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host: {settings.host} is no address of this machine ({error.strerror}).") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise InputError(
                f"--port: {settings.host} port {settings.port} cannot be used ({error.strerror}); name another."
            ) from None
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---------------------------------------------------------------------- the log


class _NoMessages(logging.Formatter):
    """Writes of an exception its type and where it came from: its message may hold text of a note."""

    def formatException(  # noqa: N802  # logging's own name
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return describe(ei[1]) if ei[1] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.exc_text = None  # what another handler's formatter made of the exception, and left for all
        return super().format(record)


def _log_quietly(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody awaited; asyncio's own way writes the exception's message too."""
    error = context.get("exception")
    what = describe(error) if isinstance(error, BaseException) else str(context.get("message"))
    logger.error("in the event loop: %s", what)


def log_to_stderr() -> None:
    """Let the server's own and its libraries' loggers write to stderr, never with an exception's message."""
    handler = logging.StreamHandler()
    handler.setFormatter(_NoMessages("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logger.setLevel(logging.INFO)
