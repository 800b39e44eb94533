"""Private training from the recipe to the saved stack: what is recorded, what is left out, what is refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from clinstack.engine.secret import SECRET_FILE, Secret
from clinstack.errors import InputError
from clinstack.files import read_json, write_json
from clinstack.model.privacy_lineage import TrainingPrivacy, privacy_of, privacy_sentence
from clinstack.model.stack import Stack
from clinstack.privacy.accountant import Mechanism, cost
from clinstack.recipe import load_recipe, parse_recipe
from clinstack.run import Run
from clinstack.stages.finetune import finetune
from clinstack.stages.instruct import instruct
from clinstack.stages.pretrain import PretrainObjective, pretrain
from tiny_instructions import write_tiny_instructions
from tiny_notes import CANARY

KEYS = {
    "unit",
    "epsilon",
    "delta",
    "noise_multiplier",
    "clip",
    "sampling_rate",
    "steps",
    "patients",
    "accountant",
}
PRIVACY = {"noise_multiplier": 1.0, "patients_per_step": 10, "rows_per_patient": 2}
"""Of 42 training patients."""


def values_of(stage: str, base: Path, source: Path, run: Path, **changes: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "stage": stage,
        "run": str(run),
        "base": str(base),
        "adapters": [{"name": "one", "rank": 4, "alpha": 8}],
        "evaluation": {"resamples": 100},
        "training": {"epochs": 2, "learning_rate": 0.01, "batch_size": 8, "tracking": "none"},
        "privacy": PRIVACY,
    }
    own: dict[str, dict[str, Any]] = {
        "pretrain": {"notes": str(source), "context": 32},
        "instruct": {"instructions": str(source), "max_tokens": 256, "answer_tokens": 32},
        "finetune": {"examples": str(source / "examples" / "mortality"), "max_tokens": 32, "class_weights": "none"},
    }
    return common | own[stage] | changes


def run_of(values: dict[str, Any], **options: Any) -> Run:
    stages: dict[str, Callable[..., Run]] = {"pretrain": pretrain, "instruct": instruct, "finetune": finetune}
    recipe: Any = parse_recipe(values, "test")
    return stages[values["stage"]](recipe, **options)


def log_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tiny_notes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A private Run of each stage."""
    folder = tmp_path_factory.mktemp("private")
    instructions = write_tiny_instructions(folder / "instructions-data")
    sources = {"pretrain": tiny_notes, "instruct": instructions, "finetune": tiny_notes}
    return {stage: run_of(values_of(stage, tiny_base, source, folder / stage)) for stage, source in sources.items()}


# ---------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "finetune"])
def test_what_it_cost_is_in_the_run_and_in_the_stack(stage: str, runs: dict[str, Run]) -> None:
    run = runs[stage]
    record = read_json(run.folder / "run.json")["privacy"]
    assert record.keys() >= KEYS
    assert (record["unit"], record["patients"], record["steps"]) == ("patient", 42, 10)  # 2 epochs of 42 / 10
    assert record["sampling_rate"] == 10 / 42
    assert record["delta"] == pytest.approx(42**-1.1)
    spent = cost([Mechanism(10 / 42, 1.0, 10)], record["delta"])
    assert (record["epsilon"], record["epsilon_rdp"]) == (spent.epsilon, spent.epsilon_rdp)
    assert record["overall"] == {"epsilon": record["epsilon"], "delta": record["delta"], "how": "one training"}
    (entry,) = read_json(run.folder / "stack" / "stack.json")["privacy"]
    assert (entry["stage"], entry["adapter"], entry["private"]) == (stage, "one", True)
    assert {key: entry[key] for key in KEYS} == {key: record[key] for key in KEYS}
    stack = Stack.load(run.folder)
    assert stack.privacy is not None
    assert [one.to_dict() for one in stack.privacy] == [entry]
    assert record["sentence"] == privacy_sentence(stack.privacy)
    assert f"epsilon {record['epsilon']:.3g}" in record["sentence"]


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "finetune"])
def test_nothing_of_training_patients_is_told_without_noise(stage: str, runs: dict[str, Run]) -> None:
    run = runs[stage]
    steps = [line for line in log_of(run) if "validation_loss" not in line]
    assert len(steps) == 10
    assert all(line.keys() == {"step", "epoch", "learning_rate"} for line in steps)
    metrics = read_json(run.folder / "metrics.json")
    assert "train" not in metrics
    assert "train" not in metrics["tokens"]
    assert len(metrics["validation"]) == 2
    for table in run.folder.glob("*.parquet"):
        assert "train" not in pq.read_table(table)["split"].to_pylist()
    assert read_json(run.folder / "run.json").get("tokens_per_second") is None
    assert not any("labels" in name and "train" in str(metrics[name]) for name in metrics)


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "finetune"])
def test_the_secret_goes_with_the_last_step_and_no_text_stays(stage: str, runs: dict[str, Run]) -> None:
    folder = runs[stage].folder
    assert (folder / "checkpoints" / "last.safetensors").is_file()
    assert not list(folder.rglob(f"*{SECRET_FILE}*"))
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".yaml", ".md"):
            assert CANARY not in file.read_text()


