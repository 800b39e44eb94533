"""What every kind of membership attack makes of the two sides, whatever the stack is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Both = tuple[Scores, Scores]
"""Of the members, and of the non-members."""


@dataclass(frozen=True)
class Attacked:
    """The scores of all attacks on both sides; of a pair the members' come first.

    Parameters
    ----------
    unit : {"note", "answer", "example"}
        What has a score.
    ids, patient_ids : pair of sequences of str
    attacks : dict of str to pair of float64 arrays
        Higher is more likely a member.
    what : dict of str to str
        Each attack in a sentence.
    blind : dict of str to pair of float64 arrays
        The same of attacks that do not look at what was trained.
    relative : frozenset of str
        Attacks that compare each note with what another model, or other notes, make of it, so that what sets the two
        sides apart before any training is taken off.
    counts : pair of dicts
        Tokens that were scored and that were cut off.
    columns : dict of str to pair of arrays
        More figures of each note, for the table.
    remarks : list of str
        What a reader must know besides.
    """

    unit: str
    ids: tuple[Sequence[str], Sequence[str]]
    patient_ids: tuple[Sequence[str], Sequence[str]]
    attacks: dict[str, Both]
    what: dict[str, str]
    blind: dict[str, Both]
    relative: frozenset[str]
    counts: tuple[dict[str, int], dict[str, int]]
    columns: dict[str, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
