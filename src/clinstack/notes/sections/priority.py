"""Which sections of a text matter most, where it is too long for a model and whole sections have to go."""

from __future__ import annotations

from collections.abc import Sequence

from clinstack.notes.sections.find import SectionSpan
from clinstack.notes.sections.headers import ADMISSION_SECTIONS

_ADMISSION = (
    "PRESENT ILLNESS",
    "CHIEF COMPLAINT",
    "MEDICAL HISTORY",
    "PHYSICAL EXAM",
    "MEDICATION ON ADMISSION",
    "SOCIAL HISTORY",
    "ALLERGIES",
    "FAMILY HISTORY",
)

PRIORITIES: dict[str, tuple[str | None, ...]] = {
    "admission": (*_ADMISSION, None),
    "summary": (
        "PRESENT ILLNESS",
        "CHIEF COMPLAINT",
        "HOSPITAL COURSE",
        "DISCHARGE DIAGNOSIS",
        "MEDICAL HISTORY",
        "ADMISSION DIAGNOSIS",
        "PROCEDURE",
        "SURGICAL HISTORY",
        "OTHER HISTORY",
        "SUBJECTIVE",
        "PHYSICAL EXAM",
        "OBJECTIVE",
        "ASSESSMENT AND PLAN",
        "DIAGNOSIS",
        "IMPRESSION",
        "MEDICATION ON ADMISSION",
        "MEDICATIONS",
        "PERTINENT RESULTS",
        "FINDINGS",
        "DISCHARGE CONDITION",
        "DISCHARGE MEDICATIONS",
        "DISCHARGE DISPOSITION",
        None,
        "REVIEW OF SYSTEMS",
        "SOCIAL HISTORY",
        "ALLERGIES",
        "FAMILY HISTORY",
        "CONSULTATIONS",
        "DISCHARGE EXAM",
        "TRANSFER EXAM",
        "MEDICATIONS ON TRANSFER",
        "PREOPERATIVE DIAGNOSIS",
        "POSTOPERATIVE DIAGNOSIS",
        "INDICATION",
        "TECHNIQUE",
        "COMPARISON",
        "OPERATION FACTS",
        "ADDENDUM",
        "FOLLOW-UP",
        "DISCHARGE INSTRUCTIONS",
        "DEMOGRAPHICS",
    ),
    "report": (
        "IMPRESSION",
        "FINDINGS",
        "POSTOPERATIVE DIAGNOSIS",
        "PREOPERATIVE DIAGNOSIS",
        "INDICATION",
        "PROCEDURE",
        "PRESENT ILLNESS",
        None,
        "PHYSICAL EXAM",
        "COMPARISON",
        "TECHNIQUE",
        "OPERATION FACTS",
        "DEMOGRAPHICS",
    ),
}
"""Names of sections for each kind of text, the most important first; None is every section without a listed name."""

_OF_A_REPORT = frozenset({"FINDINGS", "TECHNIQUE", "COMPARISON", "PREOPERATIVE DIAGNOSIS", "POSTOPERATIVE DIAGNOSIS"})
_OF_A_SUMMARY = frozenset(
    {"HOSPITAL COURSE", "MEDICAL HISTORY", "CHIEF COMPLAINT", "DISCHARGE DIAGNOSIS", "DISCHARGE MEDICATIONS"}
)


def text_kind(spans: Sequence[SectionSpan]) -> str:
    """Return the kind of a text by its sections, a key of `PRIORITIES`.

    ``admission`` where all are sections known on admission; ``report`` (of radiology or an operation) where some are of
    a report and none is of a summary; else ``summary``.
    """
    names = {span.name for span in spans}
    if names <= set(ADMISSION_SECTIONS):
        return "admission"
    if names & _OF_A_REPORT and not names & _OF_A_SUMMARY:
        return "report"
    return "summary"


def default_priority(spans: Sequence[SectionSpan]) -> tuple[str | None, ...]:
    """Return the names of sections for this kind of text, the most important first."""
    return PRIORITIES[text_kind(spans)]
