"""The admissions of MIMIC-III that tasks are made of."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from clinstack.notes.attrition import Attrition
from clinstack.notes.prepared import PreparedFolder


def attrition_start(prepared: PreparedFolder) -> Attrition:
    """Make the table ``grown``, the admissions that are not a newborn's; return the first steps."""
    attrition = Attrition()
    execute = prepared.connection.execute
    attrition.step("admissions", execute("SELECT count(*) FROM ADMISSIONS").fetchone()[0])
    execute(
        """
        CREATE OR REPLACE TABLE grown AS
        SELECT HADM_ID AS hadm, SUBJECT_ID AS subject, ADMITTIME AS admitted, DISCHTIME AS discharged,
            CASE trim(HOSPITAL_EXPIRE_FLAG) WHEN '1' THEN 1 WHEN '0' THEN 0 END AS died
        FROM ADMISSIONS WHERE coalesce(trim(ADMISSION_TYPE), '') <> 'NEWBORN'
        """
    )
    # All of a result is fetched, since DuckDB registers no table beside one that is not read to its end.
    attrition.step("not a newborn's", execute("SELECT count(*) FROM grown").fetchall()[0][0])
    return attrition


def make_candidates(connection: Any, hadm: list[int] | None) -> None:
    """Make the table ``candidates``: the given admissions in ``grown``, or all, whose patient has a split."""
    chosen = ""
    if hadm is not None:
        connection.register("with_text", pa.table({"hadm": pa.array(hadm, pa.int64())}))
        chosen = "JOIN with_text USING (hadm)"
    connection.execute(
        f"CREATE OR REPLACE TABLE candidates AS SELECT grown.*, split FROM grown {chosen} "
        "JOIN splits ON splits.patient_id = grown.subject::VARCHAR"
    )
    if hadm is not None:
        connection.unregister("with_text")


def admissions_without_split(connection: Any) -> set[int]:
    """Return the admissions in ``grown`` whose patient is in none of the splits."""
    query = "SELECT hadm FROM grown WHERE subject::VARCHAR NOT IN (SELECT patient_id FROM splits)"
    return {row[0] for row in connection.execute(query).fetchall()}
