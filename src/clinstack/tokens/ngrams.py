"""Searching all notes for a few runs of tokens, in one pass that reads a piece of the store at a time.

Each place of a piece gets a hash of the ``n`` tokens that begin there (multilinear, modulo 2^64: Lemire and Kaser
2014, "Strongly universal string hashing is fast"); where it is that of a run that is looked for, the tokens themselves
are compared. Time grows with the tokens, memory does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clinstack.tokens.documents import Documents
from clinstack.tokens.notes import NoteTokens

_PIECE = 1 << 19
"""Tokens that are searched at once."""


class NgramSearch:
    """Runs of ``n`` tokens, each with the patient whose it is, that are looked for in other patients' notes.

    Parameters
    ----------
    ngrams : sequence of int arrays
        All of one length.
    patients : sequence of str
        Whose each is.

    Attributes
    ----------
    elsewhere : bool array [ngrams]
        Which of them stood in a note of another patient so far.
    """

    def __init__(self, ngrams: Sequence[NDArray[np.int64]], patients: Sequence[str]) -> None:
        self.elsewhere = np.zeros(len(ngrams), dtype=bool)
        self._ngrams = [np.asarray(ngram, dtype=np.int64) for ngram in ngrams]
        self._patients = list(patients)
        self._length = len(self._ngrams[0]) if self._ngrams else 0
        if any(len(ngram) != self._length for ngram in self._ngrams):
            raise ValueError("the runs that are looked for together have one length")
        random = np.random.default_rng(0)
        self._factors = random.integers(1, 1 << 63, size=self._length, dtype=np.uint64) | np.uint64(1)
        hashes = [int(self._hashes(ngram.astype(np.uint64))[0]) for ngram in self._ngrams]
        self._places: dict[int, list[int]] = {}
        for place, value in enumerate(hashes):
            self._places.setdefault(value, []).append(place)
        self._sorted = np.array(sorted(self._places), dtype=np.uint64)

    def read(self, notes: NoteTokens) -> None:
        """Look through notes; the tokens of one piece are in memory at a time."""
        if not self._ngrams:
            return
        patients = notes.index["patient_id"]
        for tokens, starts, numbers in _pieces(notes.documents, self._length):
            hashes = self._hashes(tokens.astype(np.uint64))
            near = np.searchsorted(self._sorted, hashes).clip(max=len(self._sorted) - 1)
            for at in np.flatnonzero(self._sorted[near] == hashes).tolist():
                note = int(np.searchsorted(starts, at, side="right")) - 1
                # A run that begins in one note and ends in the next stands in none.
                if note + 1 < len(starts) and at + self._length > starts[note + 1]:
                    continue
                found = tokens[at : at + self._length]
                whose = str(patients[int(numbers[note])])
                for place in self._places[int(hashes[at])]:
                    if whose != self._patients[place] and np.array_equal(self._ngrams[place], found):
                        self.elsewhere[place] = True

    def _hashes(self, tokens: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the hash of the run at each place where one can begin."""
        count = len(tokens) - self._length + 1
        result = np.zeros(max(count, 0), dtype=np.uint64)
        for shift, factor in enumerate(self._factors):
            result += (tokens[shift : shift + count] + np.uint64(1)) * factor
        return result


def _pieces(
    documents: Documents, shortest: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the tokens of a few documents, where each begins among them, and their numbers; without too short ones."""
    texts = documents.between((), ())
    wanted = np.flatnonzero(texts.count >= shortest)
    ends = np.cumsum(texts.count[wanted])
    first = 0
    while first < len(wanted):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _PIECE, side="right")))
        numbers = wanted[first:last]
        starts = ends[first:last] - texts.count[numbers] - done
        yield np.concatenate([texts[number] for number in numbers.tolist()]), starts, numbers
        first = last
