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
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, suffix: str = ""
) -> tuple[list[Tokens], int]:
    """Encode texts for classification, as the tokenizer does by itself; longer ones keep their beginning.

    Parameters
    ----------
    suffix : str
        Its tokens end every row, also one that was cut.

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
    return [np.array([*(ids[:room] or [filler]), *end], dtype=np.int64) for ids in encoded], cut
