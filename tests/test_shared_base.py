"""Stacks that share a base give what each gives alone: mixed in one call, added, removed, folded or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from clinstack.engine.pieces import pool_pieces
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.lineage import WEIGHTS_FILE
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.serve.folding import adapters_to_fold
from clinstack.serve.routing import Plan, RoutedLinear, Routing, RoutingError
from clinstack.serve.shared_base import SharedBase
from clinstack.tasks import Task
from clinstack.tokens.batches import pad
from clinstack.tokens.texts import encode_texts
from methods import new
from tiny_encoders import write_encoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

NOTES = [
    "chest pain",
    "The patient was admitted with shortness of breath and chest pain. " * 6,
    "No pain.",
    "Breath sounds were clear; the patient was discharged home in stable condition on the third day. " * 3,
    "Aspirin was given.",
]
MORTALITY = Task("mortality", "binary", ("alive", "dead"))
STAY = Task("length_of_stay", "multiclass", ("0", "1", "2", "3"))
CODES = Task("diagnoses", "multilabel", tuple(f"c{number}" for number in range(7)))
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "gemma2": {**_SMALL, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 6},
    "qwen3": {**_SMALL, "num_key_value_heads": 1, "head_dim": 16},
}
MakeStack = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tiny_base: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> MakeStack:
    """Return a function that saves a stack as if it had been trained."""
    seeds = iter(range(100, 1000))

    def saved(
        adapters: Sequence[AdapterRecipe], task: Task | None = MORTALITY, *, base: Path | str = tiny_base, **values: Any
    ) -> Path:
        reading = values.pop("reading", Reading(max_tokens=200))
        seed = next(seeds)
        stack = perturbed(Stack.build(str(base), adapters, task, seed=seed, **values), seed)
        stack.reading, stack.max_tokens = reading, 128
        folder = tmp_path_factory.mktemp("served") / "stack"
        stack.save(folder)
        return folder

    return saved


def task_lora(**changes: Any) -> AdapterRecipe:
    return AdapterRecipe(name="task", rank=2, alpha=4, **changes)


@pytest.fixture(scope="module")
def clinical_again(clinical: Path) -> AdapterRecipe:
    return AdapterRecipe(name="clinical", path=str(clinical))


@pytest.fixture(scope="module")
def folders(make: MakeStack, clinical: Path, clinical_again: AdapterRecipe) -> dict[str, Path]:
    """Classifiers of every kind on one base; most of them on the clinical adapter."""
    trainable = AdapterRecipe(name="clinical", path=str(clinical), trainable=True)
    second = make([clinical_again, AdapterRecipe(name="ward", rank=3)], None)
    ward = AdapterRecipe(name="ward", path=str(second / "ward"))
    chunks = Reading(max_tokens=40, keep="chunks", max_chunks=4, chunk_overlap=5, chunk_pooling="max", suffix=" end")
    return {
        "head": make([]),
        "lora": make([task_lora()]),
        "clinical": make([clinical_again], STAY),
        "frozen": make([clinical_again, task_lora()], CODES),
        "frozen-rslora": make([clinical_again, new("rslora", "task")], STAY),
        "frozen-adalora": make([clinical_again, new("adalora", "task", target_modules=("q_proj", "up_proj"))]),
        "trainable": make([trainable, task_lora()]),
        "three": make([clinical_again, ward, task_lora(target_modules="all-linear")], STAY),
        "chunks": make([clinical_again, task_lora()], reading=chunks),
        "chunks-mean": make([task_lora()], CODES, reading=Reading(max_tokens=33, keep="chunks")),
        "both-ends": make([clinical_again, task_lora()], reading=Reading(max_tokens=50, keep="both_ends")),
        "mean": make([clinical_again, task_lora()], STAY, pooling="mean"),
    }


@pytest.fixture(scope="module")
def stacks(folders: dict[str, Path]) -> dict[str, Stack]:
    return {name: Stack.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> SharedBase:
    return SharedBase.open(folders)


def alone(stack: Stack, text: str) -> NDArray[np.float32]:
    """Return the logits of one note by the stack itself: its own tokens, padded, pooled over its chunks."""
    encoded = encode_texts(stack.tokenizer, stack.reading, [text])
    with torch.inference_mode():
        features = stack.pooled(*pad(encoded.pieces, 0))
        pooled = pool_pieces(features, [len(encoded.pieces)], stack.reading.chunk_pooling)
        logits: NDArray[np.float32] = stack.head(pooled)[0].numpy()
    return logits


def check(shared: SharedBase, stacks: dict[str, Stack], asked: Sequence[tuple[str, str]], atol: float = 1e-5) -> None:
    """Ask about notes in one call, and compare each answer with that of its stack."""
    items = [(name, shared.encode(name, text).pieces) for name, text in asked]
    for (name, text), logits in zip(asked, shared.classify(items), strict=True):
        expected = alone(stacks[name], text)
        assert logits.dtype == np.float32
        assert logits.shape == expected.shape
        np.testing.assert_allclose(logits, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("fold", ["auto", "never"])
def test_mixed_in_one_call(folders: dict[str, Path], stacks: dict[str, Stack], served: SharedBase, fold: str) -> None:
    shared = served if fold == "auto" else SharedBase.open(folders, fold=fold)
    asked = [(name, text) for text in NOTES for name in folders]
    asked = [asked[place] for place in np.random.default_rng(0).permutation(len(asked))]
    check(shared, stacks, asked)
    assert not shared.notes
    assert not shared.own_copies
    # The stacks differ: another one's adapters, or none, would not have passed.
    heads = [alone(stacks[name], NOTES[1]) for name in ("frozen", "chunks-mean")]
    assert float(np.abs(heads[0] - heads[1]).max()) > 0.1


@pytest.mark.parametrize("name", ["head", "lora", "clinical", "frozen", "trainable", "three"])
def test_one_stack_served_alone(folders: dict[str, Path], stacks: dict[str, Stack], name: str) -> None:
    shared = SharedBase.open([(name, folders[name])])
    check(shared, stacks, [(name, text) for text in NOTES])


def test_more_tokens_than_a_row(served: SharedBase, stacks: dict[str, Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinstack.serve.shared_network._ROW_TOKENS", 120)
    check(served, stacks, [(name, text) for name in stacks for text in NOTES])


def test_the_way_of_padded_batches(
    served: SharedBase, stacks: dict[str, Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on CUDA, here on the CPU: rows of several stacks, padded."""
    monkeypatch.setattr("clinstack.serve.shared_network.attends_by_document", lambda network: False)
    monkeypatch.setattr(served._shared(causal=False), "_padded_tokens", 900)
    check(served, stacks, [(name, text) for text in NOTES for name in stacks])


