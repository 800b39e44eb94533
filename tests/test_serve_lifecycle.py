"""`clinstack serve` as a process of its own: it answers what the stacks say, refuses, and ends with what it took."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from rich.console import Console

from clinstack.cli_serve import run_server, show_start
from clinstack.errors import InputError
from clinstack.files import write_json
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.serve.app import create_app
from clinstack.serve.found import find_stacks
from clinstack.serve.queue import RequestQueue
from clinstack.serve.security import Gate
from clinstack.serve.server import Server, Started, listening_socket, log_to_stderr
from clinstack.serve.shared_base import SharedBase
from clinstack.tasks import Task
from clinstack.tokens.texts import encode_texts
from tiny_serving import CANARY, settings_of

STARTS_IN = 90.0
"""Seconds; a machine with other work takes its time to import torch."""
LAST_LINE = "not a medical device"
"""Of what the server prints before it waits for requests."""
LONG_NOTE = "the patient was admitted with chest pain and shortness of breath " * 12


@pytest.fixture(scope="module")
def stacks(
    tiny_base: Path, clinical: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of Runs as a study leaves them: two stacks of one task, one of another, one that is not finished."""
    root = tmp_path_factory.mktemp("runs")
    task = AdapterRecipe(name="task", rank=2, alpha=4)
    frozen = AdapterRecipe(name="clinical", path=str(clinical))
    for name, label, adapters, classes in (
        ("mortality", "lora", [task], ("survived", "died")),
        ("mortality", "clinical-frozen+lora", [frozen, task], ("survived", "died")),
        ("stay", "clinical-frozen+lora", [frozen, task], ("short", "long")),
    ):
        run = root / name / label
        stack = perturbed(Stack.build(str(tiny_base), adapters, Task(name, "binary", classes)))
        stack.reading = Reading(max_tokens=200)
        stack.save(run / "stack")
        write_json(run / "run.json", {"status": "done", "stage": "finetune", "label": label, "synthetic": True})
    write_json(root / "stay" / "lora" / "run.json", {"status": "running", "label": "lora"})
    return root


class Served:
    """A server process, and what it wrote to its terminal."""

    def __init__(self, process: subprocess.Popen[str], state: Path) -> None:
        self.process, self.state = process, state
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_started(self) -> None:
        end = time.monotonic() + STARTS_IN
        while time.monotonic() < end:
            found = re.search(r"http://\S+?:\d+", self.text)
            if found and LAST_LINE in self.text:
                self.url = found.group()
                return
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        raise AssertionError(self.text)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def client(self) -> httpx2.Client:
        token = (self.state / "token").read_text().strip()
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def ends(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextmanager
def serving(state: Path, *arguments: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "clinstack", "serve", "--port", "0", "--threads", "1", "--state", str(state)]
    command += ["--timeout-s", "300"]  # nothing is refused because the machine has other work
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CLINSTACK_TOKEN": ""},
    )
    served = Served(process, state)
    try:
        yield served
    finally:
        process.kill()
        process.wait()


def offline(folder: Path, text: str) -> list[float]:
    stack = Stack.load(folder)
    (piece,) = encode_texts(stack.tokenizer, stack.reading, [text]).pieces
    with torch.no_grad():
        logits = stack.logits(torch.tensor(piece)[None], torch.ones(1, len(piece), dtype=torch.int64))
    return [float(value) for value in logits[0]]


