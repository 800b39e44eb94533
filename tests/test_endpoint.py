"""The endpoint: hosts, limits, the store of replies, retries, and what stops at once."""

from __future__ import annotations

import random
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clinstack.endpoint import BUDGET_SPENT, Endpoint, Reply, Request
from clinstack.endpoint.call import EndpointError, retry_after
from clinstack.endpoint.hosts import is_private_address, is_private_host, remote_host
from clinstack.endpoint.limits import RateLimits
from clinstack.endpoint.store import ReplyStore
from clinstack.errors import InputError
from clinstack.recipe.endpoint import EndpointRecipe
from scripted_server import MODEL, ScriptedServer

SECRET = "Mrs. Quillfeather has sarcoidosis"


def recipe(server: ScriptedServer | None = None, **changes: Any) -> EndpointRecipe:
    values: dict[str, Any] = {"model": MODEL, "backoff": 0.02, "timeout": 10, "concurrency": 4, "max_tokens": 50}
    if server is not None:
        values["base_url"] = server.base_url
    return EndpointRecipe(**{**values, **changes})


def requests(count: int) -> list[Request]:
    return [Request(f"r{number}", (("user", f"{SECRET}, {number}"),), number) for number in range(count)]


def paid(server: ScriptedServer) -> list[str]:
    return server.ledger.read_text().split() if server.ledger.exists() else []


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.31.0.1", True),
        ("172.32.0.1", False),
        ("192.168.7.7", True),
        ("::1", True),
        ("fd00::5", True),
        ("fe80::1%eth0", True),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("8.8.8.8", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("0.0.0.0", True),
        ("0.0.0.1", False),
    ],
)
def test_private_addresses(address: str, private: bool) -> None:
    assert is_private_address(address) is private


def test_a_name_is_private_only_if_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == "nowhere.invalid":
            raise socket.gaierror("unknown")
        addresses = {"both": ("10.0.0.1", "8.8.8.8"), "inside": ("10.0.0.1",)}[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert is_private_host("http://inside:8000/v1")
    assert not is_private_host("http://both:8000/v1")
    with pytest.raises(InputError, match=r"nowhere\.invalid is unknown"):
        is_private_host("http://nowhere.invalid/v1")
    assert remote_host("http://nowhere.invalid/v1", allow_remote=True) == "nowhere.invalid"
    with pytest.raises(InputError, match=r"text of prompts would leave.*--allow-remote"):
        remote_host("https://both/v1", allow_remote=False)
    assert remote_host("https://both/v1", allow_remote=True) == "both"
    assert remote_host("http://inside/v1", allow_remote=True) is None


def test_a_remote_endpoint_needs_to_be_allowed_and_says_so(tmp_path: Path) -> None:
    remote = recipe(base_url="https://8.8.8.8/v1")
    with pytest.raises(InputError, match=r"8\.8\.8\.8 is not on this machine"):
        Endpoint(remote, tmp_path / "s.sqlite")
    with Endpoint(remote.model_copy(update={"allow_remote": True}), tmp_path / "s.sqlite") as endpoint:
        assert endpoint.warning == "Text leaves this machine: prompts, with the notes in them, go to 8.8.8.8."
    assert not list(tmp_path.iterdir())  # a store without replies does not stay


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "localhost:8000"}, "not an address"),
        ({"base_url": "http://me:word@localhost/v1"}, "holds a password"),
        ({"base_url": "http://localhost/v1?key=1"}, "must end with the path"),
        ({"base_url": "http://localhost:99999/v1"}, "not an address"),
        ({"api_key_env": "sk-abc-def"}, "not the key itself"),
        ({"api_key_env": "sk_abc"}, "not the key itself"),
        ({"model": ""}, "at least 1 character"),
    ],
)
def test_wrong_recipes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(**changes)


def test_limits_hold_in_every_window() -> None:
    now = [0.0]
    limits = RateLimits(3, 100, lambda: now[0])
    chance = random.Random(1)
    admitted: list[tuple[float, int]] = []
    while len(admitted) < 60:
        tokens = chance.choice([5, 20, 60])
        admission, wait = limits.try_admit(tokens)
        if admission is None:
            assert wait > 0
            now[0] += wait
        else:
            admitted.append((now[0], tokens))
            now[0] += chance.random() * 10
    for start, _ in admitted:
        window = [tokens for at, tokens in admitted if start <= at < start + 60]
        assert len(window) <= 3
        assert sum(window) <= 100
    # The limits were used, not only kept.
    assert max(sum(1 for at, _ in admitted if start <= at < start + 60) for start, _ in admitted) == 3


