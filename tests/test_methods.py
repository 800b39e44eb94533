"""Every adapter method: the same numbers as plain PEFT or plain torch, and everything that a stack promises of it."""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from clinstack.errors import InputError
from clinstack.model.checks import StackError, check_stack, effects, probe_output
from clinstack.model.explain import explain
from clinstack.model.lineage import ENCODER_FILE, WEIGHTS_FILE, tensors_hash
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task
from methods import NAMES, VIRTUAL, WITH_ENCODER, new

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Perturbed = Callable[..., Stack]
ROWS = [torch.tensor(row) for row in ([1, 7, 50, 60, 2], [1, 70, 80, 90, 100, 7, 110, 120, 2], [1, 9])]


def read(folder: Path, **values: Any) -> AdapterRecipe:
    return AdapterRecipe(name="clinical", path=str(folder), **values)


def padded(side: str, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and mask of `ROWS`, padded on a side."""
    width = max(len(row) for row in ROWS)
    tokens, mask = torch.full((len(ROWS), width), pad), torch.zeros((len(ROWS), width), dtype=torch.long)
    for index, row in enumerate(ROWS):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[index, place], mask[index, place] = row, 1
    return tokens, mask


def causal_logits(stack: Stack, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    logits: Tensor = stack.network.get_output_embeddings()(stack.hidden_states(tokens, mask))
    return logits


def loss_of(stack: Stack) -> Tensor:
    """Return the mean loss of the next tokens of `ROWS`."""
    tokens, mask = padded("right")
    labels = torch.where(mask == 1, tokens, -100)
    return next_token_loss(causal_logits(stack, tokens, mask), labels)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def train(stack: Stack, steps: int, total: int = 10) -> None:
    """Train as the engine does, with a new optimizer."""
    stack.begin_training(total)
    optimizer = torch.optim.AdamW(stack.trainable_parameters().values(), lr=1e-2)
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        stack.train()
        loss = loss_of(stack)
        penalty = stack.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        stack.after_step(step)
        optimizer.zero_grad()
    stack.eval()


def causal(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype="float32")


def plain_trainable(base: Path, folder: Path) -> Any:
    """Return the saved adapter in plain PEFT, ready to train; or the model that full fine-tuning left."""
    adapter = folder / "clinical"
    if (adapter / "config.json").exists():
        return causal(adapter)
    config: Any = PeftConfig.from_pretrained(str(adapter))
    config.task_type = "CAUSAL_LM"
    config.inference_mode = False
    if hasattr(config, "tokenizer_name_or_path"):
        config.prompt_tuning_init = "RANDOM"
    model: Any = get_peft_model(causal(base), config)
    weights = load_file(adapter / WEIGHTS_FILE)
    if not config.is_prompt_learning:
        set_peft_model_state_dict(model, weights)
    elif (adapter / ENCODER_FILE).exists():
        model.prompt_encoder["default"].load_state_dict(load_file(adapter / ENCODER_FILE))
    else:
        model.prompt_encoder["default"].embedding.weight.data = weights["prompt_embeddings"]
    return model


# ---------------------------------------------------------------------- the same numbers as the plain computation


@pytest.mark.parametrize("spec", NAMES)
def test_loss_and_gradients_are_those_of_plain_peft(tiny_base: Path, trained: Callable[[str], Path], spec: str) -> None:
    plain = plain_trainable(tiny_base, trained(spec))
    plain.train()
    tokens, mask = padded("right")
    labels = torch.where(mask == 1, tokens, -100)
    output = plain(input_ids=tokens, attention_mask=mask, labels=labels)
    # PEFT also lets the last virtual token of a prompt predict the first token, which nobody else predicts.
    wanted = next_token_loss(output.logits[:, -tokens.shape[1] :], labels) if spec in VIRTUAL else output.loss
    wanted.backward()
    stack = Stack.build(str(tiny_base), [read(trained(spec), trainable=True)])
    stack.train()
    stack.begin_training(10)
    loss, penalty = loss_of(stack), stack.penalty()
    assert (penalty is not None) == (spec == "adalora")
    loss = loss if penalty is None else loss + penalty  # PEFT adds AdaLoRA's to the loss by itself
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    ours = {name: tensor.grad for name, tensor in stack.trainable_parameters().items()}
    theirs = {
        name.removeprefix("base_model.model.")
        .replace("prompt_encoder.default.", "virtual_tokens.clinical.")
        .replace(".default", ".clinical"): tensor.grad
        for name, tensor in plain.named_parameters()
        if tensor.requires_grad
    }
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient is not None, name
        assert float((gradient - theirs[name]).abs().max()) < 1e-5, name
    assert max(float(gradient.abs().max()) for gradient in ours.values() if gradient is not None) > 1e-3


@pytest.mark.parametrize("spec", NAMES)
def test_the_saved_adapter_opens_in_plain_peft_with_equal_outputs(
    tiny_base: Path, trained: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    folder = trained(spec)
    stack = Stack.load(folder)
    if spec == "full":
        plain: Any = causal(folder / "clinical")
    else:
        plain = PeftModel.from_pretrained(causal(tiny_base), str(folder / "clinical"))
    plain.eval()
    by_card = run_card(folder, "clinical", monkeypatch)["model"]
    tokens, mask = padded("right")
    with torch.no_grad():
        ours = causal_logits(stack, tokens, mask)[mask == 1]
        for model in (plain, by_card):
            logits = model(input_ids=tokens, attention_mask=mask).logits[:, -tokens.shape[1] :]
            assert torch.allclose(logits[mask == 1], ours, atol=1e-5)
        bare = causal(tiny_base)(input_ids=tokens, attention_mask=mask).logits[mask == 1]
    assert float((bare - ours).abs().max()) > 1e-2


def run_card(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a model card literally, in the folder that holds the adapters."""
    card = folder / name / "README.md"
    found = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("ignore", FutureWarning)
        exec(compile(found[1], str(card), "exec"), names)
    return names


@pytest.mark.parametrize("spec", NAMES)
def test_a_classifier_opens_by_its_card_with_equal_outputs(
    tiny_base: Path, mortality: Task, perturbed: Perturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [new(spec, "task")], mortality))
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert torch.equal(loaded.head.weight, stack.head.weight)
    model = run_card(tmp_path / "stack", "task", monkeypatch)["model"]
    stack.eval()
    row = ROWS[1][None]  # alone: PEFT pools a padded row with virtual tokens at the padding
    with torch.no_grad():
        plain = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        assert torch.allclose(plain, stack.logits(row, torch.ones_like(row)), atol=1e-5)


