"""What came out of each question to the judge, and the table of scores: one row for each answer in each order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from clinstack.judge.orders import Presentation

SCORES = pa.schema(
    [
        ("example_id", pa.string()),
        ("patient_id", pa.string()),
        ("task", pa.string()),
        ("answers", pa.string()),
        ("order", pa.int32()),
        ("shown", pa.list_(pa.string())),
        ("position", pa.int32()),
        ("score", pa.int8()),
        ("parsed", pa.bool_()),
        ("replied", pa.bool_()),
        ("asked", pa.int32()),
    ]
)
"""Of ``scores.parquet``. ``position`` counts from 1. A null score has ``parsed`` false: with ``replied`` the reply
could not be read, without it there was none. ``asked`` says how often the question was put."""


@dataclass(frozen=True)
class Reading:
    """A presentation and the grades that the judge gave, in the order shown; None where there are none."""

    presentation: Presentation
    patient_id: str
    task: str
    grades: Sequence[int] | None
    replied: bool
    asked: int


def scores_table(readings: Sequence[Reading]) -> pa.Table:
    """Return the rows of ``scores.parquet``, those of one question together."""
    rows = [
        {
            "example_id": reading.presentation.example_id,
            "patient_id": reading.patient_id,
            "task": reading.task,
            "answers": label,
            "order": reading.presentation.order,
            "shown": list(reading.presentation.shown),
            "position": place + 1,
            "score": None if reading.grades is None else reading.grades[place],
            "parsed": reading.grades is not None,
            "replied": reading.replied,
            "asked": reading.asked,
        }
        for reading in readings
        for place, label in enumerate(reading.presentation.shown)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)
