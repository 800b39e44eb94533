"""The house itself: tests cannot reach the network, and the files that name versions agree."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import clinstack

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "192.0.2.1"  # reserved for documentation (RFC 5737): nobody answers there


@pytest.fixture
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_network_is_blocked() -> None:
    with socket.socket() as client:
        with pytest.raises(pytest.fail.Exception, match=OUTSIDE):
            client.connect((OUTSIDE, 80))
        with pytest.raises(pytest.fail.Exception, match=OUTSIDE):
            client.connect_ex((OUTSIDE, 80))
    with pytest.raises(pytest.fail.Exception, match=OUTSIDE):
        socket.create_connection((OUTSIDE, 80), timeout=0.1)
    with pytest.raises(pytest.fail.Exception, match=r"example\.org"):
        socket.getaddrinfo("example.org", 443)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


def test_loopback_and_unix_sockets_stay_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    left, right = socket.socketpair()
    left.close()
    right.close()


def test_versions_agree(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert clinstack.__version__ == project["version"] == citation["version"]
    assert f"## [{project['version']}]" in changelog


def test_every_direct_dependency_is_pinned(project: dict[str, Any]) -> None:
    def name(requirement: str) -> str:
        return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    wanted = project["dependencies"] + [item for extra in project["optional-dependencies"].values() for item in extra]
    assert {name(item) for item in wanted} <= {name(pin) for pin in pins}