def test_a_request_above_the_limit_goes_alone_and_counts_are_put_right() -> None:
    now = [0.0]
    limits = RateLimits(None, 100, lambda: now[0])
    large, _ = limits.try_admit(500)
    assert large is not None
    assert limits.try_admit(1) == (None, 60.0)
    limits.correct(large, 40)
    assert limits.try_admit(60)[0] is not None
    limits.pause(7)
    assert limits.try_admit(0) == (None, 7.0)


def test_retry_after() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "99999"}) == 600
    assert retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({}) is None


def test_the_store_keeps_replies_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    reply = Reply("k", "text \u2603", "stop", 3, 4, "m", None)
    with ReplyStore(path) as store:
        store.put("d", reply)
        assert (store.get("d"), store.get("e"), "d" in store, "e" in store) == (reply, None, True, False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(InputError, match="another clinstack asks"):
            ReplyStore(path)
    with ReplyStore(path) as store:
        assert (store.count, store.tokens) == (1, 7)
    other = tmp_path / "other"
    other.write_text("no database " * 100)
    with pytest.raises(InputError, match="is no store of replies"):
        ReplyStore(other)


def test_the_digest_holds_all_that_decides_a_reply() -> None:
    request = Request("k", (("user", "a"),), 1)
    same = [recipe(), recipe(base_url="http://127.0.0.1:1/v1"), recipe(concurrency=1, retries=0)]
    assert len({request.digest(one) for one in same}) == 1
    others = [recipe(model="b"), recipe(temperature=0.5), recipe(max_tokens=9)]
    changed = [
        Request("l", (("user", "a"),), 1),
        Request("k", (("system", "a"),), 1),
        Request("k", (("user", "b"),), 1),
        Request("k", (("user", "a"),), 2),
        Request("k", (("user", "a"),), 1, 9),
    ]
    digests = {request.digest(recipe()), *(request.digest(one) for one in others[:2])}
    digests |= {one.digest(recipe()) for one in changed}
    assert len(digests) == 8
    # However it was said, the limit is the same.
    assert request.digest(others[2]) == changed[4].digest(recipe())


def test_replies_come_in_order_and_are_not_paid_twice(ledger: Path, tmp_path: Path) -> None:
    def slow_first(body: dict[str, Any]) -> str:
        time.sleep(0.2 if body["seed"] == 0 else 0.01)
        return f"answer {body['seed']}"

    with ScriptedServer(ledger, answer=slow_first) as server:
        with Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint:
            replies = list(endpoint.ask(requests(30), "t"))
            assert endpoint.answered == 30
        assert [reply.key for reply in replies] == [f"r{number}" for number in range(30)]
        assert [reply.text for reply in replies] == [f"answer {number}" for number in range(30)]
        assert 1 < server.most_under_way <= 4
        body = server.bodies[0]
        assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
            "model": MODEL,
            "temperature": 1.0,
            "max_tokens": 50,
        }
        headers = {name.lower(): value for name, value in server.headers[0].items()}
        assert headers["authorization"] == "Bearer none"
        assert not {"x-stainless-os", "x-stainless-arch", "x-stainless-runtime-version"} & set(headers)
        with Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint:
            assert list(endpoint.ask(requests(31), "t"))[:30] == replies
            assert (endpoint.answered, endpoint.from_store) == (1, 30)
        assert len(paid(server)) == 31


@pytest.mark.parametrize("trouble", ["429", "500", "503", "hang", "reset", "broken", "empty"])
def test_what_heals_is_asked_again(trouble: str, ledger: Path, tmp_path: Path) -> None:
    with (
        ScriptedServer(ledger, [trouble], times=2, hang=1.5) as server,
        Endpoint(recipe(server, timeout=0.3), tmp_path / "s.sqlite") as endpoint,
    ):
        replies = list(endpoint.ask(requests(3), "t"))
        assert all(reply.failure is None and reply.text for reply in replies)
        assert sum(endpoint.retried.values()) == server.met[trouble] == 6
        assert sorted(paid(server)) == ["0", "1", "2"]
        if trouble == "429":
            # All wait when the server says how long, not only the one that was refused.
            assert server.times_asked[-1] - server.times_asked[0] >= 0.4