def test_full_memory_makes_smaller_batches(
    served: SharedBase, stacks: dict[str, Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = served._shared(causal=False)
    sizes: list[int] = []
    whole = shared._padded_batch

    def small(pieces: Any) -> Tensor:
        sizes.append(len(pieces))
        if len(pieces) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(pieces)

    monkeypatch.setattr("clinstack.serve.shared_network.attends_by_document", lambda network: False)
    monkeypatch.setattr(shared, "_padded_batch", small)
    monkeypatch.setattr(shared, "_padded_tokens", 16384)
    check(served, stacks, [(name, text) for text in NOTES for name in stacks])
    assert max(sizes) > 4
    assert sizes[-1] <= 4


def test_equal_work_is_done_once(make: MakeStack, clinical_again: AdapterRecipe, monkeypatch: Any) -> None:
    """Five heads on the same frozen stack read a note once."""
    folders = {f"task{number}": make([clinical_again], STAY) for number in range(3)}
    shared = SharedBase.open(folders)
    counted: list[int] = []
    network = shared._shared(causal=False)
    whole = network.features
    monkeypatch.setattr(network, "features", lambda pieces: counted.append(len(pieces)) or whole(pieces))
    check(
        shared, {name: Stack.load(folder) for name, folder in folders.items()}, [(n, t) for t in NOTES for n in folders]
    )
    assert counted == [len(NOTES)]


# ---------------------------------------------------------------------- folding


def test_folds_what_most_stacks_stand_on(folders: dict[str, Path], served: SharedBase) -> None:
    """The clinical adapter: stacks without it compute its negative, and the others need their own rank only."""
    assert [len(factors.layers) for _, factors in served._folded] == [4]
    layer = served._shared(causal=False).network.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, RoutedLinear)
    ranks = {name: layer._factors[route][0].shape[1] for name, route in served._routes.items() if route}
    assert {name: ranks[name] for name in ("frozen", "lora", "three", "head")} == {
        "frozen": 2,
        "lora": 4 + 2,
        "three": 3 + 2,
        "head": 4,
    }
    assert served._routes["clinical"] == ""
    alone_served = SharedBase.open({"clinical": folders["clinical"]})
    assert alone_served._folded == ()  # a stack's own topmost adapter stays beside the base


def test_what_is_folded_costs_the_least() -> None:
    from clinstack.model.factors import Factors

    def adapter(digest: str, rank: int) -> tuple[str, Factors]:
        return digest, Factors({"layer": (torch.ones(rank, 3), torch.ones(2, rank))})

    clinical, ward = adapter("c", 8), adapter("w", 8)
    tops = [adapter(f"t{number}", 2) for number in range(3)]
    on_both = [(clinical, ward, top) for top in tops]
    assert [digest for digest, _ in adapters_to_fold(on_both)] == ["c", "w"]
    assert [digest for digest, _ in adapters_to_fold([*on_both[:1], *[(clinical, top) for top in tops]])] == ["c"]
    assert adapters_to_fold([(clinical, tops[0]), (tops[1],), (tops[2],)]) == ()


def test_refuses_a_fold_that_is_none(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="none of auto, always, never"):
        SharedBase.open({"head": folders["head"]}, fold="yes")


def test_the_last_layer_is_computed_where_it_is_read(
    served: SharedBase, stacks: dict[str, Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = served._shared(causal=False)
    seen: list[int] = []
    mlp = network.network.model.layers[-1].mlp
    handle = mlp.gate_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    items = [(name, served.encode(name, text).pieces) for name in ("frozen", "three", "lora") for text in NOTES]
    narrowed = served.classify(items)
    assert sum(seen) == len(items)  # a token of each note
    seen.clear()
    last_layer, network._last_layer = network._last_layer, None
    whole = served.classify(items)
    network._last_layer = last_layer
    assert sum(seen) == sum(len(pieces[0]) for _, pieces in items)
    np.testing.assert_allclose(np.concatenate(narrowed), np.concatenate(whole), rtol=0, atol=2e-6)
    # A mean needs all tokens, also of its neighbors in the row.
    seen.clear()
    check(served, stacks, [("mean", NOTES[0]), ("frozen", NOTES[0])])
    handle.remove()
    assert seen[0] > 2


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_other_families(make: MakeStack, tiny_base: Path, tmp_path: Path, family: str) -> None:
    """GPT-2 has other names and transposed weights; Gemma 2 keeps its own attention, in padded rows."""
    config = AutoConfig.for_model(family, vocab_size=300, **_FAMILIES[family])
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path / family)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / family)
    targets = ("c_attn", "c_proj") if family == "gpt2" else ("q_proj", "down_proj")
    ground = make([AdapterRecipe(name="clinical", rank=2, target_modules=targets)], None, base=tmp_path / family)
    clinical = AdapterRecipe(name="clinical", path=str(ground))
    folders = {
        "one": make([clinical, task_lora(target_modules=targets)], base=tmp_path / family),
        "two": make([clinical, task_lora(target_modules="all-linear")], CODES, base=tmp_path / family),
        "three": make([task_lora(target_modules=targets)], STAY, base=tmp_path / family),
    }
    shared = SharedBase.open(folders)
    assert len(shared._folded) == 1
    loaded = {name: Stack.load(folder) for name, folder in folders.items()}
    check(shared, loaded, [(name, text) for text in NOTES for name in folders], atol=5e-5)


# ---------------------------------------------------------------------- adding and removing


def test_add_and_remove(folders: dict[str, Path], stacks: dict[str, Stack]) -> None:
    names = ["frozen", "three"]
    shared = SharedBase.open({name: folders[name] for name in names})
    network, weights = shared.network, {tensor.data_ptr() for tensor in shared.network.state_dict().values()}
    before = tensors_in(shared)
    for name in ("lora", "chunks", "frozen-adalora"):
        added = shared.add(name, folders[name])
        assert added is shared.stacks[name]
        assert added.task == stacks[name].task
        names.append(name)
        check(shared, stacks, [(other, text) for text in NOTES for other in names])
    assert shared.network is network
    with pytest.raises(InputError, match="served already"):
        shared.add("lora", folders["lora"])
    for name in ("three", "lora"):
        shared.remove(name)
        names.remove(name)
        check(shared, stacks, [(other, text) for text in NOTES for other in names])
        with pytest.raises(InputError, match="no stack of this name"):
            shared.encode(name, NOTES[0])
        with pytest.raises(InputError, match="no stack of this name"):
            shared.classify([(name, [np.array([1, 5])])])
    for name in ("chunks", "frozen-adalora"):
        shared.remove(name)
    shared.add("three", folders["three"])
    after = tensors_in(shared)
    assert after == before, "what was removed is gone from memory"
    assert weights == {tensor.data_ptr() for tensor in shared.network.state_dict().values()}


def test_reading_beside_and_adding_later(
    make: MakeStack, folders: dict[str, Path], stacks: dict[str, Stack], clinical_again: AdapterRecipe
) -> None:
    """Another thread reads, and loads what is not shared; what is served changes when the stack is added."""
    dora = make([clinical_again, new("dora", "task")], STAY)
    instruct = make([AdapterRecipe(name="instruct", rank=3)], None)
    shared = SharedBase.open({"frozen": folders["frozen"]})
    before = tensors_in(shared)
    asked = [("frozen", text) for text in NOTES] * 4
    with ThreadPoolExecutor() as threads:
        waiting = {
            name: threads.submit(shared.read, folder)
            for name, folder in {"dora": dora, "instruct": instruct, "three": folders["three"]}.items()
        }
        while not all(job.done() for job in waiting.values()):
            check(shared, stacks, asked)
    assert tensors_in(shared) == before
    assert list(shared.stacks) == ["frozen"]
    body = shared.network.base_model
    for name, job in waiting.items():
        shared.add(name, job.result())
    assert shared.network.base_model is body
    assert type(shared.network).__name__ == "LlamaForCausalLM"
    check(shared, {**stacks, "dora": Stack.load(dora)}, [(n, text) for text in NOTES for n in ("dora", "three")])


def tensors_in(shared: SharedBase) -> int:
    """Return the bytes of all tensors of a shared base: weights, factors, heads."""
    network = shared._shared(causal=False)
    found = [*network.network.state_dict().values(), *shared._heads.values()]
    for module in network.network.modules():
        if isinstance(module, RoutedLinear):
            found += [tensor for pair in module._factors.values() for tensor in pair]
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in found}.values())


