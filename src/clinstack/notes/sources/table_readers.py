"""One way to read a table, whatever holds it: csv, Parquet, DuckDB, SQLite or PostgreSQL. Every value comes as text."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.sources.csv_rows import CsvRows, Rows, take

_BATCH_ROWS = 8192
Bytes = Callable[[int, int], None]
"""Called with what was read and what there is to read: bytes of a file, rows of a database."""


class TableReader(ABC):
    """A table.

    Attributes
    ----------
    place : str
        What to call the table in a message: a file, or a database and the table in it.
    columns : list of str
        As the source spells them.
    """

    place: str
    columns: list[str]

    @abstractmethod
    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows in the source's order, the columns as text, an empty text as null.

        With ``containing``, a column and words, only those rows in whose column the words stand.
        """

    def numeric(self, column: str) -> bool:
        """Whether the source stores a column as numbers."""
        return False

    def digest(self) -> str | None:
        """Return ``sha256:<hex>`` of the file, None where there is no file of the table's own."""
        return None


class CsvTable(TableReader):
    """A csv file, plain or gzipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self.columns = CsvRows(path).header
        self._digest: str | None = None

    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows; see `TableReader.rows`."""
        reader = CsvRows(self.path, progress=progress)
        if containing is None:
            yield from reader.batches(columns)
        else:
            yield from _containing(reader.batches(columns, containing[1].encode()), columns, containing)
        self._digest = reader.digest

    def digest(self) -> str:
        """Return the hash that reading found, or find it."""
        return self._digest or sha256_file(self.path)


class ParquetTable(TableReader):
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        try:
            self.schema = pq.read_schema(path)
        except (pa.ArrowInvalid, OSError):
            raise InputError(f"{path} is not a readable Parquet file; download or export it again.") from None
        self.columns = list(self.schema.names)

    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows; see `TableReader.rows`."""
        try:
            with pq.ParquetFile(self.path) as file:
                batches = file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns)))
                numbered = _numbered(batches, columns, file.metadata.num_rows, progress, self.place)
                yield from _containing(numbered, columns, containing)
        except (pa.ArrowException, OSError):
            raise InputError(f"{self.path} is damaged; download or export it again.") from None

    def numeric(self, column: str) -> bool:
        """Whether the source stores a column as numbers."""
        kind = self.schema.field(column).type
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

    def digest(self) -> str:
        """Return the hash of the file."""
        return sha256_file(self.path)


class DuckTable(TableReader):
    """A table of a DuckDB database."""

    def __init__(self, connection: Any, place: str, schema: str, table: str) -> None:
        self.place = f"{place}, table {schema}.{table}"
        self._connection = connection
        self._table = f"{_identifier(schema)}.{_identifier(table)}"
        with self._named_errors():
            described = connection.execute(f"DESCRIBE {self._table}").fetchall()
        self.columns = [row[0] for row in described]
        self._kinds = {row[0]: row[1] for row in described}

    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows; see `TableReader.rows`."""
        names = ", ".join(f"CAST({_identifier(name)} AS VARCHAR) AS c{index}" for index, name in enumerate(columns))
        with self._named_errors():
            total = self._connection.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0]
            reader = self._connection.cursor().sql(f"SELECT {names} FROM {self._table}").to_arrow_reader(_BATCH_ROWS)
            batches = (batch.rename_columns(list(columns)) for batch in reader)
            yield from _containing(_numbered(batches, columns, total, progress, self.place), columns, containing)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name the table. DuckDB's own words are left out: they can quote a value."""
        import duckdb

        try:
            yield
        except (duckdb.Error, pa.ArrowException, OSError):
            raise InputError(
                f"{self.place} cannot be read: the database is damaged, or the view does not fit its tables."
            ) from None

    def numeric(self, column: str) -> bool:
        """Whether the source stores a column as numbers."""
        return self._kinds[column].split("(")[0] in {
            *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
            *("FLOAT", "DOUBLE", "DECIMAL"),
        }


