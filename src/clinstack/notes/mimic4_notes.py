"""MIMIC-IV's discharge summaries and radiology reports: cleaned, deduplicated, and one text for each admission.

The patients are taken in ranges of their numbers, each range small enough for memory, so the notes come out ordered by
patient without a sort of the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.cleaning import clean_texts
from clinstack.notes.prepared import PreparedFolder
from clinstack.notes.sections import admission_text, joined, section_map, sections_type
from clinstack.notes.source_tables import SourceTables, typed

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
_RANGE_BYTES = 64 * 1024 * 1024
"""Text of the patients that are worked on at a time."""
_ROW_GROUP = 2048


def open_notes(tables: SourceTables, remedy: str) -> dict[str, int]:
    """Load the two tables of notes and check their keys; return the rows of each.

    Raises
    ------
    InputError
        If a table or column is missing or wrong, a note has no patient or number, or two notes have the same number.
    """
    rows = {}
    for table in NOTE_TABLES:
        tables.reader(table, remedy)
    for table in NOTE_TABLES:
        tables.open(table, _COLUMNS, remedy)
        rows[table] = tables.connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
        for column in ("note_id", "subject_id"):
            refuse_empty(tables, table, column, _COLUMNS[column])
    both = " UNION ALL ".join(f"SELECT note_id FROM {table}" for table in NOTE_TABLES)
    twice = tables.connection.execute(
        f"SELECT note_id FROM ({both}) GROUP BY note_id HAVING count(*) > 1 ORDER BY note_id LIMIT 1"
    ).fetchall()
    if twice:
        refuse_repeated(tables, list(NOTE_TABLES), "note_id", "VARCHAR", twice[0][0])
    return rows


def refuse_empty(tables: SourceTables, table: str, column: str, kind: str) -> None:
    """Raise InputError naming the first row whose column is empty."""
    query = f"SELECT count(*) FROM {table} WHERE {column} IS NULL OR trim({column}::VARCHAR) = ''"
    if not tables.connection.execute(query).fetchall()[0][0]:
        return
    row = next(number for number, value in _numbered(tables, table, column, kind) if not str(value or "").strip())
    raise InputError(f"{tables.place(table)}, row {row:,}: column {column} is empty; correct the row.")


def refuse_repeated(tables: SourceTables, names: list[str], column: str, kind: str, value: object) -> None:
    """Raise InputError naming the second row, over all the tables, that holds a value."""
    found = ((table, row) for table in names for row, other in _numbered(tables, table, column, kind) if other == value)
    next(found)
    table, row = next(found)
    raise InputError(
        f"{tables.place(table)}, row {row:,}: {column} {value} stands in an earlier row too; keep one of the rows."
    )


def _numbered(tables: SourceTables, table: str, column: str, kind: str) -> Iterator[tuple[int, Any]]:
    """Read one column again, with the number of each row; only for a message."""
    for rows in tables.rows(table, [column]):
        values = typed(rows, column, kind, tables.place(table)).to_pylist()
        yield from zip(rows.numbers.tolist(), values, strict=True)


def refuse_foreign_admissions(tables: SourceTables) -> None:
    """Raise InputError if a note names an admission of another patient: the split by patient would not hold."""
    for table in NOTE_TABLES:
        row = tables.connection.execute(
            f"SELECT note_id, hadm_id FROM {table} JOIN admissions USING (hadm_id) "
            f"WHERE {table}.subject_id <> admissions.subject_id ORDER BY note_id LIMIT 1"
        ).fetchall()
        if row:
            raise InputError(
                f"{tables.place(table)}: note {row[0][0]} names hadm_id {row[0][1]}, an admission of another patient; "
                f"take notes and hosp/ of the same release."
            )


def write_corpus(folder: PreparedFolder, admission_only: bool, attrition: Attrition | None) -> dict[str, int]:
    """Write ``notes.parquet``; with an attrition, also the text of each admission.

    Parameters
    ----------
    folder : PreparedFolder
        Its connection holds ``discharge`` and ``radiology``, and ``grown`` (hadm, ...) where texts are wanted.
    admission_only : bool
        Whether a text holds only what was known on admission.
    attrition : Attrition or None
        Gets the steps; None writes no texts. The view ``texts`` (hadm, text, sections) reads them from the file
        `texts_file`, in the order of patient and admission.

    Returns
    -------
    dict of str to int
        What was left out of the notes and why.
    """
    connection = folder.connection
    connection.execute("CREATE TABLE digests (subject BIGINT, digest UHUGEINT)")
    target = folder.folder / "notes" / "notes.parquet"
    target.parent.mkdir()
    total = sum(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in NOTE_TABLES)
    done = filled = kept = summarised = reported = written = 0
    folder.report("Cleaning notes", 0, total)
    with pq.ParquetWriter(target, _NOTES_SCHEMA, compression="zstd") as notes, TextsWriter(folder.scratch) as texts:
        for first, last in _ranges(connection):
            done += _take_range(connection, first, last)
            filled += connection.execute("SELECT count(*) FROM cleaned WHERE text <> ''").fetchall()[0][0]
            connection.execute(_CHUNK)
            connection.unregister("cleaned")
            table = connection.sql(_NOTES).to_arrow_table().cast(_NOTES_SCHEMA)
            notes.write_table(table, row_group_size=_ROW_GROUP)
            kept += table.num_rows
            connection.execute("INSERT INTO digests SELECT subject, md5_number(text) FROM chunk")
            if attrition:
                summarised += connection.execute(_SUMMARISED).fetchall()[0][0]
                for hadm, rows in groupby(connection.execute(_SUMMARIES).fetchall(), key=lambda row: row[0]):
                    reported += 1
                    whole = joined(row[1] for row in rows)
                    written += texts.add(hadm, admission_text(whole) if admission_only else whole)
            folder.report("Cleaning notes", done, total)
    if attrition:
        attrition.step("with a discharge summary", summarised)
        attrition.step("with a report, not addenda alone", reported)
        if admission_only:
            attrition.step("with a chief complaint, present illness or medical history", written)
        connection.execute(f"CREATE VIEW texts AS SELECT * FROM '{texts_file(folder)}'")
    shared = connection.execute(
        "SELECT count(*) FROM (SELECT digest FROM digests GROUP BY digest HAVING count(DISTINCT subject) > 1)"
    ).fetchall()[0][0]
    connection.execute("DROP TABLE IF EXISTS chunk")
    for name in ("digests", *NOTE_TABLES):
        connection.execute(f"DROP TABLE {name}")
    return {
        "notes_read": total,
        "notes_empty": total - filled,
        "notes_repeated_within_a_patient": filled - kept,
        "notes_kept": kept,
        "texts_shared_by_patients": shared,
    }


def _take_range(connection: Any, first: int, last: int) -> int:
    """Make ``cleaned`` of the notes of a range of patients; return how many there are."""
    raw = connection.sql(_RAW.format(first=first, last=last)).to_arrow_table()
    texts = clean_texts(raw["text"].combine_chunks())
    connection.register("cleaned", raw.set_column(raw.schema.get_field_index("text"), "text", texts))
    return int(raw.num_rows)


def count_hadm(connection: Any) -> dict[str, int]:
    """Count the discharge summaries that belong to no admission."""
    query = "SELECT count(*) FROM discharge WHERE hadm_id"
    return {
        "discharge_summaries_without_hadm_id": connection.execute(f"{query} IS NULL").fetchall()[0][0],
        "discharge_summaries_of_unknown_admissions": connection.execute(
            f"{query} NOT IN (SELECT hadm_id FROM admissions)"
        ).fetchall()[0][0],
    }


def texts_file(folder: PreparedFolder) -> Path:
    """Return the file of the texts."""
    return folder.scratch / "texts.parquet"


class TextsWriter:
    """Writes ``texts.parquet`` (hadm, text, sections) into a folder, a few hundred rows at a time."""

    def __init__(self, scratch: Path) -> None:
        self.schema = pa.schema([("hadm", pa.int64()), ("text", pa.string()), ("sections", sections_type())])
        self._writer = pq.ParquetWriter(scratch / "texts.parquet", self.schema, compression="zstd")
        self._rows: list[tuple[int, str, list[dict[str, Any]]]] = []

    def __enter__(self) -> TextsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, hadm: int, text: str | None) -> bool:
        """Add a text unless there is none; return whether it was added."""
        if not text:
            return False
        self._rows.append((hadm, text, sections_of(text)))
        if len(self._rows) >= _ROW_GROUP // 4:
            self._flush()
        return True

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, self.schema.types, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self._rows.clear()


def sections_of(text: str) -> list[dict[str, Any]]:
    """Return the map of a text's sections as it stands in the examples."""
    return [{"name": span.name, "start": span.start, "end": span.end} for span in section_map(text)]


