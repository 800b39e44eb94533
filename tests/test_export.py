"""Every export opened in the plain libraries, by the code of its own README, against the stack it was made from."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import clinstack.export.merged as merged_module
from clinstack.errors import InputError
from clinstack.export.check import ExportError
from clinstack.export.export import Exported, export
from clinstack.export.fused import RANKS, filled_rank
from clinstack.files import read_json, sha256_file
from clinstack.model.base import find_base
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.recipe.prompt import PromptRecipe
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt
from export_checks import plain_logits, run_readme, stack_logits
from methods import new
from tiny_encoders import write_encoder
from tiny_instructions import CHAT_TEMPLATE

Specs = dict[str, list[AdapterRecipe]]
Perturbed = Callable[..., Stack]
Saved = Callable[..., Path]
TOP = ("clinical-frozen+lora", "clinical-trainable+lora")
STAY = Task("stay", "multiclass", ("short", "medium", "long"))
CODES = Task("codes", "multilabel", ("038", "428", "486", "584"))


def slow(*values: Any) -> list[Any]:
    """Mark values of a parameter that bring little new."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(scope="module")
def saved(
    tiny_base: Path, table3: Specs, mortality: Task, perturbed: Perturbed, tmp_path_factory: pytest.TempPathFactory
) -> Saved:
    """Return a function that saves a stack once: of a label of Table 3, or of adapters."""
    made: dict[str, Path] = {}

    def save(label: str, task: Task | None = mortality, adapters: Any = None, **options: Any) -> Path:
        key = f"{label} {task and task.name} {options}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("stacks") / "stack"
            base = options.pop("base", str(tiny_base))
            stack = Stack.build(base, table3[label] if adapters is None else adapters, task, **options)
            stack.reading = Reading(max_tokens=48, keep="end", suffix=" END")
            perturbed(stack).save(made[key])
        return made[key]

    return save


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


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


# ---------------------------------------------------------------------- fused


@pytest.mark.parametrize("label", ["clinical-frozen", TOP[1], *slow("lora", TOP[0])])
def test_fused_is_one_lora_that_plain_peft_opens(
    saved: Saved, tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(label)
    export([folder], "fused", tmp_path / "out")
    model = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "out"))
    model.config.pad_token_id = 0
    assert difference(plain_logits(model), stack_logits(folder)) < 1e-5
    assert difference(plain_logits(run_readme(tmp_path / "out", monkeypatch)), stack_logits(folder)) < 1e-5
    config = read_json(tmp_path / "out" / "adapter_config.json")
    assert config["r"] == config["lora_alpha"] == 8 in RANKS
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert (config["use_dora"], config["bias"], config["rank_pattern"]) == (False, "none", {})
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert "base_model.model.score.weight" in tensors
    ranks = {len(tensor) for name, tensor in tensors.items() if "lora_A" in name}
    assert ranks == {tensor.shape[1] for name, tensor in tensors.items() if "lora_B" in name} == {8}


def test_fused_of_adapters_on_different_layers_fills_with_zeros(saved: Saved, tmp_path: Path) -> None:
    adapters = [
        new("lora", "lower", target_modules=("q_proj", "down_proj"), rank=7, rank_pattern={"down_proj": 5}),
        new("adalora", "middle", target_modules=("v_proj",)),
        new("rslora", "upper", target_modules=("down_proj", "o_proj"), rank=4),
    ]
    folder = saved("different", STAY, adapters)
    done = export([folder], "fused", tmp_path / "out")
    assert done.largest.facts["ranks_in_use"] == 9  # down_proj: 5 + 4
    assert done.largest.facts["rank"] == 16
    assert any("The rank is 16, of which 9 are in use" in note for note in done.notes)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    down = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
    assert down.shape[0] == 16
    assert not down[9:].any()
    assert down[:9].any(1).all()
    model = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "out"), num_labels=3)
    assert difference(plain_logits(model), stack_logits(folder)) < 1e-5


def test_ranks_are_those_of_vllm() -> None:
    assert [filled_rank(rank) for rank in (1, 2, 8, 9, 24, 257, 512, 600)] == [1, 8, 8, 16, 32, 320, 512, 600]