@pytest.mark.parametrize("spec", NAMES)
def test_padding_on_either_side_is_no_padding(
    tiny_base: Path, mortality: Task, trained: Callable[[str], Path], spec: str
) -> None:
    stack = Stack.build(str(tiny_base), [read(trained(spec))], mortality)
    stack.eval()
    with torch.no_grad():
        alone = torch.cat([stack.logits(row[None], torch.ones_like(row)[None]) for row in ROWS])
        states = [stack.hidden_states(row[None])[0] for row in ROWS]
        for side in ("right", "left"):
            tokens, mask = padded(side, pad=7)
            assert torch.allclose(stack.logits(tokens, mask), alone, atol=1e-5), side
            hidden = stack.hidden_states(tokens, mask)
            assert hidden.shape[:2] == tokens.shape
            for index, wanted in enumerate(states):
                assert torch.allclose(hidden[index][mask[index] == 1], wanted, atol=1e-4), side


@pytest.mark.parametrize("spec", NAMES)
def test_packed_documents_are_as_alone_or_refused(tiny_base: Path, trained: Callable[[str], Path], spec: str) -> None:
    stack = Stack.build(str(tiny_base), [read(trained(spec))])
    stack.eval()
    packed = torch.cat(ROWS)[None]
    positions = torch.cat([torch.arange(len(row)) for row in ROWS])[None]
    assert stack.can_pack == (spec not in VIRTUAL)
    with torch.no_grad():
        if not stack.can_pack:
            with pytest.raises(ValueError, match="Packed documents cannot be read"):
                stack.hidden_states(packed, position_ids=positions)
            stack.hidden_states(packed, position_ids=torch.arange(packed.shape[1])[None])
            return
        together = stack.hidden_states(packed, position_ids=positions)[0].split([len(row) for row in ROWS])
        for row, states in zip(ROWS, together, strict=True):
            assert torch.allclose(states, stack.hidden_states(row[None])[0], atol=1e-5)


@pytest.mark.parametrize("spec", NAMES)
def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused(
    tiny_base: Path, trained: Callable[[str], Path], spec: str
) -> None:
    stack = Stack.build(str(tiny_base), [read(trained(spec), trainable=True)])
    stack.train()
    if spec.startswith("prefix"):
        with pytest.raises(InputError, match=r"gradient_checkpointing: the prefix of 'clinical' lies in the cache"):
            stack.use_gradient_checkpointing()
        return
    gradients = []
    for _ in range(2):
        loss_of(stack).backward()
        gradients.append({name: copy.copy(tensor.grad) for name, tensor in stack.trainable_parameters().items()})
        stack.network.zero_grad()
        stack.use_gradient_checkpointing()
    assert stack.network.is_activation_checkpointing
    for name, gradient in gradients[0].items():
        again = gradients[1][name]
        assert gradient is not None
        assert again is not None
        assert float((gradient - again).abs().max()) <= 1e-6, name


