"""The labels of the four tasks as the published scripts made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.notes.mimic3.official.pandas_types import guessed, guessed_words
from clinstack.notes.mimic3.options import CODE_TABLES
from clinstack.notes.sources.source_tables import SourceTables


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


def diagnosis_groups(words: pa.Array) -> pa.Array:
    """Return four characters of a code that begins with V or E, three of others."""
    long = pc.match_substring_regex(words, "^[VE]")
    return pc.if_else(long, pc.utf8_slice_codeunits(words, 0, 4), pc.utf8_slice_codeunits(words, 0, 3))


def procedure_groups(words: pa.Array) -> pa.Array:
    """Return three characters of what was left of a code."""
    return pc.utf8_slice_codeunits(words, 0, 3)


@dataclass(frozen=True)
class OfficialCodes:
    """The groups of codes of each admission.

    Attributes
    ----------
    hadm : int64 array
        Admissions in their order; one stands twice when two patients share it and the patients were asked for.
    groups : pyarrow.Array
        The groups of each, in the order of the table, with commas between them.
    classes : list of str
        All groups by first appearance.
    """

    hadm: NDArray[np.int64]
    groups: pa.Array
    classes: list[str]

    def by_admission(self) -> Iterator[tuple[int, str]]:
        """Yield admission and groups."""
        return zip(self.hadm.tolist(), self.groups.to_pylist(), strict=True)


def official_codes(
    connection: Any, table: str, columns: int, group: Callable[[pa.Array], pa.Array], keys: Sequence[str]
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
        `diagnosis_groups` or `procedure_groups`.
    keys : sequence of str
        HADM_ID, and SUBJECT_ID as the published scripts have it: an admission of two patients has two rows then.
    """
    query = f"SELECT {', '.join(keys)}, ICD9_CODE FROM {table} ORDER BY rowid"
    rows = connection.cursor().sql(query).to_arrow_table()
    words = guessed_words(rows["ICD9_CODE"].combine_chunks(), columns)
    rows = rows.select(list(keys)).filter(words.is_valid())
    shorts = group(words.filter(words.is_valid())).dictionary_encode()
    del words
    index = shorts.indices.to_numpy().astype(np.int64)
    numbers = [rows[key].fill_null(0).to_numpy() for key in keys]
    known = np.logical_and.reduce([rows[key].is_valid().to_numpy() for key in keys])
    # Of a group that an admission has twice the first row counts, whichever patient's it is.
    pairs = numbers[0] * (len(shorts.dictionary) + 1) + index
    pairs[~rows[keys[0]].is_valid().to_numpy()] = -1
    first = np.unique(pairs, return_index=True)[1]
    del pairs, rows
    first = first[known[first]]
    order = first[np.lexsort([first, *(number[first] for number in reversed(numbers))])]
    new = np.ones(len(order), bool)
    if len(order):
        new[1:] = np.logical_or.reduce([number[order][1:] != number[order][:-1] for number in numbers])
    begins = np.flatnonzero(new)
    offsets = pa.array(np.append(begins, len(order)), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, shorts.dictionary.take(pa.array(index[order])).cast(pa.string()))
    return OfficialCodes(numbers[0][order][begins], pc.binary_join(lists, ","), shorts.dictionary.to_pylist())


def read_official_codes(connection: Any, tables: SourceTables, chosen: Sequence[str]) -> dict[str, OfficialCodes]:
    """Return the codes of the chosen tasks that have codes."""
    groups = {"diagnoses": diagnosis_groups, "procedures": procedure_groups}
    found = {
        name: official_codes(
            connection,
            CODE_TABLES[name],
            len(tables.reader(CODE_TABLES[name]).columns),
            group,
            ("HADM_ID", "SUBJECT_ID"),
        )
        for name, group in groups.items()
        if name in chosen
    }
    pa.default_memory_pool().release_unused()
    return found


def shuffled(rows: Sequence[Any], seed: int) -> list[Any]:
    """Return the rows in the order of ``DataFrame.sample(frac=1, random_state=seed)``."""
    order = np.random.RandomState(seed).choice(len(rows), size=len(rows), replace=False)
    return [rows[index] for index in order]
