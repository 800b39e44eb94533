"""The table of all notes, written in one pass over the source however large it is."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinstack.notes.cleaning import clean_texts
from clinstack.notes.mimic3.summaries import is_error
from clinstack.notes.prepared import PreparedFolder
from clinstack.notes.text_store import TextStore


class NotesTable:
    """Gathers notes batch by batch, then writes ``notes.parquet``: cleaned, once for each patient, in order of time.

    Of equal texts of one patient a report is kept rather than an addendum, then the latest. Notes marked as errors and
    empty ones are left out. The texts wait in a scratch file; only keys are sorted.

    Parameters
    ----------
    prepared : PreparedFolder
        Where the table goes.
    keep_errors : bool
        Whether notes marked as errors stay.
    """

    def __init__(self, prepared: PreparedFolder, keep_errors: bool = False) -> None:
        self._prepared = prepared
        self._keep_errors = keep_errors
        self._store = TextStore(prepared.scratch / "notes.bin")
        self._read = self._errors = self._empty = 0
        # A batch is cleaned while the next one is parsed.
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._cursor = prepared.connection.cursor()
        self._cursor.execute(
            "CREATE TABLE note_keys (place BIGINT, note BIGINT, subject BIGINT, hadm BIGINT, day TIMESTAMP, "
            "charttime TIMESTAMP, category VARCHAR, report BOOLEAN, hash UBIGINT)"
        )

    def add(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> None:
        """Take a batch of NOTEEVENTS, typed."""
        self._wait()
        self._pending = self._worker.submit(self._add, batch)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _add(self, batch: pa.RecordBatch) -> None:
        self._read += batch.num_rows
        if not self._keep_errors:
            error = is_error(batch.column("ISERROR"))
            self._errors += pc.sum(error).as_py() or 0
            batch = batch.filter(pc.invert(error))
        texts = clean_texts(batch.column("TEXT"))
        filled = pc.greater(pc.binary_length(texts), 0).fill_null(False)
        self._empty += batch.num_rows - (pc.sum(filled).as_py() or 0)
        batch, texts = batch.filter(filled), texts.filter(filled)
        keys = pa.table(
            {
                "place": self._store.add_all(texts),
                "note": batch.column("ROW_ID"),
                "subject": batch.column("SUBJECT_ID"),
                "hadm": batch.column("HADM_ID"),
                "day": batch.column("CHARTDATE"),
                "charttime": pc.coalesce(batch.column("CHARTTIME"), batch.column("CHARTDATE")),
                "category": pc.utf8_trim_whitespace(batch.column("CATEGORY")),
                "report": pc.equal(batch.column("DESCRIPTION"), "Report").fill_null(False),
                "text": texts,
            }
        )
        self._cursor.register("new_notes", keys)
        self._cursor.execute("INSERT INTO note_keys SELECT * EXCLUDE (text), hash(text) FROM new_notes")
        self._cursor.unregister("new_notes")

    def patients(self) -> set[int]:
        """Return the patients of the notes."""
        self._wait()
        found = self._cursor.execute("SELECT DISTINCT subject FROM note_keys WHERE subject IS NOT NULL").fetchall()
        return {row[0] for row in found}

    def write(self, source: str) -> dict[str, int]:
        """Write the table of the patients that are in the table ``splits``.

        Parameters
        ----------
        source : str
            For the column of that name.

        Returns
        -------
        dict of str to int
            Notes read, left out as errors, as empty, as repeated, as of a patient in no split, kept, and texts that
            several patients share.
        """
        self._wait()
        self._worker.shutdown()
        execute = self._cursor.execute
        execute(
            """
            CREATE TABLE kept_notes AS SELECT * FROM note_keys QUALIFY row_number() OVER (
                PARTITION BY subject, category = 'Discharge summary', hash
                ORDER BY report DESC, day DESC NULLS LAST, note DESC
            ) = 1
            """
        )
        once = execute("SELECT count(*) FROM kept_notes").fetchone()[0]
        execute("DELETE FROM kept_notes WHERE subject::VARCHAR NOT IN (SELECT patient_id FROM splits)")
        kept = execute("SELECT count(*) FROM kept_notes").fetchone()[0]
        shared = execute(
            "SELECT count(*) FROM (SELECT hash FROM kept_notes GROUP BY hash HAVING count(DISTINCT subject) > 1)"
        ).fetchone()[0]
        query = (
            "SELECT place, note::VARCHAR AS note_id, subject::VARCHAR AS patient_id, hadm::VARCHAR AS encounter_id, "
            "charttime, category AS note_type FROM kept_notes ORDER BY subject, charttime, note"
        )
        self._prepared.write_notes(query, kept, self._store, source)
        self._store.__exit__()
        filled = len(self._store)
        return {
            "notes_read": self._read,
            "notes_marked_as_errors": self._errors,
            "notes_empty": self._empty,
            "notes_repeated_within_a_patient": filled - once,
            "notes_of_patients_in_no_split": once - kept,
            "notes": kept,
            "texts_shared_by_patients": shared,
        }
