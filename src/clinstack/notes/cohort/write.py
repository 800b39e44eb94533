"""Writing the synthetic cohort."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import date, datetime
from pathlib import Path
from typing import Any, TextIO

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory

MOST_PATIENTS = 160_000
_SIGN = """# A synthetic cohort: everyone in it is invented

These tables have the names and columns of MIMIC-III, and nothing else of it. No row comes from a real person or a real
hospital: patients, notes, dates, codes and outcomes were drawn by a program (clinstack {version}, {patients} patients,
seed {seed}). Numbers measured on them say something about software, and nothing about medicine.
"""


def write_cohort(
    out: Path, patients: int, seed: int, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, int]:
    """Write an invented cohort as csv files with MIMIC-III's names, columns and types.

    Patient ``k`` of a seed is the same whatever the number of patients; the files are the same, byte for byte,
    whenever ``patients`` and ``seed`` are.

    Parameters
    ----------
    out : Path
        Folder to write; an earlier cohort there is replaced, anything else is refused.
    patients : int
        Number of adult patients. Two per cent get a newborn beside them, whom the outcome tasks leave out.
    seed : int
        Not negative.
    progress : callable, optional
        Called with a description, the patients done and the patients in all.

    Returns
    -------
    dict of str to int
        Rows of each table.

    Raises
    ------
    InputError
        If ``patients`` or ``seed`` is out of range, or ``out`` holds something that is not a cohort.
    """
    from clinstack.notes.cohort.codes import PROCEDURE_TITLES, diagnosis_titles
    from clinstack.notes.cohort.patient import draw_patient
    from clinstack.notes.cohort.tables import COLUMNS, Rows, add_patient

    if not 1 <= patients <= MOST_PATIENTS:
        raise InputError(f"patients is {patients}; use 1 to {MOST_PATIENTS}.")
    if seed < 0:
        raise InputError(f"seed is {seed}; use a whole number that is not negative.")
    _refuse_other_folder(out)
    rows = Rows()
    with replacing_directory(out) as folder:
        with ExitStack() as stack:
            files: dict[str, TextIO] = {}
            for name, columns in COLUMNS.items():
                files[name] = stack.enter_context((folder / f"{name}.csv").open("w", encoding="utf-8", newline=""))
                files[name].write(",".join(f'"{column}"' for column in columns) + "\n")
            for code, title in diagnosis_titles().items():
                rows.add("D_ICD_DIAGNOSES", code, title[:24], title)
            for code, title in PROCEDURE_TITLES.items():
                rows.add("D_ICD_PROCEDURES", code, title[:24], title)
            for index in range(patients):
                add_patient(rows, seed, draw_patient(seed, index))
                if index % 100 == 99 or index == patients - 1:
                    for name, file in files.items():
                        _append(file, COLUMNS[name], rows.take(name))
                    if progress:
                        progress("Inventing patients", index + 1, patients)
        facts = {
            "synthetic": True,
            "patients": patients,
            "seed": seed,
            "rows": rows.counts,
            "clinstack": __version__,
        }
        (folder / "cohort.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        sign = _SIGN.format(version=__version__, patients=patients, seed=seed)
        (folder / "SYNTHETIC.md").write_text(sign, encoding="utf-8")
    return rows.counts


def _refuse_other_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the cohort.")
    if any(out.iterdir()):
        marker = out / "cohort.json"
        if not (marker.is_file() and read_json(marker).get("synthetic") is True):
            raise InputError(f"{out} is not empty and not an earlier cohort; name another folder or empty it.")


def _append(file: TextIO, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows as MIMIC-III's files have them: text in quotes, numbers and times bare, missing values empty."""
    from clinstack.notes.cohort.tables import TEXT_COLUMNS

    quoted = [column in TEXT_COLUMNS for column in columns]
    for row in rows:
        file.write(",".join(map(_field, row, quoted)) + "\n")


def _field(value: Any, quoted: bool) -> str:
    if value is None:
        return ""
    if quoted:
        return '"' + str(value).replace('"', '""') + '"'
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return str(value)
