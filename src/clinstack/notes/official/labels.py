"""The labels of the four tasks as the published scripts made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.errors import InputError
from clinstack.notes.official.pandas_types import guessed, guessed_words


@dataclass(frozen=True)
class AdmissionFacts:
    """What ADMISSIONS says of an admission, with the types that pandas 1 gave it."""

    newborn: bool
    died: int | float | str | None
    admitted: datetime | None
    discharged: datetime | None


def official_admissions(connection: Any, columns: int) -> dict[int, AdmissionFacts]:
    """Read the table ADMISSIONS of the connection; ``died`` is 0.0 instead of 0 when one admission has none.

    ``columns`` is how many the source has, on which the types depend.
    """
    rows = connection.execute(
        "SELECT HADM_ID, ADMISSION_TYPE, HOSPITAL_EXPIRE_FLAG, ADMITTIME, DISCHTIME FROM ADMISSIONS ORDER BY rowid"
    ).fetchall()
    died = guessed([row[2] for row in rows], columns)
    return {
        row[0]: AdmissionFacts(row[1] == "NEWBORN", flag, row[3], row[4]) for row, flag in zip(rows, died, strict=True)
    }


def length_of_stay_labels(admissions: dict[int, AdmissionFacts]) -> dict[int, int]:
    """Return the class of each stay: days rounded to a tenth, half to even, then up to 3, 7, 14 days or more.

    Raises
    ------
    InputError
        If an admission lacks a time, on which the published script fails.
    """
    missing = next((hadm for hadm, facts in admissions.items() if not (facts.admitted and facts.discharged)), None)
    if missing is not None:
        raise InputError(
            f"ADMISSIONS: HADM_ID {missing} has no ADMITTIME or DISCHTIME, on which the published script of "
            f"length_of_stay fails; leave the task out, or prepare without --compat official."
        )
    seconds = [
        (facts.discharged - facts.admitted).total_seconds()
        for facts in admissions.values()
        if facts.admitted and facts.discharged
    ]
    days = np.round(np.array(seconds, dtype=float) / (24 * 60 * 60), 1)
    return dict(zip(admissions, (np.array([3.0, 7.0, 14.0]) < days[:, None]).sum(axis=1).tolist(), strict=True))


DIAGNOSIS_GROUP = "CASE WHEN left(word, 1) IN ('V', 'E') THEN left(word, 4) ELSE left(word, 3) END"
"""Four characters of a code that begins with V or E, three of others; in SQL, of ``word``."""
PROCEDURE_GROUP = "left(word, 3)"
"""Three characters of what was left of a code."""


@dataclass(frozen=True)
class OfficialCodes:
    """The groups of each admission in the order of the table, and all groups by first appearance.

    The key is the admission, or the admission and the patient where these were asked for.
    """

    groups: dict[tuple[int, ...], list[str]]
    classes: list[str]


def official_codes(connection: Any, table: str, columns: int, group: str, keys: Sequence[str]) -> OfficialCodes:
    """Group the codes of a table as the published scripts did, with pandas' types.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Holds the table with the keys and ICD9_CODE.
    table : str
        ``DIAGNOSES_ICD`` or ``PROCEDURES_ICD``.
    columns : int
        How many the source has, on which the types depend.
    group : str
        `DIAGNOSIS_GROUP` or `PROCEDURE_GROUP`.
    keys : sequence of str
        HADM_ID, and SUBJECT_ID as the published scripts have it: an admission of two patients has two rows then.
    """
    listed = ", ".join(keys)
    rows = connection.cursor().sql(f"SELECT {listed}, ICD9_CODE FROM {table} ORDER BY rowid").to_arrow_table()
    words = guessed_words(rows["ICD9_CODE"].combine_chunks(), columns)
    place = pa.array(np.arange(len(words)))
    connection.register("read_codes", rows.append_column("word", words).append_column("place", place))
    connection.execute(
        f"CREATE OR REPLACE TABLE grouped_codes AS SELECT {listed}, {group} AS short, place FROM read_codes "
        f"WHERE word IS NOT NULL"
    )
    connection.unregister("read_codes")
    classes = connection.execute("SELECT short FROM grouped_codes GROUP BY short ORDER BY min(place)").fetchall()
    known = " AND ".join(f"{key} IS NOT NULL" for key in keys)
    groups = connection.execute(
        f"""
        SELECT list(short ORDER BY place), {listed}
        FROM (SELECT * FROM grouped_codes QUALIFY row_number() OVER (PARTITION BY HADM_ID, short ORDER BY place) = 1)
        WHERE {known} GROUP BY {listed} ORDER BY {listed}
        """
    ).fetchall()
    return OfficialCodes({tuple(key): shorts for shorts, *key in groups}, [row[0] for row in classes])


def shuffled(rows: Sequence[Any], seed: int) -> list[Any]:
    """Return the rows in the order of ``DataFrame.sample(frac=1, random_state=seed)``."""
    order = np.random.RandomState(seed).choice(len(rows), size=len(rows), replace=False)
    return [rows[index] for index in order]