def test_two_starts_of_one_recipe_draw_other_noise(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training": {"max_steps": 2, "batch_size": 8, "tracking": "none"}}
    weights = []
    for name in ("first", "second"):
        run = run_of(values_of("pretrain", tiny_base, tiny_notes, tmp_path / name, **changes))
        weights.append(Stack.load(run.folder).adapter_tensors("one"))
    first, second = weights
    assert all(not torch.equal(first[name], second[name]) for name in first)


def test_an_epsilon_is_kept_to(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    privacy = {"epsilon": 4.0, "delta": 0.001, "patients_per_step": 42}
    training = {"epochs": 3, "batch_size": 8, "tracking": "none"}
    run = run_of(values_of("finetune", tiny_base, tiny_notes, tmp_path / "run", privacy=privacy, training=training))
    record = read_json(run.folder / "run.json")["privacy"]
    assert (record["steps"], record["delta"]) == (3, 0.001)
    assert 3.9 < record["epsilon"] <= 4.0


@pytest.mark.parametrize("spec", ["adalora", "p_tuning", "head"])
def test_other_methods_and_a_head_alone_train_too(spec: str, tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    from methods import SPECS

    adapters = [] if spec == "head" else [{"name": "one", **SPECS[spec]}]
    training = {"epochs": 1, "learning_rate": 0.001, "batch_size": 8, "tracking": "none"}
    values = values_of("finetune", tiny_base, tiny_notes, tmp_path / "run", adapters=adapters, training=training)
    run = run_of(values)  # invariant 2 holds, or it would raise
    (entry,) = read_json(run.folder / "stack" / "stack.json")["privacy"]
    assert (entry["adapter"], entry["private"]) == ("head" if spec == "head" else "one", True)
    if spec == "head":
        assert not list((run.folder).glob("features"))


def test_patience_may_end_it_and_the_cost_is_that_of_all_planned_steps(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainObjective, "validate", lambda self: {"loss": 1.0, "score": -1.0})  # never better
    training = {"epochs": 6, "learning_rate": 1e-3, "batch_size": 8, "patience": 1, "tracking": "none"}
    values = values_of("pretrain", tiny_base, tiny_notes, tmp_path / "run", training=training)
    run = run_of(values)
    assert log_of(run)[-1]["step"] == 10  # two validations
    assert read_json(run.folder / "run.json")["privacy"]["steps"] == 30
    assert not list(run.folder.rglob(SECRET_FILE))
    assert run_of(values).is_done


# ---------------------------------------------------------------------- lineage


def test_two_private_trainings_compose_and_one_that_was_not_takes_the_guarantee_away(
    runs: dict[str, Run], tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 2, "batch_size": 8, "tracking": "none"}
    open_parent = run_of(
        values_of("pretrain", tiny_base, tiny_notes, tmp_path / "open", privacy=None, training=training)
    )
    (entry,) = read_json(open_parent.folder / "stack" / "stack.json")["privacy"]
    assert (entry["stage"], entry["adapter"], entry["private"]) == ("pretrain", "one", False)
    assert "epsilon" not in entry
    assert "privacy" not in read_json(open_parent.folder / "run.json")
    for name, parent in {"private": runs["pretrain"], "open": open_parent}.items():
        adapters = [{"name": "clinical", "path": str(parent.folder)}, {"name": "task", "rank": 2}]
        values = values_of("finetune", tiny_base, tiny_notes, tmp_path / f"on-{name}", adapters=adapters)
        run = run_of(values)
        record = read_json(run.folder / "run.json")["privacy"]
        stack = Stack.load(run.folder)
        assert stack.privacy is not None
        assert [one.adapter for one in stack.privacy] == ["one", "task"]
        if name == "open":
            assert record["overall"] is None
            assert record["sentence"].startswith("No guarantee for the stack as a whole: one (pretrain) was trained")
            continue
        steps = Mechanism(10 / 42, 1.0, 10)
        together = record["overall"]["epsilon"]
        assert together == pytest.approx(cost([steps, steps], record["delta"]).epsilon)
        assert record["epsilon"] < together < 2 * record["epsilon"]
        assert "of its 2 trainings together" in record["sentence"]
        assert [one.private for one in stack.privacy] == [True, True]


def test_a_training_that_is_not_private_on_top_takes_it_away_too(
    runs: dict[str, Run], tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    adapters = [{"name": "clinical", "path": str(runs["pretrain"].folder)}, {"name": "task", "rank": 2}]
    training = {"max_steps": 2, "batch_size": 8, "tracking": "none"}
    values = values_of(
        "finetune", tiny_base, tiny_notes, tmp_path / "run", adapters=adapters, privacy=None, training=training
    )
    stack = Stack.load(run_of(values).folder)
    assert stack.privacy is not None
    assert [one.private for one in stack.privacy] == [True, False]
    assert privacy_sentence(stack.privacy).startswith("No guarantee for the stack as a whole: task (finetune)")


def test_a_parent_without_a_record_promises_nothing(
    clinical: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    adapters = [{"name": "clinical", "path": str(clinical)}, {"name": "task", "rank": 2}]
    training = {"max_steps": 2, "batch_size": 8, "tracking": "none"}
    values = values_of("finetune", tiny_base, tiny_notes, tmp_path / "run", adapters=adapters, training=training)
    run = run_of(values)
    first, second = read_json(run.folder / "stack" / "stack.json")["privacy"]
    assert first == {"stage": None, "adapter": "clinical", "private": None}
    assert (second["private"], second.get("overall")) == (True, None)
    assert "comes without a record" in read_json(run.folder / "run.json")["privacy"]["sentence"]


def test_sentences_of_what_is_promised() -> None:
    private = TrainingPrivacy("pretrain", "a", True, unit="patient", overall={"epsilon": 2.0, "delta": 1e-3})
    assert privacy_sentence(None) == privacy_sentence(()) == "No guarantee: nothing is recorded of private training."
    assert privacy_sentence([TrainingPrivacy("pretrain", "a", False)]).startswith("No guarantee: it was not trained")
    assert privacy_sentence([private]).startswith("Differentially private for each training patient: epsilon 2 at")
    with pytest.raises(InputError, match="damaged"):
        privacy_of({"privacy": [{"stage": "pretrain"}]})
    assert privacy_of({}) is None


# ---------------------------------------------------------------------- refused


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "both": ("pretrain", {"privacy": PRIVACY | {"epsilon": 8}}, "either epsilon or noise_multiplier"),
    "neither": ("pretrain", {"privacy": {"patients_per_step": 4}}, "either epsilon or noise_multiplier"),
    "sample": ("pretrain", {"privacy": {"epsilon": 8}}, "the key privacy.patients_per_step is missing"),
    "accumulate": ("pretrain", {"training": {"accumulate": 2}}, "training.accumulate is 2, .* set it to 1"),
    "batch_tokens": ("finetune", {"training": {"batch_tokens": 99}}, "training.batch_tokens is 99, .* set it to null"),
    "spike": ("pretrain", {"training": {"spike_factor": 3}}, "training.spike_factor is 3.0, .* set it to null"),
    "gradient_clip": ("pretrain", {"training": {"gradient_clip": 9}}, "gradient_clip is 9.0, .* set it to 1.0"),
    "compile": ("pretrain", {"training": {"compile": True}}, "training.compile is True, .* set it to false"),
    "float16": ("pretrain", {"dtype": "float16"}, "dtype is 'float16', .* set it to bfloat16"),
    "class_weights": ("finetune", {"class_weights": "balanced"}, "class_weights is 'balanced', .* set it to none"),
    "max_examples": ("instruct", {"max_examples": 5}, "max_examples is 5, .* set it to null"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_guarantee_is_refused_with_the_key_and_the_remedy(name: str, tmp_path: Path) -> None:
    stage, changes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        parse_recipe(values_of(stage, Path("base"), Path("source"), tmp_path / "run") | changes, "test")


def test_alignment_cannot_be_private() -> None:
    values = {"stage": "align", "run": "run", "preferences": "data", "adapters": [{"name": "one"}], "privacy": PRIVACY}
    with pytest.raises(InputError, match="privacy: alignment cannot be private"):
        parse_recipe(values, "test")


def test_more_patients_than_there_are_cannot_be_drawn(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    values = values_of("pretrain", tiny_base, tiny_notes, tmp_path / "run", privacy=PRIVACY | {"patients_per_step": 43})
    with pytest.raises(InputError, match=r"privacy\.patients_per_step: 43 of 42 training patients"):
        run_of(values)


def test_several_processes_are_refused(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinstack.engine import private

    monkeypatch.setattr(private, "world", lambda: SimpleNamespace(size=2))
    with pytest.raises(InputError, match="privacy: a private training runs in one process"):
        run_of(values_of("pretrain", tiny_base, tiny_notes, tmp_path / "run"))


def test_without_opacus_the_training_names_the_extra(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(InputError, match=r"pip install 'clinstack\[private\]'"):
        run_of(values_of("pretrain", tiny_base, tiny_notes, tmp_path / "run"))


# ---------------------------------------------------------------------- the secret


def test_a_secret_is_its_owner_s_alone_and_is_the_same_at_the_next_start(tmp_path: Path) -> None:
    secret = Secret.open(tmp_path, begun=False)
    mode = stat.S_IMODE(os.stat(tmp_path / SECRET_FILE).st_mode)
    assert mode == 0o600
    again = Secret.open(tmp_path, begun=True)
    assert again.seed("noise", 5) == secret.seed("noise", 5)
    assert Secret.open(tmp_path, begun=False).seed("noise", 5) == secret.seed("noise", 5)
    Secret.forget(tmp_path)
    assert Secret.open(tmp_path, begun=False).seed("noise", 5) != secret.seed("noise", 5)


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_training_that_was_begun_needs_its_secret(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / SECRET_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"missing or damaged.*--fresh"):
        Secret.open(tmp_path, begun=True)


def test_a_run_that_lost_its_secret_midway_is_refused_and_one_at_its_end_is_not(
    runs: dict[str, Run], tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    """Killed between the last step and the end, a Run has no secret any more, and needs none."""
    values = values_of("pretrain", tiny_base, tiny_notes, tmp_path / "run")
    run = run_of(values)
    before = run.folder / "stack"
    weights = Stack.load(before).adapter_tensors("one")
    record = read_json(run.folder / "run.json")
    write_json(run.folder / "run.json", record | {"status": "running"})
    again = run_of(values)
    assert again.record["starts"] == 2
    found = Stack.load(again.folder).adapter_tensors("one")
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_recipes_with_privacy_are_read_back(tmp_path: Path, tiny_base: Path, tiny_notes: Path) -> None:
    from clinstack.recipe import dump_recipe

    recipe = parse_recipe(values_of("pretrain", tiny_base, tiny_notes, tmp_path / "run"), "test")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    changed = load_recipe(tmp_path / "recipe.yaml", ["privacy.noise_multiplier=null", "privacy.epsilon=3"])
    assert changed.privacy.epsilon == 3


def test_validate_and_the_terminal_say_what_it_costs(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from clinstack.cli_figures import privacy_figures
    from clinstack.cli_validate import validate_recipe

    console = Console(width=300)
    for run in runs.values():
        record = read_json(run.folder / "run.json")["privacy"]
        validate_recipe(run.recipe, console)
        said = capsys.readouterr().out
        assert "private: 10 steps of 10 of 42 training patients, noise multiplier 1: " in said
        assert f"epsilon {record['epsilon']:.3g} at delta 0.016 for each patient" in said
        shown = privacy_figures(run.record)
        assert f"epsilon {record['epsilon']:.3g}" in shown["privacy of this training"]
        assert shown["privacy of the stack"] == record["sentence"]
    assert privacy_figures({}) == {}
