"""The files of the published scripts, under their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clinstack.notes.text_store import TextStore

FILES = {
    "mortality": ("mp", "MP_IN", "hospital_expire_flag"),
    "length_of_stay": ("los", "LOS_WEEKS", "los_label"),
    "diagnoses": ("dia", "DIA_GROUPS_3_DIGITS", "short_codes"),
    "procedures": ("pro", "PRO_GROUPS_3_DIGITS", "short_codes"),
}
"""Folder, beginning of the file's name, and column of the label."""
CODE_LISTS = {"diagnoses": "ALL_3_DIGIT_DIA_CODES.txt", "procedures": "ALL_3_DIGIT_PRO_CODES.txt"}
SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}


def export_rows(
    folder: Path, task: str, split: str, admission_only: bool, rows: Iterable[tuple[int, int, Any]], store: TextStore
) -> None:
    """Write one csv file, every field in quotes.

    Parameters
    ----------
    folder : Path
        The folder that holds ``mp``, ``los``, ``dia`` and ``pro``.
    task, split : str
        By our names.
    admission_only : bool
        Marks the file's name with ``_adm``.
    rows : iterable of (int, int, label)
        Admission, number of the text in ``store``, and the label as pandas wrote it.
    store : TextStore
        Has the texts.
    """
    short, name, column = FILES[task]
    target = folder / short
    target.mkdir(parents=True, exist_ok=True)
    middle = "_adm" if admission_only else ""
    with (target / f"{name}{middle}_{SPLIT_NAMES[split]}.csv").open("wb") as file:
        file.write(f'"id","text","{column}"\n'.encode())
        for hadm, text, label in rows:
            file.write(b'"%d","%b","%b"\n' % (hadm, store.bytes(text).replace(b'"', b'""'), str(label).encode()))


def export_codes(folder: Path, task: str, classes: list[str]) -> None:
    """Write the list of all groups of codes, in the order of their first appearance."""
    target = folder / FILES[task][0]
    target.mkdir(parents=True, exist_ok=True)
    (target / CODE_LISTS[task]).write_text(" ".join(classes), encoding="utf-8")
