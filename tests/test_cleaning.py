"""Cleaning of notes against a slow, simple reference, over texts that no one would write."""

from __future__ import annotations

import re
import time

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clinstack.notes.cleaning import clean_text, clean_texts

PIECES = st.sampled_from(
    [
        *("[**", "**]", "[", "*", "]", "**", "\r\n", "\r", "\n", "\n\n", "\v", "\f", "\x85", "\u2028", "\u2029"),
        *(" ", "  ", "\t", "\xa0", "\0", "a", "Ä", "Â", "é", "e\u0301", "中", "😀", "\u200b", "\ufeff", "\x1c", "0"),
        # Whose bytes are nearly those of a line break or a blank.
        *("\u2027", "\u202a", "\x84", "\x86", "\x9f", "\xa1", "\u3000"),
    ]
)
HOSTILE = st.one_of(st.lists(PIECES, max_size=20).map("".join), st.text(max_size=30))


def reference(text: str) -> str:
    """The docstring of `clean_texts`, one rule a line."""
    text = text.replace("\0", "")
    text = re.sub("\r\n|[\r\v\f\x85\u2028\u2029]", "\n", text)
    text = text.replace("[**", " ").replace("**]", " ")
    text = re.sub("[ \t\xa0]+", " ", text)
    text = re.sub(" ?\n ?", "\n", text)
    text = re.sub("\n{3,}", "\n\n", text)
    return text.strip(" \n")


@settings(max_examples=1500, deadline=None)
@given(HOSTILE)
@example("[**]")
@example("[***]")
@example("[**[**x**]**]")
@example("[**\n**]")
@example("\r\0\n\r\r\n")
@example(" \x85 \n\u2028 \n a \t\xa0b ")
def test_one_note_is_what_the_rules_say_and_stays_so(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == reference(text)
    assert clean_text(cleaned) == cleaned
    assert "\0" not in cleaned


@settings(max_examples=600, deadline=None)
@given(
    texts=st.lists(st.none() | HOSTILE, max_size=25),
    start=st.integers(0, 25),
    length=st.integers(0, 25),
)
@example(texts=["a", None, " \n ", "", "\n\nb ", None, "\tc"], start=1, length=5)
@example(texts=[None, None], start=1, length=1)
@example(texts=["x\n"] * 20, start=9, length=9)
@example(texts=["a\r", "\nb", "[*", "*b", "[", "**", "]", "[**", "]"], start=1, length=7)
def test_a_note_is_cleaned_alike_wherever_it_stands(texts: list[str | None], start: int, length: int) -> None:
    for kind in (pa.string(), pa.large_string()):
        values = pa.array(texts, kind)
        for part, wanted in ((values, texts), (values.slice(start, length), texts[start : start + length])):
            result = clean_texts(part)
            result.validate(full=True)
            assert result.type == pa.large_string()
            assert result.to_pylist() == [text if text is None else reference(text) for text in wanted]
            assert result.null_count == wanted.count(None)
        # The input stays as it was: its buffers belong to others.
        assert values.to_pylist() == texts


def test_words_and_what_merely_looks_blank_stay() -> None:
    # No line breaks and no blanks by our rules; removing them could join or change words.
    text = "a\u200bb\ufeffc\u3000d\x1ce\u2009f\u00adg"
    assert clean_text(text) == text
    assert (
        clean_text("Ä\xa0[**Known lastname 123**],\r\n\r\n\r\nthe * [x] **") == "Ä Known lastname 123 ,\n\nthe * [x] **"
    )


def test_a_note_of_ten_megabytes_is_cleaned_in_linear_time() -> None:
    def seconds(size: int) -> float:
        note = "Naïve [**Name**] \r\n\t\x85 fell.\0 " * (size // 30) + "\n" * (size // 10) + " " * (size // 10) + "end"
        start = time.perf_counter()
        cleaned = clean_text(note)
        took = time.perf_counter() - start
        assert cleaned.startswith("Naïve Name\n\nfell. Naïve")
        assert cleaned.endswith("fell.\n\nend")
        assert len(cleaned) < len(note)
        return took

    seconds(100_000)
    small, large = min(seconds(1_000_000) for _ in range(3)), seconds(10_000_000)
    # Ten times the text; quadratic time would be a hundred times.
    assert large < 40 * small + 0.5


def test_no_notes_and_only_blank_ones() -> None:
    for texts in ([], [None], ["", None], ["\n \t", "\0", " ", None, ""]):
        expected = [text if text is None else "" for text in texts]
        assert clean_texts(pa.array(texts, pa.string())).to_pylist() == expected
