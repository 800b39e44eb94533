"""Who may ask, how much and how often; and that nothing a server writes holds a word of a note."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import stat
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.serve.failures import ApiError
from clinstack.serve.observe import STRANGERS_PER_MINUTE, Allowance, AuditLog
from clinstack.serve.predict_api import while_connected
from clinstack.serve.queue import RequestQueue
from clinstack.serve.refusals import DeadlineExceeded, QueueFull, RequestTooLarge, ShuttingDown, UnknownStack
from clinstack.serve.security import BodyLimit, Gate, RequestLimit, client_id
from clinstack.serve.server import Server
from clinstack.serve.settings import serve_settings
from clinstack.serve.shared_base import SharedBase
from clinstack.serve.state import read_token, server_token, state_folder
from clinstack.tasks import Task
from tiny_serving import BEARER, CANARY, TOKEN, app_of, client_of, settings_of


@pytest.fixture(scope="module")
def served(tiny_base: Path, mortality: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("security") / "stack"
    Stack.build(str(tiny_base), (), mortality).save(folder)
    return {"mortality": folder}


@pytest.fixture(scope="module")
def shared(served: dict[str, Path]) -> SharedBase:
    return SharedBase.open(served)


@pytest.fixture
def client(shared: SharedBase, served: dict[str, Path], tmp_path: Path) -> Iterator[TestClient]:
    with client_of(shared, settings_of(served, tmp_path, max_body_bytes=2000), raise_server_exceptions=False) as opened:
        yield opened


# ---------------------------------------------------------------------- the token


def test_without_the_token_every_path_answers_the_same(client: TestClient) -> None:
    wanted = {
        "error": {
            "type": "authentication_error",
            "message": "Send the token of this server as Authorization: Bearer.",
            "param": None,
            "code": None,
        }
    }
    sent = ["", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, f"Bearer  {TOKEN}", "Bearer"]
    for path in ("/v1/predict", "/v1/tasks", "/metrics", "/openapi.json", "/nothing", "/", "//healthz"):
        for method, header in product(("GET", "POST", "OPTIONS"), sent):
            answer = client.request(method, path, headers={"Authorization": header})
            assert (answer.status_code, answer.json()) == (401, wanted), (path, method, header)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "allow" not in answer.headers


def test_two_tokens_are_none(client: TestClient) -> None:
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
    client.headers.pop("Authorization")
    assert client.get("/v1/tasks", headers=headers).status_code == 401
    assert client.get("/v1/tasks", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_health_is_open_and_says_nothing(client: TestClient) -> None:
    client.headers.pop("Authorization")
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.post("/healthz").status_code == 401


def test_no_token_answers_to_loopback_names_only(shared: SharedBase, served: dict[str, Path], tmp_path: Path) -> None:
    with client_of(shared, settings_of(served, tmp_path, token=None, no_token=True)) as client:
        for host in ("127.0.0.1:8000", "localhost", "[::1]:8000", "127.0.0.1"):
            assert client.get("/v1/tasks", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example:80", "10.0.0.1", "", "127.0.0.1.evil.example"):
            assert client.get("/v1/tasks", headers={"Host": host}).status_code == 403


def test_the_token_is_generated_once_and_kept_to_its_owner(served: dict[str, Path], tmp_path: Path) -> None:
    settings = settings_of(served, tmp_path / "state", token=None)
    with state_folder(settings.state):
        token, file, is_new = server_token(settings)
        assert file is not None
        assert is_new
        assert token is not None
        assert len(token) >= 43
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(settings.state.stat().st_mode) == 0o700
        assert server_token(settings) == (token, file, False)
        with pytest.raises(InputError, match="another server"), state_folder(settings.state):
            pass
    file.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        server_token(settings)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(InputError, match="16") as raised:
        read_token(file)
    assert "short" not in str(raised.value)
    settings.state.chmod(0o755)
    with pytest.raises(InputError, match="chmod 700"), state_folder(settings.state):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "allow-remote"),
        ({"host": "example.org"}, "allow-remote"),
        ({"host": "::"}, "allow-remote"),
        ({"host": "0.0.0.0", "allow_remote": True, "no_token": True}, "no-token"),
        ({"token": "short"}, "16"),
        ({"token": "spaces in a long token"}, "no space"),
        ({"token": TOKEN, "no_token": True}, "exclude"),
        ({"max_notes": 0}, "--max-notes"),
        ({"stacks": {"a/b": "x"}}, "a/b"),
        ({"stacks": {}}, "name a Stack"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        serve_settings({"stacks": {"mortality": "x"}} | changes)
    assert "spaces in a long token" not in str(raised.value)


def test_settings_do_not_show_the_token() -> None:
    settings = serve_settings({"stacks": {"mortality": "x"}, "token": TOKEN, "host": "::1"})
    assert TOKEN not in repr(settings)
    assert TOKEN not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("trusted", "address"), [((), "127.0.0.1"), (("127.0.0.1",), "10.1.2.3"), (("10.0.0.9",), "127.0.0.1")]
)
def test_a_proxys_word_counts_only_where_it_is_trusted(
    shared: SharedBase, served: dict[str, Path], tmp_path: Path, trusted: tuple[str, ...], address: str
) -> None:
    settings = settings_of(served, tmp_path, trusted_proxies=trusted)
    app = app_of(shared, settings)
    server = Server(app, settings, Gate(), RequestQueue(shared, settings), lambda: None)
    server.config.load()
    scope = scope_of(**{"x-forwarded-for": "10.1.2.3"}) | {"scheme": "http"}
    assert asyncio.run(sent_by(server.config.loaded_app, scope, nothing))[0]["status"] == 401
    assert audit_of(tmp_path)[0]["address"] == address


# ---------------------------------------------------------------------- size, rate, in flight


def scope_of(path: str = "/v1/predict", **headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": raw,
        "client": ("127.0.0.1", 1),
        "clinstack.client": "x",
    }


async def sent_by(app: Any, scope: Scope, receive: Receive) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("it came through")


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    async def receive() -> Message:
        raise AssertionError("it was read")

    scope = scope_of(content_length="100000000")
    messages = asyncio.run(sent_by(BodyLimit(unreachable, max_bytes=2_000_000, seconds=1), scope, receive))
    assert messages[0]["status"] == 413
    assert (b"connection", b"close") in messages[0]["headers"]


def test_a_body_without_length_is_read_up_to_the_limit_only() -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 64_000
        return {"type": "http.request", "body": b"x" * 64_000, "more_body": True}

    limit = BodyLimit(unreachable, max_bytes=2_000_000, seconds=5)
    for scope in (scope_of(transfer_encoding="chunked"), scope_of(content_length="10")):
        read = 0
        assert asyncio.run(sent_by(limit, scope, receive))[0]["status"] == 413
        assert read <= 2_000_000 + 64_000


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    limit = BodyLimit(unreachable, max_bytes=100, seconds=0.05)
    assert asyncio.run(sent_by(limit, scope_of(content_length="10"), receive))[0]["status"] == 408


def test_a_body_within_the_limit_comes_through_whole() -> None:
    parts = [b"a" * 40, b"b" * 60]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        assert message == {"type": "http.request", "body": b"a" * 40 + b"b" * 60, "more_body": False}
        await send({"type": "http.response.start", "status": 204, "headers": []})

    limit = BodyLimit(app, max_bytes=100, seconds=1)
    assert asyncio.run(sent_by(limit, scope_of(), receive))[0]["status"] == 204


def test_body_limit_over_the_api(client: TestClient) -> None:
    answer = client.post("/v1/predict", json={"note": f"{CANARY} " * 200})
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "payload_too_large")
    assert "zebra" not in answer.text


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def test_rate_by_token_and_address() -> None:
    now = 0.0
    limit = RequestLimit(ok, gate=Gate(), max_in_flight=10, requests_per_minute=3, clock=lambda: now)

    def ask(address: str) -> Message:
        scope = scope_of() | {"client": (address, 1)}
        return asyncio.run(sent_by(limit, scope, nothing))[0]

    assert [ask("10.0.0.1")["status"] for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = dict(ask("10.0.0.1")["headers"])
    assert refused[b"retry-after"] == b"20"
    assert ask("10.0.0.2")["status"] == 200
    now = 20.0
    assert [ask("10.0.0.1")["status"] for _ in range(2)] == [200, 429]
    now = 1000.0
    assert [ask("10.0.0.1")["status"] for _ in range(4)] == [200, 200, 200, 429]


def test_what_is_in_flight_is_bounded_and_what_is_stopping_refuses() -> None:
    async def check() -> None:
        gate, release = Gate(), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await ok(scope, receive, send)

        limit = RequestLimit(slow, gate=gate, max_in_flight=2, requests_per_minute=0)
        two = [asyncio.create_task(sent_by(limit, scope_of(), nothing)) for _ in range(2)]
        await asyncio.sleep(0)
        assert gate.in_flight == 2
        third = (await sent_by(limit, scope_of(), nothing))[0]
        assert (third["status"], dict(third["headers"])[b"retry-after"]) == (429, b"1")
        gate.status = "draining"
        assert (await sent_by(limit, scope_of(), nothing))[0]["status"] == 503
        assert not await gate.wait_idle(0.01)
        release.set()
        assert await gate.wait_idle(1)
        assert [(await task)[0]["status"] for task in two] == [200, 200]

    asyncio.run(check())


def test_readiness_follows_the_gate(client: TestClient) -> None:
    client.app.state.gate.status = "draining"  # type: ignore[attr-defined]
    assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"status": "draining"})
    assert client.get("/healthz").status_code == 200
    refused = client.get("/v1/tasks")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("error", "status", "wait"),
    [
        (QueueFull(2.2), 429, "3"),
        (RequestTooLarge(10, 5), 413, None),
        (DeadlineExceeded(), 504, None),
        (ShuttingDown(), 503, "5"),
        (UnknownStack(CANARY), 404, None),
        (ValueError(CANARY), 500, None),
    ],
)
def test_what_the_queue_refuses(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, wait: str | None
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(RequestQueue, "classify", refuse)
    answer = client.post("/v1/predict", json={"note": "x"})
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, wait)
    assert "zebra" not in answer.text


def test_a_queue_that_is_too_small_says_so(shared: SharedBase, served: dict[str, Path], tmp_path: Path) -> None:
    with client_of(shared, settings_of(served, tmp_path, queue_tokens=20)) as client:
        answer = client.post("/v1/predict", json={"note": "chest pain " * 100})
        assert answer.status_code == 413


def test_work_that_nobody_waits_for_is_cancelled() -> None:
    async def check() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        with pytest.raises(ApiError) as raised:
            await while_connected(Request(scope_of(), receive), work())
        assert raised.value.status == 499
        await asyncio.wait_for(cancelled.wait(), 1)

    asyncio.run(check())


# ---------------------------------------------------------------------- what is written


def audit_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_the_audit_log_says_who_asked_for_what(client: TestClient, tmp_path: Path) -> None:
    client.get("/healthz")
    client.get("/metrics")
    answer = client.post("/v1/predict", json={"notes": [{"id": "n1", "text": CANARY}, "x"], "tasks": ["mortality"]})
    client.get("/v1/tasks", headers={"Authorization": "Bearer wrong"})
    client.put("/v1/stacks/new", json={"folder": "x"})
    entries = audit_of(tmp_path)
    assert [(entry["endpoint"], entry["status"]) for entry in entries] == [
        ("POST /v1/predict", 200),
        ("GET other", 401),
        ("PUT /v1/stacks/{name}", 403),
    ]
    first = entries[0]
    assert set(first) == {
        *("time", "request", "client", "address", "endpoint", "tasks", "notes", "ids", "tokens", "status", "ms"),
    }
    assert first["request"] == answer.headers["x-request-id"]
    assert (first["client"], first["address"]) == (client_id(TOKEN), "testclient")
    assert (first["tasks"], first["notes"], first["ids"]) == (["mortality"], 2, ["n1"])
    assert first["tokens"] == sum(item["tokens"] for item in answer.json()["predictions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])
    assert entries[1]["client"] is None
    assert TOKEN not in (tmp_path / "audit.jsonl").read_text()


def test_the_audit_log_is_rotated_and_its_owners(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=1000, keep=3)
    for number in range(100):
        log.write({"number": number, "filler": "x" * 60})
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    kept = [
        json.loads(line)["number"]
        for name in reversed(names[1:])
        for line in (tmp_path / name).read_text().splitlines()
    ] + [entry["number"] for entry in audit_of(tmp_path)]
    assert kept == list(range(100 - len(kept), 100))
    reopened = AuditLog(tmp_path, max_bytes=1000, keep=3)
    reopened.write({"number": 100})
    reopened.close()
    assert audit_of(tmp_path)[-1]["number"] == 100


def test_who_has_no_token_cannot_flood_the_audit_log(client: TestClient, tmp_path: Path) -> None:
    for _ in range(STRANGERS_PER_MINUTE + 50):
        client.get("/v1/tasks", headers={"Authorization": "Bearer wrong"})
    client.get("/v1/tasks")
    statuses = [entry["status"] for entry in audit_of(tmp_path)]
    assert statuses.count(401) <= 2 * STRANGERS_PER_MINUTE - 20  # a minute may have ended in between
    assert statuses[-1] == 200


def test_what_is_beyond_an_allowance_is_counted() -> None:
    now = 0.0
    allowance = Allowance(2, clock=lambda: now)
    assert [allowance.take() for _ in range(5)] == [True, True, False, False, False]
    now = 60.0
    assert allowance.take()
    assert (allowance.forget(), allowance.missed) == (3, 0)


def test_an_audit_log_that_cannot_be_written_is_noticed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: AuditLog, entry: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditLog, "write", full)
    assert client.get("/v1/tasks").status_code == 200
    assert "No space left" in caplog.text
    assert "clinstack_audit_failures_total 1.0" in client.get("/metrics").text


def test_no_word_of_a_note_is_written_anywhere(
    client: TestClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    note = f"admitted with {CANARY}"
    answers: list[str] = []
    bodies: list[Any] = [
        {"note": note},
        {"notes": [note] * 100},
        {"notes": [{"id": note, "text": note}]},
        {"notes": [{"id": "n1", "text": note, CANARY: note}]},
        {"note": note, "tasks": [note]},
        {"note": note, "calibration": note},
        {"folder": note},
        [note],
    ]
    for body in bodies:
        for path in ("/v1/predict", f"/v1/stacks/{CANARY}", f"/{CANARY}?{CANARY}"):
            answers += [client.post(path, json=body).text, client.put(path, json=body).text]
    half = f'{{"note": "{CANARY}'.encode()
    answers.append(client.post("/v1/predict", content=half, headers={"Content-Type": "application/json"}).text)

    def fail(self: SharedBase, name: str, text: str) -> None:
        raise ValueError(f"cannot encode {text}")

    monkeypatch.setattr(SharedBase, "encode", fail)
    answer = client.post("/v1/predict", json={"note": note})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    out, err = capfd.readouterr()
    # httpx2's own debug log of the test's client holds the paths that it asks for.
    own = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    written = {
        "log": own,
        "answers": "\n".join([*answers, answer.text]),
        "metrics": client.get("/metrics").text,
        "audit": (tmp_path / "audit.jsonl").read_text(),
        "out": out,
        "err": err,
    }
    assert "ValueError at" in own
    for place, text in written.items():
        assert not any(word in text for word in CANARY.split()), place
    assert not any(record.exc_info for record in caplog.records if not record.name.startswith("http"))


def test_every_answer_tells_browsers_to_keep_out(client: TestClient) -> None:
    answers = [
        client.get("/healthz"),
        client.get("/v1/tasks"),
        client.get("/nothing"),
        client.get("/v1/tasks", headers={"Authorization": ""}),
        client.post("/v1/predict", content=b"x" * 3000),
        client.options(
            "/v1/predict", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        ),
    ]
    for answer in answers:
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    assert answers[-1].status_code == 405


def test_a_form_of_another_page_is_not_taken_for_json(client: TestClient) -> None:
    # What a browser sends across origins without asking first.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post("/v1/predict", content=b'{"note": "x"}', headers={**BEARER, "Content-Type": kind})
        assert answer.status_code == 422


def test_metrics_count_requests_batches_and_stacks(client: TestClient) -> None:
    client.post("/v1/predict", json={"notes": ["chest pain", "x"]})
    text = client.get("/metrics").text
    for line in (
        'clinstack_requests_total{method="POST",route="/v1/predict",status="200"} 1.0',
        'clinstack_notes_total{stack="mortality"} 2.0',
        "clinstack_batch_notes_count 1.0",
        "clinstack_wait_seconds_count 2.0",
        "clinstack_stacks 1.0",
        "clinstack_queue_notes 0.0",
    ):
        assert line in text, line
    assert re.search(r'clinstack_tokens_total\{stack="mortality"\} [1-9]', text)
