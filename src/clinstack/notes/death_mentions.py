"""Mentions of the patient's death in an admission text, which would give the answer away."""

from __future__ import annotations

import re

_DEATH = r"(?:expired|died|passed\s+away|deceased)"
_PATIENT = re.compile(rf"\b(?:patient|pt)\s+(?:had\s+|has\s+|was\s+|is\s+)?{_DEATH}\b", re.IGNORECASE)
_REMOVED = re.compile(
    rf"\b(?:the\s+)?(?:patient|pt|he|she)\s+(?:had\s+|has\s+|was\s+|is\s+)?{_DEATH}\b"
    rf"|(?:(?<=^)|(?<=[.;:]\s))(?:had\s+|has\s+)?{_DEATH}\b(?=\s*(?:$|[.,;]|on\b|at\b|in\b|during\b|this\b))",
    re.IGNORECASE,
)
_SECTION = re.compile(r"^((?:PHYSICAL EXAM|MEDICATION ON ADMISSION):[ \t]*)(.*)$", re.MULTILINE)
RULES: dict[str, re.Pattern[str]] = {
    "names the patient's death": _PATIENT,
    "says that he or she expired": re.compile(r"\b(?:he|she)\s+(?:had\s+|has\s+)?expired\b", re.IGNORECASE),
    "pronounced dead": re.compile(r"\bpronounced\s+(?:expired|dead|deceased)\b", re.IGNORECASE),
    "time of death": re.compile(r"\btime\s+of\s+death\b", re.IGNORECASE),
}
"""Rules for dropping an admission, by name, in the order in which they are tried."""


_WORDS = ("expired", "died", "passed", "deceased", "pronounced", "death")


def without_charted_death(text: str) -> str:
    """Remove mentions of the patient's death from physical exam and medication, where they were charted later.

    All mentions go, each within its section, and whole words only; "the expired insulin" and "mother died" stay.
    """
    return _SECTION.sub(lambda found: found.group(1) + " ".join(_REMOVED.sub("", found.group(2)).split()), text)


def may_tell_death(text: str) -> bool:
    """Whether a text holds a word without which no rule applies; a quick look before the slow one."""
    lowered = text.lower()
    # Beyond ASCII a letter may match another one whose lower case differs.
    return not text.isascii() or any(word in lowered for word in _WORDS)


def death_rule(text: str) -> str | None:
    """Return the name of the first rule by which a text gives the death away, or None."""
    return next((name for name, pattern in RULES.items() if pattern.search(text)), None)
