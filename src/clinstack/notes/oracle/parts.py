"""What a note of the synthetic cohort says, by name: regular expressions over its sections."""

from __future__ import annotations

import re

from clinstack.notes.sections.find import split_sections

_SECTIONS = {
    "CHIEF COMPLAINT": "chief complaint",
    "PRESENT ILLNESS": "present illness",
    "MEDICAL HISTORY": "past medical history",
    "MEDICATION ON ADMISSION": "medications on admission",
    "ALLERGIES": "allergies",
    "PHYSICAL EXAM": "physical exam",
    "FAMILY HISTORY": "family history",
    "SOCIAL HISTORY": "social history",
    "PERTINENT RESULTS": "laboratory results",
    "HOSPITAL COURSE": "hospital course",
    "DISCHARGE MEDICATIONS": "discharge medications",
    "DISCHARGE DIAGNOSIS": "discharge diagnosis",
    "DISCHARGE CONDITION": "discharge condition",
    "DISCHARGE DISPOSITION": "discharge disposition",
    "FINDINGS": "findings",
    "IMPRESSION": "impression",
}
"""Name of a section to the name of the part."""
_HEAD = {
    "admission date": r"^Admission Date: (\d{4}-\d{1,2}-\d{1,2})\b",
    "discharge date": r"\bDischarge Date: (\d{4}-\d{1,2}-\d{1,2})\b",
    "sex": r"^Sex: ([FM])\b",
    "service": r"\bService: ([A-Z][A-Z ]+)$",
    "study date": r"^(\d{4}-\d{1,2}-\d{1,2}) [A-Z]",
    "study": r"^\d{4}-\d{1,2}-\d{1,2} ([A-Z][A-Z ()]+)$",
    "reason for the study": r"^Reason: (.+)$",
}
"""Lines above the first section of a discharge summary or a radiology report."""
_SYSTEMS = {
    "neurological state": "neuro",
    "breathing": "resp",
    "abdominal findings": "gi",
    "state of the skin": "skin",
    "social history": "social",
    "pain": "pain",
    "plan": "plan",
}
"""Lines of a nursing note, which goes by systems."""
_VITALS = {
    "blood pressure": r"\bbp (\d{2,3}/\d{2,3})\b",
    "heart rate": r"\bhr (\d{2,3})\b",
    "respiratory rate": r"\brr (\d{1,2})\b",
    "oxygen saturation": r"\bsat (\d{2,3}%)",
    "temperature": r"(?<!\w)t (\d{2,3}\.\d)\b",
}
_VITAL_SIGNS = re.compile(r"\bbp \d{2,3}/\d{2,3}(?:, (?:hr|rr|sat|t) [\d.]+%?)*(?![\d.]*\d)")
_RESULTS = {
    "white cell count": r"\bwbc (\d+\.\d)\b",
    "hematocrit": r"\bhct (\d+\.\d)\b",
    "sodium": r"\bna (\d{3})\b",
    "creatinine": r"\bcr (\d+\.\d)\b",
}
_COURSE = {
    "procedures": r"(?:^|\. )(?:had|underwent|procedures:) ([^.]+)",
    "complications": r"(?:^|\. )(?:course complicated by|also treated for|c/b) ([^.]+)",
    "time on the ventilator": r"\b(?:intubated for|on the ventilator) (\d+ days)\b",
    "day of extubation": r"\bextubated (day \d+)\b",
}
_PATIENT = re.compile(r"^((?:\d{2,3}|Age over 90) ?(?:yo|y/o|year old|yr old) [a-z]+)\b")
_PATIENT_LINE = re.compile(r"^((?:\d{2,3}|over 90) year old (?:man|woman))$", re.MULTILINE)
_ITEM = re.compile(r"^(?:\d+\.|-) ")


def read_parts(note: str) -> dict[str, str]:
    """Return what a note says under the names of its parts; what is not found has no entry.

    Values stand as in the note; the items of a list are joined with commas.
    """
    parts: dict[str, str] = {}
    circulation = re.search(r"^cv: (.+)$", note, re.MULTILINE)
    for section in () if circulation else split_sections(note):
        name = _SECTIONS.get(section.name or "")
        if name and section.body and name not in parts:
            parts[name] = _one_line(section.body)
    for name, pattern in _HEAD.items():
        if found := re.search(pattern, note, re.MULTILINE):
            parts[name] = found[1].strip()
    for name, system in _SYSTEMS.items() if circulation else ():
        if found := re.search(rf"^{system}: (.+)$", note, re.MULTILINE):
            parts[name] = found[1].strip()
    if signs := _VITAL_SIGNS.search(circulation[1] if circulation else parts.get("present illness", "")):
        parts["vital signs"] = signs[0]
    _add(parts, _VITALS, parts.get("vital signs", ""))
    _add(parts, _RESULTS, parts.get("laboratory results", ""))
    _add(parts, _COURSE, parts.get("hospital course", ""))
    who = _PATIENT.match(parts.get("present illness", "")) or _PATIENT_LINE.search(note)
    if who:
        parts["patient"] = who[1]
    return parts


def _one_line(body: str) -> str:
    """Join the lines of a section: items of a list with commas, other lines with blanks."""
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    if len(lines) > 1 and all(_ITEM.match(line) for line in lines):
        return ", ".join(_ITEM.sub("", line) for line in lines)
    return " ".join(lines)


def _add(parts: dict[str, str], patterns: dict[str, str], text: str) -> None:
    for name, pattern in patterns.items():
        if found := re.search(pattern, text):
            parts[name] = found[1].strip()
