"""Source tables of a hospital database, read by DuckDB with every column as text first."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import sha256_file

_LONGEST_LINE = 4 * 1024 * 1024


class SourceTables:
    """The csv files of a folder as DuckDB views of text columns.

    Nothing is guessed from the values: leading zeros of codes survive, and a wrong number or time is an error that
    names file and column. File and column names match whatever their case; files may be plain or gzipped.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Where the views are made, each with the table's name.
    folder : Path
        Folder of ``<TABLE>.csv`` or ``<TABLE>.csv.gz``.
    """

    def __init__(self, connection: Any, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; name the folder of the csv files.")
        self.connection = connection
        self.folder = folder
        self.files: dict[str, Path] = {}
        self._present = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}

    def open(self, table: str, columns: dict[str, str], needed_by: str = "") -> None:
        """Make the view of a table.

        Parameters
        ----------
        table : str
            Name of the file without its ending.
        columns : dict of str to str
            Columns to keep and their DuckDB types; ``VARCHAR`` keeps the text as it is.
        needed_by : str
            What wants the table, with the remedy, for the message when it is missing.

        Raises
        ------
        InputError
            If the file or a column is missing, the file cannot be read as csv, or a value does not fit its type.
        """
        names = (f"{table}.csv".lower(), f"{table}.csv.gz".lower())
        path = next((self._present[name] for name in names if name in self._present), None)
        if path is None:
            raise InputError(f"{self.folder} has no {table}.csv or {table}.csv.gz. {needed_by}".rstrip())
        header = _header(path)
        by_name = {name.upper(): name for name in header}
        missing = [name for name in columns if name not in by_name]
        if missing:
            raise InputError(
                f"{path} has no column {', '.join(missing)}; its header is {', '.join(header)[:300]}. "
                f"Export the table again with the columns of MIMIC-III."
            )
        schema = ", ".join(f"'{_quoted(name)}': 'VARCHAR'" for name in header)
        reader = (
            f"read_csv('{_quoted(str(path))}', auto_detect = false, header = true, delim = ',', quote = '\"', "
            f"escape = '\"', nullstr = '', max_line_size = {_LONGEST_LINE}, columns = {{{schema}}})"
        )
        wrong = ", ".join(
            f'count(*) FILTER (WHERE "{by_name[name]}" IS NOT NULL AND TRY_CAST("{by_name[name]}" AS {kind}) IS NULL)'
            for name, kind in columns.items()
            if kind != "VARCHAR"
        )
        typed = [name for name, kind in columns.items() if kind != "VARCHAR"]
        counts = self._read(path, f"SELECT {wrong} FROM {reader}") if typed else ()
        for name, count in zip(typed, counts, strict=True):
            if count:
                raise InputError(
                    f"{path}: column {name} has {count} value(s) that are not {columns[name].lower()}; correct them."
                )
        kept = ", ".join(
            f'"{by_name[name]}" AS "{name}"' if kind == "VARCHAR" else f'CAST("{by_name[name]}" AS {kind}) AS "{name}"'
            for name, kind in columns.items()
        )
        self.connection.execute(f"CREATE VIEW {table} AS SELECT {kept} FROM {reader}")
        self.files[table] = path

    def _read(self, path: Path, query: str) -> tuple[int, ...]:
        """Run a query over a file; the reader's own message may quote a note, so only its line number is passed on."""
        import duckdb

        try:
            row: tuple[int, ...] = self.connection.execute(query).fetchone()
        except duckdb.Error as error:
            line = re.search(r"\bLine:\s*(\d+)", str(error))
            where = f" at line {line.group(1)}" if line else ""
            raise InputError(
                f"{path} cannot be read as csv{where} (comma between fields, double quotes around text); "
                f"download or export it again."
            ) from None
        return row

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file that was opened."""
        return {path.name: sha256_file(path) for path in sorted(self.files.values())}


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _header(path: Path) -> list[str]:
    """Return the column names of a csv file."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                header = next(csv.reader(file), [])
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = next(csv.reader(file), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error):
        raise InputError(f"{path} cannot be read as a csv file; download or export it again.") from None
    if not header:
        raise InputError(f"{path} is empty; its first line must name the columns.")
    return header
