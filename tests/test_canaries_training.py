"""Canaries in a training and its audit: planted often they are caught, never planted they are not, killed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clinstack.audit.canaries import TABLE, audit_canaries
from clinstack.engine.canary_losses import secret_losses
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.stack import Stack
from clinstack.privacy.canaries import read_canaries
from clinstack.privacy.exposure import NULL
from clinstack.recipe import parse_recipe
from clinstack.run import Run
from clinstack.stages.instruct import instruct
from clinstack.stages.pretrain import pretrain
from clinstack.tokens.encode import encode_documents
from tiny_canaries import answers_recipe, notes_recipe, write_canary_notes
from tiny_instructions import write_tiny_instructions

STEPS = 200
OVERFITTED = {"epochs": 99, "max_steps": STEPS, "learning_rate": 0.005, "validate_every": STEPS}
FULL = [{"name": "clinical", "method": "full"}]
CANARIES = {"count": 12, "repetitions": [1, 16]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_canary_notes(tmp_path_factory.mktemp("canaries") / "data", patients=120, most_lines=3)


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_instructions(tmp_path_factory.mktemp("instructions") / "data")


@pytest.fixture(autouse=True)
def fewer_other_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score 64 for each of 24 canaries and controls."""
    monkeypatch.setattr("clinstack.audit.canaries.SECRETS", 1536)


