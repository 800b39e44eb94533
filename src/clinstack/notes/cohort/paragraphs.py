# ruff: noqa: E501  (lines of a laboratory sheet)
"""Pools of invented paragraphs, from which the long notes of a large cohort are put together."""

from __future__ import annotations

import re
from functools import lru_cache
from textwrap import fill

from clinstack.notes.cohort.chance import Chance

_WIDTH = 76
_SLOT = re.compile(r"<([^<>]+)>")

# <low-high> is a whole number, <low-high/10> has one decimal, <a|b> is one of the words, <name> is one of WORDS[name].
# No sentence of the admission sections holds a colon: a colon after a blank line would end the section.
WORDS: dict[str, str] = {
    "drug": "metoprolol|lisinopril|furosemide|aspirin|atorvastatin|pantoprazole|levothyroxine|insulin glargine|"
    "warfarin|amlodipine|gabapentin|sertraline|albuterol|docusate|senna|acetaminophen|oxycodone|vancomycin|"
    "ceftriaxone|metronidazole|prednisone|heparin|potassium chloride|magnesium oxide|tamsulosin|simvastatin",
    "team": "cardiology|surgery|renal|neurology|infectious diseases|the pulmonary team|physical therapy|nutrition",
    "side": "left|right",
    "better": "stable|improved|unchanged|slightly better|resolving|at baseline",
    "organ": "chest|abdomen|lower extremities|back|head and neck|pelvis",
    "test": "chest film|ultrasound|echocardiogram|ct scan|urinalysis|blood cultures|sputum culture|troponin",
    "symptom": "cough|nausea|chest pressure|dizziness|palpitations|weakness|leg swelling|poor appetite|chills|fatigue",
    "time": "overnight|this morning|yesterday|on hospital day <2-9>|two days ago|last week|over the past <2-14> days",
    "unit": "mg|mg|mg|mcg",
    "often": "daily|twice a day|three times a day|every 6 hours as needed|at bedtime|every 8 hours",
}

