"""How an invented clinician writes: abbreviations, synonyms, numbers, lists and slips of the keyboard."""

from __future__ import annotations

import re
from datetime import datetime

from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.complications import SEVERITY_PHRASES
from clinstack.notes.cohort.patient import Admission, Patient

HOSPITAL_LINE = "Synthetic General Hospital - invented patient"

ARRIVALS = (
    "p/w",
    "presents with",
    "presenting with",
    "admitted with",
    "who comes in with",
    "transferred from osh with",
    "brought in by ems with",
    "sent from clinic with",
)
_STORY_BEGINNINGS = (
    "took found fell ejected restrained unrestrained pedestrian tripped could passed woke given missed admitted "
    "lightheaded hypoxic confused dizzy distended 6 aaa"
)
STORY_BEGINNINGS = frozenset(_STORY_BEGINNINGS.split(" "))
"""Stories that begin with one of these follow a comma and not an arrival."""
EXAM_STATES: tuple[tuple[str, ...], ...] = (
    ("nad, pleasant", "well appearing", "comfortable, a&ox3"),
    ("nad", "alert, a&ox3", "awake, conversant"),
    ("mild distress", "tired, oriented x2", "uncomfortable"),
    ("moderate distress", "lethargic", "ill appearing, pale"),
    ("severe distress", "obtunded", "toxic, mottled knees"),
    ("unresponsive", "gcs 3", "cold, mottled, no response to pain"),
)
FUNCTION: tuple[tuple[str, ...], ...] = (
    ("works full time", "independent, exercises daily", "very active, works"),
    ("lives with spouse, independent", "retired, independent in adls", "lives with family"),
    ("walks with a cane, lives alone", "uses a walker", "has home health aide"),
    ("nursing home resident", "wheelchair, lives in rehab", "bedbound at baseline"),
)
LIMITED = ("limited by", "lives with", "managing", "gets home care for", "on disability for")
PRESENTS_AS = ("now", "per family", "at baseline well, today", "seen today")
HABITS = ("no tobacco", "quit smoking years ago", "rare etoh", "denies drugs", "former smoker", "occasional wine")
FAMILY = (
    "father died of mi",
    "mother with dm",
    "non-contributory",
    "nc",
    "brother with cad",
    "no family h/o cancer",
    "mother died of stroke",
    "sister with breast ca",
    "unknown, adopted",
)
ALLERGIES = (
    "nkda",
    "nkda",
    "nkda",
    "penicillin",
    "sulfa",
    "codeine",
    "no known drug allergies",
    "morphine",
    "shellfish",
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORD = re.compile(r"[a-z]{4,}")


def level(value: float, count: int) -> int:
    """Return the index of a standard-normal ``value`` on a scale of ``count`` steps, the lowest values first."""
    return min(max(int(1.15 * value + count / 2 - 0.3), 0), count - 1)


def misspell(chance: Chance, text: str, rate: float) -> str:
    """Slip on about ``rate`` of the longer words: swap, drop, double or replace a letter."""
    words = list(_WORD.finditer(text))
    pieces, end = [], 0
    for word in words:
        if not chance.yes(rate):
            continue
        letters = word.group()
        at = chance.between(1, len(letters) - 2)
        kind = chance.between(0, 3)
        if kind == 0:
            slip = letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :]
        elif kind == 1:
            slip = letters[:at] + letters[at + 1 :]
        elif kind == 2:
            slip = letters[:at] + letters[at] + letters[at:]
        else:
            slip = letters[:at] + chance.pick(_LETTERS) + letters[at + 1 :]
        pieces += [text[end : word.start()], slip]
        end = word.end()
    return "".join(pieces) + text[end:]


def date_placeholder(moment: datetime) -> str:
    """Write a date as MIMIC-III's de-identification left it."""
    return f"[**{moment.year}-{moment.month}-{moment.day}**]"


def age_and_sex(chance: Chance, patient: Patient, admission: Admission) -> str:
    """Open a history: ``82 yo f``; from 90 years on the placeholder that MIMIC-III uses."""
    age = "[**Age over 90 **]" if admission.age >= 90 else str(int(admission.age))
    unit = chance.pick(("yo", "yo", "y/o", "year old", "yr old"))
    sex = chance.pick(("m", "m", "male", "man", "gentleman") if patient.sex == "M" else ("f", "f", "female", "woman"))
    return f"{age} {unit} {sex}"


def vital_signs(chance: Chance, admission: Admission, count: int) -> str:
    """Write ``count`` vital signs; they follow the severity with noise."""
    severity = admission.severity
    systolic = int(chance.normal(128 - 15 * severity, 11))
    systolic = min(max(systolic, 52), 220)
    diastolic = int(systolic * (0.5 + 0.12 * chance.uniform()))
    rate = min(max(int(chance.normal(88 + 10 * severity, 10)), 34), 180)
    breaths = min(max(int(chance.normal(19 + 3.5 * severity, 3)), 8), 48)
    saturation = min(max(int(chance.normal(95.5 - 2.2 * severity, 2.0)), 66), 100)
    temperature = chance.normal(98.6 + (0.8 if "fever" in admission.problem.complaints else 0.0), 0.8)
    signs = (f"bp {systolic}/{diastolic}", f"hr {rate}", f"rr {breaths}", f"sat {saturation}%", f"t {temperature:.1f}")
    first = signs[0]
    return ", ".join([first, *chance.some(signs[1:], count - 1)])


def state_on_arrival(chance: Chance, admission: Admission) -> str:
    """Say how ill the patient looks, from a noisy view of the severity."""
    seen = level(admission.severity + chance.normal(0.0, 0.25), len(SEVERITY_PHRASES))
    return chance.pick(SEVERITY_PHRASES[seen])


def state_on_exam(chance: Chance, admission: Admission) -> str:
    """Say the same with the words of an examination, from another noisy view."""
    return chance.pick(EXAM_STATES[level(admission.severity + chance.normal(0.0, 0.4), len(EXAM_STATES))])


def function_at_home(chance: Chance, patient: Patient) -> str:
    """Say how the patient lives, from a noisy view of the frailty."""
    return chance.pick(FUNCTION[level(patient.frailty + chance.normal(0.0, 0.5), len(FUNCTION))])


def listing(chance: Chance, items: list[str], style: int) -> str:
    """Write a list in the author's style: with commas, numbers or dashes."""
    if style == 0 or len(items) < 2:
        return ", ".join(items)
    if style == 1:
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    return "\n".join(f"- {item}" for item in items)
