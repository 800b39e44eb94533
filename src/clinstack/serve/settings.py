"""What `clinstack serve` is told: addresses, limits, files. Read without torch and without a web framework."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, StringConstraints, ValidationError, field_validator, model_validator

from clinstack.errors import InputError
from clinstack.recipe.section import Section

AUDIT_FILE = "audit.jsonl"
"""In the state folder."""
SHORTEST_TOKEN = 16
"""Characters; a generated token has 43."""

StackName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}$")]
"""What a stack is called in requests. No slash and no colon: names stand in paths, and ``NAME:base`` means the base."""


class ServeSettings(Section):
    """Everything that a server is told. Frozen.

    Parameters
    ----------
    stacks : dict of str to Path
        Stacks or finished Runs by the name that requests use.
    base : str, optional
        Where the base is on this machine; as the stacks record it when not given.
    device : str
        ``auto``, ``cpu``, ``cuda``, or a card such as ``cuda:1``.
    threads : int, optional
        Of torch on a CPU; torch's own choice when not given.
    fold : {"auto", "always", "never"}
        Whether adapters that all stacks share are folded into the base's weights; ``auto`` where that is exact.
    host, port : str, int
        Where the server listens; a port of 0 takes a free one.
    allow_remote : bool
        A host that is not loopback is refused without it: the server speaks plain HTTP.
    token : SecretStr, optional
        What requests send as ``Authorization: Bearer``. One is generated and kept in the state folder when not given.
    no_token : bool
        Ask for none. Only on loopback, and only for requests whose Host header names this machine.
    trusted_proxies : tuple of str
        Addresses of proxies whose ``X-Forwarded-For`` is believed; with none, the address is the peer's.
    state : Path
        Folder of the token and the audit log; only its owner may read it.
    audit_bytes, audit_files : int
        The audit log is rotated at that size, and so many older ones are kept.
    stacks_root : Path, optional
        Folders below it may be added while the server runs; none without it.
    max_body_bytes : int
        Larger bodies are refused before they are read (413).
    max_notes : int
        Of one request (422).
    max_characters : int
        Of one note (422).
    max_in_flight : int
        Requests that are answered at a time; more get 429.
    requests_per_minute : int
        Of one client, by token and address; more get 429. 0: no limit.
    queue_tokens : int
        Tokens that may wait for the model; more get 429.
    batch_tokens : int
        Tokens of one forward pass, at most, but for a single longer note.
    window_ms : float
        How long the model waits for more notes before it begins.
    timeout_s : float
        From a request's arrival to its answer; later ones get 504.
    drain_s : float
        How long a server that was told to stop finishes what it took.
    ui : bool
        Serve the web page at ``/``. Its files are public: they hold nothing. What the page asks needs the token.
    """

    stacks: dict[StackName, Path] = Field(min_length=1)
    base: str | None = None
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    fold: Literal["auto", "always", "never"] = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allow_remote: bool = False
    token: SecretStr | None = None
    no_token: bool = False
    trusted_proxies: tuple[str, ...] = ()
    state: Path = Path("serve-state")
    audit_bytes: int = Field(default=10_000_000, ge=1000)
    audit_files: int = Field(default=9, ge=1)
    stacks_root: Path | None = None
    max_body_bytes: int = Field(default=2_000_000, ge=1000)
    max_notes: int = Field(default=64, ge=1)
    max_characters: int = Field(default=200_000, ge=1)
    max_in_flight: int = Field(default=256, ge=1)
    requests_per_minute: int = Field(default=600, ge=0)
    queue_tokens: int = Field(default=200_000, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    window_ms: float = Field(default=4.0, ge=0)
    timeout_s: float = Field(default=60.0, gt=0)
    drain_s: float = Field(default=60.0, ge=0)
    ui: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)

    @field_validator("token")
    @classmethod
    def _token_is_long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            check_token(token.get_secret_value())
        return token

    @model_validator(mode="after")
    def _remote_only_on_purpose(self) -> ServeSettings:
        if not self.is_loopback and not self.allow_remote:
            raise ValueError(
                f"{self.host} is reached from other machines, and the server speaks plain HTTP: put a proxy with TLS "
                "before it and add --allow-remote, or use 127.0.0.1"
            )
        if self.no_token and not self.is_loopback:
            raise ValueError("--no-token is for a loopback host only; give a token, and let the proxy add it")
        if self.no_token and self.token is not None:
            raise ValueError("a token and --no-token exclude each other")
        return self


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str) -> None:
    """Refuse a token that cannot stand in a header, or is short enough to be guessed.

    Raises
    ------
    ValueError
        Without the token.
    """
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"a token has at least {SHORTEST_TOKEN} printable ASCII characters, and no space")


def serve_settings(values: Mapping[str, Any]) -> ServeSettings:
    """Build settings from plain values.

    Raises
    ------
    InputError
        Naming each option that is wrong, never its value where that could be the token.
    """
    try:
        return ServeSettings(**values)
    except ValidationError as error:
        raise InputError("serve: " + "; ".join(_explain(item) for item in error.errors(include_url=False))) from None


def _explain(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["loc"][:1] == ("stacks",) and len(item["loc"]) > 1:
        return (
            f"the name {item['loc'][1]!r} of a stack: use letters, digits and . _ + @ - (at most 100), "
            "as in --name mortality=FOLDER"
        )
    if item["type"] == "missing" or item["loc"] == ("stacks",):
        return "name a Stack or a finished Run"
    if item["loc"] == ("token",):
        return message  # it comes from a file or from the environment
    return f"--{str(item['loc'][0]).replace('_', '-')}: {message}" if item["loc"] else message