@pytest.mark.parametrize("trouble", ["500", "hang", "reset", "broken", "empty", "400"])
def test_what_does_not_heal_is_a_failure_and_the_run_goes_on(trouble: str, ledger: Path, tmp_path: Path) -> None:
    with (
        ScriptedServer(ledger, [trouble], share=0.4, times=-1, hang=1.0) as server,
        Endpoint(recipe(server, timeout=0.3, retries=1), tmp_path / "s.sqlite") as endpoint,
    ):
        replies = list(endpoint.ask(requests(12), "t"))
        failed = [reply for reply in replies if reply.failure is not None]
        assert 0 < len(failed) < 12
        assert sum(endpoint.failures.values()) == len(failed)
        assert server.met[trouble] == len(failed) * (1 if trouble == "400" else 2)
        assert all(reply.text is None for reply in failed)
        assert SECRET not in repr(failed)
        assert endpoint.store.count == 12 - len(failed)
        # Another start asks for these alone.
        server.troubles = ()
        assert all(reply.failure is None for reply in endpoint.ask(requests(12), "t"))
        assert sorted(paid(server), key=int) == [str(number) for number in range(12)]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("401", "the server wants a key; name the environment variable"), ("404", "no model.*Its models are: scripted")],
)
def test_what_never_heals_stops_at_once(trouble: str, words: str, ledger: Path, tmp_path: Path) -> None:
    with (
        ScriptedServer(ledger, [trouble], times=-1) as server,
        Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint,
    ):
        with pytest.raises(EndpointError, match=words) as caught:
            list(endpoint.ask(requests(100), "t"))
        assert server.met[trouble] <= 4
        assert SECRET not in str(caught.value)


