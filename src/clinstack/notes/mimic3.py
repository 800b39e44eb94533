"""From MIMIC-III, or a synthetic cohort in its form, to Notes: notes, splits and examples of the five outcomes.

The tasks are those of van Aken et al. 2021 (mortality, length of stay, diagnoses, procedures) and of Huang et al. 2020
(prolonged mechanical ventilation), as Gema et al. 2023 use them. The published scripts' errors are put right, so label
spaces and counts differ from the published ones; `attrition.json` says where everybody went.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory
from clinstack.notes.attrition import Attrition
from clinstack.notes.discharge_notes import build_texts, clean_notes, drop_death_mentions, write_notes
from clinstack.notes.labels import LENGTH_OF_STAY_CLASSES, label_codes, label_length_of_stay, label_mortality
from clinstack.notes.source_tables import SourceTables
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.notes.ventilation import label_ventilation, open_ventilation_tables
from clinstack.tasks import OUTCOMES, Task

Text = Literal["admission", "full"]
Progress = Callable[[str, int, int], None]
_CODE_TABLES = {"diagnoses": "DIAGNOSES_ICD", "procedures": "PROCEDURES_ICD"}


def prepare_mimic3(
    source: Path,
    out: Path,
    seed: int = 0,
    text: Text = "admission",
    tasks: Sequence[str] | None = None,
    minimum_count: int = 10,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare notes and the examples of the outcome tasks from a folder of MIMIC-III's csv files.

    Parameters
    ----------
    source : Path
        Folder of NOTEEVENTS, ADMISSIONS and what the tasks need, as ``.csv`` or ``.csv.gz``.
    out : Path
        Folder to write, in one step at the end; an earlier output there is replaced, anything else is refused.
    seed : int
        Of the split by patient: 70 % train, 10 % validation, 20 % test.
    text : {"admission", "full"}
        Whether an example holds only what was known on admission, or the whole discharge summary.
    tasks : sequence of str, optional
        Names out of `clinstack.tasks.OUTCOMES`; all five without it.
    minimum_count : int
        How many training admissions must have a code category for it to become a class.
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If an argument, a table or a column is wrong; nothing is written then.
    """
    import duckdb

    chosen = _checked_tasks(tasks)
    if text not in get_args(Text):
        raise InputError(f"text is {text!r}; use {' or '.join(get_args(Text))}.")
    if minimum_count < 1:
        raise InputError(f"minimum_count is {minimum_count}; use 1 or more.")
    _refuse_other_folder(out)
    synthetic = _is_synthetic(source)
    label = "synthetic cohort" if synthetic else "mimic3"
    with replacing_directory(out) as folder:
        scratch = folder / ".scratch"
        scratch.mkdir()
        with duckdb.connect(str(scratch / "tables.duckdb")) as connection:
            connection.execute(f"SET temp_directory = '{_quoted(scratch / 'spill')}'")
            _report(progress, "Opening tables", 0, 1)
            tables = SourceTables(connection, source)
            _open_tables(tables, chosen)
            _report(progress, "Opening tables", 1, 1)
            counts = _split_patients(connection, folder, seed)
            _report(progress, "Cleaning notes", 0, 1)
            counts |= clean_notes(connection)
            write_notes(connection, folder / "notes" / "notes.parquet", label)
            _report(progress, "Cleaning notes", 1, 1)
            attrition = _select_admissions(connection)
            build_texts(connection, scratch, text == "admission", attrition, progress)
            connection.execute(_CANDIDATES)
            counts["examples"] = {}
            for done, name in enumerate(chosen):
                _report(progress, "Labelling tasks", done, len(chosen))
                counts["examples"][name] = _write_task(connection, folder, scratch, name, attrition, minimum_count)
            _report(progress, "Labelling tasks", len(chosen), len(chosen))
            hashes = tables.hashes()
        _remove(scratch)
        facts = {
            "source": "mimic3",
            "synthetic": synthetic,
            "seed": seed,
            "text": text,
            "minimum_count": minimum_count,
            "tables": hashes,
            "counts": counts,
            "clinstack": __version__,
        }
        _write_json(folder / "prepare.json", facts)
    return facts


def _checked_tasks(tasks: Sequence[str] | None) -> tuple[str, ...]:
    wanted = tuple(OUTCOMES) if tasks is None else tuple(tasks)
    unknown = [name for name in wanted if name not in OUTCOMES]
    if unknown or not wanted:
        raise InputError(f"tasks: {', '.join(unknown) or 'none named'}; choose from {', '.join(OUTCOMES)}.")
    return tuple(name for name in OUTCOMES if name in wanted)


def _refuse_other_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the notes.")
    if any(out.iterdir()) and not (out / "prepare.json").is_file():
        raise InputError(f"{out} is not empty and was not written by `clinstack prepare`; name another folder.")


def _is_synthetic(source: Path) -> bool:
    marker = source / "cohort.json"
    if not marker.is_file():
        return False
    try:
        return bool(read_json(marker).get("synthetic"))
    except (ValueError, AttributeError):
        raise InputError(f"{marker} is damaged; write the cohort again.") from None


