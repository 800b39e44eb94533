"""What a base does not support of a recipe is said before training, from its configuration alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, BertConfig, LlamaConfig, OPTConfig, RobertaConfig

from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.model.support import check_support
from clinstack.recipe import FinetuneRecipe, PretrainRecipe
from clinstack.tasks import Task

ALL_METHODS: dict[str, dict[str, Any]] = {
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


def pretrain(base: Path | str, adapter: dict[str, Any] | None = None, **changes: Any) -> PretrainRecipe:
    values = {"base": str(base), "run": "run", "notes": "notes", "context": 64, **changes}
    values.setdefault("adapters", [{"name": "clinical", **(adapter or {})}])
    return PretrainRecipe.model_validate(values)


def finetune(base: Path | str, **changes: Any) -> FinetuneRecipe:
    values = {"base": str(base), "run": "run", "examples": "examples", "max_tokens": 64, **changes}
    return FinetuneRecipe.model_validate(values)


def refusal(recipe: PretrainRecipe | FinetuneRecipe, classes: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check_support(recipe, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def described(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base without its weights."""
    folder = tmp_path / "described"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def with_config(folder: Path, config: Any) -> Path:
    config.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------- counting


@pytest.mark.parametrize("name", ALL_METHODS)
def test_trainable_parameters_are_those_of_the_stack(described: Path, tiny_base: Path, name: str) -> None:
    adapter = {"method": name.split()[0], **ALL_METHODS[name]}
    support = check_support(pretrain(described, adapter), None)
    stack = Stack.build(str(tiny_base), pretrain(described, adapter).adapters)
    assert support.trainable == stack.summary()["trainable_parameters"]
    (part,) = support.parts
    assert (part.name, part.trainable) == ("clinical", True)
    assert part.what.startswith(name.split()[0])


def test_the_base_is_counted_without_head_and_adapters(described: Path, tiny_base: Path, mortality: Task) -> None:
    recipe = finetune(described, adapters=[{"name": "task", "rank": 2}])
    support = check_support(recipe, 2)
    bare = Stack.build(str(tiny_base), [], mortality)
    assert support.parameters == bare.summary()["parameters"] - 64
    assert support.architecture == "LlamaForSequenceClassification"
    assert [(part.name, part.parameters) for part in support.parts][-1] == ("head", 64)
    assert (
        support.trainable == Stack.build(str(tiny_base), recipe.adapters, mortality).summary()["trainable_parameters"]
    )


