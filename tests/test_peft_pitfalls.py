"""What PEFT and transformers do to adapter stacks without a word, and that a Stack is right all the same.

Each test is named after its entry in the project's list of pitfalls (C1 to C5). Where it is cheap, it shows first that
the library still has the pitfall; a library that lost it makes a warning and no failure.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_model_status, get_peft_model
from peft.utils import ModulesToSaveWrapper
from pydantic import ValidationError
from safetensors.torch import load_file, safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.checks import StackError, check_active, check_stack, check_trainable, effects, probe_output
from clinstack.model.lineage import HEAD_KEY, WEIGHTS_FILE, tensors_hash
from clinstack.model.methods import adapter_config
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task

# The tests that show the library's side call it as a user would, with its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Perturbed = Callable[..., Stack]
Specs = dict[str, list[AdapterRecipe]]
TASK = AdapterRecipe(name="task", rank=2, alpha=4)
STAY = Task("length_of_stay", "multiclass", ("short", "medium", "long", "very long", "endless"))


def still_a_pitfall(present: bool, what: str) -> None:
    if not present:
        warnings.warn(f"The library no longer does this: {what}", stacklevel=2)


def fails(call: Callable[[], Any], *errors: type[Exception]) -> bool:
    try:
        call()
    except errors:
        return True
    return False


def causal(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, dtype="float32")


def classifier(base: Path, classes: int = 2) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes, dtype="float32")


def plain_config(**values: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **values})


@pytest.fixture(scope="module")
def plain_clinical(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CAUSAL_LM adapter that plain PEFT wrote, without any record of its base, as one finds on the hub."""
    folder = tmp_path_factory.mktemp("plain") / "clinical"
    model = get_peft_model(causal(tiny_base), plain_config(task_type="CAUSAL_LM", init_lora_weights=False))
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def frozen_and_task(tiny_base: Path, table3: Specs, mortality: Task) -> Stack:
    return Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality)


def clinical_tensors(stack: Stack) -> list[torch.nn.Parameter]:
    return [tensor for name, tensor in stack.network.named_parameters() if ".lora_" in name and ".clinical." in name]


# ---------------------------------------------------------------------- C1: a causal adapter under a classifier


def test_c1_causal_adapter_opens_under_a_classification_head(
    tiny_base: Path, plain_clinical: Path, mortality: Task
) -> None:
    fault = fails(lambda: PeftModel.from_pretrained(classifier(tiny_base), str(plain_clinical)), AttributeError)
    still_a_pitfall(fault, "a CAUSAL_LM adapter on a classifier ends in an AttributeError")
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(plain_clinical)), TASK], mortality)
    ours = stack.adapter_tensors("clinical")
    assert tensors_hash(ours) == tensors_hash(load_file(plain_clinical / WEIGHTS_FILE))
    assert not stack.adapters[0].verified
    assert stack.adapters[1].verified
    plain = PeftModel.from_pretrained(causal(tiny_base), str(plain_clinical))
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        wanted = plain.base_model.model.model(input_ids=tokens).last_hidden_state
        assert torch.allclose(stack.hidden_states(tokens), wanted, atol=1e-5)


def test_c1_adapter_saved_for_a_classifier_opens_without_a_head_in_its_file(
    tiny_base: Path, plain_clinical: Path, mortality: Task
) -> None:
    config = PeftConfig.from_pretrained(str(plain_clinical))
    config.task_type = "SEQ_CLS"
    fault = fails(
        lambda: PeftModel.from_pretrained(classifier(tiny_base), str(plain_clinical), config=config), KeyError
    )
    still_a_pitfall(fault, "a SEQ_CLS wrapper demands a head in every adapter's file")
    path = plain_clinical.with_name("as_classifier")
    path.mkdir()
    values = json.loads((plain_clinical / "adapter_config.json").read_text()) | {"task_type": "SEQ_CLS"}
    (path / "adapter_config.json").write_text(json.dumps(values))
    (path / WEIGHTS_FILE).write_bytes((plain_clinical / WEIGHTS_FILE).read_bytes())
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(path)), TASK], mortality)
    assert set(effects(stack)) == {"clinical", "task"}
    assert effects(stack)["clinical"] > 0


