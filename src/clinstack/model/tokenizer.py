"""A base's tokenizer, repaired where it has no begin, end or padding token.

Many bases ship without some of them: LLaMA has no padding, PMC-LLaMA names the empty text for begin, end and unknown
token (which transformers 5 cannot even open). What is missing is chosen among the tokens that the vocabulary has, by
their usual names and by ``config.json``; no token is added, so the embedding keeps its rows.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from clinstack.errors import InputError
from clinstack.model.config import load_config, vocabulary_size
from clinstack.model.families import encoder_of

if TYPE_CHECKING:
    from clinstack.model.base import Base

_ROLES = {"bos_token": "begin", "eos_token": "end", "unk_token": "unknown", "pad_token": "padding"}
_USUAL_NAMES = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[BOS]"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[EOS]"),
    "unk_token": ("<unk>", "[UNK]", "<|unk|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"),
}
_USUAL = frozenset(name for names in _USUAL_NAMES.values() for name in names)
_SPARE = ("<|endoftext|>", "<|reserved_special_token_0|>")
"""Special tokens that some bases have and do not read."""
SETTINGS_FILE = "tokenizer_config.json"
_WORDPIECE = ("bert", "distilbert", "electra")
"""Families whose tokenizer may be a ``vocab.txt`` alone."""


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Load a base's tokenizer and repair its special tokens; `tokenizer_repairs` says what was repaired.

    Raises
    ------
    InputError
        If the base has no tokenizer that transformers can open, none of its tokens could pad, or it makes ids for
        which the base has no embedding.
    """
    return _load(base)[0]


def tokenizer_repairs(base: Base) -> list[str]:
    """Return what `load_tokenizer` repairs or must be known about, one sentence each, for a person to read."""
    return _load(base)[1]


def _load(base: Base) -> tuple[PreTrainedTokenizerBase, list[str]]:
    config = load_config(base)
    casing = _casing(base, config)
    tokenizer = _open(base, casing)
    repairs = list(_repair(base, tokenizer, config))
    if casing.get("do_lower_case") is False:
        repairs.append(
            "The tokenizer's files do not say whether texts are lowered; its vocabulary has capitals, so they are not."
        )
    return tokenizer, repairs


def _casing(base: Base, config: PreTrainedConfig) -> dict[str, bool]:
    """Return whether a WordPiece tokenizer lowers texts, where its files leave it open.

    transformers lowers them then, and a cased vocabulary would be read as an uncased one without a word: many clinical
    BERT checkpoints are a cased ``vocab.txt`` alone.
    """
    vocabulary = base.folder / "vocab.txt"
    is_open = vocabulary.is_file() and not (base.folder / "tokenizer.json").is_file()
    if config.model_type not in _WORDPIECE or not is_open or "do_lower_case" in _file_values(base, SETTINGS_FILE):
        return {}
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return {"do_lower_case": not any(word != word.lower() for word in words if not word.startswith("["))}


def _open(base: Base, casing: dict[str, bool]) -> PreTrainedTokenizerBase:
    # None in place of the empty text: looking up the id of "" never ends when "" is the unknown token too.
    emptied: dict[str, Any] = {role: None for role in _ROLES if role in _empty_roles(base)}
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False, **emptied, **casing
        )
    except (ValueError, OSError, ImportError) as error:
        remedy = "the folder needs tokenizer.json or its architecture's own tokenizer files."
        if (base.folder / "tokenizer.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
            remedy = "it has tokenizer.model only, which needs sentencepiece: pip install sentencepiece."
        raise InputError(
            f"base: {base.name}: its tokenizer could not be opened ({type(error).__name__}); {remedy}"
        ) from None
    finally:
        transformers_logging.set_verbosity(before)
    return tokenizer


def _empty_roles(base: Base) -> set[str]:
    """Return the special tokens that the tokenizer's files name the empty text."""
    roles = set()
    for name in (SETTINGS_FILE, "special_tokens_map.json"):
        values = _file_values(base, name)
        for role in _ROLES:
            token = values.get(role)
            if (token.get("content") if isinstance(token, dict) else token) == "":
                roles.add(role)
    return roles


def _file_values(base: Base, name: str) -> dict[str, Any]:
    file = base.folder / name
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"base: {file} is damaged (not JSON).") from None
    return values if isinstance(values, dict) else {}