@pytest.mark.parametrize(
    ("adapter", "published"),
    [
        ({"method": "lora", "rank": 16}, 8_388_608),
        ({"method": "lora", "rank": 4}, 2_097_152),
        ({"method": "adaption_prompt", "adapter_length": 10, "adapter_layers": 30}, 1_228_830),
        ({"method": "prefix", "virtual_tokens": 20}, 5_242_880),
        ({"method": "prompt", "virtual_tokens": 15}, 61_440),
        (
            {"method": "p_tuning", "virtual_tokens": 20, "encoder": "lstm", "encoder_hidden": 256, "encoder_layers": 4},
            16_093_696,
        ),
        ({"method": "p_tuning", "virtual_tokens": 1, "encoder_hidden": 256}, 2_171_392),
    ],
)
def test_the_papers_counts_for_llama_7b_come_out(described: Path, adapter: dict[str, Any], published: int) -> None:
    """Table 2 of Gema et al. (2023), without the 13 GB."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    support = check_support(pretrain(with_config(described, config), adapter, context=128), None)
    assert support.parameters == 6_738_415_616
    assert support.trainable == published


def test_a_saved_adapter_is_counted_by_its_file(described: Path, clinical: Path) -> None:
    recipe = finetune(described, adapters=[{"name": "clinical", "path": str(clinical)}, {"name": "task", "rank": 2}])
    frozen, new, _ = check_support(recipe, 2).parts
    assert frozen.parameters == 2 * 4 * (32 + 32 + 32 + 16), "rank 4 on two projections of two layers"
    assert (frozen.trainable, new.trainable) == (False, True)
    assert str(clinical) in frozen.what


def test_no_weight_is_opened(described: Path) -> None:
    (described / "model.safetensors").write_bytes(b"no weights")
    assert check_support(pretrain(described), None).base.fingerprint == ""


# ---------------------------------------------------------------------- what is refused


def test_adaption_prompt_needs_an_attention_that_peft_knows(described: Path) -> None:
    config = OPTConfig(vocab_size=300, hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    message = refusal(pretrain(with_config(described, config), {"method": "adaption_prompt", "adapter_layers": 2}))
    assert "gpt2, llama, mistral" in message
    assert "opt" in message


def test_adaption_prompts_fit_into_the_layers(described: Path) -> None:
    message = refusal(pretrain(described, {"method": "adaption_prompt"}))
    assert "30 are more than the base's 2 layers; use at most 2" in message


def test_a_target_that_the_base_lacks_is_refused_with_the_right_name(described: Path) -> None:
    message = refusal(pretrain(described, {"target_modules": ["q_prj"]}))
    assert "no 'q_prj'" in message
    assert "q_proj" in message


def test_full_fine_tuning_needs_an_unquantised_base(described: Path) -> None:
    message = refusal(pretrain(described, {"method": "full"}, quantize="4bit"))
    assert "adapters.0 (clinical): full fine-tuning needs the base's own weights; set quantize: none" in message


def test_a_base_that_is_quantised_already_is_not_quantised_again(described: Path) -> None:
    values = json.loads((described / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (described / "config.json").write_text(json.dumps(values))
    assert "quantised already; use quantize: none" in refusal(pretrain(described, quantize="8bit"))
    assert "full fine-tuning needs" in refusal(pretrain(described, {"method": "full"}))


def test_quantising_needs_bitsandbytes(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    assert "pip install 'clinstack[quantized]'" in refusal(pretrain(described, quantize="8bit"))


@pytest.mark.parametrize(
    ("adapter", "context", "remedy"),
    [
        ({"method": "lora"}, 257, "257 tokens are more than the 256 positions"),
        ({"method": "prefix", "virtual_tokens": 20}, 240, "set context to 236 or less"),
        ({"method": "prompt", "virtual_tokens": 15}, 256, "256 tokens and 15 virtual tokens are more than the 256"),
    ],
)
def test_rows_longer_than_the_base_are_refused(
    described: Path, adapter: dict[str, Any], context: int, remedy: str
) -> None:
    assert remedy in refusal(pretrain(described, adapter, context=context))
    fits = 256 - adapter.get("virtual_tokens", 0)
    check_support(pretrain(described, adapter, context=fits), None)


def test_a_saved_prompt_takes_positions_too(described: Path, tiny_base: Path, tmp_path: Path) -> None:
    Stack.build(str(tiny_base), pretrain(tiny_base, {"method": "prompt", "virtual_tokens": 9}).adapters).save(
        tmp_path / "prompted"
    )
    adapters = [{"name": "clinical", "path": str(tmp_path / "prompted")}]
    message = refusal(finetune(described, adapters=adapters, max_tokens=250), 2)
    assert "max_tokens: 250 tokens and 9 virtual tokens" in message


def test_prefix_and_gradient_checkpointing_exclude_each_other(described: Path) -> None:
    again = {"gradient_checkpointing": True}
    assert "use prompt or p_tuning" in refusal(pretrain(described, {"method": "prefix"}, training=again))
    check_support(pretrain(described, {"method": "prompt"}, training=again), None)


BERT = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def test_an_encoder_is_no_language_model(described: Path) -> None:
    assert "is an encoder and writes no text" in refusal(pretrain(with_config(described, BERT)))


def test_an_encoder_classifies(described: Path) -> None:
    adapter = {"name": "task", "rank": 4}
    support = check_support(finetune(with_config(described, BERT), adapters=[adapter]), 2)
    # Two layers, query and value, A and B of rank 4 and width 32; a head with bias.
    assert [part.parameters for part in support.parts] == [2 * 2 * 2 * 4 * 32, 2 * 32 + 2]
    assert "task: q_proj and v_proj of the recipe are called query and value in this base." in support.notes


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning", "adaption_prompt"])
def test_an_encoder_takes_only_methods_for_encoders(described: Path, method: str) -> None:
    recipe = finetune(with_config(described, BERT), adapters=[{"name": "task", "method": method}])
    assert f"adapters.task.method: {method} is for decoders" in refusal(recipe, 2)


def test_an_unknown_family_of_encoders_is_refused(described: Path) -> None:
    config = AlbertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    message = refusal(finetune(with_config(described, config)), 2)
    assert "AlbertForSequenceClassification" in message
    assert "encoders may be bert, modernbert, distilbert, roberta, electra" in message


def test_an_encoder_has_only_so_many_positions(described: Path) -> None:
    config = BertConfig(**BERT.to_diff_dict() | {"max_position_embeddings": 48})
    assert "set max_tokens to 48 or less" in refusal(finetune(with_config(described, config)), 2)
    # RoBERTa's first two rows of positions are for padding.
    roberta = RobertaConfig(**config.to_diff_dict() | {"pad_token_id": 1, "max_position_embeddings": 64})
    assert "set max_tokens to 62 or less" in refusal(finetune(with_config(described, roberta)), 2)


def test_what_is_above_the_layer_that_is_read_is_not_counted(described: Path) -> None:
    whole, half = (check_support(finetune(described, layer=layer), 2).parameters for layer in (None, 1))
    # A layer of the tiny base: four projections (two of half width), three matrices of 32 x 64, two norms.
    assert whole - half == 3 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert "layer: 3 is above the 2 layers" in refusal(finetune(described, layer=3), 2)


def test_an_unknown_architecture_is_refused(described: Path) -> None:
    values = json.loads((described / "config.json").read_text()) | {"model_type": "unheard_of"}
    (described / "config.json").write_text(json.dumps(values))
    assert "unheard_of" in refusal(pretrain(described))


def test_a_base_with_program_code_of_its_own_is_refused(described: Path) -> None:
    values = json.loads((described / "config.json").read_text())
    values |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "configuration.TheirConfig"}}
    (described / "config.json").write_text(json.dumps(values))
    (described / "configuration.py").write_text("raise SystemExit('their code ran')")
    assert "clinstack runs none" in refusal(pretrain(described))


# ---------------------------------------------------------------------- notes


def test_a_plain_recipe_has_no_notes(described: Path) -> None:
    assert check_support(pretrain(described), None).notes == ()


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
def test_virtual_tokens_fall_back_to_bucketed_rows(described: Path, method: str) -> None:
    (note,) = check_support(pretrain(described, {"method": method}), None).notes
    assert "layout: bucketed" in note
    assert check_support(pretrain(described, {"method": method}, layout="bucketed"), None).notes == ()


def test_repairs_of_the_tokenizer_and_bits_are_noted(described: Path) -> None:
    file = described / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    repaired, bits = check_support(pretrain(described, quantize="4bit", dtype="bfloat16"), None).notes
    assert "no padding token; '<pad>' serves" in repaired
    assert "held in 4 bits" in bits
    assert "stay bfloat16" in bits


def test_counting_takes_no_memory_and_leaves_the_random_numbers_alone(described: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_support(pretrain(described, {"method": "p_tuning"}), None)
    assert torch.equal(torch.get_rng_state(), before)
