"""The trainer: invariant 2 broken on purpose, the schedule, the best epoch, and what a checkpoint restores."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clinstack.engine.checkpoint import BEST, LAST, TrainingState, save_checkpoint
from clinstack.engine.losses import causal_loss, classification_loss
from clinstack.engine.optimizer import build_optimizer, check_optimizer, learning_rate_factor
from clinstack.engine.precision import FIRST_SCALE
from clinstack.engine.trainer import train
from clinstack.errors import ClinstackError, DivergedError, InputError
from clinstack.files import read_json
from clinstack.model.checks import StackError
from clinstack.model.lineage import tensors_hash
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, FinetuneRecipe, TrainingRecipe
from clinstack.run import Run, open_run
from clinstack.tasks import Task
from clinstack.tokens.encode import encode_documents
from clinstack.tokens.layout import lay_out

Specs = dict[str, list[AdapterRecipe]]
ROWS = 20


class Toy:
    """A task whose label is whether the first token is even; hooks break the training where a test says so."""

    unit = "notes"

    def __init__(self, stack: Stack, batch_size: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.stack = stack
        self.tokens = torch.randint(3, 300, (ROWS, 6), generator=generator)
        self.targets = self.tokens[:, 0] % 2
        self.batch_size = batch_size
        self.steps = 0
        self.scores: Iterator[float] | None = None
        self.before_step: Callable[[int], None] = lambda step: None
        self.change_loss: Callable[[Tensor], Tensor] = lambda loss: loss
        self.logits_at: list[Tensor] = []

    def logits(self, rows: Sequence[int]) -> Tensor:
        tokens = self.tokens[list(rows)]
        return self.stack.logits(tokens, torch.ones_like(tokens))

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[at : at + self.batch_size] for at in range(0, ROWS, self.batch_size)]

    def loss(self, batch: list[int]) -> tuple[Tensor, float]:
        self.before_step(self.steps)
        self.steps += 1
        task = self.stack.task
        assert task is not None
        loss, weight = classification_loss(task, self.logits(batch), self.targets[batch], None)
        return self.change_loss(loss), float(weight)

    def size(self, batch: list[int]) -> int:
        return len(batch)

    def validate(self) -> dict[str, float]:
        logits = self.logits(range(ROWS))
        self.logits_at.append(logits.clone())
        task = self.stack.task
        assert task is not None
        loss = float(classification_loss(task, logits, self.targets, None)[0]) / ROWS
        return {"loss": loss, "score": -loss if self.scores is None else next(self.scores)}


@contextmanager
def a_run(folder: Path) -> Iterator[Run]:
    with open_run(FinetuneRecipe(run=str(folder), examples="examples"), {}) as run:
        yield run


def settings_of(**changes: Any) -> TrainingRecipe:
    return TrainingRecipe.model_validate({"epochs": 2, "learning_rate": 0.01, "checkpoint_every": 3} | changes)


def weights(stack: Stack) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in stack.trainable_parameters().items()}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def stack(tiny_base: Path, table3: Specs, mortality: Task) -> Stack:
    return Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality)


@pytest.fixture
def toy(stack: Stack) -> Toy:
    return Toy(stack)


# ---------------------------------------------------------------------- invariant 2


@pytest.mark.parametrize(
    "label", ["head", "lora", "clinical-frozen", "clinical-frozen+lora", "clinical-trainable+lora"]
)
def test_invariant_2_what_the_spec_calls_trainable_moves_and_nothing_else(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path, label: str
) -> None:
    stack = Stack.build(str(tiny_base), table3[label], mortality)
    trainable = set(stack.trainable_parameters())
    before = {name: tensor.detach().clone() for name, tensor in stack.network.state_dict().items()}
    with a_run(tmp_path / "run") as run:
        train(stack, run, settings_of(), Toy(stack), "toy")
    moved = {name for name, tensor in stack.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trainable
    for adapter in stack.adapters:
        of_adapter = {name for name in trainable if f".{adapter.name}." in name}
        assert bool(of_adapter) == adapter.trainable


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.lora_A.clinical.weight"]
)
def test_invariant_2_a_frozen_tensor_that_changes_is_caught(toy: Toy, tmp_path: Path, tensor: str) -> None:
    def nudge(step: int) -> None:
        if step == 4:
            with torch.no_grad():
                toy.stack.network.get_parameter(tensor)[0, 0] += 1e-3

    toy.before_step = nudge
    with pytest.raises(StackError, match="frozen changed during training"), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_invariant_2_a_frozen_tensor_that_changes_between_two_starts_is_caught(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path
) -> None:
    """The hash of the beginning is in the checkpoint, so a resumed run cannot go on from other frozen weights."""

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    first = Toy(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality))
    first.before_step = stop
    with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "run") as run:
        train(first.stack, run, settings_of(), first, "toy")
    second = Toy(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality))
    with torch.no_grad():
        second.stack.network.get_parameter("model.norm.weight")[0] += 1e-3
    with pytest.raises(StackError, match="frozen changed during training"), a_run(tmp_path / "run") as run:
        train(second.stack, run, settings_of(), second, "toy")


def test_invariant_2_a_tensor_that_never_has_a_gradient_is_caught(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a stage computes the head's features once although an adapter below them trains."""
    pooled = toy.stack.pooled
    monkeypatch.setattr(toy.stack, "pooled", lambda *args: pooled(*args).detach())
    with (
        pytest.raises(StackError, match=r"lora_A\.task\.weight is trainable and never had a gradient"),
        a_run(tmp_path / "run") as run,
    ):
        train(toy.stack, run, settings_of(), toy, "toy")


