"""Preference optimization: the loss is DPO's, the reference is the stack as it was, and a stack's invariants hold."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from clinstack.engine.log_probabilities import (
    IGNORED,
    as_reference,
    pair_rows,
    pair_scores,
    token_divergence,
    token_log_probabilities,
)
from clinstack.engine.preference import PreferenceLoss
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.lineage import tensors_hash
from clinstack.model.stack import Stack
from clinstack.notes.instructions import Instructions
from clinstack.notes.preferences import Preferences, read_preferences
from clinstack.recipe import AlignRecipe, parse_recipe
from clinstack.run import Run
from clinstack.stages.align import align, prompt_of
from clinstack.tokens.preferences import Pair, encode_preferences
from clinstack.tokens.prompts import encode_pairs
from methods import new
from tiny_preferences import CANARY, PROMPT, write_instruction_stack, write_tiny_preferences

PAIRS = [
    Pair([1, 40, 41, 42], [50, 51, 2], [60, 2]),
    Pair([1, 40, 43], [52, 2], [61, 62, 63, 64, 2]),
    Pair([1, 44, 45, 46, 47, 48], [53, 2], [65, 2]),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def instruction(
    tiny_base: Path, clinical: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("instruction") / "stack"
    return write_instruction_stack(folder, tiny_base, clinical, perturbed)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_preferences(tmp_path_factory.mktemp("preferences") / "data")


def read(instruction: Path, **changes: Any) -> list[dict[str, Any]]:
    """Return the adapters of the instruction stack, as a recipe writes them."""
    return [
        {"name": "clinical", "path": str(instruction / "clinical")},
        {"name": "instruction", "path": str(instruction / "instruction"), **changes},
    ]


def recipe(base: Path, adapters: list[dict[str, Any]], **changes: Any) -> AlignRecipe:
    values: dict[str, Any] = {
        "run": "unused",
        "base": str(base),
        "preferences": "unused",
        "adapters": adapters,
        "max_tokens": 96,
        "answer_tokens": 12,
        "training": {"batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 3, "tracking": "none"},
        "evaluation": {"resamples": 100},
    }
    found = parse_recipe(values | changes, "test", "align")
    assert isinstance(found, AlignRecipe)
    return found


def built(found: AlignRecipe) -> Stack:
    stack = Stack.build(found.base, found.adapters)
    stack.prompt = prompt_of(found, stack)
    return stack


def plain_scores(
    network: Any, pairs: list[Pair], size: Callable[[int], float] = lambda _: 1.0
) -> tuple[Tensor, Tensor]:
    """Compute log probabilities the long way: a row at a time, without padding, from all logits."""
    columns: list[list[Tensor]] = [[], []]
    for pair in pairs:
        for column, answer in zip(columns, (pair.chosen, pair.rejected), strict=True):
            ids = torch.tensor([[*pair.prompt, *answer]])
            logs = network(ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1].log_softmax(-1)
            column.append(logs.gather(1, torch.tensor(answer)[:, None]).sum() * size(len(answer)))
    return torch.stack(columns[0]), torch.stack(columns[1])


# ---------------------------------------------------------------------- the reference


def test_the_reference_is_the_instruction_stack_also_when_the_new_adapter_has_moved(
    tiny_base: Path, instruction: Path, perturbed: Callable[..., Stack]
) -> None:
    found = recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}])
    stack = built(found)
    wanted = pair_scores(Stack.load(instruction), PAIRS, 2)
    perturbed(stack)
    stack.eval()
    moved = pair_scores(stack, PAIRS, 2)
    with as_reference(stack, found.adapters):
        scores = pair_scores(stack, PAIRS, 2)
    assert torch.equal(scores.chosen, wanted.chosen)
    assert torch.equal(scores.rejected, wanted.rejected)
    assert not torch.allclose(moved.chosen, wanted.chosen, atol=1e-2)
    with stack.switched_off():
        base = pair_scores(stack, PAIRS, 2)
    assert not torch.allclose(base.chosen, wanted.chosen, atol=1e-2)


def test_left_to_itself_trl_takes_the_bare_base_for_the_reference_and_loses_adapters(
    tiny_base: Path, instruction: Path, tmp_path: Path
) -> None:
    """What docs/align.md says of TRL 1.16, so that another version that mends it is noticed."""
    import datasets  # type: ignore[import-untyped]
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    network = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        base = plain_scores(network, PAIRS)
    model: Any = PeftModel.from_pretrained(network, str(instruction / "clinical"), adapter_name="clinical")
    model.load_adapter(str(instruction / "instruction"), "instruction")
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    options: dict[str, Any] = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False}
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def trainer() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DPOTrainer(model, args=DPOConfig(str(tmp_path), **options), train_dataset=rows,
                              processing_class=tokenizer)  # fmt: skip

    with pytest.raises(KeyError, match="default"):  # an adapter of that name is all it knows
        trainer()
    model.add_adapter("default", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    names = ["clinical", "instruction", "default"]
    model.base_model.set_adapter(names)
    model.eval()
    with torch.no_grad():
        stack = plain_scores(model, PAIRS)
    its = trainer()
    ids, mask, labels = pair_rows(Stack.load(instruction), PAIRS)
    batch = {"input_ids": ids, "attention_mask": mask, "completion_mask": (labels != IGNORED).long()}
    chosen, rejected = its.compute_ref_log_probs(model, batch)
    assert torch.allclose(chosen, base[0], atol=1e-4)
    assert torch.allclose(rejected, base[1], atol=1e-4)
    assert not torch.allclose(chosen, stack[0], atol=1e-1)
    # And from then on the policy is no longer the stack that was handed in.
    active = {tuple(layer.active_adapters) for layer in model.modules() if hasattr(layer, "lora_A")}
    assert active != {tuple(names)}


def test_divergence_from_the_reference_is_kullback_and_leiblers(
    tiny_base: Path, instruction: Path, perturbed: Callable[..., Stack]
) -> None:
    found = recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}])
    stack = perturbed(built(found))
    stack.eval()
    got = token_divergence(stack, found.adapters, PAIRS, 2)
    assert got is not None
    for pair, value in zip(PAIRS, got.tolist(), strict=True):
        ids = torch.tensor([[*pair.prompt, *pair.chosen]])
        place = slice(len(pair.prompt) - 1, -1)
        with torch.no_grad():
            now = stack.network(ids).logits[0, place].log_softmax(-1)
            with stack.switched_off("align"):
                then = stack.network(ids).logits[0, place].log_softmax(-1)
        assert value == pytest.approx(float((now.exp() * (now - then)).sum()), abs=1e-5)
        assert value > 0.001
    continued = recipe(tiny_base, read(instruction, trainable=True))
    assert token_divergence(stack, continued.adapters, PAIRS, 2) is None


# ---------------------------------------------------------------------- the loss


def own_dpo(stack: Stack, found: AlignRecipe, pairs: list[Pair]) -> Tensor:
    """Compute the loss as its papers write it, with the network's own logits."""
    per_token = (lambda length: 1 / length) if found.loss == "ipo" else (lambda _: 1.0)
    chosen, rejected = plain_scores(stack.network, pairs, per_token)
    with torch.no_grad(), stack.switched_off("align"):
        old_chosen, old_rejected = plain_scores(stack.network, pairs, per_token)
    margin = (chosen - old_chosen) - (rejected - old_rejected)
    if found.loss == "ipo":
        loss = ((margin - 1 / (2 * found.beta)) ** 2).mean()
    else:
        loss = -F.logsigmoid(found.beta * margin).mean()
    if found.sft_weight:
        tokens = sum(len(pair.chosen) for pair in pairs)
        loss = loss - found.sft_weight * plain_scores(stack.network, pairs)[0].sum() / tokens
    return loss


