"""MIMIC-IV's discharge summaries and radiology reports: read once, cleaned, deduplicated, written by patient and time.

The texts wait in a scratch file; only their keys are sorted, so any number of notes fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinstack.errors import InputError
from clinstack.notes.cleaning import clean_texts
from clinstack.notes.prepared import PreparedFolder
from clinstack.notes.sources.csv_rows import Rows
from clinstack.notes.sources.source_tables import SourceTables, typed
from clinstack.notes.text_store import TextStore

NOTE_TABLES = {"discharge": "Discharge summary", "radiology": "Radiology"}
_COLUMNS = {
    "note_id": "VARCHAR",
    "subject_id": "BIGINT",
    "hadm_id": "BIGINT",
    "note_type": "VARCHAR",
    "note_seq": "BIGINT",
    "charttime": "TIMESTAMP",
    "text": "VARCHAR",
}
_ADDENDA = pa.array(["AD", "AR"])


class Mimic4Notes:
    """The notes while they are prepared. A context manager; the keys are in tables of the folder's connection.

    ``note_keys`` holds every note (note_id, subject, hadm, charttime, kind, addendum, note_seq, place, digest; no
    digest where there is no text), ``kept_notes`` those that are written.
    """

    def __init__(self, folder: PreparedFolder) -> None:
        self.folder = folder
        self.connection = folder.connection
        self.store = TextStore(folder.scratch / "notes.texts")
        self.connection.execute(
            "CREATE TABLE note_keys (note_id VARCHAR, subject BIGINT, hadm BIGINT, charttime TIMESTAMP, kind VARCHAR, "
            "addendum BOOLEAN, note_seq BIGINT, place BIGINT, digest UHUGEINT)"
        )

    def __enter__(self) -> Mimic4Notes:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.store.__exit__()

    def read(self, tables: SourceTables, remedy: str) -> dict[str, int]:
        """Read both tables and clean their texts; return the rows of each.

        Raises
        ------
        InputError
            If a table or column is missing or wrong, a note has no patient or number, or two have the same number.
        """
        counts = dict.fromkeys(NOTE_TABLES, 0)
        for table in NOTE_TABLES:
            tables.reader(table, remedy)
        for table, kind in NOTE_TABLES.items():
            place = tables.place(table)
            for rows in tables.rows(table, list(_COLUMNS), needed_by=remedy):
                self._add(rows, kind, place)
                counts[table] += rows.batch.num_rows
        twice = self.connection.execute(
            "SELECT note_id FROM note_keys GROUP BY note_id HAVING count(*) > 1 ORDER BY note_id LIMIT 1"
        ).fetchall()
        if twice:
            refuse_repeated(tables, list(NOTE_TABLES), "note_id", "VARCHAR", twice[0][0])
        return counts

    def _add(self, rows: Rows, kind: str, place: str) -> None:
        values = {name: typed(rows, name, form, place) for name, form in _COLUMNS.items()}
        for name in ("note_id", "subject_id"):
            refuse_nulls(rows, values[name], name, place)
        texts = clean_texts(values["text"])
        filled = pc.greater(pc.binary_length(texts), 0).fill_null(False)
        addendum = pc.is_in(pc.utf8_trim_whitespace(values["note_type"]), _ADDENDA)
        table = pa.table(
            {
                "note_id": values["note_id"],
                "subject": values["subject_id"],
                "hadm": values["hadm_id"],
                "charttime": values["charttime"],
                "kind": pa.array([kind] * len(texts), pa.string()),
                "addendum": addendum,
                "note_seq": values["note_seq"],
                "place": self.store.add_all(texts),
                "text": pc.if_else(filled, texts, pa.scalar(None, texts.type)),
            }
        )
        self.connection.register("new_notes", table)
        self.connection.execute("INSERT INTO note_keys SELECT * EXCLUDE (text), md5_number(text) FROM new_notes")
        self.connection.unregister("new_notes")

    def patients(self) -> list[str]:
        """Return the patients who have a note."""
        return [str(row[0]) for row in self.connection.execute("SELECT DISTINCT subject FROM note_keys").fetchall()]

    def refuse_foreign_admissions(self, tables: SourceTables) -> None:
        """Raise InputError if a note names another patient's admission: the split by patient would not hold."""
        found = self.connection.execute(
            "SELECT note_id, hadm, kind FROM note_keys JOIN admissions ON hadm_id = hadm "
            "WHERE subject <> subject_id ORDER BY note_id LIMIT 1"
        ).fetchall()
        if found:
            note, hadm, kind = found[0]
            table = next(table for table, name in NOTE_TABLES.items() if name == kind)
            raise InputError(
                f"{tables.place(table)}: note {note} names hadm_id {hadm}, an admission of another patient; "
                f"take notes and hosp/ of the same release."
            )

    def deduplicate(self) -> dict[str, int]:
        """Make ``kept_notes``: of equal texts of one patient in one table a single one.

        That with an admission is kept rather than one without, a report rather than an addendum, then the latest.

        Returns
        -------
        dict of str to int
            Notes read, empty, repeated and kept, and texts that several patients share.
        """
        self.connection.execute(
            """
            CREATE TABLE kept_notes AS SELECT * FROM note_keys WHERE digest IS NOT NULL
            QUALIFY row_number() OVER (
                PARTITION BY subject, kind, digest
                ORDER BY hadm IS NULL, addendum, charttime DESC NULLS LAST, note_seq DESC NULLS LAST, note_id DESC
            ) = 1
            """
        )
        read, filled = self.connection.execute("SELECT count(*), count(digest) FROM note_keys").fetchall()[0]
        kept = self.connection.execute("SELECT count(*) FROM kept_notes").fetchall()[0][0]
        shared = self.connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM kept_notes GROUP BY digest HAVING count(DISTINCT subject) > 1)"
        ).fetchall()[0][0]
        return {
            "notes_read": read,
            "notes_empty": read - filled,
            "notes_repeated_within_a_patient": filled - kept,
            "notes_kept": kept,
            "texts_shared_by_patients": shared,
        }

    def count_lost(self) -> dict[str, int]:
        """Count the discharge summaries that belong to no admission of the table ``admissions``."""
        nowhere, unknown = self.connection.execute(
            """
            SELECT count(*) FILTER (WHERE hadm IS NULL), count(*) FILTER (WHERE hadm IS NOT NULL AND hadm_id IS NULL)
            FROM note_keys LEFT JOIN admissions ON hadm_id = hadm WHERE kind = 'Discharge summary'
            """
        ).fetchall()[0]
        return {"discharge_summaries_without_hadm_id": nowhere, "discharge_summaries_of_unknown_admissions": unknown}

    def write(self) -> None:
        """Write ``notes.parquet`` from ``kept_notes``, by patient and time."""
        total = self.connection.execute("SELECT count(*) FROM kept_notes").fetchall()[0][0]
        self.folder.write_notes(_NOTES, total, self.store, "mimic4")


