"""Which held-out texts does a text repeat? Two indexes propose, the exact shingle sets decide.

*Near-duplicates* (Jaccard of the shingle sets at or above the threshold) are proposed by MinHash LSH from the library
``datasketch``: 128 permutations, bands chosen so that 99 % are proposed (Broder 1997; Leskovec, Rajaraman and Ullman,
"Mining of massive datasets", chapter 3).

*Contained* texts (the share of the held-out text's shingles that the other text has) are out of MinHash's reach: an
admission text of 2 kB within a note of 10 kB has a Jaccard index of 0.2. They are proposed by a prefix filter
(Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007): a text that holds at least ``c`` of a held-out
text's ``n`` shingles holds at least ``m`` of any ``n - c + m`` of them. Only so many are indexed, the rarest, since the
rare ones are seldom found by chance. The filter misses nothing, whatever the texts are.

Every proposal is then verified on the whole sets, so what is reported holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clinstack.notes.contamination.shingles import Fingerprint, common

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
SEED = 1
_FEWEST_COMMON = 0.1
"""Share of a held-out text's shingles that must be met in the index before the pair is verified."""
_MOST_POSTINGS = 4_000_000
"""Index entries looked at together: bounds the memory of a batch."""


@dataclass(frozen=True)
class Overlap:
    """A text of a batch repeats a held-out text.

    Attributes
    ----------
    text, held : int
        Places in the batch and in the index.
    kind : str
        ``exact`` (the same words in the same order), ``near`` (``jaccard`` reaches the threshold) or ``contained``
        (``containment`` does).
    jaccard, containment : float
        Of the shingle sets, exactly; containment is the share of the held-out text's shingles that the text has.
    """

    text: int
    held: int
    kind: str
    jaccard: float
    containment: float


