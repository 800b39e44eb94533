"""Reading ``predictions.parquet`` and ``losses.parquet``: columns checked, one split chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack.errors import InputError

PREDICTION_COLUMNS = ("example_id", "patient_id", "split", "label", "score")
LOSS_COLUMNS = ("patient_id", "note_type", "split", "tokens", "characters", "base_nll", "nll")


def read_table(table: Path | pa.Table, columns: Sequence[str]) -> pa.Table:
    """Read a table and check its columns.

    Raises
    ------
    InputError
        The file is missing or no Parquet, or lacks a column.
    """
    if isinstance(table, Path):
        if not table.is_file():
            raise InputError(f"{table} is missing: let the run finish first.")
        try:
            read = pq.read_table(table)
        except pa.ArrowInvalid as error:
            raise InputError(f"{table} is not a Parquet file: {str(error).splitlines()[0]}") from None
    else:
        read = table
    missing = [column for column in columns if column not in read.column_names]
    if missing:
        raise InputError(f"{_name(table)}: column {missing[0]} is missing; it has {', '.join(read.column_names)}.")
    return read


def read_splits(table: Path | pa.Table) -> list[str]:
    """Return the splits that a table has rows of."""
    return sorted(str(value) for value in pc.unique(read_table(table, ["split"])["split"]).to_pylist())


def read_split(table: Path | pa.Table, columns: Sequence[str], split: str) -> pa.Table:
    """Read the rows of one split.

    Parameters
    ----------
    table : Path or pyarrow.Table
    columns : sequence of str
        Columns that must be there.
    split : {"train", "validation", "test"}

    Raises
    ------
    InputError
        The file is missing or no Parquet, lacks a column, or has no row of the split.
    """
    read = read_table(table, columns)
    chosen = read.filter(pc.equal(read["split"], split))
    if not chosen.num_rows:
        found = ", ".join(read_splits(read)) or "no rows"
        raise InputError(f"{_name(table)}: no rows of split {split}; it has {found}.")
    return chosen


def _name(table: Path | pa.Table) -> str:
    return str(table) if isinstance(table, Path) else "the table"
