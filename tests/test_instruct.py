"""Instruction tuning: what is trained and what is read, the Run, and what a stack remembers of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import yaml
from rich.console import Console

from clinstack.cli_show import example_text, show_examples
from clinstack.engine.instruction_tuning import AnswerRows, InstructionObjective, lay_out_pairs
from clinstack.engine.losses import causal_loss
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, InstructRecipe, PromptRecipe, TrainingRecipe, parse_recipe
from clinstack.run import Run
from clinstack.stages.instruct import chosen_instructions, encode, instruct
from clinstack.tokens.pack import IGNORED
from clinstack.tokens.prompts import EncodedPairs, EncodedPrompts, Prompt
from tiny_instructions import long_note, write_tiny_instructions

MAX_TOKENS = 248


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_instructions(tmp_path_factory.mktemp("instructions") / "data")


@pytest.fixture(scope="module")
def stack(tiny_base: Path) -> Stack:
    return Stack.build(str(tiny_base), [AdapterRecipe(name="instruct", rank=2, alpha=4)])


def pairs_of(*lengths: tuple[int, int]) -> EncodedPairs:
    """Examples of so many prompt and answer tokens; tokens count up, so that each says where it is."""
    prompts, answers, at = [], [], 10
    for prompt, answer in lengths:
        prompts.append(list(range(at, at + prompt)))
        answers.append(list(range(at + prompt, at + prompt + answer)))
        at += prompt + answer
    return EncodedPairs(EncodedPrompts(prompts, {}), answers)


def recipe_of(data: Path, base: Path, run: Path, **changes: Any) -> InstructRecipe:
    values: dict[str, Any] = {
        "stage": "instruct",
        "base": str(base),
        "instructions": str(data),
        "run": str(run),
        "max_tokens": MAX_TOKENS,
        "answer_tokens": 32,
        "prompt": {"system": "Answer the question."},
        "adapters": [{"name": "instruct", "rank": 4, "alpha": 8, "dropout": 0.1}],
        "training": {
            "max_steps": 12,
            "epochs": 4,
            "batch_size": 4,
            "learning_rate": 0.01,
            "checkpoint_every": 2,
            "validate_every": 6,
            "tracking": "none",
        },
        "evaluation": {"resamples": 100},
    }
    recipe = parse_recipe(values | changes, "test")
    assert isinstance(recipe, InstructRecipe)
    return recipe


@pytest.fixture(scope="module")
def run(data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return instruct(recipe_of(data, tiny_base, tmp_path_factory.mktemp("run") / "run"))


# ---------------------------------------------------------------------- masks


def test_labels_are_answers_and_nothing_else(stack: Stack) -> None:
    """::

    examples     10 11 12 | 13 14        15 16 | 17 18 19        20 ... 29 | 30      prompt | answer, end token
    row          10 11 12   13   15 16   17 18                   (the last token of each is a label only)
    label         .  . 13   14    . 17   18 19
    position      0  1  2    3    0  1    2  3
    """
    rows = lay_out_pairs(stack, pairs_of((3, 2), (2, 3), (10, 1)), "packed", 11)
    packed = {int(batch.input_ids[0, 0]): batch for batch in (rows.collate([row]) for row in range(len(rows)))}
    first = packed[10]
    assert first.input_ids.tolist() == [[10, 11, 12, 13, 15, 16, 17, 18]]
    assert first.labels.tolist() == [[IGNORED, IGNORED, 13, 14, IGNORED, 17, 18, 19]]
    assert first.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert first.predictions == 5
    alone = packed[20]
    assert alone.labels[0].tolist() == [IGNORED] * 9 + [30]
    assert alone.predictions == 1


def test_padded_rows_train_answers_only_and_attend_to_every_token(stack: Stack) -> None:
    """::

    row 0    15 16 | 17 18 __        label   . 17 18 19  .        attention 1 1 1 1 0
    row 1    20 21   22 | 23 24      label   .  . 23 24 25        the begin token is seen, though it also pads
    """
    rows = lay_out_pairs(stack, pairs_of((5, 0), (2, 3), (3, 3)), "bucketed", 8)
    batch = rows.collate([1, 2])
    assert batch.labels.tolist() == [[IGNORED, 17, 18, 19, IGNORED], [IGNORED, IGNORED, 23, 24, 25]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_the_end_token_is_trained_and_the_begin_token_is_attended(stack: Stack, data: Path, tiny_base: Path) -> None:
    recipe = recipe_of(data, tiny_base, Path("unused"), layout="bucketed")
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    pairs = encode(stack.tokenizer, prompt, recipe, chosen_instructions(recipe)["train"].chosen(range(4)))
    rows = lay_out_pairs(stack, pairs, "bucketed", MAX_TOKENS)
    batch = rows.collate(range(4))
    assert batch.attention_mask is not None
    assert bool((batch.input_ids[:, 0] == stack.tokenizer.bos_token_id).all())
    assert bool((batch.attention_mask[:, 0] == 1).all())
    for row, answer in enumerate(pairs.answers):
        labels = batch.labels[row]
        assert labels[labels != IGNORED].tolist() == answer
        assert answer[-1] == stack.tokenizer.eos_token_id


def test_the_loss_is_that_of_each_answer_alone_with_all_its_logits(stack: Stack, data: Path, tiny_base: Path) -> None:
    recipe = recipe_of(data, tiny_base, Path("unused"))
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    pairs = encode(stack.tokenizer, prompt, recipe, chosen_instructions(recipe)["train"].chosen(range(5)))
    stack.eval()
    expected = 0.0
    for ids, answer in zip(pairs.prompts.ids, pairs.answers, strict=True):
        tokens = torch.tensor([*ids, *answer])
        with torch.inference_mode():
            logits = stack.network(input_ids=tokens[None]).logits[0]
        expected += float(F.cross_entropy(logits[len(ids) - 1 : -1], torch.tensor(answer), reduction="sum"))
    for layout in ("packed", "bucketed"):
        rows = lay_out_pairs(stack, pairs, layout, MAX_TOKENS)  # type: ignore[arg-type]
        batch = rows.collate(range(len(rows)))
        assert batch.predictions == sum(map(len, pairs.answers))
        with torch.inference_mode():
            assert float(causal_loss(stack, batch)) == pytest.approx(expected, rel=1e-5)


def test_epochs_are_shuffled_by_seed_and_counted(stack: Stack, data: Path, tiny_base: Path) -> None:
    recipe = recipe_of(data, tiny_base, Path("unused"))
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    pairs = {
        split: encode(stack.tokenizer, prompt, recipe, part) for split, part in chosen_instructions(recipe).items()
    }

    def objective(seed: int) -> InstructionObjective:
        return InstructionObjective(stack, TrainingRecipe(batch_size=2, seed=seed), "packed", MAX_TOKENS, pairs)

    first = objective(0)
    assert list(first.epoch_batches(0)) == list(objective(0).epoch_batches(0))
    assert list(first.epoch_batches(0)) != list(first.epoch_batches(1))
    assert list(first.epoch_batches(0)) != list(objective(1).epoch_batches(0))
    counts = first.counts()["train"]
    assert counts["examples"] == len(pairs["train"])
    assert counts["trained"] == sum(map(len, pairs["train"].answers))
    assert counts["read"] == sum(map(len, pairs["train"].prompts.ids)) + counts["trained"] - counts["examples"]
    trained = sum(first.loss(batch)[1] for batch in first.epoch_batches(0))
    assert trained == counts["trained"]


def test_rows_are_the_kind_that_pretraining_measures(stack: Stack) -> None:
    assert isinstance(lay_out_pairs(stack, pairs_of((3, 2)), "packed", 8), AnswerRows)


# ---------------------------------------------------------------------- the stage


def test_a_run_holds_what_the_contract_says(run: Run, data: Path) -> None:
    assert run.record["stage"] == "instruct"
    assert run.record["label"] == "instruct"
    assert run.record["synthetic"] is True
    metrics = read_json(run.folder / "metrics.json")
    assert metrics["layout"] == "packed"
    assert [figures["step"] for figures in metrics["validation"]] == [6, 12]
    assert metrics["validation"][-1]["loss"] < metrics["validation"][0]["loss"]
    for split in ("test", "validation_chosen", "train"):
        figures = metrics[split]
        assert figures["adapted"]["perplexity"]["value"] < figures["base"]["perplexity"]["value"]
        assert len(figures["ratio"]["interval"]) == 2
        assert set(figures["by_task"]) == {"Named Entity Recognition", "Question Answering"}
        assert sum(part["examples"] for part in figures["by_task"].values()) == figures["examples"]
    assert metrics["tokens"]["train"]["notes"]["texts_cut"] == 0
    losses = pq.read_table(run.folder / "losses.parquet")
    assert losses.column_names == [
        *("example_id", "patient_id", "task", "split", "tokens", "characters", "base_nll", "nll")
    ]
    test = losses.filter(losses["split"].to_numpy() == "test")
    wanted = chosen_instructions(recipe_of(data, Path("x"), Path("x")))["test"]
    assert test["example_id"].to_pylist() == wanted.example_ids


def test_the_stack_remembers_its_prompt_and_computes_what_was_measured(run: Run, data: Path, tiny_base: Path) -> None:
    stack = Stack.load(run.folder)
    assert stack.prompt == Prompt.of(PromptRecipe(system="Answer the question."), stack.tokenizer)
    assert stack.max_tokens == MAX_TOKENS
    recipe = recipe_of(data, tiny_base, Path("unused"))
    part = chosen_instructions(recipe)["test"]
    rows = lay_out_pairs(stack, encode(stack.tokenizer, stack.prompt, recipe, part), "packed", MAX_TOKENS)
    with torch.inference_mode():
        loss = sum(float(causal_loss(stack, rows.collate([row]))) for row in range(len(rows)))
    losses = pq.read_table(run.folder / "losses.parquet")
    test = losses.filter(losses["split"].to_numpy() == "test")
    assert loss == pytest.approx(sum(test["nll"].to_pylist()), rel=1e-4)
    card = (run.folder / "stack" / "instruct" / "README.md").read_text()
    assert "Answer the question.\n\n### Note\n{note}\n\n### Question\n{question}\n\n### Answer\n" in card
    stack.save(run.folder.parent / "copy")
    assert Stack.load(run.folder.parent / "copy").prompt == stack.prompt


def test_no_text_is_in_any_file_of_a_run(run: Run) -> None:
    for file in run.folder.rglob("*"):
        if file.is_file():
            assert b"quartz" not in file.read_bytes(), file


def test_an_adapter_on_a_frozen_clinical_one(data: Path, tiny_base: Path, clinical: Path, tmp_path: Path) -> None:
    before = Stack.load(clinical).summary()["adapters"][0]["weights"]
    adapters = [{"name": "clinical", "path": str(clinical)}, {"name": "instruct", "rank": 2, "alpha": 4}]
    run = instruct(recipe_of(data, tiny_base, tmp_path / "run", adapters=adapters))
    kept, new = Stack.load(run.folder).summary()["adapters"]
    assert (kept["name"], kept["trainable"], kept["weights"]) == ("clinical", False, before)
    assert (new["name"], new["trainable"]) == ("instruct", True)
    record = read_json(run.folder / "stack" / "stack.json")
    assert record["adapters"][1]["stacked_on"]["adapters"][0]["weights"] == before


@pytest.mark.parametrize(
    ("adapter", "layout"),
    [
        ({"method": "dora", "rank": 2, "alpha": 4}, "packed"),
        ({"method": "prompt", "virtual_tokens": 4}, "bucketed"),
        ({"method": "full"}, "packed"),
    ],
    ids=["dora", "prompt", "full"],
)
def test_other_methods_train(adapter: dict[str, Any], layout: str, data: Path, tiny_base: Path, tmp_path: Path) -> None:
    training = {"max_steps": 3, "batch_size": 4, "tracking": "none", "learning_rate": 0.01}
    changes = {"adapters": [{"name": "instruct", **adapter}], "training": training, "evaluation": {"max_notes": 6}}
    changes["evaluation"]["resamples"] = 100
    metrics = read_json(instruct(recipe_of(data, tiny_base, tmp_path / "run", **changes)).folder / "metrics.json")
    assert metrics["layout"] == layout
    assert metrics["test"]["examples"] == 6


def test_on_a_base_in_4_bits(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    training = {"max_steps": 4, "batch_size": 4, "tracking": "none", "learning_rate": 0.01}
    recipe = recipe_of(data, tiny_base, tmp_path / "run", quantize="4bit", training=training)
    run = instruct(recipe)
    assert run.record["stack"]["quantize"] == "4bit"
    figures = read_json(run.folder / "metrics.json")["test"]
    assert figures["adapted"]["perplexity"]["value"] < figures["base"]["perplexity"]["value"]


def test_what_long_notes_lose_is_said_and_counted(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa

    data = write_tiny_instructions(tmp_path / "data")
    file = data / "instructions" / "instructions.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows[::3]:
        row["note"] = long_note(120)
    pq.write_table(pa.Table.from_pylist(rows), file)
    training = {"max_steps": 1, "batch_size": 2, "tracking": "none"}
    run = instruct(recipe_of(data, tiny_base, tmp_path / "run", training=training))
    said = " ".join(capsys.readouterr().err.split()) or ""
    report = read_json(run.folder / "metrics.json")["tokens"]["train"]["notes"]
    assert report["texts_cut"] > 0
    assert f"train: {report['texts_cut']} of {report['texts']} notes are longer" in said
    assert max(report["cut_by_section"], key=report["cut_by_section"].get) == "HOSPITAL COURSE"


# ---------------------------------------------------------------------- killed, and refused


def test_broken_off_and_started_again_a_run_ends_with_the_same_bits(
    run: Run, data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off at step 9 of 12, so between two checkpoints; the slow test kills the process itself."""
    logged = Run.log

    def dying(self: Run, event: dict[str, Any]) -> None:
        if event.get("step") == 9:
            raise KeyboardInterrupt
        logged(self, event)

    recipe = recipe_of(data, tiny_base, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", dying)
        with pytest.raises(KeyboardInterrupt):
            instruct(recipe)
    again = instruct(recipe)
    assert again.record["starts"] == 2
    for name in ("losses.parquet", "metrics.json", "log.jsonl", "stack/instruct/adapter_model.safetensors"):
        assert sha256_file(again.folder / name) == sha256_file(run.folder / name), name


@pytest.mark.slow
def test_killed_and_started_again_the_command_ends_with_the_same_bits(
    data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        recipe = recipe_of(data, tiny_base, tmp_path / name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        command = [sys.executable, "-m", "clinstack", "instruct", str(file), "--json"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert start("straight").wait(300) == 0
    killed = start("killed")
    log = tmp_path / "killed" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 5):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start("killed").wait(300) == 0
    assert read_json(tmp_path / "killed" / "run.json")["starts"] == 2
    for name in ("losses.parquet", "metrics.json", "stack/instruct/adapter_model.safetensors"):
        assert sha256_file(tmp_path / "killed" / name) == sha256_file(tmp_path / "straight" / name), name


def test_what_cannot_be_is_refused(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    def refused(message: str, base: Path | None = None, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            instruct(recipe_of(data, base or tiny_base, tmp_path / "run", **changes), fresh=True)

    refused("adapters: none is trainable", adapters=[])
    refused("prompt.shots: a stack that is trained needs none", prompt={"shots": 2})
    refused("answer_tokens: 248 of max_tokens 248", answer_tokens=248)
    refused("'clinstak' is none of clinstack, asclepius, phi2", prompt={"template": "clinstak"})
    refused("'Summarisation' does not occur", tasks=["Summarisation"])
    refused("is an encoder and writes no text", base=Path("embedded-encoder"))
    refused("set max_tokens to", max_tokens=100_000)
    refused("example p.* there is room for", max_tokens=60, answer_tokens=8)


def test_only_the_tasks_and_the_examples_that_are_wanted(data: Path, tiny_base: Path) -> None:
    recipe = recipe_of(data, tiny_base, Path("x"), tasks=["Question Answering"], max_examples=7)
    chosen = chosen_instructions(recipe)
    assert len(chosen["train"]) == 7
    assert set(chosen["test"].tasks) == {"Question Answering"}
    assert chosen_instructions(recipe)["train"] == chosen["train"]


# ---------------------------------------------------------------------- shown


def test_validate_shows_the_trained_tokens_and_writes_nothing(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data, tiny_base, tmp_path / "run")
    console = Console(record=True, width=120, color_system="truecolor", file=(tmp_path / "screen").open("w"))
    show_examples(recipe, 3, console)
    shown = console.export_text(clear=False)
    assert "--show prints text of notes to this terminal" in shown
    assert shown.count("### Answer") == 3
    assert shown.count("⟦") == 4  # the legend's too
    assert shown.count("trained, of 248 at most") == 3
    # In color, and readable without: what is trained stands in brackets.
    assert "\x1b[1;97;48;5;22m" in console.export_text(styles=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="--show"):
        show_examples(parse_recipe({"stage": "evaluate", "run": "x", "stack": "x", "notes": "x"}, "test"), 1, console)


def test_what_is_marked_is_what_is_trained(stack: Stack, data: Path, tiny_base: Path) -> None:
    recipe = recipe_of(data, tiny_base, Path("unused"))
    prompt = Prompt.of(recipe.prompt, stack.tokenizer)
    part = chosen_instructions(recipe)["train"].chosen([0])
    pairs = encode(stack.tokenizer, prompt, recipe, part)
    batch = lay_out_pairs(stack, pairs, "packed", MAX_TOKENS).collate([0])
    trained = batch.labels[batch.labels != IGNORED].tolist()
    shown = example_text(stack.tokenizer, pairs).plain
    marked = shown[shown.index("⟦") + 1 : shown.index("⟧")].split("│")
    assert marked == [stack.tokenizer.decode([token]) for token in trained]
    assert part.questions[0] in shown[: shown.index("⟦")]


def test_a_sweep_takes_the_recipe(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    from clinstack.recipe import SweepRecipe
    from clinstack.sweep.sweep import sweep

    training = {"max_steps": 2, "batch_size": 4, "tracking": "none"}
    recipe = recipe_of(data, tiny_base, tmp_path / "unused", training=training)
    file = tmp_path / "instruct.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    searched = SweepRecipe(
        run=str(tmp_path / "sweep"),
        recipe=str(file),
        space={"training.learning_rate": {"choices": [0.001, 0.02]}},  # type: ignore[dict-item]
        sampler="grid",
        pruner="none",
    )
    metrics = read_json(sweep(searched).folder / "metrics.json")
    assert metrics["trials"]["total"] == 2
    assert "0.02" in (tmp_path / "sweep" / "best.yaml").read_text()


def test_the_command_validates_and_shows_only_when_asked(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from clinstack.cli import app

    recipe = tmp_path / "instruct.yaml"
    values = recipe_of(data, tiny_base, tmp_path / "run").model_dump(mode="json")
    recipe.write_text(yaml.safe_dump(values))
    plain = CliRunner().invoke(app, ["validate", str(recipe)])
    assert plain.exit_code == 0
    assert "CHIEF COMPLAINT" not in plain.output
    shown = CliRunner().invoke(app, ["validate", str(recipe), "--show", "1"])
    assert shown.exit_code == 0
    assert shown.output.count("CHIEF COMPLAINT") == 1
    for changes, message in (
        ({"instructions": str(tmp_path / "none")}, "has no instructions/*.parquet"),
        ({"prompt": {"template": str(tmp_path / "none.txt")}}, "cannot be read"),
        ({"prompt": {"chat_template": "always"}}, "has no chat template"),
    ):
        recipe.write_text(yaml.safe_dump(values | changes))
        refused = CliRunner().invoke(app, ["validate", str(recipe)])
        assert message in str(refused.exception)