@pytest.mark.parametrize("keys", [{}, {"loss": "ipo", "beta": 0.3}, {"beta": 0.5, "sft_weight": 0.2}])
def test_loss_and_gradients_are_those_of_dpo_computed_the_long_way(
    keys: dict[str, Any], tiny_base: Path, instruction: Path, perturbed: Callable[..., Stack], tmp_path: Path
) -> None:
    found = recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}], **keys)
    stack = perturbed(built(found))
    with as_reference(stack, found.adapters):
        reference = pair_scores(stack, PAIRS, 2)
    loss, rewards = PreferenceLoss(stack, found, PAIRS, reference, tmp_path)([2, 0, 1])
    loss.backward()
    parameters = stack.trainable_parameters()
    got = {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}
    stack.network.zero_grad()
    wanted = own_dpo(stack, found, PAIRS)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert got.keys() == parameters.keys()
    scores = pair_scores(stack, PAIRS, 3)
    margins = (scores.chosen - reference.chosen) - (scores.rejected - reference.rejected)
    assert rewards["reward_margin"] == pytest.approx(found.beta * margins.mean().item(), abs=1e-4)
    assert rewards["reward_accuracy"] == pytest.approx((margins > 0).double().mean().item())
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert torch.allclose(got[name], parameter.grad, rtol=1e-3, atol=1e-6), name
        assert float(got[name].abs().max()) > 0, name


