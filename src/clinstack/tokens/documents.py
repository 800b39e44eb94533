"""Tokenised documents, in memory or memory-mapped, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Tokens = NDArray[np.int64]


def _nothing() -> Tokens:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Documents:
    """Texts as tokens, each between the same begin and end tokens, which are not stored with it.

    Parameters
    ----------
    shards : tuple of integer arrays
        The tokens of many texts, one text after another; a memory-mapped array is read where it is needed only.
    shard, offset, count : int64 arrays [documents]
        Where the tokens of each text are: the number of the shard, the first place in it, how many.
    before, after : int64 arrays
        The begin and the end tokens.
    """

    shards: tuple[NDArray[Any], ...]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    count: NDArray[np.int64]
    before: Tokens = field(default_factory=_nothing)
    after: Tokens = field(default_factory=_nothing)

    @classmethod
    def of(cls, texts: Sequence[NDArray[Any]], before: Sequence[int] = (), after: Sequence[int] = ()) -> Documents:
        """Return documents in memory from the tokens of each."""
        count = np.array([len(tokens) for tokens in texts], dtype=np.int64)
        flat = np.concatenate(texts) if len(texts) else _nothing()
        return cls((flat,), np.zeros_like(count), np.cumsum(count) - count, count).between(before, after)

    def between(self, before: Sequence[int], after: Sequence[int]) -> Documents:
        """Return the same texts between other begin and end tokens."""
        return replace(self, before=np.array(before, dtype=np.int64), after=np.array(after, dtype=np.int64))

    def chosen(self, places: ArrayLike) -> Documents:
        """Return some of the documents; their tokens are not copied."""
        places = np.asarray(places, dtype=np.int64)
        return replace(self, shard=self.shard[places], offset=self.offset[places], count=self.count[places])

    def cut(self, most: int) -> Documents:
        """Return documents of ``most`` tokens at most: the end of a longer text goes, begin and end tokens stay."""
        room = max(0, most - len(self.before) - len(self.after))
        return replace(self, count=np.minimum(self.count, room))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, with begin and end; shape [documents]."""
        return self.count + len(self.before) + len(self.after)

    @property
    def predictions(self) -> NDArray[np.int64]:
        """Tokens of each document that are predicted: all but the first; shape [documents]."""
        return np.maximum(self.lengths - 1, 0)

    def part(self, document: int, start: int, stop: int) -> Tokens:
        """Return the tokens ``[start, stop)`` of a document."""
        begin, count = len(self.before), int(self.count[document])
        first, last = max(start - begin, 0), min(stop - begin, count)
        at = int(self.offset[document])
        text = self.shards[int(self.shard[document])][at + first : at + max(first, last)].astype(np.int64)
        if start >= begin and stop <= begin + count:
            return text
        end = begin + count
        return np.concatenate([self.before[start:stop], text, self.after[max(start - end, 0) : max(stop - end, 0)]])

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, document: int) -> Tokens:
        if not 0 <= document < len(self):
            raise IndexError(document)
        return self.part(document, 0, int(self.count[document]) + len(self.before) + len(self.after))

    def __iter__(self) -> Iterator[Tokens]:
        return (self[document] for document in range(len(self)))
