"""What `clinstack estimate` says of parameters and memory, against the paper, the real code and real training."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from clinstack.cli import app
from clinstack.errors import InputError
from clinstack.estimate.activations import Workload, trace
from clinstack.estimate.architectures import find_architecture
from clinstack.estimate.attention import AttentionSetting
from clinstack.estimate.devices import DEVICES, find_device
from clinstack.estimate.known import KNOWN
from clinstack.estimate.memory import Estimator, resized, rule_of_thumb, with_settings
from clinstack.estimate.parameters import build_dry_stack, count, planned_adapter
from clinstack.estimate.quantized import quantized_bytes
from clinstack.estimate.report import Estimate
from clinstack.model.pooling import HeadInput
from clinstack.model.support import check_support
from clinstack.recipe import FinetuneRecipe, PretrainRecipe, load_recipe
from clinstack.study.published import TABLE2, PublishedRow

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear", "rank": 3},
    "dora": {},
    "rslora": {"target_modules": ["embed_tokens", "q_proj"]},
    "adalora": {},
    "adaption_prompt": {"adapter_layers": 2},
    "prefix": {},
    "prefix projected": {"projection": True, "encoder_hidden": 8},
    "prompt": {"initial_text": "Finish this clinical note: "},
    "p_tuning": {"encoder_hidden": 8},
    "p_tuning lstm": {"encoder": "lstm", "encoder_hidden": 8},
    "full": {},
}
GIB = 2**30
SLOW = pytest.mark.slow


def pretrain(base: Path | str, adapter: dict[str, Any] | None = None, **changes: Any) -> PretrainRecipe:
    values = {"base": str(base), "run": "run", "notes": "notes", "context": 64, **changes}
    values.setdefault("adapters", [{"name": "clinical", **(adapter or {})}])
    return PretrainRecipe.model_validate(values)


def trainable(recipe: Any) -> int:
    stack = build_dry_stack(recipe, find_architecture(recipe.base), 2 if recipe.stage == "finetune" else None)
    return count(list(stack.trainable_parameters().values()))


def estimator(recipe: Any, device: str = "cuda", *, has_flash: bool = True) -> Estimator:
    return Estimator(recipe, find_architecture(recipe.base), device, has_flash=has_flash)


def answer(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["estimate", *words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    values: dict[str, Any] = json.loads(line)
    return values


# ---------------------------------------------------------------------- architectures


@pytest.mark.parametrize("known", {id(k.values): k for k in KNOWN.values()}.values(), ids=lambda known: known.source)
def test_known_architectures_have_the_published_parameters(known: Any) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    name = next(name for name, other in KNOWN.items() if other is known)
    layers = known.values["num_hidden_layers"]
    counts = []
    for depth in (2, 3):  # layers are alike from the second on, and a whole network takes a second
        config = find_architecture(name).config()
        HeadInput(layer=depth).keep_layers(name, config)
        kind: Any = AutoModel if config.model_type in ("bert", "modernbert") else AutoModelForCausalLM
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in kind.from_config(config).parameters()))
    assert counts[0] + (layers - 2) * (counts[1] - counts[0]) == known.parameters


def test_a_folder_comes_before_the_table(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "microsoft").mkdir()
    shutil.copytree(tiny_base, tmp_path / "microsoft" / "phi-2", ignore=shutil.ignore_patterns("*.safetensors"))
    assert find_architecture("microsoft/phi-2").config().model_type == "llama"


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("microsoft/phi-9", "offline"),
        ("no-such-name", "neither a folder nor a hub id"),
        ("./nowhere", "neither a folder nor a hub id"),
    ],
)
def test_a_base_that_nobody_here_knows_is_refused(base: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        find_architecture(base)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize("row", TABLE2, ids=lambda row: f"{row.base}-{row.method}")
def test_the_presets_have_the_papers_trainable_parameters(row: PublishedRow) -> None:
    half = {"LLaMA": "llama", "PMC-LLaMA": "pmc-llama"}[row.base]
    recipe = load_recipe(Path(f"gema2023/pretrain/{half}/{row.method}"))
    assert trainable(recipe) == row.trainable_parameters


def test_the_command_prints_the_papers_figure() -> None:
    values = answer("gema2023/pretrain/llama/lora", "--device", "A100 80GB", "--batch", "1")
    assert values["trainable_parameters"] == 8_388_608
    assert values["parameters"] == 6_738_415_616
    assert values["memory"]["weights"] >= 2 * 6_738_415_616
    assert values["devices"][0]["fits"]


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_the_check_before_training(tiny_base: Path, name: str) -> None:
    adapter = {"method": name.split()[0], **METHODS[name]}
    assert trainable(pretrain(tiny_base, adapter)) == check_support(pretrain(tiny_base, adapter)).trainable
    values = {"base": str(tiny_base), "run": "run", "examples": "x/mortality", "max_tokens": 64}
    recipe = FinetuneRecipe.model_validate({**values, "adapters": [{"name": "task", **adapter}]})
    assert trainable(recipe) == check_support(recipe, 2).trainable


def formula(method: str, values: dict[str, Any], hidden: int, layers: int, inner: int) -> int:
    """Count by each method's paper, for a Llama without grouped heads."""
    sizes = {"q_proj": (hidden, hidden), "v_proj": (hidden, hidden), "down_proj": (inner, hidden)}
    shapes = [sizes[target] for target in values.get("target_modules", ("q_proj", "v_proj"))]
    rank = values.get("rank", 16)
    tokens = values.get("virtual_tokens", 20)
    match method:
        case "lora" | "rslora":
            return layers * sum(rank * (a + b) for a, b in shapes)
        case "dora":  # a magnitude for each output
            return layers * sum(rank * (a + b) + b for a, b in shapes)
        case "adalora":  # a singular value for each rank
            return layers * sum(values["initial_rank"] * (a + b + 1) for a, b in shapes)
        case "adaption_prompt":  # a prompt and its gate
            return int(values["adapter_layers"] * (values["adapter_length"] * hidden + 1))
        case "prefix":
            return tokens * layers * 2 * hidden
        case "prompt":
            return tokens * hidden
        case "p_tuning":
            width = values["encoder_hidden"]
            mlp = (hidden * width + width) + (width * width + width) + (width * hidden + hidden)
            return tokens * hidden + int(mlp)
    raise AssertionError(method)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("lora", {"rank": 8, "target_modules": ["q_proj", "down_proj"]}),
        ("rslora", {"rank": 4}),
        ("dora", {"rank": 4, "target_modules": ["q_proj", "down_proj"]}),
        ("adalora", {"initial_rank": 12}),
        ("adaption_prompt", {"adapter_layers": 30, "adapter_length": 10}),
        ("prefix", {"virtual_tokens": 20}),
        ("prompt", {"virtual_tokens": 15}),
        ("p_tuning", {"virtual_tokens": 1, "encoder_hidden": 256}),
    ],
)
def test_counts_are_those_of_the_methods_formulas(method: str, values: dict[str, Any]) -> None:
    recipe = pretrain("huggyllama/llama-7b", {"method": method, **values})
    assert trainable(recipe) == formula(method, values, hidden=4096, layers=32, inner=11008)


