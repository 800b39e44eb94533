"""The rubric: the text that a judge is asked with. It ships as a file that users may copy and change."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clinstack.errors import InputError
from clinstack.files import write_text

SHIPPED = Path(__file__).parent / "rubric.txt"
GRADES = (1, 2, 3, 4)
"""Unacceptable, poor, satisfactory, excellent: the four of Kweon et al. 2024 (Asclepius)."""
NEEDED = ("note", "question", "answers")
KNOWN = (*NEEDED, "count", "first", "last")
_PLACE = re.compile(r"\{([a-z_]+)\}")


def letter(place: int) -> str:
    """Return the letter of an answer, A for place 0."""
    return chr(ord("A") + place)


@dataclass(frozen=True)
class Rubric:
    """The text of a rubric, with places in braces for what differs from question to question.

    Parameters
    ----------
    text : str
        Holds ``{note}``, ``{question}`` and ``{answers}``, and where it wants them ``{count}``, ``{first}`` and
        ``{last}``: the number of answers, and the letters of the first and the last.
    """

    text: str

    @classmethod
    def read(cls, path: Path | None = None) -> Rubric:
        """Read a rubric; without a path the one that ships with the package.

        Raises
        ------
        InputError
            The file is not UTF-8, lacks a place or names one that does not exist.
        """
        file = SHIPPED if path is None else path
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"rubric: {file}: byte {error.start} is not UTF-8.") from None
        places = _PLACE.findall(text)
        missing = [name for name in NEEDED if name not in places]
        if missing:
            raise InputError(
                f"rubric: {file} has no {{{missing[0]}}}; a rubric needs {{note}}, {{question}}, {{answers}}."
            )
        unknown = [name for name in places if name not in KNOWN]
        if unknown:
            raise InputError(f"rubric: {file}: {{{unknown[0]}}} is unknown; there are {', '.join(KNOWN)}.")
        return cls(text)

    @property
    def hash(self) -> str:
        """``sha256:<hex>`` of the text."""
        return "sha256:" + hashlib.sha256(self.text.encode()).hexdigest()

    def ask(self, note: str, question: str, answers: Sequence[str]) -> str:
        """Return the whole question to the judge, the answers in the order given and lettered from A.

        Braces inside notes and answers stay what they are: each place is filled once, from left to right.
        """
        blocks = [
            f"[Answer {letter(place)} Begin]\n{answer.strip() or '(no answer)'}\n[Answer {letter(place)} End]"
            for place, answer in enumerate(answers)
        ]
        values = {
            "note": note.strip(),
            "question": question.strip(),
            "answers": "\n\n".join(blocks),
            "count": str(len(answers)),
            "first": letter(0),
            "last": letter(len(answers) - 1),
        }
        return _PLACE.sub(lambda found: values[found[1]], self.text)


def reminder(count: int) -> str:
    """Return what is added to a question whose last reply could not be read."""
    numbers = " ".join(["4"] * count)
    return (
        f"\n\nYour last reply could not be read. The first line must hold exactly {count} whole numbers from 1 to 4 "
        f"and nothing else, in a form such as: {numbers}"
    )


def copy_shipped(to: Path) -> None:
    """Write the shipped rubric to a file of the user's.

    Raises
    ------
    InputError
        The file exists.
    """
    if to.exists():
        raise InputError(f"{to} exists; name another file.")
    write_text(to, SHIPPED.read_text(encoding="utf-8"))
