"""From MIMIC-IV and MIMIC-IV-Note to Notes: discharge summaries, radiology reports, and the five outcome tasks.

The tasks are those of MIMIC-III's builder on MIMIC-IV's admissions of adults. MIMIC-IV mixes ICD-9 and ICD-10, so the
code tasks take an explicit choice; its ventilation is charted as events with a start and an end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clinstack.notes.attrition import Attrition
from clinstack.notes.labels import LENGTH_OF_STAY_CLASSES
from clinstack.notes.mimic4.icd import CodeBook, CodeKind, IcdMap
from clinstack.notes.mimic4.labels import (
    CODE_TABLES,
    count,
    label_codes,
    label_length_of_stay,
    label_mortality,
    label_ventilation,
    open_codes,
    open_ventilation,
)
from clinstack.notes.mimic4.notes import NOTE_TABLES, Mimic4Notes, refuse_empty, refuse_repeated
from clinstack.notes.mimic4.options import Mimic4Options
from clinstack.notes.mimic4.texts import write_examples, write_texts
from clinstack.notes.prepared import PreparedFolder, Progress, is_synthetic_source, prepared_folder
from clinstack.notes.sources.source_tables import SourceTables, is_address
from clinstack.tasks import Task

ADULT = 18
CONTAMINATION = (
    "MIMIC-III and MIMIC-IV hold the same admissions of 2008 to 2012. Before a model that read one is tested on the "
    "other, run: clinstack prepare check DATA --against OTHER"
)
PUBLISHED_ROWS: dict[str, dict[str, int]] = {
    "discharge": {"2.2": 331_793},
    "radiology": {"2.2": 2_321_355},
    "patients": {"2.2": 299_712, "3.1": 364_627},
    "admissions": {"2.2": 431_231, "3.1": 546_028},
    "diagnoses_icd": {"2.2": 4_756_326, "3.1": 6_364_488},
    "procedures_icd": {"2.2": 669_186, "3.1": 859_655},
    "icustays": {"2.2": 73_181, "3.1": 94_458},
}
"""Rows of each table by release, of MIMIC-IV and, for the notes, of MIMIC-IV-Note. Published counts differ by one."""


def prepare_mimic4(
    source: Path | str,
    out: Path,
    options: Mimic4Options | None = None,
    notes_source: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare notes and the examples of the outcome tasks from MIMIC-IV.

    Parameters
    ----------
    source : Path or str
        Folder that holds ``hosp/`` and ``icu/``, and ``note/`` unless ``notes_source`` is given: csv, gzipped csv or
        Parquet with MIMIC-IV's names; or a DuckDB file or PostgreSQL address that holds the tables.
    out : Path
        Folder to write, in one step at the end; an earlier output there is replaced, anything else is refused.
    options : Mimic4Options, optional
        What the study chooses.
    notes_source : Path or str, optional
        Where the tables ``discharge`` and ``radiology`` are, when not with ``source``.
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If an argument, a table, a column or a value is wrong; nothing is written then.
    """
    chosen = options or Mimic4Options()
    remedy = "Name the folder of MIMIC-IV-Note with --notes-source."
    with prepared_folder(out, progress) as folder, Mimic4Notes(folder) as notes:
        hosp = _area(folder, source, "hosp", "admissions")
        icu = _area(folder, source, "icu", "procedureevents")
        note = _area(folder, notes_source or source, "note", "discharge")
        tasks, left_out = _tasks(chosen, icu)
        books = _code_books(chosen, tasks)
        row_counts: dict[str, int] = {}
        for table in NOTE_TABLES:
            note.reader(table, remedy)
        if tasks:
            row_counts |= _open_admissions(hosp)
            row_counts |= {CODE_TABLES[kind]: open_codes(hosp, kind) for kind in books}
            if "prolonged_ventilation" in tasks:
                row_counts |= open_ventilation(icu)
        row_counts |= notes.read(note, remedy)
        # Patients who have a note, so that notes alone and notes with tasks are split alike.
        counts: dict[str, Any] = {"patients": folder.split_patients(notes.patients(), chosen.seed)}
        if tasks:
            notes.refuse_foreign_admissions(note)
        counts |= notes.deduplicate()
        notes.write()
        if tasks:
            counts |= notes.count_lost()
            attrition = _select_adults(folder.connection)
            write_texts(notes, chosen.text == "admission", attrition)
            folder.connection.execute(_CANDIDATES)
            folder.write_admissions(_ADMISSIONS)
            counts["examples"] = {name: _write_task(folder, name, chosen, books, attrition.copy()) for name in tasks}
        return folder.finish(
            {
                "source": "mimic4",
                "synthetic": not is_address(source) and is_synthetic_source(Path(source)),
                "seed": chosen.seed,
                "text": chosen.text,
                "tasks": list(tasks),
                "left_out": left_out,
                **_choices(chosen, tasks),
                "tables": {
                    f"{area}/{name}": digest
                    for area, tables in (("hosp", hosp), ("icu", icu), ("note", note))
                    for name, digest in tables.hashes().items()
                },
                "row_counts": {name: _known_as(name, rows) for name, rows in sorted(row_counts.items())},
                "counts": counts,
            }
        )


