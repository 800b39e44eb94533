"""The presets of instruction tuning, on tiny random models of their architectures: validated, and trained two steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.model.stack import Stack
from clinstack.notes.instructions import TASKS
from clinstack.notes.splits import assign_splits
from clinstack.recipe import InstructRecipe, PretrainRecipe, load_recipe
from clinstack.stages.instruct import instruct
from clinstack.stages.pretrain import pretrain

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Any] = {
    "llama3-8b": LlamaConfig(**SIZES, vocab_size=260, num_key_value_heads=2),  # Llama 3 has grouped queries
    "llama2-7b": LlamaConfig(**SIZES, vocab_size=260),
    "phi2-t4": PhiConfig(**SIZES, vocab_size=260),
}
ASCLEPIUS = ("llama3-8b", "llama2-7b")
PHI_MODULES = {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
"""Of phi-2 in transformers since 4.37; ``Wqkv`` was the name in the code that came with the model."""
INSTRUCT = (*(f"asclepius/{base}" for base in ASCLEPIUS), "phi2-t4", "demo/instruct")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with tiny random models of the presets' architectures, which read any text byte by byte."""
    torch.set_num_threads(1)  # as for the other tiny models: a second thread costs more than it brings
    root = tmp_path_factory.mktemp("bases")
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    for name, config in CONFIGS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes and instructions of twenty patients."""
    folder = tmp_path_factory.mktemp("data")
    patients = [f"p{index:02d}" for index in range(20)]
    splits = assign_splits(patients, seed=0)
    assert set(splits.values()) == {"train", "validation", "test"}
    notes = [
        f"Patient {index} came with chest pain, was given aspirin {index + 10} mg, went home." for index in range(20)
    ]
    rows = [
        {
            "example_id": f"x{index:02d}",
            "patient_id": patient,
            "note": notes[index],
            "question": "Which dose of aspirin was given?",
            "answer": f"{index + 10} mg",
            "task": TASKS[index % len(TASKS)],
        }
        for index, patient in enumerate(patients)
    ]
    stays = [
        {
            "note_id": f"n{index:02d}",
            "patient_id": patient,
            "encounter_id": f"e{index:02d}",
            "charttime": None,
            "note_type": "Discharge summary",
            "text": notes[index],
            "source": "test",
        }
        for index, patient in enumerate(patients)
    ]
    for name, table in {"instructions": rows, "notes": stays}.items():
        (folder / name).mkdir()
        pq.write_table(pa.Table.from_pylist(table), folder / name / f"{name}.parquet")
    pq.write_table(pa.table({"patient_id": list(splits), "split": list(splits.values())}), folder / "splits.parquet")
    (folder / "prepare.json").write_text(json.dumps({"source": "test", "synthetic": True}), encoding="utf-8")
    return folder


def lora_modules(stack: Stack) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in stack.lora_layers()}


@pytest.mark.parametrize("base", ASCLEPIUS)
def test_asclepius_is_as_published(base: str) -> None:
    """One epoch of pretraining and three of instruction tuning, all else the same in both steps."""
    first, second = load_recipe(Path(f"asclepius/{base}-pretrain")), load_recipe(Path(f"asclepius/{base}"))
    assert isinstance(first, PretrainRecipe)
    assert isinstance(second, InstructRecipe)
    assert (first.training.epochs, second.training.epochs) == (1, 3)
    assert (first.context, second.max_tokens) == (2048, 2048)
    for recipe in (first, second):
        training = recipe.training
        assert training.batch_size * training.accumulate == 128
        assert (training.learning_rate, training.warmup_ratio, training.weight_decay) == (2e-5, 0.03, 0.0)
        assert (training.schedule, recipe.dtype, training.max_steps) == ("cosine", "bfloat16", None)
    assert first.base == second.base
    assert [adapter.method for adapter in first.adapters] == ["full"]
    assert [(adapter.path, adapter.trainable) for adapter in second.adapters] == [(first.run, True)]
    assert second.prompt.template == "asclepius"


def test_phi2_fits_the_lesson() -> None:
    recipe = load_recipe(Path("phi2-t4"))
    assert isinstance(recipe, InstructRecipe)
    assert (recipe.base, recipe.quantize, recipe.dtype) == ("microsoft/phi-2", "4bit", "float16")
    assert set(recipe.adapters[0].target_modules) == PHI_MODULES
    training = recipe.training
    assert (recipe.adapters[0].rank, recipe.max_tokens, training.batch_size, training.accumulate) == (4, 512, 2, 8)
    assert (training.learning_rate, training.epochs, training.gradient_checkpointing) == (1e-4, 1, True)


@pytest.mark.parametrize("name", INSTRUCT)
def test_it_validates_and_trains_two_steps(
    name: str, bases: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line's own ``validate``, and by the stage itself from beginning to end."""
    monkeypatch.chdir(tmp_path)
    overrides = [f"run={tmp_path / 'run'}", "training.epochs=3", "training.max_steps=2", "training.tracking=none"]
    if name != "demo/instruct":
        overrides += [f"base={bases[name.removeprefix('asclepius/')]}"]
    if name in INSTRUCT[:2]:  # the first step comes before the second
        validate_and_train(f"{name}-pretrain", [f"notes={data}", *overrides[1:]])
    folder = validate_and_train(name, [f"instructions={data}", *overrides])
    stack = Stack.load(folder)
    if name == "phi2-t4":
        assert lora_modules(stack) == PHI_MODULES
        assert len(stack.lora_layers()) == 2 * len(PHI_MODULES)  # on each of them in each layer
    else:
        assert [adapter.method for adapter in stack.adapters] == ["full"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    assert max(line.get("step", 0) for line in log) == 2


def validate_and_train(name: str, overrides: list[str]) -> Path:
    result = CliRunner().invoke(app, ["validate", name, *overrides])
    assert result.exit_code == 0, result.output
    recipe = load_recipe(Path(name), overrides)
    run = pretrain(recipe) if isinstance(recipe, PretrainRecipe) else instruct(recipe)  # type: ignore[arg-type]
    assert run.is_done
    return run.folder


def test_the_lessons_old_names_are_refused(bases: dict[str, Path], data: Path) -> None:
    """PEFT passes over ``Wqkv`` without a word, and adapts the MLP only."""
    words = ["validate", "phi2-t4", f"base={bases['phi2-t4']}", f"instructions={data}"]
    result = CliRunner().invoke(app, [*words, "adapters.0.target_modules=[Wqkv, fc1, fc2]"])
    assert result.exit_code != 0
    assert "Wqkv" in str(result.exception)
    assert "q_proj" in str(result.exception)