# ---------------------------------------------------------------------- C2: two active adapters


def test_c2_set_adapter_with_list(frozen_and_task: Stack) -> None:
    model: Any = frozen_and_task._peft_model
    still_a_pitfall(fails(lambda: model.set_adapter(["clinical", "task"]), TypeError), "set_adapter refuses a list")
    layers = frozen_and_task.lora_layers()
    assert len(layers) == 4
    assert all(layer.active_adapters == ["clinical", "task"] for layer in layers.values())
    assert not any(isinstance(module, ModulesToSaveWrapper) for module in frozen_and_task.network.modules())


def test_c2_an_adapter_that_carries_a_head_lies_beneath_another(
    tiny_base: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path
) -> None:
    model: Any = PeftModel(classifier(tiny_base), plain_config(modules_to_save=["score"]), adapter_name="first")
    model.add_adapter("second", plain_config(modules_to_save=["score"]))
    fault = fails(lambda: model.base_model.set_adapter(["first", "second"]), ValueError)
    still_a_pitfall(fault, "two adapters with heads cannot be active together")
    perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="ward", rank=2)], mortality)).save(tmp_path / "lower")
    assert HEAD_KEY in load_file(tmp_path / "lower" / "ward" / WEIGHTS_FILE)
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="ward", path=str(tmp_path / "lower")), TASK], STAY)
    assert stack.head.weight.shape[0] == 5
    assert effects(stack)["ward"] > 0


def test_c2_model_status_is_no_health_check(tiny_base: Path, clinical: Path, mortality: Task) -> None:
    model: Any = PeftModel(classifier(tiny_base), plain_config(), adapter_name="clinical")
    model.add_adapter("task", plain_config(modules_to_save=["score"]))
    model.base_model.set_adapter(["clinical", "task"])
    still_a_pitfall(get_model_status(model).active_adapters == "irregular", "a good stack is called irregular")
    # Layers that carry only one of the adapters make no trouble, and each is checked by itself.
    wide = AdapterRecipe(name="task", rank=2, target_modules="all-linear")
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(clinical)), wide], mortality)
    assert len(stack.lora_layers()) == 14
    check_active(stack)
    stack.lora_layers()["model.layers.1.mlp.down_proj"].set_adapter([])
    with pytest.raises(StackError, match=r"layers\.1\.mlp\.down_proj"):
        check_active(stack)


def test_c2_wrapping_again_would_switch_clinical_off(frozen_and_task: Stack) -> None:
    model: Any = frozen_and_task._peft_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, plain_config(), adapter_name="again")
    with pytest.raises(StackError, match=r"\['again'\].*\['clinical', 'task'\]"):
        check_stack(frozen_and_task)


def test_c2_set_adapter_with_one_name_drops_clinical(frozen_and_task: Stack) -> None:
    before = probe_output(frozen_and_task)
    model: Any = frozen_and_task._peft_model
    model.set_adapter("task")
    still_a_pitfall(not torch.equal(probe_output(frozen_and_task), before), "set_adapter drops the others")
    with pytest.raises(StackError, match=r"\['task'\] are active; the spec says \['clinical', 'task'\]"):
        check_stack(frozen_and_task)
    frozen_and_task.settle()
    check_stack(frozen_and_task)
    assert torch.equal(probe_output(frozen_and_task), before)


def test_c2_task_folder_alone_is_refused(
    frozen_and_task: Stack, tiny_base: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path
) -> None:
    perturbed(frozen_and_task).save(tmp_path / "stack")
    alone = tmp_path / "stack" / "task"
    plain = PeftModel.from_pretrained(classifier(tiny_base), str(alone), adapter_name="task").eval()
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        difference = plain(tokens).logits - frozen_and_task.logits(tokens, torch.ones_like(tokens))
    assert float(difference.abs().max()) > 1e-2, "the library opens half of the model without an error"
    with pytest.raises(InputError, match="on top of clinical; here 0 adapters lie beneath"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="task", path=str(alone))], mortality)


