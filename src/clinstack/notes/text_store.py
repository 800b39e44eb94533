"""Texts in a scratch file, found by number: any number of them in little memory, in any order."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class TextStore:
    """A file of texts one behind the other. Leaving it as a context manager closes the file.

    Read by position and not through a mapping, so that the pages of a large file do not count as memory of the process.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._ends = array("q", [0])
        self._flushed = 0

    def __enter__(self) -> TextStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: bytes) -> int:
        """Add a text and return its number."""
        self._file.write(text)
        self._ends.append(self._ends[-1] + len(text))
        return len(self._ends) - 2

    def add_all(self, texts: pa.Array) -> NDArray[np.int64]:
        """Add an array of strings, nulls as empty texts; return their numbers."""
        first = len(self)
        values = pc.fill_null(pc.cast(texts, pa.large_string()), "")
        offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
        if len(values) and values.buffers()[2] is not None:
            self._file.write(memoryview(values.buffers()[2])[offsets[0] : offsets[-1]])
        self._ends.frombytes((offsets[1:] - (offsets[0] if len(offsets) else 0) + self._ends[-1]).tobytes())
        return np.arange(first, len(self))

    def bytes(self, number: int) -> bytes:
        """Return a text as UTF-8."""
        start, end = self._ends[number], self._ends[number + 1]
        if end > self._flushed:
            self._file.flush()
            self._flushed = self._ends[-1]
        return os.pread(self._file.fileno(), end - start, start)

    def text(self, number: int) -> str:
        """Return a text."""
        return self.bytes(number).decode("utf-8")

    def array(self, numbers: Iterable[int]) -> pa.Array:
        """Return texts as an Arrow array of strings."""
        return pa.array([self.bytes(number) for number in numbers], pa.binary()).cast(pa.string())
