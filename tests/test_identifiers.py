"""Identifiers in text: what the patterns find and what they must not, how findings are joined, how long it takes."""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinstack.errors import InputError
from clinstack.privacy.identifiers import KINDS, PLACEHOLDER, Identifier, find_identifiers, open_engines, scan_texts
from clinstack.privacy.identifiers.identifier import merge
from clinstack.privacy.identifiers.patterns import PATTERNS

FOUND = {
    "date": [
        "on «03/14/2012» he", "«2012-03-14»", "«2012-03-14T08:15:00Z»", "«3/14/12 08:15 AM»", "«March 14, 2012»",
        "«14 March 2012»", "«14th of March»", "«14-Mar-12»", "«14MAR2012»", "«Mar 14»", "«March 2012»", "since «March»",
        "admitted on «3/14»", "CXR «3/14»", "«3/2012»", "«20120314»", "«14.03.2012»", "DOB: «4/5/1950»",
        "seen.\n«3/14»: extubated", "«3/14 08:15»", "«2012/03/14»", "«Jan. 3rd, 2011»", "from «3/14-3/17» he",
        "«MARCH 14»", "«2101-3-4»",
    ],
    "phone": [
        "«(617) 555-0123»", "«617-555-0123»", "«617.555.0123»", "«+1 617 555 0123»", "call «555-0123»", "pager «12345»",
        "pager #«12345»", "ext. «4321»", "«x4321»", "«+44 20 7946 0958»", "tel: «6175550123»", "«1-800-555-0199»",
        "«(617)555-0123 ext. 44»",
    ],
    "fax": ["fax «(617) 555-0124»", "Fax: «617-555-0124»"],
    "email": ["«john.smith@hospital.org»", "to <«a_b+c@mail.example.co.uk»>."],
    "url": ["«https://www.example.org/a?b=c».", "see «www.example.com»", "«mychart.example.org/login»"],
    "ip": ["from «10.1.2.3»", "«fe80::1ff:fe23:4567:890a»"],
    "ssn": ["«123-45-6789»", "SSN «123456789»", "social security number: «123 45 6789»"],
    "mrn": [
        "MRN: «1234567»", "Medical Record Number: «12-34-56»", "MRN «00123456»", "Unit No: «123-45-67»",
        "id «12345678»",
        "Unit Number: «A1234567»", "«123-45-67-8»",
    ],
    "account": ["Account #: «4455667788»", "Encounter ID «9988776»", "Accession number: «S12-34567»"],
    "plan": ["Member ID: «XYZ123456789»", "Medicare # «123456789A»", "«1EG4-TE5-MK73»"],
    "license": ["DEA# «AB1234567»", "NPI: «1234567890»"],
    "device": ["Serial number: «SN-882233A»", "S/N «4455A667»", "«00:1A:2B:3C:4D:5E»"],
    "vehicle": ["VIN «1HGCM82633A004352»", "«1HGCM82633A004352»", "license plate: «817P952»"],
    "age": ["«93» year old", "«94» y/o", "«92»yo male", "aged «101»", "«91»-year-old", "«95» M with"],
    "name": [
        "Dr. «Smith»", "Dr «Jane Q. Smith» saw", "Patient: «Smith, John»", "Name: «JOHN SMITH»", "Mrs. «O'Connor»",
        "signed by «Jane Roe», MD", "dr «smith» paged", "Attending: «Maria de la Cruz»", "her daughter «Jane»",
        "wife («Anna Lee»)", "«J. Smith», RN", "PCP: «Lee»", "Mr. «van der Berg»", "Dr. «Smith» Cardiology",
        "Spoke with «Ann Lee», cell", "Dr. «McDonald» saw", "Signed by: «Terry King» July",
    ],
    "hospital": [
        "«St. Mary's Hospital»", "transferred from «Lakeview Medical Center»", "«Brookfield Nursing Home»",
        "«Oak Hill Rehab»",
    ],
    "address": [
        "«12 Elm Street»", "«45 N. Main St., Apt 4B, Springfield, MA 01101»", "«PO Box 123»", "«Boston, MA 02115»",
        "zip «02115»", "lives in «Salem, MA»", "at «12 elm street»", "«123 MAIN ST»", "«12 Oak Lane, Ashford».",
    ],
    "placeholder": ["«[**2101-3-4**]»", "seen by «___» in", "«[**Hospital1 18**]»", "«[NAME]» was"],
}  # fmt: skip
FALSE_FRIENDS = [
    "BP 120/80", "12/24 months", "2/6 systolic murmur", "on exam 2/6 murmur", "T 98.6", "98.6 72 120/80 18 97%",
    "5/5 strength", "on 5/5 strength", "pain 3/10", "1/2 tab", "by 1/2 tab", "ICD 250.00", "V45.81", "I25.10",
    "CPT 99213", "500 mg", "250-1000 mg", "500-1000 ml", "INR 2.0-3.0", "HR 88 RR 18 sat 97% on 2 L", "Patient: Stable",
    "pH 7.35/45/80", "pH: 7.35-45-80", "Plt 150000", "WBC 12.5", "A&Ox3", "80 year old", "89 yo", "in 2012", "q4-6h",
    "3 x 4 cm", "MR 2+", "MR Brain", "Brief Hospital Course", "Outside Hospital", "General Hospital",
    "12 LEAD ST DEPRESSION", "head CT", "may be discharged", "2 may be removed", "march in place", "Dr. aware",
    "dr aware", "EF 30-35%", "GCS 3-4-5", "L4-5 disc", "creatinine 1.2/0.9", "ratio 1:2", "version 1.2.3",
    "The Hospital", "Cardiology Clinic", "Nurse: Aware", "brought in by EMS", "over 90 year old", "temp 98F", "95F",
    "5000 units", "net 450-500", "Vent AC 500 x 14", "QTc 440-460", "case of 1000 ml", "ms. changes", "trace mr. lv",
]  # fmt: skip


