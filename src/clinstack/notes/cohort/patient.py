"""The latent patient: conditions, acute problem, severity, and the course that is drawn from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from math import exp, log

from clinstack.notes.cohort.chance import Chance, logistic
from clinstack.notes.cohort.complications import COMPLICATIONS, Complication
from clinstack.notes.cohort.conditions import CONDITIONS, RARE_CONDITIONS, Condition
from clinstack.notes.cohort.problem import Problem
from clinstack.notes.cohort.problems_medical import MEDICAL_PROBLEMS
from clinstack.notes.cohort.problems_surgical import SURGICAL_PROBLEMS

PROBLEMS = MEDICAL_PROBLEMS + SURGICAL_PROBLEMS
FIRST_SUBJECT = 9_000_000
FIRST_ADMISSION = 9_500_000
ADMISSIONS_PER_PATIENT = 3
STEEPNESS = 2.5
"""How much steeper than its table says each complication climbs with the severity."""
_WOMEN_ONLY = ("6180", "6202", "6271")
_INCIDENTAL = (
    "9904 8872 3893 9607 9390 8744 8703 3891 3995 3324 4513 8914 9907 3491 5491 9905 8856 8891 8622 3404 4523 3722 "
    "9915 8841 4516 9962 3895 0331 5794 8659 4131 3722 9960 4011 3972 0017 3783 8848 5188 387 4311 8919 3761 9925 5101"
)
INCIDENTAL_PROCEDURES = tuple(_INCIDENTAL.split(" "))
"""Procedures that any stay may need, the likeliest first."""


@dataclass
class Patient:
    """An invented person."""

    index: int
    sex: str
    age: float
    born: datetime
    frailty: float
    conditions: list[Condition]
    rare: list[tuple[str, tuple[str, ...]]]
    admissions: list[Admission] = field(default_factory=list)

    @property
    def subject_id(self) -> int:
        """Return the SUBJECT_ID, in a range that MIMIC-III does not use."""
        return FIRST_SUBJECT + self.index


@dataclass
class Admission:
    """One stay and all that happened in it."""

    hadm_id: int
    number: int
    admitted: datetime
    discharged: datetime
    age: float
    problem: Problem
    severity: float
    complications: list[Complication]
    died: bool
    icu: bool
    ventilated: bool
    ventilator_days: float
    diagnoses: list[str]
    procedures: list[str]

    @property
    def days(self) -> float:
        """Return the exact length of stay in days."""
        return (self.discharged - self.admitted) / timedelta(days=1)


@cache
def _pairs(text: str) -> tuple[tuple[str, float], ...]:
    """Parse ``name:number`` pairs; names may hold spaces and commas."""
    return tuple((name.strip(), float(value)) for name, value in re.findall(r"([A-Za-z0-9][\w ,-]*?):(-?[\d.]+)", text))


@cache
def _preferences(name: str, likes: str) -> dict[str, float]:
    """Return the numbers of ``likes`` by the full name of the condition or problem whose beginning they give."""
    known = (*CONDITIONS, *(problem.name for problem in PROBLEMS))
    return {
        full: value
        for key, value in _pairs(likes)
        for full in known
        if full.lower().startswith(key.lower()) and full != name
    }


def draw_patient(seed: int, index: int) -> Patient:
    """Draw the invented patient ``index`` of a cohort; the same for every size of the cohort.

    Outcomes depend on the severity, the conditions and the problem through logistic and log-normal models, so that
    a note predicts them, but never surely.
    """
    chance = Chance(seed, index, 0)
    age = min(max(chance.normal(64, 16), 18.0), 95.0)
    sex = "F" if chance.yes(0.44) else "M"
    frailty = chance.normal()
    conditions = [
        condition
        for condition in CONDITIONS.values()
        if chance.yes(
            logistic(
                log(condition.prevalence / (1 - condition.prevalence)) + condition.age * (age - 64) / 10 + 0.2 * frailty
            )
        )
        and not (sex == "F" and "prostat" in condition.name)
    ][:11]
    rare = _draw_rare(chance, sex)
    first = datetime(2100 + chance.between(1, 95), chance.between(1, 12), chance.between(1, 28), chance.between(0, 23))
    first += timedelta(minutes=chance.between(0, 59))
    born = (first - timedelta(days=age * 365.25)).replace(hour=0, minute=0, second=0, microsecond=0)
    if age >= 90:
        born -= timedelta(days=round(210 * 365.25))  # MIMIC-III's shift, which hides the age
    patient = Patient(index, sex, age, born, frailty, conditions, rare)
    admitted = first
    for number in range(1 + (chance.yes(0.19)) + (chance.yes(0.06))):
        age_now = age + (admitted - first) / timedelta(days=365.25)
        admission = _draw_admission(chance, patient, number, admitted, age_now)
        patient.admissions.append(admission)
        if admission.died:
            break
        admitted = admission.discharged + timedelta(days=chance.between(9, 700), minutes=chance.between(0, 1439))
    return patient


def _draw_rare(chance: Chance, sex: str) -> list[tuple[str, tuple[str, ...]]]:
    """Draw up to three rare conditions; the probability falls with the rank, as codes do in hospitals."""
    drawn = []
    for _ in range(3):
        if chance.yes(0.55):
            rank = int(len(RARE_CONDITIONS) * chance.uniform() ** 1.8)
            if sex == "F" or RARE_CONDITIONS[rank][0] not in _WOMEN_ONLY:
                drawn.append(RARE_CONDITIONS[rank])
    return list(dict.fromkeys(drawn))


def _draw_admission(chance: Chance, patient: Patient, number: int, admitted: datetime, age: float) -> Admission:
    names = tuple(condition.name for condition in patient.conditions)
    weights = []
    for problem in PROBLEMS:
        weight = problem.weight
        preferences = _preferences(problem.name, problem.likes)
        for name in names:
            weight *= preferences.get(name, 1.0)
        weights.append(weight)
    problem = chance.weighted(PROBLEMS, weights)
    severity = chance.normal(0.2 * patient.frailty + 0.006 * (age - 64), 1.0)
    context = (*names, problem.name)
    complications = [
        item
        for item in COMPLICATIONS
        if chance.yes(logistic(item.base + STEEPNESS * item.severity * severity + _shift(item, context)))
    ]
    icu = chance.yes(logistic(problem.icu + 0.9 + 0.9 * severity))
    respiratory = 0.5 if "chronic airway obstruction" in names else 0.0
    ventilated = icu and chance.yes(logistic(problem.ventilated + 0.4 + 0.75 * severity + respiratory))
    risk = -4.9 + 2.2 * severity + 0.035 * (age - 64) + 1.5 * problem.death
    risk += sum(condition.death for condition in patient.conditions) + 0.5 * ventilated
    risk += 2.0 * any(item.name.startswith("do not") for item in complications)
    risk += 0.6 * any(item.name == "metabolic acidosis" for item in complications)
    died = chance.yes(logistic(risk))
    days = (problem.days / 6) ** 1.5 * exp(0.38 * severity + 0.28 * patient.frailty + chance.normal(0.0, 0.42))
    for item in complications:
        days *= item.days
    days = 1.0 + 4.5 * days
    ventilator_days = 0.0
    if ventilated:
        median = 7.2 * (problem.ventilator_days / 5) ** 0.7
        effort = 0.3 * severity + respiratory + 0.3 * patient.frailty
        ventilator_days = median * exp(effort + chance.normal(0.0, 0.65))
        ventilator_days = min(max(ventilator_days, 0.3), 60.0)
        days = max(days, ventilator_days + chance.between(1, 6) + chance.uniform())
    if died:
        days = max(0.3, days * (0.3 + 0.7 * chance.uniform()))
        ventilator_days = min(ventilator_days, days - 0.1)
    days = min(max(days, 0.3), 90.0)
    diagnoses = _draw_diagnoses(chance, patient, problem, complications, ventilated)
    procedures = _draw_procedures(chance, problem, severity, icu, ventilated, ventilator_days, names)
    discharged = admitted + timedelta(minutes=round(days * 1440))
    hadm_id = FIRST_ADMISSION + patient.index * ADMISSIONS_PER_PATIENT + number
    return Admission(
        hadm_id, number, admitted, discharged, age, problem, severity, complications, died, icu, ventilated,
        ventilator_days, diagnoses, procedures,
    )  # fmt: skip


def _shift(item: Complication, context: tuple[str, ...]) -> float:
    preferences = _preferences(item.name, item.likes)
    return sum(preferences.get(name, 0.0) for name in context)


def _draw_diagnoses(
    chance: Chance, patient: Patient, problem: Problem, complications: list[Complication], ventilated: bool
) -> list[str]:
    codes = [chance.pick(problem.codes.split())]
    codes += [code for code, probability in _pairs(problem.extra) if chance.yes(probability)]
    if ventilated and problem.ventilator_days > 3 and chance.yes(0.5):
        codes.append("51881")
    secondary = [chance.pick(item.codes.split()) for item in complications if chance.yes(0.95)]
    secondary += [chance.pick(condition.codes.split()) for condition in patient.conditions if chance.yes(0.92)]
    secondary += [code for code, _ in patient.rare if chance.yes(0.9)]
    codes += chance.some(secondary, len(secondary))
    return list(dict.fromkeys(codes))


def _draw_procedures(
    chance: Chance,
    problem: Problem,
    severity: float,
    icu: bool,
    ventilated: bool,
    ventilator_days: float,
    names: tuple[str, ...],
) -> list[str]:
    codes = [code for code, probability in _pairs(problem.procedures) if chance.yes(probability)]
    operated = problem.ventilator_days < 3 and problem.ventilated > 2
    if ventilated and not operated:
        codes.append("9672" if ventilator_days > 4 else "9671")
        if chance.yes(0.85):
            codes.append("9604")
        if ventilator_days > 11 and chance.yes(0.45):
            codes += ["311", "4311"]
        if chance.yes(0.3):
            codes.append("966")
    if icu and chance.yes(logistic(-1.2 + 1.2 * severity + 0.9 * ventilated)):
        codes.append("3893")
    if icu and chance.yes(logistic(-2.2 + 0.8 * severity + 0.9 * ventilated)):
        codes.append("3891")
    if "end stage renal disease" in names and chance.yes(0.8):
        codes.append("3995")
    for probability in (0.3, 0.08):
        if chance.yes(probability):
            codes.append(INCIDENTAL_PROCEDURES[int(len(INCIDENTAL_PROCEDURES) * chance.uniform() ** 1.6)])
    return list(dict.fromkeys(codes))
