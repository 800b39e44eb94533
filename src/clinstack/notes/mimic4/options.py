"""What a study on MIMIC-IV chooses: text, tasks, the version of the ICD, and when ventilation is prolonged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from clinstack.errors import InputError
from clinstack.notes.mimic4.icd import ICD_CHOICES, IcdChoice
from clinstack.tasks import OUTCOMES

Text = Literal["admission", "full"]
VentilationRule = Literal["span", "sum"]


@dataclass(frozen=True)
class Mimic4Options:
    """What a study chooses.

    Parameters
    ----------
    seed : int
        Of the split by patient: 70 % train, 10 % validation, 20 % test.
    text : {"admission", "full"}
        Whether an example holds only what was known on admission, or the whole discharge summary.
    tasks : sequence of str or None
        Names out of `clinstack.tasks.OUTCOMES`. None takes all that the source allows; an empty sequence none, so that
        only the notes are written.
    minimum_count : int
        How many training admissions must have a code category for it to become a class.
    icd : {"9", "10", "map-to-9", "map-to-10", "both"}
        Only admissions coded in that version; all, the other version mapped; or all, each label with its version.
    icd_map, icd_procedure_map : Path or None
        Mappings of diagnosis and of procedure codes, for ``map-to-9`` and ``map-to-10``; see `IcdMap.read`.
    ventilation : {"span", "sum"}
        When ventilation counts as prolonged; see `label_ventilation`.
    """

    seed: int = 0
    text: Text = "admission"
    tasks: Sequence[str] | None = None
    minimum_count: int = 10
    icd: IcdChoice = "9"
    icd_map: Path | None = None
    icd_procedure_map: Path | None = None
    ventilation: VentilationRule = "span"

    def __post_init__(self) -> None:
        if self.text not in get_args(Text):
            raise InputError(f"text is {self.text!r}; use {' or '.join(get_args(Text))}.")
        if self.minimum_count < 1:
            raise InputError(f"minimum_count is {self.minimum_count}; use 1 or more.")
        if self.icd not in ICD_CHOICES:
            raise InputError(f"icd is {self.icd!r}; use {', '.join(ICD_CHOICES)}.")
        if self.ventilation not in get_args(VentilationRule):
            raise InputError(f"ventilation is {self.ventilation!r}; use {' or '.join(get_args(VentilationRule))}.")
        unknown = [name for name in self.tasks or () if name not in OUTCOMES]
        if unknown:
            raise InputError(f"tasks: {', '.join(unknown)}; choose from {', '.join(OUTCOMES)}, or none by itself.")
        maps = {"diagnoses": ("icd_map", self.icd_map), "procedures": ("icd_procedure_map", self.icd_procedure_map)}
        for task, (name, path) in maps.items():
            option = "--" + name.replace("_", "-")
            if self.maps and path is None and task in self.wanted:
                raise InputError(
                    f"--icd {self.icd} needs {option} FILE for {task} (columns from_code,to_code); name the file, "
                    f"leave {task} out with --tasks, or use --icd 9, 10 or both."
                )
            if path is not None and not self.maps:
                raise InputError(f"{option} is used by --icd map-to-9 and map-to-10 only, and --icd is {self.icd}.")

    @property
    def maps(self) -> bool:
        """Whether codes of one version are mapped to the other."""
        return self.icd.startswith("map-")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The tasks in the order of `OUTCOMES`."""
        return tuple(name for name in OUTCOMES if self.tasks is None or name in self.tasks)
