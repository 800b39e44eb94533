"""Closed-network mode: nothing leaves this machine, what needs a network says so, telemetry is off at all times."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clinstack
from clinstack import offline
from clinstack.database import connect, refuse_remote_database
from clinstack.endpoint.hosts import remote_host
from clinstack.errors import InputError
from clinstack.export.push import refuse_push
from network_trace import CLINSTACK, traced

SOURCE = Path(clinstack.__file__).parent
OUTSIDE = "192.0.2.1"  # reserved for documentation (RFC 5737): nobody answers there


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Offline by the environment alone: the hook would stay in this process for ever."""
    monkeypatch.setenv(offline.VARIABLE, "1")
    monkeypatch.delenv(offline.ALLOWED, raising=False)
    return monkeypatch


def python(code: str, **environment: str) -> str:
    """Run code in a new process and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLINSTACK_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------- the hook

TRIES = f"""
import socket, clinstack
from clinstack import offline
def tcp(): socket.create_connection(("{OUTSIDE}", 80), timeout=1)
def tcp_ex(): socket.socket().connect_ex(("{OUTSIDE}", 80))
def six(): socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80))
def mapped(): socket.socket(socket.AF_INET6).connect(("::ffff:{OUTSIDE}", 80))
def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("{OUTSIDE}", 53))
def message(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("{OUTSIDE}", 53))
def name(): socket.getaddrinfo("example.org", 443)
def old_name(): socket.gethostbyname("example.org")
def reverse(): socket.gethostbyaddr("{OUTSIDE}")
for act in (tcp, tcp_ex, six, mapped, udp, message, name, old_name, reverse):
    try:
        act()
        print(act.__name__, "went through")
    except offline.NetworkRefusedError as error:
        assert isinstance(error, OSError) and error.exit_code == 2 and "CLINSTACK_ALLOWED_HOSTS" in str(error)
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
    socket.socket().connect(("0.0.0.0", server.getsockname()[1]))
