# ruff: noqa: E501  (rows of a table)
"""The questions that a part of a note answers as it stands, each in several wordings."""

from __future__ import annotations

import re
from dataclasses import dataclass

ENTITIES = "Named Entity Recognition"
ABBREVIATION = "Abbreviation Expansion"
RELATION = "Relation Extraction"
TIME = "Temporal Information Extraction"
COREFERENCE = "Coreference Resolution"
PARAPHRASE = "Paraphrasing"
SUMMARY = "Summarization"
QUESTION = "Question Answering"


@dataclass(frozen=True)
class PartRule:
    """A question that a part of the note answers as it stands.

    Parameters
    ----------
    part : str
        Of `clinstack.notes.oracle.parts.read_parts`; also what a refusal names.
    task : str
    wordings : tuple of str
    mentioned : re.Pattern or None
        A note in whose text, in small letters, it occurs may tell the part elsewhere, and no refusal is made of it.
        None where an absence cannot be told from a text that the rules do not understand.
    """

    part: str
    task: str
    wordings: tuple[str, ...]
    mentioned: re.Pattern[str] | None = None


def _rule(part: str, task: str, wordings: str, mentioned: str = "") -> PartRule:
    return PartRule(part, task, tuple(wordings.split(" | ")), re.compile(mentioned) if mentioned else None)


