"""Prolonged mechanical ventilation: which admissions were ventilated, and how long.

After Huang et al. 2020 (Clinical XLNet) and the ventilation rules of the MIMIC Code Repository. Adults (18 years at
admission) whose first ICU stay has a period of mechanical ventilation; positive when it is prolonged, by one of two
definitions. The published cohort's further rules are options, each a step of the attrition. Deaths are not censored,
as in the published cohort: a patient who died on day five is a negative, and is counted.
"""

from __future__ import annotations

from typing import Any

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.sources.source_tables import SourceTables, typed
from clinstack.notes.ventilation.events import make_periods, open_events
from clinstack.notes.ventilation.label_file import label_from_file, read_label_file
from clinstack.notes.ventilation.options import VentilationOptions

STANDARD = VentilationOptions()
_ADULT = 18
_EARLY_HOURS = 48
_DAY = 86400
_DURATIONS = ("VENTDURATIONS", "VENTILATION_DURATIONS")
_CODE = "replace(upper(trim(ICD9_CODE)), '.', '')"
_EXCLUDED = {
    "head_neck_cancer": ("without head and neck cancer", f"regexp_matches({_CODE}, '^14[0-9]')"),
    "neuromuscular": (
        "without myasthenia gravis or another of the named neuromuscular diseases",
        f"regexp_matches({_CODE}, '^(3589|3590|3591|35801)')",
    ),
    # The published list is nine titles by their place in a table that is not public. Its comment says which burns it
    # means: of the head, face and neck, or of more than 30 % of the body.
    "burns": (
        "without burns of head, face or neck, or of 30 % of the body or more",
        f"regexp_matches({_CODE}, '^(941|948[3-9])')",
    ),
    "donors": (
        "without a diagnosis that names a donor",
        f"{_CODE} IN (SELECT {_CODE} FROM D_ICD_DIAGNOSES WHERE contains(lower(LONG_TITLE), 'donor'))",
    ),
}


def open_ventilation_tables(tables: SourceTables, options: VentilationOptions = STANDARD) -> None:
    """Open what the task needs beyond notes and admissions.

    Parameters
    ----------
    tables : SourceTables
        The source; its connection gets the tables.
    options : VentilationOptions
        Says which tables are needed.

    Raises
    ------
    InputError
        If a table, a column or the file of labels is missing or wrong.
    """
    remedy = "prolonged_ventilation needs it: add the file, or leave the task out."
    if options.source == "labels":
        assert options.file is not None  # the options are checked
        read_label_file(tables.connection, options.file, options)
        return
    columns = {"SUBJECT_ID": "BIGINT", "DOB": "TIMESTAMP"}
    # Deaths are counted, not used: a source without them does.
    recorded = "DOD" in {name.upper() for name in tables.reader("PATIENTS", remedy).columns}
    tables.open("PATIENTS", columns | ({"DOD": "TIMESTAMP"} if recorded else {}), remedy)
    if not recorded:
        tables.connection.execute("ALTER TABLE PATIENTS ADD COLUMN DOD TIMESTAMP")
    tables.open("ICUSTAYS", {"HADM_ID": "BIGINT", "ICUSTAY_ID": "BIGINT", "INTIME": "TIMESTAMP"}, remedy)
    if options.source == "events":
        open_events(tables, remedy)
    else:
        _open_durations(tables)
    if options.early_note:
        _open_early_notes(tables)
    remedy = "An exclusion of prolonged_ventilation needs it: add the file, or leave the exclusion out."
    if options.exclusions and not _is_open(tables.connection, "DIAGNOSES_ICD"):
        tables.open("DIAGNOSES_ICD", {"HADM_ID": "BIGINT", "ICD9_CODE": "VARCHAR"}, remedy)
    if "donors" in options.exclusions:
        tables.open("D_ICD_DIAGNOSES", {"ICD9_CODE": "VARCHAR", "LONG_TITLE": "VARCHAR"}, remedy)


def _is_open(connection: Any, table: str) -> bool:
    query = "SELECT count(*) FROM information_schema.tables WHERE lower(table_name) = lower(?)"
    return bool(connection.execute(query, [table]).fetchone()[0])


def _open_durations(tables: SourceTables) -> None:
    """Open the ready table of periods, under its old or its new name, and check its times."""
    columns = {"ICUSTAY_ID": "BIGINT", "STARTTIME": "TIMESTAMP", "ENDTIME": "TIMESTAMP"}
    remedy = "Add mimic-code's table of ventilation durations, or use the ventilation source events."
    name = next((name for name in _DURATIONS if tables.has(name)), _DURATIONS[0])
    tables.open(name, columns, remedy)
    stay, count = tables.connection.execute(
        f"""
        SELECT min(ICUSTAY_ID), count(*) FROM {name}
        WHERE ICUSTAY_ID IS NOT NULL AND coalesce(ENDTIME < STARTTIME, true)
        """
    ).fetchone()
    if count:
        raise InputError(
            f"{name}: {count} period(s) lack a time or end before they start, the first of ICUSTAY_ID {stay}; "
            f"correct them."
        )
    tables.connection.execute(f"CREATE OR REPLACE VIEW ready_periods AS SELECT * FROM {name}")


