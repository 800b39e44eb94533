"""Figures of answers: by hand, against other people's code, and with intervals that hold what they should."""

from __future__ import annotations

import collections
import re
import string
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinstack.errors import InputError
from clinstack.evaluate.text import MEASURES, item_f1, items, measure_answers, normalise, text_metrics, token_f1
from clinstack.evaluate.text_compare import ALL, compare_answers
from clinstack.notes.instructions import Instructions


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Aspirin, 81 mg.", "aspirin 81 mg"),
        ("1.5 mg", "1.5 mg"),
        ("platelets: 1,250", "platelets 1250"),
        ("BP 120/80 on 2150-03-04!", "bp 120/80 on 2150-03-04"),
        (".5 mg (a half)", "0.5 mg half"),
        ("follow-up", "followup"),
        ("  \n ", ""),
    ],
)
def test_normalise(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


def squad(text: str) -> list[str]:
    """Return the words of a text as the definition of SQuAD's script says: small letters, no punctuation, articles."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@given(
    st.lists(st.sampled_from(["the", "a", "aspirin,", "aspirin", "fever.", "no-fever", "(mild)", "An", "an"])),
    st.randoms(),
)
def test_token_f1_is_squads(words: list[str], random: Any) -> None:
    other = [word for word in words if random.random() < 0.7] + ["pain"] * random.randrange(2)
    answer, reference = " ".join(words), " ".join(other)
    ours, theirs = squad(answer), squad(reference)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    wanted = float(ours == theirs)
    if common:
        precision, recall = common / len(ours), common / len(theirs)
        wanted = 2 * precision * recall / (precision + recall)
    elif ours and theirs:
        wanted = 0.0
    assert token_f1(answer, reference) == pytest.approx(wanted)


def test_items() -> None:
    assert items("- Aspirin 81 mg\n- Heparin; warfarin, platelets 1,250.") == {
        "aspirin 81 mg",
        "heparin",
        "warfarin",
        "platelets 1250",
    }
    assert item_f1("1. warfarin\n2. aspirin", "Aspirin, warfarin, heparin") == pytest.approx(2 * 2 / 5)
    assert item_f1("", "aspirin") == 0


def examples(count: int = 40) -> Instructions:
    """Return invented questions, two for each patient; of each patient's, the second cannot be answered."""
    places = range(count)
    return Instructions(
        example_ids=[f"e{place:03}" for place in places],
        patient_ids=[f"p{place // 2:03}" for place in places],
        notes=[f"aspirin {place} mg, fever" for place in places],
        questions=["?" for _ in places],
        answers=[f"Aspirin, {place} mg" if place % 2 == 0 else "The note does not say it." for place in places],
        tasks=["Named Entity Recognition" if place % 2 == 0 else "Question Answering" for place in places],
        answerable=[place % 2 == 0 for place in places],
    )


def measured(answers: list[str], rows: Instructions | None = None, **changes: Any) -> pa.Table:
    rows = examples(len(answers)) if rows is None else rows
    values: dict[str, Any] = {"cut": [False] * len(answers), "tokens": [3] * len(answers)}
    return measure_answers(rows, answers, "test", **(values | changes))


def test_figures_by_hand() -> None:
    answers = ["aspirin 0 mg", "fever", "heparin 9 mg", "Not documented.", "", "The note does not tell."]
    table = measured(answers, cut=[False, True, False, False, False, False])
    assert table.schema.equals(MEASURES)
    metrics = text_metrics(table, 200)
    value = {name: found["value"] for name, found in metrics.items() if isinstance(found, dict) and "value" in found}
    assert value["exact_match"] == pytest.approx(1 / 6)
    # "heparin 9 mg" shares one of three words with "aspirin 2 mg"; the refusals one and three with "note does not say
    # it", which has five.
    assert value["token_f1"] == pytest.approx((1 + 0 + 1 / 3 + 2 * 1 / 7 + 0 + 2 * 3 / 9) / 6)
    # The only lists: {aspirin 0 mg} against {aspirin, 0 mg}, and nothing.
    assert value["item_f1"] == 0
    assert value["grounding"] == pytest.approx(2 / 4)  # aspirin and 0, of them and heparin and 9
    assert value["grounded_answers"] == pytest.approx(1 / 2)
    assert value["refusal_sensitivity"] == pytest.approx(2 / 3)
    assert value["refusal_specificity"] == 1
    assert value["empty"] == value["cut"] == pytest.approx(1 / 6)
    assert value["answer_tokens"] == 3
    assert (metrics["examples"], metrics["patients"], metrics["facts"], metrics["unanswerable"]) == (6, 3, 4, 3)
    by_task = metrics["by_task"]["Question Answering"]
    assert "item_f1" not in by_task
    assert "refusal_specificity" not in by_task
    assert by_task["refusal_sensitivity"]["value"] == pytest.approx(2 / 3)


def test_rouge_is_that_of_the_library() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    rows = examples(2)
    answer = "Aspirin was given, and the fever went: 0 mg"
    table = measured([answer, ""], rows)
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(rows.answers[0], answer)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert table[name].to_pylist() == [theirs[name].fmeasure, 0]
    # By hand: of 9 words of the answer and 3 of the reference, "aspirin", "0" and "mg" are common and in order.
    assert table["rougeL"][0].as_py() == pytest.approx(2 * 3 / 12)


def test_the_same_whatever_the_order() -> None:
    table = measured(["aspirin", "fever", "aspirin 2 mg", "x"] * 5)
    order = np.random.default_rng(0).permutation(table.num_rows)
    assert text_metrics(table.take(order), 100) == text_metrics(table, 100)
    assert text_metrics(table, 100, seed=1) != text_metrics(table, 100)


def test_without_answerable_nothing_is_said_of_refusals() -> None:
    rows = examples(4)
    unknown = Instructions(
        rows.example_ids, rows.patient_ids, rows.notes, rows.questions, rows.answers, rows.tasks, answerable=None
    )
    metrics = text_metrics(measured(["x"] * 4, unknown), 100)
    assert not {"refusal_sensitivity", "refusal_specificity", "unanswerable", "grounding"} & metrics.keys()


def test_intervals_are_over_patients() -> None:
    """Ten copies of each answer say no more than one; as many patients more make the interval narrower."""
    generator = np.random.default_rng(0)
    right = generator.random(60) < 0.5

    def width(copies: int, patients: int) -> float:
        count = copies * patients
        rows = Instructions(
            [f"e{place}" for place in range(count)],
            [f"p{place % patients}" for place in range(count)],
            ["note"] * count,
            ["?"] * count,
            ["yes"] * count,
            ["Question Answering"] * count,
        )
        answers = ["yes" if right[place % patients] else "no" for place in range(count)]
        low, high = text_metrics(measured(answers, rows), 500)["token_f1"]["interval"]
        return float(high - low)

    assert width(10, 20) == pytest.approx(width(1, 20))
    assert width(1, 60) < 0.8 * width(1, 20)


def test_a_difference_that_is_there_holds() -> None:
    generator = np.random.default_rng(0)
    rows = examples(200)
    good = [answer if generator.random() < 0.8 else "x" for answer in rows.answers]
    bad = [answer if generator.random() < 0.4 else "x" for answer in rows.answers]
    tables = {"tuned": measured(good, rows), "base": measured(bad, rows), "twin": measured(good, rows)}
    found = compare_answers(tables, [("tuned", "base"), ("tuned", "twin")], 300)
    by_key = {(row["b"], row["task"], row["metric"]): row for row in found}
    whole = by_key["base", ALL, "token_f1"]
    assert whole["holds"]
    assert whole["interval"][0] > 0
    values = [np.mean(tables[name]["token_f1"].to_pylist()) for name in ("tuned", "base")]
    assert whole["value"] == pytest.approx(values[0] - values[1])
    assert by_key["base", "Question Answering", "token_f1"]["holds"]
    assert by_key["base", ALL, "refusal_sensitivity"]["holds"]
    assert not any(row["holds"] or row["value"] for row in found if row["b"] == "twin")
    assert all(row["p_holm"] is None or row["p_holm"] >= row["p"] for row in found)


def test_paired_intervals_are_shorter_than_unpaired_ones() -> None:
    rows = examples(100)
    generator = np.random.default_rng(0)
    base = [answer if generator.random() < 0.5 else "x" for answer in rows.answers]
    nearly = [rows.answers[place] if place < 4 else answer for place, answer in enumerate(base)]
    tables = {"a": measured(nearly, rows), "b": measured(base, rows)}
    difference = next(row for row in compare_answers(tables, [("a", "b")], 300) if row["metric"] == "token_f1")
    own = text_metrics(tables["a"], 300)["token_f1"]["interval"]
    assert difference["interval"][1] - difference["interval"][0] < own[1] - own[0]


def test_other_examples_are_refused() -> None:
    tables = {"a": measured(["x"] * 4), "b": measured(["x"] * 6)}
    with pytest.raises(InputError, match=r"a \(4 answers\) and b \(6\) are not of the same examples"):
        compare_answers(tables, [("a", "b")], 100)
    with pytest.raises(InputError, match="no rows of split train"):
        text_metrics(tables["a"], 100, split="train")
