"""Sections of notes: where they begin and end, what they are called, which matter most."""

from clinstack.notes.sections.find import (
    admission_sections,
    admission_text,
    admission_text_with_map,
    section_map,
    sections_type,
    split_sections,
)

__all__ = [
    "admission_sections",
    "admission_text",
    "admission_text_with_map",
    "section_map",
    "sections_type",
    "split_sections",
]