def test_before_the_first_step_the_loss_is_that_of_a_coin(tiny_base: Path, instruction: Path, tmp_path: Path) -> None:
    found = recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}])
    stack = built(found)
    with as_reference(stack, found.adapters):
        reference = pair_scores(stack, PAIRS, 2)
    loss, _ = PreferenceLoss(stack, found, PAIRS, reference, tmp_path)([0, 1, 2])
    assert loss.item() == pytest.approx(0.693147, abs=1e-5)


def test_every_loss_that_a_recipe_may_name_is_one_of_trl(tiny_base: Path, instruction: Path, tmp_path: Path) -> None:
    adapters = [*read(instruction), {"name": "align", "rank": 2}]
    stack = built(recipe(tiny_base, adapters))
    reference = pair_scores(stack, PAIRS, 3)
    names = AlignRecipe.model_fields["loss"].annotation.__args__  # type: ignore[union-attr]
    assert {"sigmoid", "ipo", "apo_zero", "robust"} < set(names)
    for name in names:
        smoothing = {"label_smoothing": 0.001} if name == "exo_pair" else {}
        found = recipe(tiny_base, adapters, loss=name, **smoothing)
        loss, _ = PreferenceLoss(stack, found, PAIRS, reference, tmp_path)([0, 1])
        stack.network.zero_grad()
        loss.backward()
        moved = [p.grad.abs().max() for p in stack.trainable_parameters().values() if p.grad is not None]
        assert bool(torch.isfinite(loss)), name
        assert float(max(moved)) > 0, name


def test_virtual_tokens_are_part_of_the_policy(tiny_base: Path, tmp_path: Path) -> None:
    found = recipe(tiny_base, [new("prompt", "align").model_dump(exclude_unset=True)])
    stack = built(found)
    with as_reference(stack, found.adapters):
        reference = pair_scores(stack, PAIRS, 3)
    policy = pair_scores(stack, PAIRS, 3)
    assert not torch.allclose(policy.chosen, reference.chosen, atol=1e-2)
    loss, _ = PreferenceLoss(stack, found, PAIRS, reference, tmp_path)([0, 1, 2])
    margin = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    assert loss.item() == pytest.approx(float(-F.logsigmoid(0.1 * margin).mean()), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in stack.trainable_parameters().values())


def test_chunks_of_positions_give_the_same_as_all_at_once(
    tiny_base: Path, instruction: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = built(recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}]))
    rows = pair_rows(stack, PAIRS)
    whole = token_log_probabilities(stack, *rows)
    whole.sum().backward()
    gradients = [p.grad.clone() for p in stack.trainable_parameters().values() if p.grad is not None]
    stack.network.zero_grad()
    monkeypatch.setattr("clinstack.engine.log_probabilities._LOGITS", {"cpu": 600, "cuda": 600})
    parts = token_log_probabilities(stack, *rows)
    parts.sum().backward()
    assert torch.allclose(whole, parts, atol=1e-5)
    again = [p.grad for p in stack.trainable_parameters().values() if p.grad is not None]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(gradients, again, strict=True))


