"""What a frozen stack's head reads of pieces of notes: computed once, and kept on disk for whoever needs it again.

Where nothing below the head trains, features are the same in every epoch, trial and seed, and for every task that
shares the frozen part. So they are kept by what they are a function of: the frozen part, and a piece's tokens.

::

    features/                     beside the notes: what they say of a patient is as confidential
      README.md
      <fingerprint>/              one frozen part: base, adapters, dtype, quantisation, pooling, layer, kind of device
        stack.json                what the fingerprint is of
        <name>.safetensors        many pieces: keys (hashes of their tokens) and features; named by its contents' hash
      .<fingerprint>.lock         who computes holds it; others wait

On a CPU a piece is computed alone, so its features do not depend on what else was asked for, on the order or on a kill:
whoever computes them gets the same bits. A shard is written every half minute and at the end; a start that was killed
loses what came after its last one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.numpy import load, save

from clinstack.engine.classification import EncodedExamples
from clinstack.engine.distributed import world
from clinstack.engine.pieces import ROW_TOKENS, piece_features
from clinstack.engine.progress import console, progress_bar
from clinstack.files import replacing_file, write_text
from clinstack.model.lineage import tensors_hash
from clinstack.model.stack import Stack
from clinstack.notes.read import read_examples
from clinstack.tokens.batches import by_length
from clinstack.tokens.documents import Tokens
from clinstack.tokens.texts import encode_texts

FORMAT_VERSION = 1
"""Of the files, and of the code that computes features: another one means other features."""
FOLDER = "features"
SHARD_SECONDS = 30.0
"""Time between two shards: what a killed start computes again at most."""
_KEY = 16
"""Bytes of a piece's key."""
_README = """\
Numbers that a model computed from the notes beside this folder. Something of a note can be guessed from them: keep this
folder as carefully as the notes themselves, and give it to nobody who may not read them.

It is a cache. Delete it when nothing is running; what is needed is computed again.
"""

Features = NDArray[np.float32]


def frozen_facts(stack: Stack) -> dict[str, Any]:
    """Return everything that a frozen stack's features are a function of, besides a piece's tokens."""
    return {
        "format_version": FORMAT_VERSION,
        "base": stack.base.fingerprint,
        "adapters": [
            {
                "name": adapter.name,
                "method": adapter.method,
                "weights": tensors_hash(stack.adapter_tensors(adapter.name)),
            }
            for adapter in stack.adapters
        ],
        "dtype": stack.dtype,
        "quantize": stack.quantize,
        "pooling": [stack.reads.pooling, stack.pooling],
        "layer": stack.layer,
        "device": stack.device.type,
    }


def piece_key(tokens: Tokens) -> bytes:
    """Return the key of a piece: a hash of its tokens."""
    return hashlib.blake2b(tokens.tobytes(), digest_size=_KEY).digest()


@dataclass(frozen=True)
class FeatureFolders:
    """Where features are kept.

    Parameters
    ----------
    notes : Path
        ``features`` beside the notes.
    run : Path
        ``features`` in the Run, for notes that nobody may write beside. They go when the Run is done.
    """

    notes: Path
    run: Path

    @classmethod
    def of(cls, examples: Path, run: Path) -> FeatureFolders:
        """Return those of a task's examples; Notes have these in ``examples/<task>``."""
        inside_notes = examples.parent.name == "examples"
        return cls((examples.parent.parent if inside_notes else examples) / FOLDER, run / FOLDER)


def compute_features(
    stack: Stack,
    wanted: Sequence[Sequence[Tokens]],
    folders: FeatureFolders,
    description: str,
    also: Callable[[], Sequence[Sequence[Tokens]]] | None = None,
) -> list[Features]:
    """Return what the head reads of pieces, from the disk as far as it is there, and computed else.

    All processes of a start call it.

    Parameters
    ----------
    stack : Stack
        Nothing below its head trains.
    wanted : sequence of sequence of int64 arrays
        Pieces, such as one list for each split.
    folders : FeatureFolders
    description : str
        Of the bar.
    also : callable, optional
        Returns pieces of other tasks that are computed in the same pass; called only when something is to be computed.

    Returns
    -------
    list of float32 arrays [pieces, features]
        One for each list.
    """
    here = world()
    facts = frozen_facts(stack)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    keys = [[piece_key(piece) for piece in pieces] for pieces in wanted]
    everything = {key for part in keys for key in part}
    rows: dict[bytes, Features] = {}
    if here.is_main:
        for folder in (folders.notes, folders.run):
            rows |= _read(folder / name, everything - set(rows))
    if here.send(everything <= set(rows)):
        rows = here.send(rows)
    else:
        store = _opened(folders, name) if here.is_main else None
        with _alone(store):
            if store is not None:
                _describe(store, facts)
            pieces = {piece_key(piece): piece for part in wanted for piece in part}
            for part in [] if also is None else also():
                pieces |= {piece_key(piece): piece for piece in part}
            if store is not None:  # another process may have computed them meanwhile
                rows |= _read(store, set(pieces) - set(rows), repair=True)
            missing = here.send(sorted(set(pieces) - set(rows), key=lambda key: (-len(pieces[key]), key)))
            for shard in _computed(stack, {key: pieces[key] for key in missing}, description):
                if store is not None:
                    _write(store, shard)
                rows |= shard
            rows = here.send({key: rows[key] for key in everything})
    width = stack.head.in_features
    return [np.stack([rows[key] for key in part]) if part else np.empty((0, width), np.float32) for part in keys]


