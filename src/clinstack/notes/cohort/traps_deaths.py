"""Traps for the filter that drops texts which tell the patient's death."""

from __future__ import annotations

from collections.abc import Callable

from clinstack.notes.cohort.stay import Stay
from clinstack.notes.cohort.trap import Trap


def _says(died: bool, header: str, words: str, *, add: bool = True) -> Callable[[Stay], None]:
    """Plant a summary in which a section says something of a death; the course says nothing of it."""

    def plant(stay: Stay) -> None:
        stay.ends(died)
        sections = stay.sections() | {"Brief Hospital Course": "see below", "Discharge Condition": "see below"}
        body = f"{sections[header]}\n{words}" if add else words
        stay.summarize(stay.text(sections | {header: body}))

    return plant


def _course_only(stay: Stay) -> None:
    stay.ends(True)
    course = "the patient expired despite full efforts. time of death 03:00."
    stay.summarize(stay.text(stay.sections() | {"Brief Hospital Course": course}))


_EXAM, _DRUGS, _SOCIAL, _FAMILY = "Physical Exam", "Medications on Admission", "Social History", "Family History"
DEATH_TRAPS = (
    Trap(
        "death-in-exam",
        "the exam says once that the patient expired",
        _says(True, _EXAM, "Patient expired on day 3. cold"),
    ),
    Trap(
        "death-twice-in-exam",
        "the exam says it twice: removing the first mention leaves the second",
        _says(True, _EXAM, "patient expired on day 3. Pt died in the icu"),
    ),
    Trap(
        "death-in-exam-no-subject",
        "the exam has a relative's death before the patient's",
        _says(True, _EXAM, "mother died before; he has expired at 5pm", add=False),
    ),
    Trap("death-in-medication", "the list of drugs says it", _says(True, _DRUGS, "aspirin; pt has died", add=False)),
    Trap(
        "death-in-illness",
        "the history of present illness says it",
        _says(True, "History of Present Illness", "the patient died on arrival"),
    ),
    Trap(
        "death-in-complaint",
        "the chief complaint says it",
        _says(True, "Chief Complaint", "pt had passed away", add=False),
    ),
    Trap(
        "death-inpatient",
        'an "inpatient died" who is the brother',
        _says(False, "History of Present Illness", "brother was an inpatient died of mi"),
    ),
    Trap(
        "death-except",
        '"except expired" drugs: the letters "pt expired"',
        _says(False, "History of Present Illness", "all drugs in date except expired insulin"),
    ),
    Trap(
        "death-of-insulin",
        '"the expired insulin": the letters "he expired"',
        _says(False, "History of Present Illness", "threw away the expired insulin"),
    ),
    Trap("death-she-expired", '"she expired" of the sister', _says(False, _FAMILY, "sister; she expired at 50")),
    Trap("death-pronounced", '"was pronounced expired"', _says(True, _SOCIAL, "was pronounced expired")),
    Trap("death-time", '"time of death 05:00"', _says(True, _SOCIAL, "time of death 05:00")),
    Trap("death-of-relatives", "parents who died", _says(False, _FAMILY, "mother died of cad, father deceased")),
    Trap("death-of-husband", '"patient\'s husband died"', _says(False, _SOCIAL, "patient's husband died last year")),
    Trap("death-in-course-only", "only the hospital course says it", _course_only),
)
