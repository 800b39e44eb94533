"""Columns of a hospital's tables by the names of a spec: checked first, then loaded with row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from clinstack.errors import InputError
from clinstack.notes.sources.csv_rows import take
from clinstack.notes.sources.source_tables import SourceTables, typed
from clinstack.notes.table.spec import AdmissionsSpec, LabelSpec, NotesSpec, SplitsSpec, TableSpec
from clinstack.recipe import suggest

Columns = dict[str, tuple[str, str]]
"""Name in clinstack to the name in the source and the DuckDB type."""

_TIMES = {"charttime", "before", "admitted", "discharged"}
_NUMBERS = {"age"}


def columns_of(part: NotesSpec | LabelSpec | SplitsSpec | AdmissionsSpec) -> Columns:
    """Return the columns that a part of the spec names, in its order."""
    plain = {
        "table",
        "where",
        "seed",
        "name",
        "kind",
        "classes",
        "separator",
        "unlisted",
        "minimum_count",
        "note_types",
    }
    plain |= {"description"} | ({"text"} if isinstance(part, LabelSpec) else set())
    found = {name: getattr(part, name) for name in type(part).model_fields if name not in plain}
    return {
        name: (column, "TIMESTAMP" if name in _TIMES else "DOUBLE" if name in _NUMBERS else "VARCHAR")
        for name, column in found.items()
        if column is not None
    }


def parts_of(spec: TableSpec) -> dict[str, NotesSpec | LabelSpec | SplitsSpec | AdmissionsSpec]:
    """Return the parts of a spec that read a table, each by the key it stands under."""
    parts: dict[str, Any] = {"notes": spec.notes}
    parts |= {f"labels.{label.name}": label for label in spec.labels}
    if spec.splits.table:
        parts["splits"] = spec.splits
    if spec.admissions:
        parts["admissions"] = spec.admissions
    return parts


def check_columns(spec: TableSpec, tables: SourceTables) -> None:
    """Look for every table and column that the spec names.

    Raises
    ------
    InputError
        Naming the key of the spec, what it names, and the nearest column there is.
    """
    for key, part in parts_of(spec).items():
        reader = tables.reader(part.table or "", f"The spec names it under {key}.table.")
        present = {name.lower() for name in reader.columns}
        wanted = {name: column for name, (column, _) in columns_of(part).items()}
        wanted |= {f"where.{column}": column for column in getattr(part, "where", {})}
        for name, column in wanted.items():
            if column.lower() not in present:
                listed = ", ".join(reader.columns)[:300]
                raise InputError(
                    f"{key}.{name}: {reader.place} has no column {column}."
                    f"{suggest(column, reader.columns) or f' It has {listed}.'}"
                )


def batches(
    tables: SourceTables, table: str, columns: Columns, where: Mapping[str, str | tuple[str, ...]]
) -> Iterator[pa.Table]:
    """Yield the rows of a table that ``where`` keeps: ``row``, and the columns under clinstack's names.

    Raises
    ------
    InputError
        Naming the row of a value that does not fit its type.
    """
    # A column may be named twice, for instance as note_id and encounter_id, or in another case.
    names = {column.lower(): column for column, _ in columns.values()} | {name.lower(): name for name in where}
    for rows in tables.rows(table, list(names.values())):
        for name, wanted in where.items():
            values = pc.utf8_trim_whitespace(rows.batch.column(names[name.lower()]))
            listed = [wanted] if isinstance(wanted, str) else list(wanted)
            rows = take(rows, pc.is_in(values, pa.array(listed, values.type)))
        arrays = {"row": pa.array(rows.numbers)}
        for name, (column, kind) in columns.items():
            values = typed(rows, names[column.lower()], kind, tables.place(table))
            keeps = kind != "VARCHAR" or name == "text"
            arrays[name] = values if keeps else pc.utf8_trim_whitespace(values)
        yield pa.table(arrays)


def load(
    tables: SourceTables, target: str, table: str, columns: Columns, where: Mapping[str, str | tuple[str, ...]]
) -> None:
    """Make a DuckDB table ``target`` of ``row`` and the columns; an empty text is null."""
    connection = tables.connection
    listed = ", ".join(f'"{name}" {kind}' for name, (_, kind) in columns.items())
    connection.execute(f"CREATE OR REPLACE TABLE {target} (row BIGINT, {listed})")
    kept = ", ".join(
        f"nullif(\"{name}\", '')" if kind == "VARCHAR" else f'"{name}"' for name, (_, kind) in columns.items()
    )
    for batch in batches(tables, table, columns, where):
        connection.register("new_rows", batch)
        connection.execute(f"INSERT INTO {target} SELECT row, {kept} FROM new_rows")
        connection.unregister("new_rows")


def first(connection: Any, query: str) -> tuple[Any, ...] | None:
    """Return the first row of a query, or None."""
    rows = connection.execute(f"{query} LIMIT 1").fetchall()
    return tuple(rows[0]) if rows else None


def refuse_empty(tables: SourceTables, target: str, table: str, columns: Columns, name: str) -> None:
    """Raise InputError naming the first row whose column is empty."""
    found = first(tables.connection, f'SELECT row FROM {target} WHERE "{name}" IS NULL ORDER BY row')
    if found:
        wrong(tables, table, found[0], f"column {columns[name][0]} ({name}) is empty; fill it in, or leave the row out")


def wrong(tables: SourceTables, table: str, row: int, what: str) -> NoReturn:
    """Raise InputError for a row of a table."""
    raise InputError(f"{tables.place(table)}, row {row:,}: {what}.")
