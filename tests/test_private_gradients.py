"""A private step against what it must be: gradients of single patients, clipped and summed, and the secret's noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clinstack.engine.checkpoint import TrainingState
from clinstack.engine.patient_gradients import Drawn, PatientGradients, clip_factors, linear_layers
from clinstack.engine.patients import PassShape, PatientItems, patient_numbers
from clinstack.engine.private import PrivateTraining
from clinstack.engine.secret import Secret
from clinstack.model.stack import Stack
from clinstack.notes.read import read_examples
from clinstack.recipe import AdapterRecipe, FinetuneRecipe, InstructRecipe, PretrainRecipe, TrainingRecipe
from clinstack.recipe.privacy import PrivacyRecipe
from clinstack.stages.finetune import FinetuneObjective
from clinstack.tasks import Task
from methods import NAMES, new

CLIP = 0.05
KEY = bytes(range(32))


def naive(stack: Stack, objective: Any, drawn: Sequence[Drawn], clip: float) -> dict[str, Tensor]:
    """What DP-SGD says, word by word: a backward pass for each patient, clipped over everything that trains."""
    parameters = stack.trainable_parameters()
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for one in drawn:
        loss, weight = objective.loss(one.items)
        gradients = torch.autograd.grad(loss / weight, list(parameters.values()), allow_unused=True)
        norm = torch.sqrt(sum((gradient.double() ** 2).sum() for gradient in gradients if gradient is not None))
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient * min(1.0, clip / float(norm))
    return total


def norm_of(gradients: dict[str, Tensor]) -> float:
    return float(torch.sqrt(sum((each.double() ** 2).sum() for each in gradients.values())))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = norm_of(expected)
    assert scale > 0
    for name in expected:
        assert float((found[name] - expected[name]).norm()) <= 2e-4 * scale, name


@pytest.fixture(scope="module")
def classify(tiny_base: Path, tiny_notes: Path, perturbed: Callable[..., Stack]) -> Callable[..., Any]:
    """Return a function from adapters to a stack and its objective on the tiny cohort's mortality."""

    def build(adapters: Sequence[AdapterRecipe], **changes: Any) -> tuple[Stack, FinetuneObjective]:
        from clinstack.engine.classification import encode_splits
        from clinstack.model.reading import Reading

        task, examples = read_examples(tiny_notes / "examples" / "mortality")
        recipe = FinetuneRecipe(
            run="run",
            examples="examples",
            max_tokens=24,
            class_weights="none",
            privacy=PrivacyRecipe(noise_multiplier=1.0, patients_per_step=4),
            **changes,
        )
        stack = perturbed(Stack.build(str(tiny_base), adapters, task))
        stack.reading = Reading.of(recipe)
        encoded = encode_splits(stack, task, examples, {})
        if stack.backbone_is_frozen:
            with torch.no_grad():
                for split in encoded.values():
                    from clinstack.engine.pieces import piece_features

                    split.use_features(piece_features(stack, split.encoded.pieces).numpy())
        return stack, FinetuneObjective(stack, task, recipe, encoded, examples)

    return build


def pretrain_objective(tiny_base: Path, stack: Stack, layout: str, notes: Path) -> Any:
    from clinstack.engine.language_modelling import open_notes
    from clinstack.notes.read import input_hashes, notes_files, survey_notes
    from clinstack.stages.pretrain import PretrainObjective

    recipe = PretrainRecipe.model_validate(
        {
            "run": "run",
            "notes": str(notes),
            "context": 32,
            "layout": layout,
            "base": str(tiny_base),
            "adapters": [{"name": "clinical"}],
            "privacy": {"noise_multiplier": 1.0, "patients_per_step": 4},
        }
    )
    survey = survey_notes(notes, None)
    hashes = input_hashes(notes_files(notes))
    return PretrainObjective(
        stack, recipe, {split: open_notes(stack, survey, split, hashes) for split in ("train", "validation")}
    )


def drawn_of(objective: Any, patients: Sequence[int], rows: int = 9) -> list[Drawn]:
    return [Drawn(patient, objective.patients[patient].tolist()[:rows]) for patient in patients]


# ---------------------------------------------------------------------- gradients of single patients


@pytest.mark.parametrize("spec", NAMES)
def test_a_note_s_gradients_are_those_of_patients_alone_for_every_method(
    spec: str, tiny_base: Path, tiny_notes: Path, perturbed: Callable[..., Stack]
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [new(spec)]))
    objective = pretrain_objective(tiny_base, stack, "packed", tiny_notes)
    parameters = stack.trainable_parameters()
    computed = PatientGradients(stack, objective, parameters)
    assert computed.together == (spec in ("lora", "rslora"))
    drawn = drawn_of(objective, range(7))
    expected = naive(stack, objective, drawn, CLIP)
    assert_same(computed.clipped_sum(drawn, CLIP, 8), expected)
    assert_same(computed.clipped_sum(drawn, CLIP, 1), expected)  # a patient of several rows in several passes
    assert all(parameter.grad is None for parameter in parameters.values())


