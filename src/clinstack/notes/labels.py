"""Labels of the outcome tasks from admissions and codes: mortality, length of stay, diagnoses, procedures.

The label rules follow van Aken et al. 2021, with its errors put right: procedure codes keep their leading zeros, V
codes are cut to their category as all others are, stays are binned by exact hours, and the label list comes from the
training split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition

LENGTH_OF_STAY_CLASSES = ("up to 3 days", "3 to 7 days", "7 to 14 days", "over 14 days")
_BINS = (timedelta(days=3), timedelta(days=7), timedelta(days=14))


def length_of_stay_class(stay: timedelta) -> int | None:
    """Return the class of a stay by its exact length, a bound belonging to the class below; None if it is negative."""
    if stay < timedelta(0):
        return None
    return sum(stay > bound for bound in _BINS)


def diagnosis_category(code: str, v_characters: int = 3) -> str:
    """Return the ICD-9 category of a diagnosis code: three characters, four for external causes (E885).

    ``v_characters`` 4 keeps one more of V codes (V458), as the published label space does.
    """
    bare = code.strip().upper().replace(".", "")
    return bare[: {"E": 4, "V": v_characters}.get(bare[:1], 3)]


def procedure_category(code: str) -> str:
    """Return the three-digit category of an ICD-9 procedure code; leading zeros count (0331 is 033)."""
    return code.strip().upper().replace(".", "")[:3]


def label_mortality(connection: Any, attrition: Attrition) -> None:
    """Make ``labelled`` (hadm, label): whether the patient died in the hospital."""
    connection.execute(
        "CREATE OR REPLACE TABLE labelled AS "
        "SELECT hadm, CAST(died AS BIGINT) AS label FROM candidates WHERE died IS NOT NULL"
    )
    attrition.step("HOSPITAL_EXPIRE_FLAG is 0 or 1", _count(connection, "labelled"))


def label_length_of_stay(connection: Any, attrition: Attrition) -> None:
    """Make ``labelled`` (hadm, label): the class of the length of stay of those who left alive."""
    rows = connection.execute("SELECT hadm, admitted, discharged, died FROM candidates ORDER BY hadm").fetchall()
    alive = [row for row in rows if row[3] == 0]
    attrition.step("left the hospital alive", len(alive))
    timed = [row for row in alive if row[1] is not None and row[2] is not None]
    attrition.step("with times of admission and discharge", len(timed))
    labelled = [(hadm, length_of_stay_class(left - came)) for hadm, came, left, _ in timed]
    labelled = [row for row in labelled if row[1] is not None]
    attrition.step("discharged after admission", len(labelled))
    _store(connection, [row[0] for row in labelled], [row[1] for row in labelled], "BIGINT")


def label_codes(
    connection: Any, attrition: Attrition, table: str, minimum_count: int, category: Callable[[str], str]
) -> dict[str, Any]:
    """Make ``labelled`` (hadm, label): the code categories of each admission.

    The label list holds the categories that at least ``minimum_count`` admissions of the training split have. Rarer
    categories and those that training never sees are left out of the labels; an admission that keeps none is dropped
    and counted, since nothing would be left to predict.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Holds ``candidates`` (hadm, split) and the code table.
    attrition : Attrition
        Gets the steps.
    table : str
        ``DIAGNOSES_ICD`` or ``PROCEDURES_ICD``.
    minimum_count : int
        At least 1.
    category : callable
        From a code to its category.

    Returns
    -------
    dict
        ``classes`` in the order of their codes, ``shortened``: the admissions that lost a category, and what was left
        out.

    Raises
    ------
    InputError
        If no category is frequent enough.
    """
    rows = connection.execute(
        f"SELECT hadm, split, {table}.ICD9_CODE FROM candidates JOIN {table} ON {table}.HADM_ID = candidates.hadm "
        f"WHERE trim({table}.ICD9_CODE) <> '' ORDER BY hadm"
    ).fetchall()
    codes: dict[int, set[str]] = {}
    in_training: set[int] = set()
    for hadm, split, code in rows:
        codes.setdefault(hadm, set()).add(category(code))
        if split == "train":
            in_training.add(hadm)
    attrition.step(f"with a code in {table}", len(codes))
    counts = Counter(code for hadm in sorted(in_training) for code in codes[hadm])
    classes = sorted(code for code, count in counts.items() if count >= minimum_count)
    if not classes:
        raise InputError(
            f"{table}: no code category occurs in {minimum_count} admissions of the training split; "
            f"lower minimum_count or prepare more patients."
        )
    listed = set(classes)
    labels = {hadm: sorted(found & listed) for hadm, found in codes.items()}
    labels = {hadm: found for hadm, found in labels.items() if found}
    attrition.step(f"with a category that {minimum_count} or more training admissions have", len(labels))
    _store(connection, list(labels), list(labels.values()), "VARCHAR[]")
    everywhere = Counter(code for found in codes.values() for code in found)
    return {
        "classes": classes,
        "shortened": {hadm for hadm, found in codes.items() if not found <= listed},
        "minimum_count": minimum_count,
        "categories": len(everywhere),
        "categories_below_minimum": sum(code in counts and code not in listed for code in everywhere),
        "categories_unseen_in_training": sum(code not in counts for code in everywhere),
        "labels_kept": sum(count for code, count in everywhere.items() if code in listed),
        "labels_left_out": sum(count for code, count in everywhere.items() if code not in listed),
    }


def _store(connection: Any, hadm: list[int], label: list[Any], kind: str) -> None:
    import pyarrow as pa

    value = pa.list_(pa.string()) if kind == "VARCHAR[]" else pa.int64()
    table = pa.table({"hadm": pa.array(hadm, pa.int64()), "label": pa.array(label, value)})
    connection.register("new_labels", table)
    connection.execute("CREATE OR REPLACE TABLE labelled AS SELECT * FROM new_labels")
    connection.unregister("new_labels")


def _count(connection: Any, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
