"""Labels of prolonged ventilation from a file, such as an export of the published ones."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.attrition import Attrition
from clinstack.notes.ventilation.options import VentilationOptions

_PICKLES = (".pkl", ".pickle", ".p")
_EXPORT = (
    "import csv, pickle; rows = pickle.load(open('{0}', 'rb')); csv.writer(open('{1}', 'w')).writerows("
    "[('HADM_ID', 'label', 'split'), *((key, row[0], row[-1]) for key, row in rows.items())])"
)
"""Python that turns the published labels, {HADM_ID: [label, ..., split]}, into a file that can be read safely."""
_NAMES = {
    "hadm": ("hadm_id", "id"),
    "label": ("label",),
    "split": ("split",),
    "started": ("started", "starttime"),
}
_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


def read_label_file(connection: Any, path: Path, options: VentilationOptions) -> None:
    """Make the table ``ventilation_labels`` (hadm, label, split, started) from a CSV or Parquet file.

    Columns are HADM_ID (or id), label (0 or 1), and when present split (train, val, test) and started (the start of
    the first ventilation); their case does not matter, others are left aside.

    Raises
    ------
    InputError
        If the file is a pickle, cannot be read, lacks a column, or a row has a wrong or a repeated value.
    """
    import pyarrow as pa

    if not path.is_file():
        raise InputError(f"{path} is not a file; name the CSV or Parquet file of labels.")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix.lower() in _PICKLES or start[:1] == b"\x80":
        command = _EXPORT.format(path.name, f"{path.stem}.csv")
        raise InputError(
            f"{path} is a pickle, which can run any code when it is loaded, so it is never read. Where you trust it, "
            f'export it with python -c "{command}" and name the CSV file.'
        )
    parquet = start == b"PAR1"
    unit = "row" if parquet else "line"
    seen = dict[int, int]()
    rows = list[tuple[int, int, str | None, datetime | None]]()
    for number, row in _parquet_rows(path) if parquet else _csv_rows(path):
        where = f"{path}, {unit} {number}"
        row = dict.fromkeys(_NAMES) | row
        hadm, label = _whole(row["hadm"]), _whole(row["label"])
        if hadm is None:
            raise InputError(f"{where}: HADM_ID is {row['hadm']!r}; use the number of the admission.")
        if label not in (0, 1):
            raise InputError(f"{where}: label is {row['label']!r}; use 0 or 1.")
        if hadm in seen:
            raise InputError(f"{where}: HADM_ID {hadm} stands already in {unit} {seen[hadm]}; keep one of the two.")
        seen[hadm] = number
        split = _SPLITS.get(str(row["split"] or "").strip().lower())
        if options.use_file_split and split is None:
            raise InputError(f"{where}: split is {row['split']!r}; use train, val or test, or leave the file's split.")
        started = _moment(row["started"])
        if options.text == "before" and started is None:
            raise InputError(
                f"{where}: started is {row['started']!r}; text before ventilation needs a column started with the "
                f"time (2150-01-31 13:00:00) in each row, or the source events or durations."
            )
        rows.append((hadm, label, split, started))
    if not rows:
        raise InputError(f"{path} has no row; it needs HADM_ID and label in each.")
    schema = pa.schema(
        [("hadm", pa.int64()), ("label", pa.int64()), ("split", pa.string()), ("started", pa.timestamp("us"))]
    )
    columns = zip(*rows, strict=True)
    table = pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema
    )
    connection.register("label_rows", table)
    connection.execute("CREATE OR REPLACE TABLE ventilation_labels AS SELECT * FROM label_rows")
    connection.unregister("label_rows")


def label_from_file(connection: Any, attrition: Attrition, options: VentilationOptions) -> dict[str, Any]:
    """Make ``labelled``, ``ventilated`` and ``ventilation_splits`` of the candidates in the file; return the facts."""
    assert options.file is not None  # the options are checked
    connection.execute(
        """
        CREATE OR REPLACE TABLE chosen AS
        SELECT ventilation_labels.*, subject, candidates.split AS patient_split
        FROM ventilation_labels JOIN candidates USING (hadm)
        """
    )
    kept = connection.execute("SELECT count(*) FROM chosen").fetchone()[0]
    in_file = connection.execute("SELECT count(*) FROM ventilation_labels").fetchone()[0]
    if not kept:
        raise InputError(f"{options.file}: none of its {in_file} HADM_IDs is an admission with a text; check the file.")
    attrition.step("in the file of labels", kept)
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE labelled AS SELECT hadm, label FROM chosen;
        CREATE OR REPLACE TABLE ventilated AS SELECT hadm, started FROM chosen;
        CREATE OR REPLACE TABLE ventilation_splits AS
        SELECT hadm, {"split" if options.use_file_split else "patient_split"} AS split FROM chosen
        """
    )
    splits, moved = connection.execute(
        "SELECT count(split), count(*) FILTER (WHERE split <> patient_split) FROM chosen"
    ).fetchone()
    facts: dict[str, Any] = {
        "file": options.file.name,
        "file_sha256": sha256_file(options.file),
        "labels_in_the_file": in_file,
        "labelled_but_not_among_the_admissions": in_file - kept,
        "split": "of the file" if options.use_file_split else "by patient",
    }
    if splits:
        patients, admissions = connection.execute(
            """
            SELECT count(*), coalesce(sum(admissions), 0)::BIGINT FROM (
                SELECT count(*) AS admissions FROM chosen GROUP BY subject HAVING count(DISTINCT split) > 1
            )
            """
        ).fetchone()
        facts |= {
            "patients_on_several_sides_of_the_files_split": patients,
            "their_admissions": admissions,
            "admissions_where_the_files_split_is_not_the_patients": moved,
        }
    return facts


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line where each row ends, and its fields by the names used here."""
    limit = csv.field_size_limit(2**31 - 1)  # a file of examples has whole notes beside its labels
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            places = {name: header.index(column) for name, column in _columns(path, header).items()}
            for fields in reader:
                if len(fields) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(fields)} field(s) where the header has {len(header)}; "
                        f"correct the row."
                    )
                yield reader.line_num, {name: fields[place] for name, place in places.items()}
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; save it as CSV in UTF-8.") from None
    except csv.Error:
        raise InputError(
            f"{path}, line {reader.line_num} cannot be read as CSV; it needs commas between fields and double quotes "
            f"around text."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(columns=list(columns.values())):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: row[column] for name, column in columns.items()}
    except (pa.ArrowInvalid, OSError):
        raise InputError(f"{path} cannot be read as Parquet; write it again.") from None


def _columns(path: Path, header: list[str]) -> dict[str, str]:
    """Find the columns of a header by the names used here."""
    found = dict[str, str]()
    for name, choices in _NAMES.items():
        column = next((column for choice in choices for column in header if column.strip().lower() == choice), None)
        if column is not None:
            found[name] = column
    missing = [word for name, word in (("hadm", "HADM_ID"), ("label", "label")) if name not in found]
    if missing:
        raise InputError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are {', '.join(header)[:300]}."
        )
    return found


def _whole(value: Any) -> int | None:
    """Read a whole number, also when a program wrote it as a fraction (100001.0)."""
    match = re.fullmatch(r"\s*(\d{1,18})(?:\.0*)?\s*", str(value))
    return int(match.group(1)) if match else None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    try:
        return datetime.fromisoformat(str(value).strip()).replace(tzinfo=None)
    except ValueError:
        return None