def test_a_stack_costs_its_factors_and_head(folders: dict[str, Path], stacks: dict[str, Stack]) -> None:
    shared = SharedBase.open({"frozen": folders["frozen"]})
    before = tensors_in(shared)
    shared.add("chunks", folders["chunks"])
    adapter = stacks["chunks"].adapter_tensors("task")
    own = sum(tensor.numel() * 4 for tensor in adapter.values()) + stacks["chunks"].head.weight.numel() * 4
    assert tensors_in(shared) - before == own
    assert own < 0.1 * before


def test_a_refused_stack_leaves_nothing(folders: dict[str, Path], stacks: dict[str, Stack], tmp_path: Path) -> None:
    shared = SharedBase.open({name: folders[name] for name in ("frozen", "lora")})
    before = tensors_in(shared), dict(shared.stacks), dict(shared._routes)
    folder = shutil.copytree(folders["three"], tmp_path / "stack")
    record = json.loads((folder / "stack.json").read_text())
    record["probe"][0][0] += 0.01
    (folder / "stack.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"on the shared base it is another model.*0\.01"):
        shared.add("three", folder)
    assert (tensors_in(shared), shared.stacks, shared._routes) == before
    check(shared, stacks, [(name, text) for name in ("lora", "frozen") for text in NOTES])


def test_refuses_damage(folders: dict[str, Path], tmp_path: Path) -> None:
    shared = SharedBase.open({"frozen": folders["frozen"]})
    folder = shutil.copytree(folders["three"], tmp_path / "stack")
    file = folder / "ward" / WEIGHTS_FILE
    tensors = load_file(file)
    tensors[next(iter(tensors))][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"ward.*not those that stack\.json records"):
        shared.add("three", folder)
    head = shutil.copytree(folders["head"], tmp_path / "head-stack")
    file = head / "head" / "head.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="the head is not the one"):
        shared.add("head", head)
    with pytest.raises(InputError, match="neither a Run nor a Stack"):
        shared.add("nothing", tmp_path)
    assert list(shared.stacks) == ["frozen"]


def test_refuses_another_base(folders: dict[str, Path], make: MakeStack, tiny_base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    stranger = make([task_lora()], base=other)
    with pytest.raises(InputError, match="is not the one that this stack was built on"):
        SharedBase.open({"frozen": folders["frozen"], "stranger": stranger})
    shared = SharedBase.open({"frozen": folders["frozen"]})
    with pytest.raises(InputError, match="is not the one that this stack was built on"):
        shared.add("stranger", stranger)
    # Where the base has moved, its place is said; it is the same one by its fingerprint.
    moved = shutil.copytree(tiny_base, tmp_path / "moved")
    assert SharedBase.open({"frozen": folders["frozen"]}, base=str(moved)).model_fingerprint == shared.model_fingerprint
    with pytest.raises(InputError, match="two stacks are called"):
        SharedBase.open([("a", folders["head"]), ("a", folders["lora"])])
    with pytest.raises(InputError, match="at least one"):
        SharedBase.open({})


# ---------------------------------------------------------------------- a base of their own


def test_own_copies_beside_shared_ones(
    make: MakeStack, folders: dict[str, Path], stacks: dict[str, Stack], clinical_again: AdapterRecipe
) -> None:
    added = {
        "dora": make([clinical_again, new("dora", "task")], STAY),
        "prefix": make([new("prefix", "task")], reading=Reading(max_tokens=60, keep="chunks")),
        "embeddings": make([new("lora-everywhere", "task")]),
        "full": make([new("full", "task")]),
        "lower": make([task_lora()], layer=1),
        "bfloat16": make([task_lora()], dtype="bfloat16"),
    }
    everything = {**added, "lora": folders["lora"], "frozen": folders["frozen"]}
    shared = SharedBase.open(everything)
    assert set(shared.own_copies) == set(added)
    loaded = {name: Stack.load(folder) for name, folder in added.items()}
    asked = [(name, text) for text in NOTES for name in everything]
    check(shared, {**loaded, **stacks}, [one for one in asked if one[0] != "bfloat16"])
    check(shared, loaded, [one for one in asked if one[0] == "bfloat16"], atol=0.05)
    reasons = "\n".join(shared.notes)
    for part in (
        "dora: ",
        "norm of the whole layer",
        "virtual tokens",
        "embeddings",
        "full rank",
        "layer 1",
        "bfloat16",
    ):
        assert part in reasons
    assert all(shared.stacks[name].own_copy == (name in added) for name in everything)
    with pytest.raises(InputError, match="a base of its own"), shared.routed(["dora"]):
        pass
    shared.remove("dora")
    assert "dora" not in shared.own_copies
    assert "norm of the whole layer" not in "\n".join(shared.notes)


def test_encoders(make: MakeStack, tmp_path: Path) -> None:
    base = write_encoder("bert", tmp_path / "bert")
    reading = Reading(max_tokens=40)
    folders = {
        "lora": make([task_lora()], base=base, reading=reading),
        "head": make([], STAY, base=base, reading=reading),
    }
    shared = SharedBase.open(folders)
    assert set(shared.own_copies) == set(folders)
    assert shared._network is None
    check(
        shared, {name: Stack.load(folder) for name, folder in folders.items()}, [(n, t) for n in folders for t in NOTES]
    )
    assert all("its base is an encoder" in note for note in shared.notes)


def test_bases_in_bfloat16_are_shared(make: MakeStack, clinical_again: AdapterRecipe) -> None:
    """Padded rows, factors in float32 beside weights in bfloat16, nothing folded."""
    folders = {
        "one": make([clinical_again, task_lora()], STAY, dtype="bfloat16"),
        "two": make([task_lora()], CODES, dtype="bfloat16"),
    }
    shared = SharedBase.open(folders)
    assert not shared.own_copies
    assert shared._folded == ()
    assert shared.network.dtype == torch.bfloat16
    loaded = {name: Stack.load(folder) for name, folder in folders.items()}
    check(shared, loaded, [(name, text) for text in NOTES for name in folders], atol=0.1)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_bases_are_shared(make: MakeStack, clinical_again: AdapterRecipe, quantize: str) -> None:
    pytest.importorskip("bitsandbytes")
    folders = {
        "one": make([clinical_again, task_lora()], STAY, quantize=quantize),
        "two": make([task_lora(target_modules="all-linear")], CODES, quantize=quantize),
    }
    shared = SharedBase.open(folders)
    assert not shared.own_copies
    assert shared._folded == ()
    loaded = {name: Stack.load(folder) for name, folder in folders.items()}
    asked = [(name, text) for text in NOTES for name in folders]
    # 8 bits round activations too, by the largest in a token: a last bit there is a hundredth.
    check(shared, loaded, asked, atol=1e-4 if quantize == "4bit" else 0.1)
    with pytest.raises(InputError, match=f"nothing can be added to weights in {quantize}"):
        SharedBase.open(folders, fold="always")


def test_layers_out_of_order_get_their_own_copy(
    folders: dict[str, Path], stacks: dict[str, Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer among experts sees some tokens only: found by the check, and the stack is served all the same."""
    shared = SharedBase.open({"lora": folders["lora"]})
    plain = RoutedLinear.forward
    before = tensors_in(shared)

    def some_tokens(layer: RoutedLinear, inputs: Tensor) -> Tensor:
        is_expert = layer.layer.out_features == 64  # of the MLP, which only `three` adapts
        return plain(layer, inputs[:, 1:] if is_expert else inputs)

    monkeypatch.setattr(RoutedLinear, "forward", some_tokens)
    assert shared.add("three", folders["three"]).own_copy
    assert list(shared.own_copies) == ["three"]
    assert "one after another" in shared.notes[0]
    assert tensors_in(shared) == before
    monkeypatch.undo()
    check(shared, stacks, [(name, text) for name in ("lora", "three") for text in NOTES])


# ---------------------------------------------------------------------- language models


def last_logits(network: nn.Module, hidden: Tensor) -> Tensor:
    output: Any = network
    logits: Tensor = output.get_output_embeddings()(hidden[:, -1])
    return logits


@pytest.mark.parametrize("first", ["classifier", "instruct"])
def test_instruction_stacks_beside_classifiers(
    make: MakeStack,
    folders: dict[str, Path],
    stacks: dict[str, Stack],
    clinical_again: AdapterRecipe,
    tiny_base: Path,
    first: str,
) -> None:
    texts = {
        "instruct": make([clinical_again, AdapterRecipe(name="instruct", rank=3)], None),
        "plain": make([AdapterRecipe(name="instruct", rank=3, target_modules=("v_proj", "down_proj"))], None),
    }
    if first == "instruct":
        shared = SharedBase.open({**texts, "frozen": folders["frozen"], "chunks": folders["chunks"]})
    else:
        shared = SharedBase.open({"frozen": folders["frozen"], "chunks": folders["chunks"]})
        body = shared.network.base_model
        for name, folder in texts.items():
            shared.add(name, folder)
        assert shared.network.base_model is body  # only the output layer came on top
    assert len(shared._folded) == 1
    names: list[str | None] = ["plain", None, "instruct", "plain", "instruct", None, "frozen"]
    tokens = torch.randint(3, 300, (len(names), 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[::2, :7] = 0  # padded on the left, as prompts are
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    base = Stack.build(str(tiny_base))
    base.eval()
    with torch.inference_mode(), shared.routed(names) as network:
        got = last_logits(network, shared.hidden_states(tokens, mask, positions))
        whole = network(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[:, -1]
    torch.testing.assert_close(whole, got, rtol=0, atol=1e-6)
    alone_stacks = {name: Stack.load(folder) for name, folder in texts.items()}
    for row, name in enumerate(names):
        one, seen = tokens[row : row + 1], mask[row : row + 1]
        with torch.inference_mode():
            if name == "frozen":  # a classifier's row: its body, and the base's output layer
                stack = stacks["frozen"]
                expected = last_logits(base.network, stack.hidden_states(one, seen))
            else:
                stack = base if name is None else alone_stacks[name]
                expected = last_logits(stack.network, stack.hidden_states(one, seen))
        torch.testing.assert_close(got[row : row + 1], expected, rtol=0, atol=1e-5)
    check(shared, stacks, [(name, text) for name in ("frozen", "chunks") for text in NOTES])
    assert shared.stacks["instruct"].task is None
    assert shared.stacks["instruct"].max_tokens == 128
    with pytest.raises(InputError, match="language model without a head"):
        shared.classify([("instruct", [np.array([1, 5])])])
    with pytest.raises(InputError, match="language model without a head"):
        shared.encode("instruct", NOTES[0])


def test_steps_with_a_cache_of_keys_and_values(make: MakeStack) -> None:
    """Decoding: the rows of a plan stay, their tokens come one by one."""
    folders = {name: make([AdapterRecipe(name="instruct", rank=3, target_modules="all-linear")], None) for name in "ab"}
    shared = SharedBase.open(folders)
    tokens = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), shared.routed(["b", "a", "b"]) as any_network:
        network: Any = any_network
        whole = network(input_ids=tokens, use_cache=False).logits
        step = network(input_ids=tokens[:, :7], use_cache=True)
        parts = [step.logits]
        for place in range(7, 12):
            step = network(input_ids=tokens[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)


# ---------------------------------------------------------------------- what is read, what is said


def test_encode_is_what_training_reads(served: SharedBase, stacks: dict[str, Stack]) -> None:
    for name, stack in stacks.items():
        for text in [*NOTES, ""]:
            expected = encode_texts(stack.tokenizer, stack.reading, [text])
            note = served.encode(name, text)
            assert len(note.pieces) == len(expected.pieces)
            assert all(np.array_equal(one, other) for one, other in zip(note.pieces, expected.pieces, strict=True))
            assert (note.tokens, note.cut) == (expected.cut["read"], expected.cut["cut"])
    assert served.encode("both-ends", NOTES[1]).cut > 0
    assert len(served.encode("chunks", NOTES[1]).pieces) == 4


def test_says_what_a_stack_is(folders: dict[str, Path], served: SharedBase, tmp_path: Path) -> None:
    stack = served.stacks["chunks"]
    assert stack.task == MORTALITY
    assert stack.prompt is None
    assert stack.calibration is None
    assert stack.reading.keep == "chunks"
    assert stack.max_tokens == 40
    assert stack.folder == folders["chunks"]
    assert stack.fingerprint.startswith("sha256:")
    assert len(stack.fingerprint) == 71
    assert stack.label == "clinical+task"
    assert served.stacks["head"].label == "head"
    # Of a Run its label, and the calibration that was fitted for it.
    run = tmp_path / "run"
    shutil.copytree(folders["lora"], run / "stack")
    (run / "run.json").write_text(json.dumps({"status": "done", "label": "clinical-frozen+lora"}))
    calibration = run / "stack" / "calibration.json"
    calibration.write_text(json.dumps({"temperature": 2.0}))
    record = read_json(run / "stack" / "stack.json")
    write_json(run / "stack" / "stack.json", record | {"calibration": sha256_file(calibration)})
    shared = SharedBase.open({"run": run})
    assert shared.stacks["run"].label == "clinical-frozen+lora"
    assert shared.stacks["run"].calibration == {"temperature": 2.0}
    assert shared.stacks["run"].folder == run / "stack"
    (run / "run.json").write_text(json.dumps({"status": "running", "label": "x"}))
    with pytest.raises(InputError, match="not finished"):
        SharedBase.open({"run": run})
    with pytest.raises(InputError, match="no device"):
        SharedBase.open({"lora": folders["lora"]}, device="abacus")


def test_a_pass_without_a_plan_is_an_error(served: SharedBase) -> None:
    """And never the untouched base, or another stack, without a word."""
    tokens = torch.tensor([[1, 5, 9]])
    with pytest.raises(RoutingError, match="No plan"), torch.inference_mode():
        served.network(input_ids=tokens)
    with pytest.raises(RoutingError, match="2 rows"), torch.inference_mode(), served.routed(["lora", "head"]):
        served.network(input_ids=tokens)
    with pytest.raises(RoutingError, match="already"), served.routed(["lora"]), served.routed(["head"]):
        pass
    with pytest.raises(InputError, match="no stack of this name"), served.routed(["nobody"]):
        pass
    routing = Routing()
    with routing.along(Plan.flat(["a", "a", "b"], [2, 3, 1])):
        assert [(part.route, part.places) for part in routing.parts(torch.zeros(1, 6, 2))] == [
            ("a", slice(0, 5)),
            ("b", slice(5, 6)),
        ]
        with pytest.raises(RoutingError, match="one row of 6 tokens"):
            routing.parts(torch.zeros(1, 5, 2))
