"""The Stack: five invariants, each broken on purpose; pooling; saving, loading, refusing; parity with plain PEFT."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.model.checks import (
    StackError,
    check_active,
    check_adapters_change_output,
    check_float32,
    check_packing,
    check_stack,
    check_trainable,
    effects,
    probe_output,
)
from clinstack.model.lineage import HEAD_KEY, WEIGHTS_FILE, tensors_hash
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, stack_label
from clinstack.tasks import Task

Perturbed = Callable[..., Stack]
Specs = dict[str, list[AdapterRecipe]]
LABELS = ("head", "lora", "clinical-frozen", "clinical-frozen+lora", "clinical-trainable", "clinical-trainable+lora")
TASK = AdapterRecipe(name="task", rank=2, alpha=4)


@pytest.fixture
def stack(tiny_base: Path, table3: Specs, mortality: Task) -> Stack:
    return Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality)


@pytest.fixture
def causal(tiny_base: Path, clinical: Path) -> Stack:
    return Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(clinical))])


@pytest.fixture(scope="module")
def saved_once(
    tiny_base: Path, table3: Specs, mortality: Task, perturbed: Perturbed, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "stack"
    perturbed(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality)).save(folder)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A saved stack that a test may damage."""
    return Path(shutil.copytree(saved_once, tmp_path / "stack"))


# ---------------------------------------------------------------------- the invariants, broken on purpose


def test_invariant_1_an_adapter_that_is_not_active_is_caught(stack: Stack) -> None:
    model: Any = stack._peft_model
    model.set_adapter("task")
    with pytest.raises(StackError, match=r"q_proj: the adapters \['task'\] are active; the spec says"):
        check_active(stack)


def test_building_and_loading_assert_the_invariants(
    tiny_base: Path, table3: Specs, mortality: Task, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What PEFT leaves when nobody settles it: the second adapter is not active.
    monkeypatch.setattr(Stack, "settle", lambda stack: None)
    with pytest.raises(StackError, match=r"\['clinical'\] are active"):
        Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality)
    with pytest.raises(StackError, match=r"\['clinical'\] are active"):
        Stack.load(saved)


def test_invariant_1_an_adapter_in_no_layer_is_caught(stack: Stack) -> None:
    for layer in stack.lora_layers().values():
        del layer.lora_A["clinical"]
    with pytest.raises(StackError, match="'clinical' is in no layer"):
        check_active(stack)


def test_invariant_1_merged_adapters_are_caught(stack: Stack) -> None:
    model: Any = stack._peft_model
    model.merge_adapter(["clinical"])
    with pytest.raises(StackError, match="merged"):
        check_active(stack)


@pytest.mark.parametrize("name", ["clinical", "task"])
def test_invariant_1_an_adapter_outside_the_forward_pass_is_caught(stack: Stack, name: str) -> None:
    for layer in stack.lora_layers().values():
        layer.scaling[name] = 0.0
    check_active(stack)  # it looks active
    with pytest.raises(StackError, match=f"'{name}' is not in the forward pass"):
        check_adapters_change_output(stack)
    with pytest.raises(StackError, match=f"'{name}' is not in the forward pass"):
        check_stack(stack)


