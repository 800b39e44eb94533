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
    name = str(table) if isinstance(table, Path) else "the table"
    if isinstance(table, Path):
        if not table.is_file():
            raise InputError(f"{name} is missing: let the run finish first.")
        try:
            table = pq.read_table(table)
        except pa.ArrowInvalid as error:
            raise InputError(f"{name} is not a Parquet file: {str(error).splitlines()[0]}") from None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise InputError(f"{name}: column {missing[0]} is missing; it has {', '.join(table.column_names)}.")
    chosen = table.filter(pc.equal(table["split"], split))
    if not chosen.num_rows:
        found = sorted(str(value) for value in pc.unique(table["split"]).to_pylist())
        raise InputError(f"{name}: no rows of split {split}; it has {', '.join(found) or 'no rows'}.")
    return chosen
