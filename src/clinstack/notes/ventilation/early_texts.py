"""Texts of an admission that were written before its first ventilation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clinstack.notes.attrition import Attrition
from clinstack.notes.cleaning import clean_texts
from clinstack.notes.sources.source_tables import SourceTables, typed

_ADMISSIONS_AT_A_TIME = 1000
_KINDS = {
    "ROW_ID": "BIGINT",
    "HADM_ID": "BIGINT",
    "CHARTDATE": "TIMESTAMP",
    "CHARTTIME": "TIMESTAMP",
    "CATEGORY": "VARCHAR",
    "ISERROR": "VARCHAR",
}


def texts_before_ventilation(
    connection: Any,
    tables: SourceTables,
    attrition: Attrition,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Make the table ``early_texts`` (hadm, text) of the ``labelled`` admissions.

    A text is the admission's notes in the order of time, cleaned, a blank line between them and before each a line
    with its category and how long before ventilation it was charted. A note counts when its CHARTTIME is before the
    first start of ventilation; without a CHARTTIME, when its CHARTDATE is a day before the day of the start. Where
    NOTEEVENTS has a column STORETIME, a note stored at or after the start does not count, whatever its CHARTTIME.
    Notes marked as errors and discharge summaries never count, and of equal texts the first.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Holds the tables ``labelled`` and ``ventilated``.
    tables : SourceTables
        Its NOTEEVENTS is read once, block by block: ROW_ID, HADM_ID, CHARTDATE, CHARTTIME, CATEGORY, ISERROR, TEXT.
    attrition : Attrition
        Gets a step for the admissions without such a note.
    progress : callable, optional
        Called with a description, the admissions done and the admissions in all.

    Returns
    -------
    dict
        ``{"notes_before_ventilation": counts}`` for ``attrition.json``: notes used, and notes of these admissions left
        out because of when they were written or what they are.

    Raises
    ------
    InputError
        If NOTEEVENTS is missing or cannot be read.
    """
    stored = any(name.upper() == "STORETIME" for name in tables.reader("NOTEEVENTS").columns)
    found = _select_notes(connection, tables, stored)
    connection.execute(_ONCE)
    notes, kept = connection.execute("SELECT count(*), count(DISTINCT hadm) FROM early_notes").fetchone()
    _join_notes(connection, kept, progress)
    attrition.step("with a note written before ventilation", kept)
    return {
        "notes_before_ventilation": {
            "used": notes,
            "empty_or_repeated": found["used"] - notes,
            "charted_from_the_start_on": found["late"],
            "charted_before_but_stored_from_the_start_on": found["stored late"] if stored else None,
            "discharge_summaries_dated_before": found["summary"],
            "marked_as_errors": found["error"],
        }
    }


def _select_notes(connection: Any, tables: SourceTables, stored: bool) -> Counter[str]:
    """Make the table ``selected_notes`` (hadm, note, moment, heading, text) of the notes in time; count all by fate."""
    connection.execute(
        """
        CREATE OR REPLACE TABLE selected_notes
            (hadm BIGINT, note BIGINT, moment TIMESTAMP, heading VARCHAR, text VARCHAR);
        CREATE OR REPLACE TABLE starts AS SELECT hadm, started FROM labelled JOIN ventilated USING (hadm)
        """
    )
    kinds = _KINDS | ({"STORETIME": "TIMESTAMP"} if stored else {})
    query = _FATES.format("coalesce(STORETIME >= started, false)" if stored else "false")
    name = tables.place("NOTEEVENTS")
    counts = Counter[str]()
    for rows in tables.rows("NOTEEVENTS", [*kinds, "TEXT"]):
        columns = {column: typed(rows, column, kind, name) for column, kind in kinds.items()}
        columns["place"] = pa.array(range(rows.batch.num_rows), pa.int64())
        connection.register("note_rows", pa.table(columns))
        fates = connection.sql(query).to_arrow_table()
        connection.unregister("note_rows")
        counts.update(fates["fate"].to_pylist())
        used = fates.filter(pc.equal(fates["fate"], "used"))
        if used.num_rows:
            texts = clean_texts(rows.batch.column("TEXT").take(used["place"].combine_chunks()))
            chosen = used.select(["hadm", "note", "moment", "heading"]).append_column("text", texts)
            connection.register("chosen_rows", chosen)
            connection.execute("INSERT INTO selected_notes SELECT * FROM chosen_rows WHERE text <> ''")
            connection.unregister("chosen_rows")
    return counts


_FATES = """
WITH dated AS (
    SELECT place, starts.hadm, ROW_ID AS note, coalesce(CHARTTIME, CHARTDATE) AS moment,
        coalesce(nullif(trim(CATEGORY), ''), 'Note') AS category,
        CASE WHEN CHARTTIME IS NULL THEN date_diff('day', CHARTDATE, started)
            ELSE CAST(floor(epoch(started - CHARTTIME) / 3600) AS BIGINT) END AS ahead,
        CASE WHEN CHARTTIME IS NULL THEN 'day' ELSE 'hour' END AS unit,
        CASE WHEN trim(ISERROR) = '1' THEN 'error'
            WHEN NOT coalesce(CHARTTIME < started, CAST(CHARTDATE AS DATE) < CAST(started AS DATE), false) THEN 'late'
            WHEN trim(CATEGORY) = 'Discharge summary' THEN 'summary'
            WHEN {} THEN 'stored late' ELSE 'used' END AS fate
    FROM note_rows JOIN starts ON starts.hadm = HADM_ID
)
SELECT place, hadm, note, moment, fate,
    concat(category, ', ',
        CASE ahead WHEN 0 THEN 'less than an hour' WHEN 1 THEN concat('1 ', unit)
            ELSE concat(ahead, ' ', unit, 's') END,
        ' before ventilation') AS heading
FROM dated ORDER BY place
"""

_ONCE = """
CREATE OR REPLACE TABLE early_notes AS
SELECT * FROM selected_notes
QUALIFY row_number() OVER (PARTITION BY hadm, md5(text) ORDER BY moment, note) = 1
ORDER BY hadm;
DROP TABLE selected_notes
"""


def _join_notes(connection: Any, admissions: int, progress: Callable[[str, int, int], None] | None) -> None:
    """Make ``early_texts`` a few admissions at a time, so that their notes alone are in memory."""
    connection.execute("CREATE OR REPLACE TABLE early_texts (hadm BIGINT, text VARCHAR)")
    bounds = connection.execute(
        f"""
        SELECT min(hadm), max(hadm), count(*) FROM (
            SELECT hadm, (row_number() OVER (ORDER BY hadm) - 1) // {_ADMISSIONS_AT_A_TIME} AS part
            FROM (SELECT DISTINCT hadm FROM early_notes)
        ) GROUP BY part ORDER BY part
        """
    ).fetchall()
    done = 0
    for first, last, count in bounds:
        connection.execute(
            """
            INSERT INTO early_texts
            SELECT hadm, string_agg(concat(heading, chr(10), text), chr(10) || chr(10) ORDER BY moment, note)
            FROM early_notes WHERE hadm BETWEEN ? AND ? GROUP BY hadm
            """,
            [first, last],
        )
        done += count
        if progress:
            progress("Joining notes before ventilation", done, admissions)
    connection.execute("DROP TABLE early_notes")
