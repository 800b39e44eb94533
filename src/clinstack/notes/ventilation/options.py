"""What the prolonged ventilation task is asked to do, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from clinstack.errors import InputError

Source = Literal["events", "durations", "labels"]
Definition = Literal["span", "sum"]
VentilationText = Literal["admission", "before"]
Stays = Literal["first", "all"]
EXCLUSIONS = ("head_neck_cancer", "neuromuscular", "burns", "donors")
"""Names of the published cohort's exclusions by diagnosis, in the order in which they are applied."""


@dataclass(frozen=True)
class VentilationOptions:
    """How admissions are chosen and labelled for prolonged mechanical ventilation.

    Attributes
    ----------
    source : {"events", "durations", "labels"}
        Charted settings and procedures; a ready table of ventilation periods; or a file of labels.
    file : Path, optional
        The file of labels (CSV or Parquet), for ``labels`` alone.
    definition : {"span", "sum"}
        Positive when the time from the first start to the last end plus the grace reaches ``days``, pauses included;
        or when the durations of the periods add up to ``days``, without a grace.
    days : float
        Days that make ventilation prolonged.
    grace_hours : float
        Added to the last end, for ``span`` alone.
    text : {"admission", "before"}
        The text of the admission that the other tasks use, or its notes written before the first ventilation.
    stays : {"first", "all"}
        The first ICU stay of an admission; or each stay for itself, as published: positive when one of them is.
    exclusions : tuple of str
        Diagnoses that leave an admission out, from `EXCLUSIONS`.
    minimum_days : float
        Days on the ventilator, measured like the label, that an admission needs; the published cohort has 2.
    early_note : bool
        Whether an admission needs a nursing or respiratory note within 48 hours from the first start.
    use_file_split : bool
        Whether the split of the file of labels is kept, with patients on several sides if it has them.

    Raises
    ------
    InputError
        If a value is unknown, out of range, or of no use with the source.
    """

    source: Source = "events"
    file: Path | None = None
    definition: Definition = "span"
    days: float = 7
    grace_hours: float = 6
    text: VentilationText = "admission"
    stays: Stays = "first"
    exclusions: tuple[str, ...] = ()
    minimum_days: float = 0
    early_note: bool = False
    use_file_split: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        for name, kind in (("source", Source), ("definition", Definition), ("text", VentilationText), ("stays", Stays)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"ventilation {name} is {getattr(self, name)!r}; choose from {choices}.")
        unknown = [name for name in self.exclusions if name not in EXCLUSIONS]
        if unknown:
            raise InputError(f"ventilation exclusions: {', '.join(unknown)}; choose from {', '.join(EXCLUSIONS)}.")
        if not 0 < self.days < 1000:
            raise InputError(f"ventilation days is {self.days}; use more than 0 and less than 1000.")
        if not 0 <= self.grace_hours < 24 * self.days:
            raise InputError(f"ventilation grace_hours is {self.grace_hours}; use 0 or more, less than the days.")
        if not 0 <= self.minimum_days <= self.days:
            raise InputError(f"ventilation minimum_days is {self.minimum_days}; use 0 to {self.days:g}, the days.")
        if self.source == "labels":
            self._check_labels()
        elif self.file is not None or self.use_file_split:
            raise InputError(
                f"ventilation source is {self.source}: a label file and its split go with the source labels alone."
            )

    def _check_labels(self) -> None:
        if self.file is None:
            raise InputError("ventilation source is labels but no file is named; name a CSV or Parquet file of labels.")
        standard = VentilationOptions()
        names = ("definition", "days", "grace_hours", "stays", "exclusions", "minimum_days", "early_note")
        useless = [name for name in names if getattr(self, name) != getattr(standard, name)]
        if useless:
            raise InputError(
                f"ventilation {', '.join(useless)}: a label file holds its cohort and labels already; "
                f"leave the option out, or use the source events or durations."
            )
