"""The writer of discharge summaries and addenda."""

from __future__ import annotations

from clinstack.notes.cohort import wording
from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.codes import PROCEDURE_TITLES
from clinstack.notes.cohort.patient import Admission, Patient

# fmt: off
HEADERS: dict[str, tuple[str, ...]] = {
    "complaint": ("Chief Complaint", "Chief Complaint", "Chief Complaint", "CC", "CHIEF COMPLAINT"),
    "illness": ("History of Present Illness", "History of Present Illness", "HPI", "HISTORY OF PRESENT ILLNESS"),
    "history": ("Past Medical History", "Past Medical History", "PMH", "PAST MEDICAL HISTORY", "PMHx"),
    "medications": (
        "Medications on Admission", "Medications on Admission", "Home Medications", "MEDICATIONS ON ADMISSION",
    ),
    "allergies": ("Allergies", "Allergies", "ALLERGIES", "Drug Allergies"),
    "exam": ("Physical Exam", "Physical Exam", "Physical Examination", "PHYSICAL EXAM", "PE"),
    "family": ("Family History", "Family History", "FAMILY HISTORY", "FH"),
    "social": ("Social History", "Social History", "SOCIAL HISTORY", "SH"),
    "results": ("Pertinent Results", "Pertinent Results", "Labs", "Labs on admission (day 1)", "2. Pertinent Results"),
    "course": ("Brief Hospital Course", "Hospital Course", "Brief Hospital Course", "HOSPITAL COURSE"),
    "discharge medications": ("Discharge Medications", "DISCHARGE MEDICATIONS"),
    "diagnosis": ("Discharge Diagnosis", "Discharge Diagnoses", "DISCHARGE DIAGNOSIS"),
    "condition": ("Discharge Condition", "DISCHARGE CONDITION"),
    "disposition": ("Discharge Disposition", "Disposition"),
}
# fmt: on
_ORDERS = (
    ("complaint", "illness", "history", "social", "family", "exam", "medications"),
    ("complaint", "illness", "history", "medications", "social", "family", "exam"),
    ("complaint", "illness", "history", "medications", "family", "social", "exam"),
    ("complaint", "illness", "exam", "history", "medications", "social", "family"),
)
_LEFT_OUT = {
    "complaint": 0.03,
    "history": 0.03,
    "medications": 0.15,
    "allergies": 0.2,
    "exam": 0.12,
    "family": 0.55,
    "social": 0.05,
}


def discharge_summary(chance: Chance, patient: Patient, admission: Admission) -> str:
    """Write a discharge summary; only what follows the admission sections tells the outcome."""
    style = chance.between(0, 2) if chance.yes(0.5) else 0
    bodies = admission_sections(chance, patient, admission, style)
    order = list(chance.pick(_ORDERS))
    order.insert(0 if chance.yes(0.4) else len(order), "allergies")
    order = [name for name in order if not chance.yes(_LEFT_OUT.get(name, 0.0))]
    bodies |= later_sections(chance, patient, admission)
    order += ["results"] * chance.yes(0.5) + ["course"] + ["discharge medications"] * (not admission.died)
    order += ["diagnosis"] * chance.yes(0.9) + ["condition"] + ["disposition"] * chance.yes(0.7)
    lines = [
        wording.HOSPITAL_LINE,
        f"Name: [**Known lastname {1000 + patient.index}**] "
        f"Unit No: [**Numeric Identifier {chance.between(100, 9999)}**]",
        f"Admission Date: {wording.date_placeholder(admission.admitted)} "
        f"Discharge Date: {wording.date_placeholder(admission.discharged)}",
        f"Sex: {patient.sex} Service: {admission.problem.service}",
    ]
    parts = ["\n".join(lines)]
    for name in order:
        body = wording.misspell(chance, bodies[name], 0.02)
        between = " " if "\n" not in body and chance.yes(0.3) else "\n"
        parts.append(f"{chance.pick(HEADERS[name])}:{between}{body}".rstrip())
    return "\n\n".join(parts) + "\n"


def addendum(chance: Chance, patient: Patient, admission: Admission) -> str:
    """Write an addendum, which follows the report by some days."""
    words = chance.pick(
        (
            "medication list corrected, otherwise unchanged",
            "pending cultures were negative",
            "pathology was benign on final review",
            "follow up with pcp in two weeks",
        )
    )
    return (
        f"{wording.HOSPITAL_LINE}\nName: [**Known lastname {1000 + patient.index}**]\n\n"
        f"Addendum:\n{words}\n\nDischarge Disposition:\n{_disposition(chance, admission)}\n"
    )


