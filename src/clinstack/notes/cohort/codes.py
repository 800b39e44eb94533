"""Titles of the ICD-9 codes that the cohort uses, for D_ICD_DIAGNOSES and D_ICD_PROCEDURES."""

from __future__ import annotations

from functools import cache

_DIAGNOSES = """
03811 methicillin susceptible staphylococcus aureus septicemia
03842 septicemia due to escherichia coli
04112 methicillin resistant staphylococcus aureus
0414 escherichia coli infection
0479 viral meningitis
0543 herpetic meningoencephalitis
07070 viral hepatitis C, unspecified
1625 malignant neoplasm of lower lobe of lung
1628 malignant neoplasm of other parts of lung
1961 secondary malignant neoplasm of intrathoracic lymph nodes
1970 secondary malignant neoplasm of lung
1977 secondary malignant neoplasm of liver
1983 secondary malignant neoplasm of brain
20400 acute lymphoid leukemia
25002 diabetes, type 2, uncontrolled
25011 diabetes with ketoacidosis, type 1
25012 diabetes with ketoacidosis, type 2, uncontrolled
25040 diabetes with renal manifestations
25060 diabetes with neurological manifestations
262 severe protein-calorie malnutrition
2752 disorders of magnesium metabolism
27651 dehydration
27801 morbid obesity
2841 pancytopenia
2867 acquired coagulation factor deficiency
2880 neutropenia
28800 neutropenia, unspecified
2910 alcohol withdrawal delirium
29570 schizoaffective disorder
30390 alcohol dependence, unspecified
30500 alcohol abuse
30550 opioid abuse
3310 Alzheimer's disease
3314 obstructive hydrocephalus
34510 generalized convulsive epilepsy
3481 anoxic brain damage
3484 compression of brain
3962 mitral insufficiency and aortic stenosis
4011 benign hypertension
40390 hypertensive chronic kidney disease
40391 hypertensive chronic kidney disease, end stage
41011 myocardial infarction of anterior wall
41041 myocardial infarction of inferior wall
41400 coronary atherosclerosis of unspecified vessel
41511 iatrogenic pulmonary embolism
4160 primary pulmonary hypertension
4240 mitral valve disorder
4260 complete atrioventricular block
42732 atrial flutter
42741 ventricular fibrillation
42781 sinoatrial node dysfunction
42789 other cardiac dysrhythmia
42821 acute systolic heart failure
42822 chronic systolic heart failure
42832 chronic diastolic heart failure
42833 acute on chronic diastolic heart failure
430 subarachnoid hemorrhage
43411 cerebral embolism with infarction
43820 hemiplegia after cerebrovascular disease
4401 atherosclerosis of renal artery
44021 atherosclerosis with claudication
44023 atherosclerosis with ulceration
4413 ruptured abdominal aneurysm
44422 arterial embolism of leg
45342 deep vein thrombosis of distal leg
4560 bleeding esophageal varices
4588 other hypotension
45989 other circulatory disorder
4820 pneumonia due to Klebsiella
48241 pneumonia due to staphylococcus aureus
48283 pneumonia due to gram-negative bacteria
4829 bacterial pneumonia, unspecified
49122 chronic bronchitis with acute bronchitis
4928 other emphysema
5121 iatrogenic pneumothorax
51882 other pulmonary insufficiency
51884 acute and chronic respiratory failure
53082 esophageal hemorrhage
53240 duodenal ulcer with hemorrhage
55221 incisional hernia with obstruction
5570 acute vascular insufficiency of intestine
56081 intestinal adhesions with obstruction
56211 diverticulitis of colon
56723 spontaneous bacterial peritonitis
5678 other peritonitis
5679 peritonitis, unspecified
5693 hemorrhage of rectum
56985 angiodysplasia with hemorrhage
5712 alcoholic cirrhosis of liver
5718 chronic nonalcoholic liver disease
5723 portal hypertension
5724 hepatorenal syndrome
57410 gallstones with cholecystitis
5761 cholangitis
5772 pancreatic pseudocyst
5789 hemorrhage of gastrointestinal tract
5845 acute tubular necrosis
5853 chronic kidney disease, stage 3
59080 pyelonephritis
6827 cellulitis of foot
70705 pressure ulcer of buttock
70707 pressure ulcer of heel
70715 ulcer of toe
73007 acute osteomyelitis of foot
78039 convulsions
7806 fever
78097 altered mental status
7843 aphasia
78551 cardiogenic shock
78552 septic shock
78720 dysphagia
7895 ascites
7907 bacteremia
7994 cachexia
8052 fracture of thoracic vertebra
80704 fracture of four ribs
80705 fracture of five ribs
8080 fracture of acetabulum
81000 fracture of clavicle
82009 fracture of femoral neck
82020 trochanteric fracture
8522 subdural hemorrhage after injury
85221 subdural hemorrhage, no loss of consciousness
86121 contusion of lung
86403 laceration of liver
8670 injury of bladder
8730 open wound of scalp
96500 poisoning by opium
9690 poisoning by antidepressants
9694 poisoning by benzodiazepines
99591 sepsis
99592 severe sepsis
9971 cardiac complication of a procedure
9974 digestive complication of a procedure
9985 postoperative infection
E8120 traffic collision, driver
E8162 traffic accident, motorcyclist
E8490 accident at home
E8502 accidental poisoning by analgesics
E8809 fall on stairs
E8859 fall from slipping
E8880 fall striking an object
E9426 antihypertensive causing adverse effect
E9503 suicide attempt by tranquilizers
V090 infection with penicillin-resistant organism
V1046 history of prostate cancer
V1582 history of tobacco use
V427 liver transplant status
V4502 automatic cardiac defibrillator
V453 intestinal bypass status
V3000 single liveborn in hospital
V053 hepatitis B vaccination
"""
_PROCEDURES = """
0017 infusion of vasopressor
0045 insertion of one vascular stent
0066 coronary angioplasty
0113 closed brain biopsy
0124 craniotomy
0131 incision of cerebral meninges
0139 incision of brain
0159 excision of brain lesion
0221 ventriculostomy
0331 spinal tap
311 tracheostomy
324 lobectomy of lung
3322 fiber-optic bronchoscopy
3324 bronchoscopy with biopsy
3404 chest tube insertion
3491 thoracentesis
3512 mitral valvuloplasty
3521 aortic valve replacement, tissue
3522 aortic valve replacement
3606 bare metal coronary stent
3607 drug-eluting coronary stent
3612 double coronary bypass
3613 triple coronary bypass
3615 mammary-coronary bypass
3721 right heart catheterization
3722 left heart catheterization
3734 ablation of heart tissue
3761 balloon pump implant
3772 insertion of pacing leads
3783 dual-chamber pacemaker
3794 defibrillator implant
3844 resection of abdominal aorta
387 vena cava filter
3891 arterial line
3893 central venous line
3895 dialysis catheter
3929 vascular bypass
3950 peripheral angioplasty
3961 cardiopulmonary bypass
3964 cardiac pacing during surgery
3971 endovascular aortic graft
3972 aneurysm coiling
3995 hemodialysis
4011 lymph node biopsy
4131 bone marrow biopsy
415 splenectomy
4233 endoscopic variceal treatment
4311 gastrostomy tube
4443 endoscopic control of bleeding
4513 upper endoscopy
4516 endoscopy with biopsy
4523 colonoscopy
4562 small bowel resection
4575 left hemicolectomy
4611 colostomy
5101 percutaneous cholecystostomy
5123 laparoscopic cholecystectomy
5185 endoscopic sphincterotomy
5188 bile duct stone removal
5411 exploratory laparotomy
5412 reopening of laparotomy
5459 lysis of adhesions
5491 paracentesis
5794 bladder catheter
7935 open reduction of femur
7936 open reduction of tibia
8152 partial hip replacement
8411 toe amputation
8415 below knee amputation
8622 wound debridement
8659 suture of skin
8703 head ct
8744 chest imaging
8841 cerebral arteriography
8842 aortography
8843 pulmonary arteriography
8847 abdominal arteriography
8848 leg arteriography
8856 coronary arteriography
8872 echocardiogram
8891 brain mri
8914 eeg
8919 video eeg monitoring
9390 noninvasive ventilation
9462 alcohol detoxification
9604 intubation
9606 tube insertion in esophagus
9607 nasogastric tube
966 enteral feeding
9671 ventilation under 96 hours
9672 ventilation for 96 hours or more
9904 red cell transfusion
9905 platelet transfusion
9907 plasma transfusion
9910 thrombolysis
9915 parenteral nutrition
9925 chemotherapy
9955 vaccination
9960 cardiopulmonary resuscitation
9962 cardioversion
9981 therapeutic hypothermia
"""


def _read(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.strip().splitlines())


PROCEDURE_TITLES: dict[str, str] = _read(_PROCEDURES)
"""Titles of all procedure codes of the cohort."""


@cache
def diagnosis_titles() -> dict[str, str]:
    """Return the titles of all diagnosis codes of the cohort."""
    from clinstack.notes.cohort.complications import COMPLICATIONS
    from clinstack.notes.cohort.conditions import CONDITIONS, RARE_CONDITIONS
    from clinstack.notes.cohort.patient import PROBLEMS

    titles = {code: phrases[0] for code, phrases in RARE_CONDITIONS}
    titles |= {item.codes.split()[0]: item.name for item in COMPLICATIONS}
    titles |= {item.codes.split()[0]: item.name for item in PROBLEMS}
    titles |= {item.codes.split()[0]: item.name for item in CONDITIONS.values()}
    return dict(sorted((titles | _read(_DIAGNOSES)).items()))
