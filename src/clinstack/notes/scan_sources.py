"""Texts of any table or folder for a scan, some rows at a time, with the ids that stand beside them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from clinstack.errors import InputError

TEXT_COLUMNS = ("text", "note", "question", "answer", "prompt", "chosen", "rejected")
"""Scanned where nobody names a column, whatever their case."""
_NOTE_IDS = ("note_id", "example_id", "row_id", "id")
_PATIENT_IDS = ("patient_id", "subject_id", "patient")
_ROWS = 256
_LINES = (".jsonl", ".ndjson")
_COMMAS = (".csv", ".tsv")
_PLAIN = (".txt", ".md")
_SUFFIXES = (".parquet", *_COMMAS, *_LINES, *_PLAIN)
_HIDDEN = ("tokens", "features", "checkpoints", "stack")
"""Folders of Notes and Runs that hold no text of their own."""
_OURS = ("prepare.json", "run.json", "cohort.json")
"""A folder with one of these has its texts in tables; the sheets beside them are about the data."""


@dataclass(frozen=True)
class Texts:
    """Some rows of one text column.

    Parameters
    ----------
    file : str
        As it is shown.
    column : str
    first : int
        The number of the first row, counted from 1.
    note_ids, patient_ids : list of str or None
        None where the table has no such column; a patient may be None.
    texts : list of str
        Empty where the table has none.
    """

    file: str
    column: str
    first: int
    note_ids: list[str] | None
    patient_ids: list[str | None] | None
    texts: list[str]


def find_tables(paths: Sequence[Path]) -> list[Path]:
    """Return the files below some paths that could hold text, in a fixed order.

    Raises
    ------
    InputError
        If a path is missing, is of no kind that is known, or a folder has no such file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            suffixes = [suffix for suffix in _SUFFIXES if suffix not in _PLAIN or not _is_ours(path)]
            inside = [
                file
                for file in sorted(path.rglob("*"))
                if file.is_file() and _suffix(file) in suffixes and not _is_hidden(file.relative_to(path))
            ]
            if not inside:
                raise InputError(
                    f"{path} has no table or text ({', '.join(_SUFFIXES)}); name a folder or file that has."
                )
            found += inside
        elif not path.exists():
            raise InputError(f"{path} does not exist; name a folder, a table or a text file.")
        elif _suffix(path) not in _SUFFIXES:
            raise InputError(
                f"{path}: {path.suffix or 'a file without a suffix'} is not read; use {', '.join(_SUFFIXES)}."
            )
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _is_ours(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OURS)


def _is_hidden(relative: Path) -> bool:
    return any(part in _HIDDEN or part.startswith(".") for part in relative.parts[:-1]) or relative.name.startswith(".")


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_texts(file: Path, columns: Sequence[str] = (), required: bool = True) -> Iterator[Texts]:
    """Yield the text columns of a file, some rows at a time.

    Parameters
    ----------
    file : Path
    columns : sequence of str
        Those to read; `TEXT_COLUMNS` where none is named.
    required : bool
        Whether a table without such a column is an error; else it yields nothing.

    Raises
    ------
    InputError
        If the file cannot be read, or lacks the columns.
    """
    suffix = _suffix(file)
    if suffix in _PLAIN:
        yield Texts(str(file), "", 1, None, None, [_read_plain(file)])
        return
    if suffix == ".parquet":
        names, batches = _parquet(file, columns)
    else:
        names, batches = _rows(file, _lines(file) if suffix in _LINES else _commas(file, suffix))
    chosen = _chosen(file, names, columns)
    if not chosen:
        if required:
            raise InputError(f"{file} has no column of text; it has {', '.join(names)}. Name one with --text.")
        return
    note_column = _first(names, _NOTE_IDS)
    patient_column = _first(names, _PATIENT_IDS)
    first = 1
    for batch in batches:
        rows = len(next(iter(batch.values())))
        ids = None if note_column is None else [str(value) for value in batch[note_column]]
        patients = None if patient_column is None else [_id(value) for value in batch[patient_column]]
        for column in chosen:
            yield Texts(str(file), column, first, ids, patients, [_text(value) for value in batch[column]])
        first += rows


def _first(names: Sequence[str], keys: Iterable[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[key] for key in keys if key in lower), None)


def _chosen(file: Path, names: Sequence[str], columns: Sequence[str]) -> list[str]:
    if not columns:
        return [name for name in names if name.lower() in TEXT_COLUMNS]
    missing = next((column for column in columns if column not in names), None)
    if missing is not None:
        raise InputError(f"{file}: the column {missing} is missing; it has {', '.join(names)}.")
    return list(columns)


def _id(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _read_plain(file: Path) -> str:
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.name.endswith(".gz") else data
        return data.decode("utf-8-sig", errors="replace")
    except (OSError, EOFError) as error:
        raise InputError(f"{file} cannot be read ({type(error).__name__}).") from None


def _parquet(file: Path, columns: Sequence[str]) -> tuple[list[str], Iterator[dict[str, list[Any]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a readable Parquet file ({type(error).__name__}).") from None
    names = list(table.schema_arrow.names)
    strings = {
        field.name
        for field in table.schema_arrow
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or field.name in columns
    }
    wanted = {name for name in (_first(names, _NOTE_IDS), _first(names, _PATIENT_IDS)) if name is not None}
    wanted |= {name for name in strings if name in columns or (not columns and name.lower() in TEXT_COLUMNS)}

    def batches() -> Iterator[dict[str, list[Any]]]:
        try:
            for batch in table.iter_batches(batch_size=_ROWS, columns=[name for name in names if name in wanted]):
                yield {name: batch.column(name).to_pylist() for name in batch.schema.names}
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is damaged ({type(error).__name__}).") from None

    return [name for name in names if name in wanted or name in strings], batches()


@contextmanager
def _opened(file: Path) -> Iterator[io.TextIOBase]:
    opener = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as stream:
        yield stream


def _commas(file: Path, suffix: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    with _opened(file) as stream:
        yield from csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",", restval="")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            value = json.loads(line)
            if not isinstance(value, dict):
                raise InputError(f"{file}, line {number}: not a JSON object.")
            yield value


def _rows(file: Path, rows: Iterator[dict[str, Any]]) -> tuple[list[str], Iterator[dict[str, list[Any]]]]:
    """Return the names of the first row's columns, and the rows some at a time, column by column."""

    def some() -> list[dict[str, Any]]:
        try:
            return list(islice(rows, _ROWS))
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
            raise InputError(f"{file} cannot be read as {_suffix(file)} ({type(error).__name__}).") from None

    first = some()
    names = list(first[0]) if first else []

    def batches() -> Iterator[dict[str, list[Any]]]:
        part = first
        while part:
            yield {name: [row.get(name) for row in part] for name in names}
            part = some()

    return names, batches()
