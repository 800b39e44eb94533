"""The tables of a hospital database: csv or Parquet files in a folder, a DuckDB or SQLite file, or PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinstack.database import connect, refuse_remote_database
from clinstack.errors import InputError
from clinstack.notes.sources.csv_rows import Rows
from clinstack.notes.sources.table_readers import (
    CsvTable,
    DuckTable,
    ParquetTable,
    PostgresTable,
    SqliteTable,
    TableReader,
    open_sqlite,
)

Progress = Callable[[str, int, int], None]
_ENDINGS = (".csv", ".csv.gz", ".parquet")
_FLOAT_CODE = r"^\d+\.\d*$|^\d+(\.\d+)?[eE]\+?\d+$"
_ARROW = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "TIMESTAMP": pa.timestamp("us"), "DATE": pa.date32()}
_KINDS = {"BIGINT": "a whole number", "TIMESTAMP": "a date and time", "DOUBLE": "a number", "DATE": "a date"}


class SourceTables:
    """Tables by name; names of tables and columns match whatever their case.

    Nothing is guessed from the values: leading zeros of codes survive, and a wrong number or time is an error that
    names table, column and row.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Where `open` makes its tables.
    source : Path or str
        A folder of ``<TABLE>.csv``, ``.csv.gz`` or ``.parquet``; a DuckDB or SQLite file; or an address
        ``postgresql://…`` (its password from ``PGPASSWORD`` or ``~/.pgpass``).
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Raises
    ------
    InputError
        If there is nothing of that kind.
    """

    def __init__(self, connection: Any, source: Path | str, progress: Progress | None = None) -> None:
        self.connection = connection
        self.source = source
        self.progress = progress
        self._readers: dict[str, TableReader] = {}
        self._find = _finder(source)

    def reader(self, table: str, needed_by: str = "") -> TableReader:
        """Return the reader of a table.

        Raises
        ------
        InputError
            If the source has no such table; ``needed_by`` says what wants it, with the remedy.
        """
        if table not in self._readers:
            found = self._find(table)
            if found is None:
                raise InputError(f"{shown(self.source)} has no {table}{_looked_for(self.source)}. {needed_by}".rstrip())
            self._readers[table] = found
        return self._readers[table]

    def has(self, table: str) -> bool:
        """Whether the source has a table."""
        return table in self._readers or self._find(table) is not None

    def rows(
        self, table: str, columns: Sequence[str], containing: tuple[str, str] | None = None, needed_by: str = ""
    ) -> Iterator[Rows]:
        """Yield the rows of a table in batches, every column as text; see `TableReader.rows`.

        The columns of the batches have the names asked for, whatever the case in the source.
        """
        reader = self.reader(table, needed_by)
        names = self._names(reader, columns)
        words = (names[columns.index(containing[0])], containing[1]) if containing else None

        def report(done: int, total: int) -> None:
            if self.progress:
                self.progress(f"Reading {table}", done, total)

        for rows in reader.rows(names, words, report):
            yield Rows(rows.batch.rename_columns(list(columns)), rows.numbers)

    def require(self, table: str, columns: Sequence[str], needed_by: str = "") -> None:
        """Raise InputError if the source lacks the table or one of the columns."""
        self._names(self.reader(table, needed_by), columns)

    def _names(self, reader: TableReader, columns: Sequence[str]) -> list[str]:
        """Return the columns as the source spells them."""
        by_name = {name.upper(): name for name in reader.columns}
        missing = [name for name in columns if name.upper() not in by_name]
        if missing:
            raise InputError(
                f"{reader.place} has no column {', '.join(missing)}; it has {', '.join(reader.columns)[:300]}. "
                f"Export the table again with that column."
            )
        return [by_name[name.upper()] for name in columns]

    def open(self, table: str, columns: dict[str, str], needed_by: str = "", where: str = "") -> None:
        """Load columns of a table into a DuckDB table of its name.

        Parameters
        ----------
        table : str
            Name of the table.
        columns : dict of str to str
            Columns to keep and their DuckDB types; ``VARCHAR`` keeps the text as it is, and ``CODE`` too, but refuses
            codes that went through a program that takes them for numbers.
        needed_by : str
            What wants the table, with the remedy, for the message when it is missing.
        where : str
            SQL condition on the typed columns; other rows are read and checked, but not kept.

        Raises
        ------
        InputError
            If the table or a column is missing, it cannot be read, or a value does not fit its type.
        """
        reader = self.reader(table, needed_by)
        names = self._names(reader, list(columns))
        for name, own in zip(columns, names, strict=True):
            if columns[name] == "CODE" and reader.numeric(own):
                raise InputError(
                    f"{reader.place}: column {own} is stored as numbers, so codes have lost their leading zeros; "
                    f"export it as text."
                )
        kinds = {name: "VARCHAR" if kind == "CODE" else kind for name, kind in columns.items()}
        listed = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
        self.connection.execute(f"CREATE OR REPLACE TABLE {table} ({listed})")
        condition = f" WHERE {where}" if where else ""
        for rows in self.rows(table, list(columns), needed_by=needed_by):
            values = [typed(rows, name, kind, reader.place) for name, kind in columns.items()]
            batch = pa.RecordBatch.from_arrays(values, list(columns))
            self.connection.register("new_rows", pa.table(batch))
            self.connection.execute(f"INSERT INTO {table} SELECT * FROM new_rows{condition}")
            self.connection.unregister("new_rows")
        pa.default_memory_pool().release_unused()

    def place(self, table: str) -> str:
        """Return what to call a table in a message."""
        return self.reader(table).place

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file that was read."""
        found = {Path(reader.place).name: reader.digest() for reader in self._readers.values()}
        return {name: digest for name, digest in sorted(found.items()) if digest is not None}


