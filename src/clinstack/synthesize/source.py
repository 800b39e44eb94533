"""Case reports from CSV, Parquet or JSON lines, one at a time."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clinstack.errors import InputError

_ROWS = 256
_LONGEST_FIELD = 1 << 28
"""Characters; the csv module stops at 131,072 otherwise."""


@dataclass(frozen=True)
class CaseReport:
    """A case report.

    Parameters
    ----------
    row : int
        In its table, from 1.
    patient_id : str
        Of its column; ``case-<row>`` without one.
    text : str
        Without blanks at its ends; may be empty.
    """

    row: int
    patient_id: str
    text: str


def read_case_reports(path: Path, text: str, patient_id: str | None, max_rows: int | None) -> Iterator[CaseReport]:
    """Yield the case reports of a table, in its order.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.csv.gz``, ``.parquet``, ``.jsonl`` or ``.jsonl.gz``.
    text, patient_id : str
        Columns; without a column of patients each case report is a patient.
    max_rows : int, optional
        Only the first so many.

    Raises
    ------
    InputError
        If the file or a column is missing, the file is damaged, or a patient is empty; with the row.
    """
    wanted = [text] if patient_id is None else [text, patient_id]
    for row, values in enumerate(_rows(path, wanted), start=1):
        if max_rows is not None and row > max_rows:
            return
        patient = f"case-{row}"
        if patient_id is not None:
            value = values[patient_id]
            patient = "" if value is None else str(value).strip()
            if not patient:
                raise InputError(f"{path}, row {row}: the column {patient_id} (patient_id) is empty; fill it in.")
        report = values[text]
        if not isinstance(report, str | None):
            raise InputError(f"{path}, row {row}: the column {text} holds no text; name the column as text=COLUMN.")
        yield CaseReport(row, patient, (report or "").strip())


def _rows(path: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a table of case reports (.csv, .parquet or .jsonl).")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, wanted)
    elif name.endswith((".csv", ".jsonl")):
        reader = _csv_rows if name.endswith(".csv") else _json_rows
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            try:
                yield from reader(path, file, wanted)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: a byte is not UTF-8 ({error.reason}); convert the file.") from None
            except (gzip.BadGzipFile, EOFError):
                raise InputError(f"{path} is damaged, or no gzip file; copy it again.") from None
    else:
        raise InputError(f"{path}: case reports are read from .csv, .parquet and .jsonl (.csv and .jsonl also as .gz).")


def _csv_rows(path: Path, file: IO[str], wanted: list[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(file, strict=True)
    try:
        _check(path, list(reader.fieldnames or ()), wanted)
        for row in reader:
            if any(row[name] is None for name in wanted):
                raise InputError(f"{path}, line {reader.line_num}: the row has too few fields; correct it.")
            yield row
    except csv.Error as error:
        raise InputError(f"{path}, near line {reader.line_num}: not valid CSV ({error}).") from None


def _json_rows(path: Path, file: IO[str], wanted: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({type(error).__name__}).") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: not an object with columns as keys.")
        _check(path, list(row), wanted, f", line {number}")
        yield row


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({type(error).__name__}).") from None
    with table:
        _check(path, table.schema_arrow.names, wanted)
        try:
            for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
                yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}); copy it again.") from None


def _check(path: Path, columns: list[str], wanted: list[str], where: str = "") -> None:
    for name, key in zip(wanted, ("text", "patient_id"), strict=False):
        if name not in columns:
            raise InputError(
                f"{path}{where}: the column {name} is missing; it has {', '.join(map(str, columns))}. Name it as "
                f"{key}=COLUMN."
            )
