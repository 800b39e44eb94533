"""What keeps a text out of a data set: the filters of Asclepius, lengths, grounding, near-duplicates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from clinstack.notes.contamination.overlap import PERMUTATIONS, bands, signatures
from clinstack.notes.contamination.shingles import Fingerprint, common, fingerprints
from clinstack.notes.grounding import check_grounding, is_refusal

PHRASES = (
    "ai language",
    "language model",
    "clinical language",
    "recognition model",
    "extraction model",
    "summarization model",
    "clinical model",
    "generation model",
    "ai model",
    "ner model",
    "the model",
)
"""Rows with one of these, in any case, are left out by Asclepius (make_instruction_dataset.py)."""
_THOUGHTS = re.compile(r"^\s*<think>.*?(?:</think>|\Z)", re.DOTALL)


def without_thoughts(text: str | None) -> str:
    """Return a reply without blanks at its ends, and without the thoughts that reasoning models write before it.

    A server with a parser for them (vLLM's ``--reasoning-parser``) takes them out itself. Thoughts without an end leave
    nothing: the limit of tokens cut them off.
    """
    return _THOUGHTS.sub("", text or "", count=1).strip()


def speaks_of_a_model(text: str) -> bool:
    """Whether a text has one of `PHRASES`."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in PHRASES)


def ends_with_question(answer: str) -> bool:
    """Whether an answer asks back, by its last character."""
    return answer.rstrip().endswith("?")


def missing_facts(answer: str, note: str, question: str) -> dict[str, int]:
    """Return how many numbers, dates and drugs of an answer the note does not have, by kind.

    An answer that the note does not tell may name what the question asked for: it is held against both.
    """
    return check_grounding(answer, f"{note}\n{question}" if is_refusal(answer) else note).kinds


class SeenTexts:
    """Finds near-duplicates of earlier texts in a stream: MinHash LSH proposes, the shingle sets decide.

    A text has several parts (of a note one; of a row note, question and answer). It repeats an earlier one if the
    Jaccard index of the sets of three-word shingles (Broder 1997) reaches the threshold in each part; of a part with
    fewer than three words the words must be equal.

    Parameters
    ----------
    threshold : float
        Over 0, at most 1.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._lsh: Any = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
        self._texts: list[tuple[Fingerprint, ...]] = []
        self._short: dict[bytes, list[int]] = {}

    def is_new(self, *parts: str) -> bool:
        """Whether no earlier text is like this one; if so, it is an earlier one from then on.

        The first part proposes, and should be the longest.
        """
        found = tuple(fingerprints(pa.array(parts)))
        signature = next(signatures(found[:1])) if len(found[0].shingles) else None
        found = tuple(map(_smaller, found))
        proposed = self._short.get(found[0].digest, []) if signature is None else self._lsh.query(signature)
        if any(self._alike(found, self._texts[place]) for place in proposed):
            return False
        if signature is None:
            self._short.setdefault(found[0].digest, []).append(len(self._texts))
        else:
            self._lsh.insert(len(self._texts), signature)
        self._texts.append(found)
        return True

    def _alike(self, one: Sequence[Fingerprint], other: Sequence[Fingerprint]) -> bool:
        return all(self._part_alike(a, b) for a, b in zip(one, other, strict=True))

    def _part_alike(self, one: Fingerprint, other: Fingerprint) -> bool:
        if one.digest == other.digest:
            return True
        if not len(one.shingles) or not len(other.shingles):
            return False
        shared = common(one.shingles, other.shingles)
        return shared >= self._threshold * (len(one.shingles) + len(other.shingles) - shared)


def _smaller(fingerprint: Fingerprint) -> Fingerprint:
    """Return a fingerprint of half the size: all earlier texts are remembered, and each is compared with a few only.

    Of a thousand shingles with 32 bits two collide once in 8,000 texts, which moves a resemblance by a thousandth.
    """
    return replace(fingerprint, shingles=np.unique(fingerprint.shingles.astype(np.uint32)))
