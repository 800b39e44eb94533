"""Where text may go: this machine and private networks, or anywhere when that was allowed."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from clinstack.errors import InputError
from clinstack.offline import refuse_host

_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128"),
        *("0.0.0.0/32", "::/128"),  # servers say that they listen there; a client that asks there asks this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"),
    )
)
"""RFC 1122, 1918, 4193 and 4291. Python's `is_private` also holds addresses of nobody's network."""


def is_private_address(address: str) -> bool:
    """Whether an IP address is this machine's or one of a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return any(found in network for network in _PRIVATE if network.version == found.version)


def host_of(base_url: str) -> str:
    """Return the host of an address."""
    return urlsplit(base_url).hostname or ""


def is_private_host(base_url: str) -> bool:
    """Whether each address that a server's name stands for is in a private network or this machine.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    host = host_of(base_url)
    try:
        return is_private_address(host)
    except ValueError:
        pass  # a name, not an address
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        raise InputError(f"endpoint.base_url: the host {host} is unknown here; correct the address.") from None
    return all(is_private_address(str(entry[4][0])) for entry in found)


def remote_host(base_url: str, allow_remote: bool) -> str | None:
    """Return the host that text would go to if that is beyond this machine and its private network.

    Raises
    ------
    InputError
        If it is and this was not allowed, its name is unknown, or clinstack is offline and it is another machine.
    """
    host = host_of(base_url)
    refuse_host(host, "endpoint.base_url", "Use a server on this machine; --allow-remote does not change this.")
    try:
        if is_private_host(base_url):
            return None
    except InputError:
        # Behind a proxy, names of the outside are often known to the proxy alone.
        if not allow_remote:
            raise
    if not allow_remote:
        raise InputError(
            f"endpoint.base_url: {host} is not on this machine or in a private network, so the text of prompts would "
            f"leave it. Use a local server, or say --allow-remote (endpoint.allow_remote: true) if the text may go "
            f"there: most data use agreements, MIMIC's among them, forbid it."
        )
    return host
