"""Preference pairs of a table that somebody has already: csv, Parquet or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.attrition import Attrition
from clinstack.notes.preferences import COLUMNS, write_preferences
from clinstack.notes.prepared import Progress, prepared_folder
from clinstack.notes.sources.table_readers import CsvTable, ParquetTable

_OF_A_TABLE = (*COLUMNS, "note", "question", "task")


def pairs_from_table(
    out: Path,
    table: Path,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    synthetic: bool = False,
) -> dict[str, Any]:
    """Write the folder of a table that has its pairs already.

    Parameters
    ----------
    table : Path
        csv, Parquet or JSON lines, with ``patient_id``, ``chosen``, ``rejected``, and ``prompt`` or both of ``note``
        and ``question``; ``example_id`` and ``task`` where they are known.
    columns : mapping of str to str, optional
        What the table calls a column, where it has another name.
    seed : int
        Of the split by patient.
    synthetic : bool
        Whether everyone in it is invented.

    Raises
    ------
    InputError
        If a column is missing, or no row is left.
    """
    columns = columns or {}
    unknown = next((name for name in columns if name not in _OF_A_TABLE), None)
    if unknown is not None:
        raise InputError(f"--column {unknown}: known are {', '.join(_OF_A_TABLE)}.")
    attrition = Attrition()
    rows = list(_table_rows(table, columns))
    attrition.step("rows of the table", len(rows))
    whole = [row for row in rows if row["patient_id"] and row["chosen"] and row["rejected"] and _asks(row)]
    attrition.step("patient, prompt and both answers are there", len(whole))
    differ = [row for row in whole if row["chosen"].strip() != row["rejected"].strip()]
    attrition.step("the answers differ", len(differ))
    seen: set[str] = set()
    for number, row in enumerate(differ, 1):
        row["example_id"] = row["example_id"] or f"pair-{number}"
        if row["example_id"] in seen:
            raise InputError(f"{table}: the example_id {row['example_id']} stands twice; ids are unique.")
        seen.add(row["example_id"])
        row["prompt"] = row["prompt"] or f"{row['note']}\n\n{row['question']}"
    with prepared_folder(out, progress) as prepared:
        facts = {
            "source": "preferences",
            "pairs_by": "table",
            "synthetic": synthetic,
            "tables": {str(table): sha256_file(table)},
        }
        return write_preferences(prepared, differ, attrition, facts, seed)


def _asks(row: Mapping[str, str | None]) -> bool:
    return bool(row["prompt"]) if not (row["note"] or row["question"]) else bool(row["note"] and row["question"])


def _table_rows(table: Path, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the rows with the columns of `_OF_A_TABLE`, None where the table has no such column."""
    if not table.is_file():
        raise InputError(f"--table {table}: no such file.")
    theirs = {name: columns.get(name, name) for name in _OF_A_TABLE}
    if table.suffix in {".jsonl", ".ndjson"}:
        found = list(_json_rows(table))
        present = {name for row in found for name in row}
    else:
        reader = ParquetTable(table) if table.suffix == ".parquet" else CsvTable(table)
        present = set(reader.columns)
        wanted = [name for name in theirs.values() if name in present]
        found = [row for rows in reader.rows(wanted) for row in rows.batch.to_pylist()] if wanted else []
    needed = ["patient_id", "chosen", "rejected", *([] if theirs["note"] in present else ["prompt"])]
    for name in [*needed, *columns]:
        if theirs[name] not in present:
            remedy = " Splits are by patient: name its column." if name == "patient_id" else ""
            raise InputError(
                f"{table}: the column {theirs[name]} is missing; write --column {name}=COLUMN where it has another "
                f"name.{remedy}"
            )
    for row in found:
        yield {name: None if row.get(column) is None else str(row[column]) for name, column in theirs.items()}


def _json_rows(table: Path) -> Iterator[dict[str, Any]]:
    with table.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise InputError(f"{table}, line {number}: not JSON; write one object a line.") from None
            if not isinstance(row, dict):
                raise InputError(f"{table}, line {number}: not a JSON object; write one object a line.")
            yield row