@pytest.mark.parametrize("layout", ["packed", "bucketed", "padded"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_patients_who_share_a_pass_keep_their_gradients(
    layout: str, checkpointing: bool, tiny_base: Path, tiny_notes: Path, clinical: Path, perturbed: Callable[..., Stack]
) -> None:
    adapters = [AdapterRecipe(name="clinical", path=str(clinical)), new("lora", "task", target_modules="all-linear")]
    stack = perturbed(Stack.build(str(tiny_base), adapters))
    if checkpointing:
        stack.use_gradient_checkpointing()
        stack.train()
    objective = pretrain_objective(tiny_base, stack, layout, tiny_notes)
    drawn = drawn_of(objective, [0, 3, 5, 6, 11, 12])
    assert len({len(one.items) for one in drawn}) > 1 or layout != "bucketed"
    parameters = stack.trainable_parameters()
    assert linear_layers(stack, parameters) is not None
    together = PatientGradients(stack, objective, parameters)
    passes: list[int] = []
    loss = objective.loss
    objective.loss = lambda items: passes.append(len(items)) or loss(items)  # type: ignore[func-returns-value]
    found = together.clipped_sum(drawn, CLIP, 64)
    assert len(passes) == 1
    assert together.together
    assert_same(found, PatientGradients(stack, objective, parameters, together=False).clipped_sum(drawn, CLIP, 64))
    assert_same(found, naive(stack, objective, drawn, CLIP))


@pytest.mark.parametrize("label", ["head", "lora", "clinical-frozen+lora", "clinical-trainable+lora", "chunks", "dora"])
def test_a_classifier_s_gradients_are_those_of_patients_alone_head_too(
    label: str, classify: Callable[..., Any], table3: dict[str, list[AdapterRecipe]]
) -> None:
    chunks = {"keep": "chunks", "chunk_overlap": 2} if label == "chunks" else {}
    adapters = [new(label, "task")] if label == "dora" else table3["lora" if label == "chunks" else label]
    stack, objective = classify(adapters, **chunks)
    drawn = drawn_of(objective, [1, 2, 5, 9, 20])
    computed = PatientGradients(stack, objective, stack.trainable_parameters())
    assert computed.together == (label != "dora")
    found = computed.clipped_sum(drawn, CLIP, 64)
    assert_same(found, naive(stack, objective, drawn, CLIP))
    assert any(name in stack.head_parameters() and bool(found[name].any()) for name in found)


def test_answers_of_instructions_too(tiny_base: Path, tmp_path: Path, perturbed: Callable[..., Stack]) -> None:
    from clinstack.engine.instruction_tuning import InstructionObjective
    from clinstack.stages.instruct import chosen_instructions, encode
    from clinstack.tokens.prompts import Prompt
    from tiny_instructions import write_tiny_instructions

    folder = write_tiny_instructions(tmp_path / "data")
    recipe = InstructRecipe(
        run="run", instructions=str(folder), max_tokens=256, answer_tokens=32, adapters=(AdapterRecipe(name="one"),)
    )
    stack = perturbed(Stack.build(str(tiny_base), [new("lora", "one")]))
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    read = chosen_instructions(recipe)
    pairs = {split: encode(stack.tokenizer, prompt, recipe, part) for split, part in read.items()}
    objective = InstructionObjective(stack, recipe.training, "packed", 256, pairs, read["train"].patient_ids)
    assert len(objective.patients or ()) == len(set(read["train"].patient_ids))
    drawn = drawn_of(objective, range(6))
    for one in drawn:
        assert sum(objective.weights(one.items)) == objective.loss(one.items)[1]
    found = PatientGradients(stack, objective, stack.trainable_parameters()).clipped_sum(drawn, CLIP, 64)
    assert_same(found, naive(stack, objective, drawn, CLIP))


def test_a_row_is_of_one_patient_and_every_token_is_in_a_row(tiny_base: Path, tiny_notes: Path) -> None:
    stack = Stack.build(str(tiny_base), [new("lora")])
    objective = pretrain_objective(tiny_base, stack, "packed", tiny_notes)
    rows, patients = objective._train, objective.patients
    seen: list[int] = []
    owners = np.repeat(np.arange(len(patients)), np.diff(patients.offsets))
    document_owner: dict[int, int] = {}
    for row, owner in zip(patients.items.tolist(), owners.tolist(), strict=True):
        for segment in rows.rows[row].tolist():
            seen.append(segment)
            assert document_owner.setdefault(int(rows.segments.document[segment]), owner) == owner
    assert sorted(seen) == list(range(len(rows.segments)))
    assert rows.fills.max() <= rows.context
    shared = [len(rows.rows[row]) for row in range(len(rows))]
    assert max(shared) > 1  # a patient's own documents share rows


def test_a_layer_that_reads_other_positions_sends_patients_one_by_one(
    tiny_base: Path, tiny_notes: Path, perturbed: Callable[..., Stack]
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [new("lora")]))
    objective = pretrain_objective(tiny_base, stack, "packed", tiny_notes)
    drawn = drawn_of(objective, range(4))
    expected = naive(stack, objective, drawn, CLIP)
    shape = objective.shape
    objective.shape = lambda items: PassShape(1, shape(items).width, shape(items).positions)
    computed = PatientGradients(stack, objective, stack.trainable_parameters())
    assert_same(computed.clipped_sum(drawn, CLIP, 64), expected)
    assert not computed.together


# ---------------------------------------------------------------------- what clipping promises


@pytest.mark.parametrize("spec", ["lora", "dora"])
def test_one_patient_more_or_less_changes_the_sum_by_at_most_the_clip(
    spec: str, tiny_base: Path, tiny_notes: Path, perturbed: Callable[..., Stack]
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [new(spec)]))
    objective = pretrain_objective(tiny_base, stack, "packed", tiny_notes)
    computed = PatientGradients(stack, objective, stack.trainable_parameters())
    drawn = drawn_of(objective, range(8))
    for clip in (1e-3, 0.05, 1e3):
        whole = computed.clipped_sum(drawn, clip, 64)
        for place in (0, 4, 7):
            less = computed.clipped_sum([*drawn[:place], *drawn[place + 1 :]], clip, 64)
            change = norm_of({name: whole[name] - less[name] for name in whole})
            assert change <= clip * (1 + 1e-4)
            assert change > 0.5 * clip or clip == 1e3  # it is clipped, and not merely small


