"""Encoders in a stack: the logits of plain transformers and of plain PEFT, however padded, saved or resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.base import EMBEDDED_ENCODER, EMBEDDED_FOLDERS, find_base
from clinstack.model.explain import explain
from clinstack.model.lineage import tensors_hash
from clinstack.model.methods.names import adapted_attentions, plain_name
from clinstack.model.pooling import KINDS, pool, pool_flat
from clinstack.model.stack import Stack
from clinstack.model.tokenizer import load_tokenizer, tokenizer_repairs
from clinstack.recipe import AdapterRecipe, FinetuneRecipe
from clinstack.stages.finetune import finetune
from clinstack.tasks import Task
from tiny_encoders import FAMILIES, LAYERS, SPECIAL, WORDS, write_encoder

NAMES = tuple(FAMILIES)
TASK = AdapterRecipe(name="task", rank=2, alpha=4)
FULL = AdapterRecipe(name="task", method="full")
Perturb = Callable[..., Stack]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from a family's name to a folder with a tiny encoder of it."""
    root = tmp_path_factory.mktemp("encoders")

    def base(family: str) -> str:
        folder = root / family
        return str(folder if folder.is_dir() else write_encoder(family, folder))

    return base


@pytest.fixture
def bert(bases: Callable[[str], str], tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may change."""
    return Path(shutil.copytree(bases("bert"), tmp_path / "bert"))


def rows() -> tuple[Tensor, Tensor]:
    """Three texts of different lengths, padded on the right."""
    ids = torch.randint(len(SPECIAL), len(WORDS), (3, 14), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    mask = torch.ones_like(ids)
    for row, length in enumerate((14, 9, 3)):
        ids[row, length - 1] = 3
        ids[row, length:] = 0
        mask[row, length:] = 0
    return ids, mask


def plain(base: str, stack: Stack, **config: Any) -> PreTrainedModel:
    """transformers' own classifier with the stack's head."""
    torch.manual_seed(1)
    network: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(stack.task.classes if stack.task else ()), **config
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in stack.head_parameters():
                parameter.copy_(stack.head_parameters()[name])
    return network.eval()


def logits_of(network: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(input_ids=ids, attention_mask=mask).logits
    return logits


def logits(stack: Stack, ids: Tensor, mask: Tensor) -> Tensor:
    stack.eval()
    with torch.no_grad():
        return stack.logits(ids, mask)


# ---------------------------------------------------------------------- as the libraries compute it


@pytest.mark.parametrize("family", NAMES)
def test_the_logits_are_those_of_transformers(bases: Callable[[str], str], mortality: Task, family: str) -> None:
    base = bases(family)
    stack = Stack.build(base, (), mortality, seed=3)
    assert stack.is_encoder
    assert stack.pooling == ("mean" if family == "modernbert-mean" else "first")
    assert all(parameter.dtype == torch.float32 for parameter in stack.head_parameters().values())
    expected = logits_of(plain(base, stack), *rows())
    assert torch.allclose(logits(stack, *rows()), expected, atol=1e-6)
    assert expected.std() > 0.01


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_a_lora_is_that_of_plain_peft(
    bases: Callable[[str], str], mortality: Task, perturbed: Perturb, tmp_path: Path, family: str, targets: Any
) -> None:
    base = bases(family)
    stack = perturbed(Stack.build(base, [TASK.model_copy(update={"target_modules": targets})], mortality))
    adapted = {name.rsplit(".", 1)[-1] for name in stack.lora_layers()}
    everything = {"bert": {"query", "key", "value", "dense"}, "modernbert": {"Wqkv", "Wo", "Wi"}}[family]
    projections = {"bert": {"query", "value"}, "modernbert": {"Wqkv"}}[family]
    assert adapted == (everything if targets == "all-linear" else projections)
    assert all("layer" in name for name in stack.lora_layers()), "neither the pooler nor the head block"
    stack.save(tmp_path / "stack")
    opened = PeftModel.from_pretrained(plain(base, stack), tmp_path / "stack" / "task").eval()
    assert torch.allclose(logits(stack, *rows()), logits_of(opened, *rows()), atol=1e-6)
    assert not torch.allclose(logits(stack, *rows()), logits_of(plain(base, stack), *rows()), atol=1e-3)


@pytest.mark.parametrize("family", NAMES)
def test_the_head_and_the_lora_are_float32_whatever_the_base_is(
    bases: Callable[[str], str], mortality: Task, family: str
) -> None:
    stack = Stack.build(bases(family), [TASK], mortality, dtype="bfloat16")
    assert {parameter.dtype for parameter in stack.trainable_parameters().values()} == {torch.float32}
    assert stack.network.base_model.get_input_embeddings().weight.dtype == torch.bfloat16
    half = logits(stack, *rows())
    assert half.dtype == torch.float32
    whole = logits(Stack.build(bases(family), [TASK], mortality), *rows())
    assert torch.allclose(half, whole, atol=0.1 * float(whole.abs().max()))


@pytest.mark.parametrize("family", NAMES)
def test_what_trains_is_what_the_spec_says(bases: Callable[[str], str], mortality: Task, family: str) -> None:
    head = set(Stack.build(bases(family), (), mortality).trainable_parameters())
    new = {"roberta": "classifier.dense.weight", "electra": "classifier.dense.bias"}.get(family)
    new = "pre_classifier.weight" if family == "distilbert" else new
    final = "classifier.out_proj" if family in ("roberta", "electra") else "classifier"
    assert {f"{final}.weight", f"{final}.bias"} | ({new} if new else set()) <= head
    lora = Stack.build(bases(family), [TASK], mortality)
    assert all(".lora_" in name for name in set(lora.trainable_parameters()) - head)
    full = Stack.build(bases(family), [FULL], mortality)
    assert not full.frozen_tensors().keys() & dict(full.network.named_parameters()).keys()


@pytest.mark.parametrize("family", NAMES)
def test_a_gradient_reaches_everything_that_trains(bases: Callable[[str], str], mortality: Task, family: str) -> None:
    for spec in ([FULL], [TASK]):
        stack = Stack.build(bases(family), spec, mortality)
        stack.use_gradient_checkpointing()
        stack.train()
        stack.logits(*rows())[:, 0].sum().backward()
        for name, parameter in stack.trainable_parameters().items():
            assert parameter.grad is not None, name


def test_the_embedded_encoder_opens_like_any_other(mortality: Task) -> None:
    stack = Stack.build(EMBEDDED_ENCODER, (), mortality)
    assert stack.pooling == "mean"
    assert stack.network.dtype == torch.float32
    ids, mask = rows()
    expected = logits_of(plain(str(EMBEDDED_FOLDERS[EMBEDDED_ENCODER]), stack, dtype="float32"), ids, mask)
    assert torch.allclose(logits(stack, ids, mask), expected, atol=1e-6)
    ends = stack.tokenizer("chest pain")["input_ids"]
    assert (ends[0], ends[-1]) == (stack.tokenizer.cls_token_id, stack.tokenizer.sep_token_id)


# ---------------------------------------------------------------------- what the head reads


@pytest.mark.parametrize("family", NAMES)
def test_padding_on_the_left_changes_nothing(bases: Callable[[str], str], mortality: Task, family: str) -> None:
    stack = Stack.build(bases(family), (), mortality)
    ids, mask = rows()
    left = torch.stack([row.roll(int((kept == 0).sum())) for row, kept in zip(ids, mask, strict=True)])
    assert torch.allclose(logits(stack, left, mask.flip(1)), logits(stack, ids, mask), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_is_by_the_mask(kind: str) -> None:
    hidden = torch.randn(3, 14, 5, generator=torch.Generator().manual_seed(0))
    _, mask = rows()
    real = [row[: int(kept.sum())] for row, kept in zip(hidden, mask, strict=True)]
    expected = torch.stack([{"last": row[-1], "first": row[0], "mean": row.mean(0)}[kind] for row in real])
    assert torch.allclose(pool(hidden, mask, kind), expected, atol=1e-6)
    lengths = mask.sum(1)
    assert torch.allclose(pool_flat(torch.cat(real), lengths, kind), expected, atol=1e-6)
    left = torch.stack([row.roll(14 - len(kept), 0) for row, kept in zip(hidden, real, strict=True)])
    assert torch.allclose(pool(left, mask.flip(1), kind), expected, atol=1e-6)
    assert pool(hidden.bfloat16(), mask, kind).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_another_pooling(bases: Callable[[str], str], mortality: Task, tmp_path: Path, family: str, kind: str) -> None:
    """BERT's pooler is left out; ModernBERT's head block is read through."""
    base = bases(family)
    stack = Stack.build(base, [TASK], mortality, pooling=kind)
    stack.eval()
    ids, mask = rows()
    network = plain(base, stack)
    with torch.no_grad():
        hidden = network.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        features = pool(hidden, mask, kind)
        expected = features if family == "bert" else network.head(features)
        assert torch.allclose(stack.pooled(ids, mask), expected, atol=1e-6)
        assert torch.allclose(stack.features_from(features), expected, atol=1e-6)
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert (loaded.pooling, loaded.layer) == (kind, None)
    assert torch.equal(loaded.logits(ids, mask), logits(stack, ids, mask))
    assert "With clinstack" in (tmp_path / "stack" / "task" / "README.md").read_text()


def test_full_fine_tuning_without_the_pooler_trains_no_pooler(bases: Callable[[str], str], mortality: Task) -> None:
    stack = Stack.build(bases("bert"), [FULL], mortality, pooling="mean")
    assert not any("pooler" in name for name in stack.trainable_parameters())
    stack.logits(*rows()).sum().backward()
    assert all(parameter.grad is not None for parameter in stack.trainable_parameters().values())


@pytest.mark.parametrize("family", [*NAMES, "llama"])
def test_a_layer_is_read_as_a_shorter_model_is(
    bases: Callable[[str], str], tiny_base: Path, mortality: Task, perturbed: Perturb, tmp_path: Path, family: str
) -> None:
    base, layer = (str(tiny_base), 1) if family == "llama" else (bases(family), 2)
    stack = perturbed(Stack.build(base, [TASK], mortality, layer=layer))
    assert (stack.layer, stack.is_encoder) == (layer, family != "llama")
    stack.save(tmp_path / "stack")
    short = plain(base, stack, num_hidden_layers=layer)
    short.config.pad_token_id = stack.tokenizer.pad_token_id
    opened = PeftModel.from_pretrained(short, tmp_path / "stack" / "task").eval()
    ids, mask = rows()
    assert torch.allclose(logits(stack, ids, mask), logits_of(opened, ids, mask), atol=1e-6)
    assert f"num_hidden_layers={layer}" in (tmp_path / "stack" / "task" / "README.md").read_text()
    loaded = Stack.load(tmp_path / "stack")
    assert loaded.layer == layer
    assert torch.equal(loaded.logits(ids, mask), logits(stack, ids, mask))
    whole = Stack.build(base, (), mortality)
    assert len(whole.frozen_tensors()) > len(stack.frozen_tensors()), "what is above is not even loaded"


@pytest.mark.parametrize("reads", [{"pooling": "max"}, {"layer": 0}])
def test_what_cannot_be_read_is_refused(bases: Callable[[str], str], mortality: Task, reads: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(reads))}: "):
        Stack.build(bases("bert"), (), mortality, **reads)


def test_a_layer_that_the_base_lacks_is_refused(bases: Callable[[str], str], mortality: Task) -> None:
    with pytest.raises(InputError, match=f"layer: {LAYERS + 1} is above the {LAYERS} layers of .*; use {LAYERS}"):
        Stack.build(bases("bert"), (), mortality, layer=LAYERS + 1)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_adapter_of_the_whole_base_is_read_up_to_the_layer(
    tiny_base: Path, mortality: Task, perturbed: Perturb, tmp_path: Path, method: str, trainable: bool
) -> None:
    """What it has for the layers above stays as it was, and is saved: the hash, which lineage rests on, is the same."""
    whole = perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", method=method)]))  # type: ignore[arg-type]
    whole.save(tmp_path / "clinical")
    spec = [AdapterRecipe(name="clinical", path=str(tmp_path / "clinical"), trainable=trainable), TASK]
    stack = Stack.build(str(tiny_base), spec, mortality, layer=1)
    tensors = whole.adapter_tensors("clinical")
    tensors.pop("lm_head.weight", None)  # a classifier has none, whatever layer it reads
    assert tensors_hash(stack.adapter_tensors("clinical")) == tensors_hash(tensors)
    above = {key for key in stack.adapter_tensors("clinical") if ".layers.1." in key}
    assert above
    assert not any(".layers.1." in name for name in stack.trainable_parameters())
    perturbed(stack).save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert torch.equal(loaded.logits(*rows()), logits(stack, *rows()))
    for key in above:
        assert torch.equal(loaded.adapter_tensors("clinical")[key], tensors[key])


def test_an_adaption_prompt_of_the_whole_base_does_not_fit_a_shorter_one(
    trained: Callable[[str], Path], tiny_base: Path, mortality: Task
) -> None:
    clinical = AdapterRecipe(name="clinical", path=str(trained("adaption_prompt")))
    with pytest.raises(InputError, match="layer: 'clinical' is an adaption prompt of the whole base"):
        Stack.build(str(tiny_base), [clinical], mortality, layer=1)


@pytest.mark.parametrize("method", ["dora", "rslora", "adalora"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_every_low_rank_method_lies_in_an_encoder(
    bases: Callable[[str], str], mortality: Task, perturbed: Perturb, tmp_path: Path, family: str, method: Any
) -> None:
    spec = AdapterRecipe(name="task", method=method, rank=2, target_modules="all-linear")
    stack = perturbed(Stack.build(bases(family), [spec], mortality))
    stack.save(tmp_path / "stack")
    assert torch.equal(Stack.load(tmp_path / "stack").logits(*rows()), logits(stack, *rows()))


# ---------------------------------------------------------------------- dropout


def test_the_heads_dropout_acts_in_training_on_features_too(bases: Callable[[str], str], mortality: Task) -> None:
    stack = Stack.build(bases("bert"), (), mortality)
    ids, mask = rows()
    stack.eval()
    features = stack.pooled(ids, mask)
    stack.train()
    assert torch.equal(stack.pooled(ids, mask), features), "nothing in the body trains: its features stay the same"
    torch.manual_seed(0)
    fresh = stack.logits(ids, mask)
    torch.manual_seed(0)
    assert torch.equal(stack.head(features), fresh)
    stack.eval()
    assert not torch.allclose(stack.logits(ids, mask), fresh, atol=1e-4)


def test_a_body_with_a_trainable_adapter_drops_out_in_training(bases: Callable[[str], str], mortality: Task) -> None:
    stack = Stack.build(bases("bert"), [TASK], mortality)
    stack.train()
    assert not torch.equal(stack.pooled(*rows()), stack.pooled(*rows()))


def test_only_a_head_of_one_layer_leaves_its_features_as_they_are(bases: Callable[[str], str], mortality: Task) -> None:
    frozen = {family: Stack.build(bases(family), (), mortality).backbone_is_frozen for family in NAMES}
    assert frozen == {family: family.split("-")[0] in ("bert", "modernbert") for family in NAMES}


# ---------------------------------------------------------------------- on disk


@pytest.mark.parametrize("spec", [[], [TASK], [FULL]], ids=["head", "lora", "full"])
@pytest.mark.parametrize("family", NAMES)
def test_saved_and_loaded_it_is_the_same(
    bases: Callable[[str], str],
    mortality: Task,
    perturbed: Perturb,
    tmp_path: Path,
    family: str,
    spec: list[AdapterRecipe],
) -> None:
    stack = perturbed(Stack.build(bases(family), spec, mortality))
    stack.calibration = {"temperature": 1.5}
    stack.save(tmp_path / "stack")
    loaded = Stack.load(tmp_path / "stack")
    assert torch.equal(loaded.logits(*rows()), logits(stack, *rows()))
    assert loaded.calibration == {"temperature": 1.5}
    assert loaded.trainable_parameters().keys() == stack.trainable_parameters().keys()


@pytest.mark.parametrize("family", NAMES)
def test_a_fully_fine_tuned_one_is_opened_by_transformers(
    bases: Callable[[str], str], mortality: Task, perturbed: Perturb, tmp_path: Path, family: str
) -> None:
    stack = perturbed(Stack.build(bases(family), [FULL], mortality))
    stack.save(tmp_path / "stack")
    network, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "stack" / "task", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert torch.allclose(logits_of(network.eval(), *rows()), logits(stack, *rows()), atol=1e-6)


def test_a_clinical_adapter_of_plain_peft_lies_frozen_beneath(
    bases: Callable[[str], str], mortality: Task, perturbed: Perturb, tmp_path: Path
) -> None:
    """As masked pretraining elsewhere would leave it."""
    model = AutoModelForMaskedLM.from_pretrained(bases("bert"))
    made = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    made.save_pretrained(tmp_path / "clinical")
    clinical = AdapterRecipe(name="clinical", path=str(tmp_path / "clinical"))
    alone = logits(Stack.build(bases("bert"), (), mortality), *rows())
    stack = Stack.build(bases("bert"), [clinical, TASK], mortality)
    assert not torch.allclose(logits(stack, *rows()), alone, atol=1e-4)
    before = tensors_hash(stack.frozen_tensors())
    optimizer = torch.optim.AdamW(stack.trainable_parameters().values(), lr=0.1)
    for _ in range(2):
        stack.train()
        stack.logits(*rows())[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert tensors_hash(stack.frozen_tensors()) == before
    stack.save(tmp_path / "stack")
    assert torch.equal(Stack.load(tmp_path / "stack").logits(*rows()), logits(stack, *rows()))


def test_a_damaged_calibration_is_refused(bases: Callable[[str], str], mortality: Task, tmp_path: Path) -> None:
    Stack.build(bases("bert"), (), mortality).save(tmp_path / "stack")
    assert Stack.load(tmp_path / "stack").calibration is None
    (tmp_path / "stack" / "calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration\.json is damaged"):
        Stack.load(tmp_path / "stack")


def test_doctor_says_what_the_head_reads(bases: Callable[[str], str], mortality: Task, tmp_path: Path) -> None:
    stack = Stack.build(bases("bert"), [TASK], mortality, pooling="mean", layer=2)
    stack.calibration = {"fitted_on": "validation", "patients": 7, "temperature": 1.5, "isotonic": {}}
    stack.save(tmp_path / "stack")
    said = [line for line in explain(tmp_path / "stack") if isinstance(line, str)]
    assert any("[bold]Head[/]" in line and "reads the mean over all tokens of layer 2" in line for line in said)
    assert any(
        "[bold]Calibration[/] temperature and isotonic, fitted on validation, 7 patients" in line for line in said
    )


# ---------------------------------------------------------------------- checkpoints as they are found


def change_weights(folder: Path, name: Callable[[str], str | None]) -> None:
    """Give each tensor another name; None takes it out."""
    file = folder / "model.safetensors"
    named = {name(key): tensor for key, tensor in load_file(file).items()}
    save_file({key: tensor for key, tensor in named.items() if key is not None}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        lambda key: key.removeprefix("bert.") if key.startswith("bert.") else None,
        lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    ],
    ids=["the body alone", "names of TensorFlow"],
)
def test_older_checkpoints_are_read_whole(bert: Path, mortality: Task, name: Callable[[str], str]) -> None:
    expected = logits(Stack.build(str(bert), (), mortality), *rows())
    change_weights(bert, name)
    assert torch.equal(logits(Stack.build(str(bert), (), mortality), *rows()), expected)


def test_weights_in_half_precision_are_computed_in_float32(bert: Path, mortality: Task) -> None:
    expected = logits(Stack.build(str(bert), (), mortality), *rows())
    file = bert / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    config = read_json(bert / "config.json")
    (bert / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    stack = Stack.build(str(bert), (), mortality)
    assert {parameter.dtype for parameter in stack.network.parameters()} == {torch.float32}
    assert torch.allclose(logits(stack, *rows()), expected, atol=1e-3)


def test_a_bert_without_a_pooler_is_read_without_it_or_not_at_all(bert: Path, mortality: Task) -> None:
    change_weights(bert, lambda key: None if "pooler" in key else key)
    with pytest.raises(InputError, match=r"bert\.pooler\.dense\.bias \(2 in all\).* set pooling: first or mean"):
        Stack.build(str(bert), (), mortality)
    for kind in ("first", "mean"):
        assert Stack.build(str(bert), (), mortality, pooling=kind).pooling == kind


def test_a_modernbert_without_its_head_block_is_refused(
    bases: Callable[[str], str], mortality: Task, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases("modernbert"), tmp_path / "body"))
    change_weights(folder, lambda key: None if key.startswith("head.") else key)
    with pytest.raises(InputError, match="checkpoint with its masked language model's head"):
        Stack.build(str(folder), (), mortality)


@pytest.mark.parametrize("cased", [False, True])
def test_a_vocabulary_alone_says_whether_texts_are_lowered(bert: Path, cased: bool) -> None:
    """transformers would lower texts for a cased vocabulary too, without a word."""
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (bert / file).unlink(missing_ok=True)
    words = [*WORDS[:-1], "No"] if cased else WORDS
    (bert / "vocab.txt").write_text("\n".join(words) + "\n")
    base = find_base(str(bert))
    tokenizer = load_tokenizer(base)
    ids = tokenizer("No chest pain")["input_ids"]
    assert (ids[0], ids[-1]) == (2, 3), "[CLS] text [SEP]"
    assert ids[1] == len(WORDS) - 1
    assert any("has capitals" in note for note in tokenizer_repairs(base)) == cased
    if not cased:
        return
    (bert / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert find_base(str(bert)).fingerprint != base.fingerprint
    assert load_tokenizer(base)("No")["input_ids"] != tokenizer("No")["input_ids"], "what the files say is done"


# ---------------------------------------------------------------------- fine-tuning


def recipe_of(base: str, notes: Path, run: Path, **changes: Any) -> FinetuneRecipe:
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 0.005, "tracking": "none", "checkpoint_every": 2}
    values = {
        "base": base,
        "run": str(run),
        "examples": str(notes / "examples" / "mortality"),
        "max_tokens": 48,
        "adapters": [{"name": "task", "method": "full"}],
        "training": training,
        "evaluation": {"resamples": 100},
    }
    return FinetuneRecipe.model_validate(values | changes)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {}),
        ("modernbert", {"adapters": [{"name": "task", "rank": 2, "dropout": 0.1}], "layer": 2}),
        ("bert", {"adapters": []}),
        ("bert", {"pooling": "mean", "keep": "chunks", "max_tokens": 16}),
    ],
    ids=["full", "lora on a lower layer", "head", "mean over chunks"],
)
def test_the_stage_trains_it_and_goes_on_after_a_kill(
    bases: Callable[[str], str], tiny_notes: Path, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    """Full fine-tuning moves everything, the pooler too: the stage asserts that each trained tensor moved."""
    base = bases(family)
    straight = finetune(recipe_of(base, tiny_notes, tmp_path / "straight", **changes))

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    recipe = recipe_of(base, tiny_notes, tmp_path / "killed", **changes)
    with pytest.raises(Killed):
        finetune(recipe, on_validation=kill)
    again = finetune(recipe)
    one, other = (Stack.load(run.folder) for run in (straight, again))
    assert tensors_hash(dict(one.network.state_dict())) == tensors_hash(dict(other.network.state_dict()))
    assert read_json(straight.folder / "metrics.json")["test"] == read_json(again.folder / "metrics.json")["test"]
    before = Stack.build(base, (), one.task, pooling=recipe.pooling, layer=recipe.layer)
    attentions = adapted_attentions(one.network)
    after = {plain_name(key, attentions): value for key, value in one.network.state_dict().items()}
    moved = any(not torch.equal(after[key], value) for key, value in before.frozen_tensors().items())
    assert moved == (one.adapters != () and one.adapters[0].method == "full")
