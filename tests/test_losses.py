"""Losses are sums with a weight: a packed document costs what it costs alone, and batches of any size add up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from clinstack.cli_validate import validate_recipe
from clinstack.engine import next_token
from clinstack.engine.language_modelling import lay_out_notes, losses_table, note_losses
from clinstack.engine.losses import causal_loss, class_weights, classification_loss, encode_labels
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.stack import Stack
from clinstack.notes.read import read_examples
from clinstack.recipe import AdapterRecipe, FinetuneRecipe, LossRecipe, parse_recipe
from clinstack.stages.finetune import finetune
from clinstack.tasks import Task
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import TextEncoder
from clinstack.tokens.layout import Layout, NoteRows
from clinstack.tokens.notes import NoteTokens
from tiny_notes import write_tiny_notes

Perturbed = Callable[..., Stack]
TEXTS = [
    "the patient was admitted with chest pain",
    "stable",
    "",
    "shortness of breath, admitted with the patient " * 3,
    "no pain",
]
MULTICLASS = Task("length_of_stay", "multiclass", ("a", "b", "c", "d"))
MULTILABEL = Task("diagnoses", "multilabel", ("038", "428", "486"))


@pytest.fixture(scope="module")
def stack(tiny_base: Path, perturbed: Perturbed) -> Stack:
    recipe = AdapterRecipe(name="clinical", rank=4, alpha=8, target_modules="all-linear")
    return perturbed(Stack.build(str(tiny_base), [recipe]))


def documents_of(stack: Stack, texts: list[str]) -> Documents:
    encoder = TextEncoder(stack.tokenizer)
    return Documents.of(encoder.ids(encoder.encode(texts)))


def rows_of(stack: Stack, texts: list[str], context: int, layout: Layout = "packed") -> NoteRows:
    return lay_out_notes(stack, documents_of(stack, texts), layout, context)


def gradients(stack: Stack) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in stack.trainable_parameters().items():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


# ---------------------------------------------------------------------- language modelling


@pytest.mark.parametrize("context", [16, 40, 256])
def test_invariant_4_packed_documents_have_the_loss_and_the_gradients_they_have_alone(
    stack: Stack, context: int
) -> None:
    packed = rows_of(stack, TEXTS, context)
    stack.eval()
    whole = torch.zeros(())
    for rows in packed.in_order(3):
        loss = causal_loss(stack, packed.collate(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        whole = whole + loss.detach()
    together = gradients(stack)

    alone = torch.zeros(())
    for document in packed.documents:
        # Each part of a document longer than a row stands alone too: that is what the context is.
        for start in range(0, len(document) - 1, context):
            tokens = torch.from_numpy(document[start : start + context + 1])[None]
            logits: Any = stack.network(input_ids=tokens[:, :-1]).logits
            loss = F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            alone = alone + loss.detach()
    assert whole.item() == pytest.approx(alone.item(), rel=1e-5)
    for name, gradient in gradients(stack).items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_invariant_4_a_neighbour_does_not_change_the_loss(stack: Stack) -> None:
    """A mask of ones, as most collators make it, lets packed documents see each other; this is what would show it."""
    packed = rows_of(stack, TEXTS[:2], 256)
    assert [len(row) for row in packed.rows] == [2]
    batch = packed.collate([0])
    stack.eval()
    with torch.inference_mode():
        right = causal_loss(stack, batch)
        hidden = stack.hidden_states(batch.input_ids, torch.ones_like(batch.input_ids), batch.position_ids)
        logits: Any = stack.network.get_output_embeddings()(hidden)
        wrong = F.cross_entropy(logits[0], batch.labels[0], reduction="sum")
    assert abs(float(right - wrong)) > 0.01


def test_the_loss_in_chunks_is_that_of_the_full_logits(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = rows_of(stack, TEXTS, 48)
    batch = packed.collate(range(len(packed)))
    assert batch.predictions < batch.labels.numel()  # some positions predict nothing
    stack.eval()
    monkeypatch.setitem(next_token._LOGITS, "cpu", 7 * 300)  # 7 tokens of the vocabulary
    summed = causal_loss(stack, batch)
    each = causal_loss(stack, batch, reduction="none")
    summed.backward()  # type: ignore[no-untyped-call]
    in_chunks = gradients(stack)

    hidden = stack.hidden_states(batch.input_ids, position_ids=batch.position_ids)
    logits: Any = stack.network.get_output_embeddings()(hidden)
    full = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    full.sum().backward()
    torch.testing.assert_close(each, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed, full.sum(), rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(stack).items():
        torch.testing.assert_close(in_chunks[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_mean_over_batches_weighs_every_token_the_same(stack: Stack) -> None:
    packed = rows_of(stack, TEXTS, 50)
    stack.eval()
    with torch.inference_mode():
        parts = []
        for rows in packed.in_order(1):
            batch = packed.collate(rows)
            parts.append((float(causal_loss(stack, batch)), batch.predictions))
    assert len({count for _, count in parts}) > 1  # rows differ in tokens, so a mean of means would be another figure
    by_token = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
    by_row = sum(loss / count for loss, count in parts) / len(parts)
    nll = note_losses(stack, packed, 2)
    assert by_token == pytest.approx(nll.sum() / sum(len(document) - 1 for document in packed.documents), rel=1e-6)
    assert abs(by_token - by_row) > 1e-4


def test_losses_of_notes_are_theirs_whatever_the_batches(stack: Stack) -> None:
    alone = []
    with torch.inference_mode():
        for text in TEXTS:
            one = rows_of(stack, [text], 64)
            batch = one.collate(range(len(one)))
            alone.append(float(causal_loss(stack, batch)))
    for batch_size in (1, 3, 50):
        nll = note_losses(stack, rows_of(stack, TEXTS, 64), batch_size)
        np.testing.assert_allclose(nll, alone, rtol=1e-5)


def test_the_table_of_losses_has_base_and_adapters_and_no_text(stack: Stack, tiny_base: Path) -> None:
    ids = [f"n{index}" for index in range(len(TEXTS))]
    index = {"note_id": ids, "patient_id": [f"p{item}" for item in ids], "note_type": ["Nursing"] * len(ids)}
    notes = NoteTokens(pa.table(index | {"characters": [len(text) for text in TEXTS]}), documents_of(stack, TEXTS))
    table = losses_table(stack, notes, "test", 64, 2)
    assert table.column_names == [
        "note_id", "patient_id", "note_type", "split", "tokens", "characters", "base_nll", "nll"
    ]  # fmt: skip
    assert table["tokens"].to_pylist() == [len(document) - 1 for document in rows_of(stack, TEXTS, 64).documents]
    assert table["characters"].to_pylist() == [len(text) for text in TEXTS]
    np.testing.assert_array_equal(table["nll"], note_losses(stack, rows_of(stack, TEXTS, 64), 2))
    base = Stack.build(str(tiny_base))
    np.testing.assert_allclose(table["base_nll"], note_losses(base, rows_of(base, TEXTS, 64), 2), rtol=1e-6)
    assert np.abs(np.subtract(table["nll"], table["base_nll"])).min() > 1e-3


# ---------------------------------------------------------------------- classification


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=targets.numpy())
    weights = class_weights(MULTICLASS, targets, "balanced")
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    assert class_weights(MULTICLASS, targets, "none") is None


def test_a_class_that_never_occurs_weighs_one(mortality: Task) -> None:
    weights = class_weights(mortality, torch.tensor([0, 0, 0]), "balanced")
    assert weights is not None
    assert weights.tolist() == [0.5, 1.0]


def test_positives_of_a_code_weigh_negatives_over_positives() -> None:
    targets = encode_labels(MULTILABEL, [["038"], ["038", "428"], [], ["038"], []])
    assert targets.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    weights = class_weights(MULTILABEL, targets, "balanced")
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 4.0, 1.0]))


def test_multilabel_loss_is_the_mean_over_codes_and_the_sum_over_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator)
    targets = encode_labels(MULTILABEL, [["038"], ["038", "428"], [], ["486"], []])
    loss, weight = classification_loss(MULTILABEL, logits, targets, None)
    assert float(weight) == 5
    torch.testing.assert_close(loss / weight, F.binary_cross_entropy_with_logits(logits, targets))
    weighted, weight = classification_loss(MULTILABEL, logits, targets, torch.tensor([2.0, 3.0, 1.0]))
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([2.0, 3.0, 1.0]))
    torch.testing.assert_close(weighted / weight, expected)


@pytest.mark.parametrize("mode", ["balanced", "none"])
def test_weighted_batches_of_any_size_add_up_to_the_loss_of_the_whole(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, generator=generator)
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    weights = class_weights(MULTICLASS, targets, mode)
    parts = [
        classification_loss(MULTICLASS, logits[at : at + 3], targets[at : at + 3], weights) for at in range(0, 10, 3)
    ]
    total = torch.stack([loss for loss, _ in parts]).sum() / torch.stack([weight for _, weight in parts]).sum()
    torch.testing.assert_close(total, F.cross_entropy(logits, targets, weight=weights))


# ---------------------------------------------------------------------- focal and asymmetric loss

FOCAL = LossRecipe(name="focal", gamma=2.0)
ASYMMETRIC = LossRecipe(name="asymmetric", gamma_positive=1.0, gamma_negative=4.0, clip=0.05)
CODES = encode_labels(MULTILABEL, [["038"], ["038", "428"], [], ["486"], [], ["428"]])
STAYS = torch.tensor([0, 3, 1, 1, 2, 0])
OF_CODES = torch.tensor([2.0, 3.0, 0.5])
OF_STAYS = torch.tensor([0.5, 2.0, 1.0, 4.0])


def drawn(rows: int, columns: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


def reference(task: Task, logits: torch.Tensor, targets: torch.Tensor, weights: Any, recipe: LossRecipe) -> Any:
    """The formulas of the papers as they are printed, element by element in float64; the mean loss."""
    logits = logits.double()
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for row in range(len(logits)):
        if task.kind != "multilabel":
            right = int(targets[row])
            of_class = 1.0 if weights is None else float(weights[right])
            p = torch.exp(logits[row, right]) / torch.exp(logits[row]).sum()
            total = total - of_class * (1 - p) ** recipe.gamma * torch.log(p)
            weight += of_class
            continue
        weight += 1.0
        for column in range(logits.shape[1]):
            p = 1 / (1 + torch.exp(-logits[row, column]))
            of_code = 1.0 if weights is None else float(weights[column])
            there = bool(targets[row, column])
            if recipe.name == "focal":
                p_t = p if there else 1 - p
                loss = -((1 - p_t) ** recipe.gamma) * torch.log(p_t)
            elif there:
                loss = -((1 - p) ** recipe.gamma_positive) * torch.log(p)
            else:
                p_m = torch.maximum(p - recipe.clip, torch.zeros_like(p))
                loss = -(p_m**recipe.gamma_negative) * torch.log(1 - p_m)
            total = total + (of_code if there else 1.0) * loss / logits.shape[1]
    return total / weight


CASES = [
    (MULTICLASS, drawn(6, 4), STAYS, OF_STAYS, FOCAL),
    (MULTICLASS, drawn(6, 4), STAYS, OF_STAYS, LossRecipe(name="focal", gamma=0.5)),
    (MULTILABEL, drawn(6, 3), CODES, OF_CODES, FOCAL),
    (MULTILABEL, drawn(6, 3), CODES, OF_CODES, LossRecipe(name="focal", gamma=0.5)),
    (MULTILABEL, drawn(6, 3), CODES, OF_CODES, ASYMMETRIC),
    (MULTILABEL, drawn(6, 3), CODES, OF_CODES, LossRecipe(name="asymmetric")),
    (MULTILABEL, drawn(6, 3), CODES, OF_CODES, LossRecipe(name="asymmetric", clip=0.0, gamma_negative=1.5)),
]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("task", "logits", "targets", "weights", "recipe"), CASES)
def test_losses_and_gradients_are_those_of_the_printed_formulas(
    task: Task,
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    recipe: LossRecipe,
    weighted: bool,
) -> None:
    used = weights if weighted else None
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    total, weight = classification_loss(task, ours, targets, used, recipe)
    assert total.dtype == weight.dtype == torch.float32
    expected = reference(task, theirs, targets, used, recipe)
    assert (total / weight).item() == pytest.approx(expected.item(), rel=1e-5)
    (total / weight).backward()
    expected.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    assert float(theirs.grad.abs().max()) > 1e-3


@pytest.mark.parametrize(("task", "logits", "targets", "weights", "recipe"), CASES)
def test_parts_of_any_size_and_of_half_precision_add_up(
    task: Task, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, recipe: LossRecipe
) -> None:
    whole, weight = classification_loss(task, logits, targets, weights, recipe)
    parts = [
        classification_loss(task, logits[at : at + 4], targets[at : at + 4], weights, recipe) for at in range(0, 6, 4)
    ]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).sum(), whole)
    torch.testing.assert_close(torch.stack([share for _, share in parts]).sum(), weight)
    half, _ = classification_loss(task, logits.bfloat16(), targets, weights, recipe)
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half, classification_loss(task, logits.bfloat16().float(), targets, weights, recipe)[0], rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("recipe", "tasks"),
    [
        (LossRecipe(name="focal", gamma=0), ("multiclass", "multilabel", "binary")),
        (LossRecipe(name="asymmetric", gamma_positive=0, gamma_negative=0, clip=0), ("multilabel",)),
    ],
)
def test_without_gamma_and_clip_every_loss_is_the_cross_entropy(
    recipe: LossRecipe, tasks: tuple[str, ...], mortality: Task
) -> None:
    known = {
        "multiclass": (MULTICLASS, drawn(6, 4), STAYS, OF_STAYS),
        "multilabel": (MULTILABEL, drawn(6, 3), CODES, OF_CODES),
        "binary": (mortality, drawn(6, 2), STAYS % 2, torch.tensor([0.6, 3.0])),
    }
    for kind in tasks:
        task, logits, targets, weights = known[kind]
        for used in (weights, None):
            ours, weight = classification_loss(task, logits, targets, used, recipe)
            entropy, same = classification_loss(task, logits, targets, used)
            torch.testing.assert_close(ours, entropy)
            assert float(weight) == float(same)


def test_easy_examples_lose_weight(mortality: Task) -> None:
    logits, targets = torch.tensor([[0.0, 5.0], [0.0, -1.0]]), torch.tensor([1, 1])
    easy, hard = (
        float(classification_loss(mortality, logits[[row]], targets[[row]], None, FOCAL)[0])
        / float(classification_loss(mortality, logits[[row]], targets[[row]], None)[0])
        for row in (0, 1)
    )
    assert easy == pytest.approx((1 - 1 / (1 + np.exp(-5))) ** 2, rel=1e-4)
    assert easy < 1e-3 < 0.5 < hard


def test_absent_labels_below_the_clip_cost_nothing_and_pull_at_nothing() -> None:
    logits = torch.tensor([[-3.0, -2.9, 0.0]], requires_grad=True)  # probabilities 0.047, 0.052, 0.5
    targets = torch.zeros(1, 3)
    total, _ = classification_loss(MULTILABEL, logits, targets, None, LossRecipe(name="asymmetric", gamma_negative=0.5))
    total.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0
    assert 0 < logits.grad[0, 1] < logits.grad[0, 2]
    low, _ = classification_loss(MULTILABEL, logits.detach() - 10, targets, None, LossRecipe(name="asymmetric"))
    assert float(low) == 0


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.5])
def test_extreme_logits_have_a_finite_loss_and_a_finite_gradient(gamma: float, clip: float) -> None:
    recipes = [
        LossRecipe(name="focal", gamma=gamma),
        LossRecipe(name="asymmetric", gamma_positive=gamma, gamma_negative=gamma, clip=clip),
    ]
    values = [0.0, 20.0, -20.0, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30]
    for recipe in recipes:
        for value in values:
            logits = torch.full((2, 3), value, requires_grad=True)
            total, _ = classification_loss(MULTILABEL, logits, torch.tensor([[1.0] * 3, [0.0] * 3]), None, recipe)
            total.backward()
            assert torch.isfinite(total)
            assert logits.grad is not None
            assert torch.isfinite(logits.grad).all()
    for value in values:
        logits = torch.tensor([[value, 0.0, 1.0, -value]] * 4, requires_grad=True)
        total, _ = classification_loss(MULTICLASS, logits, torch.arange(4), None, recipes[0])
        total.backward()
        assert torch.isfinite(total)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def test_a_wrong_and_sure_model_still_learns_and_a_right_and_sure_one_does_not(mortality: Task) -> None:
    for value, moves in ((60.0, False), (-60.0, True)):
        logits = torch.tensor([[0.0, value]], requires_grad=True)
        total, _ = classification_loss(mortality, logits, torch.tensor([1]), None, FOCAL)
        total.backward()
        assert logits.grad is not None
        assert (float(logits.grad.abs().max()) > 0.5) is moves


def test_the_asymmetric_loss_is_refused_where_labels_exclude_each_other(mortality: Task) -> None:
    for task in (mortality, MULTICLASS):
        with pytest.raises(InputError, match=rf"loss.name: asymmetric is for multilabel tasks, and {task.name} is"):
            classification_loss(
                task, drawn(2, len(task.classes)), torch.tensor([0, 1]), None, LossRecipe(name="asymmetric")
            )


# ---------------------------------------------------------------------- the recipe's loss and choice in the stage


def finetune_recipe(tmp_path: Path, base: Path, notes: Path, task: str, **changes: Any) -> FinetuneRecipe:
    values: dict[str, Any] = {
        "run": str(tmp_path / "run"),
        "base": str(base),
        "examples": str(notes / "examples" / task),
        "max_tokens": 32,
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.02},
        "evaluation": {"resamples": 100},
    }
    recipe = parse_recipe(values | changes, "test", "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    return recipe


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("mortality", {"name": "focal", "gamma": 1.5}),
        ("diagnoses", {"name": "asymmetric", "clip": 0.1}),
    ],
)
def test_validation_has_the_recipes_loss_with_the_training_labels_weights(
    tmp_path: Path, tiny_base: Path, tiny_notes: Path, task: str, loss: dict[str, Any]
) -> None:
    recipe = finetune_recipe(tmp_path, tiny_base, tiny_notes, task, loss=loss, select="loss")
    run = finetune(recipe)
    metrics = read_json(run.folder / "metrics.json")
    chosen = next(item for item in metrics["validation"] if item["epoch"] == metrics["best_epoch"])
    rows = [
        row for row in pq.read_table(run.folder / "predictions.parquet").to_pylist() if row["split"] == "validation"
    ]
    found, examples = read_examples(Path(recipe.examples))
    weights = class_weights(found, encode_labels(found, examples["train"].labels), "balanced")
    targets = encode_labels(found, [row["label"] for row in rows])
    logits = torch.tensor([row["score"] for row in rows])
    for other in (recipe.loss, LossRecipe()):
        total, weight = classification_loss(found, logits, targets, weights, other)
        assert (float(total / weight) == pytest.approx(chosen["loss"], rel=1e-4)) is (other == recipe.loss)
    assert chosen["score"] == -chosen["loss"] == max(item["score"] for item in metrics["validation"])


def test_the_stage_refuses_a_loss_that_the_task_cannot_have_before_it_writes(
    tmp_path: Path, tiny_base: Path, tiny_notes: Path
) -> None:
    recipe = finetune_recipe(tmp_path, tiny_base, tiny_notes, "mortality", loss={"name": "asymmetric"})
    with pytest.raises(InputError, match=r"loss\.name: .* mortality is binary; take focal or cross_entropy"):
        finetune(recipe)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"loss\.name: asymmetric is for multilabel tasks"):
        validate_recipe(recipe, Console(quiet=True))


@pytest.mark.parametrize("select", ["auroc", "auprc"])
def test_the_epoch_is_chosen_by_the_recipes_figure(tmp_path: Path, tiny_base: Path, select: str) -> None:
    notes = write_tiny_notes(tmp_path / "data", patients=150)
    recipe = finetune_recipe(tmp_path, tiny_base, notes, "length_of_stay", select=select)
    run = finetune(recipe)
    metrics = read_json(run.folder / "metrics.json")
    history = metrics["validation"]
    assert [item["score"] for item in history] == [item[select] for item in history]
    assert any(item["auroc"] != item["auprc"] for item in history)
    best = max(history, key=lambda item: item["score"])
    assert best["epoch"] == metrics["best_epoch"]
    rows = [
        row for row in pq.read_table(run.folder / "predictions.parquet").to_pylist() if row["split"] == "validation"
    ]
    labels, logits = [row["label"] for row in rows], np.array([row["score"] for row in rows])
    shares = torch.tensor(logits).softmax(1).numpy()
    expected = {
        "auroc": roc_auc_score(labels, shares, multi_class="ovo"),
        "auprc": average_precision_score(np.eye(4)[labels], shares, average="macro"),
    }
    assert best["score"] == pytest.approx(expected[select], abs=1e-6)


def test_adapters_and_head_have_their_own_learning_rates(tmp_path: Path, tiny_base: Path, tiny_notes: Path) -> None:
    """AdamW's first step moves every number by its learning rate."""
    adapters = [{"name": "task", "rank": 2, "alpha": 4}]
    training = {"max_steps": 1, "warmup_ratio": 0, "weight_decay": 0, "learning_rate": 0.01, "head_learning_rate": 0.3}
    recipe = finetune_recipe(tmp_path, tiny_base, tiny_notes, "mortality", adapters=adapters, training=training)
    task, _ = read_examples(Path(recipe.examples))
    before = Stack.build(str(tiny_base), recipe.adapters, task).trainable_parameters()
    after = Stack.load(finetune(recipe).folder).trainable_parameters()
    assert list(after) == list(before)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    for name, most in moved.items():
        if "lora_A" not in name:  # its gradient is 0 as long as lora_B is
            assert most == pytest.approx(0.3 if name == "score.weight" else 0.01, rel=1e-3)
    assert sum("lora_B" in name for name in moved) > 1