def test_a_run_that_is_not_there_yet_is_counted_as_its_preset_makes_it() -> None:
    recipe: Any = load_recipe(Path("asclepius/llama3-8b"))
    assert not Path(recipe.adapters[0].path).exists()
    assert planned_adapter(recipe.adapters[0].path)[0] == "asclepius/llama3-8b-pretrain"  # type: ignore[index]
    assert trainable(recipe) == trainable(load_recipe(Path("asclepius/llama3-8b-pretrain")))


# ---------------------------------------------------------------------- memory


def test_activations_of_a_llama_are_those_of_the_formula() -> None:
    """Per layer and token, float32, nothing but the head's input kept twice: what a frozen Llama keeps for a LoRA."""
    base = "meta-llama/Llama-2-7b-hf"
    adapter = {"method": "lora", "target_modules": ["q_proj", "v_proj"], "rank": 16}
    recipe = pretrain(base, adapter, context=256, training={"batch_size": 2})
    architecture = find_architecture(base)
    kept = []
    for depth in (2, 3):
        stack = build_dry_stack(recipe, architecture, None, depth=depth)
        kept.append(trace(stack, Workload(2, 256, recipe.training, AttentionSetting("cpu"))).kept)
    per_token = (kept[1] - kept[0]) / (2 * 256) / 4
    hidden, inner, heads, rank = 4096, 11008, 32, 16
    norms = 2 * (hidden + 1)  # each norm's input, and its inverse deviation
    attention = 4 * hidden + heads  # rotated q and k, v, the output; the logarithms of the sums
    low_rank = hidden + 2 * rank  # A's input once for both, its two outputs
    feed_forward = 3 * inner  # gate before and after the activation, up; their product has a frozen layer behind it
    assert per_token == pytest.approx(norms + attention + low_rank + feed_forward, rel=0.02)


