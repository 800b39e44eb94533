"""What waits to be classified, and which of it forms the next batch.

::

    client A ── request 1: note note note note … ─┐
             └─ request 2: note                   ├─▶ in turn ─▶ a batch of at most so many tokens
    client B ── request 3: note note ─────────────┘

Clients take turns by tokens, the requests of a client by notes. So neither a client who sends much nor a request of
many notes holds up the others for longer than a turn. A request for which half of its time is over goes before all
turns: it was taken because it could be done in that time, and others came between.

Nothing here knows of threads; `clinstack.serve.model_thread` holds a lock around every call.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from clinstack.tokens.documents import Tokens

TURN_TOKENS = 512
"""What a client is given with each turn. A smaller turn is fairer and costs more of them for a long note."""


@dataclass(frozen=True)
class Scored:
    """What a stack says of a note.

    Parameters
    ----------
    logits : float32 array [classes]
    tokens : int
        Tokens that were read.
    cut : int
        Tokens of the note that were not read, because it is longer than what the stack reads.
    """

    logits: NDArray[np.float32]
    tokens: int
    cut: int


@dataclass(frozen=True, eq=False)
class Item:
    """One note for one stack.

    Parameters
    ----------
    request : Request
    place : int
        Among the request's items.
    stack : str
    pieces : sequence of int64 arrays
    cut : int
    tokens : int
        Of all pieces.
    """

    request: Request
    place: int
    stack: str
    pieces: Sequence[Tokens]
    cut: int
    tokens: int


@dataclass(eq=False)
class Request:
    """What one client waits for: answered as a whole, or refused as a whole.

    Parameters
    ----------
    client : str
        Who takes turns with the others.
    deadline : float
        By `time.monotonic`; by then all of it must have been started.
    answer : Future
        Of the event loop that the client waits in.
    arrived : float
        When it began to wait, by `time.monotonic`.
    """

    client: str
    deadline: float
    answer: Future[list[Scored]]
    arrived: float
    waiting: deque[Item] = field(default_factory=deque)
    results: dict[int, Scored] = field(default_factory=dict)
    unfinished: int = 0
    over: bool = False
    """Whether it has been answered or refused, so that what is left of it is not to be computed."""

    def add(self, stack: str, pieces: Sequence[Tokens], cut: int) -> None:
        """Add a note before the request is put into the queue."""
        tokens = sum(len(piece) for piece in pieces)
        self.waiting.append(Item(self, self.unfinished, stack, pieces, cut, tokens))
        self.unfinished += 1

    @property
    def urgent_from(self) -> float:
        """When half of its time is over."""
        return (self.arrived + self.deadline) / 2

    @property
    def waiting_tokens(self) -> int:
        """Tokens of what has not been started."""
        return sum(item.tokens for item in self.waiting)

    def finish(self, item: Item, logits: NDArray[np.float32]) -> bool:
        """Keep an item's result; return whether it was the last one."""
        self.results[item.place] = Scored(logits, item.tokens, item.cut)
        self.unfinished -= 1
        return self.unfinished == 0

    def scored(self) -> list[Scored]:
        """Return all results in the order of the items."""
        return [self.results[place] for place in range(len(self.results))]


@dataclass(eq=False)
class _Client:
    name: str
    requests: deque[Request] = field(default_factory=deque)
    tokens: int = 0
    items: int = 0
    credit: int = 0
    at_turn: bool = False
    """Whether it has been given the credit of the turn that it has now."""


class WaitingItems:
    """Clients in turn, the requests of each in turn, and the items of each in order.

    Deficit round-robin (Shreedhar and Varghese 1995): at its turn a client is given `TURN_TOKENS`, and goes to the end
    of the line when its next note is longer than the credit that it has left.

    Attributes
    ----------
    tokens, items : int
        Of all that waits.
    since : float
        When the first item came after the queue was empty, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._line: deque[_Client] = deque()
        self.tokens = 0
        self.items = 0
        self.since = 0.0

    def put(self, request: Request) -> None:
        """Put a request with all its items, at least one, at the end of its client's line."""
        client = self._clients.get(request.client)
        if client is None:
            client = self._clients[request.client] = _Client(request.client)
            self._line.append(client)
        if not self.items:
            self.since = request.arrived
        client.requests.append(request)
        self._count(client, len(request.waiting), request.waiting_tokens)

    def discard(self, request: Request) -> None:
        """Forget what of a request has not been started."""
        client = self._clients.get(request.client)
        if client is None or not request.waiting:
            return
        self._count(client, -len(request.waiting), -request.waiting_tokens)
        request.waiting.clear()
        client.requests.remove(request)
        if not client.requests:
            self._forget(client)

    def requests(self) -> list[Request]:
        """Return every request of which something waits."""
        return [request for client in self._line for request in client.requests]

    def until_done(self, client: str, items: int, tokens: int) -> float:
        """Return how many tokens are computed until a request, if it were put now, would be done.

        What is in the line now; and for each further turn that the request needs, as much again of the others, who may
        come again as soon as they are answered.
        """
        need, others, competitors = float(tokens), self.tokens, len(self._line)
        own = self._clients.get(client)
        if own is not None:
            need += own.tokens + (items - 1) * len(own.requests) * own.tokens / own.items
            others, competitors = others - own.tokens, competitors - 1
        turns = ceil(need / TURN_TOKENS)
        return need + max(others, turns * min(others, TURN_TOKENS * competitors))

    def take(self, budget: int, now: float) -> list[Item]:
        """Take items until the next one would exceed the budget of tokens; at least one where one waits.

        First those of urgent requests, the nearest deadline first, then in turn.
        """
        batch: list[Item] = []
        filled = 0
        urgent = sorted((one for one in self.requests() if one.urgent_from <= now), key=lambda one: one.deadline)
        places = iter([item for request in urgent for item in request.waiting])
        while self._line:
            item = next(places, None) or self._next()
            if batch and filled + item.tokens > budget:
                break
            self._take(item)
            batch.append(item)
            filled += item.tokens
        return batch

    def _next(self) -> Item:
        """Return whose turn it is; the same again until it is taken."""
        while True:
            client = self._line[0]
            item = client.requests[0].waiting[0]
            if item.tokens <= client.credit:
                return item
            if client.at_turn:
                self._line.rotate(-1)
            else:
                client.credit += TURN_TOKENS
            client.at_turn = not client.at_turn

    def _take(self, item: Item) -> None:
        """Take the first item of a request, which need not be the one whose turn it is; its client pays for it."""
        request = item.request
        client = self._clients[request.client]
        request.waiting.popleft()
        client.requests.remove(request)
        if request.waiting:
            client.requests.append(request)
        client.credit -= item.tokens
        self._count(client, -1, -item.tokens)
        if not client.requests:
            self._forget(client)

    def _count(self, client: _Client, items: int, tokens: int) -> None:
        client.items += items
        client.tokens += tokens
        self.items += items
        self.tokens += tokens

    def _forget(self, client: _Client) -> None:
        """Drop a client for whom nothing waits; what is left of its credit is not kept for later."""
        self._line.remove(client)
        del self._clients[client.name]