def typed(rows: Rows, name: str, kind: str, place: str) -> pa.Array:
    """Return a column of text with its type.

    Raises
    ------
    InputError
        Naming the first row whose value does not fit. The value itself is not shown: in a table whose columns are out
        of place it could be a note.
    """
    values = rows.batch.column(rows.batch.schema.get_field_index(name))
    if kind == "VARCHAR":
        return values
    if kind == "CODE":
        wrong = pc.match_substring_regex(pc.utf8_trim_whitespace(values), _FLOAT_CODE).fill_null(False)
        if pc.any(wrong).as_py():
            row = rows.numbers[np.asarray(wrong)][0]
            raise InputError(
                f"{place}, row {row:,}: column {name} holds a code written as a number with decimals; codes were read "
                f"as numbers and have lost their leading zeros. Export the column as text."
            )
        return values
    return _cast(rows, name, kind, place)


def _cast(rows: Rows, name: str, kind: str, place: str) -> pa.Array:
    values = rows.batch.column(rows.batch.schema.get_field_index(name))
    target = _ARROW[kind]
    try:
        return pc.cast(values, target)
    except pa.ArrowInvalid:
        # Blanks, decimals or a mistake.
        trimmed = pc.utf8_trim_whitespace(values)
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
    if kind == "BIGINT":
        # 100123.0 is what a program writes that kept a column with gaps as floating point numbers.
        trimmed = pc.replace_substring_regex(trimmed, r"\.0+$", "")
    try:
        return pc.cast(trimmed, target)
    except pa.ArrowInvalid:
        for row, value in zip(rows.numbers, trimmed, strict=True):
            try:
                pc.cast(value, target)
            except pa.ArrowInvalid:
                raise InputError(
                    f"{place}, row {row:,}: column {name} is not {_KINDS[kind]}; correct the row or export it again."
                ) from None
        raise


def shown(source: Path | str) -> str:
    """Return a source as a message may name it, without a password."""
    if not is_address(source):
        return str(source)
    # Up to the last @: one in the password should be written as %40, but the password is to be hidden all the same.
    hidden = re.sub(r"(://[^:/@]*):.*@", r"\1@", str(source))
    return re.sub(r"([?&]password=)[^&]*", r"\1***", hidden)


