"""What a classifier reads of a note: it belongs to a trained stack, and stands in its stack.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from clinstack.recipe import FinetuneRecipe


@dataclass(frozen=True)
class Reading:
    """What a classifier reads of a note. The keys are those of `FinetuneRecipe`, and mean the same.

    Parameters
    ----------
    max_tokens : int
        The longest text, or the longest chunk of one, with the tokenizer's own tokens and the suffix.
    keep : {"beginning", "end", "both_ends", "sections", "chunks"}
        What of a longer note is read.
    suffix : str
        Written after every note, also a cut one, and after every chunk.
    beginning_share : float
        both_ends: the share of the room that the beginning has.
    max_chunks : int
        chunks: at most so many of a note.
    chunk_overlap : int
        chunks: tokens that a chunk shares with the one before it.
    chunk_pooling : {"mean", "max"}
        chunks: how the features of a note's chunks become one vector.
    """

    max_tokens: int = 512
    keep: str = "beginning"
    suffix: str = ""
    beginning_share: float = 0.25
    max_chunks: int = 8
    chunk_overlap: int = 0
    chunk_pooling: str = "mean"

    @classmethod
    def of(cls, recipe: FinetuneRecipe) -> Reading:
        """Return what a recipe says."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Reading:
        """Return what stands in a record among other keys; what it lacks has its default."""
        return cls(**{field.name: record[field.name] for field in fields(cls) if field.name in record})

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of stack.json."""
        return asdict(self)
