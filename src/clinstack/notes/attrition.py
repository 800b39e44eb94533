"""Attrition: who was there, who was left out at which step, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.files import read_json


@dataclass
class Attrition:
    """The steps from all admissions to the examples of one task."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self, name: str, kept: int) -> None:
        """Add a step that keeps ``kept`` admissions of those that the step before it kept."""
        before = self.steps[-1]["kept"] if self.steps else kept
        self.steps.append({"step": name, "kept": kept, "removed": before - kept})

    def copy(self) -> Attrition:
        """Return a copy to go on with for one task."""
        return Attrition([dict(step) for step in self.steps])


def attrition_rows(notes: Path) -> list[dict[str, Any]]:
    """Return the attrition of every task of a prepared folder, one row a step.

    Returns
    -------
    list of dict
        Keys ``task``, ``step``, ``kept`` and ``removed``, tasks in alphabetical order.

    Raises
    ------
    InputError
        If the folder holds no examples.
    """
    return [{"task": content["task"], **step} for content in _contents(notes) for step in content["steps"]]


def change_rows(notes: Path) -> list[dict[str, Any]]:
    """Return what a builder changes against the published one, one row for each fix of each task.

    Returns
    -------
    list of dict
        Keys ``task``, ``fix``, ``quirk``, ``rows`` and ``what``, tasks in alphabetical order.

    Raises
    ------
    InputError
        If the folder holds no examples.
    """
    return [{"task": content["task"], **row} for content in _contents(notes) for row in content.get("changes", ())]


def _contents(notes: Path) -> list[dict[str, Any]]:
    files = sorted((notes / "examples").glob("*/attrition.json"))
    if not files:
        raise InputError(f"{notes / 'examples'} holds no attrition.json; name a folder written by `clinstack prepare`.")
    return [read_json(file) for file in files]
