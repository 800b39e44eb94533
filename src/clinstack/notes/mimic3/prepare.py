"""From MIMIC-III, or a synthetic cohort in its form, to Notes: notes, splits and examples of the five outcomes.

The tasks are those of van Aken et al. 2021 (mortality, length of stay, diagnoses, procedures) and of Huang et al. 2020
(prolonged mechanical ventilation), as Gema et al. 2023 use them. With ``compat="official"`` the former four are what
the published scripts write, bit for bit; without, the errors of the scripts are put right, and `attrition.json` names
each fix with the rows that it changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from clinstack.database import connect
from clinstack.errors import InputError
from clinstack.files import replacing_directory
from clinstack.notes.mimic3.options import CODE_TABLES, Mimic3Options, Text
from clinstack.notes.mimic3.summaries import NOTE_COLUMNS
from clinstack.notes.prepared import PreparedFolder, Progress, is_synthetic_source, prepared_folder
from clinstack.notes.sources.source_tables import SourceTables, is_address, shown
from clinstack.notes.splits import assign_splits
from clinstack.notes.ventilation.options import VentilationOptions
from clinstack.tasks import OUTCOMES

SPLIT_LISTS = {"train": "mimic_train.csv", "validation": "mimic_val.csv", "test": "mimic_test.csv"}
_OF_THE_PATIENT = ("ETHNICITY", "INSURANCE", "LANGUAGE")
"""Columns of ADMISSIONS that groups of patients are told apart by, where it has them."""
_VENTILATION = ("PATIENTS", "ICUSTAYS", "CHARTEVENTS", "PROCEDUREEVENTS_MV", "VENTDURATIONS", "VENTILATION_DURATIONS")


STANDARD = Mimic3Options()


def prepare_mimic3(
    source: Path | str,
    out: Path,
    seed: int = 0,
    text: Text = "admission",
    tasks: Sequence[str] | None = None,
    minimum_count: int = 10,
    progress: Progress | None = None,
    options: Mimic3Options = STANDARD,
) -> dict[str, Any]:
    """Prepare notes and the examples of the outcome tasks from MIMIC-III's tables.

    Parameters
    ----------
    source : Path or str
        Where NOTEEVENTS, ADMISSIONS and what the tasks need are; see `SourceTables`.
    out : Path
        Folder to write, in one step at the end; an earlier output there is replaced, anything else is refused.
    seed : int
        Of the split by patient: 70 % train, 10 % validation, 20 % test.
    text : {"admission", "full"}
        Whether an example holds only what was known on admission, or the whole discharge summary.
    tasks : sequence of str, optional
        Names out of `clinstack.tasks.OUTCOMES`. Without it all five, prolonged ventilation only if the source has one
        of its tables.
    minimum_count : int
        How many training admissions must have a code category for it to become a class. Of no use with ``official``.
    progress : callable, optional
        Called with a description, the units done and the units in all.
    options : Mimic3Options
        Everything else.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If an argument, a table, a column or a row is wrong; nothing is written then.
    """
    if text not in get_args(Text):
        raise InputError(f"text is {text!r}; use {' or '.join(get_args(Text))}.")
    if minimum_count < 1:
        raise InputError(f"minimum_count is {minimum_count}; use 1 or more.")
    unknown = [name for name in tasks or () if name not in OUTCOMES]
    if unknown or (tasks is not None and not tasks):
        raise InputError(f"tasks: {', '.join(unknown) or 'none named'}; choose from {', '.join(OUTCOMES)}.")
    synthetic = not is_address(source) and is_synthetic_source(Path(source))
    if options.export_csv:
        _check_export(options.export_csv, out)
    # Before the notes are read, which takes minutes.
    lists = read_split_lists(options.splits) if options.splits else None
    with prepared_folder(out, progress) as prepared:
        tables = SourceTables(prepared.connection, source, progress)
        wanted, left_out = _available_tasks(tables, tasks, options.ventilation)
        open_tables(prepared, tables, wanted, options)
        facts = _build(prepared, tables, wanted, seed, text, minimum_count, options, synthetic, lists)
        result = prepared.finish(
            {
                "source": "mimic3",
                "from": shown(source) if is_address(source) else None,
                "synthetic": synthetic,
                "seed": seed,
                "text": text,
                "compat": options.compat,
                "minimum_count": None if options.compat else minimum_count,
                "split_lists": options.splits is not None,
                "tasks_left_out": left_out,
                "tables": tables.hashes(),
                "counts": facts,
            }
        )
        if options.export_csv:
            prepared.at_end.append(partial(_hand_over, prepared.scratch / "export", options.export_csv))
    return result


def _available_tasks(
    tables: SourceTables, tasks: Sequence[str] | None, ventilation: VentilationOptions
) -> tuple[tuple[str, ...], list[str]]:
    """Return the tasks to build, and those left out since the source has nothing of theirs."""
    if tasks is not None:
        return tuple(name for name in OUTCOMES if name in tasks), []
    ventilated = ventilation.source == "labels" or any(tables.has(name) for name in _VENTILATION)
    left_out = [] if ventilated else ["prolonged_ventilation"]
    return tuple(name for name in OUTCOMES if name not in left_out), left_out


def open_tables(prepared: PreparedFolder, tables: SourceTables, chosen: Sequence[str], options: Mimic3Options) -> None:
    """Load every table but NOTEEVENTS, check what all tasks rely on, and write ``admissions.parquet``."""
    needed = "Every task needs it."
    # Its columns too: the notes are read last, long after.
    tables.require("NOTEEVENTS", NOTE_COLUMNS, needed)
    columns = {
        "SUBJECT_ID": "BIGINT",
        "HADM_ID": "BIGINT",
        "ADMITTIME": "TIMESTAMP",
        "DISCHTIME": "TIMESTAMP",
        "ADMISSION_TYPE": "VARCHAR",
        "HOSPITAL_EXPIRE_FLAG": "VARCHAR",
    }
    present = {name.upper() for name in tables.reader("ADMISSIONS", needed).columns}
    columns |= {name: "VARCHAR" for name in _OF_THE_PATIENT if name in present}
    tables.open("ADMISSIONS", columns, needed)
    _check_admissions(tables, options)
    _write_admissions(prepared, tables)
    for name, table in CODE_TABLES.items():
        if name in chosen:
            remedy = f"{name} needs it: add the file, or leave the task out."
            # The published scripts take codes as they come, also those that have lost their leading zeros.
            kind = "VARCHAR" if options.compat else "CODE"
            patient = {"SUBJECT_ID": "BIGINT"} if options.compat else {}
            tables.open(table, {**patient, "HADM_ID": "BIGINT", "ICD9_CODE": kind}, remedy)
            if not options.compat:
                _check_codes(tables, table)
    if "prolonged_ventilation" in chosen:
        from clinstack.notes.ventilation.label import open_ventilation_tables

        open_ventilation_tables(tables, options.ventilation)


def _check_admissions(tables: SourceTables, options: Mimic3Options) -> None:
    execute = tables.connection.execute
    place = tables.place("ADMISSIONS")
    repeated = execute(
        "SELECT rowid + 1, HADM_ID FROM ADMISSIONS "
        "QUALIFY HADM_ID IS NULL OR row_number() OVER (PARTITION BY HADM_ID ORDER BY rowid) > 1 ORDER BY rowid LIMIT 1"
    ).fetchone()
    if repeated:
        raise InputError(
            f"{place}, row {repeated[0]:,}: column HADM_ID has empty or repeated values; each admission needs its own."
        )
    # Some MIMIC-III stays end up to a day before they begin; they are counted, not refused.
    reversed_ = execute(
        "SELECT rowid + 1 FROM ADMISSIONS WHERE DISCHTIME < ADMITTIME - INTERVAL 1 DAY ORDER BY rowid LIMIT 1"
    ).fetchone()
    if reversed_ and not options.compat:
        raise InputError(
            f"{place}, row {reversed_[0]:,}: dates are out of order, DISCHTIME is more than a day before ADMITTIME. "
            f"Correct the row, or export the table again."
        )


def _check_codes(tables: SourceTables, table: str) -> None:
    """Refuse codes that a program took for numbers: none begins with a zero, and some are too short to be codes."""
    digits = "regexp_matches(trim(ICD9_CODE), '^[0-9]+$')"
    zeros, short, row = tables.connection.execute(
        f"SELECT count(*) FILTER (WHERE trim(ICD9_CODE) LIKE '0%'), "
        f"count(*) FILTER (WHERE {digits} AND length(trim(ICD9_CODE)) < 3), "
        f"min(rowid + 1) FILTER (WHERE {digits} AND length(trim(ICD9_CODE)) < 3) FROM {table}"
    ).fetchone()
    if short and not zeros:
        raise InputError(
            f"{tables.place(table)}, row {row:,}: column ICD9_CODE has {short} code(s) of fewer than three digits and "
            f"none that begins with 0: codes were read as numbers and have lost their leading zeros. Export the column "
            f"as text."
        )


def _write_admissions(prepared: PreparedFolder, tables: SourceTables) -> None:
    """Write ``admissions.parquet``: ages and groups where the source has them."""
    patients = "(SELECT NULL::BIGINT AS SUBJECT_ID, NULL::VARCHAR AS GENDER, NULL::TIMESTAMP AS DOB LIMIT 0)"
    if tables.has("PATIENTS"):
        present = {name.upper() for name in tables.reader("PATIENTS").columns}
        kinds = {"SUBJECT_ID": "BIGINT", "GENDER": "VARCHAR", "DOB": "TIMESTAMP"}
        if present >= kinds.keys():
            tables.open("PATIENTS", kinds)
            patients = "PATIENTS"
    has = {row[0] for row in prepared.connection.execute("DESCRIBE ADMISSIONS").fetchall()}
    optional = ", ".join(f"{name if name in has else 'NULL::VARCHAR'} AS {name.lower()}" for name in _OF_THE_PATIENT)
    prepared.write_admissions(
        f"""
        SELECT HADM_ID::VARCHAR AS encounter_id, ADMISSIONS.SUBJECT_ID::VARCHAR AS patient_id, ADMITTIME AS admitted,
            DISCHTIME AS discharged, date_diff('day', DOB, ADMITTIME) / 365.2425 AS age, trim(GENDER) AS sex,
            {optional}, ADMISSION_TYPE AS admission_type,
            CASE trim(HOSPITAL_EXPIRE_FLAG) WHEN '1' THEN 1 WHEN '0' THEN 0 END AS died
        FROM ADMISSIONS LEFT JOIN {patients} AS patients ON patients.SUBJECT_ID = ADMISSIONS.SUBJECT_ID
        ORDER BY HADM_ID
        """
    )


def _build(
    prepared: PreparedFolder,
    tables: SourceTables,
    chosen: tuple[str, ...],
    seed: int,
    text: Text,
    minimum_count: int,
    options: Mimic3Options,
    synthetic: bool,
    lists: dict[int, str] | None,
) -> dict[str, Any]:
    """Read the notes once, then write splits, notes and tasks; return the counts."""
    from clinstack.notes.mimic3.notes_table import NotesTable
    from clinstack.notes.mimic3.official.labels import read_official_codes
    from clinstack.notes.mimic3.summaries import read_summaries
    from clinstack.notes.mimic3.tasks import write_default_tasks, write_official_tasks
    from clinstack.notes.text_store import TextStore

    # Before the notes, while little else is in memory.
    codes = read_official_codes(prepared.connection, tables, chosen) if options.compat else {}
    notes = NotesTable(prepared, options.keep_errors) if options.notes else None
    with TextStore(prepared.scratch / "raw.bin") as raw:
        summaries = read_summaries(tables, raw, notes.add if notes else None)
        patients = {row[0] for row in prepared.connection.execute("SELECT SUBJECT_ID FROM ADMISSIONS").fetchall()}
        split_of = _splits(lists, patients, (notes.patients() if notes else set()), seed)
        counts: dict[str, Any] = {"patients": prepared.use_splits({str(key): where for key, where in split_of.items()})}
        if options.splits:
            counts["patients_in_no_list"] = len(patients - split_of.keys())
        if notes:
            counts |= notes.write("synthetic cohort" if synthetic else "mimic3")
        if options.compat:
            export = prepared.scratch / "export" if options.export_csv else None
            counts["examples"] = write_official_tasks(
                prepared,
                tables,
                codes,
                summaries,
                raw,
                split_of,
                chosen,
                text == "admission",
                export,
                options.ventilation,
            )
        else:
            counts["examples"] = write_default_tasks(
                prepared, tables, summaries, raw, split_of, chosen, text == "admission", minimum_count, options
            )
    return counts


def _splits(
    lists: dict[int, str] | None, patients: set[int | None], note_patients: set[int], seed: int
) -> dict[int, str]:
    """Return the split of each patient.

    Patients of ADMISSIONS are split among themselves, those who have nothing but notes among themselves: so the
    examples are the same whether the table of notes is written or not.
    """
    admitted = {patient for patient in patients if patient is not None}
    if lists is None:
        result = assign_splits(map(str, admitted), seed) | assign_splits(map(str, note_patients - admitted), seed)
        return {int(patient): split for patient, split in sorted(result.items())}
    return {patient: lists[patient] for patient in sorted(admitted | note_patients) if patient in lists}


def read_split_lists(folder: Path) -> dict[int, str]:
    """Read the three published lists of patients.

    Raises
    ------
    InputError
        If one is missing, has no column SUBJECT_ID, or a patient stands in two lists.
    """
    result: dict[int, str] = {}
    with connect() as connection:
        tables = SourceTables(connection, folder)
        for split, name in SPLIT_LISTS.items():
            table = name.removesuffix(".csv")
            tables.open(table, {"SUBJECT_ID": "BIGINT"}, "The folder of split lists needs it.")
            for (patient,) in connection.execute(f"SELECT DISTINCT SUBJECT_ID FROM {table}").fetchall():
                if patient is not None and result.setdefault(patient, split) != split:
                    raise InputError(
                        f"{tables.place(table)}: the patient {patient} is also in {SPLIT_LISTS[result[patient]]}; "
                        f"a patient belongs to one split."
                    )
    return result


def _check_export(export: Path, out: Path) -> None:
    """Refuse to export where something else would be replaced, or into the output, which is replaced as a whole."""
    from clinstack.notes.mimic3.official.export import CODE_LISTS, FILES

    if export.resolve().is_relative_to(out.resolve()):
        raise InputError(f"The published files cannot go into {out}, which is written anew; name a folder beside it.")
    known = tuple(name for _, name, _ in FILES.values())
    for target in (export / folder for folder, _, _ in FILES.values()):
        for old in target.iterdir() if target.is_dir() else ():
            if not old.name.startswith(known) and old.name not in CODE_LISTS.values():
                raise InputError(f"{old} is not one of the published files; name another folder to export to.")


def _hand_over(written: Path, export: Path) -> None:
    """Put the published files where they were asked for, folder by folder in one step each."""
    for folder in sorted(written.iterdir()):
        target = export / folder.name
        with replacing_directory(target) as temporary:
            for file in folder.iterdir():
                shutil.copyfile(file, temporary / file.name)
