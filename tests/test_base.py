"""Base models: found or refused with one clear sentence, fingerprinted, and loaded whole or not at all."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.base import backbone, find_base, load_network, load_tokenizer
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, tensor in tensors.items():
        if tensor is None:
            del weights[name]
        else:
            weights[name] = tensor
    save_file(weights, file, metadata={"format": "pt"})


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        find_base(name)
    message = str(caught.value)
    assert message.startswith("base: ")
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "neither a folder, nor a hub id" in refusal(name)


def test_a_file_is_refused(copy: Path) -> None:
    assert "neither a folder, nor a hub id" in refusal(str(copy / "config.json"))


def test_pickled_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    message = refusal(str(copy))
    assert "opens no pickled weights" in message
    # The remedy that it names works, without a network.
    command = shlex.split(message.split("in the model's folder: ")[1])
    subprocess.run([sys.executable, *command[1:]], cwd=copy, check=True)
    assert load_file(copy / "model.safetensors").keys() == weights.keys()
    Stack.build(str(copy))


def test_a_hub_id_offline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal("organisation/a-model-that-nobody-has")
    assert "offline" in message
    assert "name its folder" in message


@pytest.mark.parametrize("name", ["no such/model", "organisation/--model", "organisation/"])
def test_what_can_be_no_hub_id_is_refused(name: str) -> None:
    refusal(name)


def test_the_fingerprint_is_of_the_content(tiny_base: Path, copy: Path) -> None:
    before = find_base(str(tiny_base)).fingerprint
    assert before.startswith("sha256:")
    assert find_base(str(tiny_base)).fingerprint == before
    assert find_base(str(copy)).fingerprint == before, "the same files elsewhere are the same base"
    (copy / "README.md").write_text("a note beside the model")
    assert find_base(str(copy)).fingerprint == before
    weights = load_file(copy / "model.safetensors")["model.norm.weight"]
    weights[0] += 1e-3
    change_weights(copy, **{"model.norm.weight": weights})
    assert find_base(str(copy)).fingerprint != before


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_the_fingerprint_covers_configuration_and_tokenizer(tiny_base: Path, copy: Path, file: str) -> None:
    (copy / file).write_text((copy / file).read_text() + "\n")
    assert find_base(str(copy)).fingerprint != find_base(str(tiny_base)).fingerprint


def test_the_fingerprint_does_not_depend_on_the_dtype_it_is_loaded_in(
    tiny_base: Path, clinical: Path, tmp_path: Path
) -> None:
    spec = [AdapterRecipe(name="clinical", path=str(clinical))]
    half = Stack.build(str(tiny_base), spec, dtype="bfloat16")
    assert half.base.fingerprint == find_base(str(tiny_base)).fingerprint
    half.save(tmp_path / "half")
    assert Stack.load(tmp_path / "half").dtype == "bfloat16"
    assert Stack.load(tmp_path / "half", dtype="float32").stacked_on("clinical") == half.stacked_on("clinical")


def test_an_encoder_writes_no_text(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is an encoder and writes no text; pretrain takes a decoder"):
        load_network(find_base(str(tmp_path)), classes=None, dtype="float32", seed=0)


def test_the_head_is_float32_and_the_backbone_is_not(tiny_base: Path) -> None:
    network = load_network(find_base(str(tiny_base)), classes=3, dtype="float16", seed=0)
    assert network.score.weight.dtype == torch.float32
    assert network.score.weight.shape == (3, 32)
    assert {tensor.dtype for tensor in backbone(network).parameters()} == {torch.float16}
    assert network.config.use_cache is False


def test_a_base_that_lacks_weights_is_refused(copy: Path) -> None:
    # transformers fills them with random numbers and only warns.
    change_weights(copy, **{"model.layers.1.mlp.up_proj.weight": None})
    for classes in (None, 2):
        with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            load_network(find_base(str(copy)), classes=classes, dtype="float32", seed=0)


def test_a_base_with_weights_of_another_shape_is_refused(copy: Path) -> None:
    change_weights(copy, **{"model.norm.weight": torch.ones(31)})
    with pytest.raises(InputError, match=r"model\.norm\.weight have another shape"):
        load_network(find_base(str(copy)), classes=None, dtype="float32", seed=0)


def test_a_base_that_has_a_head_already_gets_a_new_one(tiny_base: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(tiny_base, num_labels=5)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    network = load_network(find_base(str(tmp_path / "classifier")), classes=2, dtype="float32", seed=0)
    assert network.score.weight.shape == (2, 32)
    fresh = load_network(find_base(str(tiny_base)), classes=2, dtype="float32", seed=0)
    assert torch.equal(network.score.weight, fresh.score.weight)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_base_is_refused(copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"^base: .*copy"):
        load_network(find_base(str(copy)), classes=None, dtype="float32", seed=0)


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    values = json.loads((copy / "config.json").read_text()) | {"model_type": "unheard_of"}
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="unheard_of"):
        load_network(find_base(str(copy)), classes=None, dtype="float32", seed=0)


def test_stories260k_loads_and_tells_its_golden_beginning(shared: Path) -> None:
    folder = shared / "assets" / "stories260K"
    if not folder.is_dir():
        pytest.skip("shared/assets/stories260K is absent")
    base = find_base(str(folder))
    network, tokenizer = load_network(base, classes=None, dtype="float32", seed=0).eval(), load_tokenizer(base)
    golden = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    tokens = torch.tensor([[tokenizer.bos_token_id]])
    tokens = network.generate(tokens, do_sample=False, use_cache=True, max_new_tokens=55)
    assert tokenizer.decode(tokens[0], skip_special_tokens=True).strip().startswith(golden)


def test_threads_that_load_at_once_leave_nothing_behind() -> None:
    """transformers replaces functions of its classes while it loads; a server adds stacks from several threads."""
    tie_weights = PreTrainedModel.tie_weights
    base = find_base("embedded")
    with ThreadPoolExecutor(4) as pool:
        loaded = [pool.submit(load_network, base, classes=None, dtype="float32", seed=0) for _ in range(12)]
        networks = [one.result() for one in loaded]
    assert PreTrainedModel.tie_weights is tie_weights
    for network in networks:
        assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
