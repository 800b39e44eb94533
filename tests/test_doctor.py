"""What `clinstack doctor` says of a machine and of recipes: what would break where there is no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clinstack import doctor, offline
from clinstack.cli import main
from clinstack.doctor import Finding, breaking, machine
from clinstack.doctor_recipes import recipe_findings
from clinstack.model.base import find_base, hash_of
from clinstack.model.manifest import write_manifest


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with nothing in it, and an environment without trackers."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", offline.ALLOWED):
        monkeypatch.delenv(name, raising=False)
    return folder


def recipe(tmp_path: Path, **values: Any) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), **values}))
    return str(path)


def pretrain(tmp_path: Path, **values: Any) -> str:
    return recipe(tmp_path, **{"stage": "pretrain", "notes": "data", "adapters": [{"name": "clinical"}], **values})


def whats(name: str, status: str = "breaks") -> list[str]:
    return [one.what for one in recipe_findings(name) if one.status == status]


def test_a_recipe_that_needs_nothing(no_cache: Path, tmp_path: Path) -> None:
    assert next(iter(recipe_findings(pretrain(tmp_path)))).what == "needs nothing from beyond this machine"
    assert whats("demo/pretrain") == []


def test_a_base_of_the_hub(no_cache: Path, tmp_path: Path) -> None:
    (found,) = recipe_findings(pretrain(tmp_path, base="ward/llama"))
    assert (found.status, found.what) == ("breaks", "base: ward/llama is not on this machine")
    assert "Copy the model here" in found.remedy


def test_a_base_in_the_cache_of_the_hub(no_cache: Path, tmp_path: Path, tiny_base: Path) -> None:
    snapshot = no_cache / "models--ward--llama" / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    name = pretrain(tmp_path, base="ward/llama")
    assert "ward/llama: not whole in the hub's cache" in [one.what for one in machine()]
    assert whats(name) == ["base: ward/llama is not on this machine"], "an empty snapshot is no model"
    for file in tiny_base.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    assert "ward/llama: in the hub's cache" in [one.what for one in machine()]
    assert whats(name) == []


def test_a_folder_with_and_without_a_manifest(no_cache: Path, tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for file in tiny_base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    name = pretrain(tmp_path, base=str(folder))
    assert whats(name, "note") == [f"base: {folder} is here, without a manifest"]
    write_manifest(folder, find_base(str(folder)).fingerprint, hash_of)
    assert whats(name, "ok") == [f"base: {folder} is here, with a manifest"]
    (folder / "modeling.py").write_text("")
    (broken,) = whats(name)
    assert "modeling.py is not in clinstack-manifest.json" in broken


def test_trackers_endpoints_and_databases(no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = pretrain(tmp_path, training={"tracking": "wandb"})
    monkeypatch.setattr("clinstack.doctor_recipes.is_installed", lambda package: False)
    assert whats(tracked) == ["training.tracking: wandb is not installed"]
    monkeypatch.setattr("clinstack.doctor_recipes.is_installed", lambda package: True)
    assert whats(tracked) == []
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert whats(tracked) == ["training.tracking: the environment sends wandb to another machine"]
    swept = {"stage": "sweep", "recipe": "demo/pretrain", "space": {"training.learning_rate": {"choices": [1e-3]}}}
    assert whats(recipe(tmp_path, **swept, storage="postgresql://u@db.example.org/d")) == [
        "storage: db.example.org is another machine"
    ]
    written = tmp_path / "synthesize.yaml"
    written.write_text(yaml.safe_dump({"endpoint": {"base_url": "http://10.1.2.3:8000/v1", "model": "m"}}))
    assert whats(str(written)) == ["endpoint.base_url: 10.1.2.3 is another machine"]
    monkeypatch.setenv(offline.ALLOWED, "10.1.0.0/16")
    assert whats(str(written)) == []


def test_a_missing_extra(no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinstack.doctor_recipes.is_installed", lambda package: package != "bitsandbytes")
    (found,) = breaking(list(recipe_findings(pretrain(tmp_path, quantize="4bit"))))
    assert "bitsandbytes is not installed" in found.what
    assert "clinstack[quantized]" in found.remedy


def test_every_cell_of_a_study_is_looked_at(no_cache: Path) -> None:
    assert whats("gema2023/table3") == [
        "base: huggyllama/llama-7b is not on this machine",
        "base: chaoyi-wu/PMC_LLAMA_7B is not on this machine",
    ]


def test_the_machine(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(offline.VARIABLE, "1")
    monkeypatch.setenv(offline.ALLOWED, "db.ward.local, 10.0.0.0/8")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    monkeypatch.setattr(doctor, "is_installed", lambda package: package != "trl")
    monkeypatch.setitem(offline.overridden, "DO_NOT_TRACK", "0")
    found = list(machine())
    said = {one.what: one for one in found}
    assert "offline: this machine and db.ward.local, 10.0.0.0/8 only" in said
    assert said["align: without trl"] == Finding(
        "extras", "align: without trl", "note", "If you need it: pip install 'clinstack[align]'"
    )
    assert said["a proxy: HTTPS_PROXY"].status == "note"
    assert said["the environment asks for telemetry: DO_NOT_TRACK"].remedy == "It is off all the same."
    assert "embedded: agrees with its manifest" in said
    assert breaking(found) == []
    assert "secret" not in repr(found)


def test_the_exit_code_and_the_line_for_machines(
    no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["clinstack", "doctor", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().out

    name = pretrain(tmp_path, base="ward/llama")
    code, out = run(name, "--json")
    said = json.loads(out)
    assert (code, said["breaks"]) == (1, 1)
    assert {"area", "what", "status", "remedy"} == set(said["findings"][0])
    assert said["versions"]["clinstack"]
    code, out = run(name)
    assert code == 1
    assert "1 would break offline." in out
    code, out = run(pretrain(tmp_path))
    assert code == 0
    assert "Nothing here needs a network." in out
    assert run(tmp_path / "nowhere.yaml")[0] == 2
