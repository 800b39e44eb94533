"""Grades that people gave, from a table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from clinstack.errors import InputError
from clinstack.judge.rubric import GRADES
from clinstack.notes.sources.table_readers import CsvTable, ParquetTable, TableReader

COLUMNS = ("example_id", "answers", "score")


def read_human_grades(path: Path, example_ids: Collection[str], labels: Collection[str]) -> dict[tuple[str, str], int]:
    """Read a table of human grades.

    Parameters
    ----------
    path : Path
        csv or Parquet with `COLUMNS`: the example, the label of the answers, and a whole number from 1 to 4.
    example_ids, labels : collection of str
        What will be judged.

    Returns
    -------
    dict of (example_id, label) to int
        All grades of the table, also of examples that will not be judged.

    Raises
    ------
    InputError
        A column is missing, a grade is none of the four, an answer has two grades, a label is unknown, or no grade is
        of an answer that will be judged.
    """
    reader: TableReader = ParquetTable(path) if path.suffix == ".parquet" else CsvTable(path)
    missing = [name for name in COLUMNS if name not in reader.columns]
    if missing:
        raise InputError(f"human: {path} has no column {missing[0]}; it has {', '.join(reader.columns)[:300]}.")
    grades: dict[tuple[str, str], int] = {}
    for rows in reader.rows(COLUMNS):
        values = rows.batch.to_pydict()
        for number, example, label, score in zip(
            rows.numbers.tolist(), *(values[name] for name in COLUMNS), strict=True
        ):
            where = f"human: {path}, row {number}"
            if example is None or label is None:
                raise InputError(f"{where}: example_id or answers is empty; fill it in, or drop the row.")
            if label not in labels:
                # Not quoted: where columns are mixed up, an answer stands in the label's place.
                raise InputError(
                    f"{where}: answers is none of {', '.join(labels)}; correct the label, or drop the row."
                )
            if (example, label) in grades:
                raise InputError(f"{where}: {example} has two grades for {label}; keep one, such as the agreed one.")
            grades[example, label] = _grade(score, where)
    if not {example for example, _ in grades} & set(example_ids):
        raise InputError(f"human: {path} has no grade of an example that will be judged; see tasks and max_examples.")
    return grades


def _grade(text: str | None, where: str) -> int:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if value not in GRADES:
        raise InputError(f"{where}: the score must be a whole number from {GRADES[0]} to {GRADES[-1]}.")
    return int(value)