# ---------------------------------------------------------------------- C3: what is trainable


def test_c3_activating_leaves_frozen_adapters_frozen(frozen_and_task: Stack) -> None:
    tensors = clinical_tensors(frozen_and_task)
    assert len(tensors) == 8
    assert not any(tensor.requires_grad for tensor in tensors)
    tuner: Any = frozen_and_task._peft_model.base_model  # type: ignore[union-attr]
    tuner.set_adapter(["clinical", "task"])
    thawed = all(tensor.requires_grad for tensor in tensors)
    still_a_pitfall(thawed, "set_adapter makes a frozen adapter trainable")
    if thawed:
        with pytest.raises(StackError, match=r"clinical.*is trainable"):
            check_trainable(frozen_and_task)
    frozen_and_task.settle()
    check_trainable(frozen_and_task)


def test_c3_disabling_leaves_frozen_adapters_frozen(frozen_and_task: Stack) -> None:
    with frozen_and_task.switched_off():
        pass
    with frozen_and_task.switched_off("clinical"):
        pass
    effects(frozen_and_task)
    check_trainable(frozen_and_task)
    assert not any(tensor.requires_grad for tensor in clinical_tensors(frozen_and_task))
    model: Any = frozen_and_task._peft_model
    with model.disable_adapter():
        pass
    still_a_pitfall(any(tensor.requires_grad for tensor in clinical_tensors(frozen_and_task)), "disable_adapter thaws")


@pytest.mark.parametrize("is_trainable", [False, True])
def test_c3_adding_an_adapter_neither_thaws_nor_freezes_the_one_beneath(
    tiny_base: Path, table3: Specs, mortality: Task, is_trainable: bool
) -> None:
    spec = table3["clinical-trainable+lora" if is_trainable else "clinical-frozen+lora"]
    stack = Stack.build(str(tiny_base), spec, mortality)
    trainable = {name for name, tensor in stack.network.named_parameters() if tensor.requires_grad}
    wanted = {name for name, _ in stack.network.named_parameters() if ".lora_" in name or name == "score.weight"}
    if not is_trainable:
        wanted = {name for name in wanted if ".clinical." not in name}
    assert trainable == wanted == set(stack.trainable_parameters())


def test_c3_loading_does_not_leave_parts_in_evaluation_mode(
    frozen_and_task: Stack, tiny_base: Path, tmp_path: Path
) -> None:
    frozen_and_task.save(tmp_path / "stack")
    for stack in (frozen_and_task, Stack.load(tmp_path / "stack")):
        stack.train()
        probe_output(stack)  # looks in evaluation mode, and goes back
        assert all(module.training for module in stack.network.modules())
        stack.eval()
        assert not any(module.training for module in stack.network.modules())


def test_c3_frozen_adapter_has_no_dropout(
    tiny_base: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path
) -> None:
    spec = AdapterRecipe(name="clinical", rank=4, dropout=0.5)
    perturbed(Stack.build(str(tiny_base), [spec])).save(tmp_path / "stack")
    tokens = torch.arange(3, 13)[None]

    def differs(**values: Any) -> bool:
        read = AdapterRecipe(name="clinical", path=str(tmp_path / "stack"), **values)
        stack = Stack.build(str(tiny_base), [read], mortality)
        stack.train()
        with torch.no_grad():
            return not torch.equal(stack.hidden_states(tokens), stack.hidden_states(tokens))

    model = PeftModel.from_pretrained(causal(tiny_base), str(tmp_path / "stack" / "clinical"))
    model.train()
    with torch.no_grad():
        fires = not torch.equal(model(tokens).logits, model(tokens).logits)
    still_a_pitfall(fires, "the dropout of a frozen adapter fires")
    assert not differs()
    assert differs(trainable=True), "a trainable adapter keeps the dropout that its file records"


