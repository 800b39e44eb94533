"""Splits by patient: a patient's notes are never on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

from clinstack.errors import InputError
from clinstack.notes.row_batches import batches

SPLITS = ("train", "validation", "test")
_SHARES = (0.7, 0.1)


def assign_splits(patient_ids: Iterable[str], seed: int) -> dict[str, str]:
    """Assign 70, 10 and 20 per cent of the patients to train, validation and test.

    Patients are ranked by the SHA-256 of ``<seed>:<patient id>``, so the result depends on the set of ids and the seed
    alone: not on their order, the tasks, or a library's random numbers.

    Returns
    -------
    dict of str to str
        The split of each patient, in the order of the ids.
    """
    ids = sorted(set(patient_ids))
    ranked = sorted(ids, key=lambda patient: (hashlib.sha256(f"{seed}:{patient}".encode()).digest(), patient))
    train = round(len(ranked) * _SHARES[0])
    validation = train + round(len(ranked) * _SHARES[1])
    split = dict.fromkeys(ranked[:train], SPLITS[0])
    split |= dict.fromkeys(ranked[train:validation], SPLITS[1])
    split |= dict.fromkeys(ranked[validation:], SPLITS[2])
    return {patient: split[patient] for patient in ids}


def splits_of(folder: Path, patients: Collection[str], of: str) -> dict[str, str]:
    """Return each patient's split: by ``splits.parquet`` in a folder of Notes, or by a hash of the id without it.

    Parameters
    ----------
    patients : collection of str
        Patients that must have a split.
    of : str
        What the patients are those of, for the message.

    Raises
    ------
    InputError
        If the table names another split, or lacks a patient.
    """
    path = folder / "splits.parquet"
    if not path.is_file():
        return assign_splits(patients, seed=0)
    split_of: dict[str, str] = {}
    for _, batch in batches(path, ("patient_id", "split")):
        names = (str(value) for value in batch["patient_id"].to_pylist())
        split_of.update(zip(names, batch["split"].to_pylist(), strict=True))
    foreign = next((split for split in split_of.values() if split not in SPLITS), None)
    if foreign is not None:
        raise InputError(f"{path}: the split {foreign!r} is none of {', '.join(SPLITS)}.")
    unknown = next((patient for patient in patients if patient not in split_of), None)
    if unknown is not None:
        raise InputError(f"{path}: the patient {unknown} of the {of} is not in it.")
    return split_of
