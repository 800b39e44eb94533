"""An attack that never looks at the stack: do the words alone tell members from non-members?

Where they do, the two sides were not drawn from the same notes at random (other years, other wards), and every attack
on the stack is measured partly by that. Das et al. 2024, "Blind Baselines Beat Membership Inference Attacks for
Foundation Models", found published benchmarks on which such a blind attack beats all others; Duan et al. 2024, "Do
Membership Inference Attacks Work on Large Language Models?", found it where the sides differ in time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


def word_scores(
    members: Iterable[NDArray[np.int64]],
    non_members: Iterable[NDArray[np.int64]],
    member_patients: Sequence[str],
    non_member_patients: Sequence[str],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how much each note's tokens look like a member's, to one who knows the other notes' sides.

    Naive Bayes on which tokens occur, smoothed by one (Manning et al. 2008, "Introduction to Information Retrieval",
    section 13.2, on whether and not how often): the mean log-ratio of a note's tokens, from the notes of other patients
    only, in five folds by a hash of the patient.

    Parameters
    ----------
    members, non_members : iterable of int64 arrays
        Tokens of each note; gone through once.
    member_patients, non_member_patients : sequence of str

    Returns
    -------
    members, non_members : float64 arrays [notes of the side]
        Higher is more likely a member; 0 for a note without tokens.
    """
    sets = [[np.unique(note).astype(np.int32) for note in notes] for notes in (members, non_members)]
    vocabulary = 1 + max((int(tokens[-1]) for side in sets for tokens in side if len(tokens)), default=0)
    counts = np.zeros((2, FOLDS, vocabulary))
    folds = [[_fold(patient) for patient in patients] for patients in (member_patients, non_member_patients)]
    for side in (0, 1):
        for fold, tokens in zip(folds[side], sets[side], strict=True):
            counts[side, fold, tokens] += 1
    others = counts.sum(axis=1, keepdims=True) - counts + 1
    chances = np.log(others) - np.log(others.sum(axis=2, keepdims=True))
    ratios = chances[0] - chances[1]
    scored = [
        np.array([ratios[fold, tokens].mean() if len(tokens) else 0.0 for fold, tokens in zip(*side, strict=True)])
        for side in zip(folds, sets, strict=True)
    ]
    return scored[0], scored[1]


def _fold(patient: str) -> int:
    return hashlib.sha256(patient.encode()).digest()[0] % FOLDS
