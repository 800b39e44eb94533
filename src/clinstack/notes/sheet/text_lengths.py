"""How long texts are in characters, words and tokens, and what a context of a given size would cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

import clinstack
from clinstack.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXTS = (128, 512, 2048)
_BATCH = 128
_ENCODED_AT_A_TIME = 16
_NONE = np.zeros(0, dtype=bool)
Counts = NDArray[np.int64]


class TokenCounter:
    """Counts a text's tokens as a classifier reads them: with the tokenizer's own special tokens.

    A text that several tasks share is counted once.

    Parameters
    ----------
    tokenizer : str
        ``embedded``, a folder with ``tokenizer.json``, or such a file.

    Raises
    ------
    InputError
        If there is no such tokenizer.
    """

    def __init__(self, tokenizer: str) -> None:
        self.name = tokenizer if tokenizer == "embedded" else Path(tokenizer).resolve().name
        self._tokenizer = _open_tokenizer(tokenizer)
        self.vocabulary = int(self._tokenizer.get_vocab_size())
        self._known: dict[bytes, int] = {}

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        keys = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        # A few at a time: an encoding takes some hundred bytes a token.
        for start in range(0, len(new), _ENCODED_AT_A_TIME):
            some = list(new)[start : start + _ENCODED_AT_A_TIME]
            for key, encoding in zip(some, self._tokenizer.encode_batch_fast([new[key] for key in some]), strict=True):
                self._known[key] = len(encoding.ids)
        return [self._known[key] for key in keys]


def _open_tokenizer(name: str) -> Tokenizer:
    from tokenizers import Tokenizer

    # The file alone, not the base around it: a builder need not import torch to count tokens.
    place = Path(clinstack.__file__).parent / "model" / "embedded" if name == "embedded" else Path(name)
    path = place / "tokenizer.json" if place.is_dir() else place
    if not path.is_file():
        raise InputError(
            f"tokenizer: {path} is missing; name a folder with tokenizer.json (transformers' save_pretrained writes "
            f"one), or 'embedded'."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"tokenizer: {path} is not a tokenizer.json ({type(error).__name__}).") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def measure_texts(
    path: Path, counter: TokenCounter, sample: int, seed: int, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Measure the texts of one file of examples, a batch of rows at a time.

    Characters and words are counted in all texts, tokens in a sample: the ``sample`` examples whose identifiers have
    the smallest hash with ``seed``, so that tasks which share examples share the sample.

    Parameters
    ----------
    path : Path
        Parquet with the columns ``example_id`` and ``text``.
    progress : callable, optional
        Called with the number of rows done since the last call.

    Returns
    -------
    dict
        ``texts``, ``empty``, ``characters`` and ``words`` (as `describe` returns them) and ``tokens``: the same of the
        sample, with ``sampled`` and ``contexts`` (as `cut_by` returns them).
    """
    chosen = _sample(path, sample, seed)
    characters: list[Counts] = []
    words: list[Counts] = []
    tokens: list[int] = []
    # A row group of long notes is hundreds of megabytes: it is read in small pieces, not at once.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(_BATCH, columns=["example_id", "text"]):
            texts = pc.fill_null(batch.column("text"), "")
            characters.append(pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
            words.append(count_words(texts))
            if chosen:
                ids = batch.column("example_id").to_pylist()
                tokens += counter.count([texts[row].as_py() for row, name in enumerate(ids) if str(name) in chosen])
            if progress:
                progress(batch.num_rows)
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *characters])
    counted = np.array(sorted(tokens), dtype=np.int64)
    return {
        "texts": len(lengths),
        "empty": int((lengths == 0).sum()),
        "characters": describe(lengths),
        "words": describe(np.concatenate([np.zeros(0, dtype=np.int64), *words])),
        "tokens": {"sampled": len(counted), **describe(counted), "contexts": cut_by(counted, CONTEXTS)},
    }


def _sample(path: Path, most: int, seed: int) -> set[str]:
    ids = [str(name) for name in pq.read_table(path, columns=["example_id"])["example_id"].to_pylist()]
    if len(ids) <= most:
        return set(ids)
    return set(sorted(ids, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))[:most])


def count_words(texts: pa.Array) -> Counts:
    """Count the runs of characters between blanks (ASCII whitespace and control characters) in each text.

    Parameters
    ----------
    texts : pyarrow.Array of string, without nulls
    """
    texts = texts.cast(pa.large_string())
    if not len(texts):
        return np.zeros(0, dtype=np.int64)
    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    bounds = (offsets - offsets[0]).tolist()
    # In UTF-8 every byte up to 32 is a blank or a control character, never part of a letter.
    blank = np.frombuffer(data, dtype=np.uint8, count=bounds[-1], offset=int(offsets[0])) <= 32 if bounds[-1] else _NONE
    begins = ~blank
    begins[1:] &= blank[:-1]
    counts = []
    for start, stop in pairwise(bounds):
        # A text begins anew whatever the one before it ended with.
        begins[start:stop][:1] = ~blank[start:stop][:1]
        counts.append(np.count_nonzero(begins[start:stop]))
    return np.array(counts, dtype=np.int64)


def describe(values: Counts) -> dict[str, float | int | None]:
    """Return ``mean``, ``median``, ``p90``, ``p99`` and ``max``; None without values. Percentiles are interpolated."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "p90", "p99", "max"))
    median, p90, p99 = (round(float(value), 1) for value in np.percentile(values, (50, 90, 99)))
    return {"mean": round(float(values.mean()), 1), "median": median, "p90": p90, "p99": p99, "max": int(values.max())}


def cut_by(tokens: Counts, contexts: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """Return for each context the share of texts that are longer and the share of all tokens that lie beyond it."""
    total = int(tokens.sum())
    return {
        str(context): {
            "texts_cut": round(float((tokens > context).mean()), 6) if len(tokens) else None,
            "tokens_lost": round(float(np.maximum(tokens - context, 0).sum()) / total, 6) if total else None,
        }
        for context in contexts
    }