def test_invariant_1_an_output_that_does_not_repeat_is_caught(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = stack.logits
    monkeypatch.setattr(stack, "logits", lambda *given: logits(*given) + torch.rand(1))
    with pytest.raises(StackError, match="not repeatable"):
        check_adapters_change_output(stack)


def test_invariant_1_checking_leaves_the_weights_as_they_were(stack: Stack) -> None:
    before = tensors_hash(stack.network.state_dict())
    check_stack(stack)
    assert tensors_hash(stack.network.state_dict()) == before


def test_invariant_2_a_thawed_tensor_is_caught(stack: Stack) -> None:
    name, tensor = next((n, t) for n, t in stack.network.named_parameters() if ".clinical." in n)
    tensor.requires_grad_(True)
    with pytest.raises(StackError, match=re.escape(f"{name} is trainable")):
        check_trainable(stack)
    tensor.requires_grad_(False)
    stack.network.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(StackError, match=r"embed_tokens\.weight is trainable"):
        check_stack(stack)


def test_invariant_2_a_frozen_head_is_caught(stack: Stack) -> None:
    stack.head.weight.requires_grad_(False)
    with pytest.raises(StackError, match=r"score\.weight is frozen"):
        check_stack(stack)


def test_invariant_3_other_outputs_than_when_saved_are_caught(saved: Path) -> None:
    record = read_json(saved / "stack.json")
    record["probe"][0][0] += 0.5
    write_json(saved / "stack.json", record)
    with pytest.raises(StackError, match=r"other outputs than when it was saved \(difference 0\.5"):
        Stack.load(saved)


def test_invariant_4_a_mask_that_lets_documents_see_each_other_is_caught(
    causal: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_states = causal.hidden_states

    def masked(input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return hidden_states(input_ids, torch.ones_like(input_ids), position_ids)

    monkeypatch.setattr(causal, "hidden_states", masked)
    with pytest.raises(StackError, match="Packed documents see each other"):
        check_packing(causal)
    with pytest.raises(StackError, match="Packed documents see each other"):
        check_stack(causal)


def test_invariant_4_positions_that_run_on_are_caught(causal: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_states = causal.hidden_states
    monkeypatch.setattr(causal, "hidden_states", lambda tokens, position_ids=None: hidden_states(tokens))
    with pytest.raises(StackError, match="Packed documents see each other"):
        check_packing(causal)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_invariant_4_a_packed_document_has_the_loss_it_has_alone(tiny_base: Path, clinical: Path, dtype: str) -> None:
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(clinical))], dtype=dtype)
    stack.eval()
    documents = [torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 4)]

    def loss(hidden: Tensor, tokens: Tensor) -> float:
        logits = stack.network.get_output_embeddings()(hidden)[:-1].float()
        return float(torch.nn.functional.cross_entropy(logits, tokens[1:]))

    with torch.no_grad():
        positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
        packed = stack.hidden_states(torch.cat(documents)[None], position_ids=positions)[0].split((9, 4))
        for hidden, document in zip(packed, documents, strict=True):
            alone = loss(stack.hidden_states(document[None])[0], document)
            assert loss(hidden, document) == pytest.approx(alone, abs=1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("part", ["adapter", "head"])
def test_invariant_5_weights_that_are_not_float32_are_caught(stack: Stack, part: str) -> None:
    if part == "adapter":
        next(iter(stack.lora_layers().values())).lora_A["task"].bfloat16()
        wanted = r"lora_A\.task\.weight is torch\.bfloat16; adapters and head must be float32"
    else:
        stack.head.half()
        wanted = r"score\.weight is torch\.float16"
    with pytest.raises(StackError, match=wanted):
        check_float32(stack)
    with pytest.raises(StackError, match=wanted):
        check_stack(stack)


# ---------------------------------------------------------------------- what is in a stack


def test_trainable_parameters_of_the_six_stacks(tiny_base: Path, table3: Specs, mortality: Task) -> None:
    # In each of two layers: q_proj 32 -> 32, v_proj 32 -> 16. The clinical adapter has rank 4, the task's rank 2.
    head, clinical, task = 2 * 32, 2 * 4 * (64 + 48), 2 * 2 * (64 + 48)
    wanted = {
        "head": head,
        "lora": head + task,
        "clinical-frozen": head,
        "clinical-frozen+lora": head + task,
        "clinical-trainable": head + clinical,
        "clinical-trainable+lora": head + clinical + task,
    }
    counted, frozen = {}, {}
    for label, spec in table3.items():
        stack = Stack.build(str(tiny_base), spec, mortality)
        counted[label] = sum(tensor.numel() for tensor in stack.trainable_parameters().values())
        frozen[label] = stack.backbone_is_frozen
        assert stack_label(spec) == label
    assert counted == wanted
    assert [label for label in LABELS if frozen[label]] == ["head", "clinical-frozen"]


def test_a_new_adapter_changes_nothing_until_it_is_trained(stack: Stack, perturbed: Perturbed) -> None:
    measured = effects(stack)
    assert measured["clinical"] > 1e-3
    assert measured["task"] == 0.0
    assert effects(perturbed(stack))["task"] > 1e-3


def test_the_stack_with_both_adapters_differs_from_each_alone(stack: Stack, perturbed: Perturbed) -> None:
    perturbed(stack)
    outputs = [probe_output(stack)]
    for names in (("clinical",), ("task",), ()):
        with stack.switched_off(*names):
            outputs.append(probe_output(stack))
    for index, one in enumerate(outputs):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in outputs[index + 1 :])


def test_switching_off_restores_the_stack_also_after_an_error(stack: Stack, tiny_base: Path, mortality: Task) -> None:
    before = probe_output(stack)
    bare = Stack.build(str(tiny_base), [], mortality)
    with stack.switched_off():
        assert torch.equal(probe_output(stack), probe_output(bare))
    with pytest.raises(RuntimeError, match="inside"), stack.switched_off("clinical"):
        raise RuntimeError("inside")
    assert torch.equal(probe_output(stack), before)
    check_stack(stack)