def test_c3_the_optimizer_holds_what_moves(frozen_and_task: Stack) -> None:
    stack = frozen_and_task
    frozen = tensors_hash(stack.frozen_tensors())
    trainable = stack.trainable_parameters()
    assert set(trainable) | set(stack.frozen_tensors()) == set(stack.network.state_dict())
    before = {name: tensor.detach().clone() for name, tensor in trainable.items()}
    optimizer = torch.optim.Adam(trainable.values(), lr=1e-2)
    tokens = torch.arange(3, 19).reshape(2, 8)
    stack.train()
    for _ in range(2):  # lora_A moves from the second step on: lora_B begins at zero
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(stack.logits(tokens, torch.ones_like(tokens)), torch.tensor([0, 1]))
        loss.backward()
        assert all(tensor.grad is not None for tensor in trainable.values())
        optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in trainable.items())
    assert tensors_hash(stack.frozen_tensors()) == frozen
    assert all(tensor.grad is None for name, tensor in stack.network.named_parameters() if name not in trainable)


# ---------------------------------------------------------------------- C4: heads


def test_c4_a_new_head_comes_from_the_seed_alone(tiny_base: Path, table3: Specs, mortality: Task) -> None:
    heads = []
    for index, label in enumerate(("head", "lora", "clinical-frozen+lora")):
        torch.manual_seed(index)  # what the library drew before must not matter
        heads.append(Stack.build(str(tiny_base), table3[label], mortality, seed=3).head.weight)
    assert all(torch.equal(head, heads[0]) for head in heads)
    other = Stack.build(str(tiny_base), [], mortality, seed=4).head.weight
    assert not torch.equal(other, heads[0])
    assert 0.05 < float(heads[0].detach().std()) < 0.2


def test_c4_head_is_float32_in_a_bfloat16_base(tiny_base: Path, table3: Specs, mortality: Task) -> None:
    model: Any = classifier(tiny_base).to(torch.bfloat16)
    model = PeftModel(model, plain_config(modules_to_save=["score"]), adapter_name="task")
    head = model.base_model.model.score.modules_to_save["task"].weight
    still_a_pitfall(head.dtype == torch.bfloat16, "a head in a bfloat16 base is bfloat16")
    stack = Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality, dtype="bfloat16")
    assert stack.network.get_input_embeddings().weight.dtype == torch.bfloat16
    assert stack.head.weight.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in stack.trainable_parameters().values())
    assert all(tensor.dtype == torch.float32 for tensor in clinical_tensors(stack))
    tokens = torch.arange(3, 13)[None]
    logits = stack.logits(tokens, torch.ones_like(tokens))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert stack.head.weight.grad is not None
    assert stack.head.weight.grad.dtype == torch.float32


def test_c4_config_lists_do_not_grow(tiny_base: Path, mortality: Task, tmp_path: Path) -> None:
    reused = plain_config(task_type="SEQ_CLS")
    for _ in range(2):
        get_peft_model(classifier(tiny_base), reused)
    still_a_pitfall(len(reused.modules_to_save or []) > 2, "a configuration's modules_to_save grows with each use")
    for trial in range(2):
        stack = Stack.build(str(tiny_base), [TASK], mortality)
        stack.save(tmp_path / str(trial))
        stack.save(tmp_path / str(trial))
    values = [json.loads((tmp_path / trial / "task" / "adapter_config.json").read_text()) for trial in "01"]
    assert values[0] == values[1]
    assert values[0]["modules_to_save"] == ["score"]
    assert values[0]["target_modules"] == ["q_proj", "v_proj"]
    assert TASK.target_modules == ("q_proj", "v_proj")
    first, second = (adapter_config(TASK, stack.network) for _ in range(2))
    assert first is not second
    assert first.to_dict() == second.to_dict()