def test_checkpointing_keeps_one_hidden_state_a_layer() -> None:
    recipe = pretrain("meta-llama/Llama-2-7b-hf", context=512, dtype="bfloat16", training={"batch_size": 2})
    plain = estimator(recipe).memory().trace
    again = estimator(with_settings(recipe, checkpointing=True)).memory().trace
    hidden_states = 32 * 2 * 512 * 4096 * 2
    assert again.kept == pytest.approx(hidden_states, rel=0.15)
    assert plain.kept > 10 * again.kept


@pytest.mark.parametrize(
    "method", ["prefix", *(pytest.param(m, marks=SLOW) for m in ("lora", "adaption_prompt", "full"))]
)
def test_a_few_layers_tell_of_all(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"adapter_layers": 20} if method == "adaption_prompt" else {}
    recipe = pretrain("Qwen/Qwen2.5-0.5B", {"method": method, **more}, context=64, training={"batch_size": 2})
    if method == "adaption_prompt":
        recipe = recipe.model_copy(update={"base": "huggyllama/llama-7b"})
    few = estimator(recipe).memory().trace
    monkeypatch.setattr("clinstack.estimate.memory._few_layers", lambda *_: None)
    assert few == estimator(recipe).memory().trace


def test_full_fine_tuning_takes_sixteen_bytes_a_parameter() -> None:
    recipe = pretrain("meta-llama/Llama-3.2-1B", {"method": "full"}, context=32, training={"batch_size": 1})
    memory = estimator(recipe).memory()
    parameters = 1_235_814_400
    assert memory.weights.base == pytest.approx(4 * parameters, rel=1e-4)
    assert (memory.trace.gradients, memory.trace.optimizer) == (4 * parameters, pytest.approx(8 * parameters, rel=1e-4))
    assert memory.peak >= 16 * parameters


def test_four_bits_are_a_little_more_than_four_bits() -> None:
    """QLoRA, section 3: with double quantisation 0.127 bits a number for the scales."""
    numbers, scales = quantized_bytes(torch.Size([4096, 4096]), "4bit")
    assert numbers == 4096 * 4096 // 2
    assert 8 * scales / 4096**2 == pytest.approx(0.127, abs=0.001)
    recipe = pretrain("meta-llama/Llama-2-7b-hf", dtype="bfloat16", quantize="4bit")
    weights = estimator(recipe).weights
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    kept = 6_738_415_616 - linear
    assert weights.base == pytest.approx(linear / 2 + 2 * kept, rel=1e-3)


