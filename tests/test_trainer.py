"""The trainer: invariant 2 broken on purpose, the schedule, the best epoch, and what a checkpoint restores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clinstack.engine.checkpoint import BEST, LAST, TrainingState
from clinstack.engine.losses import causal_loss, classification_loss
from clinstack.engine.optimizer import build_optimizer, check_optimizer, learning_rate_factor
from clinstack.engine.trainer import train
from clinstack.errors import ClinstackError
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