def test_c4_tasks_with_other_numbers_of_classes_share_a_clinical_adapter(
    tiny_base: Path, table3: Specs, mortality: Task
) -> None:
    codes = Task("diagnoses", "multilabel", tuple(f"D{index}" for index in range(40)))
    sizes = [
        Stack.build(str(tiny_base), table3["clinical-frozen+lora"], task).head.weight.shape[0]
        for task in (mortality, STAY, codes)
    ]
    assert sizes == [2, 5, 40]


def test_c4_the_head_trains_although_no_wrapper_says_so(tiny_base: Path, table3: Specs, mortality: Task) -> None:
    model: Any = PeftModel(classifier(tiny_base), plain_config(), adapter_name="clinical")
    still_a_pitfall(not model.base_model.model.score.weight.requires_grad, "without modules_to_save the head is frozen")
    for label in ("head", "clinical-frozen", "clinical-frozen+lora"):
        stack = Stack.build(str(tiny_base), table3[label], mortality)
        assert stack.head.weight.requires_grad, label
        assert stack.trainable_parameters()["score.weight"] is stack.head.weight, label


def test_c4_all_linear_leaves_the_head_alone(tiny_base: Path, mortality: Task) -> None:
    model: Any = PeftModel(classifier(tiny_base), plain_config(target_modules="all-linear"), adapter_name="task")
    still_a_pitfall(hasattr(model.base_model.model.score, "lora_A"), "all-linear puts an adapter on the head")
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="task", rank=2, target_modules="all-linear")], mortality)
    names = sorted({name.rsplit(".", 1)[-1] for name in stack.lora_layers()})
    assert names == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert type(stack.head) is torch.nn.Linear
    with pytest.raises(InputError, match=r"adapters\.task\.target_modules: the base has no 'score'"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="task", target_modules=("score",))], mortality)


def test_c4_a_read_adapter_on_the_head_is_refused(tiny_base: Path, mortality: Task, tmp_path: Path) -> None:
    model: Any = PeftModel(classifier(tiny_base), plain_config(target_modules=["q_proj", "score"]), adapter_name="a")
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(InputError, match="score"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(tmp_path / "a"))], mortality)


def test_c4_number_and_names_of_classes_come_back(
    tiny_base: Path, table3: Specs, perturbed: Perturbed, tmp_path: Path
) -> None:
    perturbed(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], STAY)).save(tmp_path / "stack")
    config = json.loads((tmp_path / "stack" / "task" / "adapter_config.json").read_text())
    still_a_pitfall("num_labels" not in config, "an adapter's folder does not say how many classes there are")
    assert Stack.load(tmp_path / "stack").task == STAY


@pytest.mark.parametrize("method", ["other", "pickle", "copies", "bias"])
def test_c4_adapters_that_a_stack_cannot_hold_are_refused(
    tiny_base: Path, plain_clinical: Path, mortality: Task, tmp_path: Path, method: str
) -> None:
    folder = tmp_path / method
    if method == "other":
        config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
        get_peft_model(causal(tiny_base), config).save_pretrained(str(folder))
        wanted = "IA3 adapter; stacks hold lora, dora"
    elif method == "pickle":
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes((plain_clinical / "adapter_config.json").read_bytes())
        torch.save(load_file(plain_clinical / WEIGHTS_FILE), folder / "adapter_model.bin")
        wanted = "pickled adapters are not opened"
    else:
        changes: dict[str, Any] = {"modules_to_save": ["lm_head"]} if method == "copies" else {"bias": "all"}
        get_peft_model(causal(tiny_base), plain_config(task_type="CAUSAL_LM", **changes)).save_pretrained(str(folder))
        wanted = "lm_head" if method == "copies" else "bias"
    with pytest.raises(InputError, match=wanted):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(folder)), TASK], mortality)


# ---------------------------------------------------------------------- C5: saving and loading


