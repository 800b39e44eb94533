"""Whom a stack was trained on, in counts: what prepare.json and datasheet.json of its Notes say, small cells hidden.

Both are read only where prepare.json is the one that stack.json has the hash of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clinstack.files import read_json, sha256_file
from clinstack.model.cards.figures import SMALL, SMALLEST, shown_count
from clinstack.notes.splits import SPLITS

_ATTRIBUTES = ("sex", "ethnicity", "insurance", "language")
_MOST_VALUES = 12


@dataclass(frozen=True)
class CohortFacts:
    """Counts of a folder of Notes.

    Parameters
    ----------
    text : str or None
        Which text examples have: ``admission`` or ``full``.
    patients : dict of str to str
        By split, as a card may say it.
    rows : dict of str to str
        Examples of the task by split; empty where there is no task.
    age : dict of str to list of three floats
        Median and quartiles of the age at admission, by split.
    categories : dict of str to list
        Of each attribute its values, each with the number of admissions by split.
    minimum_count : int or None
        In how many admissions a code occurs at least.
    """

    text: str | None
    patients: dict[str, str]
    rows: dict[str, str]
    age: dict[str, list[float]]
    categories: dict[str, list[dict[str, str]]]
    minimum_count: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CohortFacts:
        """Read what `to_dict` wrote."""
        return cls(**{key: values[key] for key in cls.__dataclass_fields__})


def cohort_facts(recipe: Mapping[str, Any], prepare: str | None, task: str | None) -> CohortFacts | None:
    """Return what the Notes of a recipe say.

    Parameters
    ----------
    recipe : mapping
        Of the Run.
    prepare : str or None
        Hash of prepare.json, as the stack's lineage has it; without one nothing is read.
    task : str or None
        The stack's.

    Returns
    -------
    CohortFacts or None
        None where the Notes are not here, or are others by now.
    """
    folder = _notes_folder(recipe)
    if folder is None or prepare is None:
        return None
    file = folder / "prepare.json"
    if not file.is_file() or sha256_file(file) != prepare:
        return None
    facts = read_json(file)
    counts = facts.get("counts") or {}
    examples = (counts.get("examples") or {}).get(task) if task else None
    sheet = _sheet(folder / "datasheet.json", counts)
    return CohortFacts(
        facts.get("text"),
        _by_split(counts.get("patients")),
        _by_split(examples),
        _ages(sheet),
        _categories(sheet),
        facts.get("minimum_count"),
    )


def _notes_folder(recipe: Mapping[str, Any]) -> Path | None:
    for key in ("notes", "instructions", "preferences"):
        if isinstance(recipe.get(key), str):
            return Path(recipe[key])
    if isinstance(recipe.get("examples"), str):
        return Path(recipe["examples"]).parent.parent
    return None


def _by_split(counts: Any) -> dict[str, str]:
    if not isinstance(counts, Mapping):
        return {}
    return {split: shown_count(counts[split]) for split in SPLITS if isinstance(counts.get(split), int)}


def _sheet(file: Path, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cohort of a data sheet that is of these Notes and hides small cells; nothing of any other."""
    try:
        sheet = read_json(file)
    except (OSError, ValueError):
        return {}
    patients = (sheet.get("counts") or {}).get("patients") or {}
    same = all(patients.get(split) == (counts.get("patients") or {}).get(split) for split in SPLITS)
    hides = isinstance(sheet.get("small_cells"), int) and sheet["small_cells"] >= SMALLEST
    return (sheet.get("cohort") or {}) if same and hides else {}


def _ages(sheet: Mapping[str, Any]) -> dict[str, list[float]]:
    found = {}
    for split, age in ((sheet.get("measures") or {}).get("age") or {}).items():
        if split in SPLITS and isinstance(age.get("known"), int) and age["known"] >= SMALLEST:
            found[split] = [float(age[name]) for name in ("median", "p25", "p75")]
    return found


def _categories(sheet: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return values of attributes; one that few have in every split is not named at all."""
    found = {}
    for attribute, rows in (sheet.get("categories") or {}).items():
        if attribute not in _ATTRIBUTES:
            continue
        shown = [
            {"value": str(row["value"]), **{split: str(row[split]) for split in SPLITS}}
            for row in rows[:_MOST_VALUES]
            if any(str(row[split]) not in (SMALL, "0", "hidden") for split in SPLITS)
        ]
        if shown:
            found[attribute] = shown
    return found