# ---------------------------------------------------------------------- training, saving, going on


@pytest.mark.parametrize("spec", NAMES)
def test_every_trainable_tensor_moves_and_nothing_else(tiny_base: Path, spec: str) -> None:
    stack = Stack.build(str(tiny_base), [new(spec)])
    before = {name: tensor.detach().clone() for name, tensor in stack.trainable_parameters().items()}
    frozen = tensors_hash(stack.frozen_tensors())
    assert before
    train(stack, 3)
    for name, tensor in stack.trainable_parameters().items():
        assert not torch.equal(tensor, before[name]), name
    assert tensors_hash(stack.frozen_tensors()) == frozen
    assert all(effect > 0 for effect in effects(stack).values())
    check_stack(stack)


@pytest.mark.parametrize("spec", NAMES)
def test_save_load_and_resave_are_exact(trained: Callable[[str], Path], tmp_path: Path, spec: str) -> None:
    stack = Stack.load(trained(spec))
    stack.save(tmp_path / "again")
    files = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert all(path.suffix in {".json", ".safetensors", ".md"} for path in files)
    for file in files:
        assert (trained(spec) / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert (Path("clinical") / ENCODER_FILE in files) == (spec in WITH_ENCODER)
    assert stack.adapters[0].method == new(spec).method
    check_stack(stack)


@pytest.mark.parametrize("spec", NAMES)
def test_continuing_from_disk_is_going_on_in_memory(tiny_base: Path, tmp_path: Path, spec: str) -> None:
    stack = Stack.build(str(tiny_base), [new(spec)])
    train(stack, 2, total=2 if spec == "adalora" else 10)
    stack.save(tmp_path / "stack")
    read_back = Stack.build(str(tiny_base), [read(tmp_path / "stack", trainable=True)])
    for one in (stack, read_back):
        train(one, 2)
    for name, tensor in stack.trainable_parameters().items():
        assert torch.equal(tensor, read_back.trainable_parameters()[name]), name
    assert torch.equal(probe_output(stack), probe_output(read_back))


@pytest.mark.parametrize("spec", WITH_ENCODER)
def test_virtual_tokens_without_their_encoder_are_used_but_not_trained(
    tiny_base: Path, trained: Callable[[str], Path], mortality: Task, tmp_path: Path, spec: str
) -> None:
    folder = Path(shutil.copytree(trained(spec) / "clinical", tmp_path / "plain"))
    (folder / ENCODER_FILE).unlink()
    with pytest.raises(
        InputError, match=r"adapters\.clinical: its folder holds the virtual tokens, but not the encoder"
    ):
        Stack.build(str(tiny_base), [read(folder, trainable=True)])
    used = Stack.build(str(tiny_base), [read(folder)], mortality)
    whole = Stack.build(str(tiny_base), [read(trained(spec))], mortality)
    assert torch.equal(probe_output(used), probe_output(whole))
    # A frozen adapter keeps its encoder through another stack, so that somebody can go on with it later.
    whole.save(tmp_path / "whole")
    kept = load_file(tmp_path / "whole" / "clinical" / ENCODER_FILE)
    assert tensors_hash(kept) == tensors_hash(load_file(trained(spec) / "clinical" / ENCODER_FILE))
    Stack.build(str(tiny_base), [read(tmp_path / "whole" / "clinical", trainable=True)])


@pytest.mark.parametrize("spec", ["prefix-projected", "p_tuning"])
def test_a_changed_encoder_is_refused(
    tiny_base: Path, trained: Callable[[str], Path], tmp_path: Path, spec: str
) -> None:
    folder = Path(shutil.copytree(trained(spec), tmp_path / "stack"))
    encoder = load_file(folder / "clinical" / ENCODER_FILE)
    encoder["embedding.weight"] = encoder["embedding.weight"] + 0.1
    save_file(encoder, folder / "clinical" / ENCODER_FILE)
    with pytest.raises(InputError, match=r"the encoder in .* is not the one that stack\.json records"):
        Stack.load(folder)
    (folder / "stack.json").unlink()
    with pytest.raises(InputError, match="its encoder computes other virtual tokens than its file holds"):
        Stack.build(str(tiny_base), [read(folder / "clinical", trainable=True)])


# ---------------------------------------------------------------------- switching off, and the invariants


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_switched_off_is_the_bare_base_to_the_last_bit(
    tiny_base: Path, trained: Callable[[str], Path], mortality: Task, spec: str, kind: str
) -> None:
    task = mortality if kind == "classifier" else None
    stack = Stack.build(str(tiny_base), [read(trained(spec), trainable=True)], task)
    bare = Stack.build(str(tiny_base), [], task)
    before = probe_output(stack)
    gradients = {name: tensor.requires_grad for name, tensor in stack.network.named_parameters()}
    with stack.switched_off():
        assert torch.equal(probe_output(stack), probe_output(bare))
        assert {name: tensor.requires_grad for name, tensor in stack.network.named_parameters()} == gradients
    assert torch.equal(probe_output(stack), before)
    assert not torch.equal(probe_output(bare), before)
    with pytest.raises(RuntimeError, match="inside"), stack.switched_off("clinical"):
        raise RuntimeError("inside")
    assert torch.equal(probe_output(stack), before)
    check_stack(stack)


@pytest.mark.parametrize("spec", NAMES)
def test_adapters_are_float32_in_a_bfloat16_base(tiny_base: Path, mortality: Task, spec: str) -> None:
    stack = Stack.build(str(tiny_base), [new(spec, "task")], mortality, dtype="bfloat16")
    trainable = stack.trainable_parameters()
    assert all(tensor.dtype == torch.float32 for tensor in trainable.values())
    assert (stack.network.model.norm.weight.dtype == torch.float32) == (spec == "full")
    tokens, mask = padded("right")
    stack.train()
    stack.logits(tokens, mask).square().sum().backward()
    assert any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in trainable.values())
    next(iter(trainable.values())).data = next(iter(trainable.values())).data.bfloat16()
    with pytest.raises(StackError, match=r"torch\.bfloat16; adapters and head must be float32"):
        check_stack(stack)


