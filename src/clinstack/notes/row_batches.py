"""Reading Parquet tables a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError

_BATCH_ROWS = 512
_BATCH_BYTES = 2 << 20


def check_columns(file: Path, columns: Sequence[str]) -> None:
    """Check that a table can be read and has columns.

    Raises
    ------
    InputError
        If not.
    """
    with _opened(file, columns):
        pass


def batches(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the number of the first row and a few rows at a time, about `_BATCH_BYTES` of them at most."""
    with _opened(file, columns) as table:
        first = 0
        rows = _BATCH_ROWS if "text" in columns else 65536
        try:
            for batch in table.iter_batches(batch_size=rows, columns=list(columns)):
                pieces = max(1, min(len(batch), batch.nbytes // _BATCH_BYTES))
                step = -(-len(batch) // pieces) or 1
                for start in range(0, len(batch), step):
                    yield first + start, batch.slice(start, step)
                first += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is damaged near row {first + 1} ({type(error).__name__}).") from None


def _opened(file: Path, columns: Sequence[str]) -> pq.ParquetFile:
    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except FileNotFoundError:
        raise InputError(f"{file} is missing; prepare the folder again.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a readable Parquet file ({type(error).__name__}).") from None
    missing = next((name for name in columns if name not in table.schema_arrow.names), None)
    if missing is not None:
        have = ", ".join(table.schema_arrow.names)
        table.close()
        raise InputError(f"{file}: the column {missing} is missing; it has {have}.")
    return table
