"""What a folder of weights may hold: no link out of it, no name that leads out, no pickle in a Stack, sane JSON.

A Stack, an adapter or a base may come from anybody. What the libraries open by name (shards of an index, the folders
of a record) could lead anywhere on the disk; a link could bring a file from elsewhere into an export.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clinstack.errors import InputError

MOST_JSON = 64 * 2**20
"""Bytes of a JSON file that describes a model: the index of the largest has 2 MiB, a tokenizer's settings less."""
MOST_TOKENIZER = 512 * 2**20
"""Bytes of ``tokenizer.json``; those of the largest vocabularies have 40 MiB."""
MOST_FILES = 10_000
PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
"""Endings of files that PyTorch, joblib and others write as pickles, which run code when they are opened."""
PROGRAMS = frozenset({".dll", ".dylib", ".exe", ".js", ".py", ".pyc", ".pyd", ".sh", ".so"})
INDEX_FILE = "model.safetensors.index.json"
_DESCRIBING = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    INDEX_FILE,
)


def refuse_large(path: Path, what: str, most: int = MOST_JSON) -> None:
    """Refuse a file of somebody else's that is far larger than such files are, before it is read.

    Raises
    ------
    InputError
        If it has more than ``most`` bytes.
    """
    size = path.stat().st_size
    if size > most:
        raise InputError(f"{what}: {path} has {size:,} bytes, and at most {most:,} are read; copy it again.")


def read_json_object(path: Path, what: str, most: int = MOST_JSON) -> dict[str, Any]:
    """Read a JSON file of somebody else's.

    Raises
    ------
    InputError
        If it is too large, nested too deeply, damaged, or no object.
    """
    refuse_large(path, what, most)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{what}: {path} is nested too deeply to be read; copy it again.") from None
    except ValueError:
        raise InputError(f"{what}: {path} is damaged (not JSON); copy it again.") from None
    if not isinstance(values, dict):
        raise InputError(f"{what}: {path} holds no JSON object; copy it again.")
    return values


def plain_name(name: Any, what: str) -> str:
    """Return a name of a file or folder if it is one, and no way out of where it stands.

    Raises
    ------
    InputError
        For a path, ``..``, an absolute name, or something that is no text.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(f"{what}: {name!r} is no plain name; names that lead out of the folder are not followed.")
    return name


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its folders, links among them, by name; hidden ones such as ``.git`` are not."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(here) / name).is_symlink()]
        for name in sorted((*files, *linked)):
            if not name.startswith("."):
                yield Path(here) / name


def refuse_links_out(folder: Path, what: str) -> None:
    """Refuse a folder with a link that leads out of it.

    In a cache of the Hugging Face hub, a model's files are links to where the cache keeps their contents
    (``snapshots/`` to ``blobs/``); those are its way to store them, and are followed.

    Raises
    ------
    InputError
        Naming the link, or if there are too many files to look at.
    """
    root = folder.resolve()
    allowed = (root, *_stores(root))
    for number, path in enumerate(files_below(folder)):
        if number >= MOST_FILES:
            raise InputError(
                f"{what}: {folder} has more than {MOST_FILES:,} files; name the folder of the model alone."
            )
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise InputError(
                f"{what}: {path} is a link out of {folder}, and links out are not followed. "
                "Put the file itself in its place."
            )


def _stores(folder: Path) -> tuple[Path, ...]:
    """Return where a cache of the hub keeps the contents of a snapshot's files; nothing for any other folder."""
    model = folder.parent.parent
    if folder.parent.name != "snapshots" or not model.name.startswith("models--"):
        return ()
    return model / "blobs", model.parent / "blobs"  # of this model, and what the cache shares between models


def refuse_pickles(folder: Path, what: str) -> None:
    """Refuse a folder that should hold safetensors only, and holds a pickle.

    Raises
    ------
    InputError
        Naming the file.
    """
    for path in files_below(folder):
        if path.suffix.lower() in PICKLES:
            raise InputError(
                f"{what}: {path} may be a pickle, which can run any code when it is opened. A Stack has none: remove "
                "the file, or take the Stack from its source again."
            )


def check_base_folder(folder: Path, what: str) -> None:
    """Look at a base's folder before a library opens anything in it by name.

    Raises
    ------
    InputError
        For a link out of the folder, a shard outside it or of another format, or JSON that is none.
    """
    refuse_links_out(folder, what)
    described = {name: read_json_object(folder / name, what) for name in _DESCRIBING if (folder / name).is_file()}
    if (folder / "tokenizer.json").is_file():
        refuse_large(folder / "tokenizer.json", what, MOST_TOKENIZER)
    shards = described.get(INDEX_FILE, {}).get("weight_map", {})
    if not isinstance(shards, dict):
        raise InputError(f"{what}: {folder / INDEX_FILE} has no weight_map of names; copy it again.")
    for shard in sorted(set(map(str, shards.values()))):
        plain_name(shard, f"{what}: {folder / INDEX_FILE}")
        if Path(shard).suffix != ".safetensors":
            raise InputError(f"{what}: {folder / INDEX_FILE} names {shard}; only safetensors are opened.")
