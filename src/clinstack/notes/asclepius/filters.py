"""The filters of the published Asclepius pipeline: what a language model says of itself is no instruction.

They are those of ``make_instruction_dataset.py`` in starmpcc/Asclepius, which drops a row whose note, question or
answer holds one of its phrases, in small letters or capitals, and a row whose answer ends in a question mark.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow.compute as pc

if TYPE_CHECKING:
    import pyarrow as pa

PHRASES = (
    "AI language",
    "language model",
    "clinical language",
    "recognition model",
    "extraction model",
    "summarization model",
    "clinical model",
    "generation model",
    "AI model",
    "NER model",
    "the model",
)
_PATTERN = "|".join(map(re.escape, PHRASES))


def has_phrase(rows: pa.Table) -> pa.ChunkedArray:
    """Return for each row whether its note, question or answer holds one of `PHRASES`."""
    found = [
        pc.match_substring_regex(rows[name], _PATTERN, ignore_case=True) for name in ("note", "question", "answer")
    ]
    return pc.or_(pc.or_(found[0], found[1]), found[2])


def answer_asks(rows: pa.Table) -> pa.ChunkedArray:
    """Return for each row whether its answer ends in a question mark."""
    return pc.ends_with(pc.utf8_rtrim_whitespace(rows["answer"]), "?")