def admission_sections(chance: Chance, patient: Patient, admission: Admission, style: int) -> dict[str, str]:
    """Write the sections that were known on admission, by their names in `HEADERS`; ``style`` is that of lists."""
    problem = admission.problem
    hints = [chance.pick(item.hints.split("|")) for item in admission.complications if chance.yes(1.2 * item.hinted)]
    hints = chance.some(hints, 4)
    late = hints[3:]
    named = [chance.pick(condition.phrases.split("|")) for condition in patient.conditions if chance.yes(0.94)]
    named = chance.some(named, 9)
    rare = [
        chance.weighted(phrases, [3.0] + [1.0] * (len(phrases) - 1)) for _, phrases in patient.rare if chance.yes(0.85)
    ]
    early = chance.between(0, 2)
    history = named[early:] + rare
    drugs = [
        chance.pick(condition.medications.split("|"))
        for condition in patient.conditions
        if condition.medications and chance.yes(0.6)
    ]
    opening = wording.age_and_sex(chance, patient, admission)
    if named[:early]:
        opening += chance.pick((" with ", " w/ ", " with h/o ", " with pmh of ")) + ", ".join(named[:early])
    story = chance.pick(problem.stories.split("|"))
    arrives = ", " if story.split()[0].strip(",") in wording.STORY_BEGINNINGS else f" {chance.pick(wording.ARRIVALS)} "
    sentences = [f"{opening}{arrives}{story}"]
    arrival = wording.state_on_arrival(chance, admission)
    vitals = wording.vital_signs(chance, admission, chance.between(2, 3))
    sentences.append(f"{chance.pick(('in the ed', 'on arrival', 'vs'))} {vitals}, {arrival}")
    if hints[:3]:
        sentences.append(chance.pick(("labs/exam: ", "also ", "notable for ", "")) + ", ".join(hints[:3]))
    exam = f"gen: {wording.state_on_exam(chance, admission)}.\n{chance.pick(problem.exam.split('|'))}."
    if chance.yes(0.5):
        exam = f"{wording.vital_signs(chance, admission, 2)}.\n{exam}"
    if late:
        exam += f"\n{late[0]}"
    burdens = [chance.pick(condition.phrases.split("|")) for condition in patient.conditions if chance.yes(0.8)]
    social = wording.function_at_home(chance, patient)
    if chance.yes(0.5):
        social += f", {chance.pick(wording.HABITS)}"
    if burdens:
        social += f", {chance.pick(wording.LIMITED)} {', '.join(chance.some(burdens, 2))}"
    social += f". here for {chance.pick(problem.complaints.split('|'))}"
    social += f", {chance.pick(wording.PRESENTS_AS)} {wording.state_on_arrival(chance, admission)}"
    return {
        "complaint": chance.pick(problem.complaints.split("|")),
        "illness": ". ".join(sentences) + ".",
        "history": wording.listing(chance, history, style) if history else chance.pick(("none", "healthy", "denies")),
        "medications": wording.listing(chance, chance.some(list(dict.fromkeys(drugs)), 6), style) if drugs else "none",
        "allergies": chance.pick(wording.ALLERGIES),
        "exam": exam,
        "family": chance.pick(wording.FAMILY),
        "social": social,
    }


def later_sections(chance: Chance, patient: Patient, admission: Admission) -> dict[str, str]:
    """Write the sections of what came later, by their names in `HEADERS`."""
    problem = admission.problem
    sentences = [chance.pick(problem.course.split("|"))]
    if admission.ventilated:
        days = max(round(admission.ventilator_days), 1)
        sentences.append(
            chance.pick((f"intubated for {days} days", f"on the ventilator {days} days", f"extubated day {days}"))
        )
    done = chance.some([PROCEDURE_TITLES[code] for code in admission.procedures if code in PROCEDURE_TITLES], 3)
    if done:
        sentences.append(chance.pick(("had ", "underwent ", "procedures: ")) + ", ".join(done))
    happened = chance.some([item.name for item in admission.complications], 3)
    if happened:
        sentences.append(chance.pick(("course complicated by ", "also treated for ", "c/b ")) + ", ".join(happened))
    if admission.died:
        sentences.append(
            chance.pick(
                (
                    "made cmo and expired with family at bedside",
                    "pt expired despite full efforts",
                    "patient died on the ward",
                    "she expired peacefully" if patient.sex == "F" else "he expired peacefully",
                )
            )
        )
    else:
        sentences.append(
            chance.pick(("discharged in good condition", "improved and discharged", "did well and was discharged"))
        )
    drugs = [
        chance.pick(item.medications.split("|")) for item in patient.conditions if item.medications and chance.yes(0.5)
    ]
    labs = (
        f"wbc {max(chance.normal(10 + 2 * admission.severity, 4), 0.4):.1f} "
        f"hct {chance.normal(34 - admission.severity, 5):.1f} na {chance.between(131, 146)} "
        f"cr {max(chance.normal(1.2 + 0.4 * admission.severity, 0.5), 0.4):.1f}"
    )
    diagnosis = ", ".join([problem.name, *[item.name for item in admission.complications[:2]]])
    return {
        "results": labs,
        "course": ". ".join(sentences) + ".",
        "discharge medications": ", ".join(list(dict.fromkeys(drugs))[:5]) or "none",
        "diagnosis": diagnosis,
        "condition": "expired" if admission.died else chance.pick(("stable", "good", "stable, ambulating", "fair")),
        "disposition": _disposition(chance, admission),
    }


def _disposition(chance: Chance, admission: Admission) -> str:
    if admission.died:
        return "expired"
    if admission.days > 8 and chance.yes(0.6):
        return "extended care"
    return chance.pick(("home", "home", "home with service"))
