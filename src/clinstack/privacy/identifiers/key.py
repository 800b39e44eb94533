"""The secret of the surrogates: a file that its owner alone can read, or bytes that nobody keeps."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from clinstack.errors import InputError

_KEY_BYTES = 32


def read_key(file: Path | None) -> bytes:
    """Read or make the key of a file, or draw one that nobody keeps.

    Raises
    ------
    InputError
        If others may read the file, or it does not hold 32 bytes in hexadecimal digits.
    """
    if file is None:
        return secrets.token_bytes(_KEY_BYTES)
    try:
        with open(file, "x", encoding="ascii", opener=_private) as made:
            made.write(secrets.token_hex(_KEY_BYTES) + "\n")
    except FileExistsError:
        if not file.is_file():
            raise InputError(f"{file} is no file; name one for the key of --scrub.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be written ({type(error).__name__}); name another for the key.") from None
    if file.stat().st_mode & 0o077:
        raise InputError(f"{file}: others may read this key; chmod 600 it.")
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise InputError(
            f"{file} is no key: {2 * _KEY_BYTES} hexadecimal digits are needed; name a new file to make one."
        )
    return key


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
