"""Notes to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError

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
    encoded = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    filler = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    end = tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
    room = max_tokens - len(end)
    if room < 1:
        raise InputError(f"suffix: it has {len(end)} tokens and leaves no room for notes in max_tokens {max_tokens}.")
    cut = sum(max(0, len(ids) - room) for ids in encoded)
    return [
        np.array([*(_part(ids, room, keep, tokenizer.bos_token_id) or [filler]), *end], dtype=np.int64)
        for ids in encoded
    ], cut


def _part(ids: list[int], room: int, keep: str, begin: int | None) -> list[int]:
    if keep == "beginning" or len(ids) <= room:
        return ids[:room]
    # A begin token stays in front, where models expect it.
    first = [token for token in ids[:1] if token == begin][:room]
    return [*first, *ids[len(ids) - room + len(first) :]]
