"""Synthesis over process borders: servers and clients that are killed, control-C, and `transformers serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clinstack.synthesize.instructions import synthesize_instructions
from clinstack.synthesize.plan import store_of
from clinstack.synthesize.seeds import request_seed
from scripted_server import MODEL, ScriptedServer
from test_synthesize import CANARY, instructions_recipe, rows_of, write_notes

HERE = Path(__file__).parent
CONCURRENCY = 4


@contextmanager
def process(arguments: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end if it still runs."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            # Tests that were started in the background of a shell hand on that Control-C is ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {seconds} s")


def stored(store: Path) -> list[str]:
    """The keys of the replies in a store that another process may be writing."""
    if not store.exists():
        return []
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        try:
            return [key for (key,) in connection.execute("SELECT key FROM replies")]
        except sqlite3.OperationalError:  # no table yet
            return []


def client(notes: Path, out: Path, port: int, *more: str) -> list[str]:
    return [
        "-m", "clinstack", "synthesize", "instructions", str(notes), "--out", str(out), "lag=4",
        f"endpoint.base_url=http://127.0.0.1:{port}/v1", f"endpoint.model={MODEL}",
        f"endpoint.concurrency={CONCURRENCY}", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_kills_on_both_sides_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    notes, out, ledger, ready = tmp_path / "notes", tmp_path / "out", tmp_path / "ledger", tmp_path / "ready"
    write_notes(notes, 64)
    troubles = ["--troubles", "429,500,reset,broken,empty,hang", "--share", "0.3", "--delay", "0.05", "--hang", "2"]
    server = [str(HERE / "scripted_server.py"), str(ledger), str(ready), *troubles]
    healing = ["endpoint.timeout=1", "endpoint.backoff=0.2", "endpoint.retries=8"]
    store, kills = store_of(out), 0

    with process(server, tmp_path / "server.log"):
        port = int(wait_for(lambda: ready.exists() and ready.read_text(), 20, "the server"))
        with process(client(notes, out, port, *healing), tmp_path / "client.log") as killed:
            wait_for(lambda: len(stored(store)) >= 15, 60, "the first replies")
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        kills += 1
        at_kill = stored(store)
        assert 15 <= len(at_kill) < 128
        assert not out.exists()
    kills += 1  # the server, killed with what it was at

    again = [*server[:3], "--port", str(port), *server[3:]]
    with (
        process(again, tmp_path / "server.log") as first,
        process(client(notes, out, port, *healing), tmp_path / "client.log") as lasting,
    ):
        wait_for(lambda: len(stored(store)) >= len(at_kill) + 15, 60, "further replies")
        first.kill()
        first.wait()
        kills += 1
        time.sleep(0.3)
        with process(again, tmp_path / "server.log"):
            assert lasting.wait(120) == 0, (tmp_path / "client.log").read_text()

    rows = rows_of(out)
    assert len(rows) == 64
    keys = stored(store)
    assert len(keys) == len(set(keys)) == 128
    paid = Counter(ledger.read_text().split())
    # What was in the store when the client was killed was paid once, whatever came after.
    assert {paid[str(request_seed(0, key))] for key in at_kill} == {1}
    assert set(paid) == {str(request_seed(0, key)) for key in keys}
    # Twice only what was on its way when a side was killed: no client can know that it was answered.
    assert paid.total() - len(paid) <= kills * CONCURRENCY
    # And the same rows as without any trouble.
    with ScriptedServer(tmp_path / "calm") as calm:
        synthesize_instructions(notes, tmp_path / "calm-out", instructions_recipe(calm, lag=4))
    assert rows_of(tmp_path / "calm-out") == rows
    assert CANARY not in (tmp_path / "client.log").read_text()


def test_control_c_ends_with_one_line(tmp_path: Path) -> None:
    notes, out = tmp_path / "notes", tmp_path / "out"
    write_notes(notes, 16)
    log = tmp_path / "client.log"
    with ScriptedServer(tmp_path / "ledger", ["hang"], share=0.3, times=-1, hang=60) as server:
        port = server.server_address[1]
        with process(client(notes, out, port), log) as started:
            wait_for(lambda: server.met["hang"] >= 1 and server.ledger.exists(), 60, "a hanging request")
            started.send_signal(signal.SIGINT)
            assert started.wait(20) == 130
        assert len(stored(store_of(out))) == len(server.ledger.read_text().split())
    said = log.read_text()
    assert said.rstrip().splitlines()[-1].startswith("Interrupted. The same command goes on")
    assert "Traceback" not in said
    assert CANARY not in said
    assert not out.exists()


def write_chat_model(folder: Path) -> None:
    """A random Llama of two layers with the embedded tokenizer and a chat template, which ends after some words."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import clinstack.model

    tokenizer = AutoTokenizer.from_pretrained(Path(clinstack.model.__file__).parent / "embedded")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Else one token in 4,096 would end an answer: all would be cut off.
        model.lm_head.weight[tokenizer.eos_token_id] *= 18
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_transformers_serve_killed_and_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_chat_model(folder)
    notes, out = tmp_path / "notes", tmp_path / "out"
    write_notes(notes, 12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [
        "-c", "from transformers.cli.transformers import main; main()",
        "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
    ]  # fmt: skip
    log = tmp_path / "serve.log"

    def listens() -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    store = store_of(out)
    command = client(
        notes, out, port, f"endpoint.model={folder}", "endpoint.retries=12", "endpoint.timeout=60",
        "gates.grounding=false", "gates.phrases=false", "gates.max_question_words=300", "gates.min_question_words=1",
    )  # fmt: skip
    home = {"HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    with process(serve, log, **home) as first:
        wait_for(lambda: listens() or first.poll() is not None, 180, "transformers serve")
        assert first.poll() is None, log.read_text()
        with process(command, tmp_path / "client.log") as asking:
            wait_for(lambda: len(stored(store)) >= 4, 120, "the first replies")
            first.kill()
            first.wait()
            before = stored(store)
            assert len(before) < 24
            with process(serve, log, **home):
                assert asking.wait(300) == 0, (tmp_path / "client.log").read_text()
    keys = stored(store)
    assert len(keys) == len(set(keys))
    assert set(before) <= set(keys)
    assert sum(key.endswith("/question") for key in keys) == 12
    rows = rows_of(out)
    facts = json.loads((out / "prepare.json").read_text())
    assert facts["complete"] is True
    assert facts["endpoint"]["requests"]["retried"]
    assert len(rows) >= 3
    # The server says which revision of the model it is.
    assert {row["model"] for row in rows} == {f"{folder}@main"}
    assert pq.read_table(out / "splits.parquet").num_rows >= 2
