"""Bases in 8 and 4 bits, on bitsandbytes' CPU backend: near the original, trainable beneath adapters, saved as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from clinstack.engine.losses import causal_loss
from clinstack.errors import InputError
from clinstack.model.base import backbone, find_base, load_network
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, FinetuneRecipe, PretrainRecipe
from clinstack.stages.finetune import finetune
from clinstack.stages.pretrain import pretrain
from clinstack.tasks import Task
from clinstack.tokens.pack import PackedBatch

bitsandbytes = pytest.importorskip("bitsandbytes")

BITS = ["8bit", "4bit"]
NEAR = {"8bit": 0.05, "4bit": 0.2}
"""Relative error of hidden states behind four trained layers; NF4 alone leaves 0.09 of each weight."""
SPEC = [AdapterRecipe(name="clinical", rank=4, target_modules="all-linear")]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where a quantised base is loaded; the stages move the rest there."""


def tokens() -> torch.Tensor:
    return torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def packed_rows() -> PackedBatch:
    ids = tokens()
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, -1).to(DEVICE)
    labels = ids.roll(-1, 1)
    labels[:, [9, 23]] = -100
    return PackedBatch(
        input_ids=ids,
        position_ids=positions,
        labels=labels,
        documents=torch.tensor([[0] * 10 + [1] * 14, [2] * 10 + [3] * 14], device=DEVICE),
        attention_mask=None,
        predictions=44,
        lengths=(10, 14, 10, 14),
    )


@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("classes", [None, 3])
def test_linear_layers_are_quantised_and_nothing_else(tiny_base: Path, quantize: str, classes: int | None) -> None:
    base = find_base(str(tiny_base))
    network = load_network(base, classes=classes, dtype="bfloat16", seed=0, quantize=quantize)
    kind = bitsandbytes.nn.Linear8bitLt if quantize == "8bit" else bitsandbytes.nn.Linear4bit
    linear = [module for module in backbone(network).modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 14
    assert {type(module) for module in linear} == {kind}
    top = network.score if classes else network.get_output_embeddings()
    assert type(top) is nn.Linear
    assert top.weight.dtype == (torch.float32 if classes else torch.bfloat16)
    assert network.get_input_embeddings().weight.dtype == torch.bfloat16
    if quantize == "4bit":
        weight = linear[0].weight
        assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("nf4", True)
        assert linear[0].compute_dtype == torch.bfloat16


@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_are_near_the_originals(quantize: str, dtype: str) -> None:
    base = find_base("embedded")
    outputs = []
    with torch.inference_mode():
        for dtype_, bits in (("float32", "none"), (dtype, quantize)):
            network = backbone(load_network(base, classes=None, dtype=dtype_, seed=0, quantize=bits).eval())
            ids = tokens().to(next(network.parameters()).device)
            outputs.append(network(ids, use_cache=False).last_hidden_state.float().cpu())
    wanted, found = outputs
    assert 0 < relative_error(found, wanted) < NEAR[quantize]


def test_training_and_evaluation_compute_alike_in_4_bits(tiny_base: Path) -> None:
    """bitsandbytes repacks 4-bit layers for evaluation on some CPUs, with other results."""
    stack = Stack.build(str(tiny_base), SPEC, quantize="4bit")
    stack.train()
    training = stack.hidden_states(tokens()).detach()
    stack.eval()
    with torch.inference_mode():
        evaluating = stack.hidden_states(tokens())
    assert torch.allclose(training, evaluating, atol=1e-5)


@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_trains_on_a_quantised_base_and_comes_back(
    tiny_base: Path, tmp_path: Path, quantize: str, dtype: str
) -> None:
    stack = Stack.build(str(tiny_base), SPEC, dtype=dtype, quantize=quantize)
    frozen = {name: tensor.clone() for name, tensor in stack.frozen_tensors().items() if torch.is_tensor(tensor)}
    before = {name: tensor.detach().clone() for name, tensor in stack.trainable_parameters().items()}
    batch = packed_rows()
    optimizer = torch.optim.AdamW(stack.trainable_parameters().values(), lr=1e-2)
    stack.train()
    losses = []
    for _ in range(5):
        loss = causal_loss(stack, batch) / batch.predictions
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(not torch.equal(tensor, before[name]) for name, tensor in stack.trainable_parameters().items())
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in stack.frozen_tensors().items() if name in frozen)
    stack.eval()
    with torch.inference_mode():
        wanted = stack.hidden_states(tokens())
    stack.save(tmp_path / "stack")
    assert json.loads((tmp_path / "stack" / "stack.json").read_text())["base"]["quantize"] == quantize
    loaded = Stack.load(tmp_path / "stack")
    assert loaded.quantize == quantize
    with torch.inference_mode():
        assert torch.equal(loaded.hidden_states(tokens()), wanted)
    whole = Stack.load(tmp_path / "stack", quantize="none", dtype="float32")
    assert whole.quantize == "none"
    assert whole.stacked_on("clinical") == loaded.stacked_on("clinical"), "the base is the same, in whatever bits"
    for name, tensor in whole.adapter_tensors("clinical").items():
        assert torch.equal(tensor.cpu(), loaded.adapter_tensors("clinical")[name].cpu())


@pytest.mark.parametrize("quantize", BITS)
def test_a_classifier_on_a_quantised_base_comes_back(
    tiny_base: Path, mortality: Task, tmp_path: Path, quantize: str
) -> None:
    stack = Stack.build(str(tiny_base), SPEC, mortality, quantize=quantize)
    with torch.no_grad():
        stack.head.weight.add_(0.1)
    stack.save(tmp_path / "stack")
    mask = torch.ones_like(tokens())
    with torch.inference_mode():
        stack.eval()
        assert torch.equal(Stack.load(tmp_path / "stack").logits(tokens(), mask), stack.logits(tokens(), mask))


def test_both_stages_run_on_a_quantised_base(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    common = {"base": str(tiny_base), "quantize": "4bit", "training": {"max_steps": 2, "tracking": "none"}}
    first = PretrainRecipe.model_validate(
        {"run": str(tmp_path / "pre"), "notes": str(tiny_notes), "context": 64, "adapters": SPEC, **common}
    )
    clinical = {"name": "clinical", "path": str(pretrain(first).folder)}
    second = FinetuneRecipe.model_validate(
        {
            "run": str(tmp_path / "fine"),
            "examples": str(tiny_notes / "examples" / "mortality"),
            "max_tokens": 64,
            "adapters": [clinical],
            **common,
        }
    )
    for run in (Path(first.run), finetune(second).folder):
        assert json.loads((run / "stack" / "stack.json").read_text())["base"]["quantize"] == "4bit"


@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_invariants_hold_on_the_embedded_base(quantize: str, dtype: str) -> None:
    """In float32, documents packed on an 8-bit base differ by a hundredth from each alone: rounding, no leak."""
    Stack.build("embedded", SPEC, dtype=dtype, quantize=quantize)


def test_without_bitsandbytes_the_extra_is_named(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"quantize: 4bit needs bitsandbytes; pip install 'clinstack\[quantized\]'"):
        load_network(find_base(str(tiny_base)), classes=None, dtype="float32", seed=0, quantize="4bit")


def test_an_unknown_number_of_bits_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="quantize"):
        PretrainRecipe.model_validate({"run": "r", "notes": "n", "adapters": SPEC, "quantize": "2bit"})
