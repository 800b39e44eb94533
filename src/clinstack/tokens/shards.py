"""Writing tokens in shards: each is whole on disk or not there, so a killed writer loses one at most."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinstack.files import replacing_file
from clinstack.tokens.encode import TextEncoder

_SHARD_NOTES = 1 << 16
_SHARD_CHARACTERS = 1 << 27
_BATCH_CHARACTERS = 1 << 20
"""Texts that are encoded together: more would keep no core busier, and an encoding is a hundred times its tokens."""
_SCHEMA = pa.schema(
    [
        ("note_id", pa.string()),
        ("patient_id", pa.string()),
        ("note_type", pa.string()),
        ("characters", pa.int64()),
        ("tokens", pa.int64()),
        ("offset", pa.int64()),
    ]
)


class NotesBatch(Protocol):
    """Some notes, column by column."""

    @property
    def note_ids(self) -> Sequence[str]:
        """Identifiers of the notes."""

    @property
    def patient_ids(self) -> Sequence[str]:
        """Whose they are."""

    @property
    def note_types(self) -> Sequence[str]:
        """Their types."""

    @property
    def texts(self) -> Sequence[str]:
        """Their texts."""


@dataclass(frozen=True)
class Shard:
    """What `store.json` says of a shard: notes in it, and the sizes of its two files."""

    notes: int
    bytes: int
    index_bytes: int


@dataclass(frozen=True)
class _Note:
    note_id: str
    patient_id: str
    note_type: str
    text: str


def tokens_file(number: int) -> str:
    """Return the name of a shard's tokens."""
    return f"{number:05d}.tokens"


def arrow_file(number: int) -> str:
    """Return the name of a shard's index, which is written after its tokens."""
    return f"{number:05d}.arrow"


def finished_shards(folder: Path, dtype: np.dtype[Any]) -> list[Shard]:
    """Return the shards that an earlier writer finished, up to the first that is missing or not whole."""
    shards: list[Shard] = []
    while (index := folder / arrow_file(len(shards))).is_file():
        tokens = folder / tokens_file(len(shards))
        try:
            with pa.memory_map(str(index)) as source:
                counts = pa.ipc.open_file(source).read_all()["tokens"].to_numpy()
        except (pa.ArrowInvalid, KeyError):
            break
        if not tokens.is_file() or tokens.stat().st_size != int(counts.sum()) * dtype.itemsize:
            break
        shards.append(Shard(len(counts), tokens.stat().st_size, index.stat().st_size))
    return shards


def write_shards(
    folder: Path,
    encoder: TextEncoder,
    notes: Iterable[NotesBatch],
    done: Sequence[Shard],
    advance: Callable[[int, int], None],
) -> list[Shard]:
    """Write the shards of notes behind those that are done, and return all.

    Where a shard ends depends on the notes alone, so one that is begun again has the same bytes.
    """
    shards = list(done)
    each = _single_notes(notes, sum(shard.notes for shard in done))
    for part in _parts(each):
        shards.append(_write_shard(folder, len(shards), encoder, part, advance))
    return shards


def _single_notes(notes: Iterable[NotesBatch], skip: int) -> Iterator[_Note]:
    for batch in notes:
        if skip >= len(batch.texts):
            skip -= len(batch.texts)
            continue
        columns = (batch.note_ids, batch.patient_ids, batch.note_types, batch.texts)
        yield from map(_Note, *(column[skip:] for column in columns))
        skip = 0


def _parts(notes: Iterator[_Note]) -> Iterator[Iterator[_Note]]:
    """Yield the notes of one shard after another; each has to be read to its end before the next."""

    def part(first: _Note) -> Iterator[_Note]:
        yield first
        count, characters = 1, len(first.text)
        while count < _SHARD_NOTES and characters < _SHARD_CHARACTERS:
            note = next(notes, None)
            if note is None:
                return
            yield note
            count, characters = count + 1, characters + len(note.text)

    for first in notes:
        yield part(first)


def _write_shard(
    folder: Path, number: int, encoder: TextEncoder, notes: Iterator[_Note], advance: Callable[[int, int], None]
) -> Shard:
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    at = 0
    target, index = folder / tokens_file(number), folder / arrow_file(number)
    with replacing_file(target) as temporary, temporary.open("wb") as file:
        for batch, ids in _encoded(encoder, notes):
            for note, tokens in zip(batch, ids, strict=True):
                columns["note_id"].append(note.note_id)
                columns["patient_id"].append(note.patient_id)
                columns["note_type"].append(note.note_type)
                columns["characters"].append(len(note.text))
                columns["tokens"].append(len(tokens))
                columns["offset"].append(at)
                at += len(tokens)
                file.write(tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes())
            advance(sum(map(len, ids)), len(batch))
    with replacing_file(index) as temporary, pa.ipc.new_file(str(temporary), _SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=_SCHEMA))
    return Shard(len(columns["note_id"]), target.stat().st_size, index.stat().st_size)


def _encoded(encoder: TextEncoder, notes: Iterator[_Note]) -> Iterator[tuple[list[_Note], list[NDArray[Any]]]]:
    """Yield notes with their token ids, batch by batch.

    The tokenizer works on the next batch, on all cores and without Python's lock, while this one is unpacked and
    written and the one after it is read.
    """
    waiting: deque[tuple[list[_Note], Future[Sequence[Any]]]] = deque()
    with ThreadPoolExecutor(1) as ahead:
        for batch in _batches(notes):
            waiting.append((batch, ahead.submit(encoder.encode, [note.text for note in batch])))
            if len(waiting) > 2:
                first, encodings = waiting.popleft()
                yield first, encoder.ids(encodings.result())
        while waiting:
            first, encodings = waiting.popleft()
            yield first, encoder.ids(encodings.result())


def _batches(notes: Iterator[_Note]) -> Iterator[list[_Note]]:
    batch: list[_Note] = []
    characters = 0
    for note in notes:
        batch.append(note)
        characters += len(note.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
