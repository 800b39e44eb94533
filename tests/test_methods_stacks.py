"""Adapters of different methods in one stack, AdaLoRA's budget, quantised bases, and what is refused and why."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from clinstack.errors import InputError
from clinstack.model.checks import StackError, check_stack, effects, probe_output
from clinstack.model.lineage import HEAD_KEY, WEIGHTS_FILE
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, FinetuneRecipe, dump_recipe, load_recipe, stack_label
from clinstack.recipe.adapters import METHOD_KEYS, METHODS
from clinstack.tasks import Task
from methods import NAMES, SPECS, VIRTUAL, new

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Perturbed = Callable[..., Stack]
TASK = new("lora", "task", rank=2, target_modules="all-linear")
TOKENS = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(5))


def classifier(base: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype="float32")


def read(folder: Path, name: str = "clinical", **values: Any) -> AdapterRecipe:
    return AdapterRecipe(name=name, path=str(folder), **values)


# ---------------------------------------------------------------------- several methods in one stack


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("spec", NAMES)
def test_a_task_lora_and_a_head_stand_on_any_clinical_adapter(
    tiny_base: Path,
    trained: Callable[[str], Path],
    mortality: Task,
    perturbed: Perturbed,
    tmp_path: Path,
    spec: str,
    trainable: bool,
) -> None:
    clinical = read(trained(spec), trainable=trainable)
    stack = perturbed(Stack.build(str(tiny_base), [clinical, TASK], mortality))
    assert stack_label([clinical, TASK]) == f"clinical-{'trainable' if trainable else 'frozen'}+lora"
    check_stack(stack)
    own = set(stack.placed("clinical").parameter_names())
    assert own
    assert own.isdisjoint(stack.placed("task").parameter_names())
    assert (
        (own & set(stack.trainable_parameters()) == own) if trainable else own.isdisjoint(stack.trainable_parameters())
    )
    outputs = [probe_output(stack)]
    for names in (("clinical",), ("task",), ()):
        with stack.switched_off(*names):
            outputs.append(probe_output(stack))
    for index, one in enumerate(outputs):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in outputs[index + 1 :])
    bare = Stack.build(str(tiny_base), [], mortality)
    with torch.no_grad():
        bare.head.weight.copy_(stack.head.weight)
    assert torch.equal(outputs[3], probe_output(bare))
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert torch.equal(probe_output(loaded), outputs[0])
    assert set(loaded.trainable_parameters()) == set(stack.trainable_parameters())
    with pytest.raises(InputError, match=r"on top of clinical; here 0 adapters lie beneath"):
        Stack.build(str(tiny_base), [read(tmp_path / "stack" / "task", "task")], mortality)
    again = Stack.build(
        str(tiny_base),
        [read(tmp_path / "stack" / "clinical"), read(tmp_path / "stack" / "task", "task")],
        mortality,
    )
    with again.switched_off("task"), stack.switched_off("task"):
        assert torch.allclose(again.hidden_states(TOKENS), stack.hidden_states(TOKENS), atol=1e-5)
    assert torch.allclose(again.hidden_states(TOKENS), stack.hidden_states(TOKENS), atol=1e-5)


@pytest.mark.parametrize("spec", [*VIRTUAL, "full"])
def test_the_combination_computes_what_plain_peft_would_in_two_models(
    tiny_base: Path, trained: Callable[[str], Path], mortality: Task, perturbed: Perturbed, tmp_path: Path, spec: str
) -> None:
    """PEFT combines no two methods in one model; but its LoRA changes a network in place, which it can wrap again."""
    stack = perturbed(Stack.build(str(tiny_base), [read(trained(spec)), TASK], mortality))
    stack.eval()
    stack.save(tmp_path / "stack")
    network = classifier(tmp_path / "stack" / "clinical" if spec == "full" else tiny_base)
    config = PeftConfig.from_pretrained(str(tmp_path / "stack" / "task"))
    network.score.weight.data = load_file(tmp_path / "stack" / "task" / WEIGHTS_FILE)[HEAD_KEY]
    config.task_type = config.modules_to_save = None  # type: ignore[attr-defined]
    plain: Any = PeftModel.from_pretrained(network, str(tmp_path / "stack" / "task"), config=config)
    if spec != "full":
        config = PeftConfig.from_pretrained(str(tmp_path / "stack" / "clinical"))
        config.task_type = "FEATURE_EXTRACTION"  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = PeftModel.from_pretrained(network, str(tmp_path / "stack" / "clinical"), config=config)
    network.config.pad_token_id = 0
    plain.eval()
    with torch.no_grad():
        mask = torch.ones_like(TOKENS)
        assert torch.allclose(
            plain(input_ids=TOKENS, attention_mask=mask).logits, stack.logits(TOKENS, mask), atol=1e-5
        )
    card = (tmp_path / "stack" / "task" / "README.md").read_text()
    assert ("Plain PEFT does not combine these methods" in card) == (spec != "full")


@pytest.mark.parametrize("lower", ["lora", "dora", "adalora", "adaption_prompt", "prompt"])
@pytest.mark.parametrize("upper", ["lora", "dora", "rslora", "adalora", "adaption_prompt", "prefix"])
def test_two_levels_in_any_order_save_and_load(
    tiny_base: Path, perturbed: Perturbed, tmp_path: Path, lower: str, upper: str
) -> None:
    spec = [new(lower), new(upper, "ward")]
    if (lower == upper == "adaption_prompt") or (lower == "prompt" and upper == "prefix"):
        with pytest.raises(InputError, match=r"adapters\.ward: a stack has at most one"):
            Stack.build(str(tiny_base), spec)
        return
    stack = perturbed(Stack.build(str(tiny_base), spec))
    assert all(effect > 1e-4 for effect in effects(stack).values())
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert torch.equal(probe_output(loaded), probe_output(stack))
    # Each folder is named as plain PEFT names it, whatever is wrapped around its layers here.
    alone = perturbed(Stack.build(str(tiny_base), [new(upper, "ward")]))
    assert load_file(tmp_path / "stack" / "ward" / WEIGHTS_FILE).keys() == alone.adapter_tensors("ward").keys()


def test_what_cannot_stand_together_is_refused_with_the_reason(tiny_base: Path, mortality: Task) -> None:
    with pytest.raises(InputError, match=r"adapters\.task: full trains the base's own weights, so it is the first"):
        Stack.build(str(tiny_base), [new("lora"), new("full", "task")], mortality)
    with pytest.raises(InputError, match=r"adapters\.task: full .* and only once; here 'clinical' lies beneath"):
        Stack.build(str(tiny_base), [new("full"), new("full", "task")], mortality)
    with pytest.raises(InputError, match=r"adapters\.task\.dropout: above 'clinical' a dora with dropout would train"):
        Stack.build(str(tiny_base), [new("lora"), new("dora", "task", dropout=0.1)], mortality)
    Stack.build(str(tiny_base), [new("dora", "task", dropout=0.1)], mortality)


# ---------------------------------------------------------------------- full fine-tuning


def test_a_fully_trained_base_is_a_base_again(
    tiny_base: Path, trained: Callable[[str], Path], mortality: Task, perturbed: Perturbed, tmp_path: Path
) -> None:
    folder = trained("full") / "clinical"
    as_adapter, as_base = Stack.load(trained("full")), Stack.build(str(folder))
    assert torch.equal(probe_output(as_adapter), probe_output(as_base))
    assert as_base.tokenizer.get_vocab() == as_adapter.tokenizer.get_vocab()
    assert as_base.base.fingerprint != as_adapter.base.fingerprint
    # A classifier's folder is a model with a head; below another head, or as a language model, its layers are read.
    perturbed(Stack.build(str(tiny_base), [new("full", "task")], mortality)).save(tmp_path / "stack")
    stack = Stack.build(str(tiny_base), [read(tmp_path / "stack", "task")])
    assert torch.equal(stack.hidden_states(TOKENS), Stack.load(tmp_path / "stack").hidden_states(TOKENS))
    loaded = classifier(tmp_path / "stack" / "task")
    assert torch.equal(
        loaded.score.weight, load_file(tmp_path / "stack" / "task" / "model.safetensors")["score.weight"]
    )


def test_a_fully_trained_base_with_shared_weights_trains_them_once(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "tied")
    stack = Stack.build(str(tmp_path / "tied"), [new("full")])
    assert "lm_head.weight" not in stack.trainable_parameters()
    assert "lm_head.weight" not in stack.frozen_tensors()
    with torch.no_grad():
        stack.network.get_input_embeddings().weight.add_(0.1)
    assert torch.equal(stack.network.lm_head.weight, stack.network.get_input_embeddings().weight)
    stack.save(tmp_path / "stack")
    assert "lm_head.weight" not in load_file(tmp_path / "stack" / "clinical" / "model.safetensors")
    assert torch.equal(probe_output(Stack.load(tmp_path / "stack")), probe_output(stack))


# ---------------------------------------------------------------------- AdaLoRA


def adalora_steps(stack: Stack, steps: range, state: dict[str, Tensor] | None = None, total: int = 12) -> list[Any]:
    """Train with plain gradient descent, which has no state of its own; return the singular values of each step."""
    stack.begin_training(total)
    if state is not None:
        stack.load_method_state(state)
    seen = []
    for step in steps:
        stack.network.zero_grad()
        hidden = stack.hidden_states(TOKENS)
        penalty = stack.penalty()
        assert penalty is not None
        (stack.network.get_output_embeddings()(hidden).square().mean() + penalty).backward()
        with torch.no_grad():
            for parameter in stack.trainable_parameters().values():
                parameter -= 0.05 * parameter.grad  # type: ignore[operator]
        stack.after_step(step)
        parameters = stack.trainable_parameters().items()
        seen.append({name: tensor.detach().clone() for name, tensor in parameters if ".lora_E." in name})
    return seen


def test_adalora_allocates_as_peft_does(tiny_base: Path, perturbed: Perturbed) -> None:
    values = {"warmup_steps": 2, "final_steps": 3, "allocate_every": 2}
    stack = perturbed(Stack.build(str(tiny_base), [new("adalora", **values)]))
    config = AdaLoraConfig(
        target_r=2, init_r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], tinit=2, tfinal=3, deltaT=2,
        total_step=12, task_type="CAUSAL_LM",  # without it PEFT leaves the penalty out
    )  # fmt: skip
    plain: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base, dtype="float32"), config)
    own = dict(stack.network.named_parameters())
    theirs = {
        name.removeprefix("base_model.model.").replace(".default", ".clinical"): parameter
        for name, parameter in plain.named_parameters()
        if ".lora_" in name
    }
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(own[name])
    seen = adalora_steps(stack, range(1, 13))
    for step in range(1, 13):
        plain.zero_grad()
        output = plain(input_ids=TOKENS, labels=TOKENS)
        (output.loss - plain.base_model.model.loss_function(output.logits, TOKENS, vocab_size=300)
         + output.logits.square().mean()).backward()  # fmt: skip
        with torch.no_grad():
            for parameter in theirs.values():
                parameter -= 0.05 * parameter.grad
        plain.base_model.update_and_allocate(step)
        for name, values_now in seen[step - 1].items():
            assert torch.allclose(values_now, theirs[name], atol=1e-5), (step, name)
    kept = sum(int((tensor != 0).sum()) for tensor in seen[-1].values())
    assert kept == 2 * len(seen[-1]) < 4 * len(seen[-1])
    assert all(bool((tensor != 0).all()) for tensor in seen[1].values()), "nothing is taken during warm-up"


@pytest.mark.parametrize("broken_at", [1, 5, 9, 11])
def test_adalora_goes_on_from_its_state_exactly(tiny_base: Path, perturbed: Perturbed, broken_at: int) -> None:
    spec = [new("adalora", warmup_steps=2, final_steps=3)]
    straight = perturbed(Stack.build(str(tiny_base), spec))
    wanted = adalora_steps(straight, range(1, 13))
    first = perturbed(Stack.build(str(tiny_base), spec))
    adalora_steps(first, range(1, broken_at + 1))
    state = {name: tensor.clone() for name, tensor in first.method_state().items()}
    second = Stack.build(str(tiny_base), spec)
    with torch.no_grad():
        for name, parameter in second.trainable_parameters().items():
            parameter.copy_(first.trainable_parameters()[name])
    seen = adalora_steps(second, range(broken_at + 1, 13), state)
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in wanted[-1].items())
    for name, parameter in straight.trainable_parameters().items():
        assert torch.equal(parameter, second.trainable_parameters()[name])
    for name, tensor in straight.method_state().items():
        assert torch.equal(tensor, second.method_state()[name])


def test_adalora_needs_room_for_its_schedule(tiny_base: Path) -> None:
    stack = Stack.build(str(tiny_base), [new("adalora", warmup_steps=5, final_steps=5)])
    with pytest.raises(InputError, match=r"adapters\.clinical: warmup_steps 5 and final_steps 5 leave none of the 10"):
        stack.begin_training(10)
    stack.begin_training(11)
    with pytest.raises(ValidationError, match="AdaLoRA begins with 4 and cannot grow to rank 8"):
        new("adalora", rank=8)
    equal = Stack.build(str(tiny_base), [new("adalora", rank=4)])
    assert adalora_steps(equal, range(1, 13))[-1]


def test_without_adalora_nothing_is_added_and_nothing_kept(tiny_base: Path, trained: Callable[[str], Path]) -> None:
    for spec in ([new("lora")], [read(trained("adalora"))], [new("adalora", orthogonal=0)]):
        stack = Stack.build(str(tiny_base), spec)
        stack.begin_training(5)
        assert stack.penalty() is None
        stack.train()
        if not stack.trainable_parameters() or spec[0].method == "lora":
            assert stack.method_state() == {}
            stack.after_step(1)


# ---------------------------------------------------------------------- quantised bases


QUICK = {("lora", "8bit"), ("lora", "4bit"), ("prompt", "4bit"), ("full", "4bit"), ("dora", "8bit")}


@pytest.mark.parametrize(
    ("spec", "quantize"),
    [
        pytest.param(spec, bits, marks=() if (spec, bits) in QUICK else pytest.mark.slow)
        for spec in NAMES
        for bits in ("8bit", "4bit")
    ],
)
def test_methods_on_a_quantised_base_train_save_and_load_or_are_refused(
    tiny_base: Path, perturbed: Perturbed, mortality: Task, tmp_path: Path, spec: str, quantize: str
) -> None:
    pytest.importorskip("bitsandbytes")
    build = lambda task: Stack.build(str(tiny_base), [new(spec)], task, dtype="bfloat16", quantize=quantize)  # noqa: E731
    if spec == "full":
        with pytest.raises(InputError, match=rf"adapters\.clinical: full .* those of a base in {quantize}"):
            build(None)
        return
    if (spec, quantize) == ("dora", "8bit"):
        with pytest.raises(InputError, match=r"adapters\.clinical: a dora reads the base's weights"):
            build(None)
        return
    for task in (None, mortality):
        stack = perturbed(build(task))
        check_stack(stack)
        frozen = {name: tensor.clone() for name, tensor in stack.frozen_tensors().items()}
        stack.train()
        stack.hidden_states(TOKENS, torch.ones_like(TOKENS)).float().square().mean().backward()
        moving = {name: tensor for name, tensor in stack.trainable_parameters().items() if name != "score.weight"}
        assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in moving.values())
        torch.optim.AdamW(moving.values(), lr=1e-2).step()
        assert all(torch.equal(tensor, frozen[name]) for name, tensor in stack.frozen_tensors().items())
        folder = tmp_path / str(task is None)
        stack.save(folder)
        loaded = Stack.load(folder)
        assert loaded.quantize == quantize
        assert loaded.summary() == stack.summary()
        assert torch.allclose(probe_output(loaded), probe_output(stack), atol=1e-2)
    whole = Stack.build(str(tiny_base), [new(spec)])
    assert build(None).summary()["parameters"] == whole.summary()["parameters"]
    assert Stack.load(tmp_path / "True", quantize="none").quantize == "none"


# ---------------------------------------------------------------------- what a recipe may say


@pytest.mark.parametrize("method", METHODS)
def test_each_method_knows_its_own_keys_only(method: str) -> None:
    defaults = AdapterRecipe(name="clinical", method=method)  # type: ignore[arg-type]
    everything = {key for keys in METHOD_KEYS.values() for key in keys}
    for key in sorted(everything):
        value = getattr(defaults, key)
        if key in METHOD_KEYS[method]:
            AdapterRecipe(name="clinical", method=method, **{key: value})  # type: ignore[arg-type]
            continue
        owners = ", ".join(other for other in METHODS if key in METHOD_KEYS[other])
        with pytest.raises(ValidationError, match=re.escape(f"{key}: the method {method} has no such key; {owners}")):
            AdapterRecipe(name="clinical", method=method, **{key: value})  # type: ignore[arg-type]
    assert set(defaults.model_dump()) == {"name", "path", "trainable", "method", *METHOD_KEYS[method]}


def test_defaults_are_the_papers() -> None:
    def values(method: str) -> dict[str, Any]:
        dumped = AdapterRecipe(name="x", method=method).model_dump()  # type: ignore[arg-type]
        return {key: dumped[key] for key in METHOD_KEYS[method]}

    assert values("lora")["rank"] == values("dora")["rank"] == 16
    assert values("lora")["alpha"] == 32
    wanted = {"rank": 8, "initial_rank": 12, "beta": 0.85, "orthogonal": 0.5}
    assert values("adalora") | wanted == values("adalora")
    assert values("prefix") == {"virtual_tokens": 20, "projection": False, "encoder_hidden": None}
    assert values("prompt") == {"virtual_tokens": 15, "initial_text": None}
    assert values("p_tuning")["virtual_tokens"] == 20
    assert values("p_tuning")["encoder"] == "mlp"
    assert values("adaption_prompt") == {"adapter_length": 10, "adapter_layers": 30}
    assert values("full") == {}


@pytest.mark.parametrize("spec", NAMES)
def test_a_written_recipe_reads_back_the_same(tmp_path: Path, spec: str) -> None:
    adapters = (read(tmp_path), new(spec, "task"))
    recipe = FinetuneRecipe(run="runs/x", examples="data/examples/mortality", adapters=adapters)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "lora", "target_modules": ["lm_head"]}, "the loss reads that layer's weights in chunks"),
        ({"method": "lora", "target_modules": ["c_attn"]}, "the base has no 'c_attn'; it has down_proj.*embed_tokens"),
        ({"method": "adalora", "target_modules": ["embed_tokens"]}, "AdaLoRA has no form for embeddings"),
        ({"method": "lora", "rank_pattern": {"k_proj": 2}}, "'k_proj' is the end of no layer's name .*q_proj, v_proj"),
        ({"method": "dora", "alpha_pattern": {"layers.7.q_proj": 2}}, "alpha_pattern: 'layers.7.q_proj' is the end of"),
        ({"method": "lora", "rank_pattern": {"(": 2}}, "is the end of no layer's name"),
        ({"method": "adaption_prompt"}, "adapter_layers: 30 are more than the base's 2 layers; use at most 2"),
    ],
)
def test_what_the_base_does_not_have_is_one_line(tiny_base: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"adapters\.clinical.*{message}") as caught:
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", **values)])
    assert "\n" not in str(caught.value)


def test_adaption_prompts_are_refused_where_peft_has_none(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "qwen")
    with pytest.raises(InputError, match="adaption_prompt exists for gpt2, llama, mistral; the base is a qwen2"):
        Stack.build(str(tmp_path / "qwen"), [new("adaption_prompt")])
    for spec in SPECS:
        if spec != "adaption_prompt":
            check_stack(Stack.build(str(tmp_path / "qwen"), [new(spec)]))


@pytest.mark.parametrize("spec", ["prompt", "prefix"])
def test_padding_does_not_push_virtual_tokens_out_of_a_window(tiny_base: Path, tmp_path: Path, spec: str) -> None:
    """Layers with a window count places, so that padding between virtual tokens and text would hide the former."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=12, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "mistral")
    stack = Stack.build(str(tmp_path / "mistral"), [new(spec)])
    stack.eval()
    row = torch.arange(3, 8)[None]
    with torch.no_grad():
        alone = stack.hidden_states(row)
        padding = torch.zeros(1, 30, dtype=torch.long)
        mask = torch.cat([padding, torch.ones_like(row)], 1)
        assert torch.allclose(stack.hidden_states(torch.cat([padding, row], 1), mask)[:, 30:], alone, atol=1e-5)
        with stack.switched_off():
            assert float((stack.hidden_states(row) - alone).abs().max()) > 1e-3


def test_patterns_and_embeddings_are_where_they_should_be(tiny_base: Path) -> None:
    stack = Stack.build(str(tiny_base), [new("lora-everywhere")])
    layers = stack.lora_layers()
    assert {name.rsplit(".", 1)[-1] for name in layers} == {"embed_tokens", "q_proj", "down_proj"}
    assert layers["model.layers.1.mlp.down_proj"].r == {"clinical": 2}
    assert layers["model.layers.0.self_attn.q_proj"].lora_alpha == {"clinical": 5}
    assert layers["model.layers.1.self_attn.q_proj"].lora_alpha == {"clinical": 32}
    assert layers["model.embed_tokens"].lora_embedding_A["clinical"].shape == (3, 300)


def test_a_forgotten_settle_is_caught_for_every_low_rank_method(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "settle", lambda stack: None)
    for spec in ("lora", "dora", "adalora"):
        with pytest.raises(StackError):
            Stack.build(str(tiny_base), [new("lora"), new(spec, "task")])