def test_logits_are_made_in_parts() -> None:
    recipe = pretrain("meta-llama/Llama-3.2-1B", dtype="bfloat16", context=1024, training={"batch_size": 8})
    answers = estimator(recipe)
    parts, whole = answers.memory(), answers.memory(full_logits=True)
    logits = 8 * 1024 * 128_256
    # In float32, and their logarithms of probabilities; the bfloat16 ones they are from are gone by then.
    assert whole.trace.parts["loss"]["logits"] == pytest.approx((4 + 4) * logits, rel=0.01)
    assert parts.trace.parts["loss"]["logits"] < logits
    assert whole.peak > parts.peak


def test_rows_between_and_beyond_what_is_traced_lie_on_a_line() -> None:
    recipe = pretrain("meta-llama/Llama-3.2-1B", dtype="float16", context=256, training={"batch_size": 8})
    line = estimator(recipe)
    for rows in (4, 40):
        exact = estimator(resized(recipe, rows, None)).memory().peak
        assert line.memory(rows).peak == pytest.approx(exact, rel=0.02)
    most = line.largest_batch(16 * GIB)
    assert line.memory(most).peak <= 16 * GIB < line.memory(most + 1).peak


def test_the_parts_add_up_to_the_peak() -> None:
    values = answer("demo/pretrain", "--device", "A100 40GB", "--batch", "2", "--length", "256")
    memory = values["memory"]
    fixed = memory["weights"] + memory["quantization"] + memory["adapters"]
    assert fixed + sum(memory["at_the_peak"].values()) == memory["peak"]
    assert (values["batch"], values["length"]) == (2, 256)
    assert memory["activations"] > memory["activations_checkpointed"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "dtype", "words"),
    [("google/gemma-2-2b", "bfloat16", {}), ("answerdotai/ModernBERT-base", "float32", {"task": True})],
)
def test_other_families_are_estimated_too(base: str, dtype: str, words: dict[str, Any]) -> None:
    if words:
        values = {"base": base, "run": "run", "examples": "x/length_of_stay", "max_tokens": 256, "dtype": dtype}
        recipe: Any = FinetuneRecipe.model_validate({**values, "adapters": [{"name": "task"}]})
        assert estimator(recipe).classes == 4
    else:
        recipe = pretrain(base, dtype=dtype, context=128, training={"batch_size": 2})
    for device in ("cpu", "cuda"):
        memory = estimator(recipe, device).memory()
        assert memory.trace.peak > memory.trace.kept > 0


def test_a_frozen_backbone_keeps_nothing() -> None:
    values = {"base": "google-bert/bert-base-uncased", "run": "run", "examples": "x/mortality", "max_tokens": 128}
    head: Any = FinetuneRecipe.model_validate(values)
    whole: Any = FinetuneRecipe.model_validate({**values, "adapters": [{"name": "task", "method": "full"}]})
    assert trainable(head) == 2 * 768 + 2
    assert trainable(whole) == 109_482_240 + 2 * 768 + 2
    assert estimator(head).memory().trace.kept < estimator(whole).memory().trace.kept / 100


# ---------------------------------------------------------------------- the course


def test_the_courses_arithmetic() -> None:
    """phi-2, "2.7 billion parameters", at 6 GB a billion: 16.2 GB, which a T4 of 16 GB (about 15 usable) has not."""
    low, high = rule_of_thumb(2_700_000_000)
    assert (low, high) == (pytest.approx(16.2), pytest.approx(43.2))
    t4 = find_device("t4")
    assert low > 16 > t4.capacity == pytest.approx(15, abs=0.5)


def test_phi2_in_whole_does_not_fit_a_t4_and_with_qlora_does() -> None:
    recipe: Any = load_recipe(Path("phi2-t4"))
    t4 = find_device("T4")
    assert estimator(recipe, has_flash=t4.has_flash).memory().peak < 0.3 * t4.room
    whole = pretrain("microsoft/phi-2", {"method": "full"}, dtype="float16", context=512, training={"batch_size": 1})
    assert estimator(whole, has_flash=False).memory().peak > 2 * t4.room
    # The weights in float32 and a float16 copy of them: the rule's lower bound, with nothing trained yet.
    assert t4.capacity * GIB < 6 * 2_779_683_840


