# ruff: noqa: E501  (rows of a table)
"""Further problems of a stay: some are there on admission and hinted at in the note, others come later."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Complication:
    """A further problem of a stay.

    Parameters
    ----------
    name : str
        Title in D_ICD_DIAGNOSES, and the wording in the hospital course.
    codes : str
        ICD-9 codes, one of which is drawn.
    base, severity : float
        Logit at mean severity, and its change with each unit of severity.
    likes : str
        ``condition or problem:change of the logit``.
    hints : str
        What the admission part of the note shows of it, separated by ``|``.
    hinted : float
        Probability that a hint is written when the problem is there.
    days : float
        Factor on the length of stay.
    """

    name: str
    codes: str
    base: float
    severity: float
    likes: str
    hints: str
    hinted: float
    days: float = 1.0


# fmt: off
COMPLICATIONS: tuple[Complication, ...] = (
    Complication("acute kidney injury", "5849", -2.0, 0.7, "chronic kidney:1.6 septicemia:1.0 congestive:0.5",
                 "cr 2.4 up from baseline|creatinine 3.1|cr 1.9, oliguric|bun 68 cr 2.8", 0.75, 1.12),
    Complication("hyponatremia", "2761", -2.5, 0.3, "cirrhosis:1.2 congestive heart failure, acute:0.8",
                 "na 121|sodium 124|na 126|na 119", 0.75, 1.05),
    Complication("hyperkalemia", "2767", -2.9, 0.4, "end stage:1.8 acute kidney:1.0", "k 6.1|potassium 6.4|k 5.9, peaked t waves", 0.75),
    Complication("hypokalemia", "2768", -3.0, 0.1, "alcohol:0.8", "k 2.7|potassium 2.9", 0.7),
    Complication("metabolic acidosis", "2762", -2.6, 0.8, "acute kidney:0.6 cardiac arrest:1.2 septicemia:0.8",
                 "lactate 5.1|ph 7.18|bicarb 12|lactate 6.8|ph 7.21, gap 22", 0.75, 1.05),
    Complication("hypovolemia", "2765 2765 27651", -2.6, 0.1, "intestinal:0.8 diabetic:1.2 urinary:0.7",
                 "poor po intake, dry|dehydrated|orthostatic", 0.6),
    Complication("thrombocytopenia", "2875", -2.9, 0.4, "cirrhosis:1.9 acute leukemia:1.5 septicemia:0.4",
                 "plt 48|platelets 62|plts 39", 0.75),
    Complication("coagulopathy", "2869 2867", -3.2, 0.5, "cirrhosis:1.8 long-term:0.9 hepatic:1.0", "inr 4.2|inr 2.9|inr 5.5", 0.75, 1.05),
    Complication("acute posthemorrhagic anemia", "2851", -2.5, 0.2, "gastrointestinal:1.0 traumatic:0.8",
                 "hct 21|hct 24 from 38|hgb 6.9", 0.65),
    Complication("delirium", "2930 78097", -2.9, 0.3, "dementia:1.8 fracture:0.8", "confused per family|pulling at lines|disoriented", 0.6, 1.15),
    Complication("urinary infection", "5990", -2.4, 0.2, "dementia:0.9 fracture:0.5 cerebral:0.5", "ua positive|dirty ua|dysuria", 0.6, 1.1),
    Complication("aspiration pneumonia", "5070", -3.0, 0.5, "cerebral:0.9 status:1.0 poisoning:1.0 dementia:0.9 parkinson:1.0",
                 "witnessed aspiration|coughs with liquids|gurgling secretions", 0.6, 1.25),
    Complication("pressure ulcer", "70703 70705 70707", -3.2, 0.3, "dementia:1.3 late effects:0.6 parkinson:0.8",
                 "sacral wound|stage 2 decub|heel breakdown", 0.7, 1.25),
    Complication("malnutrition", "2639 262 7994", -3.0, 0.3, "secondary:1.3 cirrhosis:0.8 malignant:0.8",
                 "cachectic|20 lb weight loss|albumin 1.9", 0.7, 1.25),
    Complication("hypotension", "4589 4588", -2.5, 0.4, "end stage:0.8 syncope:0.5", "lightheaded, sbp 80s|bp dropped to 78 systolic|low bp", 0.5),
    Complication("pleural effusion", "5119", -2.8, 0.2, "congestive:0.7 malignant:0.9", "dull at bases|decreased bs at bases", 0.6, 1.1),
    Complication("atelectasis", "5180", -3.0, 0.1, "coronary atherosclerosis, elective:0.8", "low lung volumes", 0.2),
    Complication("ventricular tachycardia", "4271", -3.4, 0.3, "acute myocardial:1.0 congestive:0.7", "runs of nsvt|wide complex beats", 0.6),
    Complication("hypercholesterolemia", "2720", -2.6, 0.0, "hyperlipidemia:0.4", "", 0.0),
    Complication("hyperglycemia", "79029", -3.3, 0.2, "chronic steroid:1.2", "glucose 290|fsbg 310", 0.6),
    Complication("do not resuscitate status", "V4986", -4.4, 0.7, "dementia:1.7 secondary:1.5", "dnr/dni|code status dnr|family wants comfort if worse", 0.7),
    Complication("ventilator associated pneumonia", "99731 48283", -4.4, 0.5, "acute respiratory:1.2 traumatic:0.9", "", 0.0, 1.5),
    Complication("clostridium difficile", "00845", -3.7, 0.2, "septicemia:0.5", "loose stools after antibiotics|foul diarrhea", 0.6, 1.35),
    Complication("ileus", "5601", -3.6, 0.2, "perforation:1.6 intestinal:0.8 abdominal:0.7", "", 0.0, 1.3),
    Complication("deep vein thrombosis", "45341 45342", -3.7, 0.2, "secondary:0.8 fracture:0.4", "swollen calf|asymmetric leg edema", 0.6, 1.15),
    Complication("wound infection", "99859", -3.9, 0.2, "perforation:1.5 coronary atherosclerosis, elective:0.4 atherosclerosis of leg:1.2",
                 "", 0.0, 1.5),
    Complication("staphylococcus aureus infection", "04111 04112", -3.5, 0.2, "cellulitis:1.2 septicemia:0.8 opioid:1.3",
                 "gpc in clusters|mrsa swab positive", 0.5, 1.2),
    Complication("hypoxemia", "79902", -3.3, 0.3, "pneumonia:0.7 obstructive:0.5", "sat 84% on ra|desaturates when walking", 0.6),
    Complication("cerebral edema", "3485", -4.6, 0.6, "intracerebral:1.2 cerebral:0.8", "shift on ct", 0.5, 1.2),
    Complication("hematuria", "59970", -3.6, 0.1, "benign prostatic:1.0 prostate:0.8", "blood in foley|gross hematuria", 0.6),
)
# fmt: on

SEVERITY_PHRASES: tuple[tuple[str, ...], ...] = (
    (
        "looked well in the ed",
        "comfortable and walking",
        "in no distress",
        "stable, sent to floor",
        "feels near baseline",
    ),
    (
        "stable in the ed",
        "mildly uncomfortable",
        "hemodynamically stable",
        "improved with initial treatment",
        "alert and talking",
    ),
    (
        "uncomfortable, given fluids",
        "tired appearing",
        "got 1 l ns with some effect",
        "moderately ill",
        "needed 4 l nc",
    ),
    (
        "ill appearing",
        "transferred to icu for monitoring",
        "lethargic, 3 l fluids given",
        "on nonrebreather",
        "worsening in the ed",
    ),
    ("toxic appearing", "started on levophed", "hypotensive despite fluids", "obtunded", "critically ill on arrival"),
    ("in extremis", "on two pressors, mottled", "unresponsive, cold", "profound shock", "moribund, family called in"),
)
"""What a note says of the state on arrival, from well to gravest."""