def test_invariant_2_a_tensor_that_does_not_move_is_caught(toy: Toy, tmp_path: Path) -> None:
    recipe = settings_of(head_learning_rate=1e-30, weight_decay=0)
    with (
        pytest.raises(StackError, match=r"score\.weight is trainable and did not move"),
        a_run(tmp_path / "run") as run,
    ):
        train(toy.stack, run, recipe, toy, "toy")


def test_invariant_2_a_tensor_thawed_during_training_is_caught(toy: Toy, tmp_path: Path) -> None:
    def thaw(step: int) -> None:
        toy.stack.network.get_parameter("model.norm.weight").requires_grad_(True)

    toy.before_step = thaw
    message = r"model\.norm\.weight is trainable; the spec says"
    with pytest.raises(StackError, match=message), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")


def test_invariant_1_an_adapter_switched_off_during_training_is_caught(toy: Toy, tmp_path: Path) -> None:
    def drop(step: int) -> None:
        if step == 6:
            model: Any = toy.stack._peft_model
            model.set_adapter("task")

    toy.before_step = drop
    with pytest.raises(StackError, match="are active; the spec says"), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")


def test_invariant_2_the_optimizer_holds_the_trainable_tensors_and_no_others(stack: Stack) -> None:
    recipe = settings_of(head_learning_rate=0.5)
    optimizer = build_optimizer(stack, recipe)
    check_optimizer(stack, optimizer)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(item) for item in stack.trainable_parameters().values()}
    assert len(held) == len(stack.trainable_parameters())
    assert [group["peak"] for group in optimizer.param_groups] == [0.01, 0.5]
    assert [id(parameter) for parameter in optimizer.param_groups[1]["params"]] == [id(stack.head.weight)]


def test_invariant_2_a_tensor_missing_in_the_optimizer_is_caught(stack: Stack) -> None:
    optimizer = build_optimizer(stack, settings_of())
    del optimizer.param_groups[0]["params"][0]
    with pytest.raises(StackError, match=r"lora_A\.task\.weight is not in the optimizer"):
        check_optimizer(stack, optimizer)


def test_invariant_2_a_frozen_tensor_in_the_optimizer_is_caught(stack: Stack) -> None:
    optimizer = build_optimizer(stack, settings_of())
    optimizer.add_param_group({"params": [stack.network.get_parameter("model.norm.weight")]})
    with pytest.raises(StackError, match=r"model\.norm\.weight is in the optimizer"):
        check_optimizer(stack, optimizer)


def test_one_step_is_a_training_too(toy: Toy, tmp_path: Path) -> None:
    """The first step gives a new LoRA's A no gradient, because B is zero: no fault when it is also the last."""
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(max_steps=1, weight_decay=0), toy, "toy")
    assert (state.step, len(state.history)) == (1, 1)


