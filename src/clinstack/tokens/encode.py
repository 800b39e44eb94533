"""Notes to token ids."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.tokens.documents import Documents, Tokens
from clinstack.tokens.shorten import Span, importance, keep_sections


class TextEncoder:
    """Turns texts into token ids without special tokens; a fast tokenizer works on all cores and releases Python.

    Attributes
    ----------
    fingerprint : str
        Hash of everything that decides which tokens a text becomes.
    dtype : numpy.dtype
        uint16 where every token id fits, else uint32.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._fast: Any = None
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            identity = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), _model_hash(tokenizer)]
        else:
            # A copy: calls of the tokenizer leave truncation and padding behind, also in what it would be hashed by.
            self._fast = type(backend).from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
            self._fast.encode_special_tokens = backend.encode_special_tokens
            identity = [self._fast.to_str(), backend.encode_special_tokens]
        self.fingerprint = "sha256:" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        largest = max(tokenizer.get_vocab().values(), default=0)
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)

    def encode(self, texts: Sequence[str]) -> Sequence[Any]:
        """Return the encodings, for `ids`; the slow part."""
        if self._fast is not None:
            encodings: Sequence[Any] = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
            return encodings
        # Without "verbose" the tokenizer would warn about texts longer than the model; packing splits them.
        ids: Sequence[Any] = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def ids(self, encodings: Sequence[Any]) -> list[NDArray[Any]]:
        """Return the token ids of each text, in `dtype`."""
        if self._fast is not None:
            return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]
        return [np.array(ids, dtype=self.dtype) for ids in encodings]


def _model_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    file = Path(str(getattr(tokenizer, "vocab_file", "")))
    return sha256_file(file) if file.is_file() else ""


def document_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what stands around a document that is read whole: its begin and end tokens, as far as there are any."""
    before = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    after = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return before, after


def own_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what the tokenizer itself puts before and after a text (Llama's: a begin token, and no end token).

    Raises
    ------
    InputError
        If it does not leave the text's tokens as they are between them.
    """
    whole: list[int] = tokenizer("the patient", verbose=False)["input_ids"]
    text: list[int] = tokenizer("the patient", add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    raise InputError(
        "layout: this base's tokenizer changes a text between its special tokens; take packed or bucketed."
    )


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Documents:
    """Encode whole documents for language modelling: begin token, text, end token, as far as the tokenizer has them.

    Nothing is cut. For texts that fit in memory; `clinstack.tokens.store` is for those that do not.
    """
    encoder = TextEncoder(tokenizer)
    return Documents.of(encoder.ids(encoder.encode(texts)), *document_ends(tokenizer))


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