def _marked(text: str) -> tuple[str, int, int]:
    start, end = text.index("«"), text.index("»") - 1
    return text.replace("«", "").replace("»", ""), start, end


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_patterns_find_exactly_the_identifier(kind: str, text: str) -> None:
    plain, start, end = _marked(text)
    assert find_identifiers(plain) == [Identifier(start, end, kind, "patterns")]


@pytest.mark.parametrize("text", FALSE_FRIENDS)
def test_patterns_leave_what_only_looks_alike(text: str) -> None:
    assert find_identifiers(text) == []


def test_every_kind_has_a_case() -> None:
    assert set(FOUND) == set(KINDS)


def test_what_is_inside_a_placeholder_is_no_identifier() -> None:
    found = find_identifiers("Dr. [**Last Name (NamePattern1) 4094**] on [**3-14-2012**] with Dr. Smith")
    assert [item.kind for item in found] == [PLACEHOLDER, PLACEHOLDER, "name"]


def test_overlapping_findings_become_one_that_covers_them() -> None:
    one, other = Identifier(0, 10, "name", "a"), Identifier(5, 12, "address", "b")
    assert merge([other, one]) == [Identifier(0, 12, "name", "a+b")]
    same = [Identifier(0, 4, "date", "b"), Identifier(0, 4, "mrn", "a")]
    assert merge(same, ["a", "b"]) == [Identifier(0, 4, "mrn", "a+b")]
    assert merge([Identifier(0, 4, "date", "a"), Identifier(4, 8, "date", "a")]) != [Identifier(0, 8, "date", "a")]
    holed = merge([Identifier(0, 20, "name", "a"), Identifier(5, 9, PLACEHOLDER, "a")])
    assert [(item.start, item.end) for item in holed] == [(0, 5), (5, 9), (9, 20)]


_FINDINGS = st.lists(
    st.builds(
        lambda start, length, kind, engine: Identifier(start, start + length, kind, engine),
        st.integers(0, 60),
        st.integers(1, 20),
        st.sampled_from(("name", "date", PLACEHOLDER)),
        st.sampled_from("abc"),
    ),
    max_size=12,
)


@given(_FINDINGS)
def test_merging_loses_no_character_and_leaves_no_overlap(found: list[Identifier]) -> None:
    merged = merge(found, "abc")
    assert {place for item in found for place in range(item.start, item.end)} == {
        place for item in merged for place in range(item.start, item.end)
    }
    assert all(before.end <= after.start for before, after in pairwise(merged))
    assert [(item.start, item.end) for item in merge(reversed(found), "abc")] == [
        (item.start, item.end) for item in merged
    ]
    hidden = {place for item in found if item.kind == PLACEHOLDER for place in range(item.start, item.end)}
    assert all(place in hidden for item in merged if item.kind == PLACEHOLDER for place in range(item.start, item.end))


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("Aa1 .,:/-@(#[*_]'\n«é²٣"), max_size=120))
def test_any_text_gives_spans_inside_it(text: str) -> None:
    found = find_identifiers(text)
    assert all(0 <= item.start < item.end <= len(text) and item.kind in KINDS for item in found)


REPEATED = [
    "a", "1", "A ", "1-", "A.A.", "[** ", "Dr. ", "@", "a.a.", "::", "1/", "Mar 1 ", "_", "by ", "MRN ", "1 ", "(",
    "1:",
    "Name: ", "12 Elm ", "x@", "www.", "call 1 ", "O'", "A-", "fax ", "É", "A, ", "of ", "1:a:", "signed by Al ", "\n",
]  # fmt: skip