def test_the_same_seed_builds_the_same_stack(tiny_base: Path, table3: Specs, mortality: Task) -> None:
    hashes = []
    for seed, before in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(before)
        built = Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality, seed=seed)
        hashes.append(tensors_hash(built.network.state_dict()))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_causal_stack_has_no_head(causal: Stack) -> None:
    assert causal.task is None
    assert not causal.trainable_parameters()
    with pytest.raises(InputError, match="no classifier head"):
        _ = causal.head


# ---------------------------------------------------------------------- pooling


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooling_takes_the_last_real_token_whatever_pads(
    tiny_base: Path, table3: Specs, mortality: Task, perturbed: Perturbed, dtype: str
) -> None:
    built = perturbed(Stack.build(str(tiny_base), table3["clinical-frozen+lora"], mortality, dtype=dtype))
    built.eval()
    # Rows end with the end token (2) and hold an ordinary token (7), so each of the ids that pad is also read.
    rows = [torch.tensor(row) for row in ([1, 7, 50, 60, 2], [1, 70, 80, 90, 100, 7, 110, 120, 2], [1])]
    width = max(len(row) for row in rows)
    with torch.no_grad():
        alone = torch.cat([built.logits(row[None], torch.ones_like(row)[None]) for row in rows])
    assert float((alone[0] - alone[1]).abs().max()) > 0.1
    for side, pad in product(("right", "left"), (0, 2, 7)):
        tokens, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            tokens[index, place], mask[index, place] = row, 1
        with torch.no_grad():
            together = built.logits(tokens, mask)
        assert together.shape == (3, 2)
        assert together.dtype == torch.float32
        # bfloat16 rounds differently in other shapes; its tolerance still tells one token's state from another's.
        tolerance = 1e-5 if dtype == "float32" else 0.05
        assert torch.allclose(together, alone, atol=tolerance), (side, pad)


# ---------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("label", LABELS)
def test_save_load_and_resave_are_exact(
    tiny_base: Path, table3: Specs, mortality: Task, perturbed: Perturbed, tmp_path: Path, label: str
) -> None:
    built = perturbed(Stack.build(str(tiny_base), table3[label], mortality))
    built.save(tmp_path / "first")
    loaded = Stack.load(tmp_path / "first")
    assert tensors_hash(loaded.network.state_dict()) == tensors_hash(built.network.state_dict())
    tokens = torch.randint(3, 300, (4, 20), generator=torch.Generator().manual_seed(0))
    built.eval()
    with torch.no_grad():
        mask = torch.ones_like(tokens)
        assert torch.equal(loaded.logits(tokens, mask), built.logits(tokens, mask))
    assert loaded.adapters == built.adapters
    assert loaded.task == mortality
    assert set(loaded.trainable_parameters()) == set(built.trainable_parameters())
    loaded.save(tmp_path / "second")
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "second") for path in (tmp_path / "second").rglob("*") if path.is_file()
    )
    for file in files:
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "first" / file).read_bytes(), file


def test_the_record_says_what_each_adapter_is_stacked_on(saved: Path) -> None:
    record = read_json(saved / "stack.json")
    lower, upper = record["adapters"]
    assert [lower["name"], upper["name"]] == ["clinical", "task"]
    assert [lower["trainable"], upper["trainable"]] == [False, True]
    assert lower["parent"] == record["base"]["fingerprint"]
    assert upper["parent"] == lower["weights"] == tensors_hash(load_file(saved / "clinical" / WEIGHTS_FILE))
    assert record["task"]["classes"] == ["alive", "dead"]
    assert record["head"]["folder"] == "task"


def test_a_trained_clinical_adapter_is_recorded_anew(
    tiny_base: Path, table3: Specs, mortality: Task, perturbed: Perturbed, clinical: Path, tmp_path: Path
) -> None:
    perturbed(Stack.build(str(tiny_base), table3["clinical-trainable+lora"], mortality)).save(tmp_path / "stack")
    lower, upper = read_json(tmp_path / "stack" / "stack.json")["adapters"]
    assert lower["weights"] != read_json(clinical / "stack.json")["adapters"][0]["weights"]
    assert upper["parent"] == lower["weights"]