# ---------------------------------------------------------------------- steps


def test_warm_up_is_a_share_of_all_steps() -> None:
    recipe = TrainingRecipe(warmup_ratio=0.1, schedule="constant")
    factors = [learning_rate_factor(step, 100, recipe) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert set(factors[10:]) == {1.0}
    assert [learning_rate_factor(step, 4, recipe) for step in range(4)] == [1.0] * 4


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_schedule_goes_from_the_peak_towards_zero(schedule: Any, middle: float) -> None:
    recipe = TrainingRecipe(warmup_ratio=0.2, schedule=schedule)
    factors = [learning_rate_factor(step, 100, recipe) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[20] == max(factors) == 1.0
    assert factors[60] == pytest.approx(middle)
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[99] == pytest.approx({"linear": 1 / 80, "cosine": 0.000386, "constant": 1}[schedule], rel=1e-2)


def test_the_learning_rates_that_the_optimizer_used(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[list[float]] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, closure: None = None) -> Any:
        used.append([group["lr"] for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    recipe = settings_of(warmup_ratio=0.3, head_learning_rate=0.1)
    with a_run(tmp_path / "run") as run:
        train(toy.stack, run, recipe, toy, "toy")
    factors = [learning_rate_factor(index, 10, recipe) for index in range(10)]
    assert used == [[pytest.approx(0.01 * factor), pytest.approx(0.1 * factor)] for factor in factors]


def test_gradients_are_clipped(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, closure: None = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    with a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(gradient_clip=0.001), toy, "toy")
    assert norms == [pytest.approx(0.001, rel=1e-3)] * 10


class Notes:
    """Language modelling on rows of one note each, of very different lengths, so that batches weigh differently."""

    unit = "tokens"

    def __init__(self, stack: Stack, batch_size: int) -> None:
        self.stack = stack
        self.batch_size = batch_size
        texts = ["the patient was admitted with pain " * (1 + n % 5) for n in range(40)]
        self.rows = lay_out(encode_documents(stack.tokenizer, texts), "bucketed", 256, 0)

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, float]:
        rows = self.rows.collate(batch)
        return causal_loss(self.stack, rows), float(rows.predictions)

    def size(self, batch: Sequence[int]) -> int:
        return 1

    def validate(self) -> dict[str, float]:
        return {"loss": 0.0, "score": 0.0}


def test_small_batches_accumulated_are_one_large_batch(
    tiny_base: Path, perturbed: Callable[..., Stack], tmp_path: Path
) -> None:
    results = []
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        recipe = AdapterRecipe(name="clinical", rank=4, alpha=8, target_modules="all-linear")
        stack = perturbed(Stack.build(str(tiny_base), [recipe]))
        objective = Notes(stack, batch_size)
        settings = settings_of(epochs=1, accumulate=accumulate, max_steps=4, learning_rate=1e-3, gradient_clip=1e6)
        with a_run(tmp_path / f"run{batch_size}") as run:
            train(stack, run, settings, objective, "notes")
        results.append((weights(stack), [entry["loss"] for entry in log_of(tmp_path / f"run{batch_size}")[:4]]))
    for other, losses in results[1:]:
        assert losses == pytest.approx(results[0][1], rel=1e-6)
        for name, tensor in results[0][0].items():
            # A hundredth of one step: AdamW enlarges what rounding does to gradients that are almost 0.
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)


def test_the_gradient_of_a_step_is_that_of_the_mean_loss(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scale too: clipping depends on it."""
    rows = [row for batch in toy.epoch_batches(0)[:2] for row in batch]
    torch.nn.functional.cross_entropy(toy.logits(rows), toy.targets[rows]).backward()  # type: ignore[no-untyped-call]
    head = toy.stack.head.weight
    assert head.grad is not None
    expected = head.grad.clone()
    head.grad = None
    seen: list[Tensor] = []

    def recording(self: torch.optim.AdamW, closure: None = None) -> None:
        assert head.grad is not None
        seen.append(head.grad.clone())
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    recipe = settings_of(accumulate=2, gradient_clip=1e6)
    with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "run") as run:
        train(toy.stack, run, recipe, toy, "toy")
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-7)


def test_steps_end_in_the_middle_of_an_epoch_when_the_recipe_says_so(toy: Toy, tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(epochs=3, max_steps=7), toy, "toy")
    assert state.step == 7
    assert toy.steps == 7
    assert len(state.history) == 2  # after the first epoch, and at the end
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    assert [(line["step"], line["epoch"]) for line in lines if "validation_loss" in line] == [(5, 1), (7, 2)]


def test_more_steps_than_there_are_change_nothing(toy: Toy, tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(max_steps=1000), toy, "toy")
    assert (state.step, len(state.history)) == (10, 2)


# ---------------------------------------------------------------------- the best epoch


def test_afterwards_the_stack_is_that_of_the_best_epoch(toy: Toy, tmp_path: Path) -> None:
    toy.scores = iter([0.5, 0.8, 0.8, 0.1])  # the earlier one of two equal epochs
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(epochs=4), toy, "toy")
    assert state.best_epoch == 2
    assert not toy.stack.network.training
    with torch.inference_mode():
        assert torch.equal(toy.logits(range(ROWS)), toy.logits_at[1])
    assert not torch.equal(toy.logits_at[1], toy.logits_at[3])
    toy.stack.save(tmp_path / "stack")
    loaded = Toy(Stack.load(tmp_path / "stack"))
    with torch.inference_mode():
        assert torch.equal(loaded.logits(range(ROWS)), toy.logits_at[1])


# ---------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_with_the_checkpoint_before_it(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path, bad: float
) -> None:
    def build() -> Toy:
        return Toy(Stack.build(str(tiny_base), table3["lora"], mortality))

    toy = build()
    toy.change_loss = lambda loss: loss * bad if toy.steps == 6 else loss
    with pytest.raises(ClinstackError, match=r"The loss is (nan|inf) at step 6"), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")
    assert all(bool(parameter.isfinite().all()) for parameter in toy.stack.trainable_parameters().values())
    with safe_open(tmp_path / "run" / "checkpoints" / LAST, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 5  # the end of the first epoch
    again, straight = build(), build()
    with a_run(tmp_path / "run") as run:
        train(again.stack, run, settings_of(), again, "toy")
    with a_run(tmp_path / "straight") as run:
        train(straight.stack, run, settings_of(), straight, "toy")
    assert tensors_hash(weights(again.stack)) == tensors_hash(weights(straight.stack))


@pytest.mark.parametrize("stop_at", [0, 2, 3, 5, 8])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    tiny_base: Path, clinical: Path, mortality: Task, tmp_path: Path, stop_at: int
) -> None:
    """With dropout, so that random numbers matter; C5: the library's trainer would go on with another stack."""

    def build() -> Toy:
        adapters = [
            AdapterRecipe(name="clinical", path=str(clinical)),
            AdapterRecipe(name="task", rank=2, alpha=4, dropout=0.3),
        ]
        return Toy(Stack.build(str(tiny_base), adapters, mortality))

    straight, stopped, resumed = build(), build(), build()
    with a_run(tmp_path / "straight") as run:
        state = train(straight.stack, run, settings_of(), straight, "toy")

    def stop(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    stopped.before_step = stop
    with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "run") as run:
        train(stopped.stack, run, settings_of(), stopped, "toy")
    with a_run(tmp_path / "run") as run:
        again = train(resumed.stack, run, settings_of(), resumed, "toy")
    assert resumed.steps == 10 - {0: 0, 2: 0, 3: 3, 5: 5, 8: 6}[stop_at]  # what the last checkpoint did not hold
    assert again == state
    assert tensors_hash(weights(resumed.stack)) == tensors_hash(weights(straight.stack))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "straight")
    for adapter in ("clinical", "task"):
        assert tensors_hash(resumed.stack.adapter_tensors(adapter)) == tensors_hash(
            straight.stack.adapter_tensors(adapter)
        )


def test_dropout_differs_from_step_to_step(
    tiny_base: Path, mortality: Task, tmp_path: Path, perturbed: Callable[..., Stack]
) -> None:
    recipe = AdapterRecipe(name="task", rank=2, alpha=4, dropout=0.5)
    toy = Toy(perturbed(Stack.build(str(tiny_base), [recipe], mortality)), batch_size=ROWS)
    toy.epoch_batches = lambda epoch: [list(range(ROWS))] * 5  # type: ignore[method-assign]
    with a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(epochs=1, learning_rate=1e-6), toy, "toy")
    losses = [line["loss"] for line in log_of(tmp_path / "run") if "loss" in line]
    assert len({round(loss, 3) for loss in losses}) > 3  # the weights hardly move


def test_a_checkpoint_of_another_stack_is_refused(
    toy: Toy, tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path
) -> None:
    with a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")
    other = Toy(Stack.build(str(tiny_base), table3["clinical-trainable+lora"], mortality))
    message = r"last\.safetensors holds other tensors than this stack trains"
    with pytest.raises(ClinstackError, match=message), a_run(tmp_path / "run") as run:
        train(other.stack, run, settings_of(), other, "toy")


def test_a_checkpoint_holds_trainable_tensors_moments_and_the_state_and_no_pickle(toy: Toy, tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(), toy, "toy")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == sorted([BEST, LAST])
    names = set(toy.stack.trainable_parameters())
    with safe_open(folder / LAST, framework="pt") as file:
        assert set(file.keys()) == {
            f"{part}/{name}" for part in ("parameter", "exp_avg", "exp_avg_sq") for name in names
        }
        assert TrainingState(**json.loads(file.metadata()["state"])) == state
    with safe_open(folder / BEST, framework="pt") as file:
        assert set(file.keys()) == names


def test_other_threads_than_at_the_beginning_are_said(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")
        assert "threads" not in capsys.readouterr().err
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
        train(toy.stack, run, settings_of(), toy, "toy")
    assert "goes on with 7" in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------------- validation in steps, and patience


def test_validations_stand_where_the_recipe_puts_them(toy: Toy, tmp_path: Path) -> None:
    toy.scores = iter([0.1, 0.9, 0.2, 0.3])
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(validate_every=3), toy, "toy")
    assert [entry["step"] for entry in state.history] == [3, 6, 9, 10]
    assert [entry["epoch"] for entry in state.history] == [1, 2, 2, 2]
    assert (state.best, state.best_epoch, state.best_score) == (1, 2, 0.9)
    with torch.inference_mode():
        assert torch.equal(toy.logits(range(ROWS)), toy.logits_at[1])


@pytest.mark.parametrize(
    ("patience", "scores"),
    [
        (1, [0.1, 0.5, 0.4]),
        (2, [0.1, 0.5, 0.4, 0.6, 0.6, 0.5]),
        (2, [0.1, 0.5, 0.6, 0.6, 0.5]),
        (None, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
    ],
)
def test_training_ends_when_validation_brings_nothing_better(
    toy: Toy, tmp_path: Path, patience: int | None, scores: list[float]
) -> None:
    toy.scores = iter(scores)
    last = len(scores)
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(epochs=6, patience=patience), toy, "toy")
    assert len(state.history) == last
    assert state.step == last * 5
    best = max(range(last), key=lambda number: state.history[number]["score"])
    with torch.inference_mode():
        assert torch.equal(toy.logits(range(ROWS)), toy.logits_at[best])


def test_a_training_that_ran_out_of_patience_does_not_go_on(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path
) -> None:
    """Killed after its last validation: the state keeps the best score, so the next start stops at once."""

    def build() -> Toy:
        toy = Toy(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality))
        toy.scores = iter([0.5, 0.4, 0.3])
        return toy

    settings = settings_of(epochs=6, validate_every=2, patience=2)
    first, second = build(), build()
    with a_run(tmp_path / "run") as run:
        state = train(first.stack, run, settings, first, "toy")
    with a_run(tmp_path / "run") as run:
        again = train(second.stack, run, settings, second, "toy")
    assert (state.step, second.steps) == (6, 0)
    assert again == state
    assert tensors_hash(weights(second.stack)) == tensors_hash(weights(first.stack))


