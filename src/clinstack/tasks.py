"""Tasks: a label space and its kind. The five outcomes of Gema et al. 2023 are five instances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from clinstack.errors import InputError
from clinstack.files import write_text
from clinstack.yaml_bounds import BoundedLoader, read_bounded

Kind = Literal["binary", "multiclass", "multilabel"]

OUTCOMES: dict[str, str] = {
    "prolonged_ventilation": "PMV",
    "mortality": "MOR",
    "length_of_stay": "LOS",
    "diagnoses": "DIAG",
    "procedures": "PROC",
}
"""The five outcome tasks in the order of the paper's tables, with the paper's abbreviations."""


@dataclass(frozen=True)
class Task:
    """A label space.

    Parameters
    ----------
    name : str
        Folder name of its examples, such as ``mortality``.
    kind : {"binary", "multiclass", "multilabel"}
        Binary and multiclass labels are class indices; multilabel labels are lists of codes out of ``classes``.
    classes : tuple of str
        Classes in the order of the head's outputs. A binary task has two, the second is the positive one.
    description : str
        One sentence for reports.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"Task {self.name}: kind is {self.kind!r}; use one of {', '.join(get_args(Kind))}.")
        if len(set(self.classes)) != len(self.classes):
            raise InputError(f"Task {self.name}: a class is named twice.")
        if self.kind == "binary" and len(self.classes) != 2:
            raise InputError(f"Task {self.name}: a binary task has two classes, this one {len(self.classes)}.")
        if self.kind == "multiclass" and len(self.classes) < 3:
            raise InputError(f"Task {self.name}: a multiclass task has at least three classes.")
        if not self.classes:
            raise InputError(f"Task {self.name}: no classes.")

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as they stand in ``task.yaml`` and ``stack.json``."""
        return {
            "name": self.name,
            "kind": self.kind,
            "classes": list(self.classes),
            "description": self.description,
        }

    @classmethod
    def from_dict(cls, values: dict[str, object], source: str) -> Task:
        """Build a task from plain values; ``source`` is named when something is missing."""
        try:
            classes = values["classes"]
            if not isinstance(classes, list):
                raise InputError(f"{source}: classes must be a list.")
            return cls(
                name=str(values["name"]),
                kind=str(values["kind"]),  # type: ignore[arg-type]  # checked in __post_init__
                classes=tuple(str(item) for item in classes),
                description=str(values.get("description", "")),
            )
        except KeyError as error:
            raise InputError(f"{source}: the key {error.args[0]} is missing.") from None

    def save(self, folder: Path) -> None:
        """Write ``task.yaml`` into ``folder``."""
        write_text(folder / "task.yaml", yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read ``task.yaml`` of an examples folder."""
        path = folder / "task.yaml"
        if not path.is_file():
            raise InputError(f"{path} is missing: name a folder written by `clinstack prepare`.")
        try:
            values = yaml.load(read_bounded(path), Loader=BoundedLoader)
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected keys name, kind and classes.")
        return cls.from_dict(values, str(path))