# fmt: off
PART_RULES: tuple[PartRule, ...] = (
    _rule("discharge medications", ENTITIES, "Which medications was the patient discharged on? | List the discharge medications. | What are the discharge medications? | Name the drugs in the discharge medications.", r"discharge med|discharged on"),
    _rule("medications on admission", ENTITIES, "Which medications did the patient take on admission? | List the medications on admission. | What were the home medications on admission? | Name the drugs taken before admission.", r"medication|meds\b"),
    _rule("discharge diagnosis", ENTITIES, "What is the discharge diagnosis? | Which diagnoses were made at discharge? | List the discharge diagnoses. | Name the diagnoses given at discharge.", r"diagnos"),
    _rule("past medical history", ENTITIES, "Which conditions are in the past medical history? | List the past medical history. | What is the past medical history? | Name the conditions of the past medical history.", r"\bpmh|past medical|history of|h/o"),
    _rule("allergies", ENTITIES, "Which allergies are recorded? | What does the note say about allergies? | Does the patient have allergies? | List the allergies.", r"allerg|nkda"),
    _rule("procedures", ENTITIES, "Which procedures were done? | List the procedures of this stay. | What procedures did the patient have? | Name the procedures in the hospital course."),
    _rule("complications", ENTITIES, "Which complications arose? | List the complications of the hospital course. | What else was treated during the stay? | Name the problems that complicated the stay."),
    _rule("vital signs", ENTITIES, "List the vital signs. | Which vital signs are recorded? | Name the vital signs with their values. | What are the vital signs?", r"\bbp\b|\bhr\b|\brr\b|vital|\bsat\b"),
    _rule("laboratory results", ENTITIES, "List the laboratory results. | Which laboratory results are recorded? | Name the laboratory results with their values. | What are the laboratory results?", r"\bwbc|\bhct|lab|\bcr\b|\bna\b|results|lactate"),
    _rule("findings", ENTITIES, "List the findings of the study. | Which findings are described? | Name the findings. | What are the findings?", r"finding|impression"),
    _rule("blood pressure", RELATION, "What was the blood pressure? | Which value belongs to the blood pressure? | Give the blood pressure. | How high was the blood pressure?", r"\bbp\b|pressure|hypotens|hypertens"),
    _rule("heart rate", RELATION, "What was the heart rate? | Which value belongs to the heart rate? | Give the heart rate. | How fast was the heart rate?", r"\bhr\b|heart rate|pulse|tachy|brady"),
    _rule("respiratory rate", RELATION, "What was the respiratory rate? | Which value belongs to the respiratory rate? | Give the respiratory rate. | How fast was the respiratory rate?", r"\brr\b|respiratory rate|tachypn"),
    _rule("oxygen saturation", RELATION, "What was the oxygen saturation? | Which value belongs to the oxygen saturation? | Give the oxygen saturation. | How high was the oxygen saturation?", r"\bsats?\b|satur"),
    _rule("temperature", RELATION, "What was the temperature? | Which value belongs to the temperature? | Give the temperature. | How high was the temperature?", r"\bt \d|temp|febrile|fever|tmax"),
    _rule("white cell count", RELATION, "What was the white cell count? | Which value belongs to the white cell count? | Give the white cell count.", r"\bwbc|white|leuko"),
    _rule("hematocrit", RELATION, "What was the hematocrit? | Which value belongs to the hematocrit? | Give the hematocrit.", r"\bhct|hematocrit"),
    _rule("sodium", RELATION, "What was the sodium? | Which value belongs to the sodium? | Give the sodium.", r"\bna\b|sodium|natremia"),
    _rule("creatinine", RELATION, "What was the creatinine? | Which value belongs to the creatinine? | Give the creatinine.", r"\bcr\b|creat"),
    _rule("reason for the study", RELATION, "Why was the study done? | What was the reason for the study? | Which complaint led to the study? | Give the reason for the study.", r"reason|indication"),
    _rule("admission date", TIME, "When was the patient admitted? | What is the admission date? | On which date did the stay begin? | Give the admission date.", r"admi(?:t|ssion) ?(?:date|ted on)|\d{4}-\d"),
    _rule("discharge date", TIME, "When was the patient discharged? | What is the discharge date? | On which date did the stay end? | Give the discharge date.", r"discharge date|discharged on|\d{4}-\d"),
    _rule("study date", TIME, "When was the study done? | What is the study date? | On which date was the study done? | Give the study date.", r"\d{4}-\d"),
    _rule("time on the ventilator", TIME, "How long was the patient on the ventilator? | For how many days was the patient ventilated? | Give the time on the ventilator."),
    _rule("day of extubation", TIME, "On which day was the patient extubated? | When was the tube taken out? | Give the day of extubation."),
    _rule("chief complaint", QUESTION, "What is the chief complaint? | What brought the patient to the hospital? | With which complaint did the patient come? | Give the chief complaint.", r"complaint|\bcc\b|presents|p/w|admitted|here for|\breason\b"),
    _rule("service", QUESTION, "Which service cared for the patient? | On which service was the patient? | Name the service. | What was the service?", r"\bservice\b"),
    _rule("discharge condition", QUESTION, "In what condition was the patient discharged? | What was the discharge condition? | Give the condition at discharge. | How was the patient at discharge?", r"condition|discharged|expired|died"),
    _rule("discharge disposition", QUESTION, "Where did the patient go after discharge? | What was the discharge disposition? | Give the disposition. | Where was the patient discharged to?", r"disposition|discharged|expired|died"),
    _rule("family history", QUESTION, "What is the family history? | What does the note say about the family history? | Give the family history. | Which illnesses run in the family history?", r"family|\bfh\b|father|mother|brother|sister"),
    _rule("social history", QUESTION, "What is the social history? | What does the note say about the social history? | Give the social history. | How does the patient live?", r"social|\bsh\b|lives|smok|tobacco|etoh"),
    _rule("physical exam", QUESTION, "What did the physical exam show? | What does the note say about the physical exam? | Give the physical exam. | What was found on physical exam?", r"exam|\bpe\b|gen:|neuro|abd"),
    _rule("impression", QUESTION, "What is the impression? | What does the radiologist conclude? | Give the impression of the study. | What did the study show in the end?", r"impression|findings|suggest"),
    _rule("study", QUESTION, "Which study was done? | What kind of study is this? | Name the study. | What was imaged?", r"x-?ray|ultrasound|\bct\b|\bcta\b|\bap\b|xray|film|scan"),
    _rule("plan", QUESTION, "What is the plan? | What does the nurse plan? | Give the plan of the note. | What is to be done next?", r"\bplan\b|follow up|continue"),
    _rule("breathing", QUESTION, "How is the patient breathing? | What does the note say about the breathing? | Describe the breathing. | What support does the breathing need?", r"\bresp|breath|lung|sob\b|dyspnea|vent|intubat|\bsat\b|o2|\brr\b|hypox"),
    _rule("neurological state", QUESTION, "What is the neurological state? | How is the patient neurologically? | Describe the neurological state. | What does the note say about the neurological state?", r"neuro|alert|orient|a&ox|gen:|confus|lethar|letharg|respons|distress|awake|obtund"),
    _rule("pain", QUESTION, "What does the note say about pain? | How is the pain? | Describe the pain control. | Is the pain under control?", r"pain|ache|tender|sore|angina"),
    _rule("state of the skin", QUESTION, "What does the note say about the skin? | How is the skin? | Describe the state of the skin.", r"skin|rash|wound|ulcer|decub|mottled|breakdown|laceration|bruise|erythema"),
)
# fmt: on
