"""Abbreviations of clinical notes that have one meaning, and writing them out in a text."""

from __future__ import annotations

import re

_TABLE = """
aaa abdominal aortic aneurysm
abd abdomen
abx antibiotics
adls activities of daily living
afib atrial fibrillation
brbpr bright red blood per rectum
bp blood pressure
bph benign prostatic hyperplasia
c/b complicated by
cabg coronary artery bypass graft
cad coronary artery disease
chf congestive heart failure
ckd chronic kidney disease
cmo comfort measures only
copd chronic obstructive pulmonary disease
cva cerebrovascular accident
cxr chest x-ray
djd degenerative joint disease
dka diabetic ketoacidosis
doe dyspnea on exertion
dvt deep vein thrombosis
egd esophagogastroduodenoscopy
ems emergency medical services
ercp endoscopic retrograde cholangiopancreatography
esld end stage liver disease
esrd end stage renal disease
etoh alcohol
ett endotracheal tube
fio2 fraction of inspired oxygen
gcs Glasgow coma scale
gerd gastroesophageal reflux disease
h/o history of
hct hematocrit
hcv hepatitis C virus
hld hyperlipidemia
hr heart rate
htn hypertension
iddm insulin dependent diabetes mellitus
ivdu intravenous drug use
jvp jugular venous pressure
lad left anterior descending artery
mdd major depressive disorder
mrsa methicillin resistant staphylococcus aureus
mvc motor vehicle collision
n/v nausea and vomiting
nad no acute distress
niddm non-insulin dependent diabetes mellitus
nkda no known drug allergies
nstemi non-ST elevation myocardial infarction
orif open reduction and internal fixation
osa obstructive sleep apnea
osh outside hospital
p/w presenting with
pcp primary care provider
peep positive end-expiratory pressure
pmh past medical history
prn as needed
ptsd post traumatic stress disorder
pud peptic ulcer disease
pvd peripheral vascular disease
rr respiratory rate
ruq right upper quadrant
s/p status post
sle systemic lupus erythematosus
sob shortness of breath
tia transient ischemic attack
uo urine output
w/ with
wbc white blood cells
"""
ABBREVIATIONS: dict[str, str] = {
    short: long for short, _, long in (line.partition(" ") for line in _TABLE.strip().splitlines())
}
"""Short form to long; forms with several meanings in these notes (ra, nc, bs, uc) are left out."""
_LITTLE_WORDS = frozenset({"w/", "h/o", "s/p", "c/b", "p/w", "bp"})
"""Written out in a paraphrase, but too common to ask about."""
_WORDS = re.compile(
    r"(?<![\w/])(?:" + "|".join(map(re.escape, sorted(ABBREVIATIONS, key=len, reverse=True))) + r")(?![\w/])"
)


def abbreviations_in(text: str) -> list[str]:
    """Return the abbreviations of a text that are worth a question, each once, in alphabetical order."""
    return sorted(set(_WORDS.findall(text)) - _LITTLE_WORDS)


def abbreviations_not_in(text: str) -> list[str]:
    """Return those worth a question that a text has neither in small letters nor in capitals."""
    return sorted(ABBREVIATIONS.keys() - _LITTLE_WORDS - set(_WORDS.findall(text.lower())))


def written_out(text: str) -> str | None:
    """Return a text with its abbreviations written out, None where it has none."""
    longer = _WORDS.sub(lambda found: ABBREVIATIONS[found.group()], text)
    return longer if longer != text else None
