"""Splits by patient: a patient's notes are never on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

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
