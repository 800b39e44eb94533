"""The prompt of a recipe: how a note and a question become what a language model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from clinstack.recipe.section import Section

TEMPLATES = ("clinstack", "asclepius", "phi2")
"""The templates that come with the package, by name."""


class PromptRecipe(Section):
    """The text around a note and a question; the same in training and in generation."""

    template: str = "clinstack"
    """``clinstack``, ``asclepius`` (the published text, its typo included), ``phi2`` (Instruct: ... Output:), or the
    path of a text file with ``{note}`` and ``{question}``."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """``auto``: the base's own chat template where it has one, with the text as the user's message."""
    system: str | None = None
    """What stands before everything; the template's own when not given, nothing when empty."""
    shots: int = Field(default=0, ge=0, le=16)
    """Solved examples before the question, drawn by the seed from the training patients; for a base that is prompted
    without training."""

    @field_validator("template")
    @classmethod
    def _template_is_known(cls, template: str) -> str:
        if template not in TEMPLATES and "/" not in template and "." not in template:
            raise ValueError(f"{template!r} is none of {', '.join(TEMPLATES)}, nor the path of a text file")
        return template

    @property
    def file(self) -> Path | None:
        """The template's file, where it is one."""
        return None if self.template in TEMPLATES else Path(self.template)
