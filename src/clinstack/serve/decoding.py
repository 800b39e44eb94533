"""Answers of many requests decoded together: rows of several stacks and of the untouched base in one batch.

::

    step      1      2      3      4      5
    row a   prompt   a1     a2     a3              a stack; its end token frees the row at once
    row b          prompt   b1     b2     b3       another stack, joined between two steps
    row c                 prompt   c1     c2       the untouched base

Each step reads the prompts that have come, as many as its budget of tokens allows, and then computes one token of every
running row in one forward pass, in which each row goes through its own adapters. What a row gets does not depend on its
neighbours: greedy answers are those of `clinstack.engine.generation.generate`, and drawn ones too, because the noise of
a row comes from the seed and a hash of its prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, TemperatureLogitsWarper, TopPLogitsWarper

from clinstack.engine.generation import GumbelNoise, prompt_key
from clinstack.engine.guards import is_out_of_memory
from clinstack.errors import InputError
from clinstack.recipe.generate import DecodingRecipe
from clinstack.serve.decoding_cache import RowsCache
from clinstack.serve.detokenization import AnswerText
from clinstack.serve.lanes import Lane, Lanes

Finish = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True)
class DecodingRequest:
    """One answer that is wanted.

    Parameters
    ----------
    stack : str
        Its name.
    prompt : tuple of int
        As `clinstack.tokens.prompts.encode_prompts` makes it; not empty.
    ends : tuple of int
        Tokens that end the answer.
    settings : DecodingRecipe
        ``num_beams`` is 1.
    untouched : bool
        Whether the base answers, without any adapter.
    stop : tuple of str
        The answer ends before the first of these texts.
    """

    stack: str
    prompt: tuple[int, ...]
    ends: tuple[int, ...]
    settings: DecodingRecipe
    untouched: bool = False
    stop: tuple[str, ...] = ()


class Answer:
    """An answer while it is written.

    Attributes
    ----------
    tokens : int
        New ones so far, the end token included.
    finish : str or None
        "stop" at an end token or a text of ``stop``, "length" after ``max_new_tokens``, "cancelled", "failed"; None
        while it goes on.
    problem : str or None
        Why it failed.
    """

    def __init__(self, request: DecodingRequest, tokenizer: PreTrainedTokenizerBase) -> None:
        self.request = request
        self.tokens = 0
        self.finish: Finish | None = None
        self.problem: str | None = None
        self._text = AnswerText(tokenizer, request.stop)
        self._new: list[str] = []
        self._draw = _processors(request)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self._draw is None

    def take(self) -> str:
        """Return the text that came since the last call; all pieces together are the answer."""
        text = "".join(self._new)
        self._new.clear()
        return text

    def choose(self, scores: Tensor) -> int:
        """Return the next token by its scores, float32, shape [vocabulary]."""
        if self._draw is not None:
            scores = self._draw(None, scores[None])[0]  # type: ignore[arg-type]  # none of these reads the tokens
        return int(scores.argmax())

    def add(self, token: int) -> None:
        """Take a token as the next one."""
        self.tokens += 1
        self._new.append(self._text.add(token))
        if token in self.request.ends or self._text.is_stopped:
            self._finish("stop")
        elif self.tokens == self.request.settings.max_new_tokens:
            self._finish("length")

    def fail(self, problem: str) -> None:
        """End without the rest, and say why."""
        self.finish, self.problem = "failed", problem

    def _finish(self, why: Finish) -> None:
        self._new.append(self._text.end())
        # A stop may show only when nothing can follow any more.
        self.finish = "stop" if self._text.is_stopped else why


def _processors(request: DecodingRequest) -> LogitsProcessorList | None:
    """Return what turns scores into a draw, as `clinstack.engine.generation` does; None for a greedy answer."""
    settings = request.settings
    if settings.temperature == 0:
        return None
    processors = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(GumbelNoise(settings.seed, [prompt_key(request.prompt)]))
    return processors


@dataclass
class _Running:
    """The rows of one lane."""

    answers: list[Answer] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    cache: RowsCache = field(default_factory=RowsCache)


class Decoder:
    """Decodes what it was given, a step at a time. It belongs to the thread that owns the networks.

    Parameters
    ----------
    lanes : Lanes
        The networks, such as `clinstack.serve.lanes.SharedLanes` or `StackLanes`.
    max_rows : int
        Answers that are written at a time; others wait.
    prompt_tokens : int
        Of all prompts that one step reads, but for a single longer one: what waits for the network meanwhile waits
        no longer than that.
    """

    def __init__(self, lanes: Lanes, *, max_rows: int = 16, prompt_tokens: int = 1024) -> None:
        self._lanes = lanes
        self._max_rows = max_rows
        self._prompt_tokens = prompt_tokens
        self._waiting: deque[Answer] = deque()
        self._running: dict[Lane, _Running] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is written."""
        return not self._waiting and not self._running

    @property
    def rows(self) -> int:
        """How many answers are being written."""
        return sum(len(running.answers) for running in self._running.values())

    def start(self, request: DecodingRequest) -> Answer:
        """Take a request, and return its answer, which the next steps write.

        Raises
        ------
        InputError
            If the stack is unknown, or its base cannot be decoded this way.
        """
        if not request.prompt or request.settings.num_beams > 1:
            raise InputError("decoding: a prompt needs a token, and beams are not decoded together; use num_beams: 1.")
        lane = self._lanes.lane(request.stack, request.untouched)
        answer = Answer(request, lane.tokenizer)
        self._waiting.append(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        """Give an answer up; its row is free from the next step on."""
        if answer.finish is None:
            answer.finish = "cancelled"

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Read prompts that wait, write one more token of every answer, and return the answers that have news."""
        self._drop_finished()
        news = self._fail_what_has_no_stack()
        news += self._read_prompts()
        for lane, running in list(self._running.items()):
            news += running.answers
            self._guarded(running.answers, partial(self._write, lane, running))
        self._drop_finished()
        return list(dict.fromkeys(news))

    def _fail_what_has_no_stack(self) -> list[Answer]:
        """End the answers of stacks that were taken away meanwhile, and return them."""
        news = []
        for answer in [one for running in self._running.values() for one in running.answers]:
            self._guarded([answer], partial(self._lanes.lane, answer.request.stack, answer.request.untouched))
            if answer.finish is not None:
                news.append(answer)
        self._drop_finished()
        return news

    def _drop_finished(self) -> None:
        self._waiting = deque(answer for answer in self._waiting if answer.finish is None)
        for lane, running in list(self._running.items()):
            rows = [row for row, answer in enumerate(running.answers) if answer.finish is None]
            if len(rows) < len(running.answers):
                running.answers = [running.answers[row] for row in rows]
                running.last = [running.last[row] for row in rows]
                running.cache.keep(rows)
            if not rows:
                del self._running[lane]

    def _read_prompts(self) -> list[Answer]:
        """Let requests that wait join, each after its prompt was read and its first token chosen."""
        free, budget = self._max_rows - self.rows, self._prompt_tokens
        joined: dict[Lane, _Running] = {}
        caches: dict[Lane, list[RowsCache]] = {}
        news: list[Answer] = []
        while self._waiting and free > 0 and (not news or len(self._waiting[0].request.prompt) <= budget):
            answer = self._waiting.popleft()
            news.append(answer)
            free -= 1
            budget -= len(answer.request.prompt)
            self._guarded([answer], partial(self._read, answer, joined, caches))
        for lane, new in joined.items():
            running = self._running.setdefault(lane, _Running())
            running.cache.join(caches[lane])
            running.answers += new.answers
            running.last += new.last
        return news

    def _read(self, answer: Answer, joined: dict[Lane, _Running], caches: dict[Lane, list[RowsCache]]) -> None:
        request = answer.request
        lane = self._lanes.lane(request.stack, request.untouched)
        cache = RowsCache()
        with lane.routed([None if request.untouched else request.stack]):
            scores = lane.read(request.prompt, cache)
        cache.padding = [0]
        answer.add(token := answer.choose(scores[0]))
        if answer.finish is None:
            new = joined.setdefault(lane, _Running())
            new.answers.append(answer)
            new.last.append(token)
            caches.setdefault(lane, []).append(cache)

    def _write(self, lane: Lane, running: _Running) -> None:
        names = [None if answer.request.untouched else answer.request.stack for answer in running.answers]
        device = lane.device
        with lane.routed(names):
            scores = lane.forward(
                {"input_ids": torch.tensor(running.last, device=device)[:, None]},
                running.cache.mask(device),
                running.cache.positions(device),
                running.cache,
            )
        greedy = scores.argmax(1).tolist()
        for row, answer in enumerate(running.answers):
            token = greedy[row] if answer.is_greedy else answer.choose(scores[row])
            answer.add(token)
            running.last[row] = token

    def _guarded(self, answers: Iterable[Answer], work: Callable[[], object]) -> None:
        """Do work for answers; where memory is full, or their stack has gone, they fail and the others go on."""
        try:
            work()
        except InputError as error:
            problem = str(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            problem = "memory is full; ask for less at a time"
        else:
            return
        for answer in answers:
            answer.fail(problem)
