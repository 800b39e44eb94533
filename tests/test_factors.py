"""Low-rank adapters as factors: folded into the base they give what the stack gives, for every method that is one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from clinstack.errors import InputError
from clinstack.model.base import find_base, load_network
from clinstack.model.factors import Factors, NotLowRankError, concatenated, factors_of, fold_into, read_adapters
from clinstack.model.lineage import WEIGHTS_FILE, read_adapter, read_stack_record
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from methods import new

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

TOKENS = torch.tensor([[1, 7, 50, 60, 80, 90, 2]])
EVERYWHERE = {
    "target_modules": ("q_proj", "v_proj", "down_proj"),
    "rank_pattern": {"down_proj": 2},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
}


def stack_factors(folder: Path) -> list[Factors]:
    record = read_stack_record(folder)
    sources = read_adapters(folder, record, find_base(record["base"]["id"]))
    return [factors_of(source, name) for name, source in sources.items()]


def causal_logits(stack: Stack) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = stack.network.get_output_embeddings()(stack.hidden_states(TOKENS))
    return logits


def folded_logits(folder: Path) -> Tensor:
    """Return the logits of the base with a stack's factors added to its weights."""
    base = find_base(read_stack_record(folder)["base"]["id"])
    network: Any = load_network(base, classes=None, dtype="float32", seed=0)
    fold_into(network, concatenated(*stack_factors(folder)))
    with torch.inference_mode():
        logits: Tensor = network(TOKENS).logits
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "rank": 4, "alpha": 8},
        {"method": "rslora", "rank": 4, "alpha": 8},
        {"method": "lora", "rank": 3, **EVERYWHERE},
        {"method": "rslora", "rank": 3, **EVERYWHERE},
        {"method": "adalora", "rank": 2, "initial_rank": 4, "alpha": 8},
        {"method": "lora", "rank": 2, "target_modules": "all-linear"},
    ],
    ids=["lora", "rslora", "lora-patterns", "rslora-patterns", "adalora", "all-linear"],
)
def test_folded_factors_are_the_adapter(
    tiny_base: Path, tmp_path: Path, perturbed: Callable[..., Stack], changes: dict[str, Any]
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", **changes)]))
    stack.save(tmp_path / "stack")
    expected = causal_logits(stack)
    torch.testing.assert_close(folded_logits(tmp_path / "stack"), expected, rtol=0, atol=2e-5)
    with stack.switched_off():
        assert float((causal_logits(stack) - expected).abs().max()) > 0.1


def test_adalora_keeps_the_ranks_in_use_only(tiny_base: Path, tmp_path: Path, perturbed: Callable[..., Stack]) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [new("adalora")]))
    with torch.no_grad():
        for name, parameter in stack.network.named_parameters():
            if ".lora_E." in name:
                parameter[1 if ".0." in name else 2 :] = 0
    stack.save(tmp_path / "stack")
    (factors,) = stack_factors(tmp_path / "stack")
    ranks = {name: len(first) for name, (first, _) in factors.layers.items()}
    assert ranks == {
        f"model.layers.{layer}.self_attn.{name}": rank
        for layer, rank in ((0, 1), (1, 2))
        for name in ("q_proj", "v_proj")
    }
    assert factors.rank == 2
    torch.testing.assert_close(folded_logits(tmp_path / "stack"), causal_logits(stack), rtol=0, atol=2e-5)


def test_adapters_above_one_another(tiny_base: Path, clinical: Path, tmp_path: Path, perturbed: Any) -> None:
    recipes = [AdapterRecipe(name="clinical", path=str(clinical)), new("rslora", "more"), new("adalora", "task")]
    stack = perturbed(Stack.build(str(tiny_base), recipes))
    stack.save(tmp_path / "stack")
    expected = causal_logits(stack)
    torch.testing.assert_close(folded_logits(tmp_path / "stack"), expected, rtol=0, atol=2e-5)
    parts = stack_factors(tmp_path / "stack")
    assert concatenated(*parts).rank == sum(part.rank for part in parts) == 12
    # What is taken away again leaves the stack without it.
    network: Any = load_network(find_base(str(tiny_base)), classes=None, dtype="float32", seed=0)
    fold_into(network, concatenated(*parts, parts[0].negated()))
    with torch.inference_mode(), stack.switched_off("clinical"):
        torch.testing.assert_close(network(TOKENS).logits, causal_logits(stack), rtol=0, atol=2e-5)


def test_transposed_weights(tiny_base: Path, tmp_path: Path, perturbed: Callable[..., Stack]) -> None:
    """GPT-2 keeps [in, out]: of its layers one is square, where a missing transpose would not show by its shape."""
    config = AutoConfig.for_model("gpt2", vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "gpt2")
    recipe = AdapterRecipe(name="clinical", rank=3, target_modules=("c_attn", "c_proj"))
    stack = perturbed(Stack.build(str(tmp_path / "gpt2"), [recipe]))
    stack.save(tmp_path / "stack")
    expected = causal_logits(stack)
    torch.testing.assert_close(folded_logits(tmp_path / "stack"), expected, rtol=0, atol=5e-5)
    with stack.switched_off():
        assert float((causal_logits(stack) - expected).abs().max()) > 0.01


@pytest.mark.parametrize("spec", ["dora", "prefix", "prompt", "p_tuning", "adaption_prompt", "full", "lora-everywhere"])
def test_refuses_what_is_no_product(trained: Callable[[str], Path], spec: str) -> None:
    expected = {"full": "full rank", "dora": "norm of the whole layer", "lora-everywhere": "embeddings"}
    with pytest.raises(NotLowRankError, match=expected.get(spec, r"changes? no layer's weights")):
        stack_factors(trained(spec))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_refuses_peft_variants(tiny_base: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a bias that it cannot merge
        peft_model: Any = get_peft_model(network, config)
        peft_model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(NotLowRankError, match=message):
        factors_of(read_adapter(tmp_path / "adapter", "adapters.0"), "adapters.0")


def test_refuses_a_missing_factor_and_other_shapes(clinical: Path, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(clinical / "clinical", tmp_path / "adapter")
    file = tmp_path / "adapter" / WEIGHTS_FILE
    tensors = load_file(file)
    gone = next(name for name in tensors if "layers.1.self_attn.q_proj.lora_B" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file)
    with pytest.raises(InputError, match=r"no lora_B for the layer model\.layers\.1\.self_attn\.q_proj"):
        factors_of(read_adapter(tmp_path / "adapter", "adapters.0"), "adapters.0")
    network = load_network(find_base(str(tiny_base)), classes=None, dtype="float32", seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    (factors,) = stack_factors(clinical)
    for layers, message in (
        ({"model.layers.7.self_attn.q_proj": (torch.ones(1, 32), torch.ones(32, 1))}, "no layer"),
        ({"model.layers.0.self_attn.q_proj": (torch.ones(1, 31), torch.ones(32, 1))}, "32 inputs"),
        ({"model.norm": (torch.ones(1, 32), torch.ones(32, 1))}, "no linear layer"),
    ):
        with pytest.raises(InputError, match=message):
            fold_into(network, Factors({**factors.layers, **layers}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_verifies_lineage(clinical: Path, tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(clinical, tmp_path / "stack")
    file = tmp_path / "stack" / "clinical" / WEIGHTS_FILE
    tensors = load_file(file)
    tensors[next(iter(tensors))][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"not those that stack\.json records"):
        stack_factors(tmp_path / "stack")
    with pytest.raises(InputError, match="is not the one that this stack was built on"):
        read_adapters(clinical, read_stack_record(clinical), find_base("embedded"))