def test_a_life(stacks: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    label = "clinical-frozen+lora"
    with serving(state, str(stacks), "--stack", label, "--stacks-root", str(stacks), "--ui") as served:
        served.wait_started()
        client = served.client
        # What a person sees, without the token: this is no terminal.
        token = (state / "token").read_text().strip()
        assert token not in served.text
        assert stat.S_IMODE((state / "token").stat().st_mode) == 0o600
        for words in ("mortality", "stay", label):
            assert words in served.text, served.text
        assert httpx2.get(f"{served.url}/readyz").json() == {"status": "ready"}
        assert httpx2.get(f"{served.url}/v1/tasks").status_code == 401
        page = httpx2.get(served.url)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "server" not in page.headers

        # The scores of the stacks.
        answer = client.post("/v1/predict", json={"note": f"{CANARY} with chest pain"})
        assert answer.status_code == 200
        for name, given in answer.json()["predictions"][0]["tasks"].items():
            wanted = offline(stacks / name / label, f"{CANARY} with chest pain")
            np.testing.assert_allclose([part["logit"] for part in given["classes"]], wanted, atol=1e-4)
        assert {item["synthetic"] for item in client.get("/v1/tasks").json()["tasks"]} == {True}

        refuses_a_large_body(served, token)
        stacks_come_and_go(client)
        stopped_in_the_middle(served, client, stacks / "mortality" / label)
        log = served.text + "".join(path.read_text() for path in sorted(state.glob("audit*")))
        assert not any(word in log for word in CANARY.split())
        assert token not in log
        assert "Traceback" not in log


def refuses_a_large_body(served: Served, token: str) -> None:
    """100 MB are refused when no more than the head of the request has been sent."""
    host, port = served.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(4000)
    assert answer.startswith(b"HTTP/1.1 413"), answer

    # And when a client sends on and on without saying how much: it is cut off after a little more than the limit.
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 65_536
            yield b"x" * 65_536

    try:
        refused = httpx2.post(
            f"{served.url}/v1/predict", content=endless(), headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        assert refused.status_code == 413
    except httpx2.TransportError:
        pass  # the connection was closed while the client was still sending
    # The sockets' buffers hold a few megabytes beyond the limit of 2.
    assert sent < 20_000_000


def stacks_come_and_go(client: httpx2.Client) -> None:
    """While others ask, a stack is added and removed, and no request is dropped."""
    over = threading.Event()

    def ask() -> list[int]:
        statuses = []
        while not over.is_set():
            statuses.append(client.post("/v1/predict", json={"note": LONG_NOTE, "tasks": ["stay"]}).status_code)
        return statuses

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for _ in range(3):
            added = client.put("/v1/stacks/second", json={"folder": "mortality/lora"})
            assert added.status_code == 201, added.text
            assert client.post("/v1/predict", json={"note": "x", "tasks": ["second"]}).status_code == 200
            assert client.delete("/v1/stacks/second").status_code == 204
        over.set()
        statuses = [status for future in asking for status in future.result()]
    assert len(statuses) > 3
    assert set(statuses) == {200}


def stopped_in_the_middle(served: Served, client: httpx2.Client, folder: Path) -> None:
    """SIGTERM while requests are being answered: all of them are, new ones get 503, and the process ends with 0."""
    wanted = offline(folder, LONG_NOTE)
    body = {"notes": [LONG_NOTE] * 64, "tasks": ["mortality"]}
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(lambda: client.post("/v1/predict", json=body)) for _ in range(8)]
        wait_until(lambda: in_flight(client) >= 4)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in served.text)
        answers = [request.result() for request in requests]
    # What came before the signal was taken; 503 tells what came after that it was not.
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 4
    for answer in answers:
        for item in answer.json().get("predictions", []):
            given = [part["logit"] for part in item["tasks"]["mortality"]["classes"]]
            np.testing.assert_allclose(given, wanted, atol=1e-4)
    assert served.ends() == 0, served.text
    assert re.search(r"stopping: [1-8] requests are being finished", served.text)


def in_flight(client: httpx2.Client) -> int:
    """Return how many requests are being answered beside the one that asks."""
    found = re.search(r"^clinstack_in_flight ([0-9.]+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return int(float(found.group(1))) - 1


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_what_is_not_finished_in_time_is_refused(stacks: Path, tmp_path: Path) -> None:
    run = stacks / "mortality" / "lora"
    with serving(tmp_path / "state", str(run), "--drain-s", "0.1") as served:
        served.wait_started()
        client = served.client
        body = {"notes": [LONG_NOTE] * 64}
        with ThreadPoolExecutor(16) as pool:
            requests = [pool.submit(lambda: client.post("/v1/predict", json=body)) for _ in range(16)]
            wait_until(lambda: in_flight(client) >= 4)
            served.process.send_signal(signal.SIGINT)
            statuses = [request.result().status_code for request in requests]
        assert set(statuses) <= {200, 503}
        assert 503 in statuses
        assert served.ends() == 1, served.text
        assert "were not finished within 0.1 seconds" in served.text


@pytest.mark.slow
def test_a_second_signal_ends_at_once(stacks: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "state", str(stacks / "mortality" / "lora")) as served:
        served.wait_started()
        client = served.client
        with ThreadPoolExecutor(16) as pool:
            requests = [
                pool.submit(lambda: client.post("/v1/predict", json={"notes": [LONG_NOTE] * 64})) for _ in range(16)
            ]
            wait_until(lambda: in_flight(client) >= 4)
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "stopping" in served.text)
            served.process.send_signal(signal.SIGTERM)
            assert served.ends() == 128 + signal.SIGTERM
            assert any(isinstance(request.exception(), httpx2.TransportError) for request in requests)