left, right = socket.socketpair()
left.sendall(b"x")
print(*offline.refused)
"""


def test_the_hook_refuses_what_leaves_and_nothing_else() -> None:
    said = python(TRIES, CLINSTACK_OFFLINE="1")
    assert said.split() == [OUTSIDE, "2001:db8::1", f"::ffff:{OUTSIDE}", "example.org"]


def test_without_the_mode_there_is_no_hook() -> None:
    code = "import clinstack.offline as o; print(o._hooked, o.is_offline())"
    assert python(code).split() == ["False", "False"]
    assert python(code, CLINSTACK_OFFLINE="off").split() == ["False", "False"]
    assert python(code, CLINSTACK_OFFLINE="yes").split() == ["True", "True"]


def test_processes_that_are_started_inherit_the_mode() -> None:
    code = (
        "import subprocess, sys, clinstack, clinstack.offline as o\n"
        "o.go_offline()\n"
        "child = 'import os, clinstack.offline as o; print(o._hooked, os.environ[\"HF_HUB_OFFLINE\"])'\n"
        "subprocess.run([sys.executable, '-c', child], check=True)\n"
        "from clinstack.processes import worker_pool\n"
        "from clinstack.offline import is_offline, is_allowed\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as pool:\n"
        f"        print(pool.submit(is_offline).result(), pool.submit(is_allowed, '{OUTSIDE}').result())\n"
    )
    assert python(code).split() == ["True", "1", "True", "False"]


@pytest.mark.parametrize("words", [["--offline", "version"], ["version", "--offline"], ["presets", "--offline", "ls"]])
def test_the_option_stands_before_or_behind_the_verb(words: list[str]) -> None:
    code = (
        "import os, sys, clinstack.cli, clinstack.offline as o\n"
        f"sys.argv = ['clinstack', *{words!r}]\n"
        "try:\n    clinstack.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'huggingface_hub' not in sys.modules, 'imported before the environment was set'\n"
        "print('is', o._hooked, os.environ['TRANSFORMERS_OFFLINE'], os.environ['HF_HUB_DISABLE_XET'])\n"
    )
    assert python(code, HTTPS_PROXY="http://127.0.0.1:3128").splitlines()[-1] == "is True 1 1"


def test_a_proxy_on_this_machine_is_no_way_out() -> None:
    code = "import os, clinstack.offline as o; print([name for name in o.PROXIES if name in os.environ])"
    proxies = {"HTTPS_PROXY": "http://127.0.0.1:3128", "all_proxy": "socks5://127.0.0.1:1080"}
    assert python(code, CLINSTACK_OFFLINE="1", **proxies).strip() == "[]"
    assert python(code, **proxies).strip() == "['HTTPS_PROXY', 'all_proxy']"


# ---------------------------------------------------------------------- who may be reached


@pytest.mark.parametrize(
    ("allowed", "host", "is_allowed"),
    [
        ("", "127.0.0.1", True),
        ("", "127.8.9.1", True),
        ("", "localhost", True),
        ("", "[::1]", True),
        ("", "0.0.0.0", True),
        ("", "10.1.2.3", False),
        ("", "db.ward.local", False),
        ("", "localhost.example.org", False),
        ("10.1.0.0/16", "10.1.2.3", True),
        ("10.1.0.0/16", "10.2.2.3", False),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("fd00::/8, db.ward.local.", "fd00::5", True),
        ("fd00::/8, db.ward.local.", "DB.ward.local", True),
        ("db.ward.local", "ward.local", False),
    ],
)
def test_hosts(closed: pytest.MonkeyPatch, allowed: str, host: str, is_allowed: bool) -> None:
    closed.setattr(offline, "_addresses", lambda name: frozenset())
    closed.setenv(offline.ALLOWED, allowed)
    assert offline.is_allowed(host) is is_allowed


def test_an_allowed_name_may_be_reached_by_its_addresses(closed: pytest.MonkeyPatch) -> None:
    closed.setattr(offline, "_addresses", {"db.ward.local": frozenset({"10.9.9.9"})}.__getitem__)
    closed.setenv(offline.ALLOWED, "db.ward.local")
    assert offline.is_allowed("10.9.9.9")
    assert not offline.is_allowed("10.9.9.8")


def test_an_allowed_host_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, offline.VARIABLE: "1", offline.ALLOWED: "http://db.ward.local"}
    done = subprocess.run([*CLINSTACK, "version"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no host, address or network" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- what needs a network says so


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    assert caught.value.exit_code == 2
    assert "offline" in str(caught.value)
    return str(caught.value)


def test_endpoints_elsewhere_are_refused(closed: pytest.MonkeyPatch) -> None:
    assert remote_host("http://127.0.0.1:8000/v1", False) is None
    for address in ("http://10.1.2.3:8000/v1", "https://api.example.org/v1"):
        for allow_remote in (False, True):
            message = refusal(lambda address=address, allow=allow_remote: remote_host(address, allow))
            assert message.startswith("endpoint.base_url: ")
            assert "CLINSTACK_ALLOWED_HOSTS" in message
    closed.setenv(offline.ALLOWED, "10.1.0.0/16")
    assert remote_host("http://10.1.2.3:8000/v1", False) is None


def test_push_is_refused(closed: pytest.MonkeyPatch) -> None:
    assert refusal(lambda: refuse_push("ward/mortality", [], force=True)).startswith("--push: ")


@pytest.mark.parametrize(
    ("tracker", "variables", "is_refused"),
    [
        ("tensorboard", {"WANDB_MODE": "online"}, False),
        ("wandb", {}, False),
        ("wandb", {"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, False),
        ("wandb", {"WANDB_MODE": "online"}, True),
        ("wandb", {"WANDB_API_KEY": "k"}, True),
        ("wandb", {"WANDB_MODE": "online", "WANDB_BASE_URL": "https://10.1.2.3"}, False),
        ("mlflow", {}, False),
        ("mlflow", {"MLFLOW_TRACKING_URI": "sqlite:///runs.db"}, False),
        ("mlflow", {"MLFLOW_TRACKING_URI": "https://10.1.2.3:5000"}, False),
        ("mlflow", {"MLFLOW_TRACKING_URI": "https://mlflow.example.org"}, True),
        ("mlflow", {"MLFLOW_TRACKING_URI": "databricks"}, True),
    ],
)
def test_trackers_elsewhere_are_refused(
    closed: pytest.MonkeyPatch, tracker: str, variables: dict[str, str], is_refused: bool
) -> None:
    from clinstack.engine.tracking import refuse_remote_tracking

    closed.setattr(offline, "_addresses", lambda name: frozenset())
    closed.setenv(offline.ALLOWED, "10.1.0.0/16")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        closed.delenv(name, raising=False)
    for name, value in variables.items():
        closed.setenv(name, value)
    if is_refused:
        assert refusal(lambda: refuse_remote_tracking(tracker)).startswith(f"training.tracking: {tracker}")
    else:
        refuse_remote_tracking(tracker)


@pytest.mark.parametrize(
    ("address", "is_refused"),
    [
        ("postgresql://u@localhost/d", False),
        ("postgresql:///d", False),
        ("postgresql:///d?host=/var/run/postgresql", False),
        ("postgres://u@db.example.org/d", True),
        ("postgresql://u@localhost,db.example.org/d", True),
        ("postgresql:///d?host=db.example.org", True),
        ("postgresql://u@localhost/d?hostaddr=10.1.2.3", True),
        ("postgresql:///d?service=ward", True),
    ],
)
def test_databases_elsewhere_are_refused(closed: pytest.MonkeyPatch, address: str, is_refused: bool) -> None:
    pytest.importorskip("psycopg")
    if is_refused:
        message = refusal(lambda: refuse_remote_database(address, "storage", "Use storage: journal."))
        assert message.startswith("storage")
        assert "Use storage: journal." in message
    else:
        refuse_remote_database(address, "storage", "Use storage: journal.")


def test_libpqs_own_environment_counts(closed: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    closed.setenv("PGHOST", "db.example.org")
    assert "db.example.org" in refusal(lambda: refuse_remote_database("postgresql:///d", "storage", ""))


def test_a_base_of_the_hub_says_what_to_do(closed: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from clinstack.model.base import find_base

    closed.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal(lambda: find_base("organisation/a-model-that-nobody-has"))
    assert "Copy the model to this machine" in message
    assert "clinstack doctor" in message


def test_nothing_is_refused_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(offline.VARIABLE, raising=False)
    offline.refuse_network("x", "y")
    offline.refuse_host("example.org", "x", "y")
    refuse_remote_database("postgresql://u@db.example.org/d", "storage", "")


# ---------------------------------------------------------------------- telemetry


def test_telemetry_is_off_whatever_the_environment_says() -> None:
    code = (
        "import os, clinstack, clinstack.offline as o\n"
        "assert all(os.environ[name] == value for name, value in o.TELEMETRY_OFF.items())\n"
        "from huggingface_hub import constants\n"
        "print(constants.HF_HUB_DISABLE_TELEMETRY, *sorted(o.overridden))\n"
    )
    asked = {"HF_HUB_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "0", "WANDB_ERROR_REPORTING": "true"}
    assert python(code).split() == ["True"]
    assert python(code, **asked).split() == ["True", *sorted(asked)]


def test_libraries_that_were_imported_before_are_told_too() -> None:
    code = (
        "from huggingface_hub import constants\n"
        "assert not constants.HF_HUB_DISABLE_TELEMETRY\n"
        "import clinstack\n"
        "print(constants.HF_HUB_DISABLE_TELEMETRY, constants.is_offline_mode())\n"
    )
    clean = {"DO_NOT_TRACK": "0", "DISABLE_TELEMETRY": "0"}
    assert python(code, **clean, HF_HUB_DISABLE_TELEMETRY="0", CLINSTACK_OFFLINE="1").split() == ["True", "True"]


def test_the_hubs_user_agent_says_nothing_of_the_machine() -> None:
    code = (
        "import clinstack\n"
        "from huggingface_hub.utils import build_hf_headers\n"
        "print(build_hf_headers(token=False)['user-agent'])\n"
    )
    said = python(code)
    assert "torch" not in said
    assert "agent/" not in said


def test_duckdb_fetches_no_extension() -> None:
    with connect() as connection:
        settings = dict(connection.execute("SELECT name, value FROM duckdb_settings()").fetchall())
        assert settings["autoinstall_known_extensions"] == settings["autoload_known_extensions"] == "false"
        assert settings["allow_community_extensions"] == "false"
        with pytest.raises(Exception, match="httpfs"):
            connection.execute(f"SELECT * FROM 'https://{OUTSIDE}/table.parquet'")


def test_every_duckdb_connection_is_made_in_one_place() -> None:
    found = [path for path in SOURCE.rglob("*.py") if re.search(r"\bduckdb\.connect\(", path.read_text("utf-8"))]
    assert found == [SOURCE / "database.py"]


# ---------------------------------------------------------------------- seen from the kernel


def test_the_trace_sees_an_attempt(tmp_path: Path) -> None:
    code = f"import socket; s = socket.socket(); s.connect_ex(('{OUTSIDE}', 80)); s.connect_ex(('127.0.0.1', 9))"
    _, attempts = traced([sys.executable, "-c", code], tmp_path)
    assert len(attempts) == 1
    assert OUTSIDE in attempts[0]


def test_verbs_try_to_reach_nobody(tmp_path: Path) -> None:
    """Also without the mode: what is on this machine needs no network."""
    prepare = [*CLINSTACK, "prepare", "cohort", "--out", tmp_path / "cohort", "--patients", "20"]
    look = [*CLINSTACK, "doctor", "demo/pretrain"]
    done, attempts = traced(["bash", "-c", shlex.join(map(str, prepare)) + " && " + shlex.join(look)], tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert attempts == []


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {offline.VARIABLE: "1"}], ids=["online", "offline"])
def test_the_demo_tries_to_reach_nobody(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [*CLINSTACK, "demo", "--patients", "300", "--out", tmp_path / "demo"]
    done, attempts = traced(command, tmp_path, environment, timeout=850)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "demo" / "report.html").is_file()
    assert attempts == []
