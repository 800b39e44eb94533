# ruff: noqa: E501  (rows of a table)
"""The chronic conditions an invented patient may live with: wording, medication and ICD-9 codes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """A chronic condition.

    Parameters
    ----------
    name : str
        The title that D_ICD_DIAGNOSES gets.
    codes : str
        ICD-9 codes that coders use for it, one of which is drawn; repeated ones are likelier.
    prevalence : float
        Probability at age 64.
    age : float
        Change of the logit for each ten years.
    phrases : str
        Ways to write it in a note, separated by ``|``.
    medications : str
        Home medication, separated by ``|``; empty if none.
    death : float
        Change of the logit of death in hospital.
    """

    name: str
    codes: str
    prevalence: float
    age: float
    phrases: str
    medications: str = ""
    death: float = 0.0


# fmt: off
CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition("hypertension", "4019 4019 4019 4011", 0.48, 0.5, "htn|hypertension|high blood pressure", "lisinopril|amlodipine|hctz|metoprolol|valsartan"),
        Condition("hyperlipidemia", "2724 2724 2720", 0.34, 0.35, "hld|hyperlipidemia|high cholesterol|dyslipidemia", "atorvastatin|simvastatin|lipitor|pravastatin"),
        Condition("diabetes mellitus", "25000 25000 25002 25060 25040", 0.27, 0.25, "dm2|type 2 diabetes|diabetes mellitus|iddm|niddm", "metformin|glipizide|insulin glargine|lantus|glyburide"),
        Condition("coronary atherosclerosis", "41401 41401 41400", 0.25, 0.6, "cad|coronary artery disease|ischemic heart disease|cad s/p mi", "aspirin|plavix|nitroglycerin|isosorbide"),
        Condition("atrial fibrillation", "42731", 0.2, 0.7, "afib|atrial fibrillation|a fib|paroxysmal afib", "warfarin|coumadin|digoxin|diltiazem"),
        Condition("congestive heart failure", "4280 4280 42822 42832", 0.19, 0.6, "chf|heart failure|chf with ef 25%|systolic heart failure|ischemic cardiomyopathy", "furosemide|lasix|carvedilol|torsemide", 0.3),
        Condition("chronic airway obstruction", "496 496 4928", 0.15, 0.4, "copd|emphysema|chronic bronchitis|copd on home o2", "albuterol|tiotropium|advair|spiriva", 0.2),
        Condition("chronic kidney disease", "5859 5853 40390", 0.14, 0.5, "ckd|chronic kidney disease|chronic renal insufficiency|ckd stage 3|cri", "calcitriol|epo", 0.2),
        Condition("end stage renal disease", "5856 40391 5856", 0.035, 0.0, "esrd on hd|end stage renal disease|esrd, dialysis mwf", "sevelamer|nephrocaps|phoslo", 0.4),
        Condition("hypothyroidism", "2449", 0.1, 0.3, "hypothyroidism|hypothyroid|low thyroid", "levothyroxine|synthroid" ),
        Condition("depression", "311", 0.12, -0.1, "depression|depressed mood|mdd", "sertraline|citalopram|prozac"),
        Condition("anxiety", "30000", 0.06, -0.2, "anxiety|panic attacks", "lorazepam|ativan|clonazepam"),
        Condition("esophageal reflux", "53081", 0.15, 0.1, "gerd|acid reflux|reflux disease", "omeprazole|pantoprazole|prilosec" ),
        Condition("cirrhosis of liver", "5715 5712 5712 5718", 0.06, -0.25, "cirrhosis|etoh cirrhosis|end stage liver disease|esld", "lactulose|spironolactone|nadolol|rifaximin", 0.8),
        Condition("chronic hepatitis C", "07054 07054 07070", 0.04, -0.35, "hepatitis c|hep c|hcv", "", 0.1 ),
        Condition("alcohol dependence", "30391 30390 30500", 0.08, -0.4, "alcohol abuse|etoh abuse|heavy drinking|alcoholism", "thiamine|folic acid", 0.1),
        Condition("tobacco use", "3051 3051 V1582", 0.14, -0.2, "tobacco abuse|smoker|ppd smoker", "nicotine patch"),
        Condition("secondary malignant neoplasm", "1985 1977 1983 1970", 0.055, 0.15, "metastatic cancer|widely metastatic disease|stage iv cancer|cancer with mets", "oxycodone|dexamethasone|ms contin", 1.2),
        Condition("personal history of breast cancer", "V103", 0.025, 0.3, "breast cancer s/p lumpectomy|h/o breast ca", "tamoxifen"),
        Condition("prostate cancer", "185 V1046", 0.035, 0.5, "prostate cancer|prostate ca", "leuprolide"),
        Condition("dementia", "2948 3310 3310", 0.06, 1.3, "dementia|alzheimers|memory loss", "donepezil|namenda|aricept", 0.5),
        Condition("late effects of stroke", "V1254 43820 V1254", 0.08, 0.5, "cva|prior stroke|old stroke with weakness|tia", "aggrenox", 0.15 ),
        Condition("peripheral vascular disease", "4439 44021", 0.08, 0.5, "pvd|peripheral vascular disease|claudication", "cilostazol"),
        Condition("osteoporosis", "73300", 0.06, 0.9, "osteoporosis|thin bones", "alendronate|fosamax|calcium"),
        Condition("osteoarthrosis", "71590", 0.07, 0.5, "oa|osteoarthritis|degenerative joint disease|djd", "acetaminophen"),
        Condition("asthma", "49390", 0.07, -0.3, "asthma|reactive airways", "albuterol|flovent|singulair"),
        Condition("obstructive sleep apnea", "32723", 0.07, -0.1, "osa|sleep apnea on cpap|obstructive sleep apnea", ""),
        Condition("obesity", "27800 27801", 0.08, -0.2, "obesity|morbid obesity|obese"),
        Condition("benign prostatic hypertrophy", "60000", 0.05, 0.8, "bph|enlarged prostate", "tamsulosin|flomax|finasteride"),
        Condition("anemia in chronic illness", "28529 2859", 0.12, 0.3, "anemia|chronic anemia|low blood counts", "ferrous sulfate|iron"),
        Condition("gout", "2749", 0.06, 0.4, "gout|gouty arthritis", "allopurinol|colchicine"),
        Condition("epilepsy", "34590", 0.045, -0.2, "seizure disorder|epilepsy|h/o seizures", "keppra|phenytoin|dilantin"),
        Condition("HIV disease", "042", 0.02, -0.7, "hiv|aids, cd4 110|hiv on haart", "truvada|bactrim", 0.3),
        Condition("schizophrenia", "29590 29570", 0.025, -0.4, "schizophrenia|schizoaffective disorder", "risperidone|haldol|clozapine"),
        Condition("bipolar disorder", "29680", 0.03, -0.4, "bipolar disorder|bipolar", "lithium|depakote|seroquel"),
        Condition("aortocoronary bypass status", "V4581", 0.08, 0.6, "s/p cabg|cabg x3|prior bypass surgery", "aspirin"),
        Condition("coronary angioplasty status", "V4582", 0.08, 0.3, "s/p stent to lad|prior pci|coronary stents", "clopidogrel|plavix"),
        Condition("cardiac pacemaker", "V4501 V4502", 0.05, 0.8, "pacemaker|s/p ppm|aicd in place"),
        Condition("organ transplant", "V420 V427", 0.02, -0.4, "s/p kidney transplant|liver transplant", "tacrolimus|cellcept", 0.2),
        Condition("rheumatoid arthritis", "7140", 0.03, 0.2, "rheumatoid arthritis|ra", "methotrexate|prednisone"),
        Condition("parkinsonism", "3320", 0.02, 1.0, "parkinsons disease|parkinsons", "sinemet|carbidopa"),
        Condition("opioid dependence", "30401 30550", 0.03, -0.8, "ivdu|heroin abuse|opioid abuse", "methadone|suboxone"),
        Condition("valve disorder", "4241 4240", 0.07, 0.8, "aortic stenosis|mitral regurgitation|valve disease", "", 0.1),
        Condition("pulmonary hypertension", "4168", 0.05, 0.3, "pulmonary hypertension|pulm htn", "sildenafil", 0.2),
        Condition("long-term anticoagulant use", "V5861", 0.05, 0.5, "on coumadin|chronic anticoagulation|prior dvt", "coumadin"),
        Condition("chronic steroid use", "V5865", 0.03, 0.0, "on chronic steroids|prednisone dependent", "prednisone"),
    )
}
# fmt: on


_RARE = """
6961 psoriasis|plaque psoriasis
7100 lupus|sle
5550 crohns disease|crohns
5569 ulcerative colitis|uc
340 multiple sclerosis|ms with leg weakness
2252 meningioma|benign meningioma
2410 thyroid nodule|goiter
2420 graves disease|hyperthyroidism
2520 hyperparathyroidism|high pth
2554 adrenal insufficiency|addisons
2535 diabetes insipidus|di on ddavp
2731 mgus|monoclonal gammopathy
20300 multiple myeloma|myeloma
20280 lymphoma|nhl
20410 cll|chronic leukemia
2387 mds|myelodysplasia
28260 sickle cell disease|sickle cell
2864 von willebrand disease|vwd
28981 hypercoagulable state|factor v leiden
2809 iron deficiency|iron deficiency anemia
2811 b12 deficiency|pernicious anemia
3569 neuropathy|peripheral neuropathy
3572 diabetic neuropathy|numb feet from diabetes
34690 migraine|migraines
3501 trigeminal neuralgia|tic douloureux
35800 myasthenia gravis|myasthenia
33520 als|lou gehrigs disease
3659 glaucoma|glaucoma both eyes
36201 diabetic retinopathy|retinopathy
3694 legally blind|blindness
3899 hearing loss|hard of hearing
38630 vertigo|labyrinthitis
4111 unstable angina|angina at rest
4139 stable angina|angina
42610 heart block|av block
4254 cardiomyopathy|dilated cardiomyopathy
4210 prior endocarditis|endocarditis
44100 aortic dissection|prior dissection
4414 aaa|abdominal aneurysm
4019 htn|borderline hypertension
43310 carotid stenosis|carotid disease
4471 renal artery stenosis|renal stenosis
4565 esophageal varices|varices
4580 orthostasis|orthostatic hypotension
45981 venous stasis|venous insufficiency
4720 chronic rhinitis|rhinitis
4730 chronic sinusitis|sinusitis
4940 bronchiectasis|bronchiectasis
515 pulmonary fibrosis|interstitial lung disease
1350 sarcoidosis|sarcoid
53010 esophagitis|erosive esophagitis
53085 barretts esophagus|barretts
5533 hiatal hernia|large hiatal hernia
53190 peptic ulcer disease|pud
5641 irritable bowel|ibs
56210 diverticulosis|diverticulitis in past
5739 elevated lfts|liver disease nos
57420 gallstones|cholelithiasis
5771 chronic pancreatitis|pancreatic insufficiency
58381 nephropathy|diabetic nephropathy
5920 kidney stones|nephrolithiasis
59654 neurogenic bladder|self catheterizes
6180 uterine prolapse|prolapse
6202 ovarian cyst|ovarian cysts
6271 postmenopausal bleeding|menopausal bleeding
6851 pilonidal cyst|pilonidal disease
69010 seborrheic dermatitis|dermatitis
70710 leg ulcer|chronic leg ulcers
70219 actinic keratosis|keratoses
71690 arthritis|knee arthritis
7210 cervical spondylosis|neck arthritis
7220 herniated disc|disc disease
7242 low back pain|chronic back pain
7245 back pain|back pain on narcotics
7291 fibromyalgia|diffuse muscle pain
73390 bone disease|pagets
73730 scoliosis|kyphosis
7455 pfo|asd
7533 horseshoe kidney|kidney anomaly
75312 polycystic kidneys|pkd
7580 down syndrome|trisomy 21
7833 feeding difficulty|g tube fed
78841 urinary frequency|urinary incontinence
78830 incontinence|wears diapers
79029 prediabetes|borderline diabetes
V1011 lung cancer s/p lobectomy|h/o lung ca
V1005 colon cancer s/p resection|h/o colon ca
V1082 melanoma|h/o melanoma
V1051 bladder cancer|h/o bladder ca
V4361 shoulder replacement|prosthetic shoulder
V4365 s/p tkr|knee replacement
V433 mechanical valve|prosthetic valve
V440 tracheostomy|trach dependent
V443 colostomy|ostomy in place
V4511 dialysis|on dialysis
V4975 s/p bka|below knee amputation
V5867 long term insulin|on insulin pump
V5866 daily aspirin|long term aspirin
V1251 h/o dvt|prior pe
V1301 h/o kidney stones|passed stones
V0254 mrsa carrier|mrsa colonized
V141 penicillin allergy|pcn anaphylaxis
V140 sulfa allergy|sulfa rash
V600 homeless|lives in shelter
V6284 suicidal ideation|prior suicide attempt
V8541 bmi 41|bmi over 40
2662 vitamin deficiency|low b12
2689 vitamin d deficiency|low vitamin d
27541 hypocalcemia|low calcium
2740 tophaceous gout|tophi
2778 metabolic disorder|carnitine deficiency
2859 anemia nos|anemia
2930 prior delirium|sundowning
29630 recurrent depression|major depression, recurrent
29410 memory trouble|cognitive decline
30183 personality disorder|borderline personality
30981 ptsd|post traumatic stress
31401 adhd|attention deficit
3182 mental retardation|developmental delay
33399 restless legs|restless leg syndrome
3331 essential tremor|tremor
34290 hemiplegia|left hemiplegia
34400 quadriplegia|quadriplegic
34541 partial seizures|focal epilepsy
3530 thoracic outlet syndrome|arm numbness
3540 carpal tunnel|carpal tunnel syndrome
36616 cataracts|cataract surgery
"""

RARE_CONDITIONS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (line.split(" ", 1)[0], tuple(line.split(" ", 1)[1].split("|"))) for line in _RARE.strip().splitlines()
)
"""Codes with their wordings, likeliest first: the long tail."""