def _choices(options: Mimic4Options, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Return those choices that the tasks depend on."""
    choices: dict[str, Any] = {}
    if set(CODE_TABLES) & set(tasks):
        choices |= {"minimum_count": options.minimum_count, "icd": options.icd}
    if "prolonged_ventilation" in tasks:
        choices["ventilation"] = options.ventilation
    return choices


def _area(folder: PreparedFolder, source: Path | str, area: str, table: str) -> SourceTables:
    """Return the tables of ``hosp``, ``icu`` or ``note``: in the folder of that name, or in the source itself."""
    if is_address(source) or not Path(source).is_dir():
        return SourceTables(folder.connection, source, folder.progress)
    inner = Path(source) / area
    below = SourceTables(folder.connection, inner, folder.progress) if inner.is_dir() else None
    if below and below.has(table):
        return below
    itself = SourceTables(folder.connection, source, folder.progress)
    return itself if below is None or itself.has(table) else below


def _tasks(options: Mimic4Options, icu: SourceTables) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the tasks to write, and those that the source does not allow with the reason."""
    ventilation = "prolonged_ventilation"
    missing = [table for table in ("icustays", "procedureevents") if not icu.has(table)]
    if options.tasks is not None or not missing:
        return options.wanted, {}
    tasks = tuple(name for name in options.wanted if name != ventilation)
    return tasks, {ventilation: f"icu/{' and icu/'.join(missing)} not found"}


def _code_books(options: Mimic4Options, tasks: tuple[str, ...]) -> dict[CodeKind, CodeBook]:
    paths: dict[CodeKind, Path | None] = {"diagnoses": options.icd_map, "procedures": options.icd_procedure_map}
    return {
        kind: CodeBook(kind, options.icd, IcdMap.read(path) if path else None)
        for kind, path in paths.items()
        if kind in tasks
    }


def _open_admissions(hosp: SourceTables) -> dict[str, int]:
    """Load admissions and patients; return the rows of each."""
    remedy = "Name the folder of MIMIC-IV that holds hosp/, or write the notes alone with --tasks none."
    for table in ("admissions", "patients"):
        hosp.reader(table, remedy)
    hosp.open(
        "admissions",
        {
            "subject_id": "BIGINT",
            "hadm_id": "BIGINT",
            "admittime": "TIMESTAMP",
            "dischtime": "TIMESTAMP",
            "admission_type": "VARCHAR",
            "insurance": "VARCHAR",
            "language": "VARCHAR",
            "race": "VARCHAR",
            "hospital_expire_flag": "VARCHAR",
        },
        remedy,
    )
    hosp.open(
        "patients",
        {"subject_id": "BIGINT", "gender": "VARCHAR", "anchor_age": "BIGINT", "anchor_year": "BIGINT"},
        remedy,
    )
    for table, column in (("admissions", "subject_id"), ("admissions", "hadm_id"), ("patients", "subject_id")):
        refuse_empty(hosp, table, column)
    for table, key in (("admissions", "hadm_id"), ("patients", "subject_id")):
        twice = hosp.connection.execute(
            f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1 ORDER BY {key} LIMIT 1"
        ).fetchall()
        if twice:
            refuse_repeated(hosp, [table], key, "BIGINT", twice[0][0])
    return {table: count(hosp.connection, table) for table in ("admissions", "patients")}


def _select_adults(connection: Any) -> Attrition:
    """Make ``grown`` (hadm, subject, admitted, discharged, died): MIMIC-IV has no mark of newborns, so age decides."""
    attrition = Attrition()
    attrition.step("admissions", count(connection, "admissions"))
    connection.execute(
        """
        CREATE TABLE aged AS
        SELECT admissions.*, gender, anchor_age + year(admittime) - anchor_year AS age
        FROM admissions LEFT JOIN patients USING (subject_id)
        """
    )
    attrition.step("of known age", count(connection, "(SELECT * FROM aged WHERE age IS NOT NULL)"))
    connection.execute(
        f"""
        CREATE TABLE grown AS
        SELECT hadm_id AS hadm, subject_id AS subject, admittime AS admitted, dischtime AS discharged,
            CASE trim(hospital_expire_flag) WHEN '1' THEN 1 WHEN '0' THEN 0 END AS died
        FROM aged WHERE age >= {ADULT}
        """
    )
    attrition.step(f"at least {ADULT} years old", count(connection, "grown"))
    return attrition


_CANDIDATES = """
CREATE TABLE candidates AS
SELECT grown.*, split
FROM grown JOIN written USING (hadm) JOIN splits ON splits.patient_id = grown.subject::VARCHAR
"""
_ADMISSIONS = """
SELECT hadm_id::VARCHAR AS encounter_id, subject_id::VARCHAR AS patient_id, admittime AS admitted,
    dischtime AS discharged, age::DOUBLE AS age, gender AS sex, race AS ethnicity, insurance,
    language, admission_type,
    CASE trim(hospital_expire_flag) WHEN '1' THEN 1 WHEN '0' THEN 0 END::BIGINT AS died
FROM aged SEMI JOIN splits ON splits.patient_id = aged.subject_id::VARCHAR
ORDER BY subject_id, admittime, hadm_id
"""


def _write_task(
    folder: PreparedFolder,
    name: str,
    options: Mimic4Options,
    books: dict[CodeKind, CodeBook],
    attrition: Attrition,
) -> dict[str, int]:
    """Write the examples of one task; return the rows of each split."""
    connection, facts = folder.connection, dict[str, Any]()
    if name == "mortality":
        label_mortality(connection, attrition)
        task = Task(name, "binary", ("survived", "died"), "Death in the hospital.")
    elif name == "length_of_stay":
        label_length_of_stay(connection, attrition)
        task = Task(name, "multiclass", LENGTH_OF_STAY_CLASSES, "Length of stay of those who left alive.")
    elif name == "prolonged_ventilation":
        facts = label_ventilation(connection, attrition, options.ventilation)
        task = Task(name, "binary", ("under 7 days", "7 days or more"), "Prolonged invasive ventilation.")
    else:
        book = books["diagnoses" if name == "diagnoses" else "procedures"]
        facts = label_codes(connection, attrition, book, options.minimum_count)
        task = Task(name, "multilabel", tuple(facts.pop("classes")), _CODE_DESCRIPTIONS[options.icd].format(name))
    return write_examples(folder, task, attrition, facts)


_CODE_DESCRIPTIONS = {
    "9": "ICD-9 categories of the {} of admissions coded in ICD-9.",
    "10": "ICD-10 categories of the {} of admissions coded in ICD-10.",
    "map-to-9": "ICD-9 categories of the {}; ICD-10 codes are mapped.",
    "map-to-10": "ICD-10 categories of the {}; ICD-9 codes are mapped.",
    "both": "Categories of the {}, each with its version of the ICD.",
}


def _known_as(table: str, rows: int) -> dict[str, Any]:
    """Return the rows of a table and the releases that have as many, give or take one."""
    return {
        "rows": rows,
        "as_in_release": [name for name, known in PUBLISHED_ROWS[table].items() if abs(known - rows) <= 1],
    }
