"""Notes to token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.tokens.shorten import Span, importance, keep_sections

Tokens = NDArray[np.int64]


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    """Encode whole documents for language modelling: begin token, text, end token, as far as the tokenizer has them.

    Returns
    -------
    list of int64 arrays
        One for each text, of any length: nothing is cut.
    """
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # Without "verbose" the tokenizer would warn about documents longer than the model; packing splits them.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array([*before, *ids, *after], dtype=np.int64) for ids in encoded]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, suffix: str = "", keep: str = "beginning"
) -> tuple[list[Tokens], int]:
    """Encode texts for classification, as the tokenizer does by itself; longer ones are cut.

    Parameters
    ----------
    suffix : str
        Its tokens end every row, also one that was cut.
    keep : {"beginning", "end"}
        Which part of a longer text stays. The end stays behind the tokenizer's begin token.

    Returns
    -------
    tokens : list of int64 arrays
        At most ``max_tokens`` long, at least 1.
    cut : int
        How many tokens were cut off in all.

    Raises
    ------
    InputError
        If the suffix leaves no room for the text.
    """
    if keep not in ("beginning", "end"):
        raise ValueError(f"keep is {keep!r}; whole sections are kept by encode_sections")
    encoded = _encoded(tokenizer, texts)
    end, room = _suffix(tokenizer, suffix, max_tokens)
    cut = sum(max(0, len(ids) - room) for ids in encoded)
    parts = [_part(ids, room, keep, tokenizer.bos_token_id) for ids in encoded]
    return [_row(tokenizer, part, end) for part in parts], cut


class KeptSections(NamedTuple):
    """Texts as tokens of which whole sections were dropped.

    Parameters
    ----------
    tokens : list of int64 arrays
        At most ``max_tokens`` long, at least 1.
    cut : int
        How many tokens were dropped in all.
    cut_by_section : dict of str to int
        The same by the section's name, the most first; ``""`` is sections without a name.
    cut_inside : int
        Texts whose most important section alone was too long and was cut at its end.
    """

    tokens: list[Tokens]
    cut: int
    cut_by_section: dict[str, int]
    cut_inside: int


def encode_sections(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sections: Sequence[Sequence[Span]],
    priorities: Sequence[Sequence[str | None]],
    max_tokens: int,
    suffix: str = "",
) -> KeptSections:
    """Encode texts for classification; of longer ones whole sections are dropped, the least important first.

    Parameters
    ----------
    sections : sequence of sequence of Span
        The sections of each text; they cover it.
    priorities : sequence of sequence of str or None
        For each text the names of sections, the most important first; see `clinstack.tokens.shorten.keep_sections`.
    suffix : str
        Its tokens end every row, also one that was shortened.

    Raises
    ------
    InputError
        If the suffix leaves no room for the text.
    """
    encoded = _encoded(tokenizer, texts)
    end, room = _suffix(tokenizer, suffix, max_tokens)
    budget = room - len(_encoded(tokenizer, [""])[0])  # without what the tokenizer itself puts around a text
    long = [place for place, ids in enumerate(encoded) if len(ids) > room]
    pieces = {place: [texts[place][span.start : span.end] for span in sections[place]] for place in long}
    counted = iter(_lengths(tokenizer, [piece for place in long for piece in pieces[place]]))
    cut: Counter[str] = Counter()
    cut_inside = 0
    for place in long:
        spans = sections[place]
        lengths = [next(counted) for _ in spans]
        kept = keep_sections(spans, lengths, budget, priorities[place])
        ids = _joined_ids(tokenizer, pieces[place], kept)
        # Sections can have a token more together than apart.
        while len(ids) > room and len(kept) > 1:
            kept.remove(next(item for item in reversed(importance(spans, priorities[place])) if item in kept))
            ids = _joined_ids(tokenizer, pieces[place], kept)
        for item in set(range(len(spans))) - set(kept):
            cut[spans[item].name or ""] += lengths[item]
        if len(ids) > room:
            cut[spans[kept[0]].name or ""] += len(ids) - room
            cut_inside += 1
        encoded[place] = ids[:room]
    return KeptSections(
        [_row(tokenizer, ids, end) for ids in encoded], cut.total(), dict(cut.most_common()), cut_inside
    )


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def _lengths(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> list[int]:
    if not pieces:
        return []
    encoded = tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(ids) for ids in encoded]


def _joined_ids(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], kept: Sequence[int]) -> list[int]:
    return _encoded(tokenizer, ["".join(pieces[item] for item in kept).strip()])[0]


def _suffix(tokenizer: PreTrainedTokenizerBase, suffix: str, max_tokens: int) -> tuple[list[int], int]:
    """Return the tokens of the suffix, and how many it leaves for the text."""
    end: list[int] = tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
    room = max_tokens - len(end)
    if room < 1:
        raise InputError(f"suffix: it has {len(end)} tokens and leaves no room for notes in max_tokens {max_tokens}.")
    return end, room


def _row(tokenizer: PreTrainedTokenizerBase, ids: list[int], end: list[int]) -> Tokens:
    filler = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    return np.array([*(ids or [filler]), *end], dtype=np.int64)


def _part(ids: list[int], room: int, keep: str, begin: int | None) -> list[int]:
    if keep == "beginning" or len(ids) <= room:
        return ids[:room]
    # A begin token stays in front, where models expect it.
    first = [token for token in ids[:1] if token == begin][:room]
    return [*first, *ids[len(ids) - room + len(first) :]]
