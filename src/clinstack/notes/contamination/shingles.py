"""Texts to sets of word shingles, so that two texts can be compared whatever their case, blanks and placeholders.

A shingle is a run of ``SHINGLE_WORDS`` words; the *resemblance* of two texts is the Jaccard index of their shingle
sets, and the *containment* of A in B is the share of A's shingles that B has (Broder 1997, "On the resemblance and
containment of documents"). Shingles are kept as 64-bit hashes: among a million distinct shingles the chance that any
two collide is about 3 in 100 million, so set sizes counted on hashes are exact for every practical purpose.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SHINGLE_WORDS = 3
"""One changed word spoils three shingles: with 5 % of the words changed, 86 % of the shingles stay."""
_PLACEHOLDERS = (
    r"\[\*\*[^\[\]]*\*\*\]"  # MIMIC-III: [**Known lastname 123**]
    # MIMIC-III's placeholders whose brackets `prepare` has taken away: the same words in every note, and never in
    # MIMIC-IV's version of it, which has ___ (no word, so it does not count anyway).
    r"|\b[12]\d{3}-\d{1,2}-\d{1,2}\b"
    r"|\b(?:known\s+|doctor\s+|female\s+|male\s+)?(?:first|last)\s?name\d*\b(?:\s*\([a-z0-9]+\))?(?:\s+\d+)?"
    r"|\bname\d*\s+\((?:md|ni|nameis|pre|stitle|un|namepattern\d+)\)(?:\s+\d+)?"
    r"|\binitials?\s+\(namepattern\d+\)(?:\s+\d+)?"
    r"|\bhospital\d+(?:\s+\d+)?|\bhospital\s+(?:ward|unit)\s+name\s*\d*|\bwardname\s*\d*"
    r"|\b(?:telephone/fax|md number|numeric identifier|date range|location|month/day|clip number|job number)"
    r"\s?\([a-z0-9]+\)(?:\s+\d+)?"
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_PLACES = tuple(np.uint64(value) for value in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93))
_IS_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of a text: enough to compare it, not enough to read it.

    Attributes
    ----------
    digest : bytes
        128 bits that are equal for texts with the same words in the same order.
    words : int
        Number of words.
    shingles : numpy.ndarray
        Shape (distinct shingles,), uint64, ascending.
    """

    digest: bytes
    words: int
    shingles: np.ndarray[Any, np.dtype[np.uint64]]


def fingerprints(texts: pa.Array) -> list[Fingerprint]:
    """Return the fingerprint of each text; a null is an empty text.

    Case, punctuation, blanks, and the placeholders of de-identification do not count. Everything is vectorised over
    the texts of the call: pass batches of about a megabyte.

    Parameters
    ----------
    texts : pyarrow.Array
        Of strings, shape (texts,).
    """
    if len(texts) == 0:
        return []
    clean = pc.fill_null(texts.cast(pa.large_string()), "")
    clean = pc.replace_substring_regex(pc.utf8_lower(clean), pattern=_PLACEHOLDERS, replacement=" ")
    # A blank after each text keeps the words of neighbours apart in the joint buffer.
    clean = pc.binary_join_element_wise(clean, pa.scalar("", pa.large_string()), pa.scalar(" ", pa.large_string()))
    offsets = np.frombuffer(clean.buffers()[1], np.int64)[clean.offset : clean.offset + len(clean) + 1]
    data = np.frombuffer(clean.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    words, starts = _word_hashes(data)
    bounds = np.searchsorted(starts, offsets - offsets[0])
    shingles = _mixed(_runs_of_words(words)) if len(words) >= SHINGLE_WORDS else np.empty(0, np.uint64)
    result = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = np.unique(shingles[begin : max(begin, end - SHINGLE_WORDS + 1)])
        digest = hashlib.blake2b(words[begin:end].tobytes(), digest_size=16).digest()
        result.append(Fingerprint(digest, end - begin, own))
    return result


def _runs_of_words(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return one number for each run of ``SHINGLE_WORDS`` word hashes, in which the order of the words counts."""
    runs = len(words) - SHINGLE_WORDS + 1
    total = np.zeros(runs, np.uint64)
    for place, factor in enumerate(_PLACES):
        total += words[place : place + runs] * factor
    return total


def common(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> int:
    """Return how many values two ascending arrays of distinct values share."""
    if len(first) > len(second):
        first, second = second, first
    if len(first) == 0:
        return 0
    places = np.searchsorted(second, first)
    places[places == len(second)] = 0
    return int(np.count_nonzero(second[places] == first))


def _word_hashes(data: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the hash and the first byte's place of each word: a polynomial over its bytes, modulo 2^64."""
    is_word = _IS_WORD[data]
    edges = np.flatnonzero(np.diff(is_word.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) == 0:
        return np.empty(0, np.uint64), starts
    place = np.arange(len(data), dtype=np.int64) - np.repeat(
        np.concatenate(([0], starts)), np.diff(np.concatenate(([0], starts, [len(data)])))
    )
    longest = int((ends - starts).max())
    powers = np.cumprod(np.full(longest, _MULTIPLIER), dtype=np.uint64)
    values = np.where(is_word, data.astype(np.uint64) + np.uint64(1), np.uint64(0))
    values *= powers[np.minimum(place, longest - 1)]
    return _mixed(np.add.reduceat(values, starts)), starts


def _mixed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Spread each 64-bit value over all bits, one to one (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = values ^ (values >> np.uint64(31))
    return mixed