def _repair(base: Base, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Iterator[str]:
    rows = vocabulary_size(config)
    added = tokenizer.get_added_vocab()
    vocabulary = tokenizer.get_vocab()
    highest = max((id_ for token, id_ in vocabulary.items() if token not in added), default=-1)
    if highest >= rows:
        raise InputError(
            f"base: {base.name}: its tokenizer makes ids up to {highest}, its embedding has {rows} rows; "
            "the two are not of one model."
        )
    special = {token: id_ for token, id_ in vocabulary.items() if id_ < rows and (token in added or token in _USUAL)}
    for role, meaning in _ROLES.items():
        if encoder_of(config) is not None and role in ("bos_token", "eos_token"):
            continue  # encoders have [CLS] and [SEP] around a text instead
        named = getattr(tokenizer, role)
        if named is not None and vocabulary.get(named, rows) < rows:
            continue
        token = _choose(role, tokenizer, config, special)
        setattr(tokenizer, role, token)
        missing = f"no {meaning} token" if named is None else f"no embedding for its {meaning} token {named!r}"
        if token is not None:
            unread = ", which masks hide" if role == "pad_token" and token in _read(tokenizer) else ""
            yield f"The tokenizer has {missing}; {token!r} serves{unread}."
        elif role == "pad_token":
            raise InputError(
                f"base: {base.name}: its tokenizer has no padding, unknown or end token; "
                f"name one of its tokens as pad_token in {SETTINGS_FILE}."
            )
        elif named is not None:
            yield f"The tokenizer has {missing}; none is used."
        if role in ("bos_token", "eos_token") and token and _file_values(base, SETTINGS_FILE).get(f"add_{role}"):
            # Its file asks for this token around each text; transformers gave that up when there was none.
            setattr(tokenizer, f"add_{role}", True)
    beyond = sorted(token for token, id_ in added.items() if id_ >= rows)
    if beyond:
        yield f"The base has no embedding for {', '.join(beyond)}; a note that spells one out cannot be read."


def _read(tokenizer: PreTrainedTokenizerBase) -> set[str | None]:
    """Return the tokens that a document begins and ends with."""
    return {tokenizer.bos_token, tokenizer.eos_token}


def _choose(
    role: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, special: dict[str, int]
) -> str | None:
    """Return the token for a role: the configuration's, unless its name is another role's, else by the usual names.

    Configurations err: that of PMC-LLaMA calls ``<unk>`` (id 0) the begin and ``<s>`` (id 1) the end. A begin token
    equal to the end is not invented: bases such as Qwen read documents without one. What pads is not read as long as
    there is another token; GPT-2 and phi-2 have but one.
    """
    usual = [name for name in _USUAL_NAMES[role] if name in special]
    elsewhere = {name for other, names in _USUAL_NAMES.items() if other != role for name in names}
    by_id = {id_: token for token, id_ in special.items()}
    configured = getattr(config.get_text_config(), f"{role}_id", None)
    if isinstance(configured, list):
        configured = configured[0] if configured else None
    named = by_id.get(configured) if isinstance(configured, int) else None
    candidates = ([named] if named is not None and named not in elsewhere else []) + usual
    if role == "bos_token":
        candidates = [token for token in candidates if token != tokenizer.eos_token]
    if role == "pad_token":
        spare = [token for token in (*_SPARE, tokenizer.unk_token) if token in special]
        unread = [token for token in candidates + spare if token not in _read(tokenizer)]
        candidates = unread or [token for token in (tokenizer.eos_token, tokenizer.bos_token) if token is not None]
    return candidates[0] if candidates else None
