"""One pass over MIMIC-III's notes: discharge summaries go to a scratch file, and all notes to the table of notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinstack.notes.sources.csv_rows import Rows, take
from clinstack.notes.sources.source_tables import SourceTables, typed
from clinstack.notes.text_store import TextStore

DISCHARGE_SUMMARY = "Discharge summary"
NOTE_COLUMNS = (
    *("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME"),
    *("CATEGORY", "DESCRIPTION", "ISERROR", "TEXT"),
)
_KINDS = {
    **{"ROW_ID": "BIGINT", "SUBJECT_ID": "BIGINT", "HADM_ID": "BIGINT"},
    **{"CHARTDATE": "TIMESTAMP", "CHARTTIME": "TIMESTAMP"},
}
NOTES_NEEDED_BY = "Every task needs it."


@dataclass
class Summaries:
    """The rows of NOTEEVENTS whose category is a discharge summary's, in the order of the table.

    All lists have one entry a row; a missing value is None.
    """

    note: list[int | None] = field(default_factory=list)
    subject: list[int | None] = field(default_factory=list)
    hadm: list[int | None] = field(default_factory=list)
    day: list[str | None] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    description: list[str | None] = field(default_factory=list)
    error: list[bool] = field(default_factory=list)
    has_text: list[bool] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    """Number in the text store."""

    def __len__(self) -> int:
        return len(self.text)

    def add(self, rows: Rows, store: TextStore) -> None:
        """Add rows and their texts."""
        columns = {name: rows.batch.column(name) for name in rows.batch.schema.names}
        self.note += columns["ROW_ID"].to_pylist()
        self.subject += columns["SUBJECT_ID"].to_pylist()
        self.hadm += columns["HADM_ID"].to_pylist()
        self.day += columns["DAY"].to_pylist()
        self.category += columns["CATEGORY"].to_pylist()
        self.description += columns["DESCRIPTION"].to_pylist()
        self.error += is_error(columns["ISERROR"]).to_pylist()
        self.has_text += pc.is_valid(columns["TEXT"]).to_pylist()
        self.text += store.add_all(columns["TEXT"]).tolist()


def is_error(column: pa.Array) -> pa.Array:
    """Whether ISERROR marks a note as an error: true or false, never null."""
    return pc.equal(pc.utf8_trim_whitespace(column), "1").fill_null(False)


def read_summaries(
    tables: SourceTables, store: TextStore, every_note: Callable[[pa.RecordBatch, NDArray[np.int64]], None] | None
) -> Summaries:
    """Read NOTEEVENTS once.

    Parameters
    ----------
    tables : SourceTables
        Where NOTEEVENTS is.
    store : TextStore
        Gets the texts of discharge summaries, as they stand in the table.
    every_note : callable, optional
        Called with each batch of all notes, typed, and their row numbers. Without it, rows that are no discharge
        summary are checked for broken quotes and encoding, but not parsed.

    Raises
    ------
    InputError
        If the table is missing or a row is wrong.
    """
    summaries = Summaries()
    words = ("CATEGORY", DISCHARGE_SUMMARY)
    place = tables.reader("NOTEEVENTS", NOTES_NEEDED_BY).place
    for rows in tables.rows("NOTEEVENTS", NOTE_COLUMNS, None if every_note else words, NOTES_NEEDED_BY):
        values = [
            typed(rows, name, _KINDS[name], place) if name in _KINDS else rows.batch.column(name)
            for name in NOTE_COLUMNS
        ]
        batch = pa.RecordBatch.from_arrays([*values, rows.batch.column("CHARTDATE")], [*NOTE_COLUMNS, "DAY"])
        if every_note:
            every_note(batch, rows.numbers)
        whole = Rows(batch, rows.numbers)
        summaries.add(take(whole, pc.match_substring(batch.column("CATEGORY"), DISCHARGE_SUMMARY)), store)
    pa.default_memory_pool().release_unused()
    return summaries