SENTENCES: dict[str, str] = {
    "illness": """
The patient had been in the usual state of health until <time>, when <symptom> and <symptom> began.
There was no <symptom>, no <symptom> and no recent travel or sick contacts.
At an outside hospital the <test> was <better> and <drug> was given with some relief.
In the emergency department the <test> was sent and <team> was asked to see the patient.
The family reports more <symptom> <time>, with less walking than before.
Review of systems was negative for <symptom>, <symptom> and <symptom>.
Home <drug> had been changed <time> by the primary care doctor.
Two liters of fluid and <drug> were given, after which the heart rate came down to <80-120>.
A similar episode some years ago was treated with <drug> for <3-14> days.
The patient was taken to the floor in <better> condition for further care.""",
    "history": """
s/p <side> knee replacement, no complications
s/p appendectomy in youth
osteoarthritis of the <side> hip
seasonal allergies, takes nothing for it
s/p cataract surgery on the <side>
chronic low back pain, on <drug> in the past
colonoscopy some years ago with a small polyp
migraine, well controlled
history of zoster on the <side> side of the chest
vitamin d deficiency""",
    "exam": """
heent shows moist mucous membranes and pupils of <2-5> mm, reactive to light.
neck is supple with a jvp of <5-14> cm and no bruits.
heart is regular with a normal s1 and s2, murmur <1-3>/6 at the <side> sternal border.
lungs have <few|some|no> crackles at the <side> base and good air movement above.
abdomen is soft with bowel sounds, no rebound, liver edge <1-4> cm below the ribs.
extremities are warm, <1-3>+ edema on the <side>, pulses <1-2>+ throughout.
skin has no rash, a small bruise on the <side> forearm.
cranial nerves are intact, strength <4-5>/5 on the <side>, gait not tested.
back without spinal tenderness, rectal exam deferred.""",
    "medications": """
<drug> <1-80> <unit> <often>""",
    "labs": """
[**2150-<1-12>-<1-28>**] 0<1-9>:<10-59>AM BLOOD WBC-<40-180/10> RBC-<25-48/10> Hgb-<80-150/10> Hct-<24-45>.<0-9> MCV-<80-99> RDW-<12-17> Plt Ct-<90-420>
[**2150-<1-12>-<1-28>**] 0<1-9>:<10-59>AM BLOOD Glucose-<70-240> UreaN-<8-60> Creat-<5-35/10> Na-<130-146> K-<32-54/10> Cl-<96-110> HCO3-<18-31>
[**2150-<1-12>-<1-28>**] 1<0-2>:<10-59>PM BLOOD Calcium-<76-99/10> Phos-<22-48/10> Mg-<15-25/10>
[**2150-<1-12>-<1-28>**] 1<0-2>:<10-59>PM BLOOD PT-<11-19>.<0-9> PTT-<24-60> INR(PT)-<9-30/10>
[**2150-<1-12>-<1-28>**] 0<1-9>:<10-59>AM BLOOD ALT-<10-90> AST-<12-95> AlkPhos-<40-180> TotBili-<2-25/10>
[**2150-<1-12>-<1-28>**] 1<0-2>:<10-59>AM URINE Blood-NEG Nitrite-NEG Protein-<TR|NEG|30> Glucose-NEG pH-<50-80/10>""",
    "course": """
On the floor <drug> was started and the <symptom> was <better> by the next day.
The <test> was repeated and was <better>, so that <drug> was stopped.
<team> saw the patient and advised <drug> for <3-14> more days.
Creatinine peaked at <12-40/10> and came down to <8-14/10> with fluids and without <drug>.
The hematocrit stayed between <24-30> and <31-38>, and <2-3> units of red cells were given.
The oxygen need fell from <4-6> liters to <1-3> liters, with saturations of <91-98>%.
Pain was treated with <drug> and was <better> at rest.
The diet was advanced slowly, and <team> followed along.
Systolic pressure ran in the <100|110|120|130|140>s, <drug> was held and later given again at half the dose.
Cultures stayed negative and <drug> was narrowed to <drug> for a total of <5-14> days.
Telemetry showed <rare|no|some> ectopy, electrolytes were repleted every day.
The family met with the team <time> and agreed with the plan.""",
    "instructions": """
You came to the hospital because of <symptom>, and we treated you with <drug>.
Please weigh yourself every morning and call your doctor if you gain more than <2-4> pounds.
Please take <drug> as written on your list, and do not take <drug> until your next visit.
Call your doctor or come back if you have <symptom>, <symptom> or a fever above <100-102> degrees.
Do not lift more than <5-20> pounds and do not drive while you take <drug>.
Your visiting nurse will look after the wound and draw blood <2-3> times a week.""",
    "nursing": """
alert and oriented, moves all limbs, <symptom> <better> after <drug>.
hr <60-120> sr with <rare|no|frequent> pvcs, sbp <90-160>, pulses by doppler on the <side>.
lungs coarse with <scant|moderate|thick> white sputum, suctioned every <2-4> hours, sats <91-99>%.
abd soft with <hypo|present|faint> bs, tube feeds at <20-80> cc an hour, residuals <5-90> cc.
foley to gravity with <20-150> cc an hour of <clear|amber|pink> urine, lytes pending.
turned every <2-3> hours, heels off the bed, dressing on the <organ> dry and intact.
iv access by <side> <picc|ij line|piv>, site without redness, <drug> infusing.
tmax <97-102>.<0-9>, on <drug>, cultures sent <time>.
daughter called and was updated by the team, will visit <time>.
blood sugar <90-280>, covered by the sliding scale, next check in <2-6> hours.
slept in short naps, given <drug> with good effect.
plan to wean <drug>, follow labs, and support the family.""",
    "findings": """
The heart size is <better> and the mediastinal contours are within normal limits.
There is a <small|moderate|trace> <side> pleural effusion with atelectasis at the base, <better> since the prior study.
No focal consolidation is seen in the <side> lung.
The <side> line ends <1-6> cm above the cavoatrial junction, without pneumothorax.
The liver measures <12-19> cm and has a <4-19> mm cyst, which is too small to characterize.
Degenerative changes of the spine are <better>, no acute fracture.
The gallbladder is normal and the common duct measures <2-7> mm.
There is calcified plaque in the aorta, which measures <18-34> mm.
The kidneys are normal in size, with a <3-15> mm stone on the <side>.
The ventricles and sulci are normal for age, no shift of the midline.
Several lymph nodes of the <organ> measure up to <5-12> mm.""",
    "technique": """
A single view of the <organ> was obtained at the bedside and compared with the earlier study.
Contiguous axial images of the <organ> were obtained with <90-150> cc of contrast, with coronal reformations.
Grayscale and color images of the <organ> were obtained on both sides.
Multiple projections were obtained, the examination is limited by habitus and by motion.""",
    "ecg": """
Sinus rhythm at <60-110>. Compared with the earlier tracing the rate is <better>.
Left axis deviation, possible old inferior infarction.
Non-specific ST-T wave changes in leads V<2-3> to V<4-6>.
Atrial fibrillation with a ventricular response of <70-140>.
Right bundle-branch block, QRS of <120-160> ms.
Low limb lead voltage. Clinical correlation is suggested.
Prolonged QTc interval of <440-520> ms.""",
    "echo": """
The left atrium is <normal in size|mildly dilated>, with a volume of <20-48> ml.
Left ventricular wall thickness is <8-14> mm and the ejection fraction is <20-70>%.
There is <trivial|mild|moderate> mitral regurgitation, the leaflets are mildly thickened.
The aortic valve has three leaflets, with a peak velocity of <11-39/10> m/s.
The estimated pulmonary artery systolic pressure is <22-58> mm Hg.
There is <no|a small|a trivial> pericardial effusion, <better>.
The right ventricular cavity and its free wall motion are <better>.""",
    "breathing": """
ventilator with tidal volume <350-550> cc, rate <10-24>, peep <5-14>, fio2 <30-80>%.
breath sounds <coarse|clear|diminished> on the <side>, suctioned for <scant|thick> secretions.
cuff pressure <20-28> cm, tube at <20-24> cm at the lip.
blood gas with ph 7.<20-48>, co2 <30-60>, o2 <60-180>.
plan to <rest overnight|wean the pressure support|try a breathing trial>, rsbi <30-120>.""",
    "plan": """
<symptom> is <better>, continue <drug> and follow the <test>.
Will ask <team> about <drug>, goal of <10-25/10> liters negative today.
Hold <drug> for now, check the <test> every <6-12> hours.
Wean oxygen to saturations above <90-95>%, out of bed with physical therapy.
Transfuse for a hematocrit below <21-25>, type and cross is active.
Prophylaxis with <drug> and pneumatic boots, code status was discussed.
Continue <drug> day <2-9> of <10-14>, narrow when cultures return.""",
}  # fmt: skip
_SHORT = frozenset(["history", "medications", "labs"])
"""Kinds whose items are single lines."""
_ITEMS = 400


