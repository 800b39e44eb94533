"""Exports as plain PEFT folders: fused, clinical-merged and peft, opened with PEFT alone, against the stack."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from clinstack.errors import InputError
from clinstack.export.export import export
from clinstack.export.fused import RANKS, filled_rank
from clinstack.files import read_json
from clinstack.model.stack import Stack
from clinstack.tasks import Task
from export_checks import CODES, STAY, TOP, Saved, difference, plain_logits, run_readme, slow, stack_logits
from methods import new

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
    strange = saved("clinical-frozen+lora", Task("../stay", "binary", ("no", "yes")))
    with pytest.raises(InputError, match=r"'\.\./stay', which is no name of a folder"):
        export([stacks[0], strange], "clinical-merged", tmp_path / "other")
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
