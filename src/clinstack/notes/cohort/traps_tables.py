"""Traps in admissions and codes: lengths of stay at the bounds, codes that lose zeros or depth."""

from __future__ import annotations

from collections.abc import Callable

from clinstack.notes.cohort.stay import Stay
from clinstack.notes.cohort.trap import Trap

BOUNDARY_DAYS = tuple(
    round(bound + step, 2) for bound in (3, 7, 14) for step in (-0.06, -0.05, -0.04, 0.0, 0.04, 0.05, 0.06)
)
"""Lengths of stay around the bounds of the classes: rounding to a tenth of a day moves some of them across."""
CHUNK_PATIENTS = 15_000
"""Patients without V and E codes: more than the 131,072 rows that pandas types at once."""
CHUNK = "dx-chunk-without-v-and-e"
NO_SPLIT = "patient-in-no-split"


def _boundaries(stay: Stay) -> None:
    stay.ends(False)
    stay.summarize(stay.text(stay.sections()))
    for number, days in enumerate(BOUNDARY_DAYS):
        twin = stay.twin(number, 20 * (number + 1))
        twin.lasts(days)
        twin.note("Discharge summary", "Report", twin.text(twin.sections()))


def _lasts(days: float) -> Callable[[Stay], None]:
    def plant(stay: Stay) -> None:
        stay.ends(False)
        stay.lasts(days)
        stay.summarize(stay.text(stay.sections()))

    return plant


def _coded(table: str, *codes: str | None, order: tuple[int, ...] = ()) -> Callable[[Stay], None]:
    def plant(stay: Stay) -> None:
        stay.codes(table, *codes, order=order)
        stay.summarize(stay.text(stay.sections()))

    return plant


def _no_flag(stay: Stay) -> None:
    stay.edit("ADMISSIONS", HOSPITAL_EXPIRE_FLAG=None)
    stay.summarize(stay.text(stay.sections()))


def _summary_only(stay: Stay) -> None:
    stay.summarize(stay.text(stay.sections()))


_DX, _PX = "DIAGNOSES_ICD", "PROCEDURES_ICD"
TABLE_TRAPS = (
    Trap("stay-boundaries", "further stays of 2.94 to 14.06 days, some of which round across a bound", _boundaries),
    Trap("stay-zero", "discharged in the minute of the admission", _lasts(0)),
    Trap("stay-negative", "discharged half a day before the admission", _lasts(-0.5)),
    Trap("dx-leading-zero", "diagnoses that begin with zeros", _coded(_DX, "0389", "99591", "0054")),
    Trap("dx-v-and-e", "V4581 beside V45, and E8859", _coded(_DX, "V4581", "V45", "E8859")),
    Trap("dx-short", "codes of one to three characters", _coded(_DX, "042", "78", "4")),
    Trap("dx-null", "the only diagnosis has no code", _coded(_DX, None)),
    Trap(
        "dx-order",
        "SEQ_NUM against the order of the file, and a category twice",
        _coded(_DX, "42731", "4241", "4280", "42789", order=(3, 2, 1, 4)),
    ),
    Trap("px-0331", "a spinal tap, 0331: without its zero the category of a lung operation", _coded(_PX, "0331")),
    Trap("px-331", "an incision of the lung, 331", _coded(_PX, "331")),
    Trap("px-0066", "codes with two zeros", _coded(_PX, "0066", "3601", "0040")),
    Trap(
        "px-order",
        "SEQ_NUM against the order of the file, and a category twice",
        _coded(_PX, "9671", "9604", "9672", order=(2, 1, 3)),
    ),
    Trap("px-none", "an admission without procedures", _coded(_PX)),
    Trap(
        "px-empty",
        "a procedure without a code: pandas reads the whole column as floats",
        _coded(_PX, "9604", None),
        alone=True,
    ),
    Trap(
        "no-expire-flag", "HOSPITAL_EXPIRE_FLAG is empty: pandas reads the whole column as floats", _no_flag, alone=True
    ),
    Trap(
        CHUNK,
        "no V or E code in the first 131,072 diagnoses: pandas reads numbers (20,000 patients or more)",
        _summary_only,
        alone=True,
    ),
    Trap(NO_SPLIT, "patients that stand in none of the split lists (with --split-lists)", _summary_only),
)
