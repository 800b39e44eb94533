"""Attacks on a classifier's scores: figures against plain formulas, a random head clean, learned labels caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy as scipy_entropy

from clinstack.audit.membership import TABLE
from clinstack.audit.membership_scores import entropy, label_log_odds, label_losses, standardized
from clinstack.engine.losses import encode_labels
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.tasks import Task
from tiny_membership import CANARY, adapter, audited, learn_labels, verdicts, write_examples

STAY = Task("length_of_stay", "multiclass", ("short", "middle", "long"))
CODES = Task("diagnoses", "multilabel", ("038", "428", "486", "584"))
DEATH = Task("mortality", "binary", ("survived", "died"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    folder, made = tmp_path_factory.mktemp("examples"), {}

    def write(task: Task) -> Path:
        if task.name not in made:
            made[task.name] = write_examples(folder / task.name, task)
        return made[task.name]

    return write


def classifier(base: Path, task: Task, folder: Path, examples: Path, steps: int, *, head_only: bool = False) -> Path:
    stack = Stack.build(str(base), [] if head_only else [adapter()], task)
    stack.reading = Reading(max_tokens=40)
    if steps:
        learn_labels(stack, examples, steps)
    stack.save(folder)
    return folder


@pytest.fixture(scope="module")
def learned(
    tiny_base: Path, examples: Callable[[Task], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Task], Path]:
    """Return a function that saves a stack which knows the labels of a task's training examples."""
    folder = tmp_path_factory.mktemp("learned")
    steps = {STAY.name: 80, CODES.name: 40}

    def save(task: Task) -> Path:
        if not (folder / task.name).exists():
            classifier(tiny_base, task, folder / task.name, examples(task), steps[task.name])
        return folder / task.name

    return save


def test_log_odds_losses_and_entropies_are_those_of_the_probabilities() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (20, 3))
    labels = random.integers(0, 3, 20).tolist()
    probabilities = torch.softmax(torch.tensor(logits), 1).numpy()
    right = probabilities[np.arange(20), labels]
    odds = label_log_odds(STAY, labels, logits)
    np.testing.assert_allclose(odds[:, 0], np.log(right) - np.log(1 - right))
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none").numpy()
    np.testing.assert_allclose(label_losses(STAY, odds), expected)
    np.testing.assert_allclose(entropy(STAY, logits), scipy_entropy(probabilities, axis=1))

    codes = [["038", "486"], [], ["584"]]
    logits = random.normal(0, 3, (3, 4))
    odds = label_log_odds(CODES, codes, logits)
    targets = encode_labels(CODES, codes).double()
    expected = F.binary_cross_entropy_with_logits(torch.tensor(logits), targets, reduction="none").mean(1).numpy()
    np.testing.assert_allclose(label_losses(CODES, odds), expected)
    chances = torch.sigmoid(torch.tensor(logits)).numpy()
    np.testing.assert_allclose(
        entropy(CODES, logits), scipy_entropy(np.stack([chances, 1 - chances]), axis=0).mean(axis=1)
    )
    # A classifier that is sure stays finite, where its probabilities are 0 and 1.
    sure = np.array([[2000.0, -2000.0, 0.0]])
    assert np.isfinite(label_log_odds(STAY, [1], sure)).all()
    assert entropy(STAY, sure) == 0


def test_a_hard_class_is_no_evidence() -> None:
    random = np.random.default_rng(0)
    has = np.eye(2, dtype=bool)[np.repeat([0, 1], 500)]
    # The second class is much harder, for members and others alike.
    known = (np.where(has[:, 0], 4.0, -1.0) + random.normal(0, 1, 1000))[:, None]
    scores = standardized(DEATH, known, has, known, has)
    assert abs(scores[:500].mean()) < 1e-9
    assert abs(scores[500:].mean()) < 1e-9
    assert scores.std() == pytest.approx(1)
    # With too few others of a class, all others are its measure.
    few = np.r_[np.zeros(990, dtype=int), np.arange(1, 8)]
    few_has = np.eye(2, dtype=bool)[(few > 0).astype(int)]
    of_all = standardized(DEATH, np.array([[5.0]]), np.array([[False, True]]), known[: len(few)], few_has)
    assert of_all[0] == pytest.approx((5.0 - known[: len(few)].mean()) / known[: len(few)].std())


@pytest.mark.parametrize("task", [STAY, CODES], ids=lambda task: str(task.kind))
def test_learned_labels_are_caught(
    task: Task, learned: Callable[[Task], Path], examples: Callable[[Task], Path], tmp_path: Path
) -> None:
    section = audited(learned(task), tmp_path / "run", examples=str(examples(task)))
    assert section["unit"] == "example"
    assert list(section["attacks"]) == ["loss", "entropy", "class_calibrated"]
    assert section["strongest"]["interval"][0] > 0.65
    assert verdicts(section)["loss.auroc"] == "leaking"
    assert not section["split_check"]["biased"]
    table = pq.read_table(tmp_path / "run" / TABLE)
    assert table.num_rows == 120
    assert CANARY not in str(section)


def test_a_new_head_is_clean(tiny_base: Path, examples: Callable[[Task], Path], tmp_path: Path) -> None:
    stack = classifier(tiny_base, STAY, tmp_path / "stack", examples(STAY), 0, head_only=True)
    section = audited(stack, tmp_path / "run", examples=str(examples(STAY)))
    assert "leaking" not in verdicts(section).values()
    assert section["strongest"]["p"] > 0.05
    assert any("No reference classifier was named" in remark for remark in section["remarks"])


def test_a_reference_classifier_is_taken_off(
    tiny_base: Path, learned: Callable[[Task], Path], examples: Callable[[Task], Path], tmp_path: Path
) -> None:
    other = classifier(tiny_base, STAY, tmp_path / "other", examples(STAY), 0)
    settings: dict[str, Any] = {"examples": str(examples(STAY))}
    section = audited(learned(STAY), tmp_path / "run", reference=str(other), **settings)
    assert verdicts(section)["reference.auroc"] == "leaking"
    table = pq.read_table(tmp_path / "run" / TABLE)
    difference = table["reference_cross_entropy"].to_numpy() - table["cross_entropy"].to_numpy()
    np.testing.assert_array_equal(table["score_reference"].to_numpy(), difference)
    same = audited(learned(STAY), tmp_path / "same", reference=str(learned(STAY)), **settings)
    assert same["attacks"]["reference"]["auroc"]["value"] == 0.5
