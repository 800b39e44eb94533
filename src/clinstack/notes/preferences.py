"""The table of preference pairs: a prompt, the answer that is preferred and the one that is not.

A pair that was made from instructions has its note and its question too; a stack then reads them with its own prompt
around them, and ``prompt`` is only what another program may read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import write_json
from clinstack.notes.row_batches import batches, check_columns
from clinstack.notes.splits import SPLITS, assign_splits, splits_of

if TYPE_CHECKING:
    from clinstack.notes.attrition import Attrition
    from clinstack.notes.prepared import PreparedFolder

COLUMNS = ("example_id", "patient_id", "prompt", "chosen", "rejected")
"""Of the table, all of them text."""
OPTIONAL = ("note", "question", "task", "chosen_from", "rejected_from")
"""Text, empty where nobody knows: what the prompt is made of, and whose answers the two are."""
FOLDER = "preferences"
_SCHEMA = pa.schema([*((name, pa.string()) for name in (*COLUMNS, *OPTIONAL)), ("margin", pa.float64())])


@dataclass(frozen=True)
class Preferences:
    """Preference pairs of one split, column by column.

    ``notes`` and ``questions`` are None where a pair has a prompt only; both are there or neither.
    """

    example_ids: list[str] = field(default_factory=list)
    patient_ids: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    notes: list[str | None] = field(default_factory=list)
    questions: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.example_ids)

    def at(self, places: Sequence[int]) -> Preferences:
        """Return the rows at ``places``, in that order."""
        columns = (
            self.example_ids,
            self.patient_ids,
            self.prompts,
            self.chosen,
            self.rejected,
            self.notes,
            self.questions,
        )
        return Preferences(*([column[place] for place in places] for column in columns))  # type: ignore[arg-type]


def preference_files(folder: Path) -> list[Path]:
    """Return the tables of pairs and, where it stands beside them, of their patients' splits.

    Raises
    ------
    InputError
        If there are none.
    """
    files = _tables(folder)
    splits = folder / "splits.parquet"
    return [*files, splits] if splits.is_file() else files


def _tables(folder: Path) -> list[Path]:
    files = sorted((folder / FOLDER).glob("*.parquet"))
    if not files:
        raise InputError(
            f"preferences: {folder} has no {FOLDER}/*.parquet; name a folder written by `clinstack prepare "
            "preferences`."
        )
    return files


def read_preferences(folder: Path, required: Sequence[str] = SPLITS) -> dict[str, Preferences]:
    """Read pairs, split by patient: by ``splits.parquet``, or by a hash of the patient id where it is missing.

    Parameters
    ----------
    required : sequence of str
        Splits that must have pairs; the others may be empty.

    Raises
    ------
    InputError
        If a table or a column is missing or of another type, a field is empty, both answers of a pair are the same, an
        example id stands twice, a patient has no split, or a required split has no pairs.
    """
    rows = Preferences()
    seen: dict[str, str] = {}
    texts: dict[str, str] = {}
    for file in _tables(folder):
        names = _columns_of(file)
        for first, batch in batches(file, names):
            values = {name: batch[name].to_pylist() for name in names}
            for at in range(batch.num_rows):
                where = f"{file}, row {first + at + 1}"
                _check_row({name: values[name][at] for name in names}, where)
                name = values["example_id"][at]
                if name in seen:
                    raise InputError(f"{where}: the example_id {name} also stands in {seen[name]}; ids are unique.")
                seen[name] = where
            values["note"] = [_shared(texts, text) for text in values.get("note", [None] * batch.num_rows)]
            rows.notes.extend(values["note"])
            rows.questions.extend(values.get("question", [None] * batch.num_rows))
            targets = (rows.example_ids, rows.patient_ids, rows.prompts, rows.chosen, rows.rejected)
            for name, target in zip(COLUMNS, targets, strict=True):
                target.extend(values[name])
    split_of = splits_of(folder, sorted(set(rows.patient_ids)), "pairs")
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for place, patient in enumerate(rows.patient_ids):
        places[split_of[patient]].append(place)
    for split in required:
        if not places[split]:
            raise InputError(f"preferences: {folder} has no pairs of {split} patients; make pairs of more patients.")
    return {split: rows.at(found) for split, found in places.items()}


def _shared(texts: dict[str, str], text: str | None) -> str | None:
    """Return the text, equal ones as one string in memory; None for an empty one."""
    return texts.setdefault(text, text) if text else None


def _columns_of(file: Path) -> list[str]:
    """Return the columns to read, and refuse those that are missing or not text."""
    check_columns(file, COLUMNS)
    schema = pq.read_schema(file)
    names = [*COLUMNS, *(name for name in ("note", "question") if name in schema.names)]
    if len(names) == len(COLUMNS) + 1:
        other = "question" if names[-1] == "note" else "note"
        raise InputError(f"{file}: it has {names[-1]} without {other}; a stack's prompt is made of both.")
    for name in names:
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{file}: the column {name} holds {kind}; write it as text.")
    return names


def _check_row(row: dict[str, str | None], where: str) -> None:
    empty = next((name for name in COLUMNS if not row[name]), None)
    if empty is not None:
        raise InputError(f"{where}: {empty} is empty; fill it in, or drop the row.")
    if row["chosen"] == row["rejected"]:
        raise InputError(f"{where}: chosen and rejected are the same; drop the row.")
    if bool(row.get("note")) != bool(row.get("question")):
        raise InputError(f"{where}: it has only one of note and question; give both, or neither and a prompt.")


def write_preferences(
    prepared: PreparedFolder,
    rows: Sequence[dict[str, Any]],
    attrition: Attrition,
    facts: dict[str, Any],
    seed: int,
    splits: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write the pairs of a folder, its splits, its attrition and ``prepare.json``.

    Parameters
    ----------
    prepared : PreparedFolder
        The folder while it is written (`clinstack.notes.prepared.prepared_folder`).
    rows : sequence of dict
        With `COLUMNS`; `OPTIONAL` and ``margin`` where they are known.
    attrition : Attrition
        Why there are not more.
    facts : dict
        Of ``prepare.json``; at least ``source`` and ``synthetic``.
    seed : int
        Of the split by patient, where ``splits`` is not given.
    splits : dict of str to str, optional
        The split of each patient of the instructions that the pairs were made from: patients stay on their side.

    Returns
    -------
    dict
        The content of ``prepare.json``, with ``counts``: pairs, and the pairs and patients of each split.

    Raises
    ------
    InputError
        If no pair is left.
    """
    if not rows:
        kept = ", ".join(f"{step['step']}: {step['kept']:,}" for step in attrition.steps)
        raise InputError(f"No preference pair is left ({kept}); look at the source and what it leaves out.")
    target = prepared.folder / FOLDER
    target.mkdir()
    patients = sorted({row["patient_id"] for row in rows})
    split_of = assign_splits(patients, seed) if splits is None else {name: splits[name] for name in patients}
    in_splits = prepared.use_splits(split_of)
    pairs = Counter(split_of[row["patient_id"]] for row in rows)
    table = pa.Table.from_pylist([{name: row.get(name) for name in _SCHEMA.names} for row in rows], _SCHEMA)
    pq.write_table(table, target / "preferences.parquet", compression="zstd")
    by_split = {split: {"pairs": pairs[split], "patients": in_splits[split]} for split in SPLITS}
    write_json(target / "attrition.json", {"steps": attrition.steps, "splits": by_split})
    return prepared.finish({**facts, "seed": seed, "counts": {"pairs": len(rows), **by_split}})