def test_trl_leaves_the_network_alone_and_sends_nothing(
    tiny_base: Path, instruction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent(*_: Any, **__: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", sent)
    monkeypatch.delenv("CI", raising=False)
    found = recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}])
    stack = built(found)
    stack.network.config.pad_token_id = None
    before = tensors_hash(dict(stack.network.state_dict()))
    settings = copy.deepcopy(stack.network.config.to_dict())
    PreferenceLoss(stack, found, PAIRS, pair_scores(stack, PAIRS, 3), tmp_path)([0])
    assert tensors_hash(dict(stack.network.state_dict())) == before
    assert stack.network.config.to_dict() == settings
    assert "forward" not in stack.network.__dict__
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == []


# ---------------------------------------------------------------------- tokens


def test_prompts_are_those_of_instruction_tuning(tiny_base: Path, preferences: Path) -> None:
    tokenizer = Stack.build(str(tiny_base)).tokenizer
    rows = read_preferences(preferences)["train"]
    made = [place for place, note in enumerate(rows.notes) if note is not None]
    got = encode_preferences(tokenizer, PROMPT, rows.at(made), 96)
    notes, questions = ([str(column[place]) for place in made] for column in (rows.notes, rows.questions))
    ids = [rows.example_ids[place] for place in made]
    for column in ("chosen", "rejected"):
        answers = [getattr(rows, column)[place] for place in made]
        wanted = encode_pairs(tokenizer, PROMPT, Instructions(ids, ids, notes, questions, answers, ids), 96)
        assert [pair.prompt for pair in got.pairs] == wanted.prompts.ids
        assert [getattr(pair, column) for pair in got.pairs] == wanted.answers
    assert all(pair.chosen[-1] == tokenizer.eos_token_id for pair in got.pairs)


def test_a_prompt_without_note_is_read_as_it_stands(tiny_base: Path) -> None:
    tokenizer = Stack.build(str(tiny_base)).tokenizer
    rows = Preferences(["a", "b"], ["p", "p"], ["drug:", "drug:\n"], ["x y"] * 2, ["z"] * 2, [None] * 2, [None] * 2)
    first, second = encode_preferences(tokenizer, PROMPT, rows, 50).pairs
    assert tokenizer.decode(first.prompt + first.chosen) == "<s>drug: x y</s>"
    assert tokenizer.decode(second.prompt + second.rejected) == "<s>drug:\nz</s>"


def test_long_notes_lose_their_middle_alike_for_both_answers_and_hopeless_pairs_are_counted(tiny_base: Path) -> None:
    tokenizer = Stack.build(str(tiny_base)).tokenizer
    long = "begin " + "chest pain " * 60 + "end"
    rows = Preferences(
        ["a", "b", "c"],
        ["p", "q", "r"],
        ["", "", "x" * 90],
        ["yes", "y" * 90, "yes"],
        ["no no no", "no", "no"],
        [long, long, None],
        ["why?", "why?", None],
    )
    found = encode_preferences(tokenizer, PROMPT, rows, 80)
    assert found.kept.example_ids == ["a"]
    assert found.report["too_long"] == 2
    assert found.report["prompts"]["texts_cut"] == 1
    (pair,) = found.pairs
    assert pair.longest <= 80
    text = tokenizer.decode(pair.prompt)
    assert "begin" in text
    assert "[...]" in text
    assert str(text).endswith("end Q: why? A:")
    # With room for any answer the note is cut as where no answer is known yet.
    pairs = encode_preferences(tokenizer, PROMPT, rows, 80, 30).pairs
    alone = Instructions(["a"], ["p"], [long], ["why?"], ["yes"], ["t"])
    assert [pair.prompt for pair in pairs] == encode_pairs(tokenizer, PROMPT, alone, 80, 30).prompts.ids


# ---------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def finished(tiny_base: Path, instruction: Path, preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("align") / "run"
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 3, "tracking": "none"}
    return align(
        recipe(
            tiny_base,
            [*read(instruction), {"name": "align", "rank": 2}],
            run=str(folder),
            preferences=str(preferences),
            training=training,
        )
    )


