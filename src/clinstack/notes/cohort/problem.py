"""What an acute problem is: how it reads in a note, how it is coded, and the course it tends to take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """An acute problem that brings a patient to the hospital.

    Parameters
    ----------
    name : str
        Title of the first code in D_ICD_DIAGNOSES.
    weight : float
        Relative frequency.
    service : str
        Service line of the discharge summary.
    codes : str
        ICD-9 codes, one of which becomes the principal diagnosis.
    complaints, stories, exam, imaging, course : str
        Wordings separated by ``|``.
    extra, procedures : str
        ``code:probability`` of further diagnoses and of procedures.
    likes : str
        ``condition:factor``: chronic conditions that make the problem likelier.
    icu, ventilated, death : float
        Logits at mean severity.
    ventilator_days, days : float
        Medians of the days on the ventilator and in the hospital.
    study : str
        The radiology study that is done.
    """

    name: str
    weight: float
    service: str
    codes: str
    complaints: str
    stories: str
    exam: str
    imaging: str
    course: str
    icu: float
    ventilated: float
    ventilator_days: float
    death: float
    days: float
    extra: str = ""
    procedures: str = ""
    likes: str = ""
    study: str = "CHEST (PORTABLE AP)"
