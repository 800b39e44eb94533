"""Sections of discharge summaries, and the part of a summary that was known on admission.

The admission part follows van Aken et al. 2021 ("Clinical Outcome Prediction from Admission Notes using Self-Supervised
Knowledge Integration"), but finds sections by the lines that head them instead of by one expression over the text: an
empty section does not swallow the next one, the last section of a note counts, a header may hold digits or brackets,
and a colon in the middle of a sentence closes nothing. docs/sections.md has the rules and the list of headers.

One pass over the lines and one over the capitals; time grows with the length of the text and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from clinstack.notes.sections.headers import (
    ADMISSION_SECTIONS,
    SOFT,
    Header,
    header_alone,
    name_in_capitals,
    read_header,
)

if TYPE_CHECKING:
    import pyarrow as pa

MAIN_SECTIONS = ADMISSION_SECTIONS[:3]
"""An admission without any of these has no admission text."""

_FIRST = frozenset({"CHIEF COMPLAINT", "PRESENT ILLNESS"})
"""With one of these the next note of an admission begins."""
_COURSE = frozenset({"HOSPITAL COURSE", "ASSESSMENT AND PLAN"})
"""After one of these, a list of medications is no longer that of the admission."""
_DISCHARGE = frozenset(
    {
        "DISCHARGE MEDICATIONS",
        "DISCHARGE CONDITION",
        "DISCHARGE INSTRUCTIONS",
        "DISCHARGE DISPOSITION",
        "DISCHARGE EXAM",
    }
)
"""After one of these, an exam is no longer that of the admission either."""

_FURTHEST_COLON = 80
_LONGEST_ALONE = 60
_CAPITALS = r"\s*([A-Z][A-Z/&]+(?:\s+[A-Z/&]+){0,7})(?=:)"
# What precedes a header in the middle of a line, and words in capitals. Blanks are any, also line ends, so that a note
# whose lines were joined has the same sections as before. The signs in front occur in no word: no text is read twice.
_INLINE = re.compile(r"[.,;:=*~-]" + _CAPITALS)
_BELOW = re.compile(_CAPITALS)
_SHORTEST_INLINE = 5
_RULE = re.compile(r"[=*~-]{3}")
_RULE_SIGNS = "=*~- ,"
_NOTHING = re.compile(r"(?:\[\s*\]|[_.,:;*=~?\s-])*")


class Section(NamedTuple):
    """A section of a note.

    Parameters
    ----------
    header : str
        The header as it was written; empty for what stands before the first header.
    name : str or None
        A key of `clinstack.notes.sections.headers.HEADERS`, or None.
    body : str
        The text under the header, its lines kept.
    start, end : int
        Where it begins, with its header, and where the next begins, in characters of the note.
    """

    header: str
    name: str | None
    body: str
    start: int
    end: int


class SectionSpan(NamedTuple):
    """A stretch of a text: the name of its section or None, and where it begins and ends, in characters."""

    name: str | None
    start: int
    end: int


class _Candidate(NamedTuple):
    """A place where a section may begin; ``after_blank`` says whether a blank line or nothing precedes it."""

    start: int
    header: str
    body: int
    meaning: Header
    after_blank: bool


def split_sections(text: str) -> list[Section]:
    """Split a note into its sections, in their order.

    A line begins a section when it begins with a known header and a colon; when it is a long known header and nothing
    else; or when it follows a blank line and begins with at most five words and a colon, the first word capitalised or
    a number and not one that begins a sentence. A long known header in capitals also counts in the middle of a line,
    behind a full stop, comma, semicolon or colon. The parts of a physical exam ("Gen:", "CV:") stay in it, and headers
    without a name stay in the later sections, such as the hospital course.

    Lines end as `str.splitlines` has it: ``\\n``, ``\\r``, ``\\v``, ``\\f``, U+0085, U+2028 and so on.
    """
    starts = _openings(text)
    sections: list[Section] = []
    for place, (start, header, name, body) in enumerate(starts):
        end = starts[place + 1][0] if place + 1 < len(starts) else len(text)
        section = Section(header, name, text[body:end].strip(), start, end)
        if section.header or section.body:
            sections.append(section)
    return sections


def section_map(text: str) -> list[SectionSpan]:
    """Return the sections of a text as spans that cover it without a gap or an overlap, in order; empty for no text."""
    spans = [SectionSpan(section.name, section.start, section.end) for section in split_sections(text)]
    if not spans:
        return [SectionSpan(None, 0, len(text))] if text else []
    # Blank lines before the first header belong to it.
    return [spans[0]._replace(start=0), *spans[1:]]


def sections_type() -> pa.DataType:
    """Return the Arrow type of the column ``sections``: a list of name, start and end (in characters, not bytes)."""
    import pyarrow as pa

    fields = [pa.field("name", pa.string()), pa.field("start", pa.int32()), pa.field("end", pa.int32())]
    return pa.list_(pa.struct(fields))


def section_rows(spans: Iterable[SectionSpan]) -> list[dict[str, str | int | None]]:
    """Return spans as they stand in a column of `sections_type`."""
    return [{"name": span.name, "start": span.start, "end": span.end} for span in spans]


def admission_sections(text: str) -> dict[str, str]:
    """Return the admission sections of a note on one line each, the first filled one of each name.

    A body is empty when it holds only placeholders such as "[]" and "___", lines and punctuation.
    """
    found: dict[str, str] = {}
    for section in split_sections(text):
        if section.name not in ADMISSION_SECTIONS or section.name in found:
            continue
        body = _on_one_line(section.body)
        if body:
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
    found = admission_text_with_map(text)
    return found[0] if found else None


def admission_text_with_map(text: str) -> tuple[str, list[SectionSpan]] | None:
    """Return the admission text and the sections in it, or None where `admission_text` is None.

    Returns
    -------
    text : str
    spans : list of SectionSpan
        They refer to the returned text and cover it; the blank line between two sections belongs to the first.
    """
    found = admission_sections(text)
    if not any(name in found for name in MAIN_SECTIONS):
        return None
    names = [name for name in ADMISSION_SECTIONS if name in found]
    parts = [f"{name}: {found[name]}" + ("" if name == names[-1] else "\n\n") for name in names]
    spans, at = list[SectionSpan](), 0
    for name, part in zip(names, parts, strict=True):
        spans.append(SectionSpan(name, at, at + len(part)))
        at += len(part)
    return "".join(parts), spans


def joined(texts: Iterable[str]) -> str:
    """Join the notes of one admission in their order."""
    return "\n\n".join(text.strip() for text in texts)


def _on_one_line(body: str) -> str:
    """Join the lines of a body, without the rules drawn above and below it; empty where it holds nothing."""
    line = " ".join(body.split()).strip(" ,")
    inner = line.lstrip(_RULE_SIGNS)
    if _RULE.search(line, 0, len(line) - len(inner)):
        line = inner
    inner = line.rstrip(_RULE_SIGNS)
    if _RULE.search(line, len(inner)):
        line = inner
    return "" if _NOTHING.fullmatch(line) else line


def _openings(text: str) -> list[tuple[int, str, str | None, int]]:
    """Return where sections begin: start, header, name, and start of the body. The first begins with the text."""
    openings: list[tuple[int, str, str | None, int]] = [(0, "", None, 0)]
    name: str | None = None
    stage, filled = 0, False
    for candidate in _candidates(text):
        if candidate.start < openings[-1][3] or not _opens(candidate, name):
            continue
        if candidate.meaning.name == name == "PHYSICAL EXAM":
            # "Vitals: … Exam: …" is one exam; an empty one may be followed by another. Looked at once in a section.
            filled = filled or bool(_on_one_line(text[openings[-1][3] : candidate.start]))
            if filled:
                continue
        name, stage = _name_here(candidate.meaning, name, stage)
        filled = False
        openings.append((candidate.start, candidate.header, name, candidate.body))
    return openings


def _opens(candidate: _Candidate, inside: str | None) -> bool:
    """Whether a section begins here, inside the section of this name."""
    meaning = candidate.meaning
    in_later_section = inside is not None and inside not in ADMISSION_SECTIONS and inside not in SOFT
    if meaning.name is not None:
        if inside == "PHYSICAL EXAM" and meaning.name == "OPERATION FACTS":
            return False  # "Drains: two"
        # Short headers ("PE:", "Labs:") and soft ones are words of the text there as well.
        vague = meaning.name in SOFT or len(meaning.words) <= 4
        return candidate.after_blank or not (vague and in_later_section)
    if meaning.certain:
        return True
    if not candidate.after_blank or in_later_section:
        return False
    if inside == "PHYSICAL EXAM" and meaning.exam_part:
        return False
    return not (inside == "PRESENT ILLNESS" and meaning.illness_part)


def _name_here(meaning: Header, inside: str | None, stage: int) -> tuple[str | None, int]:
    """Return the name of the section that begins, by what came before it, and the stage of the stay that it is of.

    The stages are 0 until a note tells of its course, 1 until it tells of the discharge, then 2.
    """
    name = meaning.name
    if meaning.at_discharge and inside in ("PHYSICAL EXAM", "DISCHARGE EXAM"):
        name = "DISCHARGE EXAM"
    elif name == "CHIEF COMPLAINT" and stage and meaning.words in ("cc", "c/c"):
        return None, stage  # copies of a letter
    elif name == "PHYSICAL EXAM" and stage == 2 and "admission" not in meaning.words:
        name = "DISCHARGE EXAM"
    elif name == "MEDICATIONS" and not stage:
        name = "MEDICATION ON ADMISSION"
    if name in _DISCHARGE:
        return name, 2
    if name in _COURSE:
        return name, max(stage, 1)
    starts_anew = name in _FIRST or meaning.words in ("admission date", "date of admission")
    return name, 0 if starts_anew else stage


def _candidates(text: str) -> list[_Candidate]:
    """Return the places where a section may begin, in order; at one colon, the one that begins first or is known."""
    inline = {candidate.body: candidate for found in _INLINE.finditer(text) for candidate in _inline(found)}
    if not inline:
        return list(_line_candidates(text))
    found: list[_Candidate] = []
    for candidate in _line_candidates(text):
        other = inline.get(candidate.body)
        if other is None or (candidate.meaning.name is not None and candidate.start <= other.start):
            found.append(candidate)
            if other is not None:
                del inline[candidate.body]
    found += inline.values()
    return sorted(found, key=lambda candidate: candidate.start)


def _line_candidates(text: str) -> Iterator[_Candidate]:
    at, before = 0, "\n"
    for line in text.splitlines(keepends=True):
        colon = line.find(":", 0, _FURTHEST_COLON)
        if colon > 0:
            meaning = read_header(line[:colon])
            if meaning is not None and (meaning.name is not None or not line[colon + 1 : colon + 2].isdigit()):
                body = at + colon + 1
                yield _Candidate(at, line[:colon].strip(), body, meaning, before.isspace())
        elif colon < 0 and 8 <= len(line) <= _LONGEST_ALONE and header_alone(line):
            header = line.strip()
            meaning = read_header(header)
            if meaning is not None and (header.isupper() or (before.isspace() and not header[0].islower())):
                yield _Candidate(at, header, at + len(line), meaning, before.isspace())
                below = _BELOW.match(text, at + len(line))
                if below is not None:
                    yield from _inline(below)
        at += len(line)
        before = line


def _inline(found: re.Match[str]) -> Iterator[_Candidate]:
    written = " ".join(found.group(1).split())
    name = name_in_capitals(written) if len(written) >= _SHORTEST_INLINE else None
    if name is not None:
        meaning = Header(written.lower(), name, certain=True)
        yield _Candidate(found.start(1), written, found.end() + 1, meaning, False)