def _reason(error: Exception, address: str) -> str:
    """Return why a server was not reached, unless the words of the library quote a piece of the password."""
    reason = (str(error).strip().splitlines() or ["no reason is given"])[-1]
    secrets = re.findall(r"://[^:/@]*:(.*)@", address) + re.findall(r"[?&]password=([^&]*)", address)
    pieces = [piece for secret in secrets for piece in re.split(r"[/@:?&#]", secret) if piece]
    if any(piece in reason for piece in pieces):
        return "the address is not as it should be; in a password write @ as %40, / as %2F, : as %3A and % as %25."
    return reason


def is_address(source: Path | str) -> bool:
    """Whether a source is the address of a PostgreSQL database."""
    return re.match(r"postgres(ql)?:/", str(source)) is not None


def _looked_for(source: Path | str) -> str:
    return "" if is_address(source) or Path(source).is_file() else ".csv (nor .csv.gz, nor .parquet)"


def _finder(source: Path | str) -> Callable[[str], TableReader | None]:
    """Return the function that finds a table in a source."""
    if is_address(source):
        return _postgres_finder(str(source))
    path = Path(source)
    if path.is_dir():
        present = {entry.name.lower(): entry for entry in sorted(path.iterdir()) if entry.is_file()}

        def in_folder(table: str) -> TableReader | None:
            found = next((present[table.lower() + end] for end in _ENDINGS if table.lower() + end in present), None)
            if found is None:
                return None
            return ParquetTable(found) if found.suffix == ".parquet" else CsvTable(found)

        return in_folder
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"SQLite format 3"):
            return _sqlite_finder(path)
        if start[8:12] == b"DUCK":
            return _duckdb_finder(path)
        raise InputError(f"{path} is neither a DuckDB nor a SQLite database; name a database or a folder of tables.")
    raise InputError(
        f"{path} is not a folder; name a folder of csv or Parquet files, a DuckDB or SQLite file, or postgresql://…"
    )


def _sqlite_finder(path: Path) -> Callable[[str], TableReader | None]:
    import sqlite3

    connection = open_sqlite(path)
    try:
        listed = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    finally:
        connection.close()
    names = [row[0].decode() for row in listed]
    by_name = {name.lower(): name for name in names}
    return lambda table: SqliteTable(path, by_name[table.lower()]) if table.lower() in by_name else None


def _duckdb_finder(path: Path) -> Callable[[str], TableReader | None]:
    import duckdb

    try:
        connection = connect(path, read_only=True)
    except duckdb.Error:
        raise InputError(f"{path} cannot be opened: another program holds it, or its version is newer.") from None
    listed = connection.execute(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_catalog = current_database()"
    ).fetchall()

    def find(table: str) -> TableReader | None:
        name = _only(listed, table, str(path))
        return DuckTable(connection, str(path), *name) if name else None

    return find


def _postgres_finder(address: str) -> Callable[[str], TableReader | None]:
    try:
        import psycopg
    except ImportError:
        raise InputError("PostgreSQL needs the package psycopg: pip install 'clinstack[postgres]'.") from None
    refuse_remote_database(address, "source", "Export its tables as files and name their folder.")
    try:
        connection = psycopg.connect(address, autocommit=True)
        connection.read_only = True
        listed = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') "
            "ORDER BY array_position(current_schemas(false), table_schema::name) NULLS LAST, table_schema"
        ).fetchall()
    except psycopg.Error as error:
        raise InputError(f"{shown(address)} cannot be reached: {_reason(error, address)}") from None
    in_path = {row[0] for row in connection.execute("SELECT unnest(current_schemas(false))::text").fetchall()}

    def find(table: str) -> TableReader | None:
        preferred = [name for name in listed if name[0] in in_path]
        name = _only(preferred, table, shown(address)) or _only(listed, table, shown(address))
        if name is None:
            return None
        kinds = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            name,
        ).fetchall()
        return PostgresTable(connection, *name, dict(kinds))

    return find


def _only(listed: Sequence[tuple[str, str]], table: str, place: str) -> tuple[str, str] | None:
    """Return schema and name of a table.

    Raises
    ------
    InputError
        If it stands in several schemas.
    """
    found = [name for name in listed if name[1].lower() == table.lower()]
    if len(found) > 1:
        schemas = ", ".join(schema for schema, _ in found)
        raise InputError(f"{place} has {table} in the schemas {schemas}; leave one, or set the search path to it.")
    return found[0] if found else None
