"""What every test runs under: no network, and the model hub switched to offline."""

from __future__ import annotations

import os

# Read once, when huggingface_hub and transformers are imported: set before any test module imports them, and
# inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _allow_only_loopback(address: object) -> None:
    host = address[0] if isinstance(address, tuple) else address
    if not _is_loopback(host):
        # Not an Exception, so that no `except` around a download takes it for "offline, use the cache".
        pytest.fail(f"A test tried to reach {host!r} over the network; tests run on local files only.")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail whatever connects anywhere but to this machine; of the session, so that it precedes every other fixture."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    create_connection, getaddrinfo = socket.create_connection, socket.getaddrinfo

    def local_connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            _allow_only_loopback(address)
        return connect(self, address)

    def local_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != getattr(socket, "AF_UNIX", None):
            _allow_only_loopback(address)
        return connect_ex(self, address)

    def local_create_connection(address: tuple[str | None, int], *args: Any, **kwargs: Any) -> socket.socket:
        _allow_only_loopback(address)
        return create_connection(address, *args, **kwargs)

    def local_getaddrinfo(host: bytes | str | None, *args: Any, **kwargs: Any) -> list[Any]:
        _allow_only_loopback(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket.socket, "connect_ex", local_connect_ex)
        patch.setattr(socket, "create_connection", local_create_connection)
        patch.setattr(socket, "getaddrinfo", local_getaddrinfo)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and texts beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder shared beside the checkout ({folder.parent.name}/shared): reference data are absent")
    return folder
