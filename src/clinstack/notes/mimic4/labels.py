"""Labels of the outcome tasks on MIMIC-IV's admissions.

Each function makes the table ``labelled`` (hadm, label) from ``candidates`` (hadm, subject, admitted, discharged, died,
split), the admissions of adults that have a text. The rules are those of MIMIC-III's builder wherever the tables allow
it; codes and ventilation differ, and say how.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.labels import length_of_stay_class
from clinstack.notes.mimic4.icd import CodeBook, CodeKind, read_as_number
from clinstack.notes.mimic4.notes import refuse_empty
from clinstack.notes.mimic4.options import VentilationRule
from clinstack.notes.sources.source_tables import SourceTables, typed

CODE_TABLES: dict[str, str] = {"diagnoses": "diagnoses_icd", "procedures": "procedures_icd"}
INVASIVE_VENTILATION = 225792
PROLONGED_DAYS = 7
_GRACE_HOURS = 6
_ENOUGH_CODES = 1000
"""Of so many ICD-9 codes made of digits, some begin with 0 unless the zeros were lost."""


def label_mortality(connection: Any, attrition: Attrition) -> None:
    """Label whether the patient died in the hospital."""
    connection.execute(
        "CREATE OR REPLACE TABLE labelled AS SELECT hadm, died::BIGINT AS label FROM candidates WHERE died IS NOT NULL"
    )
    attrition.step("hospital_expire_flag is 0 or 1", count(connection, "labelled"))


def label_length_of_stay(connection: Any, attrition: Attrition) -> None:
    """Label the class of the exact length of stay, of those who left alive."""
    alive = "SELECT hadm, admitted, discharged FROM candidates WHERE died = 0"
    attrition.step("left the hospital alive", count(connection, f"({alive})"))
    timed = connection.execute(
        f"SELECT hadm, discharged - admitted FROM ({alive}) WHERE admitted IS NOT NULL AND discharged IS NOT NULL"
    ).fetchall()
    attrition.step("with times of admission and discharge", len(timed))
    labelled = [(hadm, length_of_stay_class(stay)) for hadm, stay in timed]
    labelled = [row for row in labelled if row[1] is not None]
    attrition.step("discharged after admission", len(labelled))
    table = pa.table(
        {
            "hadm": pa.array([row[0] for row in labelled], pa.int64()),
            "label": pa.array([row[1] for row in labelled], pa.int64()),
        }
    )
    connection.register("new_labels", table)
    connection.execute("CREATE OR REPLACE TABLE labelled AS SELECT * FROM new_labels")
    connection.unregister("new_labels")


def open_codes(tables: SourceTables, kind: CodeKind) -> int:
    """Load a table of codes and check versions and codes; return its rows.

    Raises
    ------
    InputError
        If ``icd_version`` is neither 9 nor 10, or codes were read as numbers; names the first such row.
    """
    table = CODE_TABLES[kind]
    remedy = f"{kind} needs it: add the file, or leave the task out with --tasks."
    tables.open(table, {"hadm_id": "BIGINT", "icd_code": "CODE", "icd_version": "BIGINT"}, remedy)
    refuse_empty(tables, table, "hadm_id")
    execute = tables.connection.execute
    distinct = execute(f"SELECT DISTINCT icd_code, icd_version FROM {table} ORDER BY ALL").fetchall()
    for code, version in distinct:
        if version not in (9, 10):
            row = _row_of_code(tables, table, code, version)
            shown = "empty" if version is None else version
            raise InputError(f"{tables.place(table)}, row {row:,}: icd_version is {shown}; it must be 9 or 10.")
        if code and code.strip() and read_as_number(code, version, kind):
            row = _row_of_code(tables, table, code, version)
            raise InputError(
                f"{tables.place(table)}, row {row:,}: the ICD-{version} code is too short: codes were read as numbers "
                f"and have lost their leading zeros. Export icd_code as text."
            )
    digits, zeros = execute(
        f"SELECT count(*), count(*) FILTER (WHERE starts_with(trim(icd_code), '0')) FROM {table} "
        "WHERE icd_version = 9 AND regexp_full_match(trim(icd_code), '[0-9]+')"
    ).fetchall()[0]
    if digits >= _ENOUGH_CODES and not zeros:
        raise InputError(
            f"{tables.place(table)}: none of {digits:,} ICD-9 codes begins with 0, so they were read as numbers; "
            f"export icd_code as text."
        )
    return count(tables.connection, table)


def _row_of_code(tables: SourceTables, table: str, code: str | None, version: int | None) -> int:
    """Return the number of the first row with a code in a version."""
    for rows in tables.rows(table, ["icd_code", "icd_version"]):
        versions = typed(rows, "icd_version", "BIGINT", tables.place(table)).to_pylist()
        codes = rows.batch.column(0).to_pylist()
        for number, found in zip(rows.numbers.tolist(), zip(codes, versions, strict=True), strict=True):
            if found == (code, version):
                return int(number)
    raise AssertionError("the table changed while it was read")


def label_codes(connection: Any, attrition: Attrition, book: CodeBook, minimum_count: int) -> dict[str, Any]:
    """Label the code categories of each admission, by the study's choice of version.

    The label list holds the categories that at least ``minimum_count`` admissions of the training split have; rarer
    ones are left out of the labels, and an admission that keeps none is dropped and counted.

    Returns
    -------
    dict
        ``classes`` in the order of their codes, and what was left out.

    Raises
    ------
    InputError
        If no category is frequent enough.
    """
    table = CODE_TABLES[book.kind]
    execute = connection.execute
    execute(
        f"""
        CREATE OR REPLACE TABLE coded AS
        SELECT hadm, split, trim(icd_code) AS code, icd_version AS version
        FROM candidates JOIN {table} ON hadm_id = hadm WHERE trim(icd_code) <> ''
        """
    )
    attrition.step(f"with a code in {table}", count(connection, "coded", "hadm"))
    both = execute(
        "SELECT count(*) FROM (SELECT hadm FROM coded GROUP BY hadm HAVING count(DISTINCT version) > 1)"
    ).fetchall()[0][0]
    if book.choice in ("9", "10"):
        attrition.step(f"with an ICD-{book.choice} code", count(connection, _WITH.format(book.choice), "hadm"))
        other = "10" if book.choice == "9" else "9"
        execute(f"DELETE FROM coded WHERE hadm IN (SELECT hadm FROM coded WHERE version = {other})")
        attrition.step(f"without an ICD-{other} code", count(connection, "coded", "hadm"))
    _join_categories(connection, book)
    if book.mapping:
        wanted = "9" if book.choice == "map-to-9" else "10"
        attrition.step(f"with a code in ICD-{wanted} or mapped to it", count(connection, "categories", "hadm"))
    execute(
        f"""
        CREATE OR REPLACE TABLE tallies AS
        SELECT category, count(*) AS everywhere, count(*) FILTER (WHERE split = 'train') AS training,
            training >= {minimum_count} AS listed
        FROM categories GROUP BY category
        """
    )
    classes = [row[0] for row in execute("SELECT category FROM tallies WHERE listed ORDER BY category").fetchall()]
    if not classes:
        raise InputError(
            f"{table}: no code category occurs in {minimum_count} admissions of the training split with "
            f"--icd {book.choice}; lower --minimum-count, choose another --icd, or leave {book.kind} out."
        )
    execute(
        """
        CREATE OR REPLACE TABLE labelled AS
        SELECT hadm, list(category ORDER BY category) AS label FROM categories JOIN tallies USING (category)
        WHERE listed GROUP BY hadm
        """
    )
    attrition.step(
        f"with a category that {minimum_count} or more training admissions have", count(connection, "labelled")
    )
    found, rare, unseen, kept, left = execute(
        """
        SELECT count(*), count(*) FILTER (WHERE training > 0 AND NOT listed), count(*) FILTER (WHERE training = 0),
            coalesce(sum(everywhere) FILTER (WHERE listed), 0)::BIGINT,
            coalesce(sum(everywhere) FILTER (WHERE NOT listed), 0)::BIGINT
        FROM tallies
        """
    ).fetchall()[0]
    facts: dict[str, Any] = {
        "classes": classes,
        "minimum_count": minimum_count,
        "icd": book.choice,
        "admissions_with_both_versions": both,
        "categories": found,
        "categories_below_minimum": rare,
        "categories_unseen_in_training": unseen,
        "labels_kept": kept,
        "labels_left_out": left,
    }
    if book.mapping:
        facts |= {
            "icd_map": book.mapping.facts(),
            "codes_unmapped": sum(book.unmapped.values()),
            "distinct_codes_unmapped": len(book.unmapped),
        }
    return facts


_WITH = "(SELECT hadm FROM coded WHERE version = {})"


def _join_categories(connection: Any, book: CodeBook) -> None:
    """Make ``categories`` (hadm, split, category), each once; a few ten thousand distinct codes pass through Python."""
    rows = connection.execute("SELECT code, version, count(*) FROM coded GROUP BY ALL ORDER BY ALL").fetchall()
    listed = [(code, version, found) for code, version, many in rows for found in book.categories(code, version, many)]
    kinds = (pa.string(), pa.int64(), pa.string())
    columns = list(zip(*listed, strict=True)) or [(), (), ()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    connection.register("new_codes", pa.Table.from_arrays(arrays, ["code", "version", "category"]))
    connection.execute(
        "CREATE OR REPLACE TABLE categories AS "
        "SELECT DISTINCT hadm, split, category FROM coded JOIN new_codes USING (code, version)"
    )
    connection.unregister("new_codes")


def open_ventilation(tables: SourceTables) -> dict[str, int]:
    """Load what prolonged ventilation needs; return the rows of ``icustays``."""
    remedy = "prolonged_ventilation needs it: add icu/, or leave the task out with --tasks."
    for table in ("icustays", "procedureevents"):
        tables.reader(table, remedy)
    tables.open("icustays", {"hadm_id": "BIGINT", "stay_id": "BIGINT", "intime": "TIMESTAMP"}, remedy)
    columns = {
        "stay_id": "BIGINT",
        "itemid": "BIGINT",
        "starttime": "TIMESTAMP",
        "endtime": "TIMESTAMP",
        "statusdescription": "VARCHAR",
    }
    tables.open("procedureevents", columns, remedy, where=f"itemid = {INVASIVE_VENTILATION}")
    return {"icustays": count(tables.connection, "icustays")}


def label_ventilation(connection: Any, attrition: Attrition, rule: VentilationRule) -> dict[str, Any]:
    """Label prolonged invasive ventilation in the first ICU stay of each admission.

    A period is a row of ``procedureevents`` with item 225792 that ends after it starts and was not rewritten. With
    ``span`` an admission is positive when the end of the last period plus 6 hours is at least 7 days after the start of
    the first, gaps included (as Huang et al. 2020 on MIMIC-III); with ``sum`` when the periods, overlaps counted once,
    last 7 days together. A death on the ventilator is a negative before day seven, as in the published cohort.

    Returns
    -------
    dict
        The rule, the positives by either, and the rows that are no period.
    """
    execute = connection.execute
    execute(_STAYS)
    attrition.step("with an ICU stay", count(connection, "stays"))
    execute(_PERIODS)
    execute(_VENTILATED)
    execute(f"CREATE OR REPLACE TABLE labelled AS SELECT hadm, by_{rule}::BIGINT AS label FROM ventilated")
    attrition.step("invasively ventilated in the first ICU stay", count(connection, "labelled"))
    span, total = execute(
        "SELECT count(*) FILTER (WHERE by_span), count(*) FILTER (WHERE by_sum) FROM ventilated"
    ).fetchall()[0]
    wrong = execute("SELECT count(*) FROM procedureevents").fetchall()[0][0] - count(connection, "periods")
    return {"rule": rule, "positive_by_span": span, "positive_by_sum": total, "rows_that_are_no_period": wrong}


_STAYS = """
CREATE OR REPLACE TABLE stays AS
SELECT hadm, stay_id AS stay FROM candidates JOIN icustays ON hadm_id = hadm
QUALIFY row_number() OVER (PARTITION BY hadm ORDER BY intime NULLS LAST, stay_id) = 1
"""
_PERIODS = """
CREATE OR REPLACE TABLE periods AS
SELECT stay_id AS stay, starttime AS started, endtime AS ended FROM procedureevents
WHERE endtime > starttime AND coalesce(trim(statusdescription), '') <> 'Rewritten'
"""
_VENTILATED = f"""
CREATE OR REPLACE TABLE ventilated AS
WITH ordered AS (
    SELECT hadm, started, ended, max(ended) OVER (
        PARTITION BY stay ORDER BY started, ended ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS before
    FROM stays JOIN periods USING (stay)
)
SELECT hadm,
    max(ended) + INTERVAL {_GRACE_HOURS} HOUR >= min(started) + INTERVAL {PROLONGED_DAYS} DAY AS by_span,
    sum(greatest(epoch_us(ended) - greatest(epoch_us(started), epoch_us(coalesce(before, started))), 0))
        >= {PROLONGED_DAYS * 86_400_000_000} AS by_sum
FROM ordered GROUP BY hadm
"""


def count(connection: Any, table: str, distinct: str = "") -> int:
    """Count the rows of a table or subquery, or the distinct values of a column."""
    wanted = f"DISTINCT {distinct}" if distinct else "*"
    return int(connection.execute(f"SELECT count({wanted}) FROM {table}").fetchall()[0][0])
