r"""The published way to the admission part of a discharge summary, with its consequences.

The published script turned each line break into the two characters ``\n`` and searched, for each of eight headers, for
the shortest text up to an empty line that some words without digits, dots or brackets and a colon follow. Here line
breaks stay, which changes nothing but the speed: the first place of a header counts whenever a closing place follows
anywhere, since closing places do not depend on the header.
"""

from __future__ import annotations

import re

SECTIONS: tuple[tuple[str, str], ...] = (
    ("CHIEF COMPLAINT", "chief complaint:"),
    ("PRESENT ILLNESS", "present illness:"),
    ("MEDICAL HISTORY", "medical history:"),
    ("MEDICATION ON ADMISSION", "medications on admission:"),
    ("ALLERGIES", "allergies:"),
    ("PHYSICAL EXAM", "physical exam:"),
    ("FAMILY HISTORY", "family history:"),
    ("SOCIAL HISTORY", "social history:"),
)
"""Title in the result and header in the note, in the order of the result."""
_ANY_CASE = [re.compile(re.escape(header), re.IGNORECASE) for _, header in SECTIONS]
_CLOSING = re.compile(r"\n(?=\n[^(\\|\d.)\n]+:)")


def official_sections(text: str) -> list[str]:
    """Return what the published script found under each header of `SECTIONS`, an empty text where it found nothing.

    Parameters
    ----------
    text : str
        The summaries and addenda of an admission, joined and stripped.
    """
    # A backslash and an n in the note were line breaks to the published script too.
    text = text.replace("\\n", "\n")
    lowered = text.lower() if text.isascii() else None
    found = []
    for (_, header), pattern in zip(SECTIONS, _ANY_CASE, strict=True):
        if lowered is not None:
            at = lowered.find(header)
            begin = at + len(header) if at >= 0 else -1
        else:
            match = pattern.search(text)
            begin = match.end() if match else -1
        closing = _CLOSING.search(text, begin + 1) if begin >= 0 else None
        found.append(text[begin : closing.start()].replace("\n", " ").strip() if closing else "")
    return found


def official_admission_text(text: str) -> str | None:
    """Return the admission part of a summary, None without complaint, present illness and history."""
    found = official_sections(text)
    if not any(found[:3]):
        return None
    return "\n\n".join(f"{title}: {section}" for (title, _), section in zip(SECTIONS, found, strict=True))


_DEATH = "(?:expired|died|passed away|deceased)"
_CHARTED = re.compile(
    rf"((?:PHYSICAL EXAM|MEDICATION ON ADMISSION):[^\n]*?)((?:patient|pt)?\s+(?:had\s|has\s)?{_DEATH})", re.IGNORECASE
)
DEATH_RULES: dict[str, re.Pattern[str]] = {
    "patient or pt, then died": re.compile(rf"(?:patient|pt)\s+(?:had\s|has\s)?{_DEATH}", re.IGNORECASE),
    "he expired": re.compile("he expired", re.IGNORECASE),
    "pronounced expired": re.compile("pronounced expired", re.IGNORECASE),
    "time of death": re.compile("time of death", re.IGNORECASE),
}
"""The published rules for dropping an admission from mortality, in their order."""
_WORDS = ("expired", "died", "passed away", "deceased", "time of death")


def official_mortality_text(text: str) -> str | None:
    """Return a text without its first charted death of each section, None where it still tells the death."""
    if text.isascii():
        lowered = text.lower()
        if not any(word in lowered for word in _WORDS):
            return text
    text = _CHARTED.sub(r"\1", text)
    return None if any(pattern.search(text) for pattern in DEATH_RULES.values()) else text