def test_a_run_prefers_the_chosen_answers_afterwards(finished: Run) -> None:
    metrics = read_json(finished.folder / "metrics.json")
    record = read_json(finished.folder / "run.json")
    assert (record["stage"], record["label"], record["status"]) == ("align", "clinical+instruction+align", "done")
    assert record["synthetic"] is True
    assert metrics["validation"][-1]["loss"] < 0.5
    chosen = metrics["validation_chosen"]
    best = metrics["validation"][metrics["best_epoch"] - 1]
    assert chosen["reward_accuracy"]["value"] == pytest.approx(best["reward_accuracy"])
    assert chosen["reward_margin"]["value"] == pytest.approx(best["reward_margin"], abs=1e-4)
    test = metrics["test"]
    assert test["reward_accuracy"]["value"] > 0.9
    assert test["reward_margin"]["interval"][0] > 0
    by_token = test["prefers_chosen_per_token"]
    assert by_token["after"]["value"] > by_token["before"]["value"]
    assert test["kl_per_token"]["value"] > 0
    table = pq.read_table(finished.folder / "log_probabilities.parquet").to_pydict()
    assert test["pairs"] == table["split"].count("test") == 12
    share = [a > b for a, b, c in zip(table["chosen"], table["rejected"], table["split"], strict=True) if c == "test"]
    assert test["prefers_chosen"]["after"]["value"] == pytest.approx(sum(share) / len(share))


def test_only_the_new_adapter_moves_and_the_saved_stack_is_the_one_in_memory(
    finished: Run, instruction: Path, tiny_base: Path
) -> None:
    before = {item["name"]: item["weights"] for item in read_json(instruction / "stack.json")["adapters"]}
    saved = read_json(finished.folder / "stack" / "stack.json")
    after = {item["name"]: item["weights"] for item in saved["adapters"]}
    assert {name: after[name] for name in before} == before
    stack = Stack.load(finished.folder)  # compares its output with the one recorded
    assert stack.prompt == PROMPT
    assert not torch.equal(stack.adapter_tensors("align")[next(iter(stack.adapter_tensors("align")))], torch.zeros(1))
    # What the Run measured is what the loaded stack gives.
    table = pq.read_table(finished.folder / "log_probabilities.parquet").to_pydict()
    rows = read_preferences(Path(finished.recipe.preferences))["test"]  # type: ignore[attr-defined]
    pairs = encode_preferences(stack.tokenizer, PROMPT, rows, 96).pairs
    wanted = [value for value, split in zip(table["chosen"], table["split"], strict=True) if split == "test"]
    assert pair_scores(stack, pairs, 4).chosen.tolist() == pytest.approx(wanted, abs=1e-4)
    with stack.switched_off("align"):
        reference = pair_scores(stack, pairs, 4)
    old = [value for value, split in zip(table["reference_chosen"], table["split"], strict=True) if split == "test"]
    assert reference.chosen.tolist() == pytest.approx(old, abs=1e-4)


def test_nothing_of_the_texts_is_in_the_run(finished: Run) -> None:
    files = [file for file in finished.folder.rglob("*") if file.is_file()]
    assert len(files) > 8
    for file in files:
        assert CANARY.encode() not in file.read_bytes(), file
        assert not file.name.endswith((".pt", ".pth", ".bin")), file


class StoppedError(Exception):
    """Stands for a kill."""


def test_a_run_that_was_broken_off_ends_with_the_same_bits(
    finished: Run, tiny_base: Path, instruction: Path, preferences: Path, tmp_path: Path
) -> None:
    values = {"run": str(tmp_path / "run"), "adapters": finished.recipe.model_dump()["adapters"]}
    again = AlignRecipe.model_validate(finished.recipe.model_dump() | values)

    def stop(number: int, _: dict[str, float]) -> None:
        if number == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        align(again, on_validation=stop)
    kept = (tmp_path / "run" / "checkpoints" / "reference.safetensors").read_bytes()
    run = align(again)
    assert run.record["starts"] == 2
    assert (run.checkpoints / "reference.safetensors").read_bytes() == kept
    for name in ("metrics.json", "log_probabilities.parquet", "stack/align/adapter_model.safetensors"):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name