@pytest.mark.parametrize("spec", [name for name in NAMES if name != "full"])
def test_an_adapter_outside_the_forward_pass_is_caught(
    tiny_base: Path, trained: Callable[[str], Path], spec: str
) -> None:
    stack = Stack.build(str(tiny_base), [read(trained(spec))])
    with stack.switched_off("clinical"), pytest.raises(StackError, match="clinical"):
        check_stack(stack)
    check_stack(stack)


@pytest.mark.parametrize("spec", NAMES)
def test_a_thawed_or_frozen_tensor_is_caught(
    tiny_base: Path, mortality: Task, trained: Callable[[str], Path], spec: str
) -> None:
    stack = Stack.build(str(tiny_base), [read(trained(spec))], mortality)
    assert list(stack.trainable_parameters()) == ["score.weight"]
    name = stack.placed("clinical").parameter_names()[0]
    dict(stack.network.named_parameters())[name].requires_grad_(True)
    with pytest.raises(StackError, match=re.escape(f"{name} is trainable")):
        check_stack(stack)


@pytest.mark.parametrize("spec", NAMES)
def test_another_base_or_other_weights_are_refused(
    tiny_base: Path, trained: Callable[[str], Path], tmp_path: Path, spec: str
) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    model = causal(other)
    with torch.no_grad():
        model.model.norm.weight += 0.01
    model.save_pretrained(other)
    with pytest.raises(InputError, match=r"adapters\.0 \(clinical\): it was trained on a base with fingerprint"):
        Stack.build(str(other), [read(trained(spec))])
    folder = Path(shutil.copytree(trained(spec), tmp_path / "stack"))
    file = folder / "clinical" / ("model.safetensors" if spec == "full" else WEIGHTS_FILE)
    weights = load_file(file)
    first = next(iter(weights))
    save_file(weights | {first: weights[first] + 1e-3}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"are not those that stack\.json records"):
        Stack.load(folder)


@pytest.mark.parametrize("spec", NAMES)
def test_doctor_explains_every_method(trained: Callable[[str], Path], spec: str) -> None:
    console = Console(width=200, record=True)
    for part in explain(trained(spec)):
        console.print(part)
    text = console.export_text()
    assert new(spec).method in text
    assert ("packed documents do not see each other" in text) == (spec not in VIRTUAL)
    places = Stack.load(trained(spec)).placed("clinical").places()
    assert places
    assert all(place in text for place in places)
    summary = Stack.load(trained(spec)).summary()
    assert summary["adapters"][0]["method"] == new(spec).method
