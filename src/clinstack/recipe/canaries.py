"""Canaries in a training: how many, how often each, and the seed that invents them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from clinstack.recipe.section import Section

FEWEST = 4
"""Canaries of each repetition count at least: an interval over fewer says nothing."""


class CanariesRecipe(Section):
    """Invented identifiers and sentences that are planted in the training notes, for ``clinstack audit`` to look for.

    In YAML and on the command line a plain number, ``canaries: 24``, is ``count``.
    """

    count: int = Field(ge=FEWEST, le=1000)
    """Canaries that are planted; as many others, the controls, are invented alike and never planted."""
    repetitions: tuple[int, ...] = Field(default=(1, 4, 16), min_length=1)
    """How often a canary is planted, each time in the notes of another patient; the canaries are spread over these."""
    seed: int = Field(default=0, ge=0)
    """Invents them and chooses where they stand; nothing else depends on it."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_number(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _enough_of_each(self) -> CanariesRecipe:
        if min(self.repetitions) < 1 or len(set(self.repetitions)) < len(self.repetitions):
            raise ValueError("repetitions: give different numbers, each 1 or more")
        fewest = FEWEST * len(self.repetitions)
        if self.count < fewest:
            raise ValueError(
                f"count: {self.count} canaries over {len(self.repetitions)} repetition counts are fewer than {FEWEST} "
                f"of each, too few for an interval; plant at least {fewest}, or give fewer repetitions"
            )
        return self

    @property
    def sorted_repetitions(self) -> tuple[int, ...]:
        """The repetition counts from the least."""
        return tuple(sorted(self.repetitions))

    @property
    def copies(self) -> int:
        """Places that all canaries together need: one note, or one answer, for each."""
        counts = self.sorted_repetitions
        return sum(counts[number % len(counts)] for number in range(self.count))

    @property
    def summary(self) -> dict[str, Any]:
        """What ``run.json`` says of them."""
        return {"count": self.count, "repetitions": list(self.sorted_repetitions)}
