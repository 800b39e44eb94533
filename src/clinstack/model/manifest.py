"""The manifest of a base model's folder: every file with its size and hash, compared whenever the base is opened.

Whoever carries a base into a closed network writes it once, where the files came from, and it travels with them. A file
that differs, is missing or is new since then is named, and the base is not opened. The manifest does not say who wrote
it: who could change the files could write another. So its fingerprint is what is handed on by another way, and pinned
as ``base: FOLDER@sha256:…`` in a recipe; a Stack's record pins it too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import write_json
from clinstack.model.folders import PICKLES, PROGRAMS, files_below, plain_name, read_json_object

MANIFEST_FILE = "clinstack-manifest.json"
FORMAT_VERSION = 1
_REMEDY = "Copy the base again from where it came from"


def write_manifest(folder: Path, fingerprint: str, hash_of: Callable[[Path], str]) -> Path:
    """Write the manifest of a base's folder beside its files, and return its path.

    Parameters
    ----------
    folder : Path
    fingerprint : str
        Of the base, as `clinstack.model.base.find_base` gives it.
    hash_of : callable
        Returns ``sha256:<hex>`` of a file.

    Raises
    ------
    InputError
        If the folder holds a pickle or a program: a manifest vouches for what clinstack would open, and it opens none;
        or if it cannot be written.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in _listed(folder):
        if path.suffix.lower() in PICKLES | PROGRAMS:
            kind = "a pickle" if path.suffix.lower() in PICKLES else "a program"
            raise InputError(
                f"{path} is {kind}; clinstack opens none, and a manifest vouches for none. Remove it, or copy the "
                "safetensors, configuration and tokenizer into a folder of their own."
            )
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": hash_of(path)[7:]}
    record = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "created_by": f"clinstack {__version__}",
        "files": files,
    }
    try:
        write_json(folder / MANIFEST_FILE, record)
    except OSError as error:
        raise InputError(
            f"{folder / MANIFEST_FILE} cannot be written ({error.strerror}); copy the base to a folder of yours first."
        ) from None
    return folder / MANIFEST_FILE


def check_manifest(folder: Path, hash_of: Callable[[Path], str], *, with_weights: bool = True) -> dict[str, Any] | None:
    """Compare a base's folder with the manifest in it, and return that; None where there is none.

    Parameters
    ----------
    hash_of : callable
        Returns ``sha256:<hex>`` of a file; where it remembers them, nothing is read twice.
    with_weights : bool
        Also read the weights; without it only their sizes are compared.

    Raises
    ------
    InputError
        Naming the first file that differs, is missing, or is not in the manifest; or if the manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    record = read_json_object(path, "base")
    files = _files_of(record, path)
    present = {file.relative_to(folder).as_posix(): file for file in _listed(folder)}
    for name in sorted(set(files) - set(present)):
        raise InputError(f"base: {folder / name} is missing, and {MANIFEST_FILE} lists it. {_REMEDY}.")
    for name in sorted(set(present) - set(files)):
        raise InputError(
            f"base: {folder / name} is not in {MANIFEST_FILE}: it was put there since. Remove it; or, where it belongs "
            "to the base, write the manifest anew with `clinstack base manifest --force`."
        )
    for name, (size, digest) in sorted(files.items()):
        file = present[name]
        differs = file.stat().st_size != size
        if not differs and (with_weights or file.suffix != ".safetensors"):
            differs = hash_of(file) != f"sha256:{digest}"
        if differs:
            raise InputError(f"base: {file} differs from what {MANIFEST_FILE} records. {_REMEDY}.")
    return record


def refuse_other_fingerprint(folder: Path, record: dict[str, Any], fingerprint: str) -> None:
    """Refuse a base whose fingerprint is not the one that its manifest ends in.

    Raises
    ------
    InputError
        If they differ: the manifest was changed by hand, or comes from a clinstack that counts other files.
    """
    if record.get("fingerprint") != fingerprint:
        raise InputError(
            f"base: {folder / MANIFEST_FILE} has the fingerprint {str(record.get('fingerprint'))[:19]}, the files have "
            f"{fingerprint[:19]}. {_REMEDY}, with its manifest."
        )


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in files_below(folder) if path != folder / MANIFEST_FILE)


def _files_of(record: dict[str, Any], path: Path) -> dict[str, tuple[int, str]]:
    if record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"base: {path}: format version {record.get('format_version')}; this clinstack reads {FORMAT_VERSION}."
        )
    try:
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in record["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"base: {path} is damaged; {_REMEDY.lower()}, with its manifest.") from None
    for name in files:
        for part in name.split("/"):
            plain_name(part, f"base: {path}")
    return files
