"""Small instruction stacks, and a real server of them on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import uvicorn

from clinstack.engine.generation import Generated, generate
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, DecodingRecipe
from clinstack.serve.settings import ServeSettings
from clinstack.serve.shared_base import SharedBase
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt, encode_prompts
from methods import new
from tiny_serving import app_of

PROMPT = Prompt("{note}\nQ: {question}", None, "\nA:")
MAX_TOKENS = 180
NOTE = "the patient was admitted with chest pain"
LONG_NOTE = " and then ".join(f"on day {day} there was chest pain" for day in range(20))
QUESTION = "why?"


def save_chat_stacks(folder: Path, base: Path, clinical: Path) -> dict[str, Path]:
    """Save three instruction stacks, of which one cannot share its base, and a classifier."""
    below = AdapterRecipe(name="clinical", path=str(clinical))
    specs = {
        "plain": [new("lora")],
        "clinical": [below, AdapterRecipe(name="task", rank=2, alpha=4)],
        "alone": [new("dora")],
        "mortality": [below, AdapterRecipe(name="task", rank=2, alpha=4)],
    }
    result = {}
    for number, (name, adapters) in enumerate(specs.items()):
        task = Task("mortality", "binary", ("survived", "died")) if name == "mortality" else None
        stack = Stack.build(str(base), adapters, task)
        generator = torch.Generator().manual_seed(number + 1)
        with torch.no_grad():
            for parameter in stack.trainable_parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if task is None:
            stack.prompt, stack.max_tokens = PROMPT, MAX_TOKENS
        stack.save(folder / name)
        result[name] = folder / name
    return result


@cache
def _loaded(folder: Path) -> Stack:
    return Stack.load(folder)


def offline(
    folder: Path, note: str, question: str, decoding: DecodingRecipe, *, untouched: bool = False
) -> tuple[Generated, list[int], int]:
    """Return the answer that `clinstack generate` gives, its prompt, and the tokens that the note lost."""
    stack = _loaded(folder)
    assert stack.prompt is not None
    room = stack.max_tokens - decoding.max_new_tokens
    encoded = encode_prompts(stack.tokenizer, stack.prompt, [note], [question], room)
    if untouched:
        with stack.switched_off():
            answer = generate(stack, encoded.ids, decoding, None)[0]
    else:
        answer = generate(stack, encoded.ids, decoding, None)[0]
    return answer, encoded.ids[0], encoded.report["cut"]


@contextmanager
def served(shared: SharedBase, settings: ServeSettings) -> Iterator[str]:
    """Run a server on a free port of loopback, and yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(app_of(shared, settings), port=0, log_config=None, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