def open_sqlite(path: Path) -> sqlite3.Connection:
    """Open a SQLite database to read it; texts come as bytes, since SQLite does not check that they are UTF-8."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    connection.text_factory = bytes
    return connection


class SqliteTable(TableReader):
    """A table of a SQLite database."""

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        self.place = f"{path}, table {table}"
        self._table = _identifier(table)
        connection = open_sqlite(path)
        try:
            described = connection.execute(f"PRAGMA table_info({self._table})").fetchall()
        except sqlite3.Error as error:
            raise InputError(f"{self.place} cannot be read: {error}.") from None
        finally:
            connection.close()
        self._kinds = {row[1].decode(): row[2].decode().upper() for row in described}
        self.columns = list(self._kinds)

    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows; see `TableReader.rows`."""
        connection = open_sqlite(self.path)
        try:
            total = connection.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0]
            names = ", ".join(f"CAST({_identifier(name)} AS TEXT)" for name in columns)
            cursor = connection.execute(f"SELECT {names} FROM {self._table}{self._order(connection)}")

            def batches() -> Iterator[pa.RecordBatch]:
                while found := cursor.fetchmany(_BATCH_ROWS):
                    values = [pa.array(column, pa.large_binary()) for column in zip(*found, strict=True)]
                    yield pa.RecordBatch.from_arrays(values, list(columns))

            yield from _containing(_numbered(batches(), columns, total, progress, self.place), columns, containing)
        except sqlite3.Error as error:
            raise InputError(f"{self.place} cannot be read: {error}.") from None
        finally:
            connection.close()

    def _order(self, connection: sqlite3.Connection) -> str:
        """Return what keeps the order of the rows; a view and a table WITHOUT ROWID have their own."""
        try:
            connection.execute(f"SELECT rowid FROM {self._table} LIMIT 0")
        except sqlite3.OperationalError:
            return ""
        return " ORDER BY rowid"

    def numeric(self, column: str) -> bool:
        """Whether the source stores a column as numbers, by SQLite's rules of type affinity."""
        kind = self._kinds[column]
        return any(word in kind for word in ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC"))


class PostgresTable(TableReader):
    """A table of a PostgreSQL database, read as a stream of csv that the server writes."""

    def __init__(self, connection: Any, schema: str, table: str, columns: dict[str, str]) -> None:
        self.place = f"PostgreSQL table {schema}.{table}"
        self._connection = connection
        self._table = f"{_identifier(schema)}.{_identifier(table)}"
        self._kinds = columns
        self.columns = list(columns)

    def rows(
        self, columns: Sequence[str], containing: tuple[str, str] | None = None, progress: Bytes | None = None
    ) -> Iterator[Rows]:
        """Yield the rows; see `TableReader.rows`."""
        names = ", ".join(map(_identifier, columns))
        # Positions mean the same in every table; the server filters, so that few rows cross the network.
        where = ""
        if containing:
            where = f" WHERE strpos({_identifier(containing[0])}, '{containing[1].replace(chr(39), chr(39) * 2)}') > 0"
        query = f"COPY (SELECT {names} FROM {self._table}{where}) TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE *)"
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            reader = CsvRows(Path(self.place), stream=_CopyStream(copy))  # type: ignore[arg-type]  # it has read()
            yield from reader.batches(columns)

    def numeric(self, column: str) -> bool:
        """Whether the source stores a column as numbers."""
        return self._kinds[column] in {"smallint", "integer", "bigint", "real", "double precision", "numeric"}


class _CopyStream:
    """The blocks of a COPY as a file."""

    def __init__(self, copy: Any) -> None:
        self._copy = copy

    def __enter__(self) -> _CopyStream:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave closing to the cursor."""

    def read(self, size: int) -> bytes:
        """Return at least ``size`` bytes unless the stream ends."""
        parts, length = list[bytes](), 0
        while length < size and (block := self._copy.read()):
            parts.append(bytes(block))
            length += len(block)
        return b"".join(parts)


def _numbered(
    batches: Iterator[pa.RecordBatch], columns: Sequence[str], total: int, progress: Bytes | None, place: str
) -> Iterator[Rows]:
    done = 0
    for batch in batches:
        values = [as_texts(batch.column(name), name, place, done + 1) for name in columns]
        values = [pc.if_else(pc.equal(value, ""), pa.scalar(None, pa.large_string()), value) for value in values]
        texts = pa.RecordBatch.from_arrays(values, list(columns))
        yield Rows(texts, np.arange(done + 1, done + 1 + batch.num_rows))
        done += batch.num_rows
        if progress:
            progress(done, total)


def as_texts(values: pa.Array, name: str, place: str, first: int) -> pa.Array:
    """Return a column as text.

    Raises
    ------
    InputError
        Naming the first row whose bytes are not UTF-8, or the column if it holds lists or the like.
    """
    try:
        result = pc.cast(values, pa.large_string())
        # A file may call bytes a text that are none.
        result.validate(full=True)
    except pa.ArrowNotImplementedError:
        raise InputError(f"{place}: column {name} holds {values.type}; export it as text, number or time.") from None
    except pa.ArrowInvalid:
        for row, value in enumerate(pc.cast(values, pa.large_binary()).to_pylist(), first):
            if value is not None and not _is_text(value):
                raise InputError(
                    f"{place}, row {row:,}: column {name} is not UTF-8; convert the text, or export it again."
                ) from None
        raise
    return result


def _is_text(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _containing(rows: Iterator[Rows], columns: Sequence[str], words: tuple[str, str] | None) -> Iterator[Rows]:
    for batch in rows:
        if words is None:
            yield batch
        else:
            found = take(batch, pc.match_substring(batch.batch.column(list(columns).index(words[0])), words[1]))
            if found.batch.num_rows:
                yield found


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
