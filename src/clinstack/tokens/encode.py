"""Notes to token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.tokens.documents import Documents


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

    @property
    def knows_places(self) -> bool:
        """Whether encodings can say where in a text a token stands."""
        return self._fast is not None

    def encode(self, texts: Sequence[str], *, places: bool = False) -> Sequence[Any]:
        """Return the encodings, for `ids` and, where they are asked for, for `places`; the slow part."""
        if self._fast is not None:
            encode = self._fast.encode_batch if places else self._fast.encode_batch_fast
            encodings: Sequence[Any] = encode(list(texts), add_special_tokens=False)
            return encodings
        if not texts:
            return []
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

    def places(self, encoding: Any, tokens: range) -> NDArray[np.int64]:
        """Return the character of its text at which each of these tokens begins."""
        return np.array([begin for begin, _ in encoding.offsets[tokens.start : tokens.stop]], dtype=np.int64)


def _model_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    file = Path(str(getattr(tokenizer, "vocab_file", "")))
    return sha256_file(file) if file.is_file() else ""


def document_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what stands around a document that is read whole: its begin and end tokens, as far as there are any."""
    before = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    after = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return before, after


def own_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what the tokenizer itself puts before and after a text.

    Llama's puts a begin token before it, BERT's [CLS] before and [SEP] behind it, Qwen's nothing.

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
        "base: its tokenizer changes a text between its special tokens, so that texts cannot be cut to a length; "
        "take another base, or to pretrain the layout packed or bucketed."
    )


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Documents:
    """Encode whole documents for language modelling: begin token, text, end token, as far as the tokenizer has them.

    Nothing is cut. For texts that fit in memory; `clinstack.tokens.store` is for those that do not.
    """
    encoder = TextEncoder(tokenizer)
    return Documents.of(encoder.ids(encoder.encode(texts)), *document_ends(tokenizer))