def _open_early_notes(tables: SourceTables) -> None:
    """Make the table ``nursing_notes`` (hadm, moment) of the nursing and respiratory notes that are no errors."""
    import pyarrow as pa

    kinds = {"HADM_ID": "BIGINT", "CHARTTIME": "TIMESTAMP", "CATEGORY": "VARCHAR", "ISERROR": "VARCHAR"}
    place = tables.place("NOTEEVENTS")
    tables.connection.execute("CREATE OR REPLACE TABLE nursing_notes (hadm BIGINT, moment TIMESTAMP)")
    for rows in tables.rows("NOTEEVENTS", list(kinds)):
        columns = {name: typed(rows, name, kind, place) for name, kind in kinds.items()}
        tables.connection.register("note_rows", pa.table(columns))
        tables.connection.execute(
            """
            INSERT INTO nursing_notes SELECT HADM_ID, CHARTTIME FROM note_rows
            WHERE trim(CATEGORY) IN ('Nursing', 'Nursing/other', 'Respiratory') AND coalesce(trim(ISERROR), '') <> '1'
            """
        )
        tables.connection.unregister("note_rows")


def label_ventilation(connection: Any, attrition: Attrition, options: VentilationOptions = STANDARD) -> dict[str, Any]:
    """Label the candidates.

    Makes the tables ``labelled`` (hadm, label), ``ventilated`` (hadm, started: start of the first ventilation; null
    when a file of labels does not say) and ``ventilation_splits`` (hadm, split), each with one row per admission.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        Holds what `open_ventilation_tables` opened and the table ``candidates`` (hadm, subject, admitted, split).
    attrition : Attrition
        Gets a step for each rule.
    options : VentilationOptions
        The source, the definition and the rules.

    Returns
    -------
    dict
        ``{"ventilation": facts}`` for ``attrition.json``.

    Raises
    ------
    InputError
        If ICUSTAYS repeats a stay or PATIENTS a patient, or no candidate is in the file of labels.
    """
    facts: dict[str, Any] = {"source": options.source, "text": options.text}
    if options.source == "labels":
        return {"ventilation": facts | label_from_file(connection, attrition, options)}
    _choose_stays(connection, attrition, options)
    if options.source == "events":
        make_periods(connection)
    else:
        facts |= _merge_ready_periods(connection)
    _measure(connection, attrition, options)
    if options.early_note:
        _need_early_note(connection, attrition)
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE labelled AS SELECT hadm, by_{options.definition} AS label FROM measured;
        CREATE OR REPLACE TABLE ventilated AS SELECT hadm, started FROM measured;
        CREATE OR REPLACE TABLE ventilation_splits AS SELECT hadm, split FROM measured JOIN candidates USING (hadm)
        """
    )
    facts |= {
        "definition": options.definition,
        "days": options.days,
        "grace_hours": options.grace_hours if options.definition == "span" else 0,
        "stays": options.stays,
        "exclusions": [name for name in _EXCLUDED if name in options.exclusions],
        "minimum_days": options.minimum_days,
        "early_note": options.early_note,
    }
    return {"ventilation": facts | _counts(connection, options)}


def _choose_stays(connection: Any, attrition: Attrition, options: VentilationOptions) -> None:
    """Make the table ``icu_stays`` (hadm, stay, entered) of adults, without the diagnoses that are left out."""
    _refuse_repeated(connection, "ICUSTAYS", "ICUSTAY_ID")
    _refuse_repeated(connection, "PATIENTS", "SUBJECT_ID")
    chosen = "" if options.stays == "all" else "QUALIFY row_number() OVER (PARTITION BY hadm ORDER BY INTIME, stay) = 1"
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE icu_stays AS
        SELECT candidates.hadm, ICUSTAY_ID AS stay, INTIME AS entered,
            coalesce(admitted >= DOB + INTERVAL {_ADULT} YEAR, false) AS adult
        FROM candidates
        JOIN ICUSTAYS ON ICUSTAYS.HADM_ID = candidates.hadm
        LEFT JOIN PATIENTS ON PATIENTS.SUBJECT_ID = candidates.subject
        WHERE ICUSTAY_ID IS NOT NULL
        {chosen}
        """
    )
    count = "SELECT count(DISTINCT hadm) FROM icu_stays"
    attrition.step("with an ICU stay", connection.execute(count).fetchone()[0])
    connection.execute("DELETE FROM icu_stays WHERE NOT adult")
    attrition.step("at least 18 years old", connection.execute(count).fetchone()[0])
    for name, (words, condition) in _EXCLUDED.items():
        if name in options.exclusions:
            connection.execute(
                f"DELETE FROM icu_stays WHERE hadm IN (SELECT HADM_ID FROM DIAGNOSES_ICD WHERE {condition})"
            )
            attrition.step(words, connection.execute(count).fetchone()[0])