def test_a_gradient_that_is_not_finite_counts_as_none() -> None:
    gradients = {
        "a": torch.tensor([[3.0, 0.0], [torch.nan, 1.0], [0.3, 0.0]]),
        "b": torch.tensor([[4.0], [1.0], [0.4]]),
    }
    factors = clip_factors(gradients, 1.0)
    assert factors.tolist() == pytest.approx([0.2, 0.0, 1.0], rel=1e-5)
    assert gradients["a"].isfinite().all()
    summed = sum(float(torch.einsum("p,p...->...", factors.to(each), each).sum()) for each in gradients.values())
    assert summed == pytest.approx(0.6 + 0.8 + 0.3 + 0.4, rel=1e-5)


# ---------------------------------------------------------------------- the noise and the sample


class Flat:
    """An objective whose loss is the sum of the trained tensors' entries, times what the item says."""

    unit = "notes"

    def __init__(self, stack: Stack, patients: int) -> None:
        self._stack = stack
        self.patients = PatientItems.of(np.arange(patients))

    def loss(self, items: Sequence[int]) -> tuple[Tensor, float]:
        total = sum(parameter.sum() for parameter in self._stack.trainable_parameters().values())
        return total * float(len(items)), float(len(items))

    def weights(self, items: Sequence[int]) -> list[float]:
        return [1.0] * len(items)

    def shape(self, items: Sequence[int]) -> None:
        return None


def private(stack: Stack, objective: Any, rate: float, noise: float, per_step: int, **changes: Any) -> PrivateTraining:
    recipe = PrivacyRecipe(noise_multiplier=noise, patients_per_step=per_step, clip=0.5, **changes)
    gradients = PatientGradients(stack, objective, stack.trainable_parameters())
    return PrivateTraining(recipe, objective.patients, rate, noise, Secret(KEY), gradients)


def step_of(stack: Stack, training: PrivateTraining, step: int) -> dict[str, Tensor]:
    parameters = stack.trainable_parameters()
    state = TrainingState(step=step, without_gradient=[])
    training.compute_gradients(stack, state, TrainingRecipe(batch_size=64), parameters)
    found = {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    assert found.keys() == parameters.keys()
    return found


def test_a_step_is_the_clipped_sum_and_the_noise_of_the_secret_over_the_expected_patients(
    tiny_base: Path, tiny_notes: Path, perturbed: Callable[..., Stack]
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [new("lora")]))
    objective = pretrain_objective(tiny_base, stack, "packed", tiny_notes)
    training = private(stack, objective, rate=0.2, noise=1.5, per_step=8, rows_per_patient=1)
    stack.train()
    for step in (0, 1, 7):
        drawn = training.draw(step)
        clipped = naive(stack, objective, drawn, 0.5)
        sizes = [tensor.numel() for tensor in clipped.values()]
        noise = torch.from_numpy(Secret(KEY).normal("noise", step, sum(sizes))).split(sizes)
        expected = {
            name: (clipped[name].double() + 1.5 * 0.5 * part.view(clipped[name].shape)).float() / 8
            for (name, part) in zip(clipped, noise, strict=True)
        }
        found = step_of(stack, training, step)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
        again = step_of(stack, training, step)  # a step after a kill
        assert all(torch.equal(found[name], again[name]) for name in found)