def _ranges(connection: Any) -> Iterator[tuple[int, int]]:
    """Yield first and last patient number of ranges with about `_RANGE_BYTES` of text."""
    rows = connection.execute(
        "SELECT subject_id, sum(coalesce(strlen(text), 0)) FROM "
        "(SELECT subject_id, text FROM discharge UNION ALL SELECT subject_id, text FROM radiology) "
        "GROUP BY subject_id ORDER BY subject_id"
    ).fetchall()
    begin, size = 0, 0
    for place, (_, more) in enumerate(rows):
        if place > begin and size + more > _RANGE_BYTES:
            yield rows[begin][0], rows[place - 1][0]
            begin, size = place, 0
        size += more
    if rows:
        yield rows[begin][0], rows[-1][0]


_NOTES_SCHEMA = pa.schema(
    [
        ("note_id", pa.string()),
        ("patient_id", pa.string()),
        ("encounter_id", pa.string()),
        ("charttime", pa.timestamp("us")),
        ("note_type", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
    ]
)
_RAW = " UNION ALL ".join(
    f"""
    SELECT note_id, subject_id AS subject, hadm_id AS hadm, charttime, '{kind}' AS kind,
        coalesce(trim(note_type) IN ('AD', 'AR'), false) AS addendum, note_seq, text
    FROM {table} WHERE subject_id BETWEEN {{first}} AND {{last}}
    """
    for table, kind in NOTE_TABLES.items()
)
_CHUNK = """
CREATE OR REPLACE TEMP TABLE chunk AS SELECT * FROM cleaned WHERE text <> ''
QUALIFY row_number() OVER (
    PARTITION BY subject, kind, md5(text)
    ORDER BY hadm IS NULL, addendum, charttime DESC NULLS LAST, note_seq DESC NULLS LAST, note_id DESC
) = 1
"""
_NOTES = """
SELECT note_id, subject::VARCHAR AS patient_id, hadm::VARCHAR AS encounter_id, charttime, kind AS note_type, text,
    'mimic4' AS source
FROM chunk ORDER BY subject, charttime, kind, note_seq, note_id
"""
_SUMMARISED = """
SELECT count(DISTINCT chunk.hadm) FROM chunk JOIN grown USING (hadm) WHERE kind = 'Discharge summary'
"""
_SUMMARIES = """
SELECT hadm, text FROM chunk JOIN grown USING (hadm)
WHERE kind = 'Discharge summary'
QUALIFY NOT bool_and(addendum) OVER (PARTITION BY hadm)
ORDER BY chunk.subject, hadm, charttime, addendum, note_seq, note_id
"""
