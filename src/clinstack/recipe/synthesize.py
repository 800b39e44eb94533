"""The recipes of `clinstack synthesize notes` and `clinstack synthesize instructions`."""

from __future__ import annotations

from pydantic import Field, model_validator

from clinstack.recipe.endpoint import EndpointRecipe
from clinstack.recipe.section import Section


class NoteGatesRecipe(Section):
    """Which synthetic notes are kept."""

    min_words: int = Field(default=50, ge=1)
    max_words: int = Field(default=4000, ge=1)
    phrases: bool = True
    """Leave out notes in which the model speaks of itself."""
    near_duplicates: float | None = Field(default=0.8, gt=0, le=1)
    """Resemblance to an earlier note from which on one is left out; None keeps all."""

    @model_validator(mode="after")
    def _in_order(self) -> NoteGatesRecipe:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is above max_words ({self.max_words})")
        return self


class InstructionGatesRecipe(Section):
    """Which notes are asked about, and which questions and answers are kept."""

    min_question_words: int = Field(default=3, ge=1)
    max_question_words: int = Field(default=100, ge=1)
    max_answer_words: int = Field(default=400, ge=1)
    phrases: bool = True
    """Leave out rows in which the model speaks of itself, and answers that end with a question mark."""
    grounding: bool = True
    """Leave out answers with a number, date or drug that the note does not have."""
    near_duplicates: float | None = Field(default=0.9, gt=0, le=1)
    """Leave out a row whose note, question and answer each resemble those of an earlier one so much; None keeps all."""

    @model_validator(mode="after")
    def _in_order(self) -> InstructionGatesRecipe:
        if self.min_question_words > self.max_question_words:
            low, high = self.min_question_words, self.max_question_words
            raise ValueError(f"min_question_words ({low}) is above max_question_words ({high})")
        return self


class SynthesisRecipe(Section):
    """What both have."""

    endpoint: EndpointRecipe
    seed: int = Field(default=0, ge=0)
    """Of tasks, examples and the seeds sent to the server."""
    prompts: str | None = None
    """Folder with prompts of one's own; ``clinstack synthesize prompts DIR`` copies ours there."""


class SynthesizeNotesRecipe(SynthesisRecipe):
    """Case reports to synthetic discharge summaries."""

    text: str = "text"
    """Column of the case reports."""
    patient_id: str | None = None
    """Column of the patients; without one each case report is a patient."""
    max_rows: int | None = Field(default=None, ge=1)
    """Only the first so many."""
    max_tokens: int = Field(default=2048, ge=1)
    """Of a note."""
    gates: NoteGatesRecipe = NoteGatesRecipe()


class SynthesizeInstructionsRecipe(SynthesisRecipe):
    """Notes to questions about them and answers."""

    note_types: tuple[str, ...] | None = None
    """Only these; all where not given."""
    max_notes: int | None = Field(default=None, ge=1)
    """Only the first so many."""
    questions_per_note: int = Field(default=1, ge=1)
    earlier: int = Field(default=2, ge=0)
    """At most so many earlier questions of the task are shown as examples, beside three seed questions."""
    lag: int = Field(default=64, ge=1)
    """An earlier question is shown only from so many questions later on, so that as many can be asked at a time."""
    question_tokens: int = Field(default=300, ge=1)
    answer_tokens: int = Field(default=400, ge=1)
    gates: InstructionGatesRecipe = InstructionGatesRecipe()
