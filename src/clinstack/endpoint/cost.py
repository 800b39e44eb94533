"""What requests will come to before they are sent: tokens, money and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clinstack.recipe.endpoint import EndpointRecipe


@dataclass(frozen=True)
class Work:
    """Requests in bulk.

    Parameters
    ----------
    requests : int
        How many.
    prompt_tokens : int
        Of all prompts together.
    completion_tokens : int
        Of all answers together, at most or as expected.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def __add__(self, other: Work) -> Work:
        return Work(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def estimate_work(work: Work, recipe: EndpointRecipe, concurrency: int | None = None) -> dict[str, Any]:
    """Return what some work costs and how long it takes at the recipe's limits.

    Returns
    -------
    dict
        ``requests``, ``prompt_tokens``, ``completion_tokens``; ``cost`` in the money of the prices, None without them;
        ``seconds``, the longest of three times: at ``tokens_per_second`` for each of the concurrent requests, at
        ``requests_per_minute``, and at ``tokens_per_minute``; and ``bound_by``, the name of that one.
    """
    tokens = work.prompt_tokens + work.completion_tokens
    together = min(concurrency or recipe.concurrency, recipe.concurrency, max(work.requests, 1))
    times = {"tokens_per_second": work.completion_tokens / recipe.tokens_per_second / together}
    if recipe.requests_per_minute is not None:
        times["requests_per_minute"] = work.requests / recipe.requests_per_minute * 60
    if recipe.tokens_per_minute is not None:
        times["tokens_per_minute"] = tokens / recipe.tokens_per_minute * 60
    bound_by = max(times, key=lambda name: times[name])
    return {
        "requests": work.requests,
        "prompt_tokens": work.prompt_tokens,
        "completion_tokens": work.completion_tokens,
        "cost": cost(work.prompt_tokens, work.completion_tokens, recipe),
        "seconds": round(times[bound_by], 1),
        "bound_by": bound_by,
    }


def cost(prompt_tokens: int, completion_tokens: int, recipe: EndpointRecipe) -> float | None:
    """Return what tokens cost at the recipe's prices, None without prices."""
    if recipe.price_prompt is None and recipe.price_completion is None:
        return None
    money = prompt_tokens * (recipe.price_prompt or 0.0) + completion_tokens * (recipe.price_completion or 0.0)
    return round(money / 1e6, 4)