def test_three_levels_work_as_two_do(
    tiny_base: Path, clinical: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path
) -> None:
    lower = AdapterRecipe(name="clinical", path=str(clinical))
    ward = AdapterRecipe(name="ward", rank=3, target_modules=("k_proj", "down_proj"))
    perturbed(Stack.build(str(tiny_base), [lower, ward])).save(tmp_path / "ward")
    middle = AdapterRecipe(name="ward", path=str(tmp_path / "ward" / "ward"))
    built = perturbed(Stack.build(str(tiny_base), [lower, middle, TASK], mortality))
    assert all(effect > 1e-4 for effect in effects(built).values())
    assert len(effects(built)) == 3
    built.save(tmp_path / "stack")
    assert torch.equal(probe_output(Stack.load(tmp_path / "stack")), probe_output(built))
    with pytest.raises(InputError, match=r"adapters\.0 \(ward\): it was trained on top of clinical; here 0 adapters"):
        Stack.build(str(tiny_base), [middle, TASK], mortality)
    with pytest.raises(InputError, match="has 2 adapters"):
        Stack.build(str(tiny_base), [lower, AdapterRecipe(name="ward", path=str(tmp_path / "ward"))], mortality)


def test_an_unverified_adapter_stays_unverified(
    tiny_base: Path, clinical: Path, mortality: Task, tmp_path: Path
) -> None:
    shutil.copytree(clinical / "clinical", tmp_path / "hub")
    spec = [AdapterRecipe(name="clinical", path=str(tmp_path / "hub")), TASK]
    built = Stack.build(str(tiny_base), spec, mortality)
    built.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert [adapter.verified for adapter in loaded.adapters] == [False, True]
    assert built.adapters == loaded.adapters


def test_a_failed_save_leaves_the_old_stack(stack: Stack, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "stack.json").read_text()

    def full(*given: object, **named: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("clinstack.model.saving.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        stack.save(saved)
    assert (saved / "stack.json").read_text() == before
    Stack.load(saved)


def test_a_saved_stack_loads_from_a_finished_run_only(saved: Path) -> None:
    run = saved.parent
    write_json(run / "run.json", {"status": "running"})
    with pytest.raises(InputError, match="not finished"):
        Stack.load(run)
    write_json(run / "run.json", {"status": "done"})
    assert Stack.load(run).label == "clinical+task"


# ---------------------------------------------------------------------- refusing what does not belong together


def tamper(path: Path, key: str | None = None) -> None:
    tensors = load_file(path)
    name = key or next(name for name in tensors if name != HEAD_KEY)
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, path)


@pytest.mark.parametrize("name", ["clinical", "task"])
def test_changed_weights_are_refused(saved: Path, name: str) -> None:
    tamper(saved / name / WEIGHTS_FILE)
    with pytest.raises(InputError, match=rf"adapter {name}: the weights in .* are not those that stack\.json records"):
        Stack.load(saved)


def test_a_changed_head_is_refused(saved: Path) -> None:
    tamper(saved / "task" / WEIGHTS_FILE, HEAD_KEY)
    with pytest.raises(InputError, match="the head is not the one"):
        Stack.load(saved)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("stack.json", "stack.json is damaged"),
        ("task/adapter_model.safetensors", "task.*is damaged"),
        ("clinical/adapter_config.json", "adapter_config.json is not a PEFT configuration"),
    ],
)
def test_damaged_files_are_refused(saved: Path, file: str, message: str) -> None:
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=message):
        Stack.load(saved)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("stack.json", "is not a Stack|no stack.json"),
        ("task/adapter_model.safetensors", "has no adapter_model.safetensors"),
        ("clinical/adapter_config.json", "has no adapter_config.json"),
    ],
)
def test_missing_files_are_refused(saved: Path, file: str, message: str) -> None:
    (saved / file).unlink()
    with pytest.raises(InputError, match=message):
        Stack.load(saved)


def test_a_missing_head_is_refused(tiny_base: Path, table3: Specs, mortality: Task, tmp_path: Path) -> None:
    Stack.build(str(tiny_base), table3["clinical-frozen"], mortality).save(tmp_path / "stack")
    head = tmp_path / "stack" / "head" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:20])
    with pytest.raises(InputError, match=r"the head in head/head\.safetensors is missing or damaged"):
        Stack.load(tmp_path / "stack")
    head.unlink()
    with pytest.raises(InputError, match=r"the head in head/head\.safetensors is missing or damaged"):
        Stack.load(tmp_path / "stack")


