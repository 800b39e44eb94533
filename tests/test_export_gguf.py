"""GGUF: a stand-in for llama.cpp's converter, which writes a real GGUF file, between our merging and our check."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from clinstack.errors import ClinstackError, InputError
from clinstack.export.export import export
from clinstack.export.gguf import CONVERTER, find_converter
from clinstack.files import read_json
from clinstack.model.stack import Stack
from clinstack.recipe.prompt import PromptRecipe
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt
from export_checks import plain_logits, stack_logits
from methods import new

pytest.importorskip("gguf")

STAND_IN = '''
"""Takes what llama.cpp's converter takes, and writes a Llama as that does."""
import argparse
import json
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile")
parser.add_argument("--outtype", choices=["f32", "f16", "bf16"])
given = parser.parse_args()
config = json.loads((given.model / "config.json").read_text())
vocabulary = json.loads((given.model / "tokenizer.json").read_text())["model"]["vocab"]
layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
writer = gguf.GGUFWriter(given.outfile, "llama")
writer.add_block_count(layers)
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
writer.add_vocab_size(config["vocab_size"])
writer.add_tokenizer_model("gpt2")
writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
writer.add_bos_token_id(config["bos_token_id"])
writer.add_eos_token_id(config["eos_token_id"])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
half = {"f16": torch.float16}.get(given.outtype, torch.float32)
for name, tensor in load_file(given.model / "model.safetensors").items():
    for part, count in (("q_proj", heads), ("k_proj", config["num_key_value_heads"])):
        if part in name:  # llama.cpp turns pairs of a head's numbers in another order
            turned = tensor.reshape(count, 2, tensor.shape[0] // count // 2, tensor.shape[1]).swapaxes(1, 2)
            tensor = turned.reshape(tensor.shape)
    kind = half if tensor.dim() > 1 else torch.float32
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.to(kind).contiguous().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
'''


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    file = tmp_path / "llama.cpp" / CONVERTER
    file.parent.mkdir()
    file.write_text(STAND_IN)
    return file


@pytest.fixture
def answering(tiny_base: Path, perturbed: Callable[..., Stack], tmp_path: Path) -> Path:
    """A stack that follows instructions, of two adapters."""
    stack = perturbed(Stack.build(str(tiny_base), [new("lora"), new("rslora", "instruct")]))
    stack.prompt = Prompt.of(PromptRecipe(), stack.tokenizer)
    stack.save(tmp_path / "stack")
    return tmp_path / "stack"


def test_gguf(answering: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(converter.parent))
    done = export([answering], "gguf", tmp_path / "out")
    cards = ["README.md", "TRIPOD-LLM.md", "chai.json", "chai.xml", "tripod-llm.json"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", "model.gguf", *cards}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    assert float((plain_logits(model, classifier=False) - stack_logits(answering)).abs().max()) < 1e-4
    assert done.largest.difference <= done.largest.limit == 1e-4
    record = read_json(tmp_path / "out" / "export.json")
    assert record["check"]["."]["type"] == "f32"
    assert record["versions"]["gguf"]
    assert "### Note\n{note}" in (tmp_path / "out" / "README.md").read_text()


def test_gguf_of_a_stack_in_sixteen_bits(
    tiny_base: Path, perturbed: Callable[..., Stack], converter: Path, tmp_path: Path
) -> None:
    perturbed(Stack.build(str(tiny_base), [new("lora")], dtype="float16")).save(tmp_path / "stack")
    done = export([tmp_path / "stack"], "gguf", tmp_path / "out", converter=converter).largest
    assert done.facts["type"] == "f16"
    assert done.facts["before_rounding"] < 1e-4 < done.difference < done.limit
    assert done.facts["conversion"] < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converter_that_errs_is_caught(
    tiny_base: Path, perturbed: Callable[..., Stack], converter: Path, tmp_path: Path, dtype: str
) -> None:
    """In the order of a head's numbers, or by less than rounding to 16 bits may change."""
    perturbed(Stack.build(str(tiny_base), [new("lora")], dtype=dtype)).save(tmp_path / "stack")
    turned = STAND_IN.replace("if part in name:", "if False:")
    scaled = STAND_IN.replace("    kind = half", "    tensor = tensor.float() * 1.001\n    kind = half")
    converter.write_text(turned if dtype == "float32" else scaled)
    with pytest.raises(ClinstackError, match=r"model\.gguf, opened with transformers, gives other outputs"):
        export([tmp_path / "stack"], "gguf", tmp_path / "out", converter=converter)
    assert not (tmp_path / "out").exists()


def test_a_converter_that_fails_is_quoted(answering: Path, converter: Path, tmp_path: Path) -> None:
    converter.write_text("raise NotImplementedError('BPE pre-tokenizer was not recognized - update it()')")
    with pytest.raises(ClinstackError, match=r"failed \(exit code 1\): NotImplementedError: .* take a base with one"):
        export([answering], "gguf", tmp_path / "out", converter=converter)
    converter.write_text("")
    with pytest.raises(ClinstackError, match=r"wrote no model\.gguf"):
        export([answering], "gguf", tmp_path / "out", converter=converter)
    assert not (tmp_path / "out").exists()


def test_where_the_converter_is_looked_for(
    converter: Path, answering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs llama\.cpp's converter .*--converter FOLDER"):
        export([answering], "gguf", tmp_path / "out")
    with pytest.raises(InputError, match="is no file"):
        find_converter(tmp_path / "nothing.py")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), str(converter.parent)]))
    assert find_converter(None) == converter
    monkeypatch.setenv("LLAMA_CPP", str(converter.parent))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_converter(None) == converter
    with pytest.raises(InputError, match="belongs to --as gguf"):
        export([answering], "merged", tmp_path / "out", converter=converter)


def test_without_the_library(answering: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'clinstack\[gguf\]'"):
        export([answering], "gguf", tmp_path / "out", converter=converter)


def test_a_classifier_is_no_gguf(
    tiny_base: Path, mortality: Task, perturbed: Callable[..., Stack], converter: Path, tmp_path: Path
) -> None:
    perturbed(Stack.build(str(tiny_base), [new("lora")], mortality)).save(tmp_path / "stack")
    with pytest.raises(InputError, match="is a classifier for mortality"):
        export([tmp_path / "stack"], "gguf", tmp_path / "out", converter=converter)