@pytest.mark.parametrize("spec", ["dora", "full", "lora-everywhere"])
def test_what_is_no_product_of_factors_is_not_fused(saved: Saved, tmp_path: Path, spec: str) -> None:
    folder = saved(spec, STAY, [new(spec, "a1"), new("lora", "b1")])
    with pytest.raises(InputError, match=r"adapter 'a1': .*use --as merged or --as peft"):
        export([folder], "fused", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- clinical-merged


@pytest.mark.parametrize("label", TOP)
def test_clinical_merged_is_a_base_and_a_plain_adapter(
    saved: Saved, tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(label)
    export([folder], "clinical-merged", tmp_path / "out")
    assert difference(plain_logits(run_readme(tmp_path / "out", monkeypatch)), stack_logits(folder)) < 1e-5
    config = read_json(tmp_path / "out" / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "base"
    assert "base_model_name_or_path` of the adapters is `base`" in (tmp_path / "out" / "README.md").read_text()
    # The base is one for clinstack too, and a whole language model.
    base = Stack.build(str(tmp_path / "out" / "base"), [new("lora", "fresh")])
    assert base.network.get_output_embeddings() is not None


def test_several_stacks_share_one_base(saved: Saved, tmp_path: Path) -> None:
    stacks = [saved("clinical-frozen+lora"), saved("clinical-frozen+lora", STAY), saved("clinical-frozen+lora", CODES)]
    done = export(stacks, "clinical-merged", tmp_path / "out")
    assert sorted(done.measured) == ["adapters/codes", "adapters/mortality", "adapters/stay"]
    assert len(list((tmp_path / "out").glob("**/model.safetensors"))) == 1
    with pytest.raises(InputError, match="two of the stacks are called 'mortality'"):
        export([stacks[0], saved("clinical-frozen+lora", layer=None)], "clinical-merged", tmp_path / "other")
    trained_on = saved("clinical-trainable+lora", STAY)
    with pytest.raises(InputError, match="beneath their top adapters 'mortality' and 'stay' are not the same"):
        export([stacks[0], trained_on], "clinical-merged", tmp_path / "other")
    with pytest.raises(InputError, match=r"float32 and 'stay' in bfloat16"):
        export([stacks[0], saved("clinical-frozen+lora", STAY, dtype="bfloat16")], "clinical-merged", tmp_path / "x")
    with pytest.raises(InputError, match="takes one stack"):
        export(stacks, "merged", tmp_path / "other")


@pytest.mark.parametrize("lower", ["dora", "full", "lora-everywhere"])
def test_clinical_merged_folds_in_any_weights(
    saved: Saved, tmp_path: Path, lower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(f"{lower} below", STAY, [new(lower, "a1"), new("adalora", "b1")])
    export([folder], "clinical-merged", tmp_path / "out")
    assert difference(plain_logits(run_readme(tmp_path / "out", monkeypatch)), stack_logits(folder)) < 1e-4


def test_a_dora_does_not_leave_the_base_it_measured(saved: Saved, tmp_path: Path) -> None:
    folder = saved("dora above", STAY, [new("lora", "a1"), new("dora", "b1")])
    with pytest.raises(InputError, match="'b1' is a DoRA, which measures the base's rows without 'a1'"):
        export([folder], "clinical-merged", tmp_path / "out")


# ---------------------------------------------------------------------- peft


@pytest.mark.parametrize("label", ["lora", "clinical-trainable", TOP[0], *slow("clinical-frozen", TOP[1])])
def test_peft_opens_by_its_readme(saved: Saved, tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(label)
    done = export([folder], "peft", tmp_path / "out")
    assert done.largest.opened_with.startswith("peft")
    assert difference(plain_logits(run_readme(tmp_path / "out", monkeypatch)), stack_logits(folder)) < 1e-5
    order = read_json(tmp_path / "out" / "order.json")
    assert [item["folder"] for item in order["adapters"]] == [item.name for item in Stack.load(folder).adapters]
    assert order["head"] == ("task" if label.endswith("lora") else "head/head.safetensors")


@pytest.mark.parametrize("spec", ["prefix", "prompt", "p_tuning", "adaption_prompt", "adalora", "dora", "full"])
@pytest.mark.parametrize(
    "task", [pytest.param(STAY, id="classifier"), pytest.param(None, id="language model", marks=pytest.mark.slow)]
)
def test_peft_of_every_method(saved: Saved, tmp_path: Path, spec: str, task: Task | None) -> None:
    folder = saved(f"only {spec}", task, [new(spec, "a1")])
    done = export([folder], "peft", tmp_path / "out")
    assert not done.largest.opened_with.startswith("clinstack")
    assert done.largest.difference <= 1e-4


@pytest.mark.parametrize("spec", ["prefix", "prompt", "p_tuning", "adaption_prompt"])
def test_what_changes_no_weights_is_refused_and_sent_to_peft(saved: Saved, tmp_path: Path, spec: str) -> None:
    folder = saved(f"only {spec}", STAY, [new(spec, "a1")])
    for kind in ("merged", "fused"):
        with pytest.raises(InputError, match=r"'a1'.*--as peft"):
            export([folder], kind, tmp_path / "out")


def test_peft_of_what_plain_peft_cannot_combine_opens_with_clinstack(saved: Saved, tmp_path: Path) -> None:
    folder = saved("mixed", STAY, [new("lora", "a1"), new("prefix", "b1")])
    done = export([folder], "peft", tmp_path / "out")
    assert done.largest.opened_with == "clinstack, Stack.load"
    assert "With clinstack, for plain PEFT does not combine" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="no place for a head"):
        export([folder], "clinical-merged", tmp_path / "two")


# ---------------------------------------------------------------------- refusals, failures, kills


@pytest.mark.parametrize("kind", ["fused", "peft", "clinical-merged"])
def test_a_head_alone_is_merged_only(saved: Saved, tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="no adapter"):
        export([saved("head")], kind, tmp_path / "out")


def test_one_level_has_nothing_to_fold_in(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to fold in beneath it"):
        export([saved("lora")], "clinical-merged", tmp_path / "out")


def test_other_folders_are_left_alone(saved: Saved, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not written by `clinstack export`"):
        export([saved("lora")], "merged", out)
    with pytest.raises(InputError, match="is a file"):
        export([saved("lora")], "merged", out / "thesis.txt")
    export([saved("lora")], "peft", tmp_path / "peft")  # a Stack too
    with pytest.raises(InputError, match="holds the stack"):
        export([tmp_path / "peft"], "merged", tmp_path / "peft")
    with pytest.raises(InputError, match="--as onnx: there are merged, fused"):
        export([saved("lora")], "onnx", tmp_path / "new")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let merging go wrong in one number, as a library's silent fault would."""
    unload = merged_module.unload

    def broken(stack: Stack) -> Any:
        network = unload(stack)
        with torch.no_grad():
            network.get_input_embeddings().weight[:, 0] += 0.01
        return network

    monkeypatch.setattr(merged_module, "unload", broken)


def test_an_export_with_other_outputs_is_not_kept(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "out"
    wrong(monkeypatch)
    with pytest.raises(ExportError, match=r"gives other outputs than the stack .*allowed 0\.0001.*Nothing was written"):
        export([saved("lora")], "merged", out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export([saved("lora")], "merged", out)
    before = {path.name: sha256_file(path) for path in out.iterdir()}
    wrong(monkeypatch)
    with pytest.raises(ExportError):
        export([saved("clinical-frozen+lora")], "merged", out)
    assert {path.name: sha256_file(path) for path in out.iterdir()} == before
    monkeypatch.undo()
    export([saved("clinical-frozen+lora")], "merged", out)
    assert {path.name: sha256_file(path) for path in out.iterdir()} != before


def test_a_rounded_export_that_was_wrong_before_is_not_kept(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fault is smaller than what rounding may change."""
    wrong(monkeypatch)
    with pytest.raises(ExportError, match="before its weights are rounded"):
        export([saved("clinical-frozen+lora", dtype="bfloat16")], "merged", tmp_path / "out")


@pytest.mark.parametrize("kind", ["merged", "clinical-merged", *slow("fused", "peft")])
def test_killed_in_the_middle_leaves_nothing(saved: Saved, tmp_path: Path, kind: str) -> None:
    folder, out = saved("clinical-frozen+lora"), tmp_path / "out"

    def killed() -> None:
        import clinstack.export.export as module

        def die(*_: Any) -> str:
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

        module.readme = die  # when all weights are there
        export([folder], kind, out)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / ".out.partial").exists()
    export([folder], kind, out)
    assert (out / "export.json").is_file()
    assert not (tmp_path / ".out.partial").exists()


def test_what_was_exported_names_no_path_of_this_machine(saved: Saved, tmp_path: Path, tiny_base: Path) -> None:
    export([saved("clinical-frozen+lora")], "merged", tmp_path / "out")
    for file in ("README.md", "export.json", "config.json", "tokenizer_config.json"):
        text = (tmp_path / "out" / file).read_text(encoding="utf-8")
        assert str(tiny_base) not in text
        assert str(tmp_path) not in text


def test_readme_says_how_notes_were_read(saved: Saved, tmp_path: Path) -> None:
    export([saved("lora")], "merged", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "At most 48 tokens" in text
    assert "it was trained to read: its end." in text
    assert "this text was written: ' END'" in text
    assert "0: alive, 1: dead" in text
    assert "not a medical device" in text


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    from clinstack.cli import app

    def run(*words: Any) -> str:
        app([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr().out

    return run  # type: ignore[return-value]


def test_the_command(saved: Saved, tmp_path: Path, command: Callable[..., str]) -> None:
    folder = saved("clinical-frozen+lora")
    text = command("export", folder, "--as", "fused", "--out", tmp_path / "out")
    assert "largest difference from the stack" in text
    last = command("export", folder, "--as", "merged", "--out", tmp_path / "two", "--json").splitlines()[-1]
    found = json.loads(last)
    assert found["kind"] == "merged"
    assert found["check"]["."]["largest_difference"] <= 1e-4
    with pytest.raises(InputError, match="--force: belongs to --push"):
        command("export", folder, "--as", "merged", "--out", tmp_path / "three", "--force")


def test_the_base_may_have_moved(saved: Saved, tmp_path: Path, tiny_base: Path) -> None:
    done: Exported = export([saved("lora")], "fused", tmp_path / "out", base=str(tiny_base))
    assert read_json(done.folder / "adapter_config.json")["base_model_name_or_path"] == str(tiny_base)
    assert find_base(str(tiny_base)).fingerprint == read_json(done.folder / "export.json")["base"]["fingerprint"]
