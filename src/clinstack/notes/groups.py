"""Which groups patients belong to, by what ``admissions.parquet`` says of each admission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.notes.read import Examples

ATTRIBUTES = ("sex", "age_band", "ethnicity", "insurance", "language")
"""What groups are told apart by."""
AGE_BANDS = ((18, "under 18"), (45, "18 to 44"), (65, "45 to 64"), (80, "65 to 79"))
OLDEST_BAND = "80 and older"
"""Old enough to hold those above 89, whose ages de-identified tables replace by invented ones."""
_NOT_SAID = ("", "?", "unknown", "other/unknown", "unable to obtain", "patient declined to answer", "not specified")
_ORIGINS = ("asian", "black", "hispanic", "white", "american indian", "native hawaiian", "multi")
"""First words of the finer groups of MIMIC's tables, such as WHITE - RUSSIAN; of these only the first words count."""
_LANGUAGES = {"engl": "english", "en": "english", "span": "spanish", "es": "spanish"}
Groups = Mapping[str, Sequence[str | None]]
"""By attribute the group of each row; None where it is not recorded."""


def admissions_files(folder: Path) -> list[Path]:
    """Return the file that `read_groups` reads for a task's examples, in a list; an empty one where there is none."""
    path = folder.parent.parent / "admissions.parquet"
    return [path] if path.is_file() else []


def read_groups(folder: Path, examples: Examples) -> dict[str, list[str | None]]:
    """Return the groups of a task's examples.

    Parameters
    ----------
    folder : Path
        A task's examples in a folder of Notes.
    examples : Examples
        Without ``encounter_ids`` nothing is known of them.

    Returns
    -------
    dict of attribute to list of str or None
        Only the attributes that ``admissions.parquet`` has and that are recorded for at least one row; empty where
        there is no such file.

    Raises
    ------
    InputError
        If the file has no column ``encounter_id``.
    """
    files = admissions_files(folder)
    if not files or examples.encounter_ids is None:
        return {}
    (path,) = files
    names = pq.read_schema(path).names
    if "encounter_id" not in names:
        raise InputError(f"{path}: the column encounter_id is missing; it has {', '.join(sorted(names))}.")
    sources = {attribute: "age" if attribute == "age_band" else attribute for attribute in ATTRIBUTES}
    wanted = {attribute: source for attribute, source in sources.items() if source in names}
    table = pq.read_table(path, columns=["encounter_id", *dict.fromkeys(wanted.values())])
    place = {str(name): row for row, name in enumerate(table["encounter_id"].to_pylist())}
    rows = [None if name is None else place.get(str(name)) for name in examples.encounter_ids]
    found: dict[str, list[str | None]] = {}
    for attribute, source in wanted.items():
        values = [group_of(attribute, value) for value in table[source].to_pylist()]
        groups = [None if row is None else values[row] for row in rows]
        if any(group is not None for group in groups):
            found[attribute] = groups
    return found


def group_of(attribute: str, value: Any) -> str | None:
    """Return the group that a value of a table belongs to; None where it says nothing.

    Ages fall into bands. Of ethnicities like ``WHITE - RUSSIAN`` and ``BLACK/CAPE VERDEAN`` the first words count,
    which is how the tables of MIMIC nest them; languages get one name each where MIMIC-III and MIMIC-IV write two.
    """
    if value is None or value != value:  # NaN
        return None
    if attribute == "age_band":
        return next((name for below, name in AGE_BANDS if value < below), OLDEST_BAND)
    text = " ".join(str(value).split()).lower()
    if text.split(" - ")[0] in _NOT_SAID or text.startswith("unknown"):
        return None
    if attribute == "ethnicity":
        return next((name for name in _ORIGINS if text.startswith(name)), text)
    if attribute == "language":
        return _LANGUAGES.get(text, text)
    return {"f": "female", "m": "male"}.get(text, text) if attribute == "sex" else text
