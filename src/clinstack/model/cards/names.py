"""What a base is called outside: its id on the hub, or the last part of its place; never a path of this machine."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from clinstack.model.base import EMBEDDED_FOLDERS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CACHED = re.compile(r"models--([A-Za-z0-9][\w.-]*?)--([A-Za-z0-9][\w.-]*)")
"""How the hub's cache calls the folder of a model."""


def hub_id(base: str) -> str | None:
    """Return a base's id on the hub, for one that is named by it or by its folder in the hub's cache; None otherwise.

    Examples
    --------
    >>> hub_id("/home/ann/.cache/huggingface/hub/models--google--gemma-2b/snapshots/9cf48e52")
    'google/gemma-2b'
    >>> hub_id("/models/gemma-2b") is None
    True
    """
    for part in reversed(PurePosixPath(base.replace("\\", "/")).parts):
        cached = _CACHED.fullmatch(part)
        if cached:
            return f"{cached[1]}/{cached[2]}"
    if base in EMBEDDED_FOLDERS or _HUB_ID.fullmatch(base) is None or Path(base).is_dir():
        return None
    return base


def public_base_name(base: str) -> str:
    """Return what a card calls a base that a recipe or ``stack.json`` names so.

    A relative folder of two parts that is not on this machine looks like an id on the hub, and is taken for one.
    """
    if base in EMBEDDED_FOLDERS:
        return base
    found = hub_id(base)
    if found is not None:
        return found
    if Path(base).is_dir():
        return Path(base).resolve().name or "base"
    return PureWindowsPath(base.replace("\\", "/")).name or "base"