@pytest.mark.slow
def test_what_does_not_fit_comes_with_advice() -> None:
    recipe = pretrain(
        "meta-llama/Llama-2-7b-hf", dtype="bfloat16", context=2048, training={"batch_size": 4, "accumulate": 2}
    )
    estimate = Estimate(recipe, [find_device("L4"), find_device("T4"), find_device("H200")])
    advice = estimate.advice()
    again = "training.gradient_checkpointing=true makes batches of 4 fit."
    assert f"L4 24GB: {again}" in advice
    assert f"T4 16GB: quantize=4bit {again}" in advice
    assert not any(line.startswith("H200") for line in advice)
    assert any("no bfloat16" in note for note in estimate.notes())
    for given in estimate.answers:
        assert (given.largest["4bit, checkpointing"] or 0) >= (given.largest["4bit"] or 0)


def test_cards_are_found_by_the_beginning_of_their_name() -> None:
    assert [find_device(name).name for name in ("t4", "3090", "h200")] == ["T4 16GB", "RTX 3090 24GB", "H200 141GB"]
    with pytest.raises(InputError, match="A100 40GB or A100 80GB"):
        find_device("a100")
    with pytest.raises(InputError, match="no such card"):
        find_device("tpu")
    assert all(device.room < device.capacity * GIB for device in DEVICES)


# ---------------------------------------------------------------------- the command


def test_the_tables_are_printed(tiny_base: Path) -> None:
    words = ["estimate", f"base={tiny_base}", "stage=pretrain", "run=r", "notes=n", "adapters=[{name: clinical}]"]
    result = CliRunner().invoke(app, [*words, "context=64", "--device", "T4"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "the largest batch that fits" in result.stdout
    assert "full logits" in result.stdout


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="estimate: knows recipes for pretrain"):
        CliRunner().invoke(app, ["estimate", "demo/sweep"], catch_exceptions=False)


# ---------------------------------------------------------------------- reality


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_holds_what_was_predicted(tmp_path: Path, method: str) -> None:
    """PyTorch's own allocator, by its profiler, while the real engine takes two steps; see benchmarks/memory.py."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import LlamaConfig, LlamaForCausalLM

    from clinstack.engine import next_token
    from clinstack.engine.checkpoint import TrainingState
    from clinstack.engine.losses import causal_loss
    from clinstack.engine.optimizer import build_optimizer
    from clinstack.engine.step import compute_gradients
    from clinstack.model.stack import Stack
    from clinstack.tokens.pack import PackedBatch

    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=344, num_hidden_layers=3, num_attention_heads=4
    )
    config.tie_word_embeddings = False
    shutil.copytree(
        find_tokenizer(),
        tmp_path / "base",
        ignore=shutil.ignore_patterns("*.safetensors", "config.json", "clinstack-manifest.json"),
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    recipe = pretrain(tmp_path / "base", {"method": method}, context=256, training={"batch_size": 4})
    stack = Stack.build(recipe.base, recipe.adapters)
    next_token._kept.clear()
    gc.collect()

    class Rows:
        unit = "tokens"

        def loss(self, batch: Any) -> tuple[Tensor, float]:
            ids = torch.randint(3, 300, (4, 256))
            positions = torch.arange(256).expand(4, -1).contiguous()
            packed = PackedBatch(ids, positions, ids, ids * 0, 1024, (256,) * 4)
            return causal_loss(stack, packed), 1024.0

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer = build_optimizer(stack, recipe.training)
        parameters = stack.trainable_parameters()
        state = TrainingState()
        objective: Any = Rows()
        for _ in range(2):
            compute_gradients(stack, state, recipe.training, objective, [range(4)], parameters)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    now = peak = 0
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    next_token._kept.clear()
    assert estimator(recipe, "cpu").memory().trace.peak == pytest.approx(peak, rel=0.1)


def find_tokenizer() -> Path:
    from clinstack.model.base import EMBEDDED_FOLDER

    return EMBEDDED_FOLDER