def test_another_base_is_refused(saved: Path, clinical: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    network = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        network.model.norm.weight += 0.01
    network.save_pretrained(other)
    with pytest.raises(InputError, match=r"the base .*other is not the one that this stack was built on"):
        Stack.load(saved, str(other))
    with pytest.raises(InputError, match=r"adapters\.0 \(clinical\): it was trained on a base with fingerprint"):
        Stack.build(str(other), [AdapterRecipe(name="clinical", path=str(clinical))])


def test_the_base_may_lie_elsewhere(saved: Path, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "moved")
    assert Stack.load(saved, str(tmp_path / "moved")).base.folder == tmp_path / "moved"


def test_another_clinical_adapter_beneath_is_refused(
    saved: Path, tiny_base: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path
) -> None:
    recipe = AdapterRecipe(name="clinical", rank=4, alpha=8)
    perturbed(Stack.build(str(tiny_base), [recipe]), seed=2).save(tmp_path / "other")
    spec = [
        AdapterRecipe(name="clinical", path=str(tmp_path / "other")),
        AdapterRecipe(name="task", path=str(saved / "task")),
    ]
    with pytest.raises(
        InputError, match=r"adapters\.1 \(task\): it was trained on the adapter 'clinical' with weights"
    ):
        Stack.build(str(tiny_base), spec, mortality)
    # The same within a saved stack: another clinical folder, with a record that fits it.
    record, others = read_json(saved / "stack.json"), read_json(tmp_path / "other" / "stack.json")
    shutil.rmtree(saved / "clinical")
    shutil.copytree(tmp_path / "other" / "clinical", saved / "clinical")
    record["adapters"][0]["weights"] = others["adapters"][0]["weights"]
    write_json(saved / "stack.json", record)
    with pytest.raises(InputError, match="adapter task: it was trained on the adapter 'clinical'"):
        Stack.load(saved)


def test_an_adapter_of_another_size_is_refused(tiny_base: Path, clinical: Path, tmp_path: Path) -> None:
    folder = tmp_path / "misfit"
    shutil.copytree(clinical / "clinical", folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    values["target_modules"] = ["q_proj", "k_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="adapter clinical: its file does not fit the base"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(folder))])
    values |= {"target_modules": ["q_proj", "v_proj"], "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"adapter clinical: its file does not fit the base \(size mismatch"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(folder))])
    values |= {"target_modules": ["c_attn"]}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"adapter clinical: it does not fit the base: .*c_attn"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(folder))])


def test_a_path_that_is_no_adapter_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapters\.0 \(clinical\)\.path: .*nowhere does not exist"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(tmp_path / "nowhere"))])
    with pytest.raises(InputError, match="neither a Run nor a Stack"):
        Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(tmp_path))])


# ---------------------------------------------------------------------- plain PEFT


def run_card(folder: Path, card: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a model card literally, in the folder that holds the adapters."""
    found = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exec(compile(found[1], str(card), "exec"), names)
    return names


@pytest.mark.parametrize("label", ["lora", "clinical-frozen+lora", "clinical-trainable+lora"])
def test_the_card_of_the_task_adapter_opens_the_whole_with_plain_peft(
    tiny_base: Path,
    table3: Specs,
    mortality: Task,
    perturbed: Perturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
) -> None:
    built = perturbed(Stack.build(str(tiny_base), table3[label], mortality))
    built.save(tmp_path / "stack")
    card = tmp_path / "stack" / "task" / "README.md"
    names = run_card(tmp_path / "stack", card, monkeypatch)
    tokenizer, model = names["tokenizer"], names["model"]
    batch = tokenizer(["chest pain", "admitted with shortness of breath"], return_tensors="pt", padding=True)
    assert 0 in batch["attention_mask"], "one row must be padded"
    built.eval()
    with torch.no_grad():
        plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ours = built.logits(batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(plain, ours, atol=1e-5)
    if label == "lora":
        return
    assert "only half of the model" in card.read_text()
    with built.switched_off("clinical"), torch.no_grad():
        alone = built.logits(batch["input_ids"], batch["attention_mask"])
    assert float((alone - plain).abs().max()) > 1e-2


def test_the_card_of_the_clinical_adapter_opens_it_with_plain_peft(
    clinical: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run_card(clinical, clinical / "clinical" / "README.md", monkeypatch)
    stack = Stack.load(clinical)
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        ours = stack.network.get_output_embeddings()(stack.hidden_states(tokens))
        assert torch.allclose(names["model"](input_ids=tokens).logits, ours, atol=1e-5)