def test_time_grows_with_the_length_whatever_the_text() -> None:
    # A pattern that tries again and again takes minutes on one of these; CPU time, since the machine may be busy.
    for repeated in REPEATED:
        text = repeated * (30_000 // len(repeated))
        start = time.process_time()
        for pattern in PATTERNS:
            for _ in pattern.find(text):
                pass
        assert time.process_time() - start < 20, repeated


def test_word_lists_find_names_that_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "name.txt").write_text("Smith  # common\nWhite\nvan Dyke\n", encoding="utf-8")
    (tmp_path / "address.any-case.txt").write_text("springfield\n", encoding="utf-8")
    (tmp_path / "safe.txt").write_text("White\n", encoding="utf-8")
    text = "Smith slept, smith did not; White count; Van Dyke from springfield"
    found = find_identifiers(text, [f"lists:{tmp_path}"])
    assert [(text[item.start : item.end], item.kind, item.engine) for item in found] == [
        ("Smith", "name", "lists"), ("Van Dyke", "name", "lists"), ("springfield", "address", "lists"),
    ]  # fmt: skip
    both = find_identifiers("Dr. Smith", ["patterns", f"lists:{tmp_path}"])
    assert both == [Identifier(4, 9, "name", "patterns+lists")]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("lists", "name the folder"),
        ("lists:/nowhere", "has no list"),
        ("magic", "is not known"),
        ("json:loads", "has a name and a method find"),
        ("presidio", "clinstack\\[scan\\]"),
    ],
)
def test_engines_that_cannot_be_opened_say_why(engine: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_engines([engine])


def test_a_list_with_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "people.txt").write_text("Smith\n", encoding="utf-8")
    with pytest.raises(InputError, match="must begin with a kind"):
        open_engines([f"lists:{tmp_path}"])


class Shouting:
    """An engine of somebody's own."""

    name = "shouting"

    def find(self, text: str) -> list[Identifier]:
        return [Identifier(0, len(text), "name", self.name)] if text.isupper() else []


def test_an_engine_of_ones_own_by_module_and_by_object() -> None:
    for engine in ("tests.test_identifiers:Shouting", Shouting()):
        if isinstance(engine, str):
            engine = engine.replace("tests.test_identifiers", __name__)
        assert find_identifiers("JANE ROE", [engine]) == [Identifier(0, 8, "name", "shouting")]


class _Result:
    def __init__(self, entity_type: str, start: int, end: int) -> None:
        self.entity_type, self.start, self.end = entity_type, start, end


class _Analyzer:
    """Stands in for Presidio's analyzer, which needs a spaCy model that tests do not have."""

    def analyze(self, text: str, language: str, score_threshold: float) -> list[_Result]:
        assert language == "en"
        assert 0 < score_threshold < 1
        return [
            _Result("PERSON", 0, 4),
            _Result("NRP", 5, 9),
            _Result("DATE_TIME", 10, 19),
            _Result("DATE_TIME", 20, 24),
        ]


def test_presidio_results_become_identifiers() -> None:
    from clinstack.privacy.identifiers.presidio import PresidioEngine

    found = find_identifiers("Jane seen yesterday 3/14", [PresidioEngine(_Analyzer())])
    assert found == [Identifier(0, 4, "name", "presidio"), Identifier(20, 24, "date", "presidio")]


def test_presidio_is_opened_with_an_installed_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stand-ins for spaCy and Presidio with the calls of presidio-analyzer 2.2; no model is at hand in tests.
    from clinstack.privacy.identifiers.presidio import open_presidio

    asked: dict[str, object] = {}

    class Provider:
        def __init__(self, nlp_configuration: dict[str, object]) -> None:
            asked.update(nlp_configuration)

        def create_engine(self) -> str:
            return "engine"

    def analyzer(nlp_engine: str, supported_languages: list[str]) -> _Analyzer:
        assert (nlp_engine, supported_languages) == ("engine", ["en"])
        return _Analyzer()

    for name, content in {
        "spacy": {},
        "spacy.util": {"is_package": lambda model: model == "en_core_web_sm"},
        "presidio_analyzer": {"AnalyzerEngine": analyzer},
        "presidio_analyzer.nlp_engine": {"NlpEngineProvider": Provider},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(InputError, match="en_core_web_lg is not installed, and nothing is downloaded"):
        open_presidio()
    assert not asked
    found = find_identifiers("Jane seen yesterday 3/14", [open_presidio("en_core_web_sm")])
    assert [item.kind for item in found] == ["name", "date"]
    assert asked["models"] == [{"lang_code": "en", "model_name": "en_core_web_sm"}]


def test_counts_have_no_text() -> None:
    counts = scan_texts(["Dr. Smith at 617-555-0123", "nothing", "[**Name**] and ___"])
    assert counts.to_dict() == {
        "texts": 3,
        "characters": len("Dr. Smith at 617-555-0123nothing[**Name**] and ___"),
        "texts_with_identifiers": 1,
        "patients": 0,
        "patients_with_identifiers": 0,
        "identifiers": 2,
        "identifiers_per_1000_texts": 666.67,
        "placeholders": 2,
        "kinds": {
            "name": {"found": 1, "per_1000_texts": 333.33, "texts": 1, "patients": 0},
            "phone": {"found": 1, "per_1000_texts": 333.33, "texts": 1, "patients": 0},
        },
        "engines": {"patterns": 2},
    }
