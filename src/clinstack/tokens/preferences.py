"""Preference pairs as tokens: one prompt, two answers, in the same words as in instruction tuning.

Both answers of a pair follow the same prompt, token for token: a note is cut as much as the longer answer needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from clinstack.notes.preferences import Preferences
from clinstack.tokens.encode import TextEncoder, document_ends
from clinstack.tokens.prompts import Prompt, encode_answers, encode_prompts

_ANY_LENGTH = 1 << 40
_LEAST = 16
"""Tokens of a note that is cut must be left at least; else the answer would be about nothing."""


@dataclass(frozen=True)
class Pair:
    """One prompt's two answers in tokens.

    Parameters
    ----------
    prompt, chosen, rejected : list of int
        The answers with their end token.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of both rows, without filler."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer row."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class EncodedPreferences:
    """The pairs of a split that fit.

    Parameters
    ----------
    pairs : list of Pair
    kept : Preferences
        Whose they are, in the same order.
    report : dict
        ``pairs``, ``too_long`` (pairs that were left out), ``tokens``, and ``prompts``: what notes lost, as
        `clinstack.tokens.prompts.encode_prompts` reports it.
    """

    pairs: list[Pair]
    kept: Preferences
    report: dict[str, Any]


def encode_preferences(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, rows: Preferences, max_tokens: int, answer_tokens: int = 0
) -> EncodedPreferences:
    """Encode pairs whose prompt and longer answer have at most ``max_tokens`` together.

    A prompt with a note leaves at least ``answer_tokens`` to its answers, so that a long note is cut as it is where the
    answer is not known yet.

    A pair with note and question is read as in instruction tuning, with ``prompt`` around them. One that has a prompt
    only is read as it stands, after the begin token of plain text.
    """
    made = [place for place, note in enumerate(rows.notes) if note is not None]
    plain = [place for place, note in enumerate(rows.notes) if note is None]
    found: dict[int, Pair] = {}
    report: dict[str, Any] = {}
    if made:
        found, report = _made_prompts(tokenizer, prompt, rows, made, max_tokens, answer_tokens)
    if plain:
        found |= _plain_prompts(tokenizer, prompt, rows, plain, max_tokens)
    places = sorted(found)
    pairs = [found[place] for place in places]
    counts = {
        "pairs": len(pairs),
        "too_long": len(rows) - len(pairs),
        "tokens": sum(pair.tokens for pair in pairs),
    }
    return EncodedPreferences(pairs, rows.at(places), {**counts, **({"prompts": report} if report else {})})


def _made_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    rows: Preferences,
    places: Sequence[int],
    max_tokens: int,
    answer_tokens: int,
) -> tuple[dict[int, Pair], dict[str, Any]]:
    notes = [str(rows.notes[place]) for place in places]
    questions = [str(rows.questions[place]) for place in places]
    chosen, rejected = _answers(tokenizer, prompt, rows, places)
    rooms = [max_tokens - max(answer_tokens, *map(len, both)) for both in zip(chosen, rejected, strict=True)]
    whole = encode_prompts(tokenizer, prompt, notes, questions, _ANY_LENGTH).ids
    bare = encode_prompts(tokenizer, prompt, [""] * len(notes), questions, _ANY_LENGTH).ids
    fit = [
        at
        for at, room in enumerate(rooms)
        if len(whole[at]) <= room or len(bare[at]) + min(_LEAST, len(whole[at]) - len(bare[at])) <= room
    ]
    encoded = encode_prompts(
        tokenizer,
        prompt,
        [notes[at] for at in fit],
        [questions[at] for at in fit],
        [rooms[at] for at in fit],
        names=[rows.example_ids[places[at]] for at in fit],
    )
    pairs = {places[at]: Pair(ids, chosen[at], rejected[at]) for at, ids in zip(fit, encoded.ids, strict=True)}
    return pairs, encoded.report


def _plain_prompts(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, rows: Preferences, places: Sequence[int], max_tokens: int
) -> dict[int, Pair]:
    encoder = TextEncoder(tokenizer)
    before = [] if prompt.chat_template is not None else document_ends(tokenizer)[0]
    prompts = encoder.ids(encoder.encode([rows.prompts[place] for place in places]))
    pairs = {}
    for blank in (False, True):
        group = [at for at, place in enumerate(places) if rows.prompts[place][-1:].isspace() == blank]
        # Whether an answer begins with a blank of its own depends on the end of the text before it.
        ending = prompt if prompt.chat_template is not None else Prompt("{note}{question}", cue="\n" if blank else "")
        answers = _answers(tokenizer, ending, rows, [places[at] for at in group])
        for at, chosen, rejected in zip(group, *answers, strict=True):
            pair = Pair([*before, *prompts[at].tolist()], chosen, rejected)
            if pair.longest <= max_tokens:
                pairs[places[at]] = pair
    return pairs


def _answers(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, rows: Preferences, places: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]]:
    texts = [rows.chosen[place] for place in places] + [rows.rejected[place] for place in places]
    encoded = encode_answers(tokenizer, prompt, texts)
    return encoded[: len(places)], encoded[len(places) :]