@pytest.mark.slow
def test_kill_dash_nine_of_the_command_line_changes_no_bit(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = finished.recipe.model_dump(mode="json") | {"run": str(folder)}
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "clinstack", "align", str(tmp_path / "align.yaml")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    log = folder / "log.jsonl"
    began = time.monotonic()
    while not log.is_file() or log.read_text().count("\n") < 8:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - began < 240
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert read_json(folder / "run.json")["status"] == "running"
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert read_json(folder / "run.json")["starts"] == 2
    for name in ("metrics.json", "log_probabilities.parquet", "stack/align/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes(), name


def test_an_instruction_adapter_can_be_continued_and_a_base_trained_whole(
    tiny_base: Path, instruction: Path, preferences: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 4, "batch_size": 4, "learning_rate": 0.01, "tracking": "none"}
    common = {"preferences": str(preferences), "training": training}
    continued = align(recipe(tiny_base, read(instruction, trainable=True), run=str(tmp_path / "continued"), **common))
    test = read_json(continued.folder / "metrics.json")["test"]
    assert test["kl_per_token"] == {"value": None, "interval": None}
    table = pq.read_table(continued.folder / "log_probabilities.parquet").to_pydict()
    assert table["chosen"] != table["reference_chosen"]
    before = {item["name"]: item["weights"] for item in read_json(instruction / "stack.json")["adapters"]}
    after = read_json(continued.folder / "stack" / "stack.json")["adapters"]
    assert after[0]["weights"] == before["clinical"]
    assert after[1]["weights"] != before["instruction"]
    loaded = Stack.load(instruction)
    rows = read_preferences(preferences)["validation"]
    pairs = encode_preferences(loaded.tokenizer, PROMPT, rows, 96).pairs
    old = [value for value, split in zip(table["reference_chosen"], table["split"], strict=True) if split != "test"]
    assert pair_scores(loaded, pairs, 4).chosen.tolist() == pytest.approx(old, abs=1e-4)

    prompt = {"template": str(tmp_path / "prompt.txt")}
    Path(prompt["template"]).write_text("{note} Q: {question} A:")
    whole = align(
        recipe(tiny_base, [{"name": "align", "method": "full"}], run=str(tmp_path / "full"), prompt=prompt, **common)
    )
    metrics = read_json(whole.folder / "metrics.json")
    assert metrics["validation"][-1]["loss"] < 0.69
    assert Stack.load(whole.folder).prompt is not None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_half_precision_and_checkpointed_layers_train_too(
    method: str, tiny_base: Path, preferences: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 3, "batch_size": 4, "gradient_checkpointing": True, "tracking": "none"}
    values = {"preferences": str(preferences), "training": training, "dtype": "bfloat16", "max_tokens": 200}
    run = align(recipe(tiny_base, [{"name": "align", "method": method}], run=str(tmp_path / "run"), **values))
    metrics = read_json(run.folder / "metrics.json")
    assert metrics["validation"][-1]["loss"] < 0.6931


# ---------------------------------------------------------------------- what is refused


def test_a_prompt_of_the_recipe_beside_that_of_the_stack_is_refused(tiny_base: Path, instruction: Path) -> None:
    found = recipe(tiny_base, [*read(instruction), {"name": "align", "rank": 2}], prompt={"template": "phi2"})
    with pytest.raises(InputError, match="'instruction' was trained with a prompt of its own"):
        built(found)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"adapters": [{"name": "clinical", "path": "x"}]}, "none is trainable"),
        ({"loss": "dpo"}, "loss: "),
        ({"label_smoothing": 0.1}, "sigmoid has none"),
        ({"loss": "exo_pair"}, "exo_pair needs it above 0"),
        ({"loss": "robust", "label_smoothing": 0.6}, "the wrong way round"),
        ({"adapters": [{"name": "align", "dropout": 0.1}]}, r"adapters\.0\.dropout"),
        ({"bta": 0.1}, "Did you mean beta"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(keys: dict[str, Any], says: str, tiny_base: Path) -> None:
    with pytest.raises(InputError, match=says):
        recipe(tiny_base, **({"adapters": [{"name": "align"}]} | keys))


def test_pairs_that_all_are_too_long_are_refused(
    tiny_base: Path, instruction: Path, preferences: Path, tmp_path: Path
) -> None:
    found = recipe(
        tiny_base,
        [*read(instruction), {"name": "align", "rank": 2}],
        run=str(tmp_path / "run"),
        preferences=str(preferences),
        max_tokens=16,
        answer_tokens=1,
    )
    with pytest.raises(InputError, match="max_tokens: 16 leaves no room"):
        align(found)
