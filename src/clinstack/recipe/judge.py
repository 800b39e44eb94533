"""The recipe of `clinstack judge`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.endpoint import EndpointRecipe
from clinstack.recipe.stage import StageRecipe

REFERENCE = "reference"
"""Label of the table's own answers."""
MOST_ANSWERS = 8
"""So many answers to one instruction are judged at most: beyond, a question to the judge would hold little else."""


class JudgeEndpointRecipe(EndpointRecipe):
    """The endpoint of a judge, which is asked for its likeliest reply."""

    temperature: float = Field(default=0.0, ge=0, le=2)


class JudgeRecipe(StageRecipe):
    """Answers of several Runs to the same instructions, graded by a language model that is not told whose they are."""

    stage: Literal["judge"] = "judge"
    answers: tuple[str, ...] = Field(min_length=1, max_length=MOST_ANSWERS)
    """Finished Runs of ``clinstack generate``, the one that others are held against first."""
    reference: bool = False
    """Whether the table's own answers are judged too, as ``reference``."""
    instructions: str
    """The folder that the answers were generated from."""
    tasks: tuple[str, ...] | None = None
    """Only instructions of these tasks; all without it."""
    max_examples: int | None = Field(default=None, ge=1)
    """At most so many instructions, drawn by ``seed``; all without it."""
    mode: Literal["pairs", "all"] = "pairs"
    """What the judge sees at a time: two answers, both ways round, or all of them, in ``orders`` orders."""
    orders: int = Field(default=2, ge=2)
    """For ``all``; as many as there are answers puts each once in each place."""
    rubric: str | None = None
    """A text file with the rubric; the one that comes with the package without it."""
    endpoint: JudgeEndpointRecipe
    retries_on_parse: int = Field(default=1, ge=0)
    """So many times a question whose reply cannot be read is put again, with another seed and a reminder."""
    allow_unanswered: bool = False
    """Finish although some questions got no reply; their scores are null. Else the next start asks them again."""
    replies: str | None = None
    """The store of replies; ``replies.sqlite`` in the Run without it. Runs that name one file pay no question twice."""
    human: str | None = None
    """A table (csv or Parquet) with example_id, answers (the label) and score: grades that people gave."""
    seed: int = Field(default=0, ge=0)
    """Of the orders, of the sample and of the requests."""

    @property
    def seeds_by_use(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"judge": self.seed, **super().seeds_by_use}

    @model_validator(mode="after")
    def _enough_answers(self) -> JudgeRecipe:
        if len(self.answers) + self.reference < 2:
            raise ValueError("answers: name two Runs, or one and reference: true; a judge compares")
        if len(self.answers) + self.reference > MOST_ANSWERS:
            raise ValueError(f"answers: with the reference these are more than {MOST_ANSWERS}; leave some out")
        twice = next((path for path in self.answers if self.answers.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"answers: {twice} stands twice")
        if self.mode == "pairs" and self.orders != 2:
            raise ValueError("orders: pairs are always shown both ways round; leave orders out, or use mode: all")
        return self
