"""A store of tokenised notes on disk: written once, in shards, and memory-mapped afterwards.

::

    tokens/                       beside the notes, because tokens can be read back as text
      README.md
      <fingerprint>/              one split of the notes' patients, as one tokenizer sees it
        store.json                fingerprint, what it is of, the shards with their sizes; written last
        00000.tokens              token ids of many notes, one note after another; uint16 or uint32, little-endian
        00000.arrow               note_id, patient_id, note_type, characters, tokens, offset: one row for each note
        00001.tokens ...
      .<fingerprint>.partial/     the shards of a store that is being written, or whose writer was killed
      .<fingerprint>.lock         who writes holds it; others wait

Begin and end tokens are not stored, so that one store serves all layouts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.files import read_json, write_json, write_text
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.notes import NoteTokens
from clinstack.tokens.shards import NotesBatch, Shard, arrow_file, finished_shards, tokens_file, write_shards

FORMAT_VERSION = 1
RECORD = "store.json"
_README = """\
The notes beside this folder as token ids. Tokens can be turned back into text: keep this folder as carefully as the
notes themselves, and give it to nobody who may not read them.

It is a cache. Delete it when nothing is running; what is needed is made again.
"""


class DamagedStoreError(Exception):
    """A store's files are not what its record says."""


class Watched(Protocol):
    """What is told of progress, such as a bar."""

    def advance(self, units: int = 0, steps: int = 1) -> None:
        """Count ``steps`` more notes as done, which had ``units`` tokens."""


def open_store(
    place: Path,
    source: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    read: Callable[[], Iterable[NotesBatch]],
    *,
    say: Callable[[str], None],
    watch: Callable[[int], AbstractContextManager[Watched]],
) -> NoteTokens:
    """Return tokenised notes, and tokenise them first where that was not done before.

    A writer that is killed leaves its finished shards, and the next one goes on behind them with the same result.
    Of several processes one writes and the others wait for it.

    Parameters
    ----------
    place : Path
        Folder of all stores.
    source : dict
        JSON values that say which notes these are: hashes of their files, and how they were chosen. With the tokenizer
        they make the fingerprint.
    tokenizer : PreTrainedTokenizerBase
    read : callable
        Yields the notes, always in the same order; called only when they have to be tokenised.
    say : callable
        Shows a line to a person.
    watch : callable
        Opens a display of progress, given how many notes an earlier start has done.

    Raises
    ------
    InputError
        If the folder cannot be written, or there are no notes.
    """
    encoder = TextEncoder(tokenizer)
    facts = {"format_version": FORMAT_VERSION, "source": source, "tokenizer": encoder.fingerprint}
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    folder = place / fingerprint
    found = _opened(folder, fingerprint, say)
    if found is not None:
        return found
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place / f".{fingerprint}.lock", say):
            found = _opened(folder, fingerprint, say)  # another process may have written it meanwhile
            if found is not None:
                return found
            if not (place / "README.md").is_file():
                write_text(place / "README.md", _README)
            _write(folder, fingerprint, facts, encoder, read, watch)
    except OSError as error:
        raise InputError(
            f"tokens: {place} cannot be written ({error.strerror or type(error).__name__}); "
            "name another folder with the key tokens."
        ) from None
    return _read(folder, fingerprint)


@contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock, and say so when that means to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{path.parent}: another process turns the same notes into tokens; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _opened(folder: Path, fingerprint: str, say: Callable[[str], None]) -> NoteTokens | None:
    """Return a finished store, or None where there is none that is whole."""
    if not folder.exists():
        return None
    try:
        return _read(folder, fingerprint)
    except DamagedStoreError as error:
        say(f"{folder}: these tokens are damaged ({error}) and are made again.")
        return None


def _read(folder: Path, fingerprint: str) -> NoteTokens:
    """Open a finished store.

    Raises
    ------
    DamagedStoreError
        If a file is missing, has another size than recorded, or does not fit the others.
    """
    try:
        record = read_json(folder / RECORD)
        shards = [Shard(**item) for item in record["shards"]]
        dtype = np.dtype(record["dtype"])
        same = record["fingerprint"] == fingerprint
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedStoreError(f"{RECORD}: {type(error).__name__}") from None
    if not same:
        raise DamagedStoreError(f"{RECORD}: of another fingerprint")
    tables, mapped = [], []
    for number, shard in enumerate(shards):
        table, tokens = _read_shard(folder, number, shard, dtype)
        tables.append(table)
        mapped.append(tokens)
    index = pa.concat_tables(tables)
    count = index["tokens"].to_numpy()
    number_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    documents = Documents(tuple(mapped), number_of, index["offset"].to_numpy(), count)
    return NoteTokens(index.drop_columns(["tokens", "offset"]), documents)


def _read_shard(folder: Path, number: int, shard: Shard, dtype: np.dtype[Any]) -> tuple[pa.Table, NDArray[Any]]:
    files = {folder / tokens_file(number): shard.bytes, folder / arrow_file(number): shard.index_bytes}
    for file, size in files.items():
        if not file.is_file() or file.stat().st_size != size:
            raise DamagedStoreError(f"{file.name} is missing or has not the size recorded")
    try:
        with pa.memory_map(str(folder / arrow_file(number))) as source:
            table = pa.ipc.open_file(source).read_all()
        counts, offsets = table["tokens"].to_numpy(), table["offset"].to_numpy()
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DamagedStoreError(f"{arrow_file(number)}: {type(error).__name__}") from None
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if len(table) != shard.notes or total * dtype.itemsize != shard.bytes or (offsets != ends - counts).any():
        raise DamagedStoreError(f"{arrow_file(number)} does not fit {tokens_file(number)}")
    tokens: NDArray[Any] = np.empty(0, dtype=dtype)
    if total:  # an empty file cannot be mapped
        tokens = np.memmap(folder / tokens_file(number), dtype=dtype, mode="r", shape=(total,))
    return table, tokens


def _write(
    folder: Path,
    fingerprint: str,
    facts: dict[str, Any],
    encoder: TextEncoder,
    read: Callable[[], Iterable[NotesBatch]],
    watch: Callable[[int], AbstractContextManager[Watched]],
) -> None:
    partial = folder.with_name(f".{fingerprint}.partial")
    partial.mkdir(exist_ok=True)
    done = finished_shards(partial, encoder.dtype)
    with watch(sum(shard.notes for shard in done)) as watched:
        shards = write_shards(partial, encoder, read(), done, watched.advance)
    if not shards:
        shutil.rmtree(partial)
        raise InputError(f"notes: none of the {facts['source'].get('split', '')} patients' notes has text.")
    write_json(
        partial / RECORD,
        {
            "fingerprint": fingerprint,
            **facts,
            "dtype": encoder.dtype.str,
            "notes": sum(shard.notes for shard in shards),
            "tokens": sum(shard.bytes for shard in shards) // encoder.dtype.itemsize,
            "shards": [asdict(shard) for shard in shards],
        },
    )
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
