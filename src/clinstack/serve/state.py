"""The state folder of a server: its token and its audit log, readable by its owner only."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clinstack.errors import InputError
from clinstack.serve.settings import ServeSettings, check_token

TOKEN_FILE = "token"
TOKEN_BYTES = 32


@contextmanager
def state_folder(folder: Path) -> Iterator[None]:
    """Make the state folder, readable by its owner only, and hold it against another server.

    Raises
    ------
    InputError
        Another server holds it, or others may read it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_readable(folder, "chmod 700")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"--state: another server uses {folder}; name a folder of its own.") from None
    try:
        yield
    finally:
        lock.release()


def server_token(settings: ServeSettings) -> tuple[str | None, Path | None, bool]:
    """Return the token, the file that keeps it, and whether it is new.

    Raises
    ------
    InputError
        The file is readable by others, or holds no token.
    """
    if settings.no_token:
        return None, None, False
    if settings.token is not None:
        return settings.token.get_secret_value(), None, False
    file = settings.state / TOKEN_FILE
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(file), file, False
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(token + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    return token, file, True


def read_token(file: Path) -> str:
    """Read a token from a file that only its owner may read.

    Raises
    ------
    InputError
        It is missing, readable by others, or holds no token. The message does not repeat what it holds.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist; it is to hold the token.")
    _refuse_readable(file, "chmod 600")
    token = file.read_text(encoding="utf-8", errors="replace").strip()
    try:
        check_token(token)
    except ValueError as error:
        raise InputError(f"{file}: {error}. Remove it, and the next start generates one.") from None
    return token


def _refuse_readable(path: Path, remedy: str) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(f"{path} may be read by others than its owner: {remedy} {path}")
