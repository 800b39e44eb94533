"""Sections of discharge summaries, and the part of a summary that was known on admission.

The admission part follows van Aken et al. 2021 ("Clinical Outcome Prediction from Admission Notes using Self-Supervised
Knowledge Integration"), but finds sections by the lines that head them instead of by one expression over the text: an
empty section does not swallow the next one, the last section of a note counts, a header may hold digits or brackets,
and a colon in the middle of a sentence closes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

ADMISSION_SECTIONS: tuple[str, ...] = (
    "CHIEF COMPLAINT",
    "PRESENT ILLNESS",
    "MEDICAL HISTORY",
    "MEDICATION ON ADMISSION",
    "ALLERGIES",
    "PHYSICAL EXAM",
    "FAMILY HISTORY",
    "SOCIAL HISTORY",
)
"""The sections known on admission, in the order in which they are written."""

MAIN_SECTIONS = ADMISSION_SECTIONS[:3]
"""An admission without any of these has no admission text."""

_ALIASES: dict[str, str] = {
    alias: name
    for name, aliases in {
        "CHIEF COMPLAINT": "chief complaint|chief complaints|cc|presenting complaint|reason for admission",
        "PRESENT ILLNESS": "history of present illness|history of the present illness|present illness|hpi|"
        "hx of present illness|history of presenting illness",
        "MEDICAL HISTORY": "past medical history|medical history|pmh|pmhx|past medical hx|past medical and surgical "
        "history|past medical history/past surgical history|past medical/surgical history|pmh/psh",
        "MEDICATION ON ADMISSION": "medications on admission|medication on admission|meds on admission|"
        "home medications|home meds|admission medications|medications at home|medications prior to admission|"
        "preadmission medications|outpatient medications",
        "ALLERGIES": "allergies|drug allergies|allergy|allergies to drugs|allergies/adverse reactions",
        "PHYSICAL EXAM": "physical exam|physical examination|pe|exam|admission exam|admission physical exam|"
        "admission physical examination|physical exam on admission|physical examination on admission|exam on admission",
        "FAMILY HISTORY": "family history|family medical history|family hx|fh|fhx",
        "SOCIAL HISTORY": "social history|social hx|sh|shx",
    }.items()
    for alias in aliases.split("|")
}
_CLOSING_HEADERS = (
    "hospital course|brief hospital course|pertinent results|discharge medications|discharge diagnosis|"
    "discharge diagnoses|discharge condition|discharge disposition|discharge instructions|discharge exam|"
    "discharge physical exam|followup instructions|follow-up instructions|"
    "major surgical or invasive procedure|past surgical history|review of systems|service|attending|"
    "date of birth|sex|name|admission date|discharge date|addendum|facility|labs|laboratory data|imaging|"
    "medications|assessment and plan"
)
_CLOSERS = frozenset(_CLOSING_HEADERS.split("|"))
_PARTS_OF_AN_EXAM = (
    "vs|v/s|vitals|vital signs|gen|general|heent|neck|cv|cor|cardiac|cardiovascular|heart|lungs|pulm|"
    "pulmonary|resp|respiratory|chest|abd|abdomen|gi|gu|ext|extremities|neuro|neurologic|neurological|"
    "skin|psych|rectal|msk|back|lymph|pulses|t|bp|hr|rr|breasts|pelvic|mental status|motor|sensory|"
    "reflexes|gait|cranial nerves"
)
_EXAM_PARTS = frozenset(_PARTS_OF_AN_EXAM.split("|"))
_SENTENCE_BEGINNINGS = "he|she|they|we|i|it|his|her|their|this|that|these|there|the|a|an|pt|patient|per|please"
_PROSE = frozenset(_SENTENCE_BEGINNINGS.split("|"))
_HEADER = re.compile(r"[ \t]*([A-Za-z0-9][^:\n]{0,59}?)[ \t]*:(?!\d)[ \t]*(.*)")
_NUMBERING = re.compile(r"^\d{1,2}[.)]\s*")
_BRACKETS = re.compile(r"\s*\([^)]*\)")
_EMPTY = re.compile(r"^\[\s*\]$")


@dataclass(frozen=True)
class Section:
    """A section of a note.

    Parameters
    ----------
    header : str
        The header as it was written; empty for what stands before the first header.
    name : str or None
        One of `ADMISSION_SECTIONS`, or None.
    body : str
        The text under the header, its lines kept.
    """

    header: str
    name: str | None
    body: str


def split_sections(text: str) -> list[Section]:
    """Split a note into its sections.

    A line is a header when it begins with a known header and a colon; or when it follows a blank line and begins with
    at most five words and a colon, the first word capitalised or a number and not one that begins a sentence. The parts
    of a physical exam ("Gen:", "CV:") stay in it.
    """
    sections: list[Section] = []
    header, name, lines = "", None, list[str]()
    blank_before = True
    for line in text.split("\n"):
        found = _HEADER.match(line)
        kind = _header_kind(found.group(1), blank_before, name) if found else None
        if found and kind is not None:
            sections.append(Section(header, name, "\n".join(lines).strip()))
            header, name, lines = found.group(1), kind or None, [found.group(2)]
        else:
            lines.append(line)
        blank_before = not line.strip()
    sections.append(Section(header, name, "\n".join(lines).strip()))
    return [section for section in sections if section.header or section.body]


def _header_kind(words: str, blank_before: bool, inside: str | None) -> str | None:
    """Return the admission section that a header opens, ``""`` for another header, None for no header."""
    bare = " ".join(_BRACKETS.sub("", _NUMBERING.sub("", words)).lower().split())
    if bare in _ALIASES:
        return _ALIASES[bare]
    if bare in _CLOSERS:
        return ""
    if not blank_before or (inside == "PHYSICAL EXAM" and bare in _EXAM_PARTS):
        return None
    parts = words.split()
    begins = parts[0][0]
    looks_like_header = len(parts) <= 5 and (begins.isupper() or begins.isdigit()) and bare.split()[:1] != []
    if looks_like_header and bare.split()[0] not in _PROSE and ". " not in _NUMBERING.sub("", words):
        return ""
    return None


def admission_sections(text: str) -> dict[str, str]:
    """Return the admission sections of a note on one line each, the first filled one of each name; "[]" is empty."""
    found: dict[str, str] = {}
    for section in split_sections(text):
        if section.name is None or section.name in found:
            continue
        body = " ".join(section.body.split())
        if body and not _EMPTY.match(body):
            found[section.name] = body
    return found


def admission_text(text: str) -> str | None:
    """Return what a note knew on admission, or None when complaint, present illness and history are all missing.

    Returns
    -------
    str or None
        ``CHIEF COMPLAINT: …`` and so on, in the order of `ADMISSION_SECTIONS`, joined by blank lines; sections that are
        missing or empty are left out.
    """
    found = admission_sections(text)
    if not any(name in found for name in MAIN_SECTIONS):
        return None
    return "\n\n".join(f"{name}: {found[name]}" for name in ADMISSION_SECTIONS if name in found)


def joined(texts: Iterable[str]) -> str:
    """Join the notes of one admission in their order."""
    return "\n\n".join(text.strip() for text in texts)
