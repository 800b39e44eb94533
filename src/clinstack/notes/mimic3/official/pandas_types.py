"""How pandas 1 read a column of a csv file when nobody told it the type.

`read_csv` guessed for each chunk of rows by itself: 131,072 of a table of five columns. A chunk of digits became whole
numbers, so leading zeros vanished; one empty value made it floating point. Chunks that differed were put together:
whole numbers became floating point beside floating point, and kept their type beside texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
)
"""What pandas 1.5 took for a missing value, also in quotes."""
_WHOLE = re.compile(r"\s*[+-]?\d+\s*\Z", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*\Z", re.ASCII)
_LONGEST_WHOLE = 2**63


def chunk_rows(columns: int) -> int:
    """Return how many rows pandas 1 read at a time from a table with so many columns."""
    most = 2**20 // columns
    rows = 1
    while rows * 2 < most:
        rows *= 2
    return rows


def until_nul(value: str | None) -> str | None:
    """Return what pandas kept of a value: up to a NUL byte; None where it is missing."""
    if value is None:
        return None
    kept = value.split("\0", 1)[0]
    return None if kept in MISSING else kept


def guessed(values: Sequence[str | None], columns: int) -> list[int | float | str | None]:
    """Return a column's values with the types that pandas 1 gave them.

    Parameters
    ----------
    values : sequence of str or None
        As they stand in the file, without quotes.
    columns : int
        Number of columns of the table, on which the size of a chunk depends.

    Returns
    -------
    list
        Of int, float or str, None where the value is missing.
    """
    size = chunk_rows(columns)
    chunks = [_chunk([until_nul(value) for value in values[at : at + size]]) for at in range(0, len(values), size)]
    kinds = {kind for kind, _ in chunks}
    if kinds == {int, float}:
        chunks = [(float, [None if value is None else float(value) for value in chunk]) for _, chunk in chunks]
    return [value for _, chunk in chunks for value in chunk]


def guessed_words(values: pa.Array, columns: int) -> pa.Array:
    """Return a column as text after pandas 1 read it: ``331`` for 0331 in a chunk of numbers; see `guessed`.

    Parameters
    ----------
    values : pyarrow.Array
        Of strings.
    columns : int
        Number of columns of the table.

    Returns
    -------
    pyarrow.Array
        Of strings, null where the value is missing.
    """
    size = chunk_rows(columns)
    chunks = [values.slice(at, size) for at in range(0, max(len(values), 1), size)]
    if all(map(_is_plain_text, chunks)):
        return pc.if_else(pc.is_in(values, pa.array(MISSING, values.type)), pa.scalar(None, values.type), values)
    if all(map(_is_plain_whole, chunks)):
        return pc.cast(pc.cast(values, pa.int64()), values.type)
    words = [None if value is None else str(value) for value in guessed(values.to_pylist(), columns)]
    return pa.array(words, values.type)


def _is_plain_text(chunk: pa.Array) -> bool:
    """Whether a chunk has a value that is no number for sure, and none that a NUL byte cuts: a quick look."""
    present = chunk.drop_null()
    letters = pc.match_substring_regex(present, r"^[A-DF-Z]\d|^E[A-Z0-9]*\d$")
    return bool(pc.any(letters).as_py()) and not pc.any(pc.match_substring(present, "\0")).as_py()


def _is_plain_whole(chunk: pa.Array) -> bool:
    """Whether a chunk has nothing but whole numbers of few digits: a quick look."""
    return not chunk.null_count and bool(pc.all(pc.match_substring_regex(chunk, r"^\d{1,18}$")).as_py())


def _chunk(values: list[str | None]) -> tuple[type, list[int | float | str | None]]:
    present = [value for value in values if value is not None]
    if all(map(_WHOLE.match, present)) and all(abs(int(value)) < _LONGEST_WHOLE for value in present):
        if len(present) == len(values):
            return int, [int(value) for value in present]
        return float, [None if value is None else float(int(value)) for value in values]
    if all(map(_NUMBER.match, present)):
        return float, [None if value is None else float(value) for value in values]
    return str, list(values)
