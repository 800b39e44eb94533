"""The figures of a paper's Table 1: who was admitted, by split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.notes.sheet.small_cells import hide_small_cells
from clinstack.notes.splits import SPLITS

COLUMNS = (*SPLITS, "all")
OLDEST = 90
"""Older patients count as this old: de-identified tables give them invented ages, and the HIPAA rule groups them."""
MEASURES = {
    "age": (
        "Age, years",
        {"age"},
        f"CASE WHEN NOT isnan(age::DOUBLE) THEN CASE WHEN age > {OLDEST} THEN {OLDEST} ELSE age END END",
    ),
    "stay": (
        "Stay, days",
        {"admitted", "discharged"},
        "CASE WHEN discharged >= admitted THEN epoch(discharged) / 86400.0 - epoch(admitted) / 86400.0 END",
    ),
}
CATEGORIES = {
    "sex": "Sex",
    "ethnicity": "Ethnicity",
    "insurance": "Insurance",
    "language": "Language",
    "admission_type": "Admission type",
    "died": "Died in hospital",
}
NOT_RECORDED = "not recorded"
_MOST_VALUES = 10


def describe_admissions(connection: Any, admissions: Path, small_cells: int) -> dict[str, Any]:
    """Describe the admissions that are examples of at least one task.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Has the table ``encounters``: the distinct ``encounter_id, patient_id, split`` of all examples.
    admissions : Path
        ``admissions.parquet``; a variable whose column is missing is left out.
    small_cells : int
        Counts from 1 to one below it are hidden, and so are the measures of so few admissions.

    Returns
    -------
    dict
        ``admissions`` and ``patients`` by split; ``measures``: variable to split to ``known, mean, sd, median, p25,
        p75``; ``categories``: variable to rows of ``value`` and the count in each split.

    Raises
    ------
    InputError
        If the file has no column ``encounter_id``, or an encounter stands in it twice.
    """
    present = set(pq.read_schema(admissions).names)
    if "encounter_id" not in present:
        raise InputError(f"{admissions}: the column encounter_id is missing; it has {', '.join(sorted(present))}.")
    file = "read_parquet('" + str(admissions).replace("'", "''") + "')"
    rows, distinct = connection.execute(f"SELECT count(*), count(DISTINCT encounter_id) FROM {file}").fetchone()
    if rows != distinct:
        raise InputError(f"{admissions}: encounter_id has empty or repeated values; each encounter needs its own row.")
    wanted = sorted(present & {"age", "admitted", "discharged", *CATEGORIES})
    kept = "".join(f', found."{name}"' for name in wanted)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE described AS SELECT encounters.split, encounters.patient_id{kept} "
        f"FROM encounters JOIN {file} AS found ON found.encounter_id::VARCHAR = encounters.encounter_id"
    )
    counted = connection.execute(
        "SELECT coalesce(split, 'all'), count(*), count(DISTINCT patient_id) FROM described "
        "GROUP BY GROUPING SETS ((split), ())"
    ).fetchall()
    totals = {
        name: [next((row[place] for row in counted if row[0] == column), 0) for column in COLUMNS]
        for place, name in ((1, "admissions"), (2, "patients"))
    }
    return {
        **{
            name: dict(zip(COLUMNS, hide_small_cells([row], small_cells, total_column=True)[0], strict=True))
            for name, row in totals.items()
        },
        "measures": {
            name: _measure(connection, value, small_cells)
            for name, (_, needs, value) in MEASURES.items()
            if needs <= present
        },
        "categories": {
            name: _categories(connection, name, totals["admissions"], small_cells)
            for name in CATEGORIES
            if name in present
        },
    }


def _measure(connection: Any, value: str, small_cells: int) -> dict[str, dict[str, Any]]:
    rows = connection.execute(
        f"WITH valued AS (SELECT split, ({value})::DOUBLE AS value FROM described) "
        "SELECT coalesce(split, 'all'), count(value), avg(value), stddev_samp(value), "
        "quantile_cont(value, 0.5), quantile_cont(value, 0.25), quantile_cont(value, 0.75) "
        "FROM valued GROUP BY GROUPING SETS ((split), ())"
    ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    known = [found.get(column, (0,))[0] for column in COLUMNS]
    shown = hide_small_cells([known], small_cells, total_column=True)[0]
    result = {}
    for column, count, cell in zip(COLUMNS, known, shown, strict=True):
        figures = dict.fromkeys(("mean", "sd", "median", "p25", "p75"))
        if count and count >= small_cells:
            figures = {
                name: None if number is None else round(number, 1)
                for name, number in zip(figures, found[column][1:], strict=True)
            }
        result[column] = {"known": cell, **figures}
    return result


def _categories(connection: Any, column: str, totals: list[int], small_cells: int) -> list[dict[str, Any]]:
    """Count the values of a column, the most frequent first; what is rarer than the first ten counts together."""
    value = f"CASE WHEN \"{column}\" THEN 'yes' ELSE 'no' END" if column == "died" else f'trim("{column}"::VARCHAR)'
    cells = connection.execute(
        f'SELECT CASE WHEN "{column}" IS NULL OR trim("{column}"::VARCHAR) = \'\' THEN NULL ELSE {value} END AS value, '
        "split, count(*) FROM described GROUP BY ALL"
    ).fetchall()
    counts: dict[str, dict[str, int]] = {}
    for name, split, count in cells:
        counts.setdefault(NOT_RECORDED if name is None else str(name), {})[split] = count
    missing = counts.pop(NOT_RECORDED, None)
    ranked = sorted(counts, key=lambda name: (-sum(counts[name].values()), name))
    if len(ranked) > _MOST_VALUES + 1:
        rest = ranked[_MOST_VALUES:]
        together = {split: sum(counts[name].get(split, 0) for name in rest) for split in SPLITS}
        ranked = [*ranked[:_MOST_VALUES], f"{len(rest)} other values"]
        counts[ranked[-1]] = together
    if missing:
        ranked.append(NOT_RECORDED)
        counts[NOT_RECORDED] = missing
    table = [[counts[name].get(split, 0) for split in SPLITS] for name in ranked]
    table = [[*row, sum(row)] for row in table]
    shown = hide_small_cells([*table, totals], small_cells, total_column=True, total_row=True)[:-1]
    return [{"value": name, **dict(zip(COLUMNS, row, strict=True))} for name, row in zip(ranked, shown, strict=True)]