def read_frozen(
    stack: Stack,
    encoded: Mapping[str, EncodedExamples],
    folders: FeatureFolders,
    description: str,
    shared_with: Sequence[str] = (),
) -> None:
    """Let splits read features instead of running the frozen stack.

    Parameters
    ----------
    shared_with : sequence of str
        Folders of other tasks, whose notes are computed in the same pass where there is something to compute; a note
        that several have is read once.
    """

    def pieces_of_others() -> list[list[Tokens]]:
        splits = [split for folder in shared_with for split in read_examples(Path(folder))[1].values()]
        return [encode_texts(stack.tokenizer, stack.reading, split.texts, split.sections).pieces for split in splits]

    pieces = [split.encoded.pieces for split in encoded.values()]
    features = compute_features(stack, pieces, folders, description, pieces_of_others)
    for split, own in zip(encoded.values(), features, strict=True):
        split.use_features(own)


def _computed(stack: Stack, missing: Mapping[bytes, Tokens], description: str) -> Iterator[dict[bytes, Features]]:
    """Yield features in shards, computed by all processes."""
    here = world()
    keys, pieces = list(missing), list(missing.values())
    batches = _batches(stack, [len(piece) for piece in pieces])
    rounds = [batches[at : at + here.size] for at in range(0, len(batches), here.size)]
    shard: dict[bytes, Features] = {}
    written = time.monotonic()
    stack.eval()
    with torch.inference_mode(), progress_bar(description, len(rounds), unit="notes") as bar:
        for group in rounds:
            chosen = [index for batch in group for index in batch]
            features = np.zeros((len(chosen), stack.head.in_features), dtype=np.float32)
            for batch in here.share(group):
                at = [chosen.index(index) for index in batch]
                features[at] = piece_features(stack, [pieces[index] for index in batch]).float().cpu().numpy()
            features = here.add_up(features)
            shard |= {keys[index]: row for index, row in zip(chosen, features, strict=True)}
            bar.advance(len(chosen))
            if here.send(time.monotonic() - written > SHARD_SECONDS):
                yield shard
                shard, written = {}, time.monotonic()
    if shard:
        yield shard


def _batches(stack: Stack, lengths: Sequence[int]) -> list[list[int]]:
    """Return which pieces, the longest first, are computed together: on a CPU each alone, which is as fast."""
    if stack.device.type == "cpu":
        return [[index] for index in range(len(lengths))]
    return list(by_length(lengths, 4 * ROW_TOKENS)) if lengths else []


def _opened(folders: FeatureFolders, name: str) -> Path:
    """Return the folder to write in; the one in the Run, with a word, where the notes' cannot be written."""
    try:
        return _made(folders.notes, name)
    except OSError as error:
        console.print(
            f"[yellow]{folders.notes} cannot be written ({error.strerror}): features are kept in the Run for now, and "
            "other Runs compute them again.",
            soft_wrap=True,
        )
        return _made(folders.run, name)


def _made(place: Path, name: str) -> Path:
    store = place / name
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    store.with_name(f".{name}.lock").touch()
    if not os.access(store, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return store


def _describe(store: Path, facts: dict[str, Any]) -> None:
    """Say what a folder holds, and how to treat it."""
    for file, text in ((store.parent / "README.md", _README), (store / "stack.json", json.dumps(facts, indent=2))):
        if not file.is_file():
            write_text(file, text)


@contextmanager
def _alone(store: Path | None) -> Iterator[None]:
    """Hold the lock of a folder, and say so when that means to wait."""
    if store is None:
        yield
        return
    lock = FileLock(store.with_name(f".{store.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"{store}: another process computes features of the same stack; waiting for it.", soft_wrap=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(store: Path, shard: Mapping[bytes, Features]) -> None:
    data = save(
        {"keys": np.frombuffer(b"".join(shard), np.uint8).reshape(-1, _KEY), "features": np.stack([*shard.values()])}
    )
    digest = hashlib.blake2b(data, digest_size=_KEY).hexdigest()
    with replacing_file(store / f"{digest}.safetensors") as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def _read(store: Path, keys: set[bytes], *, repair: bool = False) -> dict[bytes, Features]:
    """Return the features that a folder has of some pieces. A damaged shard is none; ``repair`` deletes it."""
    found: dict[bytes, Features] = {}
    for file in sorted(store.glob("*.safetensors")) if keys else []:
        data = file.read_bytes()
        if hashlib.blake2b(data, digest_size=_KEY).hexdigest() != file.stem:
            if repair:
                console.print(f"[yellow]{file} is damaged; these features are computed anew.", soft_wrap=True)
                file.unlink(missing_ok=True)
            continue
        tensors = load(data)
        for place, key in enumerate(map(bytes, tensors["keys"])):
            if key in keys:
                found[key] = tensors["features"][place]
    return found
