"""What a synthesis will ask and cost, said before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinstack.endpoint.cost import Work, estimate_work
from clinstack.endpoint.requests import Request
from clinstack.recipe.endpoint import EndpointRecipe


@dataclass
class Plan:
    """What is to be asked.

    Parameters
    ----------
    recipe : EndpointRecipe
    stored : int
        Requests that the store answers.
    work : Work
        All others; as many answered tokens as are allowed.
    shown : list of (str, str)
        One prompt of each kind: its name, and the text with the note's length in its place.
    together : int, optional
        Requests that can be under way at a time, where that is less than the recipe's concurrency.
    """

    recipe: EndpointRecipe
    stored: int = 0
    work: Work = field(default_factory=lambda: Work(0, 0, 0))
    shown: list[tuple[str, str]] = field(default_factory=list)
    together: int | None = None

    def add(self, request: Request) -> None:
        """Count a request that is to be sent."""
        self.work += Work(1, request.prompt_tokens(), request.max_tokens or self.recipe.max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures: requests, tokens, cost, time, and what the store has."""
        return {**estimate_work(self.work, self.recipe, self.together), "in_store": self.stored}


def store_of(out: Path) -> Path:
    """Return the file of the replies for an output folder: beside it, since the folder is replaced as a whole."""
    out = out.resolve()
    return out.with_name(f"{out.name}.replies.sqlite")


def hidden(text: str, what: str) -> str:
    """Return what stands for a text that is not to be shown."""
    return f"<{len(text):,} characters of the {what}; --show prints them>"
