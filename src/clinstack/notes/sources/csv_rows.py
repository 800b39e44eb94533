"""A strict, streaming reader of csv files with long texts in quotes.

It finds where each row ends by counting quotes, checks that every quote stands where one may stand, and hands whole
rows to Arrow's parser in blocks of bounded size. What other readers take in silence, a quote that is broken or bytes
that are not UTF-8, is an error that names the row. Values stay the text that the file holds.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from clinstack.errors import InputError

BLOCK = 3 * 1024 * 1024
"""Bytes read at a time, after decompression; of a small file less."""
_LONGEST_ROW = 512 * 1024 * 1024
_QUOTE, _NEWLINE, _RETURN, _COMMA = b'"'[0], b"\n"[0], b"\r"[0], b","[0]
_AGAIN = "download or export it again"


@dataclass(frozen=True)
class Rows:
    """Rows of a table, every column as text, an empty field as null.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        The columns asked for, in that order.
    numbers : int64 array
        The number of each row in its table; the first row after the header is row 1.
    """

    batch: pa.RecordBatch
    numbers: NDArray[np.int64]


class CsvRows:
    """A csv file, plain or gzipped, or the csv bytes of a stream.

    Parameters
    ----------
    path : Path
        The file; only its name is used when ``stream`` is given.
    stream : binary file, optional
        Where to read csv from instead.
    progress : callable, optional
        Called with the bytes read and the bytes in all, of the file as it is on disk.

    Raises
    ------
    InputError
        If the file is empty, is not UTF-8, or its first line is not a header.
    """

    def __init__(
        self, path: Path, stream: BinaryIO | None = None, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.path = path
        self._stream = stream
        self._progress = progress
        self._raw: _HashedFile | None = None
        self.rows = 0
        """Rows read so far."""
        self.digest: str | None = None
        """``sha256:<hex>`` of the file as it is on disk, known when all of it was read."""
        if stream is None:
            with self._opened() as file:
                self.header = self._read_header(file)[0]

    def _opened(self) -> BinaryIO:
        if self._stream is not None:
            return self._stream
        self._raw = _HashedFile(self.path)
        if self.path.suffix == ".gz":
            return gzip.GzipFile(fileobj=self._raw)  # type: ignore[return-value]  # it is a binary file
        return self._raw

    def _read(self, file: BinaryIO, size: int) -> bytes:
        try:
            return file.read(size) or b""
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise InputError(
                f"{self.path} is a damaged or truncated gzip file (after row {self.rows:,}); {_AGAIN}."
            ) from None

    def _read_block(self, file: BinaryIO, size: int) -> tuple[bytes, NDArray[np.int64]]:
        """Return the next bytes and where quotes stand in them."""
        block = self._read(file, size)
        return block, _quotes(block)

    def _block_size(self) -> int:
        return BLOCK if self._raw is None else min(BLOCK, max(BLOCK // 8, self.path.stat().st_size // 64, 1))

    def _read_header(self, file: BinaryIO) -> tuple[list[str], bytes]:
        """Return the column names and what was read beyond them."""
        start = b""
        while b"\n" not in start and (block := self._read(file, 65536)):
            start += block
        if not start.strip():
            raise InputError(f"{self.path} is empty; its first line must name the columns.")
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{self.path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8.")
        if start[:2] == b"\x1f\x8b":
            raise InputError(f"{self.path} is compressed; give its name the ending .gz.")
        line, _, rest = start.removeprefix(b"\xef\xbb\xbf").partition(b"\n")
        try:
            names = next(csv.reader([line.decode("utf-8").rstrip("\r")]), [])
        except (UnicodeDecodeError, csv.Error):
            raise InputError(f"{self.path}: the first line cannot be read as column names in UTF-8.") from None
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise InputError(f"{self.path}: the column {doubled} is named twice in the first line.")
        return names, rest

    def batches(self, columns: Sequence[str], containing: bytes | None = None) -> Iterator[Rows]:
        """Yield the rows block by block.

        Parameters
        ----------
        columns : sequence of str
            Names in the header, in the order wanted.
        containing : bytes, optional
            Rows without these bytes are checked but left out before they are parsed, which is many times faster.

        Raises
        ------
        InputError
            Naming the row: a broken quote, too many or few fields, bytes that are not UTF-8, a truncated gzip.
        """
        self.rows = 0
        with self._opened() as file, ThreadPoolExecutor(1) as reader:
            self.header, pending = self._read_header(file)
            waiting = _quotes(pending)
            size = self._block_size()
            # The next block is read, decompressed and searched for quotes while this one is parsed.
            ahead = reader.submit(self._read_block, file, size)
            while True:
                block, found = ahead.result()
                if block:
                    ahead = reader.submit(self._read_block, file, size)
                elif pending and not pending.endswith(b"\n"):
                    pending += b"\n"
                buffer = pending + block
                if not buffer:
                    break
                quotes = np.concatenate([waiting, found + len(pending)])
                ends = self._row_ends(buffer, quotes, at_end=not block)
                done = int(ends[-1]) + 1 if len(ends) else 0
                if done:
                    self._check_encoding(buffer, ends, done)
                    if rows := self._parse(buffer, ends, columns, containing):
                        yield rows
                    self.rows += len(ends)
                pending = buffer[done:]
                waiting = quotes[np.searchsorted(quotes, done) :] - done
                if len(pending) > _LONGEST_ROW:
                    self._broken(self.rows + 1, "is longer than 512 MiB; a quote is probably never closed")
                if self._progress and self._raw:
                    self._progress(self._raw.tell(), self.path.stat().st_size)
                if not block:
                    break
        if self._raw:
            self.digest = self._raw.digest()
            self._raw.close()

    def _row_ends(self, buffer: bytes, quotes: NDArray[np.int64], at_end: bool) -> NDArray[np.int64]:
        """Return where the rows of a buffer end: line feeds outside quotes. The buffer begins with a row."""
        bytes_ = np.frombuffer(buffer, dtype=np.uint8)
        if not len(quotes):
            return np.flatnonzero(bytes_ == _NEWLINE)
        opening, closing = quotes[0::2], quotes[1::2]
        if closing.size and closing[-1] == len(buffer) - 1 and not at_end:
            closing = closing[:-1]
        before, after = bytes_[opening - 1], bytes_[closing + 1]
        good = (before == _COMMA) | (before == _NEWLINE) | (before == _QUOTE) | (opening == 0)
        wrong = opening[~good]
        good = (after == _COMMA) | (after == _NEWLINE) | (after == _RETURN) | (after == _QUOTE)
        wrong = np.concatenate([wrong, closing[~good]])
        if wrong.size:
            self._broken_quote(buffer, int(wrong.min()), quotes)
        # What stands outside quotes: before the first, and from each closing quote to the next opening one.
        starts = np.concatenate([[0], quotes[1::2]])
        stops = np.concatenate([opening, [len(buffer)]])[: len(starts)]
        lengths = stops - starts
        total = int(lengths.sum())
        if total > len(buffer) // 4:
            lines = np.flatnonzero(bytes_ == _NEWLINE)
            ends: NDArray[np.int64] = lines[np.searchsorted(quotes, lines) % 2 == 0]
        else:
            shift = starts - np.concatenate([[0], np.cumsum(lengths)[:-1]])
            outside = np.arange(total) + np.repeat(shift, lengths)
            ends = outside[bytes_[outside] == _NEWLINE]
        if at_end and len(quotes) % 2:
            self._broken_quote(buffer, int(quotes[-1]), quotes)
        return ends

    def _broken_quote(self, buffer: bytes, position: int, quotes: NDArray[np.int64]) -> NoReturn:
        """Name the first row that is wrong, which may stand before the quote where it showed."""
        lines = np.flatnonzero(np.frombuffer(buffer[:position], dtype=np.uint8) == _NEWLINE)
        ends = lines[np.searchsorted(quotes, lines) % 2 == 0]
        start = 0
        for index, end in enumerate(ends):
            if self._field_count(buffer[start : end + 1]) != len(self.header):
                self._wrong_fields(self.rows + index + 1, buffer[start : end + 1])
            start = int(end) + 1
        self._broken(self.rows + len(ends) + 1, "has a quote that is broken (not closed, not doubled, or misplaced)")

    def _broken(self, row: int, what: str) -> NoReturn:
        raise InputError(
            f"{self.path}, row {row:,} {what}: put double quotes around texts and double those inside, or {_AGAIN}."
        )

    def _wrong_fields(self, row: int, line: bytes) -> NoReturn:
        raise InputError(
            f"{self.path}, row {row:,} has {self._field_count(line)} fields where the header has {len(self.header)} "
            f"columns; correct the row, or {_AGAIN}."
        )

    @staticmethod
    def _field_count(line: bytes) -> int:
        csv.field_size_limit(2**31 - 1)
        return len(next(csv.reader(io.StringIO(line.decode("utf-8", "replace"), newline="")), []))

    def _check_encoding(self, buffer: bytes, ends: NDArray[np.int64], done: int) -> None:
        if buffer.isascii():
            return
        try:
            buffer[:done].decode("utf-8")
        except UnicodeDecodeError as error:
            row = self.rows + int(np.searchsorted(ends, error.start)) + 1
            raise InputError(
                f"{self.path}, row {row:,} is not UTF-8 (byte 0x{buffer[error.start]:02x}); "
                f"convert the file, for instance: iconv -f LATIN1 -t UTF-8."
            ) from None

    def _parse(
        self, buffer: bytes, ends: NDArray[np.int64], columns: Sequence[str], containing: bytes | None
    ) -> Rows | None:
        starts = np.concatenate([[0], ends[:-1] + 1])
        if containing is None:
            part = buffer[: int(ends[-1]) + 1]
            chosen = np.arange(len(ends))
        else:
            chosen = np.unique(np.searchsorted(ends, _positions(buffer, containing, int(ends[-1]))))
            if not chosen.size:
                return None
            part = b"".join(buffer[starts[row] : ends[row] + 1] for row in chosen)
        # Blank lines hold no row, but they are counted in the numbers, as an editor counts them.
        blank = (ends[chosen] == starts[chosen]) | (
            (ends[chosen] == starts[chosen] + 1) & (np.frombuffer(buffer, np.uint8)[starts[chosen]] == _RETURN)
        )
        chosen = chosen[~blank]
        if not chosen.size:
            return None
        table = self._parsed(part, columns, buffer, starts, ends)
        if len(chosen) != table.num_rows:
            self._find_wrong_fields(buffer, starts, ends)
        return Rows(table.combine_chunks().to_batches()[0], chosen.astype(np.int64) + self.rows + 1)

    def _parsed(
        self,
        part: bytes,
        columns: Sequence[str],
        buffer: bytes,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> pa.Table:
        try:
            return pa.csv.read_csv(
                pa.BufferReader(part),
                read_options=pa.csv.ReadOptions(
                    column_names=self.header, block_size=max(len(part), 1024), use_threads=True
                ),
                parse_options=pa.csv.ParseOptions(newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(self.header, pa.large_string()),
                    include_columns=list(columns),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid:
            # Arrow's own message quotes the row, which may be a note.
            self._find_wrong_fields(buffer, starts, ends)

    def _find_wrong_fields(self, buffer: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NoReturn:
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True), self.rows + 1):
            line = buffer[start : end + 1]
            if line.strip(b"\r\n") and self._field_count(line) != len(self.header):
                self._wrong_fields(row, line)
        raise InputError(f"{self.path} cannot be read as csv between rows {self.rows + 1:,} and {row:,}; {_AGAIN}.")


class _HashedFile(io.FileIO):
    """A file that is hashed as it is read, so that a large one is read once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._hash = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(-1 if size is None else size) or b""
        self._hash.update(block)
        return block

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer) or 0
        self._hash.update(memoryview(buffer)[:size])
        return size

    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _quotes(block: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == _QUOTE)


def _positions(buffer: bytes, words: bytes, stop: int) -> NDArray[np.int64]:
    """Return where ``words`` stand in a buffer before ``stop``."""
    found, place = list[int](), buffer.find(words, 0, stop)
    while place >= 0:
        found.append(place)
        place = buffer.find(words, place + 1, stop)
    return np.array(found, dtype=np.int64)


def take(rows: Rows, mask: Any) -> Rows:
    """Return the rows for which a boolean Arrow array is true."""
    kept = np.asarray(mask.fill_null(False))
    return Rows(rows.batch.filter(mask), rows.numbers[kept])
