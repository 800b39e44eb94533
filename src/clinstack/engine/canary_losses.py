"""Losses of secrets given their prefix: what a canary's exposure is made of.

Only the secret is scored. The prefix is given to whoever asks, and a loss over both would mostly say how likely the
prefix is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from clinstack.engine.instruction_tuning import lay_out_pairs
from clinstack.engine.language_modelling import note_losses
from clinstack.errors import InputError
from clinstack.privacy.planting import common_beginning
from clinstack.tokens.encode import TextEncoder, document_ends
from clinstack.tokens.prompts import EncodedPairs, EncodedPrompts, encode_answers, encode_prompts

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.privacy.canaries import Canary

Encode = Callable[[Sequence[str]], list[list[int]]]


def secret_losses(
    stack: Stack,
    canaries: Sequence[Canary],
    others: Sequence[Sequence[str]],
    places_in: Literal["notes", "answers"],
    batch_size: int,
    description: str | None = None,
) -> list[NDArray[np.float64]]:
    """Return the losses of each canary's secret and of other secrets in its place, given the canary's prefix.

    In notes the prefix begins a document. In answers it begins the answer to a prompt without note and question, for
    who asks has neither.

    Parameters
    ----------
    stack : Stack
        As it is now: with its adapters, or with those switched off.
    canaries : sequence of Canary
    others : sequence of sequences of str
        Other secrets for each canary.
    places_in : {"notes", "answers"}
    batch_size : int
        Rows of the stack's context whose tokens are computed at once.
    description : str, optional
        Of the progress bar.

    Returns
    -------
    list of float64 arrays, shape (1 + others,)
        In nats, summed over the secret's tokens; the canary's own secret first.

    Raises
    ------
    InputError
        If the stack does not follow instructions, for secrets in answers.
    """
    begin, encode = _ways(stack, places_in)
    prompts: list[list[int]] = []
    secrets: list[list[int]] = []
    for canary, each in zip(canaries, others, strict=True):
        given, *texts = encode([canary.prefix, *(f"{canary.prefix} {secret}" for secret in (canary.secret, *each))])
        # All are scored from the same token on, also where a tokenizer joins the prefix to what follows.
        shared = min(common_beginning(given, text) for text in texts)
        prompts += [[*begin, *given[:shared]]] * len(texts)
        secrets += [text[shared:] for text in texts]
    context = max(len(prompt) + len(secret) for prompt, secret in zip(prompts, secrets, strict=True))
    pairs = EncodedPairs(EncodedPrompts(prompts, {}), secrets)
    rows = lay_out_pairs(stack, pairs, "bucketed", context)
    at_once = max(1, batch_size * stack.max_tokens // context)
    losses = note_losses(stack, rows, at_once, description)
    return np.split(losses, np.cumsum([1 + len(each) for each in others])[:-1])


def _ways(stack: Stack, places_in: str) -> tuple[list[int], Encode]:
    """Return the tokens before a prefix, and how texts from there on become tokens."""
    if places_in == "notes":
        encoder = TextEncoder(stack.tokenizer)
        return document_ends(stack.tokenizer)[0], lambda texts: [
            [int(token) for token in ids] for ids in encoder.ids(encoder.encode(texts))
        ]
    prompt = stack.prompt
    if prompt is None:
        raise InputError("canaries: they were planted in answers, but the stack has no prompt; audit the Run's stack.")
    begin = encode_prompts(stack.tokenizer, prompt, [""], [""], stack.max_tokens).ids[0]
    return begin, lambda texts: [ids[:-1] for ids in encode_answers(stack.tokenizer, prompt, texts)]
