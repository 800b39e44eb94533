"""What is asked and what comes back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from clinstack.recipe.endpoint import EndpointRecipe

BUDGET_SPENT = "not asked: the token budget is spent"
"""Failure of a request that would have gone beyond the token budget."""


@dataclass(frozen=True)
class Request:
    """One question to the endpoint.

    Parameters
    ----------
    key : str
        Stable identifier, such as that of a note; two requests that must both be answered differ in it.
    messages : tuple of (str, str)
        Role and content.
    seed : int
        Sent to the server, which may heed it or not; part of the request's identity in any case.
    max_tokens : int, optional
        Of the answer; the recipe's where not given.
    """

    key: str
    messages: tuple[tuple[str, str], ...]
    seed: int
    max_tokens: int | None = None

    def digest(self, recipe: EndpointRecipe) -> str:
        """Return the SHA-256 of all that decides the reply: key, model, messages, sampling and seed.

        Not of the address: the same model behind another port is not paid again.
        """
        content = [
            self.key,
            recipe.model,
            [list(message) for message in self.messages],
            {"temperature": recipe.temperature, "max_tokens": self.max_tokens or recipe.max_tokens},
            self.seed,
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def prompt_tokens(self) -> int:
        """Return about how many tokens the messages are: a token is near four characters of English, and at least one.

        A server counts with its own tokenizer, which is not here; its own count replaces this one with each reply.
        """
        return sum(4 + -(-len(content) // 4) for _, content in self.messages)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Parameters
    ----------
    key : str
        Of the request.
    text : str or None
        The answer; None where `failure` says why there is none.
    finish_reason : str or None
        As the server says it, such as ``stop`` or ``length``; see `is_cut_off`.
    prompt_tokens, completion_tokens : int
        As the server counted.
    model : str
        As the server called it.
    failure : str or None
        Why there is no answer; never text of the request or of an answer.
    """

    key: str
    text: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    failure: str | None

    @property
    def is_cut_off(self) -> bool:
        """Whether the answer stops before its end: at the limit of tokens, or by the server's filter."""
        return self.finish_reason in {"length", "content_filter"}
