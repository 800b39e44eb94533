"""Reading a judge's replies, the orders in which it sees answers, and the rubric it is asked with."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from clinstack.judge.orders import presentations
from clinstack.judge.parse import parse_scores
from clinstack.judge.rubric import Rubric

GOOD = {
    "3 4": "as asked",
    "3 4\nBecause 2 of 3 doses are missing [1].": "explained",
    "3, 4": "commas",
    "**3 4**": "bold",
    "[3, 4]": "a list",
    "Scores: 3 4": "a head",
    "A: 3, B: 4": "letters",
    "B: 4\nA: 3": "letters in another order",
    "Answer A: 3 - omits 2 doses\nAnswer B: 4 - complete": "explained letter by letter",
    "A: 3 - K: 4.1 is missing\nB: 4": "a laboratory value that looks like a letter",
    "- A: 3\n- B: 4": "bullets",
    '{"A": 3, "B": 4}': "JSON",
    '```json\n{"scores": [3, 4]}\n```': "fenced JSON",
    '{"scores": {"B": 4, "A": 3}}': "nested JSON",
    '{"A": {"grade": 3, "why": "x"}, "B": {"grade": 4}}': "JSON with reasons",
    '[{"answer": "B", "score": 4}, {"answer": "A", "score": 3}]': "a list of objects",
    "<think>1 1, or 2 2?</think>\n3 4": "thoughts",
    "Here are the grades:\n3 4": "a sentence before",
    "3\n4": "a line each",
    "3/4 4/4": "out of four",
    "3.0 4.0": "decimals",
    "A: 2, B: 1 as in [3, 4]".replace("2", "3", 1).replace("1 as", "4 as"): "a reference behind",
}
BAD = {
    "": "nothing",
    "I cannot grade these.": "a refusal",
    "3": "one too few",
    "3 4 1": "one too many",
    "34": "run together",
    "0 4": "below the scale",
    "5 4": "above the scale",
    "-3 4": "negative",
    "3.5 4": "between two grades",
    "3/5 4/5": "another scale",
    "3/4": "one out of four",
    "A: 3": "a letter missing",
    "A: 3, B: 4, C: 1": "a letter too many",
    "A: 3\nA: 2\nB: 4": "two grades for one answer",
    "<think>3 4": "cut off in thought",
    "The patient took 3 of 4 pills.": "numbers in a sentence",
    '{"scores": [3, 9]}': "JSON off the scale",
    '{"A": true, "B": 4}': "JSON without a number",
    '{"A": 3}': "JSON with a letter missing",
    "A: 10, B: 4": "ten",
}


@pytest.mark.parametrize("text", GOOD, ids=GOOD.get)
def test_replies_that_are_read(text: str) -> None:
    assert parse_scores(text, 2) == [3, 4]


@pytest.mark.parametrize("text", BAD, ids=BAD.get)
def test_replies_that_are_failures(text: str) -> None:
    assert parse_scores(text, 2) is None


def test_no_reply_is_read_as_what_it_does_not_say() -> None:
    """Random replies never raise, and every grade that is read stands in them."""
    rng = np.random.default_rng(0)
    pieces = [
        "1",
        "4",
        "7",
        "A",
        "B",
        ":",
        " ",
        "\n",
        "[",
        "]",
        "{",
        "}",
        '"',
        ",",
        "/4",
        ".5",
        "Answer ",
        "<think>",
        "-",
    ]
    for _ in range(5000):
        text = "".join(rng.choice(pieces, rng.integers(0, 14)))
        found = parse_scores(text, 2)
        assert found is None or (len(found) == 2 and all(str(grade) in text and grade in (1, 4) for grade in found))


@pytest.mark.parametrize(
    "text", ["[ " * 20000, "1 " * 20000 + "x", "A: " + " " * 40000, '{"A":' * 5000, "A: 3 " * 9000]
)
def test_a_model_that_repeats_itself_is_read_at_once(text: str) -> None:
    begin = time.perf_counter()
    assert parse_scores(text, 2) in (None, [3, 3])
    assert time.perf_counter() - begin < 2


def test_orders_balance_and_depend_on_seed_and_example_alone() -> None:
    ids, labels = [f"e{i}" for i in range(400)], ["b", "a", "c"]
    pairs = presentations(ids, labels, "pairs", 2, 0)
    assert len(pairs) == 400 * 3 * 2
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert first.example_id == second.example_id
        assert first.shown == second.shown[::-1]
    leads = Counter(one.shown[0] for one in pairs if one.order == 0 and set(one.shown) == {"a", "b"})
    assert 150 < leads["a"] < 250  # which way comes first is drawn
    assert set(pairs) >= set(presentations(ids[7:9], ["c", "b", "a"], "pairs", 2, 0))
    assert presentations(ids, labels, "pairs", 2, 1) != pairs
    for example in ids[:20]:
        shown = [one.shown for one in presentations([example], labels, "all", 3, 0)]
        assert all(sorted(column) == ["a", "b", "c"] for column in zip(*shown, strict=True))
    # A pair is shown in the same orders whatever else is judged: its replies can be used again.
    assert set(presentations(ids, ["a", "b"], "pairs", 2, 0)) <= set(pairs)


def test_the_rubric_fills_each_place_once_and_names_nobody() -> None:
    text = Rubric.read().ask("a note with {question}", "what {note}?", ["first {count}", "  "])
    assert "a note with {question}" in text
    assert "what {note}?" in text
    assert "[Answer A Begin]\nfirst {count}\n[Answer A End]" in text
    assert "[Answer B Begin]\n(no answer)\n[Answer B End]" in text
    assert "holds the 2 grades, from answer A to answer B" in text
