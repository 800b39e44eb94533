"""Notes cleaned and deduplicated, and one text for each admission from its discharge summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from clinstack.notes.attrition import Attrition
from clinstack.notes.death_mentions import RULES, death_rule, without_charted_death
from clinstack.notes.sections import admission_text, joined

Progress = Callable[[str, int, int], None]
_BATCH = 512

_CLEANING = (
    "replace(replace(@, chr(13) || chr(10), chr(10)), chr(13), chr(10))",
    "replace(replace(@, '[**', ' '), '**]', ' ')",
    r"regexp_replace(@, '[ \t\f\v\x{00A0}]+', ' ', 'g')",
    r"regexp_replace(@, ' ?\n ?', chr(10), 'g')",
    r"regexp_replace(@, '\n{3,}', chr(10) || chr(10), 'g')",
    "trim(@, ' ' || chr(10))",
)
"""The brackets of placeholders go and their words stay; blanks shrink to one, blank lines to one; lines stay."""


def clean_notes(connection: Any) -> dict[str, int]:
    """Make the table ``clean``: every note that is not an error, cleaned, once for each patient.

    Of equal texts of one patient a report is kept rather than an addendum, then the latest.

    Returns
    -------
    dict of str to int
        Notes read, left out as errors, as empty and as repeated, kept, and texts that several patients share.
    """
    cleaned = "TEXT"
    for step in _CLEANING:
        cleaned = step.replace("@", cleaned)
    connection.execute(
        f"""
        CREATE TABLE usable AS
        SELECT ROW_ID AS note, SUBJECT_ID AS subject, HADM_ID AS hadm, CHARTDATE AS day,
            coalesce(CHARTTIME, CHARTDATE) AS charttime, trim(CATEGORY) AS category,
            coalesce(DESCRIPTION = 'Report', false) AS report, {cleaned} AS text
        FROM NOTEEVENTS WHERE coalesce(trim(ISERROR), '0') <> '1' AND TEXT IS NOT NULL
        """
    )
    connection.execute(
        """
        CREATE TABLE clean AS SELECT * FROM usable WHERE text <> ''
        QUALIFY row_number() OVER (
            PARTITION BY subject, category = 'Discharge summary', md5(text)
            ORDER BY report DESC, day DESC NULLS LAST, note DESC
        ) = 1
        """
    )
    read, errors = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE trim(ISERROR) = '1') FROM NOTEEVENTS"
    ).fetchone()
    filled = connection.execute("SELECT count(*) FROM usable WHERE text <> ''").fetchone()[0]
    kept, shared = connection.execute(
        "SELECT sum(notes)::BIGINT, count(*) FILTER (WHERE patients > 1) FROM "
        "(SELECT count(*) AS notes, count(DISTINCT subject) AS patients FROM clean GROUP BY md5(text))"
    ).fetchone()
    connection.execute("DROP TABLE usable")
    return {
        "notes_read": read,
        "notes_marked_as_errors": errors,
        "notes_empty": read - errors - filled,
        "notes_repeated_within_a_patient": filled - (kept or 0),
        "notes": kept or 0,
        "texts_shared_by_patients": shared,
    }


def write_notes(connection: Any, path: Path, source: str) -> None:
    """Write ``notes.parquet`` from ``clean``, ordered by patient and time."""
    path.parent.mkdir(parents=True)
    connection.execute(
        f"""
        COPY (
            SELECT note::VARCHAR AS note_id, subject::VARCHAR AS patient_id, hadm::VARCHAR AS encounter_id, charttime,
                category AS note_type, text, '{source}' AS source
            FROM clean ORDER BY subject, charttime, note
        ) TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd)
        """
    )


def build_texts(
    connection: Any, scratch: Path, admission_only: bool, attrition: Attrition, progress: Progress | None
) -> None:
    """Make the view ``texts`` (hadm, text) from the discharge summaries of the admissions in ``grown``.

    Summaries and addenda of an admission are joined in the order of CHARTDATE, reports before addenda, then ROW_ID. An
    admission with addenda alone is left out.
    """
    connection.execute(
        """
        CREATE TABLE summaries AS
        SELECT clean.hadm, day, report, note, text, bool_or(report) OVER (PARTITION BY clean.hadm) AS reported
        FROM clean JOIN grown ON grown.hadm = clean.hadm WHERE category = 'Discharge summary'
        """
    )
    count = "SELECT count(DISTINCT hadm) FROM summaries"
    attrition.step("with a discharge summary", connection.execute(count).fetchone()[0])
    admissions = connection.execute(f"{count} WHERE reported").fetchone()[0]
    attrition.step("with a report, not addenda alone", admissions)

    def texts() -> Iterator[tuple[int, str | None]]:
        rows = _rows(
            connection,
            "SELECT hadm, text FROM summaries WHERE reported ORDER BY hadm, day NULLS LAST, NOT report, note",
        )
        for done, (hadm, notes) in enumerate(groupby(rows, key=lambda row: row[0]), 1):
            text = joined(note for _, note in notes)
            yield hadm, admission_text(text) if admission_only else text
            if progress and (done % 1000 == 0 or done == admissions):
                progress("Reading discharge summaries", done, admissions)

    kept = _write_texts(scratch / "texts.parquet", texts())
    connection.execute(f"CREATE VIEW texts AS SELECT * FROM '{_quoted(scratch / 'texts.parquet')}'")
    if admission_only:
        attrition.step("with a chief complaint, present illness or medical history", kept)


def drop_death_mentions(connection: Any, scratch: Path, attrition: Attrition) -> None:
    """Make the view ``safe_texts`` (hadm, text) of the ``labelled`` admissions whose text does not tell the death."""
    removed = dict.fromkeys(RULES, 0)

    def texts() -> Iterator[tuple[int, str | None]]:
        query = "SELECT hadm, text FROM texts WHERE hadm IN (SELECT hadm FROM labelled) ORDER BY hadm"
        for hadm, text in _rows(connection, query):
            safe = without_charted_death(text)
            rule = death_rule(safe)
            if rule:
                removed[rule] += 1
            yield hadm, None if rule else safe

    _write_texts(scratch / "safe.parquet", texts())
    connection.execute(f"CREATE VIEW safe_texts AS SELECT * FROM '{_quoted(scratch / 'safe.parquet')}'")
    kept = attrition.steps[-1]["kept"]
    for rule, count in removed.items():
        kept -= count
        attrition.step(f"text free of: {rule}", kept)


def _rows(connection: Any, query: str) -> Iterator[tuple[Any, ...]]:
    cursor = connection.cursor().execute(query)
    while batch := cursor.fetchmany(_BATCH):
        yield from batch


def _write_texts(path: Path, texts: Iterator[tuple[int, str | None]]) -> int:
    """Write those pairs that have a text; return how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("hadm", pa.int64()), ("text", pa.string())])
    written, pending = 0, list[tuple[int, str]]()
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            columns = [[row[0] for row in pending], [row[1] for row in pending]]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
            pending.clear()

        for hadm, text in texts:
            if text:
                pending.append((hadm, text))
                written += 1
            if len(pending) >= _BATCH:
                flush()
        flush()
    return written


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
