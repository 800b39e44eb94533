"""Merged exports, opened in plain transformers, by the code of their own README, against the stack."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from clinstack.errors import InputError
from clinstack.export.export import export
from clinstack.files import read_json, sha256_file
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.recipe.prompt import PromptRecipe
from clinstack.tokens.prompts import Prompt
from export_checks import CODES, STAY, TOP, Saved, difference, plain_logits, run_readme, slow, stack_logits
from methods import new
from tiny_encoders import write_encoder
from tiny_instructions import CHAT_TEMPLATE

Perturbed = Callable[..., Stack]


# ---------------------------------------------------------------------- merged


@pytest.mark.parametrize("label", ["head", "clinical-frozen", TOP[1], *slow("lora", "clinical-trainable", TOP[0])])
def test_merged_is_a_plain_classifier(
    saved: Saved, tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(label)
    done = export([folder], "merged", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert difference(plain_logits(model), stack_logits(folder)) < 1e-5
    assert difference(plain_logits(run_readme(tmp_path / "out", monkeypatch)), stack_logits(folder)) < 1e-5
    config = model.config
    assert (config.num_labels, config.id2label, config.label2id) == (
        2,
        {0: "alive", 1: "dead"},
        {"alive": 0, "dead": 1},
    )
    assert (config.problem_type, config.pad_token_id) == ("single_label_classification", 0)
    assert {name for name, _ in model.named_parameters() if "lora" in name} == set()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("chest pain").input_ids[0] == 1
    record = read_json(tmp_path / "out" / "export.json")
    assert record["check"]["."]["largest_difference"] == done.largest.difference <= 1e-4
    assert record["stacks"][0]["fingerprint"] == sha256_file(folder / "stack.json")
    assert record["stacks"][0]["reads"]["suffix"] == " END"
    assert record["base"]["fingerprint"] == read_json(folder / "stack.json")["base"]["fingerprint"]


def test_a_head_alone_says_so(saved: Saved, tmp_path: Path) -> None:
    export([saved("head")], "merged", tmp_path / "out")
    assert "the base `tiny` with a trained head" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_problem_types(saved: Saved, tmp_path: Path) -> None:
    export([saved("lora", CODES)], "merged", tmp_path / "codes")
    config = read_json(tmp_path / "codes" / "config.json")
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == list(CODES.classes)
    export([saved("lora", STAY)], "merged", tmp_path / "stay")
    assert read_json(tmp_path / "stay" / "config.json")["problem_type"] == "single_label_classification"


@pytest.mark.parametrize(
    "specs",
    [
        ("lora-everywhere",),
        ("full", "lora"),
        ("lora", "dora"),
        ("lora", "rslora", "adalora"),
        *slow(("dora",), ("rslora",), ("adalora",), ("full",), ("dora", "lora")),
    ],
    ids="+".join,
)
def test_every_method_that_changes_weights_is_merged(saved: Saved, tmp_path: Path, specs: tuple[str, ...]) -> None:
    adapters = [new(spec, f"{'abc'[place]}1") for place, spec in enumerate(specs)]
    folder = saved("+".join(specs), None, adapters)
    export([folder], "merged", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert difference(plain_logits(model, classifier=False), stack_logits(folder)) < 1e-4


def test_embeddings_that_an_output_layer_shares_are_parted(tmp_path: Path) -> None:
    """The adapter changes what is looked up; the output layer of the embedded base, which is tied, stays."""
    lower = AdapterRecipe(name="clinical", rank=2, target_modules=("embed_tokens", "q_proj"))
    stack = Stack.build("embedded", [lower, AdapterRecipe(name="task", rank=2)])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trainable_parameters().values():
            # Little: of logits in the hundreds float32 keeps no ten-thousandth.
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path / "stack"
    stack.save(folder)
    wanted = stack_logits(folder)
    export([folder], "merged", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not model.config.tie_word_embeddings
    assert difference(plain_logits(model, classifier=False), wanted) < 1e-4
    export([folder], "clinical-merged", tmp_path / "two")
    assert not read_json(tmp_path / "two" / "base" / "config.json")["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float16")])
@pytest.mark.parametrize("kind", ["merged", "clinical-merged", "fused", "peft"])
def test_sixteen_bits(saved: Saved, tmp_path: Path, dtype: str, kind: str) -> None:
    folder = saved("clinical-frozen+lora", dtype=dtype)
    done = export([folder], kind, tmp_path / "out").largest
    if kind in ("fused", "peft"):
        assert done.difference <= done.limit == 1e-4  # no weight is rounded
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert ("Plain PEFT rounds the head" in text) == (kind == "fused")
        return
    assert done.facts["before_rounding"] <= 1e-4 < done.difference <= done.limit
    weights = load_file(next(tmp_path.glob("out/**/model.safetensors")))
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == getattr(torch, dtype)
    if kind == "merged":
        assert weights["score.weight"].dtype == torch.float32


def test_a_quantised_stack_is_exported_without_that_and_says_so(saved: Saved, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved("clinical-frozen+lora", quantize="4bit")
    done = export([folder], "merged", tmp_path / "out")
    assert "in 4 bits" in done.notes[0]
    assert "in 4 bits" in (tmp_path / "out" / "README.md").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert difference(plain_logits(model), stack_logits(folder, quantize="none")) < 1e-5


def test_a_layer_below_the_top_is_a_shorter_model(saved: Saved, tmp_path: Path) -> None:
    folder = saved("clinical-frozen+lora", layer=1)
    export([folder], "merged", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 1
    assert difference(plain_logits(model), stack_logits(folder)) < 1e-5
    assert "The head reads layer 1" in (tmp_path / "out" / "README.md").read_text()
    export([folder], "peft", tmp_path / "peft")
    for kind in ("fused", "clinical-merged"):
        with pytest.raises(InputError, match="the head reads layer 1"):
            export([folder], kind, tmp_path / kind)


# ---------------------------------------------------------------------- language models


@pytest.fixture(scope="module")
def answering(tiny_base: Path, perturbed: Perturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of two adapters that follows instructions through a chat template."""
    root = tmp_path_factory.mktemp("answering")
    base = shutil.copytree(tiny_base, root / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(base)
    stack = perturbed(Stack.build(str(base), [new("lora"), new("rslora", "instruct")]))
    stack.prompt = Prompt.of(PromptRecipe(), stack.tokenizer)
    stack.save(root / "stack")
    return root / "stack"


@pytest.mark.parametrize("kind", ["merged", "fused", "clinical-merged", "peft"])
def test_an_instruction_stack(answering: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    export([answering], kind, tmp_path / "out")
    model = run_readme(tmp_path / "out", monkeypatch)
    assert difference(plain_logits(model, classifier=False), stack_logits(answering)) < 1e-4
    assert "Through the tokenizer's chat template" in (tmp_path / "out" / "README.md").read_text()
    if kind == "merged":
        assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT_TEMPLATE
        assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [2]
    if kind == "fused":
        assert read_json(tmp_path / "out" / "adapter_config.json")["task_type"] == "CAUSAL_LM"


# ---------------------------------------------------------------------- encoders


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(name, marks=SLOW) for name in ("modernbert-mean", "roberta", "electra", "distilbert"))],
)
def test_encoders(saved: Saved, tmp_path: Path, family: str) -> None:
    base = str(write_encoder(family, tmp_path / "base"))
    adapters = [new("lora", "lower", target_modules="all-linear"), new("lora", "upper")]
    folder = saved(family, STAY, adapters, base=base)
    wanted = stack_logits(folder)
    export([folder], "merged", tmp_path / "merged")
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert difference(plain_logits(model), wanted) < 1e-5
    export([folder], "fused", tmp_path / "fused")
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "fused", num_labels=3)
    assert difference(plain_logits(model), wanted) < 1e-5
    export([folder], "clinical-merged", tmp_path / "two")
    config = read_json(tmp_path / "two" / "base" / "config.json")
    assert config["architectures"] == read_json(Path(base) / "config.json")["architectures"]
    export([folder], "peft", tmp_path / "peft")


def test_a_pooling_that_the_plain_model_cannot_is_refused_and_peft_keeps_it(saved: Saved, tmp_path: Path) -> None:
    mean = saved("clinical-frozen+lora", pooling="mean")
    for kind in ("merged", "fused", "clinical-merged"):
        with pytest.raises(InputError, match=r"reads the mean over all tokens .*--as peft"):
            export([mean], kind, tmp_path / kind)
    done = export([mean], "peft", tmp_path / "peft")
    assert done.largest.opened_with.startswith("clinstack")
    first = saved("bert-first", STAY, [], base=str(write_encoder("bert", tmp_path / "bert")), pooling="first")
    with pytest.raises(InputError, match="first token without the pooler"):
        export([first], "merged", tmp_path / "out")
    modern = str(write_encoder("modernbert", tmp_path / "modern"))
    other = saved("modern-mean", STAY, [new("lora", "task")], base=modern, pooling="mean")
    export([other], "merged", tmp_path / "modern-merged")
    assert read_json(tmp_path / "modern-merged" / "config.json")["classifier_pooling"] == "mean"
    with pytest.raises(InputError, match="mean"):
        export([other], "fused", tmp_path / "out")