def refuse_nulls(rows: Rows, values: pa.Array, column: str, place: str) -> None:
    """Raise InputError naming the first row whose column is empty."""
    empty = pc.is_null(values)
    if pa.types.is_string(values.type):
        empty = pc.or_kleene(empty, pc.equal(pc.utf8_trim_whitespace(values), "").fill_null(True))
    if pc.any(empty).as_py():
        row = int(rows.numbers[np.asarray(empty)][0])
        raise InputError(f"{place}, row {row:,}: column {column} is empty; correct the row.")


def refuse_empty(tables: SourceTables, table: str, column: str) -> None:
    """Raise InputError naming the first row whose number is empty, in a table that was opened."""
    found = tables.connection.execute(f"SELECT count(*) FROM {table} WHERE {column} IS NULL").fetchall()[0][0]
    if found:
        for rows in tables.rows(table, [column]):
            refuse_nulls(rows, typed(rows, column, "BIGINT", tables.place(table)), column, tables.place(table))


def refuse_repeated(tables: SourceTables, names: list[str], column: str, kind: str, value: object) -> None:
    """Raise InputError naming the second row, over all the tables, that holds a value."""

    def holders() -> Iterator[tuple[str, int]]:
        for table in names:
            for rows in tables.rows(table, [column]):
                values = typed(rows, column, kind, tables.place(table)).to_pylist()
                yield from (
                    (table, int(row)) for row, other in zip(rows.numbers, values, strict=True) if other == value
                )

    found = holders()
    next(found)
    table, row = next(found)
    raise InputError(
        f"{tables.place(table)}, row {row:,}: {column} {value} stands in an earlier row too; keep one of the rows."
    )


_NOTES = """
SELECT note_id, subject::VARCHAR AS patient_id, hadm::VARCHAR AS encounter_id, charttime, kind AS note_type, place
FROM kept_notes ORDER BY subject, charttime, kind, note_seq, note_id
"""
