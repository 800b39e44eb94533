"""Chat as a client sees it: OpenAI's own library against a real server, and answers that are those of the stacks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletion

from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe import DecodingRecipe
from clinstack.serve import chat_api
from clinstack.serve.chat_messages import Conversation, MessageError, QuestionEncoder, read_messages
from clinstack.serve.chat_queue import ChatLimits, ChatQueue
from clinstack.serve.chat_schemas import ChatMessage
from clinstack.serve.decoding import Answer
from clinstack.serve.lanes import Lane
from clinstack.serve.shared_base import SharedBase
from clinstack.tokens.prompts import Prompt, encode_prompts
from tiny_chat import LONG_NOTE, MAX_TOKENS, NOTE, PROMPT, QUESTION, offline, save_chat_stacks, served
from tiny_instructions import CHAT_TEMPLATE, long_note
from tiny_serving import BEARER, CANARY, TOKEN, settings_of

NOTES = (NOTE, LONG_NOTE)
MODELS = ("plain", "clinical", "alone", "plain:base", "alone:base")


@pytest.fixture(scope="module")
def stacks(tiny_base: Path, clinical: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_chat_stacks(tmp_path_factory.mktemp("stacks"), tiny_base, clinical)


@pytest.fixture(scope="module")
def url(stacks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = tmp_path_factory.mktemp("state")
    chosen = settings_of(stacks, state, max_characters=5000, stacks_root=str(stacks["plain"].parent))
    with served(SharedBase.open(stacks), chosen) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as opened:
        yield opened


def question(note: str = NOTE, text: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": f"<note>{note}</note>\n{text}"}]


_known: dict[Any, Any] = {}


def wanted(stacks: dict[str, Path], model: str, note: str, decoding: DecodingRecipe) -> Any:
    """Return what `offline` does, each once."""
    name = model.removesuffix(":base")
    key = model, note, decoding.model_dump_json()
    if key not in _known:
        _known[key] = offline(stacks[name], note, QUESTION, decoding, untouched=model != name)
    return _known[key]


@pytest.mark.parametrize("note", [NOTE, LONG_NOTE], ids=["short", "long"])
@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_generate(client: OpenAI, stacks: dict[str, Path], model: str, note: str) -> None:
    answer, prompt, cut = wanted(stacks, model, note, DecodingRecipe(max_new_tokens=20))
    found = client.chat.completions.create(model=model, messages=question(note), max_tokens=20)
    choice = found.choices[0]
    assert choice.message.content == answer.text
    assert choice.finish_reason == ("length" if answer.cut else "stop")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), answer.tokens)
    assert found.usage.total_tokens == len(prompt) + answer.tokens
    assert found.usage.model_dump()["note_tokens_cut"] == cut
    assert (cut > 0) == (note == LONG_NOTE)
    assert found.model == model
    assert str(found.system_fingerprint).startswith("sha256:")


def test_without_a_limit_as_long_as_in_generate(client: OpenAI, stacks: dict[str, Path]) -> None:
    most = min(128, MAX_TOKENS // 2)
    answer, *_ = wanted(stacks, "plain", NOTE, DecodingRecipe(max_new_tokens=most))
    found = client.chat.completions.create(model="plain", messages=question())
    assert found.choices[0].message.content == answer.text


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_has_the_same_answer(client: OpenAI, stacks: dict[str, Path], model: str) -> None:
    answer, prompt, cut = wanted(stacks, model, LONG_NOTE, DecodingRecipe(max_new_tokens=20))
    with client.chat.completions.create(
        model=model,
        messages=question(LONG_NOTE),
        max_completion_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        assert stream.response.headers["x-note-tokens-cut"] == str(cut)
        chunks = list(stream)
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(deltas) == answer.text
    assert len(deltas) > 1 or len(answer.text) < 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == (
        "length" if answer.cut else "stop"
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len(prompt), answer.tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_many_at_once_get_their_own_answers(url: str, stacks: dict[str, Path]) -> None:
    lengths = {model: 8 + 7 * place for place, model in enumerate(MODELS)}

    async def ask() -> dict[tuple[str, str, bool], str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as opened:

            async def one(model: str, note: str, stream: bool) -> str:
                most = lengths[model]
                if not stream:
                    whole = await opened.chat.completions.create(model=model, messages=question(note), max_tokens=most)
                    return str(whole.choices[0].message.content)
                parts = await opened.chat.completions.create(
                    model=model, messages=question(note), max_tokens=most, stream=True
                )
                return "".join([part.choices[0].delta.content or "" async for part in parts])

            wants = [
                (model, note, stream) for stream in (True, False) for note in (NOTE, LONG_NOTE) for model in MODELS
            ]
            return dict(zip(wants, await asyncio.gather(*(one(*want) for want in wants)), strict=True))

    for (model, note, _), text in asyncio.run(ask()).items():
        assert text == wanted(stacks, model, note, DecodingRecipe(max_new_tokens=lengths[model]))[0].text


def test_drawn_answers_follow_the_seed(client: OpenAI, stacks: dict[str, Path]) -> None:
    def ask(**more: Any) -> str | None:
        found: ChatCompletion = client.chat.completions.create(
            model="plain", messages=question(), max_tokens=12, temperature=1.0, top_p=0.9, **more
        )
        return found.choices[0].message.content

    decoding = DecodingRecipe(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=7)
    assert ask(seed=7) == ask(seed=7) == wanted(stacks, "plain", NOTE, decoding)[0].text
    assert len({ask(seed=seed) for seed in (8, -1, 2**40)} | {ask(), ask()}) == 5


def test_a_stop_ends_the_answer(client: OpenAI, stacks: dict[str, Path]) -> None:
    whole = wanted(stacks, "plain", NOTE, DecodingRecipe(max_new_tokens=20))[0].text
    stop = whole[4:6]
    for stream in (False, True):
        found: Any = client.chat.completions.create(
            model="plain", messages=question(), max_tokens=20, stop=[stop, "zebra"], stream=stream
        )
        if stream:
            parts = [chunk.choices[0] for chunk in found]
            text, reason = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
        else:
            text, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(stop)].rstrip(), "stop")


def test_tokens_are_counted_by_model(client: OpenAI, raw: httpx2.Client, url: str) -> None:
    def counted(kind: str) -> float:
        text = raw.get(f"{url}/metrics").text
        assert "clinstack_answers_open 0.0" in text
        found = re.search(rf'clinstack_answer_tokens_total{{kind="{kind}",model="clinical:base"}} (\S+)', text)
        return float(found.group(1)) if found else 0.0

    read, written = counted("read"), counted("written")
    usage: Any = client.chat.completions.create(model="clinical:base", messages=question(), max_tokens=5).usage
    assert (counted("read") - read, counted("written") - written) == (usage.prompt_tokens, usage.completion_tokens)


def test_the_models_are_listed(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} >= {"plain", "plain:base", "clinical", "alone"}


# ---------------------------------------------------------------------- what is refused


def test_a_wrong_token(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="sk-something-else-entirely", max_retries=0) as stranger:
        with pytest.raises(AuthenticationError) as caught:
            stranger.chat.completions.create(model="plain", messages=question())
        assert caught.value.status_code == 401


@pytest.mark.parametrize("model", ["gpt-4", "plain:chat", ":base", "mortality", "mortality:base"])
def test_unknown_models(client: OpenAI, model: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model=model, messages=question())
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("reasoning_effort", "high"),
        ("max_tokens", MAX_TOKENS),
        ("max_completion_tokens", 10_000),
        ("top_p", 0.5),
        ("stream_options", {"include_usage": True}),
        ("top_k", 5),
    ],
)
def test_what_would_change_the_answer_is_refused(client: OpenAI, param: str, value: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="plain", messages=question(), extra_body={param: value})
    assert caught.value.param == param
    assert param in caught.value.message


def test_an_unknown_parameter_is_refused_and_not_repeated(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="plain", messages=question(), extra_body={CANARY: 1})
    assert CANARY not in caught.value.message


def test_what_changes_nothing_is_taken(client: OpenAI, stacks: dict[str, Path]) -> None:
    found = client.chat.completions.create(
        model="plain",
        messages=[{"role": "user", "content": [{"type": "text", "text": f"{NOTE}\n\n{QUESTION}"}], "name": "someone"}],
        max_tokens=8,
        n=1,
        temperature=0,
        top_p=0.5,
        logprobs=False,
        presence_penalty=0,
        response_format={"type": "text"},
        tool_choice="none",
        user="someone",
        store=False,
        metadata={"a": "b"},
    )
    assert found.choices[0].message.content == wanted(stacks, "plain", NOTE, DecodingRecipe(max_new_tokens=8))[0].text


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": None}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": f"<note>{'a ' * 3000}</note> why?"}],
    ],
)
def test_messages_that_are_none(client: OpenAI, messages: Any) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(model="plain", messages=messages)
    assert caught.value.status_code == 422
    assert str(caught.value.param).startswith("messages")


def test_a_question_that_does_not_fit(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"the question and what stands around it have \d+ tokens") as caught:
        client.chat.completions.create(model="plain", messages=question(text=f"{CANARY} " * 50), max_tokens=20)
    assert CANARY not in caught.value.message


def test_no_text_is_kept(
    stacks: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError(f"a library says {CANARY}")

    with (
        caplog.at_level(logging.DEBUG),
        served(SharedBase.open(stacks), settings_of(stacks, tmp_path)) as address,
        OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as opened,
    ):
        for stream in (False, True):
            found: Any = opened.chat.completions.create(
                model="plain", messages=question(CANARY), max_tokens=8, stream=stream
            )
            list(found)
        with pytest.raises(APIStatusError):
            opened.chat.completions.create(model="plain", messages=[{"role": "assistant", "content": CANARY}])
        monkeypatch.setattr(Lane, "read", broken)
        with pytest.raises(APIStatusError) as caught:
            opened.chat.completions.create(model="plain", messages=question(CANARY))
        assert caught.value.status_code == 500
        assert CANARY not in caught.value.message
        monkeypatch.undo()
        # The decoder began anew.
        assert opened.chat.completions.create(model="plain", messages=question(), max_tokens=8).choices
    kept = (tmp_path / "audit.jsonl").read_text(encoding="utf-8")
    ours = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("openai", "httpx", "httpcore"))
    ]
    assert any("decoding failed" in line for line in ours)
    assert CANARY not in kept + "".join(ours)
    asked = [line for line in map(json.loads, kept.splitlines()) if line["endpoint"].endswith("completions")]
    assert [line["status"] for line in asked] == [200, 200, 400, 500, 200]
    assert asked[0]["tasks"] == ["plain"]
    assert asked[0]["tokens"] == asked[1]["tokens"] > 8


# ---------------------------------------------------------------------- clients that leave, and too many of them


@dataclass
class Slow:
    """A server whose model takes its time, with room for one answer and one that waits."""

    url: str
    chat: ChatQueue

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def slow(
    stacks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Slow]:
    made: list[ChatQueue] = []
    forward = Lane.forward

    def sleepy(self: Lane, *arguments: Any) -> Any:
        time.sleep(0.02)
        return forward(self, *arguments)

    def kept(*arguments: Any) -> ChatQueue:
        made.append(ChatQueue(*arguments))
        return made[0]

    monkeypatch.setattr(Lane, "forward", sleepy)
    monkeypatch.setattr(chat_api, "ChatQueue", kept)
    monkeypatch.setattr(chat_api, "ChatLimits", lambda: ChatLimits(max_rows=1, max_waiting=1))
    only = {"plain": stacks["plain"]}
    chosen = settings_of(
        only, tmp_path, timeout_s=getattr(request, "param", 30.0), stacks_root=str(stacks["plain"].parent)
    )
    with served(SharedBase.open(only), chosen) as address:
        yield Slow(address, made[0])


async def reached(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def waits(chat: ChatQueue, count: int) -> bool:
    return chat.waiting == count


def only_answer(slow: Slow) -> Answer:
    (stream,) = slow.chat._streams  # what a client cannot see: whether the row was given up or written to its end
    assert stream.answer is not None
    return stream.answer


def test_who_goes_away_frees_the_row(slow: Slow) -> None:
    with slow.client() as opened:
        stream = opened.chat.completions.create(model="plain", messages=question(), max_tokens=120, stream=True)
        next(iter(stream))
        left = only_answer(slow)
        stream.close()
        assert opened.chat.completions.create(model="plain", messages=question(), max_tokens=4).choices
        assert left.finish == "cancelled"


def test_who_goes_away_without_a_stream_too(slow: Slow) -> None:
    async def leave() -> Answer:
        async with AsyncOpenAI(base_url=f"{slow.url}/v1", api_key=TOKEN, max_retries=0) as opened:
            task = asyncio.create_task(
                opened.chat.completions.create(model="plain", messages=question(), max_tokens=120)
            )
            await reached(lambda: slow.chat.open_answers == 1 and not slow.chat.waiting)
            task.cancel()
            return only_answer(slow)

    left = asyncio.run(leave())
    asyncio.run(reached(lambda: left.finish is not None))
    assert left.finish == "cancelled"
    assert slow.chat.open_answers == 0


@pytest.mark.parametrize("slow", [1.0], indirect=True, ids=["a second"])
def test_too_many_are_told_to_come_back(slow: Slow) -> None:
    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{slow.url}/v1", api_key=TOKEN, max_retries=0) as opened:
            answers = []
            for expected in (0, 1, 1):
                answers.append(
                    asyncio.create_task(
                        opened.chat.completions.create(model="plain", messages=question(), max_tokens=120)
                    )
                )
                await reached(lambda: slow.chat.open_answers >= min(len(answers), 2))
                await reached(partial(waits, slow.chat, expected))
            return await asyncio.gather(*answers, return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert first.choices[0].message.content
    # It waited longer than this server lets anybody wait for the first word.
    assert isinstance(second, APIStatusError)
    assert second.status_code == 504
    assert isinstance(third, RateLimitError)
    assert int(third.response.headers["retry-after"]) >= 1


def test_a_failure_in_a_stream_is_an_error_of_the_client(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError(f"a library says {CANARY}")

    with slow.client() as opened:
        stream = opened.chat.completions.create(model="plain", messages=question(), max_tokens=120, stream=True)
        parts = iter(stream)
        next(parts)
        monkeypatch.setattr(Lane, "forward", broken)
        with pytest.raises(APIError, match="broken off: The model failed") as caught:
            list(parts)
        assert CANARY not in caught.value.message


def test_a_stack_that_is_taken_away_finishes_its_answers(slow: Slow, stacks: dict[str, Path]) -> None:
    with slow.client() as opened:
        stream = opened.chat.completions.create(model="plain", messages=question(), max_tokens=40, stream=True)
        parts = [next(iter(stream))]
        opened.delete("/stacks/plain", cast_to=object)  # answers when the stack has gone
        parts += list(stream)
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == wanted(stacks, "plain", NOTE, DecodingRecipe(max_new_tokens=40))[0].text
        with pytest.raises(NotFoundError):
            opened.chat.completions.create(model="plain", messages=question())


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_finishes_its_answers(stacks: dict[str, Path], tmp_path: Path) -> None:
    arguments = [part for name in ("plain", "alone") for part in ("--name", f"{name}={stacks[name]}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "clinstack", "serve", *arguments, "--port", "0", "--state", str(tmp_path / "state")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "CLINSTACK_TOKEN": TOKEN},
    )
    try:
        assert process.stderr is not None
        address = next(
            found for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line))
        ).group()
        texts = asyncio.run(stopped_amid_answers(address, process))
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    for (model, most), text in texts.items():
        assert text == wanted(stacks, model, NOTE, DecodingRecipe(max_new_tokens=most))[0].text


async def stopped_amid_answers(address: str, process: subprocess.Popen[str]) -> dict[tuple[str, int], str]:
    """Ask for many answers, end the server when the first word of each has come, and return the answers."""
    wants = [(model, most) for most in (100, 120) for model in ("plain", "alone", "plain:base")]
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as opened:
        streams = [
            await opened.chat.completions.create(model=model, messages=question(), max_tokens=most, stream=True)
            for model, most in wants
        ]
        process.send_signal(signal.SIGTERM)
        texts = {}
        for want, stream in zip(wants, streams, strict=True):
            parts = [part.choices[0] async for part in stream]
            assert parts[-1].finish_reason in ("stop", "length")
            texts[want] = "".join(part.delta.content or "" for part in parts)
    return texts


# ---------------------------------------------------------------------- messages


def read(*messages: tuple[str, str], note: str | None = None) -> Conversation:
    return read_messages([ChatMessage.model_validate({"role": role, "content": text}) for role, text in messages], note)


def test_notes_and_questions_are_found() -> None:
    marked = "<note>\nA.\n\nB.\n</note>\nWhy?"
    assert read(("user", marked)) == Conversation("A.\n\nB.", "Why?", 0)
    assert read(("user", "Why? <note>A.</note>")) == Conversation("A.", "Why?", 0)
    assert read(("system", "<note>A.</note>"), ("user", "Why?\n\nSay it.")) == Conversation("A.", "Why?\n\nSay it.", 0)
    assert read(("user", "A.\n\nB.\n \nWhy?")) == Conversation("A.\n\nB.", "Why?", 0)
    assert read(("user", "Why?")) == Conversation("", "Why?", 0)
    assert read(("user", "Why?\n\nSay it."), note="A.") == Conversation("A.", "Why?\n\nSay it.", 0)
    # A note may quote the marks; one in an answer is none.
    assert read(("user", "<note>A <note>x</note> B</note> Why?")) == Conversation("A <note>x</note> B", "Why?", 0)
    assert read(("user", marked), ("assistant", "<note>"), ("user", "And?")) == Conversation("A.\n\nB.", "And?", 2)


def test_the_last_note_stands_and_earlier_turns_are_not_read() -> None:
    first, second = "<note>A.</note> Why?", "<note>B.</note> And now?"
    assert read(("user", first), ("assistant", "So."), ("user", second)) == Conversation("B.", "And now?", 2)
    assert read(("user", "A.\n\nWhy?"), ("assistant", "So.\n\nSo."), ("user", "And?")) == Conversation("A.", "And?", 2)
    assert read(("user", "<note>A.</note>"), ("user", "Why?")) == Conversation("A.", "Why?", 0)


@pytest.mark.parametrize(
    ("messages", "note", "param"),
    [
        ([("user", "Why?"), ("assistant", "So.")], None, "messages"),
        ([("user", "<note>A. Why?")], None, "messages.0"),
        ([("user", "A.</note> Why? <note>")], None, "messages.0"),
        ([("system", "You are a poet."), ("user", "Why?")], None, "messages.0"),
        ([("developer", "Rhyme. <note>A.</note>"), ("user", "Why?")], None, "messages.0"),
        ([("user", "Hello"), ("user", "<note>A.</note>\n")], None, "messages.1"),
        ([("user", "<note>A.</note> Why?")], "B.", "note"),
    ],
)
def test_messages_that_cannot_be_read(messages: list[tuple[str, str]], note: str | None, param: str) -> None:
    with pytest.raises(MessageError) as caught:
        read(*messages, note=note)
    assert caught.value.param == param


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("sentences", [2, 40])
def test_prompts_are_those_of_generate(tiny_base: Path, chat: bool, sentences: int) -> None:
    tokenizer = Stack.build(str(tiny_base)).tokenizer
    prompt = Prompt(PROMPT.template, "Be brief.", PROMPT.cue, CHAT_TEMPLATE if chat else None)
    note = long_note(sentences)
    encoded = encode_prompts(tokenizer, prompt, [note], ["Why?"], 500 - 60)
    found = QuestionEncoder(tokenizer).encode(prompt, note, "Why?", 500, 60)
    assert list(found.ids) == encoded.ids[0]
    assert found.cut == encoded.report["cut"]
    assert list(found.ends) == prompt.end_tokens(tokenizer)
    assert (found.cut > 0) == (sentences == 40)
    with pytest.raises(InputError, match="reads and writes 70 together, of which 60 are for the answer"):
        QuestionEncoder(tokenizer).encode(prompt, note, "Why?", 70, 60)


_TEXTS = st.text(alphabet="<note>/ a\n?\u00e9\x00", max_size=40) | st.just("<note>a</note> why?")
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "seed": st.integers(-(2**64), 2**64),
    "stop": st.text(max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=5),
    "stream": st.booleans(),
    "note": _TEXTS,
    "n": st.sampled_from([1, 1.0, True, 2]),
    "user": st.text(max_size=5),
}
_BODIES = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["plain", "clinical:base", "alone"]),
        "max_tokens": st.integers(1, 4),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": _TEXTS}),
            max_size=2,
        ).map(lambda messages: [*messages, {"role": "user", "content": "why?"}]),
    },
    optional={name: st.none() | values for name, values in _VALUES.items()},
)


@pytest.fixture(scope="module")
def raw(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{url}/v1", headers=BEARER, timeout=60) as opened:
        yield opened


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=_BODIES)
def test_whatever_is_sent_is_answered_or_refused(raw: httpx2.Client, body: dict[str, Any]) -> None:
    answer = raw.post("/chat/completions", json=body)
    event(str(answer.status_code))
    assert answer.status_code in (200, 400, 422)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"type", "message", "param", "code"}
    elif not body.get("stream"):
        assert answer.json()["usage"]["completion_tokens"] <= body["max_tokens"]
    else:
        assert answer.text.endswith("data: [DONE]\n\n")