# ---------------------------------------------------------------------- what the command line names


def test_stacks_are_found_by_task_and_label(stacks: Path, clinical: Path, tmp_path: Path) -> None:
    label = "clinical-frozen+lora"
    assert find_stacks([stacks], labels=[label]) == {
        "mortality": stacks / "mortality" / label,
        "stay": stacks / "stay" / label,
    }
    assert find_stacks([stacks / "mortality" / "lora" / "stack"]) == {"mortality": stacks / "mortality/lora/stack"}
    second = f"second={stacks / 'mortality' / 'lora'}"
    assert list(find_stacks([stacks], [second], [label])) == ["second", "mortality", "stay"]
    with pytest.raises(InputError, match=r"mortality: 2 stacks .*clinical-frozen\+lora, lora.*--stack.*--name"):
        find_stacks([stacks])
    with pytest.raises(InputError, match="mortality: 2 stacks"):
        find_stacks([stacks / "mortality" / "lora"], [f"mortality={stacks / 'mortality' / label}"])
    with pytest.raises(InputError, match="no stack with the label dora; there are"):
        find_stacks([stacks], labels=["dora"])
    with pytest.raises(InputError, match="is not finished"):
        find_stacks([stacks / "stay" / "lora"])
    with pytest.raises(InputError, match="not tuned on instructions"):
        find_stacks([clinical])
    with pytest.raises(InputError, match="no finished Run"):
        find_stacks([tmp_path])
    with pytest.raises(InputError, match="is no folder"):
        find_stacks([tmp_path / "absent"])
    with pytest.raises(InputError, match="NAME=FOLDER"):
        find_stacks([], ["mortality"])


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_of({"mortality": tmp_path}, tmp_path, port=taken.getsockname()[1])
        with pytest.raises(InputError, match="--port"), listening_socket(settings):
            pass


def test_a_server_whose_model_ended_ends(stacks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of({"mortality": stacks / "mortality" / "lora"}, tmp_path, port=0)
    queue = RequestQueue(SharedBase.open(settings.stacks), settings)
    monkeypatch.setattr(RequestQueue, "is_working", property(lambda self: False))
    gate = Gate()
    app = create_app(queue, settings, token="a-token-for-this-test", gate=gate)
    with listening_socket(settings) as listener:
        server = Server(app, settings, gate, queue, lambda: None)
        server.run(sockets=[listener])
    assert server.model_failed
    assert gate.status == "failed"


def test_serving_without_its_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"uvicorn: pip install 'clinstack\[serve\]'"):
        run_server(settings_of({"mortality": tmp_path}, tmp_path))


def test_the_token_is_shown_on_a_terminal_and_once(stacks: Path, tmp_path: Path) -> None:
    settings = settings_of({"mortality": stacks / "mortality" / "lora"}, tmp_path, ui=True)
    shared = SharedBase.open(settings.stacks)

    def shown(token: str | None, *, terminal: bool) -> str:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100, no_color=True)
        show_start(settings, Started("http://127.0.0.1:1", shared, tmp_path / "token", token, 1.0), console)
        written = console.file
        assert isinstance(written, io.StringIO)
        return written.getvalue()

    first = shown("a-new-token-for-the-terminal", terminal=True)
    assert "http://127.0.0.1:1/#token=a-new-token-for-the-terminal" in first
    assert "a-new-token" not in shown("a-new-token-for-the-terminal", terminal=False)
    again = shown(None, terminal=True)
    assert "#token" not in again
    assert str(tmp_path / "token") in again.replace("\n", "")


def test_the_log_has_no_messages_of_exceptions(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that another test started in this process may have given uvicorn handlers of its own.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    # Whose handler comes first, and writes the message.
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [logging.StreamHandler(io.StringIO())])
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        log_to_stderr()
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    written = capfd.readouterr().err
    assert "Exception in ASGI application" in written
    assert "ValueError at test_serve_lifecycle.py" in written
    assert "zebra" not in written