def test_noise_has_the_standard_deviation_of_the_recipe(tiny_base: Path, mortality: Task) -> None:
    stack = Stack.build(str(tiny_base), [new("lora", target_modules="all-linear")], mortality)
    training = private(stack, Flat(stack, 10), rate=0.0, noise=3.0, per_step=4)  # nobody is drawn
    numbers = torch.cat([each.flatten() for step in range(3) for each in step_of(stack, training, step).values()])
    expected = 3.0 * 0.5 / 4
    assert len(numbers) > 10_000
    assert float(numbers.std()) == pytest.approx(expected, rel=0.03)
    assert abs(float(numbers.mean())) < 4 * expected / len(numbers) ** 0.5
    scaled = np.sort(numbers.double().numpy() / expected)
    from scipy.stats import kstest

    assert kstest(scaled, "norm").pvalue > 1e-3
    first, second = (torch.cat([e.flatten() for e in step_of(stack, training, step).values()]) for step in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


def test_an_empty_sample_is_a_step_of_noise_alone(tiny_base: Path, mortality: Task) -> None:
    stack = Stack.build(str(tiny_base), [new("lora")], mortality)
    training = private(stack, Flat(stack, 5), rate=0.0, noise=2.0, per_step=1)
    assert training.draw(0) == []
    found = step_of(stack, training, 0)
    assert all(bool(each.all()) for each in found.values())


def test_patients_are_drawn_alone_and_with_their_chance(tiny_base: Path, mortality: Task) -> None:
    stack = Stack.build(str(tiny_base), [new("lora")], mortality)
    training = private(stack, Flat(stack, 50), rate=0.2, noise=1.0, per_step=10)
    samples = np.zeros((400, 50))
    for step in range(400):
        samples[step, [one.patient for one in training.draw(step)]] = 1
    sizes = samples.sum(1)
    assert sizes.mean() == pytest.approx(10, abs=4 * (50 * 0.2 * 0.8 / 400) ** 0.5)
    # Binomial, which drawing a fixed number would not be.
    assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.35)
    assert (np.abs(samples.mean(0) - 0.2) < 5 * (0.2 * 0.8 / 400) ** 0.5).all()
    together = np.corrcoef(samples.T)[~np.eye(50, dtype=bool)]
    assert np.abs(together).max() < 0.3


def test_of_a_patient_with_many_rows_others_are_drawn_each_time(tiny_base: Path, mortality: Task) -> None:
    stack = Stack.build(str(tiny_base), [new("lora")], mortality)
    objective = Flat(stack, 3)
    objective.patients = PatientItems.of(np.array([0] * 20 + [1] * 2 + [2]))
    training = private(stack, objective, rate=1.0, noise=1.0, per_step=3, rows_per_patient=4)
    seen: set[int] = set()
    for step in range(30):
        first, second, third = training.draw(step)
        assert len(first.items) == len(set(first.items)) == 4
        assert (second.items, third.items) == ([20, 21], [22])
        seen |= set(first.items)
    assert seen == set(range(20))


def test_random_numbers_follow_from_the_secret_the_purpose_and_the_step() -> None:
    one, same, other = Secret(KEY), Secret(KEY), Secret(KEY[::-1])
    numbers = one.normal("noise", 3, 501)
    assert np.array_equal(numbers, same.normal("noise", 3, 501))
    assert len({one.seed("dropout", 0), one.seed("dropout", 1), one.seed("noise", 0), other.seed("dropout", 0)}) == 4
    for another in (other.normal("noise", 3, 501), one.normal("noise", 4, 501), one.normal("patients", 3, 501)):
        assert abs(np.corrcoef(numbers, another)[0, 1]) < 0.2
    uniform = one.uniform("patients", 0, 10_000)
    assert uniform.min() > 0
    assert uniform.max() <= 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)


def test_patients_are_numbered_by_their_identifier() -> None:
    numbers = patient_numbers(["b", "a", "b", "c"])
    items = PatientItems.of(numbers)
    assert [items[patient].tolist() for patient in range(len(items))] == [[1], [0, 2], [3]]
