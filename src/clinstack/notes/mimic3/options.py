"""The choices of the builder of MIMIC-III's tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clinstack.errors import InputError
from clinstack.notes.ventilation.options import VentilationOptions

Text = Literal["admission", "full"]
CODE_TABLES = {"diagnoses": "DIAGNOSES_ICD", "procedures": "PROCEDURES_ICD"}


@dataclass(frozen=True)
class Mimic3Options:
    """How MIMIC-III is prepared, beyond what every builder is asked.

    Attributes
    ----------
    compat : {"official"} or None
        ``official`` reproduces the published scripts; None puts their errors right.
    splits : Path, optional
        Folder of the published lists of patients, `SPLIT_LISTS`; without it 70, 10 and 20 % by `assign_splits`.
    export_csv : Path, optional
        Folder that gets the published files in ``mp``, ``los``, ``dia`` and ``pro``; with ``official`` alone.
    notes : bool
        Whether the table of all notes is written too, which pretraining reads.
    v_characters : {3, 4}
        How many characters of a V code make its category.
    keep_errors : bool
        Whether notes marked as errors stay.
    addenda_alone : bool
        Whether an admission with addenda and no report stays.
    ventilation : VentilationOptions
        Source, definition and rules of prolonged ventilation.
    """

    compat: Literal["official"] | None = None
    splits: Path | None = None
    export_csv: Path | None = None
    notes: bool = True
    v_characters: int = 3
    keep_errors: bool = False
    addenda_alone: bool = False
    ventilation: VentilationOptions = field(default_factory=VentilationOptions)

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.compat not in (None, "official"):
            raise InputError(f"compat is {self.compat!r}; use official, or leave it out.")
        if self.export_csv and not self.compat:
            raise InputError("export_csv writes the published files; it needs compat official.")
        if self.v_characters not in (3, 4):
            raise InputError(f"v_characters is {self.v_characters}; use 3 or 4.")
        if self.compat and (self.keep_errors or self.addenda_alone or self.v_characters != 3):
            raise InputError(
                "keep_errors, addenda_alone and v_characters are choices of the default builder; "
                "compat official has no choice. Leave them out."
            )
