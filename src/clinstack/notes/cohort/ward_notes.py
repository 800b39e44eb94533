"""The writers of radiology and nursing notes."""

from __future__ import annotations

from datetime import datetime

from clinstack.notes.cohort import wording
from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.patient import Admission, Patient


def radiology_report(chance: Chance, patient: Patient, admission: Admission, moment: datetime) -> str:
    """Write a radiology report."""
    problem = admission.problem
    finding = chance.pick(problem.imaging.split("|"))
    second = chance.pick(problem.imaging.split("|"))
    lines = []
    if admission.ventilated and problem.study.startswith("CHEST"):
        lines.append(
            chance.pick(
                ("ett 4 cm above the carina", "endotracheal tube in good position", "tubes and lines unchanged")
            )
        )
    lines.append(chance.pick((f"there is {finding}", finding, f"again seen is {finding}")))
    lines.append(
        chance.pick(
            (
                "no pneumothorax",
                "heart size is normal",
                "osseous structures are unremarkable",
                "no prior for comparison",
            )
        )
    )
    body = ". ".join(lines) + "."
    impression = chance.pick(
        (f"{second}.", f"{finding}, {second}." if second != finding else f"{finding}.", f"findings suggest {finding}.")
    )
    age = "over 90" if admission.age >= 90 else str(int(admission.age))
    return (
        f"{wording.HOSPITAL_LINE}\n{wording.date_placeholder(moment)} {problem.study}\n"
        f"Clip # [**Clip Number {chance.between(100, 999)}**]\n"
        f"Reason: {chance.pick(problem.complaints.split('|'))}\n\n"
        f"{age} year old {'man' if patient.sex == 'M' else 'woman'}\n\n"
        f"FINDINGS: {wording.misspell(chance, body, 0.015)}\n\n"
        f"IMPRESSION: {wording.misspell(chance, impression, 0.015)}\n"
    )


def nursing_note(chance: Chance, patient: Patient, admission: Admission) -> str:
    """Write a nursing progress note by systems."""
    worse = chance.normal(admission.severity, 0.5)
    neuro = chance.pick(wording.EXAM_STATES[wording.level(worse, len(wording.EXAM_STATES))])
    if admission.ventilated and chance.yes(0.8):
        breathing = f"vented, fio2 {chance.between(4, 10) * 10}%, peep {chance.between(5, 14)}"
    else:
        breathing = chance.pick(("on ra, lungs clear", "2 l nc", "face tent, coarse", "o2 weaned"))
    lines = [f"neuro: {neuro}", f"cv: {wording.vital_signs(chance, admission, 2)}", f"resp: {breathing}"]
    extra = (
        "gi: abd soft, bs present",
        "gu: foley, adequate uo",
        "skin: intact",
        "id: afebrile, abx as ordered",
        "social: family visited and updated",
        "pain: controlled with prn meds",
    )
    lines += chance.some(extra, chance.between(1, 2))
    plan = chance.pick(
        ("continue to monitor", "wean o2 as tolerated", "follow labs", "support to family", "plan as per team")
    )
    return f"{wording.HOSPITAL_LINE}\n" + wording.misspell(chance, "\n".join([*lines, f"plan: {plan}"]), 0.03) + "\n"


def newborn_summary(chance: Chance, patient_index: int, sex: str) -> str:
    """Write the discharge summary of a newborn, which the outcome tasks leave out."""
    weight = chance.between(2100, 4300)
    return (
        f"{wording.HOSPITAL_LINE}\nName: [**Known lastname {1000 + patient_index}**]\n"
        f"Sex: {sex} Service: NEONATOLOGY\n\nHistory of Present Illness:\n"
        f"baby {'boy' if sex == 'M' else 'girl'} born at term, {weight} grams, apgars 8 and 9.\n\n"
        "Brief Hospital Course:\nfed well, hepatitis b vaccine given.\n\nDischarge Condition:\ngood\n"
    )