# ---------------------------------------------------------------------- guards


def test_a_jump_of_the_loss_ends_the_training_with_the_checkpoint_before_it(toy: Toy, tmp_path: Path) -> None:
    toy.change_loss = lambda loss: loss * (30 if toy.steps == 24 else 1)
    message = r"at step 24, more than training\.spike_factor = 10 times .* the median of the 20 steps before.*--fresh"
    with pytest.raises(DivergedError, match=message), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(epochs=6, spike_factor=10), toy, "toy")
    with safe_open(tmp_path / "run" / "checkpoints" / LAST, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    assert (state["step"], len(state["recent_losses"])) == (21, 20)


@pytest.mark.parametrize(("at", "factor"), [(20, 10), (24, 40), (24, None)])
def test_a_loss_may_jump_early_or_less_than_the_recipe_says(
    toy: Toy, tmp_path: Path, at: int, factor: float | None
) -> None:
    toy.change_loss = lambda loss: loss * (30 if toy.steps == at else 1)
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(epochs=6, spike_factor=factor), toy, "toy")
    assert state.step == 30


def test_a_gradient_that_is_not_finite_ends_the_training(toy: Toy, tmp_path: Path) -> None:
    """The loss is finite: the square root has no slope at 0."""
    toy.change_loss = lambda loss: loss + (0 * loss).sqrt() if toy.steps == 4 else loss
    with (
        pytest.raises(DivergedError, match=r"A gradient is not finite at step 4\..*--fresh"),
        a_run(tmp_path / "run") as run,
    ):
        train(toy.stack, run, settings_of(), toy, "toy")
    assert all(bool(parameter.isfinite().all()) for parameter in toy.stack.trainable_parameters().values())