def _open_tables(tables: SourceTables, chosen: tuple[str, ...]) -> None:
    tables.open(
        "ADMISSIONS",
        {
            "SUBJECT_ID": "BIGINT",
            "HADM_ID": "BIGINT",
            "ADMITTIME": "TIMESTAMP",
            "DISCHTIME": "TIMESTAMP",
            "ADMISSION_TYPE": "VARCHAR",
            "HOSPITAL_EXPIRE_FLAG": "VARCHAR",
        },
        "Every task needs it.",
    )
    tables.open(
        "NOTEEVENTS",
        {
            "ROW_ID": "BIGINT",
            "SUBJECT_ID": "BIGINT",
            "HADM_ID": "BIGINT",
            "CHARTDATE": "TIMESTAMP",
            "CHARTTIME": "TIMESTAMP",
            "CATEGORY": "VARCHAR",
            "DESCRIPTION": "VARCHAR",
            "ISERROR": "VARCHAR",
            "TEXT": "VARCHAR",
        },
        "Every task needs it.",
    )
    for name, table in _CODE_TABLES.items():
        if name in chosen:
            remedy = f"{name} needs it: add the file, or leave the task out."
            tables.open(table, {"HADM_ID": "BIGINT", "ICD9_CODE": "VARCHAR"}, remedy)
    if "prolonged_ventilation" in chosen:
        open_ventilation_tables(tables)


def _split_patients(connection: Any, folder: Path, seed: int) -> dict[str, Any]:
    """Write ``splits.parquet`` for all patients with an admission or a note, and register it as ``splits``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = connection.execute("SELECT SUBJECT_ID FROM ADMISSIONS UNION SELECT SUBJECT_ID FROM NOTEEVENTS").fetchall()
    split = assign_splits((str(row[0]) for row in rows if row[0] is not None), seed)
    table = pa.table({"patient_id": list(split), "split": list(split.values())})
    pq.write_table(table, folder / "splits.parquet")
    connection.register("splits", table)
    return {"patients": {name: sum(value == name for value in split.values()) for name in SPLITS}}


def _select_admissions(connection: Any) -> Attrition:
    """Make the table ``grown``: the admissions that are not a newborn's."""
    attrition = Attrition()
    admissions, distinct = connection.execute("SELECT count(*), count(DISTINCT HADM_ID) FROM ADMISSIONS").fetchone()
    if admissions != distinct:
        raise InputError("ADMISSIONS: column HADM_ID has empty or repeated values; each admission needs its own.")
    attrition.step("admissions", admissions)
    connection.execute(
        """
        CREATE TABLE grown AS
        SELECT HADM_ID AS hadm, SUBJECT_ID AS subject, ADMITTIME AS admitted, DISCHTIME AS discharged,
            CASE trim(HOSPITAL_EXPIRE_FLAG) WHEN '1' THEN 1 WHEN '0' THEN 0 END AS died
        FROM ADMISSIONS WHERE coalesce(trim(ADMISSION_TYPE), '') <> 'NEWBORN'
        """
    )
    attrition.step("not a newborn's", connection.execute("SELECT count(*) FROM grown").fetchone()[0])
    return attrition


_CANDIDATES = """
CREATE TABLE candidates AS
SELECT grown.*, split FROM grown JOIN texts USING (hadm) JOIN splits ON splits.patient_id = grown.subject::VARCHAR
"""


def _write_task(
    connection: Any, folder: Path, scratch: Path, name: str, start: Attrition, minimum_count: int
) -> dict[str, int]:
    """Write the examples of one task; return the number of rows of each split."""
    attrition = start.copy()
    texts, facts = "texts", dict[str, Any]()
    if name == "mortality":
        label_mortality(connection, attrition)
        drop_death_mentions(connection, scratch, attrition)
        texts = "safe_texts"
        task = Task(name, "binary", ("survived", "died"), "Death in the hospital.")
    elif name == "length_of_stay":
        label_length_of_stay(connection, attrition)
        task = Task(name, "multiclass", LENGTH_OF_STAY_CLASSES, "Length of stay of those who left alive.")
    elif name == "prolonged_ventilation":
        label_ventilation(connection, attrition)
        task = Task(name, "binary", ("under 7 days", "7 days or more"), "Prolonged mechanical ventilation.")
    else:
        facts = label_codes(connection, attrition, _CODE_TABLES[name], minimum_count)
        kind = "ICD-9 categories" if name == "diagnoses" else "ICD-9 procedure categories"
        task = Task(name, "multilabel", tuple(facts.pop("classes")), f"{kind} of the admission.")
    target = folder / "examples" / name
    target.mkdir(parents=True)
    task.save(target)
    summary = {}
    for split in SPLITS:
        query = f"""
            SELECT hadm::VARCHAR AS example_id, subject::VARCHAR AS patient_id, hadm::VARCHAR AS encounter_id,
                text, label
            FROM labelled JOIN candidates USING (hadm) JOIN {texts} USING (hadm) WHERE split = '{split}' ORDER BY hadm
        """
        path = target / f"{split}.parquet"
        connection.execute(f"COPY ({query}) TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd)")
        summary[split] = _summary(connection, path, task)
    _write_json(target / "attrition.json", {"task": name, "steps": attrition.steps, "splits": summary, **facts})
    return {split: content["rows"] for split, content in summary.items()}


def _summary(connection: Any, path: Path, task: Task) -> dict[str, Any]:
    """Count the rows, patients and labels of one file of examples."""
    file = f"'{_quoted(path)}'"
    rows, patients = connection.execute(f"SELECT count(*), count(DISTINCT patient_id) FROM {file}").fetchone()
    value = "unnest(label)" if task.kind == "multilabel" else "label"
    counted = f"SELECT value, count(*) FROM (SELECT {value} AS value FROM {file}) GROUP BY value"
    found = dict(connection.execute(counted).fetchall())
    keys = task.classes if task.kind == "multilabel" else range(len(task.classes))
    counts = {name: found.get(key, 0) for name, key in zip(task.classes, keys, strict=True)}
    return {"rows": rows, "patients": patients, "labels": counts}


def _report(progress: Progress | None, description: str, done: int, total: int) -> None:
    if progress:
        progress(description, done, total)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
