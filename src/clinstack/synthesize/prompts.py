"""Prompts as text files: ours, or a copy that a user changed."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from clinstack.errors import InputError
from clinstack.notes.instructions import TASKS

OURS = Path(__file__).parent / "prompts"
PLACES = {
    "note.txt": ("case_report",),
    "question.txt": ("note", "task", "examples"),
    "answer.txt": ("note", "question"),
}
"""What each template must have a place for, in braces."""
SEEDS = "seeds.txt"
SEEDS_SHOWN = 3
_PLACE = re.compile(r"\{([a-z_]+)\}")
_TASK = re.compile(r"\[(.+)\]")


@dataclass(frozen=True)
class Template:
    """A prompt with places such as ``{note}``.

    Parameters
    ----------
    name : str
        Of the file.
    text : str
    """

    name: str
    text: str

    def fill(self, **values: str) -> str:
        """Return the prompt; braces within a value stay as they are."""
        return _PLACE.sub(lambda place: values[place[1]], self.text)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the text."""
        return "sha256:" + hashlib.sha256(self.text.encode()).hexdigest()


def read_template(folder: str | None, name: str) -> Template:
    """Read a template from a folder of prompts, ours for None.

    Raises
    ------
    InputError
        If the file is missing, a place is missing from it, or it has one that nothing is known for.
    """
    path = (OURS if folder is None else Path(folder)) / name
    text = _read(path).strip()
    found = set(_PLACE.findall(text))
    for place in PLACES[name]:
        if place not in found:
            raise InputError(f"{path}: the place {{{place}}} is missing; put it where that text belongs.")
    unknown = sorted(found - set(PLACES[name]))
    if unknown:
        known = ", ".join(f"{{{place}}}" for place in PLACES[name])
        raise InputError(f"{path}: {{{unknown[0]}}} is no place of this prompt; there are {known}.")
    return Template(name, text)


def read_seeds(folder: str | None) -> tuple[dict[str, tuple[str, ...]], str]:
    """Read the seed questions of each task, and the digest of their file.

    Raises
    ------
    InputError
        If a task is unknown or has fewer than three questions.
    """
    path = (OURS if folder is None else Path(folder)) / SEEDS
    text = _read(path)
    seeds: dict[str, list[str]] = {task: [] for task in TASKS}
    task = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        heading = _TASK.fullmatch(line)
        if heading:
            task = heading[1]
            if task not in seeds:
                raise InputError(f"{path}, line {number}: {task!r} is no task; the tasks are {', '.join(TASKS)}.")
        elif not task:
            raise InputError(f"{path}, line {number}: a question before the first [task]; put the task above it.")
        else:
            seeds[task].append(line)
    for name, questions in seeds.items():
        if len(set(questions)) < SEEDS_SHOWN:
            raise InputError(f"{path}: [{name}] has fewer than {SEEDS_SHOWN} questions; write more.")
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return {name: tuple(questions) for name, questions in seeds.items()}, digest


def joint_digest(*digests: str) -> str:
    """Return one digest for several files."""
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def copy_prompts(to: Path) -> list[Path]:
    """Copy our prompts into a folder, for a user to change; return the files.

    Raises
    ------
    InputError
        If one of them is there already.
    """
    names = [*PLACES, SEEDS]
    present = next((to / name for name in names if (to / name).exists()), None)
    if present is not None:
        raise InputError(f"{present} exists; name another folder.")
    to.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(OURS / name, to / name)) for name in names]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; `clinstack synthesize prompts DIR` copies our prompts to DIR.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8.") from None
