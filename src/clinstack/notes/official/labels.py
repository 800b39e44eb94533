"""The labels of the four tasks as the published scripts made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from clinstack.errors import InputError
from clinstack.notes.official.pandas_types import guessed


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


def diagnosis_group(code: str) -> str:
    """Return four characters of a code that begins with V or E, three of others."""
    return code[:4] if code.startswith(("V", "E")) else code[:3]


def procedure_group(code: str) -> str:
    """Return three characters of what was left of a code."""
    return code[:3]


@dataclass(frozen=True)
class OfficialCodes:
    """The groups of each admission in the order of the table, and all groups by first appearance.

    The key is the admission, or the admission and the patient where these were asked for.
    """

    groups: dict[tuple[int, ...], list[str]]
    classes: list[str]


def official_codes(
    connection: Any, table: str, columns: int, group: Callable[[str], str], keys: Sequence[str]
) -> OfficialCodes:
    """Group the codes of a table as the published scripts did, with pandas' types.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Holds the table with the keys and ICD9_CODE.
    table : str
        ``DIAGNOSES_ICD`` or ``PROCEDURES_ICD``.
    columns : int
        How many the source has, on which the types depend.
    group : callable
        From a code, after pandas read it, to its group.
    keys : sequence of str
        HADM_ID, and SUBJECT_ID as the published scripts have it: an admission of two patients has two rows then.
    """
    rows = connection.execute(f"SELECT ICD9_CODE, {', '.join(keys)} FROM {table} ORDER BY rowid").fetchall()
    values = guessed([row[0] for row in rows], columns)
    classes: dict[str, None] = {}
    groups: dict[tuple[int, ...], list[str]] = {}
    seen = set[tuple[int | None, str]]()
    for (_, *key), value in zip(rows, values, strict=True):
        if value is None:
            continue
        short = group(str(value))
        classes.setdefault(short)
        if (key[0], short) not in seen:
            seen.add((key[0], short))
            if None not in key:
                groups.setdefault(tuple(key), []).append(short)
    return OfficialCodes({key: groups[key] for key in sorted(groups)}, list(classes))


def shuffled(rows: Sequence[Any], seed: int) -> list[Any]:
    """Return the rows in the order of ``DataFrame.sample(frac=1, random_state=seed)``."""
    order = np.random.RandomState(seed).choice(len(rows), size=len(rows), replace=False)
    return [rows[index] for index in order]