def _refuse_repeated(connection: Any, table: str, column: str) -> None:
    repeated = connection.execute(
        f"SELECT min({column}) FROM (SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) > 1)"
    ).fetchone()[0]
    if repeated is not None:
        raise InputError(f"{table}: {column} {repeated} stands in several rows; keep one row for each.")


def _merge_ready_periods(connection: Any) -> dict[str, int]:
    """Make the table ``ventilation_periods`` from the ready table: each stay's periods, overlapping ones as one."""
    connection.execute(
        """
        CREATE OR REPLACE TABLE ventilation_periods AS
        WITH ready AS (
            SELECT DISTINCT ICUSTAY_ID AS stay, STARTTIME AS started, ENDTIME AS ended FROM ready_periods
            WHERE ICUSTAY_ID IN (SELECT stay FROM icu_stays)
        ), marked AS (
            SELECT *, coalesce(started >= max(ended) OVER (
                PARTITION BY stay ORDER BY started, ended ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), true) AS apart FROM ready
        ), numbered AS (
            SELECT *, count(*) FILTER (WHERE apart) OVER (
                PARTITION BY stay ORDER BY started, ended ROWS UNBOUNDED PRECEDING
            ) AS island FROM marked
        )
        SELECT stay, min(started) AS started, max(ended) AS ended, count(*) AS merged FROM numbered
        GROUP BY stay, island
        """
    )
    merged = connection.execute("SELECT coalesce(sum(merged - 1), 0)::BIGINT FROM ventilation_periods").fetchone()[0]
    return {"overlapping_periods_merged": merged}


def _measure(connection: Any, attrition: Attrition, options: VentilationOptions) -> None:
    """Make the table ``measured`` (hadm, started, by_span, by_sum) of the admissions ventilated long enough."""
    days = round(options.days * _DAY)
    least = round(options.minimum_days * _DAY)
    grace = round(options.grace_hours * 3600)
    long_enough = f"length_by_{options.definition} >= {least}" if least else "true"
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE ventilated_stays AS
        SELECT hadm, stay, entered, min(started) AS started,
            epoch(max(ended) - min(started)) + {grace} AS length_by_span, sum(epoch(ended - started)) AS length_by_sum
        FROM icu_stays JOIN ventilation_periods USING (stay) GROUP BY hadm, stay, entered;
        CREATE OR REPLACE TABLE measured AS
        SELECT hadm,
            arg_min(started, (entered, stay)) AS started,
            CAST(max(length_by_span) >= {days} AS BIGINT) AS by_span,
            CAST(max(length_by_sum) >= {days} AS BIGINT) AS by_sum
        FROM ventilated_stays WHERE {long_enough} GROUP BY hadm
        """
    )
    which = "the first" if options.stays == "first" else "an"
    count = connection.execute("SELECT count(DISTINCT hadm) FROM ventilated_stays").fetchone()[0]
    attrition.step(f"ventilated in {which} ICU stay", count)
    if least:
        kept = connection.execute("SELECT count(*) FROM measured").fetchone()[0]
        attrition.step(f"ventilated for at least {options.minimum_days:g} days", kept)


def _need_early_note(connection: Any, attrition: Attrition) -> None:
    connection.execute(
        f"""
        DELETE FROM measured WHERE hadm NOT IN (
            SELECT hadm FROM measured JOIN nursing_notes USING (hadm)
            WHERE moment BETWEEN started AND started + INTERVAL {_EARLY_HOURS} HOUR
        )
        """
    )
    kept = connection.execute("SELECT count(*) FROM measured").fetchone()[0]
    attrition.step(f"with a nursing or respiratory note within {_EARLY_HOURS} hours of ventilation", kept)


def _counts(connection: Any, options: VentilationOptions) -> dict[str, Any]:
    """Count what the definition decides, and the deaths that it calls short."""
    admissions, by_span, by_sum, differ = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE by_span = 1), count(*) FILTER (WHERE by_sum = 1), "
        "count(*) FILTER (WHERE by_span <> by_sum) FROM measured"
    ).fetchone()
    died = connection.execute(
        f"""
        SELECT count(*) FROM labelled JOIN ventilated USING (hadm) JOIN candidates USING (hadm)
        JOIN PATIENTS ON PATIENTS.SUBJECT_ID = candidates.subject
        WHERE label = 0 AND DOD < started + to_seconds({round(options.days * _DAY)})
        """
    ).fetchone()[0]
    return {
        "admissions": admissions,
        "positive_by_span": by_span,
        "positive_by_sum": by_sum,
        "admissions_where_the_definitions_differ": differ,
        "negatives_who_died_within_the_days": died,
    }
