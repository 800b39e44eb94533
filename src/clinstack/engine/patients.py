"""Which rows or examples are of which patient, and how they lie in a forward pass over several patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clinstack.engine.pieces import ROW_TOKENS
from clinstack.tokens.layout import NoteRows
from clinstack.tokens.pack import Rows, Segments, pack_segments
from clinstack.tokens.texts import EncodedTexts


@dataclass(frozen=True)
class PatientItems:
    """The items of each patient: rows of notes, or examples. Make it with `of`.

    Parameters
    ----------
    items : int64 array [items]
        Patient by patient.
    offsets : int64 array [patients + 1]
        Those of patient ``i`` are ``items[offsets[i] : offsets[i + 1]]``.
    """

    items: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, owners: NDArray[np.int64]) -> PatientItems:
        """Return the items of each patient from the number of each item's patient; numbers without items are left out.

        Parameters
        ----------
        owners : int64 array [items]
        """
        order = np.argsort(owners, kind="stable").astype(np.int64)
        _, counts = np.unique(owners, return_counts=True)
        return cls(order, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, patient: int) -> NDArray[np.int64]:
        return self.items[self.offsets[patient] : self.offsets[patient + 1]]


@dataclass(frozen=True)
class PassShape:
    """How items lie in one forward pass.

    Parameters
    ----------
    rows, width : int
        Of the tokens that the layers read.
    positions : tuple of int
        How many positions each item has, in reading order over all rows; their sum is ``rows * width``.
    """

    rows: int
    width: int
    positions: tuple[int, ...]


def patient_numbers(patient_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return a number for each entry, the same where the patient is the same."""
    _, numbers = np.unique(np.asarray(patient_ids, dtype=object).astype(str), return_inverse=True)
    return numbers.astype(np.int64).reshape(-1)


def rows_by_patient(rows: NoteRows, patient_ids: Sequence[str]) -> tuple[NoteRows, PatientItems]:
    """Lay documents out anew so that no row has documents of two patients, and return the rows of each patient.

    Parameters
    ----------
    patient_ids : sequence of str
        Of each document.
    """
    segments = rows.segments
    owners = patient_numbers(patient_ids)[segments.document]
    if rows.layout != "packed":  # a segment in each row
        return rows, PatientItems.of(owners[rows.rows.segments])
    offsets: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    placed: list[NDArray[np.int32]] = []
    owners_of_rows: list[NDArray[np.int64]] = []
    begin = 0
    of_patients = PatientItems.of(owners)
    for patient in range(len(of_patients)):
        chosen = of_patients[patient]
        own = Segments(segments.document[chosen], segments.start[chosen], segments.stop[chosen])
        packed = pack_segments(own, rows.context)
        offsets.append(begin + packed.offsets[1:])
        placed.append(chosen[packed.segments].astype(np.int32))
        owners_of_rows.append(np.full(len(packed), patient, dtype=np.int64))
        begin += len(chosen)
    laid_out = replace(rows, rows=Rows(np.concatenate(offsets), np.concatenate(placed)))
    return laid_out, PatientItems.of(np.concatenate(owners_of_rows))


def shape_of_rows(rows: NoteRows, items: Sequence[int]) -> PassShape:
    """Return how rows lie in a forward pass over them: one below the other, as wide as the fullest."""
    width = rows.context if rows.layout == "padded" else int(rows.fills[items].max())
    return PassShape(len(items), width, (width,) * len(items))


class ExampleShapes:
    """How examples of a classifier lie in a forward pass.

    Parameters
    ----------
    encoded : EncodedTexts
    flat : bool
        Whether pieces follow one another in a row, as `clinstack.engine.pieces.reads_flat` says.
    """

    def __init__(self, encoded: EncodedTexts, *, flat: bool) -> None:
        lengths = np.array([len(piece) for piece in encoded.pieces], dtype=np.int64)
        self._pieces = np.bincount(encoded.owners)
        first = np.cumsum(self._pieces) - self._pieces
        self._tokens = np.add.reduceat(lengths, first)
        self._longest = np.maximum.reduceat(lengths, first)
        self._flat = flat

    def shape(self, items: Sequence[int]) -> PassShape | None:
        """Return how examples lie in a forward pass; None where they take more than one."""
        if not self._flat:
            width = int(self._longest[items].max())
            pieces = self._pieces[items]
            return PassShape(int(pieces.sum()), width, tuple((pieces * width).tolist()))
        tokens = self._tokens[items]
        total = int(tokens.sum())
        return PassShape(1, total, tuple(tokens.tolist())) if total <= ROW_TOKENS else None