def test_the_key_goes_to_the_server_and_nowhere_else(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    with ScriptedServer(ledger) as server:
        with pytest.raises(InputError, match="the environment variable THE_KEY is not set"):
            Endpoint(recipe(server, api_key_env="THE_KEY"), tmp_path / "s.sqlite")
        monkeypatch.setenv("THE_KEY", "top-secret-key")
        with Endpoint(recipe(server, api_key_env="THE_KEY"), tmp_path / "s.sqlite") as endpoint:
            list(endpoint.ask(requests(2), "t"))
            server.troubles, server.times = ("401",), -1
            with pytest.raises(EndpointError, match="the key in the environment variable THE_KEY") as caught:
                list(endpoint.ask(requests(3), "t"))
        assert server.headers[0]["authorization"] == "Bearer top-secret-key"
    assert "top-secret" not in str(caught.value)
    kept = [path for path in tmp_path.iterdir() if path.name.startswith("s.sqlite")]
    assert kept
    assert not any(b"top-secret" in path.read_bytes() for path in kept)


def test_a_local_server_is_asked_without_the_proxy(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with ScriptedServer(ledger) as server, Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint:
        assert next(iter(endpoint.ask(requests(1), "t"))).failure is None


def test_a_redirect_is_not_followed(ledger: Path, tmp_path: Path) -> None:
    with (
        ScriptedServer(ledger, ["307"], times=-1) as server,
        Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint,
    ):
        with pytest.raises(EndpointError, match="answers with a redirect"):
            list(endpoint.ask(requests(1), "t"))
        assert len(server.bodies) == 1


def test_no_server_is_one_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        endpoint = Endpoint(recipe(base_url=f"http://127.0.0.1:{port}/v1"), tmp_path / "s.sqlite")
        start = time.monotonic()
        with endpoint, pytest.raises(EndpointError, match=r"No server answers at .* Start it"):
            list(endpoint.ask(requests(100), "t"))
        assert time.monotonic() - start < 5


def test_a_server_that_goes_for_good_ends_the_run_with_what_is_done(ledger: Path, tmp_path: Path) -> None:
    server = ScriptedServer(ledger)
    with server:
        endpoint = Endpoint(recipe(server, retries=1, concurrency=2), tmp_path / "s.sqlite")
        asked = endpoint.ask(requests(200), "t", ahead=4)
        for _ in range(5):
            next(asked)
    with endpoint, pytest.raises(EndpointError, match=r"the last 8 requests all failed.*replies are kept in"):
        list(asked)
    with sqlite3.connect(tmp_path / "s.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM replies").fetchone()[0] == len(paid(server)) >= 5


def test_the_budget_is_kept_and_can_be_raised(ledger: Path, tmp_path: Path) -> None:
    with ScriptedServer(ledger) as server:
        tight = recipe(server, token_budget=400)
        with Endpoint(tight, tmp_path / "s.sqlite") as endpoint:
            replies = list(endpoint.ask(requests(60), "t"))
            assert endpoint.store.tokens <= 400
            assert endpoint.budget_spent
            done = [reply for reply in replies if reply.failure is None]
            assert 0 < len(done) < 60
            assert {reply.failure for reply in replies} == {None, BUDGET_SPENT}
            # Not even one more of the largest size would have fitted.
            assert endpoint.store.tokens > 400 - 50 - 20
        before = paid(server)
        with Endpoint(tight, tmp_path / "s.sqlite") as endpoint:
            list(endpoint.ask(requests(60), "t"))
        assert paid(server) == before
        with Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint:
            assert all(reply.failure is None for reply in endpoint.ask(requests(60), "t"))
        assert sorted(paid(server), key=int) == [str(number) for number in range(60)]


def test_requests_may_depend_on_replies(ledger: Path, tmp_path: Path) -> None:
    taken: list[Reply] = []

    def chain() -> Iterator[Request | None]:
        for number in range(6):
            while len(taken) < number:
                yield None
            said = taken[-1].text if taken else "start"
            yield Request(f"c{number}", (("user", str(said)),), number)

    with ScriptedServer(ledger) as server, Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint:
        for reply in endpoint.ask(chain(), "t"):
            taken.append(reply)
        asked = [body["messages"][0]["content"] for body in server.bodies]
    assert asked == ["start", *(reply.text for reply in taken[:-1])]
    with (
        Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint,
        pytest.raises(RuntimeError, match="none is under"),
    ):
        list(endpoint.ask(iter([None]), "t"))


def test_the_same_request_twice_is_paid_once(ledger: Path, tmp_path: Path) -> None:
    with (
        ScriptedServer(ledger, delay=0.1) as server,
        Endpoint(recipe(server), tmp_path / "s.sqlite") as endpoint,
    ):
        replies = list(endpoint.ask(requests(2) * 4, "t"))
        assert [reply.key for reply in replies] == ["r0", "r1"] * 4
        assert sorted(paid(server)) == ["0", "1"]


def test_odd_replies(ledger: Path, tmp_path: Path) -> None:
    with ScriptedServer(ledger, answer=lambda body: "half \ud800 pair") as server:
        with Endpoint(recipe(server, limit_key="max_completion_tokens"), tmp_path / "s.sqlite") as endpoint:
            assert [reply.text for reply in endpoint.ask(requests(1), "t")] == ["half ? pair"]
        assert server.bodies[0]["max_completion_tokens"] == 50
        assert "max_tokens" not in server.bodies[0]


def test_estimate(ledger: Path, tmp_path: Path) -> None:
    with ScriptedServer(ledger) as server:
        prices = recipe(server, price_prompt=2.0, price_completion=10.0, tokens_per_second=10, concurrency=5)
        with Endpoint(prices, tmp_path / "s.sqlite") as endpoint:
            long = [Request(f"k{number}", (("user", "x" * 400),), number, 20) for number in range(50)]
            found = endpoint.estimate(long)
            assert found == {
                "requests": 50,
                "prompt_tokens": 50 * 104,
                "completion_tokens": 1000,
                "cost": round(50 * 104 * 2e-6 + 1000 * 1e-5, 4),
                "seconds": 20.0,
                "bound_by": "tokens_per_second",
                "in_store": 0,
            }
            list(endpoint.ask(long[:10], "t"))
            assert {**endpoint.estimate(long), "cost": 0} == {
                **found,
                "requests": 40,
                "prompt_tokens": 40 * 104,
                "completion_tokens": 800,
                "cost": 0,
                "seconds": 16.0,
                "in_store": 10,
            }
            slower = prices.model_copy(update={"requests_per_minute": 10})
    with Endpoint(slower, tmp_path / "s.sqlite") as endpoint:
        assert (endpoint.estimate(long)["seconds"], endpoint.estimate(long)["bound_by"]) == (
            240.0,
            "requests_per_minute",
        )


def test_openai_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'clinstack\[synthesize\]'"):
        Endpoint(recipe(), tmp_path / "s.sqlite")
