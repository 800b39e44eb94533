"""Membership attacks: what was never trained is clean, what was learned by heart is caught, a biased split is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinstack.audit.blind import word_scores
from clinstack.audit.membership import TABLE
from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe import PretrainRecipe
from clinstack.stages.pretrain import pretrain
from clinstack.tokens.prompts import Prompt
from tiny_instructions import write_tiny_instructions
from tiny_membership import CANARY, adapter, audited, learn_by_heart, verdicts, write_notes

ATTACKS = ["loss", "reference", "min_k_plus_plus", "neighbourhood"]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_notes(tmp_path_factory.mktemp("membership") / "notes")


@pytest.fixture(scope="module")
def saved_stack(tiny_base: Path, notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains a stack for some steps on the notes of a split, and saves it."""
    folder = tmp_path_factory.mktemp("stacks")

    def save(steps: int, split: str = "train") -> Path:
        target = folder / f"{split}-{steps}"
        if not target.exists():
            stack = Stack.build(str(tiny_base), [adapter()])
            if steps:
                learn_by_heart(stack, notes, steps, split)
            stack.max_tokens = 64
            stack.save(target)
        return target

    return save


@pytest.fixture(scope="module")
def caught(saved_stack: Callable[..., Path], notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("caught")
    return audited(saved_stack(150), folder, notes=str(notes)), folder


def test_an_untrained_adapter_is_clean(saved_stack: Callable[..., Path], notes: Path, tmp_path: Path) -> None:
    section = audited(saved_stack(0), tmp_path, notes=str(notes))
    assert list(section["attacks"]) == ATTACKS
    assert not section["split_check"]["biased"]
    # Its output is the base's, so nothing differs from the reference.
    assert section["attacks"]["reference"]["auroc"]["value"] == 0.5
    for name, of in section["attacks"].items():
        assert of["auroc"]["value"] < 0.65, name
    assert "leaking" not in verdicts(section).values()
    assert section["strongest"]["p"] > 0.05


def test_notes_that_were_learned_by_heart_are_caught(caught: Any) -> None:
    section, _ = caught
    found = verdicts(section)
    for name in ATTACKS:
        assert section["attacks"][name]["auroc_joint"]["interval"][0] > 0.6, name
    assert [found[f"{name}.auroc"] for name in ATTACKS[:3]] == ["leaking"] * 3
    assert section["attacks"]["loss"]["auroc"]["value"] > 0.9
    assert section["strongest"]["p"] < 0.01
    assert not section["split_check"]["biased"]
    assert section["split_check"]["loss_over_base_alone"]["interval"][0] > 0.1
    assert section["members"]["patients"] == 50
    assert section["non_members"] == section["non_members"] | {"notes": 60, "patients": 60, "cut_tokens": 0}


def test_what_is_too_few_is_not_judged(caught: Any) -> None:
    section, _ = caught
    # 60 non-members: not one false positive in a hundred can be seen.
    assert section["attacks"]["loss"]["tpr_at_1_percent"]["value"] is None
    assert not [name for name in verdicts(section) if "tpr" in name]


def test_the_table_has_a_row_for_each_note_and_no_text(caught: Any) -> None:
    section, folder = caught
    table = pq.read_table(folder / TABLE)
    assert table.num_rows == 110
    assert table["member"].to_pylist() == [True] * 50 + [False] * 60
    scores = -table["nll"].to_numpy() / table["tokens"].to_numpy()
    np.testing.assert_array_equal(scores, table["score_loss"].to_numpy())
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    assert text == ["note_id", "patient_id"]
    assert CANARY not in json.dumps(section)


def test_an_audit_is_the_same_each_time(
    caught: Any, saved_stack: Callable[..., Path], notes: Path, tmp_path: Path
) -> None:
    section, folder = caught
    again = audited(saved_stack(150), tmp_path, notes=str(notes))
    assert again == section
    assert (tmp_path / TABLE).read_bytes() == (folder / TABLE).read_bytes()


def test_a_reference_that_knows_the_same_kind_of_notes(
    caught: Any, saved_stack: Callable[..., Path], notes: Path, tmp_path: Path
) -> None:
    # One that learned such notes from the other patients: against it members stand out more than against the base.
    against = audited(saved_stack(150), tmp_path, notes=str(notes), reference=str(saved_stack(30, "test")))
    area = against["attacks"]["reference"]["auroc"]["value"]
    assert area > caught[0]["attacks"]["reference"]["auroc"]["value"]
    assert not [remark for remark in against["remarks"] if "its adapters off" in remark]
    table = pq.read_table(tmp_path / TABLE)
    assert not np.allclose(table["reference_nll"].to_numpy(), table["base_nll"].to_numpy())


def test_a_split_that_tells_by_itself_is_named_and_not_taken_for_a_leak(tiny_base: Path, tmp_path: Path) -> None:
    biased = write_notes(tmp_path / "biased", biased=True)
    Stack.build(str(tiny_base), [adapter()]).save(tmp_path / "stack")
    section = audited(tmp_path / "stack", tmp_path / "run", notes=str(biased), neighbours=0)
    check = section["split_check"]
    assert check["biased"]
    assert check["words"]["value"] > 0.95
    assert "The split is biased: the notes' words alone can tell" in check["why"]
    assert "neighbourhood" not in section["attacks"]
    assert "leaking" not in verdicts(section).values()
    # Nothing was trained: what the base makes of a note is taken off, and the reference attack stays decisive.
    assert verdicts(section)["reference.auroc"] == "clean"
    moved = next(found for found in section["findings"] if found["name"] == "membership.loss.auroc")
    assert moved["threshold"] == pytest.approx(0.65 + check["shift"])
    assert "the split is biased" in moved["why"]


def test_long_notes_are_cut_and_it_is_said(saved_stack: Callable[..., Path], notes: Path, tmp_path: Path) -> None:
    stack = Stack.load(saved_stack(0))
    stack.max_tokens = 10
    stack.save(tmp_path / "short")
    section = audited(tmp_path / "short", tmp_path / "run", notes=str(notes), max_notes=20)
    assert section["members"]["notes"] == section["non_members"]["notes"] == 20
    assert section["members"]["tokens"] == 200
    cut = section["members"]["cut_tokens"] + section["non_members"]["cut_tokens"]
    assert cut > 0
    assert f"the first 10 tokens were read, as many as the stack reads at once; {cut:,} tokens" in section["remarks"][0]


def test_too_few_patients_are_refused(saved_stack: Callable[..., Path], tmp_path: Path) -> None:
    few = write_notes(tmp_path / "few", patients=8)
    with pytest.raises(InputError, match="patients"):
        audited(saved_stack(0), tmp_path / "run", notes=str(few))


def test_words_tell_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    patients = [f"m{place}" for place in range(80)], [f"n{place}" for place in range(80)]
    same = [[random.integers(0, 40, 12) for _ in range(80)] for _ in range(2)]
    members, others = word_scores(same[0], same[1], *patients)
    assert 0.35 < np.mean(members[:, None] > others[None]) < 0.65
    other = [random.integers(30, 60, 12) for _ in range(80)]
    members, others = word_scores(same[0], other, *patients)
    assert np.mean(members[:, None] > others[None]) > 0.95
    # A token that stands in one patient's notes only says nothing about this patient.
    own = [np.full(3, 1000 + place) for place in range(80)]
    members, _ = word_scores(own, same[1], *patients)
    assert np.ptp(members) < 0.1


def test_answers_are_attacked_given_their_prompts(tiny_base: Path, tmp_path: Path) -> None:
    instructions = write_tiny_instructions(tmp_path / "instructions")
    stack = Stack.build(str(tiny_base), [adapter()])
    stack.prompt, stack.max_tokens = Prompt("{note}\nQ: {question}", None, "\nA:"), 120
    stack.save(tmp_path / "stack")
    section = audited(tmp_path / "stack", tmp_path / "run", instructions=str(instructions), neighbours=2)
    assert section["unit"] == "answer"
    assert list(section["attacks"]) == ATTACKS
    assert "leaking" not in verdicts(section).values()
    table = pq.read_table(tmp_path / "run" / TABLE)
    assert table.num_rows == section["members"]["notes"] + section["non_members"]["notes"]
    # The answers alone: a prompt has far more tokens.
    assert max(table["tokens"].to_pylist()) < 60
    assert np.unique(table["score_neighbourhood"].to_numpy()).size > 5


def test_a_training_that_ended_early_is_named(tiny_base: Path, notes: Path, tmp_path: Path) -> None:
    """Only notes that it read are members."""
    for steps, expected in ((1, True), (3, False)):
        recipe = PretrainRecipe.model_validate(
            {
                "run": str(tmp_path / f"run-{steps}"),
                "base": str(tiny_base),
                "notes": str(notes),
                "context": 64,
                "adapters": [{"name": "clinical", "rank": 2}],
                "training": {"max_steps": steps, "batch_size": 8, "tracking": "none"},
                "evaluation": {"max_notes": 5, "resamples": 100},
            }
        )
        pretrain(recipe)
        section = audited(tmp_path / f"run-{steps}", tmp_path / "audit", max_notes=20, neighbours=0)
        said = [remark for remark in section["remarks"] if "ended no later than its first epoch" in remark]
        assert bool(said) is expected
        if expected:
            read, of = map(int, re.findall(r"of (\d+) training notes only the (\d+) whose", said[0])[0][::-1])
            assert 0 < read < of
