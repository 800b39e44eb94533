"""The bill of materials and the audit of dependencies: `make sbom`, `make audit-dependencies`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clinstack.files import read_json
from clinstack.model.base import EMBEDDED_FOLDERS, find_base
from clinstack.offline import VARIABLE
from network_trace import without_a_network

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("cyclonedx")
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_needed_to_run(script: ModuleType) -> None:
    bare, served = script.needed("clinstack", []), script.needed("clinstack", ["serve"])
    assert {"torch", "transformers", "pydantic-core", "safetensors"} <= bare
    assert served - bare >= {"fastapi", "uvicorn", "starlette"}
    assert not served & {"clinstack", "pytest", "ruff", "mypy", "schemathesis"}, "only what runs"


def test_a_model_is_a_component_with_the_hash_of_each_file(script: ModuleType) -> None:
    for name, folder in EMBEDDED_FOLDERS.items():
        component = script.model_component(name)
        record = read_json(folder / "clinstack-manifest.json")
        assert component["type"] == "machine-learning-model"
        assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
        hashes = {one["name"].split("/")[1]: one["hashes"][0]["content"] for one in component["components"]}
        assert hashes == {file: entry["sha256"] for file, entry in record["files"].items()}
        assert component["properties"][0]["value"] == find_base(name).fingerprint


def test_a_bill_is_valid_and_names_no_folder(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what ``cyclonedx-py`` says of three packages in the place of a run of it, which takes long."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    place = {"type": "distribution", "url": f"file://{ROOT}"}
    said = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "clinstack", "bom-ref": "root"}},
        "components": [
            {"type": "library", "name": "torch", "version": "2", "bom-ref": "torch==2", "externalReferences": [place]},
            {"type": "library", "name": "pytest", "version": "9", "bom-ref": "pytest==9"},
            {"type": "library", "name": "PyYAML", "version": "6", "bom-ref": "PyYAML==6"},
        ],
        "dependencies": [
            {"ref": "root", "dependsOn": ["torch==2", "PyYAML==6", "pytest==9"]},
            {"ref": "pytest==9"},
            {"ref": "torch==2"},
        ],
    }
    done = subprocess.CompletedProcess([], 0, json.dumps(said), "")
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: done)
    bill: dict[str, Any] = script.bill([])
    text = json.dumps(bill)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert "file://" not in text
    names = [one["name"] for one in bill["components"]]
    assert names == ["PyYAML", "torch", "clinstack-embedded", "clinstack-embedded-encoder"]
    root = next(one for one in bill["dependencies"] if one["ref"] == "root")
    assert root["dependsOn"] == ["PyYAML==6", "torch==2", "model:embedded", "model:embedded-encoder"]


@pytest.mark.slow
def test_the_same_environment_gives_the_same_bill(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx")
    for name in ("one.json", "other.json"):
        command = [sys.executable, ROOT / "scripts" / "sbom.py", "--out", tmp_path / name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == 0, done.stderr
        assert "valid CycloneDX 1.6" in done.stdout
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()
    text = (tmp_path / "one.json").read_text()
    assert str(ROOT) not in text
    assert sys.prefix not in text


def audit(tmp_path: Path, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pip_audit")
    (tmp_path / "pins.txt").write_text("six==1.17.0\n")
    command = [*before, sys.executable, str(ROOT / "scripts" / "audit_dependencies.py")]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(
        [*command, "--pins", str(tmp_path / "pins.txt")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("is_offline", [True, False])
def test_an_audit_that_can_ask_nobody_says_so(tmp_path: Path, is_offline: bool) -> None:
    before = [] if is_offline else without_a_network()
    done = audit(tmp_path, *before, **({VARIABLE: "1"} if is_offline else {}))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Run it where there is a network" in done.stderr


def test_requirements_with_the_hash_of_every_wheel(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("some_package-1.0-py3-none-any.whl", "some_package-1.0-cp311-cp311-linux_x86_64.whl"):
        (wheels / name).write_text(name)
    command = [sys.executable, str(ROOT / "scripts" / "hashed_requirements.py"), str(wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(wheels.iterdir())]
    assert done.stdout == f"some-package==1.0 --hash=sha256:{digests[0]} --hash=sha256:{digests[1]}\n"
    (wheels / "other.tar.gz").write_text("x")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "other.tar.gz is no wheel" in done.stderr
