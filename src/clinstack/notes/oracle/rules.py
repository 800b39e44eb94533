"""The oracle's rules: what is asked of a note, in which words, and how the answer is read off it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clinstack.notes.oracle.abbreviations import ABBREVIATIONS, abbreviations_in, abbreviations_not_in, written_out
from clinstack.notes.oracle.questions import (
    ABBREVIATION,
    COREFERENCE,
    PARAPHRASE,
    PART_RULES,
    QUESTION,
    SUMMARY,
)

REFUSAL = "This cannot be answered: the note does not mention the {}."
REFUSED_WORD = 'This cannot be answered: the note does not mention "{}".'


@dataclass(frozen=True)
class Pair:
    """A question about a note and its answer; ``rule`` names what made them, once for each note."""

    rule: str
    task: str
    wordings: tuple[str, ...]
    answer: str
    answerable: bool = True


_NEVER = {
    subject: re.compile(mentioned)
    for subject, mentioned in {
        "blood type": r"blood (?:type|group)|rh (?:positive|negative)",
        "height": r"\bheight|\btall\b|\d cm\b",
        "body weight": r"weigh|\bkg\b|\blbs?\b|obes|bmi",
        "name of the attending physician": r"attending|\bdr\b|physician",
        "ejection fraction": r"ejection|\bef\b",
        "hemoglobin a1c": r"a1c",
        "date of the next appointment": r"appointment|follow.?up|clinic",
        "vaccination record": r"vaccin|immuniz",
        "occupation": r"works?\b|occupation|job|retired|employ|disability",
        "country of birth": r"born|birth|countr",
    }.items()
}
"""Subjects that the cohort's notes do not have, each with what would show that one has it after all."""
_NEVER_WORDINGS = ("What is the {}?", "Which {} does the note give?", "Give the {}.", "State the {} of the patient.")
_REFERS = re.compile(r"(?:^|\. )((he|she|pt|patient) (?:expired|died)[^.]*)")
_HEADED_LINE = re.compile(r"^([A-Za-z][A-Za-z ]{1,30}): .{1,100}$", re.MULTILINE)
_MOST_QUOTATIONS = 6
_SENTENCE_END = re.compile(r"\.(?:\s+|$)")


def pairs_of(parts: dict[str, str], note: str, draw: Callable[[str, int], int]) -> Iterator[Pair]:
    """Yield every question that the rules can ask of a note, with its answer.

    Parameters
    ----------
    parts : dict of str to str
        By `clinstack.notes.oracle.parts.read_parts`.
    note : str
    draw : callable
        Returns a number below its second argument for the words of its first: always the same for a note and a seed.
    """
    lowered = note.lower()
    for rule in PART_RULES:
        if answer := parts.get(rule.part):
            yield Pair(rule.part, rule.task, rule.wordings, answer)
        elif rule.mentioned and not rule.mentioned.search(lowered):
            yield Pair(f"no {rule.part}", rule.task, rule.wordings, REFUSAL.format(rule.part), answerable=False)
    for subject, mentioned in _NEVER.items():
        if not mentioned.search(lowered):
            wordings = tuple(words.format(subject) for words in _NEVER_WORDINGS)
            yield Pair(f"no {subject}", QUESTION, wordings, REFUSAL.format(subject), answerable=False)
    yield from _abbreviations(note, draw)
    yield from _quotations(note, draw)
    yield from _coreference(parts)
    yield from _paraphrases(parts)
    yield from _summary(parts)


def _abbreviations(note: str, draw: Callable[[str, int], int]) -> Iterator[Pair]:
    """Ask for one abbreviation of the note, and for one that it does not have."""

    def wordings(short: str) -> tuple[str, ...]:
        return (
            f'What does "{short}" stand for?',
            f'Expand the abbreviation "{short}".',
            f'What is the meaning of "{short}" in the note?',
            f'Write out the abbreviation "{short}".',
        )

    found = abbreviations_in(note)
    if found:
        short = found[draw("abbreviation", len(found))]
        yield Pair("abbreviation", ABBREVIATION, wordings(short), ABBREVIATIONS[short])
    if absent := abbreviations_not_in(note):
        short = absent[draw("absent abbreviation", len(absent))]
        yield Pair("no abbreviation", ABBREVIATION, wordings(short), REFUSED_WORD.format(short), answerable=False)


def _quotations(note: str, draw: Callable[[str, int], int]) -> Iterator[Pair]:
    """Ask for lines of the note by the words before their colons, each line at most once."""
    lines = {found[1]: found[0] for found in _HEADED_LINE.finditer(note)}
    heads = list(lines)
    first = draw("quotation", len(heads)) if heads else 0
    for number, head in enumerate((heads[first:] + heads[:first])[:_MOST_QUOTATIONS], 1):
        wordings = (
            f'Quote the line that begins with "{head}:".',
            f'What stands in the line "{head}:"?',
            f'Repeat the line "{head}:" as it is written.',
        )
        yield Pair(f"quotation {number}", QUESTION, wordings, lines[head])


def _coreference(parts: dict[str, str]) -> Iterator[Pair]:
    """Ask whom the last sentence of a course means, where it says he, she, pt or patient: the patient."""
    found = _REFERS.search(parts.get("hospital course", ""))
    who = parts.get("patient")
    if found and who:
        sentence, word = found[1], found[2]
        wordings = (
            f'Who is "{word}" in "{sentence}"?',
            f'To whom does "{word}" refer in "{sentence}"?',
            f'Whom does the note mean by "{word}" in "{sentence}"?',
        )
        yield Pair("he, she, pt", COREFERENCE, wordings, f"the patient, a {who}")


def _paraphrases(parts: dict[str, str]) -> Iterator[Pair]:
    """Ask for a part in full words, where it has abbreviations."""
    for part in ("chief complaint", "past medical history", "social history", "reason for the study"):
        longer = written_out(parts.get(part, ""))
        if longer:
            wordings = (
                f"Rewrite the {part} without abbreviations.",
                f"Put the {part} in full words.",
                f"Paraphrase the {part}, writing out its abbreviations.",
                f"Say the {part} again with every abbreviation written out.",
            )
            yield Pair(f"{part} in full words", PARAPHRASE, wordings, longer)


def _summary(parts: dict[str, str]) -> Iterator[Pair]:
    """Ask for the stay in short: the chief complaint, and the first and the last sentence of the course."""
    sentences = [words.strip() for words in _SENTENCE_END.split(parts.get("hospital course", "")) if words.strip()]
    if "chief complaint" in parts and len(sentences) > 1:
        wordings = (
            "Summarize the hospital stay.",
            "Give a short summary of the stay.",
            "Summarize complaint, treatment and outcome.",
            "What happened during this stay, in short?",
        )
        answer = f"Came with {parts['chief complaint']}. {sentences[0]}. {sentences[-1]}."
        yield Pair("summary", SUMMARY, wordings, answer)