class HeldOutIndex:
    """An index over the distinct held-out texts, which a stream of other texts is held against.

    Memory grows with the held-out texts only, about 12 bytes a shingle and 2 kB a text, not with the stream.

    Parameters
    ----------
    held : sequence of Fingerprint
        Distinct texts with at least one shingle each.
    threshold : float
        Over 0, at most 1.
    """

    def __init__(self, held: Sequence[Fingerprint], threshold: float) -> None:
        self.threshold = threshold
        self._held = list(held)
        self._digests = {fingerprint.digest: place for place, fingerprint in enumerate(held)}
        self._needed = np.zeros(len(held), np.int64)
        self._index_prefixes()
        self._lsh: Any = None

    def search(self, batch: Sequence[Fingerprint], *, minhash: bool) -> list[Overlap]:
        """Return what the texts of a batch repeat, ordered by text and held-out text.

        Parameters
        ----------
        batch : sequence of Fingerprint
        minhash : bool
            Whether MinHash proposes too. It may where the texts are of like length, as examples are.
        """
        proposed = set(self._by_prefix(batch))
        if minhash:
            proposed.update(self._by_minhash(batch))
        for place, fingerprint in enumerate(batch):
            same = self._digests.get(fingerprint.digest)
            if same is not None:
                proposed.add((place, same))
        verified = (self._verified(place, batch[place], held) for place, held in sorted(proposed))
        return [overlap for overlap in verified if overlap is not None]

    def _verified(self, place: int, text: Fingerprint, held_place: int) -> Overlap | None:
        held = self._held[held_place]
        shared = common(text.shingles, held.shingles)
        jaccard = shared / (len(text.shingles) + len(held.shingles) - shared)
        containment = shared / len(held.shingles)
        if text.digest == held.digest:
            kind = "exact"
        elif jaccard >= self.threshold:
            kind = "near"
        elif containment >= self.threshold:
            kind = "contained"
        else:
            return None
        return Overlap(place, held_place, kind, jaccard, containment)

    def _index_prefixes(self) -> None:
        sizes = np.array([len(one.shingles) for one in self._held], np.int64)
        flat = np.concatenate([np.empty(0, np.uint64), *(one.shingles for one in self._held)])
        distinct, texts_with = np.unique(flat, return_counts=True)
        keys, owners = [], []
        for place, (one, size) in enumerate(zip(self._held, sizes.tolist(), strict=True)):
            least = math.ceil(self.threshold * size - 1e-9)
            met = min(max(1, math.ceil(_FEWEST_COMMON * size)), least)
            self._needed[place] = met
            rarity = texts_with[np.searchsorted(distinct, one.shingles)]
            prefix = one.shingles[np.argsort(rarity, kind="stable")[: size - least + met]]
            keys.append(prefix)
            owners.append(np.full(len(prefix), place, np.int32))
        all_keys = np.concatenate([np.empty(0, np.uint64), *keys])
        order = np.argsort(all_keys, kind="stable")
        self._keys, counts = np.unique(all_keys, return_counts=True)
        self._bounds = np.concatenate(([0], np.cumsum(counts)))
        self._owners = np.concatenate([np.empty(0, np.int32), *owners])[order]
        # Most shingles of a stream are not in the index: a table of bits by leading digits tells at a glance.
        digits = min(28, max(16, math.ceil(math.log2(len(self._keys) + 1)) + 4))
        self._shift = np.uint64(64 - digits)
        self._seen = np.zeros(1 << digits, bool)
        self._seen[self._keys >> self._shift] = True

    def _by_prefix(self, batch: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
        flat = np.concatenate([np.empty(0, np.uint64), *(one.shingles for one in batch)])
        places = np.repeat(np.arange(len(batch)), [len(one.shingles) for one in batch])
        perhaps = np.flatnonzero(self._seen[flat >> self._shift])
        found = np.searchsorted(self._keys, flat[perhaps])
        found[found == len(self._keys)] = 0
        hit = self._keys[found] == flat[perhaps] if len(self._keys) else np.zeros(0, bool)
        found, places = found[hit], places[perhaps[hit]]
        lengths = self._bounds[found + 1] - self._bounds[found]
        # Whole texts at a time, since the counts are by text.
        per_text = np.bincount(places, weights=lengths, minlength=len(batch))
        group = (np.cumsum(per_text) // _MOST_POSTINGS).astype(np.int64)[places]
        for start, end in _runs(group):
            some, ends = lengths[start:end], np.cumsum(lengths[start:end])
            offsets = np.arange(int(ends[-1])) - np.repeat(ends - some, some)
            owners = self._owners[np.repeat(self._bounds[found[start:end]], some) + offsets]
            pairs = np.repeat(places[start:end], some) * len(self._held) + owners
            codes, counts = _counted(pairs)
            for code in codes[counts >= self._needed[codes % len(self._held)]].tolist():
                yield divmod(code, len(self._held))

    def _by_minhash(self, batch: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
        if self._lsh is None:
            from datasketch import MinHashLSH

            self._lsh = MinHashLSH(num_perm=PERMUTATIONS, params=bands(self.threshold))
            for place, signature in enumerate(signatures(self._held)):
                self._lsh.insert(place, signature)
        for place, signature in enumerate(signatures(batch)):
            for held in self._lsh.query(signature):
                yield place, held


def bands(threshold: float) -> tuple[int, int]:
    """Return how many bands of how many rows propose a pair at the threshold with a chance of 99 % or more.

    What is proposed too much costs a verification only, what is missed is lost: so not the library's own choice, which
    weighs both and would miss 13 % at a threshold of 0.8.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        number = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** number >= 0.99:
            return number, rows
    return PERMUTATIONS, 1


def signatures(texts: Sequence[Fingerprint]) -> Iterator[MinHash]:
    """Yield the MinHash of each text, the same in every process."""
    from datasketch import MinHash

    halves = ((one.shingles & np.uint64(0xFFFFFFFF)).tolist() for one in texts)
    yield from MinHash.generator(halves, num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)


def _counted(codes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the distinct values in ascending order and how often each occurs; a table of all where it is not large."""
    lowest, span = int(codes.min()), int(codes.max() - codes.min()) + 1
    if span > 8 * len(codes):
        return np.unique(codes, return_counts=True)
    table = np.bincount(codes - lowest)
    distinct = np.flatnonzero(table)
    return distinct + lowest, table[distinct]


def _runs(values: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each run of equal values."""
    if len(values):
        cuts = (np.flatnonzero(np.diff(values)) + 1).tolist()
        yield from zip([0, *cuts], [*cuts, len(values)], strict=True)
