"""What holds for every text: sections cover it, nothing raises, the admission text is read back, time is linear."""

from __future__ import annotations

import gc
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinstack.notes.sections.find import (
    admission_sections,
    admission_text,
    admission_text_with_map,
    section_map,
    split_sections,
)
from clinstack.notes.sections.headers import ADMISSION_SECTIONS, HEADERS
from clinstack.notes.sections.priority import PRIORITIES, default_priority, text_kind

NEWLINES = ["\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\n \t\n", "\r\n\r\n", "\n\n\n"]
PROSE = [
    "She said the following: it hurts.",
    "at 10:30 am",
    "fall",
    "PAST MEDICAL",
    "HISTORY",
    "===",
    "-----",
    "[]",
    "[ ]",
    "___",
    ",",
    ".",
    "; ",
    "#",
    "2. ",
    "(brief)",
    "\x00",
    "İﬁß \u00a0\u200b",
    "👩‍⚕️",
    "Gen: NAD",
    "CV: RRR",
    "# CHF: given lasix",
    "2. Labs",
    "On discharge",
    "expired",
    "12/14: seen",
]
aliases = st.sampled_from(sorted({alias for items in HEADERS.values() for alias in items}))
headers = st.tuples(
    aliases | st.sampled_from(["cc", "hpi", "pmh", "pe", "past medical history", "medications", "hospital course"]),
    st.sampled_from([str.upper, str.lower, str.title, str.capitalize]),
    st.sampled_from([":", ": ", ":,", " :", "", " (brief):", "::", " -", ":\t"]),
).map(lambda parts: parts[1](parts[0]) + parts[2])
fragments = headers | st.sampled_from(NEWLINES) | st.sampled_from(PROSE) | st.sampled_from([" ", ". ", ", "])
notes = st.lists(fragments, max_size=40).map("".join) | st.text(max_size=200)


@settings(max_examples=250, deadline=None)
@given(notes)
def test_spans_cover_the_text_in_order(text: str) -> None:
    spans = section_map(text)
    assert "".join(text[span.start : span.end] for span in spans) == text
    assert [span.start for span in spans] == [0, *(span.end for span in spans)][: len(spans)]
    assert all(span.start < span.end for span in spans)
    assert all(span.name is None or span.name in HEADERS for span in spans)


@settings(max_examples=250, deadline=None)
@given(notes)
def test_sections_say_where_they_stand(text: str) -> None:
    sections = split_sections(text)
    for section in sections:
        whole = text[section.start : section.end]
        assert " ".join(section.header.split()) in " ".join(whole.split())
        assert section.body in whole
    assert all(first.end <= second.start for first, second in pairwise(sections))
    assert all(not text[first.end : second.start].strip() for first, second in pairwise(sections))


@settings(max_examples=300, deadline=None)
@given(notes)
def test_an_admission_text_is_read_back_as_it_is(text: str) -> None:
    found = admission_text_with_map(text)
    if found is None:
        assert admission_text(text) is None
        return
    admission, spans = found
    assert admission_text(admission) == admission == admission_text(text)
    assert admission_sections(admission) == admission_sections(text)
    assert section_map(admission) == spans
    assert [span.name for span in spans] == [name for name in ADMISSION_SECTIONS if name in admission_sections(text)]
    assert "\n" not in admission.replace("\n\n", "")
    assert text_kind(spans) == "admission"


@settings(max_examples=100, deadline=None)
@given(notes, st.sampled_from(NEWLINES[:1] + NEWLINES[2:10]))
def test_every_newline_is_one(text: str, newline: str) -> None:
    plain = "\n".join(text.splitlines())
    assert admission_sections(newline.join(plain.split("\n"))) == admission_sections(plain)


@settings(max_examples=100, deadline=None)
@given(notes)
def test_every_text_has_a_kind(text: str) -> None:
    assert default_priority(section_map(text)) in PRIORITIES.values()


def seconds(text: str) -> float:
    times = []
    gc.disable()  # it walks through whatever else this process holds
    try:
        for _ in range(3):
            start = time.process_time()
            section_map(text)
            admission_text(text)
            times.append(time.process_time() - start)
    finally:
        gc.enable()
    return min(times)


UNITS = {
    "a discharge summary": "Chief Complaint:\nfall\n\nHospital Course:\n"
    + "He did well, and bp was 120/80 at noon.\n" * 30,
    "blank lines": "\n",
    "dashes": "-",
    "rules": "=== ",
    "brackets": "[ ( ",
    "colons": ":",
    "capitals": ". ABC DEF GHI",
    "spaces in capitals": ". ABC" + " " * 60,
    "headers": "PMH: a\n",
    "no letters": "\x00\u2028",
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_time_grows_with_the_length_alone(unit: str) -> None:
    length = 20_000
    text = unit * (length // len(unit))
    short, long = seconds(text), seconds(text * 8)
    assert long < 24 * short + 0.03


def test_ten_megabytes_take_less_than_three_seconds() -> None:
    unit = UNITS["a discharge summary"]
    text = unit * (10_000_000 // len(unit))
    start = time.process_time()
    spans = section_map(text)
    assert time.process_time() - start < 3
    assert spans[-1].end == len(text)
