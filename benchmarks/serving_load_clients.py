"""Clients of `serving_load.py`: HTTP by hand, so that what they cost stays small beside the server on the same machine.

Nothing here waits for the server before it sends the next request, where it is to send so many a second; a request
whose client's connections are all waiting takes a new connection.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
IDLE_SECONDS = 2.0
"""After which a client takes a new connection; servers close idle ones after some more."""
LOST = 0
"""Status of a request whose connection ended without an answer."""
REFUSED = -1
"""Status of a request for which there was no connection."""


@dataclass(frozen=True)
class Question:
    """What a request asks.

    Parameters
    ----------
    notes : sequence of int
        Which of the texts it holds.
    tasks : sequence of str
    """

    notes: Sequence[int]
    tasks: Sequence[str]


@dataclass
class Reply:
    """What became of a request.

    Parameters
    ----------
    name : str
        Stands in the request as the id of its notes, and comes back in the answer.
    """

    name: str
    question: Question
    sent: float
    seconds: float = 0.0
    status: int = LOST
    retry_after: str | None = None
    body: bytes = b""


class Connection:
    """A connection to the server that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, address: str) -> Connection:
        """Connect from an address of this machine."""
        return cls(*await asyncio.open_connection(HOST, port, local_addr=(address, 0)))

    async def ask(self, what: str, token: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Send a request and return status, headers (names in lower case) and body of its answer.

        Raises
        ------
        OSError, asyncio.IncompleteReadError
            The connection ended.
        """
        head = f"{what} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        answer = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, answer

    def close(self) -> None:
        """Close it."""
        self._writer.close()


@dataclass
class Client:
    """Someone with a token and an address, and as many connections as requests at a time."""

    port: int
    token: str
    address: str = HOST
    _free: list[tuple[Connection, float]] = field(default_factory=list)

    async def ask(self, name: str, question: Question, texts: Sequence[str]) -> Reply:
        """Ask for scores, and say what became of it."""
        notes = [{"id": f"{name}.{place}", "text": texts[note]} for place, note in enumerate(question.notes)]
        wanted = {"notes": notes, "tasks": list(question.tasks), "calibration": "none", "top": None}
        body = json.dumps(wanted).encode()
        reply = Reply(name, question, time.monotonic())
        try:
            connection = self._usable() or await Connection.open(self.port, self.address)
        except OSError:
            reply.status = REFUSED
            return reply
        try:
            status, headers, answer = await connection.ask("POST /v1/predict", self.token, body)
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
            reply.seconds = time.monotonic() - reply.sent
            return reply
        reply.seconds = time.monotonic() - reply.sent
        reply.status, reply.retry_after, reply.body = status, headers.get("retry-after"), answer
        if headers.get("connection") == "close":
            connection.close()
        else:
            self._free.append((connection, time.monotonic()))
        return reply

    def _usable(self) -> Connection | None:
        """Return a connection that the server is not about to close because it was idle."""
        while self._free:
            connection, since = self._free.pop()
            if time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        """Close what is open."""
        for connection, _ in self._free:
            connection.close()
        self._free.clear()


async def closed_loop(
    clients: Sequence[Client], questions: Iterator[Question], texts: Sequence[str], seconds: float
) -> list[Reply]:
    """Let each client ask again as soon as it has its answer, for some seconds."""
    replies: list[Reply] = []
    ends = time.monotonic() + seconds

    async def asks(number: int, client: Client) -> None:
        count = 0
        while time.monotonic() < ends:
            reply = await client.ask(f"c{number}-{count}", next(questions), texts)
            replies.append(reply)
            count += 1
            if reply.status == 429:
                await asyncio.sleep(float(reply.retry_after or 1))

    await asyncio.gather(*(asks(number, client) for number, client in enumerate(clients)))
    return replies


async def open_loop(
    clients: Sequence[Client],
    questions: Iterator[Question],
    texts: Sequence[str],
    moments: Sequence[Sequence[float]],
    began: float,
    prefix: str,
) -> list[Reply]:
    """Let clients ask at given moments, whatever became of what they asked before.

    Parameters
    ----------
    moments : sequence of sequence of float
        Of each client, in seconds after ``began``.
    began : float
        By `time.monotonic`.
    prefix : str
        Of the requests' names.
    """
    asked: list[asyncio.Task[Reply]] = []

    async def asks(number: int, client: Client) -> None:
        for count, moment in enumerate(moments[number]):
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            asked.append(asyncio.create_task(client.ask(f"{prefix}{number}-{count}", next(questions), texts)))

    await asyncio.gather(*(asks(number, client) for number, client in enumerate(clients)))
    return list(await asyncio.gather(*asked))


def scores(reply: Reply) -> dict[tuple[int, str], list[float]]:
    """Return the logits that an answer has for each note and task.

    Raises
    ------
    ValueError
        If the answer is not one to this request.
    """
    answer: dict[str, Any] = json.loads(reply.body)
    names = [prediction["id"] for prediction in answer["predictions"]]
    if names != [f"{reply.name}.{place}" for place in range(len(reply.question.notes))]:
        raise ValueError(f"{reply.name} got the answer of another request")
    found = {}
    for note, prediction in zip(reply.question.notes, answer["predictions"], strict=True):
        if set(prediction["tasks"]) != set(reply.question.tasks):
            raise ValueError(f"{reply.name} got other tasks")
        for task, told in prediction["tasks"].items():
            found[note, task] = [one["logit"] for one in told["classes"]]
    return found