@pytest.fixture(scope="module")
def overfitted(data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = tmp_path_factory.mktemp("overfitted") / "run"
    return pretrain(notes_recipe(data, tiny_base, run, OVERFITTED, canaries=CANARIES, adapters=FULL))


def audited(folder: Path, stack: Stack, run: Path, kind: str = "notes") -> dict[str, Any]:
    """Audit a stack as one that the Run in ``folder`` trained."""
    run.mkdir()
    recipe: Any = parse_recipe({"stage": "audit", "stack": str(folder), "run": str(run)}, "test")
    target: Any = SimpleNamespace(kind=kind, run_folder=folder, stack=stack)
    return audit_canaries(target, recipe, Run(run, recipe, {}))


@pytest.fixture(scope="module")
def section(overfitted: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    stack = Stack.load(overfitted.folder / "stack")
    with pytest.MonkeyPatch.context() as patch:  # before the fixture of the tests
        patch.setattr("clinstack.audit.canaries.SECRETS", 1536)
        return audited(overfitted.folder, stack, tmp_path_factory.mktemp("audit") / "audit")


# ---------------------------------------------------------------------- the Run


def test_the_run_says_what_was_planted(overfitted: Run, data: Path) -> None:
    assert read_json(overfitted.folder / "run.json")["canaries"] == {"count": 12, "repetitions": [1, 16]}
    assert read_json(overfitted.folder / "run.json")["seeds"]["canaries"] == 0
    record = read_json(overfitted.folder / "canaries.json")
    assert (record["format_version"], record["seed"], record["places_in"]) == (1, 0, "notes")
    assert [len(one["places"]) for one in record["canaries"]] == [1, 16] * 6
    known = set(pq.read_table(data / "notes")["note_id"].to_pylist())
    assert {place["note_id"] for one in record["canaries"] for place in one["places"]} <= known
    assert all("places" not in one for one in record["controls"])


def test_what_is_measured_has_no_canaries(overfitted: Run, data: Path) -> None:
    """The losses of training notes are those of the notes as they are on disk."""
    table = pq.read_table(overfitted.folder / "losses.parquet").to_pylist()
    measured = {row["note_id"]: row for row in table if row["split"] == "train"}
    notes = pq.read_table(data / "notes").to_pylist()
    texts = {row["note_id"]: row["text"] for row in notes if row["note_id"] in measured}
    planted = read_canaries(overfitted.folder)
    assert planted is not None
    touched = {place.where for found in planted.placings.values() for place in found}
    assert touched & set(measured)
    stack = Stack.load(overfitted.folder / "stack")
    for name, text in texts.items():
        assert measured[name]["characters"] == len(text)
        assert measured[name]["tokens"] == int(encode_documents(stack.tokenizer, [text]).predictions[0])


# ---------------------------------------------------------------------- exposure


def test_exposure_rises_with_repetition_and_controls_stay_at_the_null(section: dict[str, Any]) -> None:
    once, often = section["by_repetition"]
    assert (once["repetitions"], often["repetitions"]) == (1, 16)
    controls = section["of_controls"]["exposure"]
    assert controls["interval"][0] < NULL < controls["interval"][1]
    assert often["exposure"]["interval"][0] > controls["interval"][1]
    assert often["exposure"]["value"] > once["exposure"]["value"] + 3
    assert often["gain"]["interval"][0] > 6
    assert often["auroc"]["value"] > 0.95
    assert often["above_all_controls"] == often["canaries"] == 6
    assert often["base_exposure"]["value"] < 4
    assert section["findings"][1]["name"] == "canaries.exposure.planted_16"
    assert section["findings"][1]["verdict"] == "leaking"


def test_an_untrained_adapter_is_clean(overfitted: Run, tiny_base: Path, tmp_path: Path) -> None:
    stack = Stack.build(str(tiny_base), notes_recipe(Path("x"), tiny_base, Path("x")).adapters)
    stack.eval()
    found = audited(overfitted.folder, stack, tmp_path / "audit")
    assert [one["verdict"] for one in found["findings"]] == ["clean", "clean"]
    for one in (*found["by_repetition"], found["of_controls"]):
        assert one["gain"] == {
            "value": 0.0,
            "interval": [0.0, 0.0],
        }  # an adapter that is new computes what the base does


def test_the_table_has_figures_and_no_text(section: dict[str, Any], overfitted: Run, tmp_path: Path) -> None:
    stack = Stack.load(overfitted.folder / "stack")
    assert audited(overfitted.folder, stack, tmp_path / "audit") == section
    table = pq.read_table(tmp_path / "audit" / TABLE)
    assert len(table) == section["planted"] + section["controls"] == 24
    rows = table.to_pylist()
    often = [row for row in rows if row["repetitions"] == 16]
    mean = sum(row["exposure"] for row in often) / len(often)
    assert mean == pytest.approx(section["by_repetition"][1]["exposure"]["value"])
    planted = read_canaries(overfitted.folder)
    assert planted is not None
    written = str(rows)
    assert not any(one.secret in written or one.prefix in written for one in (*planted.planted, *planted.controls))


def test_only_the_secret_is_scored(overfitted: Run) -> None:
    """The loss of a secret is that of the whole text minus that of the prefix, computed without this code."""
    import torch

    stack = Stack.load(overfitted.folder / "stack")
    planted = read_canaries(overfitted.folder)
    assert planted is not None
    canary = planted.planted[1]
    losses = secret_losses(stack, [canary], [["1234567", "7654321"]], "notes", 4)[0]

    def whole(text: str) -> float:
        ids = torch.from_numpy(encode_documents(stack.tokenizer, [text])[0][None, :-1])  # without the end token
        with torch.no_grad():
            logits = stack.network(input_ids=ids).logits[0].log_softmax(-1)
        return -float(logits[:-1].gather(1, ids[0, 1:, None]).sum())

    for loss, secret in zip(losses, (canary.secret, "1234567", "7654321"), strict=True):
        assert loss == pytest.approx(whole(f"{canary.prefix} {secret}") - whole(canary.prefix), rel=1e-4, abs=1e-3)


def test_without_canaries_nothing_is_tested_and_it_says_what_to_do(
    overfitted: Run, tmp_path: Path, tiny_base: Path
) -> None:
    stack: Any = None
    recipe: Any = parse_recipe({"stage": "audit", "stack": "x", "run": str(tmp_path)}, "test")
    run = Run(tmp_path, recipe, {})

    def why(**target: Any) -> str:
        found = audit_canaries(SimpleNamespace(stack=stack, **target), recipe, run)  # type: ignore[arg-type]
        assert (found["tested"], found["findings"]) == (False, [])
        return str(found["why"])

    assert "Train with canaries=24" in why(kind="notes", run_folder=tmp_path)
    assert "lies in no Run" in why(kind="notes", run_folder=None)
    assert "A classifier writes no text" in why(kind="scores", run_folder=overfitted.folder)


# ---------------------------------------------------------------------- answers


def test_canaries_in_answers_are_remembered_too(instructions: Path, tiny_base: Path, tmp_path: Path) -> None:
    training = {**OVERFITTED, "max_steps": 100, "validate_every": 100}
    adapters = [{"name": "instruct", "method": "full"}]
    run = instruct(answers_recipe(instructions, tiny_base, tmp_path / "run", training, adapters=adapters))
    assert run.record["canaries"] == {"count": 8, "repetitions": [1, 8]}
    assert read_json(run.folder / "canaries.json")["places_in"] == "answers"
    stack = Stack.load(run.folder / "stack")
    found = audited(run.folder, stack, tmp_path / "audit", "answers")
    assert found["places_in"] == "answers"
    assert found["by_repetition"][1]["exposure"]["value"] > found["of_controls"]["exposure"]["value"] + 2
    assert found["by_repetition"][1]["gain"]["value"] > 2


# ---------------------------------------------------------------------- killed, and refused


def test_broken_off_and_started_again_a_run_plants_the_same(
    data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_steps": 12, "checkpoint_every": 2, "validate_every": 6}
    canaries = {"count": 8, "repetitions": [1, 2]}

    def start(name: str) -> Run:
        return pretrain(notes_recipe(data, tiny_base, tmp_path / name, training, canaries=canaries))

    straight, logged = start("straight"), Run.log

    def dying(self: Run, event: dict[str, Any]) -> None:
        if event.get("step") == 9:
            raise KeyboardInterrupt
        logged(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", dying)
        with pytest.raises(KeyboardInterrupt):
            start("run")
    record = tmp_path / "run" / "canaries.json"
    write_json(record, {**read_json(record), "seed": 5})
    with pytest.raises(InputError, match="would plant other canaries than the one that began the Run"):
        start("run")
    write_json(record, {**read_json(record), "seed": 0})
    again = start("run")
    for name in ("canaries.json", "losses.parquet", "metrics.json", "stack/clinical/adapter_model.safetensors"):
        assert sha256_file(again.folder / name) == sha256_file(straight.folder / name), name


@pytest.mark.slow
def test_killed_and_started_again_the_command_plants_the_same(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        training = {"epochs": 2, "checkpoint_every": 2}
        recipe = notes_recipe(data, tiny_base, tmp_path / name, training)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        command = [sys.executable, "-m", "clinstack", "pretrain", str(file), "--json"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert start("straight").wait(300) == 0
    killed = start("killed")
    log = tmp_path / "killed" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 5):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start("killed").wait(300) == 0
    assert read_json(tmp_path / "killed" / "run.json")["starts"] == 2
    for name in ("canaries.json", "losses.parquet", "metrics.json", "stack/clinical/adapter_model.safetensors"):
        assert sha256_file(tmp_path / "killed" / name) == sha256_file(tmp_path / "straight" / name), name
