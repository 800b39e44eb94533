"""The presets of other bases, on tiny random models of their architectures: built, packed, trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from clinstack.engine.losses import causal_loss
from clinstack.model.stack import Stack
from clinstack.model.support import check_support
from clinstack.recipe import PRESETS, AdapterRecipe, FinetuneRecipe, PretrainRecipe, load_recipe
from clinstack.tasks import Task
from clinstack.tokens.pack import PackedBatch

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SIZES, "head_dim": 8}
WINDOW = 4
"""Shorter than the documents, so that a window has something to cut."""
CONFIGS = {
    "llama-3": LlamaConfig(**SIZES),
    "qwen": Qwen3Config(**SIZES, head_dim=8),
    "qwen 2.5": Qwen2Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral with a window": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma": Gemma2Config(**GEMMA, sliding_window=WINDOW, query_pre_attn_scalar=8, final_logit_softcapping=3.0),
    "gemma 3": Gemma3TextConfig(**GEMMA, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "phi-2": PhiConfig(**SIZES),
    "phi-3": Phi3Config(**SIZES, sliding_window=WINDOW),
}
LENGTHS = (11, 17)


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an architecture, and a folder with a tiny random model of it."""
    torch.set_num_threads(1)  # as for the other tiny models: a second thread costs more than it brings
    folder = tmp_path_factory.mktemp("families") / "base"
    config = copy.deepcopy(CONFIGS[request.param])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
        if getattr(network.lm_head, "bias", None) is not None:
            torch.nn.init.normal_(network.lm_head.bias)
    network.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<|endoftext|>": 3, **{f"w{index}": index for index in range(4, 120)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(request.param), folder


def recipe_for(family: str, folder: Path, **changes: Any) -> PretrainRecipe:
    overrides = [f"{key}={value}" for key, value in {"base": folder, **changes}.items()]
    recipe = load_recipe(Path("bases") / family.split()[0], overrides)
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 120, (length,), generator=generator) for length in LENGTHS]


def packed_row() -> PackedBatch:
    ids = torch.cat(documents())
    labels = ids.roll(-1)
    labels[[LENGTHS[0] - 1, -1]] = -100
    owners = torch.cat([torch.full((length,), index) for index, length in enumerate(LENGTHS)])
    return PackedBatch(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        labels=labels[None],
        documents=owners[None],
        predictions=sum(LENGTHS) - 2,
        lengths=LENGTHS,
    )


def plain_loss(stack: Stack) -> torch.Tensor:
    """By transformers itself, each document alone."""
    losses = []
    for ids in documents():
        logits = stack.network(input_ids=ids[None], use_cache=False).logits[0]
        losses.append(F.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum"))
    return torch.stack(losses).sum()


def test_there_is_a_preset_for_each_family() -> None:
    presets = {path.stem for path in (PRESETS / "bases").glob("*.yaml")}
    encoders = {name for name in presets if isinstance(load_recipe(Path("bases") / name), FinetuneRecipe)}
    assert encoders == {"bluebert", "umlsbert", "bio-clinicalbert", "core", "modernbert"}
    assert presets - encoders == {name.split()[0] for name in CONFIGS}


def test_the_preset_fits_the_architecture(family: tuple[str, Path]) -> None:
    name, folder = family
    recipe = recipe_for(name, folder)
    support = check_support(recipe, None)
    assert support.notes == ()
    stack = Stack.build(str(folder), recipe.adapters)
    assert support.trainable == stack.summary()["trainable_parameters"]
    adapted = {layer.split(".")[-2] for layer, _ in stack.network.named_modules() if layer.endswith(".base_layer")}
    mlp = {"fc1", "fc2", "dense"} if name == "phi-2" else {"gate_proj", "up_proj", "down_proj", "o_proj"}
    fused = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert adapted == (fused if name == "phi-3" else {"q_proj", "k_proj", "v_proj"} | mlp)


def test_packed_documents_have_the_loss_that_they_have_alone(family: tuple[str, Path]) -> None:
    """Windows, soft caps and the output layer's bias included."""
    name, folder = family
    stack = Stack.build(str(folder), recipe_for(name, folder).adapters)
    assert stack.can_pack
    stack.eval()
    with torch.no_grad():
        for parameter in stack.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    packed, alone = causal_loss(stack, packed_row()), plain_loss(stack)
    assert torch.allclose(packed, alone, rtol=1e-5)
    packed.backward()
    found = {key: parameter.grad.clone() for key, parameter in stack.trainable_parameters().items()}
    stack.network.zero_grad()
    plain_loss(stack).backward()
    for key, parameter in stack.trainable_parameters().items():
        assert torch.allclose(found[key], parameter.grad, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_trains(family: tuple[str, Path], dtype: str) -> None:
    name, folder = family
    recipe = recipe_for(name, folder)
    stack = Stack.build(str(folder), recipe.adapters, dtype=dtype)
    before = {key: parameter.detach().clone() for key, parameter in stack.trainable_parameters().items()}
    optimizer = torch.optim.AdamW(stack.trainable_parameters().values(), lr=0.01)
    stack.use_gradient_checkpointing()
    stack.train()
    batch, losses = packed_row(), []
    for _ in range(3):
        loss = causal_loss(stack, batch) / batch.predictions
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert all(not torch.equal(parameter, before[key]) for key, parameter in stack.trainable_parameters().items())


@pytest.mark.parametrize("layer", [None, 1])
def test_it_classifies_as_transformers_does(family: tuple[str, Path], mortality: Task, layer: int | None) -> None:
    """With the recipe's default LoRA, on whatever the family calls query and value, from any layer."""
    name, folder = family
    stack = Stack.build(str(folder), [AdapterRecipe(name="task", rank=2)], mortality, layer=layer)
    stack.eval()
    adapted = {key.rsplit(".", 1)[-1] for key in stack.lora_layers()}
    assert adapted == ({"qkv_proj"} if name == "phi-3" else {"q_proj", "v_proj"})
    options = {} if layer is None else {"num_hidden_layers": layer}
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **options).eval()
    plain.config.pad_token_id = 0
    plain.score.weight = stack.head.weight
    ids = torch.zeros(2, LENGTHS[1], dtype=torch.long)
    for row, document in enumerate(documents()):
        ids[row, : len(document)] = document
    mask = (ids != 0).long()
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(stack.logits(ids, mask), expected, atol=1e-6)