# ---------------------------------------------------------------------- memory


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


def dropping_out(tiny_base: Path, mortality: Task) -> Toy:
    adapter = AdapterRecipe(name="task", rank=2, alpha=4)
    return Toy(Stack.build(str(tiny_base), [adapter], mortality), batch_size=10)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["accelerator", "cpu"])
def test_when_memory_runs_out_batches_are_cut_and_the_result_stays(
    tiny_base: Path, mortality: Task, tmp_path: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the third step, in its second batch: what the first left in the gradients must not count twice."""
    whole, cut = dropping_out(tiny_base, mortality), dropping_out(tiny_base, mortality)
    plain = cut.loss
    sizes: list[int] = []

    def loss(batch: list[int]) -> tuple[Tensor, float]:
        sizes.append(len(batch))
        if cut.steps >= 5 and len(batch) > 3:
            raise error
        return plain(batch)

    cut.loss = loss  # type: ignore[method-assign]
    settings = settings_of(epochs=5, accumulate=2, learning_rate=1e-3)
    with a_run(tmp_path / "whole") as run:
        train(whole.stack, run, settings, whole, "toy")
    with a_run(tmp_path / "cut") as run:
        state = train(cut.stack, run, settings, cut, "toy")
    assert state.largest_batch == 3
    assert sizes[:9] == [10, 10, 10, 10, 10, 10, 5, 3, 3]
    for line, expected in zip(log_of(tmp_path / "cut"), log_of(tmp_path / "whole"), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    for name, tensor in weights(whole.stack).items():
        torch.testing.assert_close(weights(cut.stack)[name], tensor, rtol=0, atol=2e-5)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Memory ran out at step 3") == 2  # to 5, then to 3
    assert "at most 3 items" in said


def test_the_limit_that_memory_sets_is_remembered(
    tiny_base: Path, mortality: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = dropping_out(tiny_base, mortality), dropping_out(tiny_base, mortality)
    for toy in (first, second):

        def loss(batch: list[int], toy: Toy = toy, plain: Callable[..., Any] = toy.loss) -> tuple[Tensor, float]:
            if len(batch) > 5:
                raise OUT_OF_MEMORY[0]
            return plain(batch)  # type: ignore[no-any-return]

        toy.loss = loss  # type: ignore[method-assign]

    def stop(step: int) -> None:
        if step == 15:
            raise KeyboardInterrupt

    first.before_step = stop
    with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "run") as run:
        train(first.stack, run, settings_of(epochs=8), first, "toy")
    assert "Memory ran out" in capsys.readouterr().err
    with a_run(tmp_path / "run") as run:
        state = train(second.stack, run, settings_of(epochs=8), second, "toy")
    assert state.largest_batch == 5
    assert "Memory ran out" not in capsys.readouterr().err


def test_an_item_that_does_not_fit_is_an_error_with_the_remedy(toy: Toy, tmp_path: Path) -> None:
    def loss(batch: list[int]) -> tuple[Tensor, float]:
        raise OUT_OF_MEMORY[1]

    toy.loss = loss  # type: ignore[method-assign]
    message = r"One item of a batch does not fit in memory at step 1\..*gradient_checkpointing: true"
    with pytest.raises(ClinstackError, match=message), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")


def test_other_errors_are_not_taken_for_want_of_memory(toy: Toy, tmp_path: Path) -> None:
    def loss(batch: list[int]) -> tuple[Tensor, float]:
        raise RuntimeError("shapes cannot be multiplied")

    toy.loss = loss  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cannot be multiplied"), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(), toy, "toy")


# ---------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_sixteen_bits_trains_like_one_in_thirty_two(
    tiny_base: Path, mortality: Task, tmp_path: Path, dtype: str
) -> None:
    losses = []
    for name in ("float32", dtype):
        adapter = AdapterRecipe(name="task", rank=2, alpha=4)
        toy = Toy(Stack.build(str(tiny_base), [adapter], mortality, dtype=name))
        with a_run(tmp_path / name) as run:
            train(toy.stack, run, settings_of(), toy, "toy")
        assert {parameter.dtype for parameter in toy.stack.trainable_parameters().values()} == {torch.float32}
        losses.append([line["loss"] for line in log_of(tmp_path / name) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_float16_step_that_overflows_is_computed_anew_with_half_the_scale(
    tiny_base: Path, mortality: Task, tmp_path: Path
) -> None:
    """The gradients of the logits are about 1, so 65536 times that is more than float16 holds."""
    adapter = AdapterRecipe(name="task", rank=2, alpha=4)
    build = lambda: Toy(Stack.build(str(tiny_base), [adapter], mortality, dtype="float16"))  # noqa: E731
    toy = build()
    toy.change_loss = lambda loss: loss * 4
    with a_run(tmp_path / "run") as run:
        state = train(toy.stack, run, settings_of(), toy, "toy")
    assert state.step == 10
    assert 1 < state.loss_scale < FIRST_SCALE
    assert toy.steps > 10  # some were computed more than once
    assert 0 < state.steps_since_halving <= 10
    norms = [line["gradient_norm"] for line in log_of(tmp_path / "run") if "loss" in line]
    assert all(0 < norm < 100 for norm in norms)  # of the loss, not of the scaled loss
    stopped, resumed = build(), build()

    def stop(step: int) -> None:
        if len(log_of(tmp_path / "again")) > 5:
            raise KeyboardInterrupt

    (tmp_path / "again").mkdir()
    for item in (stopped, resumed):
        item.change_loss = lambda loss: loss * 4
    stopped.before_step = lambda step: stop(step) if (tmp_path / "again" / "log.jsonl").exists() else None
    with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "again") as run:
        train(stopped.stack, run, settings_of(), stopped, "toy")
    with a_run(tmp_path / "again") as run:
        assert train(resumed.stack, run, settings_of(), resumed, "toy") == state
    assert tensors_hash(weights(resumed.stack)) == tensors_hash(weights(toy.stack))


# ---------------------------------------------------------------------- what the stack's methods and layers are told


def test_the_stack_is_told_of_the_steps(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaLoRA gives out ranks after a step, from gradients that must still be there, and keeps averages."""
    told: list[Any] = []
    stack = toy.stack
    head = stack.head.weight
    memory = {"average": torch.zeros(1)}

    def after_step(step: int) -> None:
        assert head.grad is not None
        memory["average"] += 1
        told.append(step)

    monkeypatch.setattr(stack, "begin_training", lambda total: told.append(f"of {total}"))
    monkeypatch.setattr(stack, "after_step", after_step)
    monkeypatch.setattr(stack, "method_state", lambda: memory)
    monkeypatch.setattr(stack, "load_method_state", lambda tensors: told.append(float(tensors["average"])))
    with a_run(tmp_path / "run") as run:
        train(stack, run, settings_of(epochs=1), toy, "toy")
    assert told == ["of 5", 1, 2, 3, 4, 5, 5.0]


def test_a_penalty_is_added_once_to_the_steps_mean_loss(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = toy.stack.head.weight
    seen: list[Tensor] = []

    def recording(self: torch.optim.AdamW, closure: None = None) -> None:
        assert head.grad is not None
        seen.append(head.grad.clone())
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    settings = settings_of(accumulate=2, gradient_clip=1e6)
    for name, penalty in (("without", lambda: None), ("with", lambda: (3 * head).sum())):
        monkeypatch.setattr(toy.stack, "penalty", penalty)
        with pytest.raises(KeyboardInterrupt), a_run(tmp_path / name) as run:
            train(toy.stack, run, settings, toy, "toy")
        head.grad = None
    torch.testing.assert_close(seen[1] - seen[0], torch.full_like(head, 3.0))


def test_checkpointed_activations_give_the_same_training(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path
) -> None:
    results = []
    for checkpointed in (False, True):
        toy = Toy(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality))
        with a_run(tmp_path / str(checkpointed)) as run:
            train(toy.stack, run, settings_of(gradient_checkpointing=checkpointed), toy, "toy")
        results.append(weights(toy.stack))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- curves


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.mark.parametrize("stop_at", [4, 5, 8])
def test_the_curves_of_a_stopped_training_are_those_of_one_that_was_not(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path, stop_at: int
) -> None:
    def build() -> Toy:
        return Toy(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality))

    def stop(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    straight, stopped, resumed = build(), build(), build()
    with a_run(tmp_path / "straight") as run:
        train(straight.stack, run, settings_of(), straight, "toy")
    stopped.before_step = stop
    with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "run") as run:
        train(stopped.stack, run, settings_of(), stopped, "toy")
    with a_run(tmp_path / "run") as run:
        train(resumed.stack, run, settings_of(), resumed, "toy")
    found, expected = points(tmp_path / "run"), points(tmp_path / "straight")
    assert sorted(found) == sorted(expected)
    assert sorted(found) == sorted(
        ["gradient_norm", "learning_rate", "loss", "notes_per_second", "validation_loss", "validation_score"]
    )
    for tag in set(found) - {"notes_per_second"}:
        assert found[tag] == expected[tag], tag
    assert [step for step, _ in found["notes_per_second"]] == list(range(1, 11))
    logged = [(line["step"], line["loss"]) for line in log_of(tmp_path / "run") if "loss" in line]
    assert found["loss"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in logged]


