"""What comes from elsewhere: nothing in it runs, nothing leads out of its folder, and what was changed is named."""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clinstack
from clinstack.errors import ClinstackError, InputError
from clinstack.export.export import export
from clinstack.files import read_json, write_json
from clinstack.model.base import EMBEDDED_FOLDERS, find_base, load_network, load_tokenizer, locate_base
from clinstack.model.folders import MOST_JSON
from clinstack.model.lineage import read_adapter
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, load_recipe
from clinstack.tasks import Task

SOURCE = Path(clinstack.__file__).parent
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base that a test may change."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def stack(clinical: Path, tmp_path: Path) -> Path:
    """A Stack that a test may change."""
    return Path(shutil.copytree(clinical, tmp_path / "stack"))


def refusal(act: Callable[[], Any]) -> str:
    """Return the one line that refuses."""
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


def flip(path: Path, place: int = -5) -> None:
    """Change one bit of a file, at a byte counted from its end."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change(path: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    write_json(path, {**read_json(path), **values})


# ---------------------------------------------------------------------- nothing runs


def test_no_code_of_ours_opens_a_pickle_or_runs_what_it_reads() -> None:
    """One place for each way in; whoever needs another must first say here why it is safe."""
    forbidden = {
        *("torch.load", "joblib.load", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "dill.load"),
        *("np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "os.system", "eval", "exec"),
        *("tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "yaml.full_load", "yaml.unsafe_load"),
    }
    lasts = {name.rsplit(".", 1)[-1] for name in forbidden}
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                last = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if last not in lasts and not any(word.arg in {"trust_remote_code", "shell"} for word in node.keywords):
                    continue  # turning every call into text takes seconds
                name = ast.unparse(node.func)
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                wrong = given.get("trust_remote_code", "False") != "False" or given.get("shell", "False") != "False"
                loader = given.get("Loader", "") if name == "yaml.load" else "BoundedLoader"
                if name in forbidden or wrong or loader not in {"BoundedLoader", "_UniqueKeyLoader"}:
                    found.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {name}")
    assert found == []


def test_an_adapter_that_is_a_pickle_is_refused(stack: Path) -> None:
    folder = stack / "clinical"
    torch.save({}, folder / "adapter_model.bin")
    assert "adapter_model.bin may be a pickle" in refusal(lambda: Stack.load(stack))
    (stack / "stack.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    assert "pickled adapters are not opened" in refusal(lambda: read_adapter(folder, "adapters.0"))


@pytest.mark.parametrize("name", ["training_args.bin", "x.pt", "state.ckpt", "clinical/deep/x.pkl", "X.PTH"])
def test_a_stack_with_a_pickle_is_refused(stack: Path, name: str) -> None:
    (stack / name).parent.mkdir(exist_ok=True)
    (stack / name).write_bytes(b"")
    assert f"{name} may be a pickle" in refusal(lambda: Stack.load(stack))


def test_code_beside_a_base_does_not_run(base: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nraise SystemExit('their code ran')\n"
    for name in ("modeling_theirs.py", "configuration_theirs.py", "tokenization_theirs.py", "config.py"):
        (base / name).write_text(code)
    theirs = {"AutoConfig": "configuration_theirs.C", "AutoModelForCausalLM": "modeling_theirs.M"}
    change(base / "config.json", auto_map=theirs)
    change(base / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_theirs.T"]})
    found = find_base(str(base))
    load_network(found, classes=None, dtype="float32", seed=0)
    load_tokenizer(found)
    change(base / "config.json", model_type="unheard_of")
    message = refusal(lambda: load_network(find_base(str(base)), classes=None, dtype="float32", seed=0))
    assert "clinstack runs none" in message
    assert not ran.exists()


def test_an_adapter_that_names_a_module_to_import_is_refused(stack: Path) -> None:
    change(stack / "clinical" / "adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity")
    assert "clinstack imports none" in refusal(lambda: Stack.load(stack))


def test_a_prompt_that_is_read_opens_no_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    adapter = AdapterRecipe(name="clinical", method="prompt", virtual_tokens=4, initial_text="the patient")
    Stack.build(str(tiny_base), [adapter]).save(tmp_path / "stack")
    config = tmp_path / "stack" / "clinical" / "adapter_config.json"
    assert read_json(config)["prompt_tuning_init"] == "TEXT"
    change(config, tokenizer_name_or_path="somebody/elsewhere", tokenizer_kwargs={"trust_remote_code": True})
    Stack.load(tmp_path / "stack")


# ---------------------------------------------------------------------- nothing leads out


@pytest.mark.parametrize("name", ["clinical/adapter_model.safetensors", "clinical", "README.md", "clinical/notes"])
def test_a_link_out_of_a_stack_is_refused(stack: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (stack / name).exists():
        shutil.move(stack / name, elsewhere)
    else:
        elsewhere.mkdir()
    (stack / name).symlink_to(elsewhere)
    message = refusal(lambda: Stack.load(stack))
    assert str(stack / name) in message
    assert "is a link out of" in message
    out = tmp_path / "out"
    refusal(lambda: export([stack], "peft", out))
    assert not out.exists(), "what a link leads to would be in the export"


def test_a_link_that_stays_in_the_folder_and_a_link_to_the_folder_are_followed(stack: Path, tmp_path: Path) -> None:
    file = stack / "clinical" / "adapter_model.safetensors"
    shutil.move(file, stack / "clinical" / "weights")
    file.symlink_to("weights")
    (tmp_path / "best").symlink_to(stack)
    Stack.load(tmp_path / "best")


def test_a_link_out_of_a_base_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.move(base / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (base / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert "is a link out of" in refusal(lambda: find_base(str(base)))


def test_the_hubs_cache_is_links_and_is_opened(base: Path, tmp_path: Path) -> None:
    """``snapshots/REVISION/`` links to ``blobs/``, whose files may be links to what the cache shares."""
    model, shared = tmp_path / "hub" / "models--ward--tiny", tmp_path / "hub" / "blobs" / "ab"
    snapshot = model / "snapshots" / "0123abc"
    for folder in (snapshot, model / "blobs", shared):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(base.iterdir())):
        blob = model / "blobs" / f"{number:040x}"
        if file.suffix == ".safetensors":
            shutil.copyfile(file, shared / "abcd")
            blob.symlink_to("../../blobs/ab/abcd")
        else:
            shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    assert find_base(str(snapshot)).fingerprint == find_base(str(base)).fingerprint
    load_network(find_base(str(snapshot)), classes=None, dtype="float32", seed=0)
    (snapshot / "extra.json").symlink_to(base / "config.json")
    assert "is a link out of" in refusal(lambda: find_base(str(snapshot)))


@pytest.mark.parametrize("name", ["../other", "/etc", "..", "a/b", "", 5, "a\\b"])
def test_a_name_that_leads_out_of_a_stack_is_refused(stack: Path, tmp_path: Path, name: Any) -> None:
    shutil.copytree(stack / "clinical", tmp_path / "other")
    record = read_json(stack / "stack.json")
    record["adapters"][0]["folder"] = name
    write_json(stack / "stack.json", record)
    assert "is no plain name" in refusal(lambda: Stack.load(stack))


def test_a_head_that_leads_out_of_a_stack_is_refused(stack: Path) -> None:
    change(stack / "stack.json", head={"folder": "../head", "weights": "sha256:0"})
    assert "'../head' is no plain name" in refusal(lambda: Stack.load(stack))


@pytest.mark.parametrize("name", ["../secret", "a/b", "/etc/x", "clinical.x", ".."])
def test_a_name_of_an_adapter_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        AdapterRecipe(name=name)


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("../secret.safetensors", "is no plain name"),
        ("/etc/secret.safetensors", "is no plain name"),
        ("pytorch_model.bin", "only safetensors are opened"),
    ],
)
def test_an_index_whose_shards_lead_out_is_refused(base: Path, shard: str, reason: str) -> None:
    write_json(base / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"model.norm.weight": shard}})
    assert reason in refusal(lambda: find_base(str(base)))
    assert reason in refusal(lambda: locate_base(str(base)))


# ---------------------------------------------------------------------- what was changed is named


@pytest.mark.parametrize("place", [-1, -200])
def test_one_bit_of_an_adapter(stack: Path, place: int) -> None:
    flip(stack / "clinical" / "adapter_model.safetensors", place)
    assert "clinical are not those that stack.json records" in refusal(lambda: Stack.load(stack))


@pytest.mark.parametrize("label", ["head", "lora"])
def test_one_bit_of_a_head(saved: Callable[..., Path], tmp_path: Path, label: str) -> None:
    folder = Path(shutil.copytree(saved(label), tmp_path / "stack"))
    file = next(folder.glob("*/*.safetensors"))
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name.endswith("score.weight"))
    flip(file, 8 + length + header[name]["data_offsets"][0])
    assert "the head is not the one that stack.json records" in refusal(lambda: Stack.load(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_one_bit_of_a_base_is_refused_by_every_stack_on_it(stack: Path, base: Path, file: str) -> None:
    Stack.load(stack, base=str(base))
    if file == "model.safetensors":
        flip(base / file)
    else:
        (base / file).write_text((base / file).read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert "is not the one that this stack was built on" in refusal(lambda: Stack.load(stack, base=str(base)))


@pytest.mark.parametrize("name", sorted(EMBEDDED_FOLDERS))
def test_one_bit_of_an_embedded_base(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(EMBEDDED_FOLDERS[name], tmp_path / name))
    monkeypatch.setitem(EMBEDDED_FOLDERS, name, copy)
    find_base(name)
    flip(copy / "model.safetensors")
    assert "model.safetensors differs from what clinstack-manifest.json records" in refusal(lambda: find_base(name))


def test_a_calibration_that_was_not_saved_with_the_stack(tiny_base: Path, mortality: Task, tmp_path: Path) -> None:
    made = Stack.build(str(tiny_base), [], mortality)
    made.calibration = {"temperature": {"value": 1.5}}
    made.save(tmp_path / "stack")
    assert Stack.load(tmp_path / "stack").calibration == made.calibration
    change(tmp_path / "stack" / "calibration.json", temperature={"value": 0.1})
    assert "is not the one that stack.json records" in refusal(lambda: Stack.load(tmp_path / "stack"))
    made.calibration = None
    made.save(tmp_path / "bare")
    shutil.copy(tmp_path / "stack" / "calibration.json", tmp_path / "bare")
    assert "is not the one that stack.json records" in refusal(lambda: Stack.load(tmp_path / "bare"))


# ---------------------------------------------------------------------- files that are not what they should be


def with_header(header: bytes, length: int | None = None) -> bytes:
    """A safetensors file of a header and eight bytes."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(8)


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TRICKS = {
    "a huge header": with_header(b"{}", 2**62),
    "a header beyond the end": with_header(b"{}", 1000),
    "a header that is no JSON": with_header(b"{not json"),
    "a deep header": with_header(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "overlapping tensors": with_header(json.dumps({"a": TENSOR, "b": TENSOR}).encode()),
    "offsets beyond the end": with_header(json.dumps({"a": {**TENSOR, "data_offsets": [0, 2**40]}}).encode()),
    "a shape that overflows": with_header(json.dumps({"a": {**TENSOR, "shape": [2**40, 2**40]}}).encode()),
    "nothing": b"",
}


@pytest.mark.parametrize("trick", sorted(TRICKS))
def test_tricks_with_safetensors(trick: str, stack: Path, base: Path, tmp_path: Path) -> None:
    (stack / "clinical" / "adapter_model.safetensors").write_bytes(TRICKS[trick])
    assert "is damaged (not a whole safetensors file)" in refusal(lambda: Stack.load(stack))
    (base / "model.safetensors").write_bytes(TRICKS[trick])
    refusal(lambda: load_network(find_base(str(base)), classes=None, dtype="float32", seed=0))


def test_a_damaged_checkpoint_is_said(tmp_path: Path) -> None:
    from clinstack.engine.checkpoint import _opened

    (tmp_path / "last.safetensors").write_bytes(TRICKS["overlapping tensors"])
    with pytest.raises(ClinstackError, match=r"last\.safetensors is damaged .*--fresh"):
        _opened(tmp_path / "last.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "5"], ids=["deep", "a list", "half", "a number"])
def test_json_that_is_none(text: str, stack: Path, base: Path) -> None:
    (stack / "stack.json").write_text(text)
    refusal(lambda: Stack.load(stack))
    (base / "config.json").write_text(text)
    assert refusal(lambda: find_base(str(base))).startswith("base: ")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"peft_type": "NONE"}'], ids=["deep", "a list", "unknown"])
def test_an_adapters_configuration_that_is_none(text: str, stack: Path) -> None:
    (stack / "clinical" / "adapter_config.json").write_text(text)
    assert "adapter_config.json is not a PEFT configuration" in refusal(lambda: Stack.load(stack))


def test_json_of_any_size_is_not_read(stack: Path, base: Path) -> None:
    for file, act in (
        (stack / "stack.json", lambda: Stack.load(stack)),
        (base / "config.json", lambda: find_base(str(base))),
    ):
        with file.open("ab") as opened:
            opened.truncate(MOST_JSON + 1)  # a hole: nothing is written
        assert "bytes, and at most" in refusal(act)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "its aliases come to more than 1,000,000 values"),
        ("a: &a [*a]", "an alias stands within what it names"),
        ("a: " + "[" * 300 + "]" * 300, "nested more than 100 deep"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
    ],
    ids=["bomb", "loop", "deep", "python"],
)
def test_yaml_within_bounds(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert re.search(reason, refusal(lambda: load_recipe(tmp_path / "recipe.yaml", stage="pretrain")))
    (tmp_path / "task.yaml").write_text(text)
    assert re.search(reason, refusal(lambda: Task.load(tmp_path)))


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "stage: pretrain\nrun: r\nnotes: n\nbase: embedded\n"
        "adapters: [{name: clinical, rank_pattern: &p {q_proj: 4}, alpha_pattern: *p}]\n"
    )
    recipe: Any = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.adapters[0].alpha_pattern == {"q_proj": 4}
