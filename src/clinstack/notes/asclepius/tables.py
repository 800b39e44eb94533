"""The files of a table of instructions: csv, Parquet or JSON Lines, alone or several in a folder."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.sources.csv_rows import Rows
from clinstack.notes.sources.table_readers import Bytes, CsvTable, ParquetTable, TableReader
from clinstack.recipe import suggest

ENDINGS = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
REQUIRED = ("note", "question", "answer")
OPTIONAL = ("patient_id", "task", "example_id")
_BATCH_BYTES = 8 << 20


class JsonLinesTable(TableReader):
    """A file of JSON objects, one a line, plain or gzipped; its columns are the keys of the first object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        first = next(self._objects(), None)
        if first is None:
            raise InputError(f"{path} is empty; it must hold one JSON object a line.")
        self.columns = list(first[1])

    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows; see `TableReader.rows`. A key that a line lacks is an empty field."""
        if containing is not None:
            raise NotImplementedError("JSON Lines are read whole")
        numbers: list[int] = []
        values: dict[str, list[str | None]] = {name: [] for name in columns}
        size, total = 0, self.path.stat().st_size
        for number, item, done in self._objects():
            numbers.append(number)
            for name in columns:
                value = _text(item.get(name), name, f"{self.path}, line {number:,}")
                values[name].append(value)
                size += len(value or "")
            if size >= _BATCH_BYTES:
                yield _rows(values, numbers)
                numbers, values, size = [], {name: [] for name in columns}, 0
                if progress:
                    progress(done, total)
        if numbers:
            yield _rows(values, numbers)

    def digest(self) -> str:
        """Return the hash of the file."""
        return sha256_file(self.path)

    def _objects(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Yield the line number, the object, and the bytes of the file read so far."""
        with self.path.open("rb") as raw:
            lines = gzip.GzipFile(fileobj=raw) if self.path.suffix == ".gz" else raw
            try:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _object(line, f"{self.path}, line {number:,}"), raw.tell()
            except (EOFError, gzip.BadGzipFile, zlib.error):
                raise InputError(f"{self.path} is a damaged gzip file; download or export it again.") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; convert the file, or export it again.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); each line must hold one object.") from None
    if not isinstance(item, dict):
        raise InputError(f'{where}: not an object; each line must hold one, such as {{"note": …, "question": …}}.')
    return item


def _text(value: Any, name: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool | list | dict):
        raise InputError(f"{where}: {name} is no text; write it as a string.")
    return str(value)


def _rows(values: Mapping[str, list[str | None]], numbers: list[int]) -> Rows:
    arrays = [pa.array(column, pa.large_string()) for column in values.values()]
    return Rows(pa.RecordBatch.from_arrays(arrays, list(values)), np.array(numbers))


def open_tables(source: Path) -> list[TableReader]:
    """Open the files of a source, those of a folder in the order of their paths.

    Raises
    ------
    InputError
        If there is none, or one cannot be read.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder.")
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.name.lower().endswith(ENDINGS))
        files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
        if not files:
            raise InputError(f"{source} has no file that ends in {', '.join(ENDINGS)}.")
    else:
        files = [source]
    return [_open(file) for file in files]


def _open(file: Path) -> TableReader:
    name = file.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return CsvTable(file)
    if name.endswith(".parquet"):
        return ParquetTable(file)
    if name.endswith(ENDINGS):
        return JsonLinesTable(file)
    raise InputError(f"{file}: it must end in {', '.join(ENDINGS)}.")


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """Return what ``--column note=body`` says: the name in the instructions to the name in the table.

    Raises
    ------
    InputError
        If a word has another form, or names a column that instructions do not have.
    """
    result: dict[str, str] = {}
    for word in words:
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals or not name or not column:
            raise InputError(f"--column {word}: it has the form note=NAME, with the name of the table's column.")
        known = (*REQUIRED, *OPTIONAL)
        if name not in known:
            raise InputError(f"--column {word}: {name} is none of {', '.join(known)}.{suggest(name, known)}")
        if name in result:
            raise InputError(f"--column {word}: {name} is named twice.")
        result[name] = column
    return result


def find_columns(table: TableReader, named: Mapping[str, str]) -> dict[str, str]:
    """Return the table's own name of each column that is used; case does not matter.

    Raises
    ------
    InputError
        If note, question or answer, or a column that was named, is missing.
    """
    own = {name.strip().lower(): name for name in table.columns}
    found: dict[str, str] = {}
    for name in (*REQUIRED, *OPTIONAL):
        column = named.get(name, name)
        if column.lower() in own:
            found[name] = own[column.lower()]
        elif name in named or name in REQUIRED:
            raise InputError(
                f"{table.place} has no column {column}.{suggest(column, table.columns)} It has "
                f"{', '.join(table.columns)[:300]}; say which is which with --column {name}=NAME."
            )
    return found


def read_tables(
    tables: Sequence[TableReader], named: Mapping[str, str], progress: Bytes | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of all tables, a batch at a time: the columns used, under clinstack's names.

    Blanks around texts are removed; an empty field is null.
    """
    for table in tables:
        columns = find_columns(table, named)
        for rows in table.rows(list(dict.fromkeys(columns.values())), progress=progress):
            arrays = {}
            for name, column in columns.items():
                values = pc.utf8_trim_whitespace(rows.batch.column(column))
                arrays[name] = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
            yield pa.table(arrays)