def test_c5_round_trip_is_exact_and_each_adapter_has_its_folder(
    frozen_and_task: Stack, perturbed: Perturbed, tmp_path: Path
) -> None:
    stack = perturbed(frozen_and_task)
    stack.save(tmp_path / "stack")
    assert {item.name for item in (tmp_path / "stack").iterdir()} == {"stack.json", "clinical", "task"}
    assert HEAD_KEY in load_file(tmp_path / "stack" / "task" / WEIGHTS_FILE)
    assert HEAD_KEY not in load_file(tmp_path / "stack" / "clinical" / WEIGHTS_FILE)
    loaded = Stack.load(tmp_path / "stack")
    assert tensors_hash(loaded.network.state_dict()) == tensors_hash(stack.network.state_dict())
    assert torch.equal(probe_output(loaded), probe_output(stack))
    check_stack(loaded)


def test_c5_putting_checkpointed_tensors_back_leaves_the_stack_whole(
    frozen_and_task: Stack, perturbed: Perturbed
) -> None:
    # The library's own resume thaws clinical and switches task off; a checkpoint here is the trainable tensors.
    kept = copy.deepcopy({name: tensor.data for name, tensor in frozen_and_task.trainable_parameters().items()})
    before = probe_output(frozen_and_task)
    perturbed(frozen_and_task)
    assert not torch.equal(probe_output(frozen_and_task), before)
    with torch.no_grad():
        for name, tensor in frozen_and_task.trainable_parameters().items():
            tensor.copy_(kept[name])
    assert torch.equal(probe_output(frozen_and_task), before)
    check_stack(frozen_and_task)


def test_c5_saving_makes_no_network_call(
    tiny_base: Path, clinical: Path, mortality: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    # As if online: offline mode alone would hide the library's question about the base's config.json.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *given: calls.append(given))
    shutil.copytree(clinical, tmp_path / "clinical")
    file = tmp_path / "clinical" / "clinical" / "adapter_config.json"
    hub = {"base_model_name_or_path": "organisation/model"}
    file.write_text(json.dumps(json.loads(file.read_text()) | hub))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(causal(tiny_base), str(file.parent))
        plain.save_pretrained(str(tmp_path / "plain"))
    still_a_pitfall(bool(calls), "save_pretrained asks the hub for config.json")
    calls.clear()
    spec = [AdapterRecipe(name="clinical", path=str(tmp_path / "clinical")), TASK]
    stack = Stack.build(str(tiny_base), spec, mortality)
    stack.base = dataclasses.replace(stack.base, name="organisation/model")
    stack.save(tmp_path / "stack")
    assert calls == []
    config = json.loads((tmp_path / "stack" / "task" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "organisation/model"


@pytest.mark.parametrize("name", ["ward.icu", "lora", "lora_a", "default", "head", "Clinical", "", "a/b", ".."])
def test_c5_names_that_the_library_stumbles_over_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        AdapterRecipe(name=name)


@pytest.mark.parametrize("name", ["model", "layers", "q_proj", "score", "weight"])
def test_c5_a_name_that_the_base_has_too_is_refused(tiny_base: Path, mortality: Task, name: str) -> None:
    with pytest.raises(InputError, match=f"adapters.{name}"):
        Stack.build(str(tiny_base), [AdapterRecipe(name=name, rank=2), TASK], mortality)


def test_c5_nothing_but_safetensors_is_written(frozen_and_task: Stack, tmp_path: Path) -> None:
    frozen_and_task.save(tmp_path / "stack")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert len(files) == 7
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                assert list(opened.keys())
        else:
            path.read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [("clinical", "clinical_mp"), ("clinical_mp", "clinical")])
def test_c5_names_that_begin_alike_do_not_collide(
    tiny_base: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path, names: tuple[str, str]
) -> None:
    spec = [AdapterRecipe(name=name, rank=rank) for name, rank in zip(names, (2, 3), strict=True)]
    stack = perturbed(Stack.build(str(tiny_base), spec, mortality))
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    for name, rank in zip(names, (2, 3), strict=True):
        tensors = loaded.adapter_tensors(name)
        assert len(tensors) == 8
        assert {min(tensor.shape) for tensor in tensors.values()} == {rank}
        assert tensors_hash(tensors) == tensors_hash(stack.adapter_tensors(name))