def test_no_curves_when_none_are_wanted(toy: Toy, tmp_path: Path) -> None:
    with a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(tracking="none"), toy, "toy")
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else find(module))
    message = rf"training\.tracking: {name} is not installed; pip install {name}"
    with pytest.raises(InputError, match=message), a_run(tmp_path / "run") as run:
        train(toy.stack, run, settings_of(tracking=name), toy, "toy")
    assert toy.steps == 0


def test_points_drawn_before_a_checkpoint_that_was_not_written_are_drawn_once(
    tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> Toy:
        return Toy(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality))

    written: list[int] = []

    def failing(path: Path, state: TrainingState, *rest: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(state.step)
        save_checkpoint(path, state, *rest)

    stopped, resumed = build(), build()
    with monkeypatch.context() as patch:
        patch.setattr("clinstack.engine.trainer.save_checkpoint", failing)
        with pytest.raises(KeyboardInterrupt), a_run(tmp_path / "run") as run:
            train(stopped.stack, run, settings_of(), stopped, "toy")
    assert written == [3]
    assert [step for step, _ in points(tmp_path / "run")["loss"]] == [1, 2, 3, 4, 5]
    with a_run(tmp_path / "run") as run:
        train(resumed.stack, run, settings_of(), resumed, "toy")
    found = points(tmp_path / "run")
    assert [step for step, _ in found["loss"]] == list(range(1, 11))
    assert [step for step, _ in found["validation_loss"]] == [5, 10]
