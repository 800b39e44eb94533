"""Closed-network mode, and telemetry that is off at all times. Set before any library is imported.

``import clinstack`` runs `settle`. Two things follow:

- Always: the telemetry of every dependency is switched off, whatever the environment said before.
- With ``CLINSTACK_OFFLINE=1``, or ``--offline`` on the command line: libraries are told that there is no network,
  proxies are taken out of the environment, and an audit hook refuses each connection and each look-up of a name that
  does not stay on this machine or go to a host in ``CLINSTACK_ALLOWED_HOSTS``. Child processes inherit the
  environment, and with it the mode.

The hook sees what goes through Python's ``socket``. Libraries in C++ or Rust that open connections of their own
(DuckDB's extensions, hf-xet, libpq) are switched off or asked about where they are used.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from clinstack.errors import InputError

VARIABLE = "CLINSTACK_OFFLINE"
ALLOWED = "CLINSTACK_ALLOWED_HOSTS"
"""Names, addresses and networks such as ``db.ward.local, 10.1.0.0/16`` that may be reached although offline."""

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",  # huggingface_hub, hf-xet, MLflow, vLLM and more
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers' user agent, TRL's trainers, hf-xet
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "HF_XET_TELEMETRY_ENABLED": "0",
    "FASTAPI_OTEL_AUTO_CONFIGURE": "false",
    "OTEL_SDK_DISABLED": "true",
    "WANDB_ERROR_REPORTING": "false",  # Weights & Biases sends its crashes to Sentry
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",  # accelerate, transformers and TRL know Gradio; clinstack has none
    "VLLM_NO_USAGE_STATS": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
"""What switches a library's reports to its makers off; `docs/supply-chain.md` says what each would have sent."""
NETWORK_OFF = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",  # Rust, beyond the hook
    "NO_PROXY": "*",
    "no_proxy": "*",
}
PROXIES = tuple(name for kind in ("http", "https", "all", "ftp") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY"))
"""A proxy on this machine would carry out what may not go out."""
_OFF = frozenset({"", "0", "false", "no", "off"})
_HERE = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
_CONNECTING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_NAMING = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})

overridden: dict[str, str] = {}
"""Telemetry that the environment asked for, by variable; it is off all the same, and `clinstack doctor` says so."""
refused: list[str] = []
"""Hosts that the hook kept this process from, each once."""
_hooked = False


class NetworkRefusedError(InputError, OSError):
    """A connection that offline mode refused. An OSError too: libraries go on as they do without a network."""


def is_offline() -> bool:
    """Whether this process may reach this machine and the allowed hosts only."""
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF


def settle() -> None:
    """Switch telemetry off, and the network where the environment says so. Called when clinstack is imported."""
    for name, value in TELEMETRY_OFF.items():
        before = os.environ.get(name)
        if before is not None and before.lower() != value.lower() and name not in overridden:
            overridden[name] = before
        os.environ[name] = value
    hub = sys.modules.get("huggingface_hub.constants")  # who imported it before clinstack: it has read the environment
    if hub is not None:
        hub.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
    if is_offline():
        go_offline()


def go_offline() -> None:
    """Enter closed-network mode, in this process and in those that it starts. There is no way back."""
    global _hooked
    os.environ[VARIABLE] = "1"
    os.environ.update(NETWORK_OFF)
    os.environ.setdefault("WANDB_MODE", "offline")
    for name in PROXIES:
        os.environ.pop(name, None)
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        hub.HF_HUB_DISABLE_XET = True  # type: ignore[attr-defined]
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True


def refuse_network(what: str, remedy: str) -> None:
    """Refuse what cannot be done offline.

    Raises
    ------
    InputError
        If this process is offline; with what was asked for and what to do.
    """
    if is_offline():
        raise InputError(f"{what}: this needs a network, and clinstack is offline ({VARIABLE}). {remedy}")


def refuse_host(host: str, what: str, remedy: str) -> None:
    """Refuse a host that is neither this machine nor in ``CLINSTACK_ALLOWED_HOSTS``.

    Raises
    ------
    InputError
        If this process is offline and may not reach it.
    """
    if is_offline() and not is_allowed(host):
        raise InputError(
            f"{what}: {host} is not this machine, and clinstack is offline ({VARIABLE}). {remedy} "
            f"A host of the closed network itself is named in {ALLOWED}."
        )


def refuse_address(address: str, what: str, remedy: str) -> None:
    """Refuse the host of an address such as ``https://host/path``, as `refuse_host` does; a file has none."""
    host = urlsplit(address).hostname
    if host:
        refuse_host(host, what, remedy)


def is_allowed(host: str) -> bool:
    """Whether offline mode lets a process reach a host, by name or address. Looks up no name but the allowed ones."""
    host = host.strip("[]").rstrip(".").partition("%")[0].lower()
    if host in {"", *_HERE, socket.gethostname().lower()}:
        return True
    names, networks = allowed_hosts()
    try:
        address = ip_address(host)
    except ValueError:
        return host in names or host.endswith(".localhost")
    if address.version == 6 and (mapped := getattr(address, "ipv4_mapped", None)):
        address = mapped
    # 0.0.0.0 and :: are where servers listen; a client that asks there asks this machine.
    if address.is_loopback or address.is_unspecified:
        return True
    if any(address in network for network in networks if network.version == address.version):
        return True
    return any(str(address) in _addresses(name) for name in names)


def allowed_hosts() -> tuple[frozenset[str], tuple[IPv4Network | IPv6Network, ...]]:
    """Return the names, and the addresses and networks, that may be reached although offline.

    Raises
    ------
    InputError
        If one is neither.
    """
    return _parsed(os.environ.get(ALLOWED, ""))


@lru_cache(maxsize=8)
def _parsed(text: str) -> tuple[frozenset[str], tuple[IPv4Network | IPv6Network, ...]]:
    names: set[str] = set()
    networks: list[IPv4Network | IPv6Network] = []
    for item in filter(None, (part.strip().rstrip(".").lower() for part in text.split(","))):
        try:
            networks.append(ip_network(item.strip("[]"), strict=False))
        except ValueError:
            if not all(part and part.replace("-", "").isalnum() for part in item.split(".")):
                raise InputError(
                    f"{ALLOWED}: {item!r} is no host, address or network; write such as db.ward.local, 10.1.0.0/16."
                ) from None
            names.add(item)
    return frozenset(names), tuple(networks)


@lru_cache(maxsize=64)
def _addresses(name: str) -> frozenset[str]:
    """Return the addresses of an allowed name; none where it is unknown."""
    try:
        return frozenset(str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(name, None))
    except OSError:
        return frozenset()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse connections and look-ups beyond this machine; called by the interpreter for each audited event."""
    if not event.startswith("socket."):
        return
    host: Any = None
    if event in _CONNECTING:
        connection, address = arguments[0], arguments[1]
        if connection.family not in {socket.AF_INET, socket.AF_INET6} or not isinstance(address, tuple):
            return  # of this machine, or a socket that was connected before
        host = address[0]
    elif event in _NAMING or event == "socket.gethostbyaddr":
        host = arguments[0]
    elif event == "socket.getnameinfo":
        host = arguments[0][0]
    else:
        return
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if host is None or is_allowed(str(host)):
        return
    if _is_address(str(host)) and event == "socket.getaddrinfo":
        return  # an address is its own name: nobody is asked, and a connection there is refused when it is made
    if host not in refused:
        refused.append(str(host))
    raise NetworkRefusedError(
        f"A connection to {host} was refused: clinstack is offline ({VARIABLE}). "
        f"A host of the closed network itself is named in {ALLOWED}."
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