@lru_cache(maxsize=2)
def paragraph_pools(seed: int) -> dict[str, list[str]]:
    """Draw the pool of every kind of paragraph; the same seed gives the same pools in every process.

    Returns
    -------
    dict of str to list of str
        400 paragraphs or lines of each kind, wrapped as MIMIC-III's notes are.
    """
    pools = {}
    for number, (kind, text) in enumerate(SENTENCES.items()):
        chance = Chance(seed, number, 3)
        sentences = text.strip("\n").split("\n")
        if kind in _SHORT:
            pools[kind] = [_filled(chance, chance.pick(sentences)) for _ in range(_ITEMS)]
        else:
            pools[kind] = [
                fill(" ".join(_filled(chance, item) for item in chance.some(sentences, chance.between(3, 5))), _WIDTH)
                for _ in range(_ITEMS)
            ]
    return pools


def _filled(chance: Chance, template: str) -> str:
    """Fill the slots of a sentence; a slot's word may hold slots of its own."""
    while True:
        text = _SLOT.sub(lambda slot: _slot(chance, slot.group(1)), template)
        if text == template:
            return text
        template = text


def _slot(chance: Chance, slot: str) -> str:
    if numbers := re.fullmatch(r"(\d+)-(\d+)(/10)?", slot):
        number = chance.between(int(numbers[1]), int(numbers[2]))
        return f"{number / 10:.1f}" if numbers[3] else str(number)
    return chance.pick(WORDS.get(slot, slot).split("|"))
