"""The audit of a stack, from the command line to the verdict in its folder; wrong input; killed in the middle."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import clinstack.stages.audit as stage
from clinstack.audit.target import AuditTarget, draw_by_patient, find_target
from clinstack.cli import app
from clinstack.cli_audit import read_audit_recipe
from clinstack.demo import audit_command
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.privacy.verdict import finding
from clinstack.recipe import load_recipe, parse_recipe
from clinstack.recipe.audit import AuditRecipe, default_run
from clinstack.report.rows import collect
from clinstack.run import Run
from tiny_audit import KINDS, MARKER, AuditRuns, Kind, audit_recipe_values

QUICK: dict[str, Any] = {"neighbours": 1}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> AuditRuns:
    return AuditRuns(tmp_path_factory.getbasetemp() / "tiny-audit", tiny_base)


def recipe_of(run: Path, /, **changes: Any) -> AuditRecipe:
    recipe = parse_recipe(audit_recipe_values(run, **QUICK | changes), "test", "audit")
    assert isinstance(recipe, AuditRecipe)
    return recipe


def copied(run: Path, to: Path) -> Path:
    """Return a Run of one's own, whose Stack may be written to."""
    return Path(shutil.copytree(run, to))


def texts_in(folder: Path) -> str:
    """Return everything that a folder's files say, tables too."""
    parts = []
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".parquet":
            parts.append(json.dumps(pq.read_table(file).to_pylist(), default=str))
        elif file.is_file() and file.suffix != ".safetensors":
            parts.append(file.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(parts)


# ---------------------------------------------------------------------- controls


def test_an_untrained_adapter_comes_out_clean(runs: AuditRuns, tmp_path: Path) -> None:
    stack = copied(runs.untrained("notes"), tmp_path / "run")
    before = sha256_file(stack / "stack" / "stack.json")
    arguments = [str(stack), "neighbours=1", "evaluation.resamples=200", "extraction.prefix_tokens=24"]
    arguments += ["extraction.continuation_tokens=10", "extraction.prompts=20", "extraction.generations=4", "--json"]
    result = CliRunner().invoke(app, ["audit", *arguments])
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["verdict"] == "clean", line["findings"]
    assert line["run"] == str(stack / "audit")
    assert set(line) == {"run", "status", "verdict", "sentence", "findings", "paths"}
    for path in line["paths"].values():
        assert Path(path).is_file()
    assert "Not tested: canaries" in line["sentence"]
    assert "does not prove" in line["sentence"]
    for item in line["findings"]:
        assert {"attack", "name", "value", "interval", "threshold", "verdict"} <= set(item)

    # The verdict stands beside stack.json, which nobody touched, and on the cards.
    summary = read_json(stack / "stack" / "audit.json")
    assert summary["verdict"] == "clean"
    assert summary["stack"]["fingerprint"] == before == sha256_file(stack / "stack" / "stack.json")
    assert summary["report"]["sha256"] == sha256_file(stack / "audit" / "audit.json")
    assert "Clean, audited" in (stack / "stack" / "README.md").read_text(encoding="utf-8")

    html = (stack / "audit" / "audit.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|url\((?!#)", html) == []  # nothing from elsewhere
    assert "Synthetic patients" in html
    assert ">Clean<" in html
    assert html.count("<svg") == 2
    assert MARKER not in texts_in(stack / "audit")
    assert MARKER not in texts_in(stack / "stack")
    # A report of the Runs sees the training, and not the audit inside it.
    assert [run.stage for run in collect(stack).runs] == ["pretrain"]
    assert collect(stack).unfinished == []


def test_an_overfitted_adapter_is_caught(runs: AuditRuns, tmp_path: Path) -> None:
    stack = copied(runs.overfitted("notes"), tmp_path / "run")
    run = stage.audit(recipe_of(stack, attacks=["membership"]))
    report = read_json(run.folder / "audit.json")
    assert report["verdict"] == "leaking"
    leaking = {item["name"] for item in report["findings"] if item["verdict"] == "leaking"}
    assert {f"membership.{name}.auroc" for name in ("loss", "reference", "min_k_plus_plus")} <= leaking
    assert read_json(stack / "stack" / "audit.json")["verdict"] == "leaking"
    assert MARKER not in texts_in(run.folder)
    sacro = read_json(run.folder / "audit.sacro.json")
    attacks = [entry for entry in sacro.values() if "attack_experiment_logger" in entry]
    assert len(attacks) == 4
    for entry in attacks:
        instance = entry["attack_experiment_logger"]["attack_instance_logger"]["instance_0"]
        assert instance["AUC"] > 0.8
        assert instance["P_HIGHER_AUC"] < 0.05


@pytest.mark.slow
def test_an_overfitted_adapter_gives_its_canaries_away(runs: AuditRuns, tmp_path: Path) -> None:
    stack = copied(runs.overfitted("notes"), tmp_path / "run")
    run = stage.audit(recipe_of(stack))
    report = read_json(run.folder / "audit.json")
    assert report["verdict"] == "leaking"
    verdicts = {item["name"]: item["verdict"] for item in report["findings"]}
    assert verdicts["canaries.exposure.planted_4"] == "leaking"
    assert "exposure of 8 canaries planted 1, 4 times, beside 8 controls" in report["sentence"]
    html = (run.folder / "audit.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 3
    assert "Exposure of canaries" in html
    written = texts_in(run.folder)
    assert MARKER not in written
    for canary in read_json(stack / "canaries.json")["canaries"]:
        assert canary["secret"] not in written  # the figures are of secrets, which are nobody's business


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["answers", "scores"])
def test_the_controls_of_answers_and_of_scores(kind: Kind, runs: AuditRuns, tmp_path: Path) -> None:
    for name, make in {"clean": runs.untrained, "leaking": runs.overfitted}.items():
        run = stage.audit(recipe_of(copied(make(kind), tmp_path / name), neighbours=4))  # as by default
        assert read_json(run.folder / "audit.json")["verdict"] == name
        assert MARKER not in texts_in(run.folder)


# ---------------------------------------------------------------------- resuming


def fake_attacks(fail_at: str | None, calls: list[str]) -> Callable[[str], Any]:
    """Return a stand-in for the attacks that says at once what it would, and fails at one."""

    def of(name: str) -> Any:
        def attack(target: AuditTarget, recipe: AuditRecipe, run: Run) -> dict[str, Any]:
            calls.append(name)
            if name == fail_at:
                raise RuntimeError(MARKER)
            if name != "canaries":
                return {"tested": False, "why": "not here. Whatever.", "findings": []}
            group = {"value": 1 / 3, "interval": [0.1, 2 / 3]}
            groups = dict.fromkeys(("exposure", "bound", "base_exposure"), group)
            return {
                "tested": True,
                "why": None,
                "planted": 8,
                "controls": 8,
                "others": 32,
                "null": 1.44,
                "by_repetition": [{"repetitions": 1, "canaries": 8, **groups}],
                "of_controls": groups,
                "findings": [finding("canaries.exposure.planted_1", 1 / 3, [0.1, 2 / 3], 6.0)],
            }

        return attack

    return of


def test_a_killed_audit_goes_on_after_its_last_attack(
    runs: AuditRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copied(runs.untrained("answers"), tmp_path / "run")
    calls: list[str] = []
    monkeypatch.setattr(stage, "attack_of", fake_attacks("extraction", calls))
    recipe = recipe_of(source, run=str(tmp_path / "killed"))
    with pytest.raises(RuntimeError):
        stage.audit(recipe)
    assert read_json(tmp_path / "killed" / "run.json")["error"] == "RuntimeError"  # and not what it said
    assert not (source / "stack" / "audit.json").exists()
    monkeypatch.setattr(stage, "attack_of", fake_attacks(None, calls))
    stage.audit(recipe)
    assert calls == ["canaries", "membership", "extraction", "extraction"]
    stage.audit(recipe_of(source, run=str(tmp_path / "whole")))
    both = [tmp_path / name / "audit.json" for name in ("killed", "whole")]
    assert both[0].read_bytes() == both[1].read_bytes()
    # A finished audit is not done again, and its verdict comes back where somebody removed it.
    (source / "stack" / "audit.json").unlink()
    stage.audit(recipe)
    assert len(calls) == 7
    assert read_json(source / "stack" / "audit.json")["report"]["run"] == "../../killed"


def test_an_audit_of_other_weights_is_stale_on_the_card(
    runs: AuditRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinstack.model.cards import write_cards

    source = copied(runs.untrained("answers"), tmp_path / "run")
    monkeypatch.setattr(stage, "attack_of", fake_attacks(None, []))
    stage.audit(recipe_of(source))
    record = source / "stack" / "stack.json"
    write_json(record, {**read_json(record), "max_tokens": 191})
    write_cards(source / "stack")
    assert "Stale" in (source / "stack" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"stack\.json has changed since this Run began"):
        stage.audit(recipe_of(source))


@pytest.mark.slow
def test_killed_with_signal_9_it_ends_with_the_same_bytes(runs: AuditRuns, tmp_path: Path) -> None:
    source = copied(runs.overfitted("notes"), tmp_path / "run")
    write_json(tmp_path / "audit.yaml", audit_recipe_values(source, **QUICK) | {"stage": "audit"})  # JSON is YAML
    command = [sys.executable, "-m", "clinstack", "audit", str(tmp_path / "audit.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen([*command, f"run={tmp_path / 'killed'}"], env=environment, stdout=out, stderr=out)
        kept = tmp_path / "killed" / "sections" / "membership.json"
        while process.poll() is None and not kept.is_file():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_json(tmp_path / "killed" / "run.json")["status"] == "running", (tmp_path / "out").read_text()
    for name in ("killed", "whole"):
        subprocess.run([*command, f"run={tmp_path / name}"], env=environment, check=True, capture_output=True)
    for name in ("audit.json", "attacks-membership.parquet", "attacks-extraction.parquet", "attacks-canaries.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---------------------------------------------------------------------- what is audited


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_says_what_it_was_trained_on(kind: Kind, runs: AuditRuns) -> None:
    found = find_target(recipe_of(runs.untrained(kind)))
    assert found.kind == kind
    assert found.recorded
    assert found.data == (runs.data / "examples" / "mortality" if kind == "scores" else runs.data)
    assert found.synthetic


def test_the_sides_hold_whole_patients_and_share_none(runs: AuditRuns) -> None:
    recipe = recipe_of(runs.untrained("notes"), max_notes=20)
    target = AuditTarget.open(find_target(recipe), recipe)
    sides = {side: target.notes(side).index.to_pylist() for side in ("train", "test")}
    patients = {side: [row["patient_id"] for row in rows] for side, rows in sides.items()}
    assert [len(rows) for rows in sides.values()] == [20, 20]
    assert [len(set(of)) for of in patients.values()] == [10, 10]  # both notes of each
    assert not set(patients["train"]) & set(patients["test"])


def test_a_larger_draw_holds_the_smaller_one() -> None:
    patients = [f"p{place % 7}" for place in range(40)]
    small, large = (draw_by_patient(patients, most, seed=3) for most in (11, 23))
    assert set(small) < set(large)
    assert len(small) == 11
    assert small == sorted(small)
    assert draw_by_patient(patients, 11, seed=4) != small


def test_a_bare_stack_takes_the_word_of_whoever_asks(runs: AuditRuns, tmp_path: Path) -> None:
    stack = Path(shutil.copytree(runs.untrained("notes") / "stack", tmp_path / "ward"))
    assert default_run(stack) == tmp_path / "ward-audit"
    with pytest.raises(InputError, match=r"lies in no Run .* name it as notes=FOLDER"):
        find_target(recipe_of(stack))
    recipe = recipe_of(stack, notes=str(runs.data))
    assert recipe.run == str(tmp_path / "ward-audit")
    assert not find_target(recipe).recorded


def test_a_run_whose_data_moved_is_recognized_by_content(runs: AuditRuns, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(runs.data, tmp_path / "moved"))
    recipe = recipe_of(runs.untrained("notes"), notes=str(moved))
    assert find_target(recipe).recorded
    table = pq.read_table(moved / "notes" / "notes.parquet")
    pq.write_table(table.slice(1), moved / "notes" / "notes.parquet")
    with pytest.raises(InputError, match="is not what the Run was trained on"):
        find_target(recipe)


# ---------------------------------------------------------------------- wrong input


def test_wrong_input_ends_with_one_line_and_the_remedy(runs: AuditRuns, tmp_path: Path) -> None:
    notes, scores, answers = (runs.untrained(kind) for kind in KINDS[:1] + KINDS[2:] + KINDS[1:2])
    (tmp_path / "empty").mkdir()
    few = tmp_path / "few"
    shutil.copytree(runs.data, few)
    table = pq.read_table(few / "notes" / "notes.parquet")
    some = pa.compute.is_in(table["patient_id"], pa.array(["p000", "p001", "p002", "p003", "h000", "p005", "p006"]))
    pq.write_table(table.filter(some), few / "notes" / "notes.parquet")
    bare = Path(shutil.copytree(notes / "stack", tmp_path / "bare"))
    cases: list[tuple[list[str], str]] = [
        ([], "Name what is audited"),
        ([str(tmp_path / "nothing")], "neither a Run nor a Stack"),
        ([str(tmp_path / "empty")], "neither a Run nor a Stack"),
        ([str(bare)], "notes=FOLDER"),
        ([str(scores), f"notes={runs.data}"], "give it examples"),
        ([str(notes), f"examples={runs.data}/examples/mortality"], "give it notes or instructions"),
        ([str(notes), f"instructions={runs.data}"], "give it notes"),
        ([str(notes), "max_note=3"], "Did you mean max_notes?"),
        ([str(notes), "attacks=[membership,membership]"], "once at most"),
        ([str(notes), "evaluation.max_notes=5"], "an audit has max_notes"),
        ([str(notes), f"notes={runs.data}", f"instructions={runs.data}"], "give one of notes"),
        ([str(notes), str(answers)], "one Run, Stack or recipe only"),
        ([str(bare), f"notes={few}", f"run={tmp_path / 'few-audit'}"], "needs 5 at least"),
        ([str(notes), f"reference={scores}", f"run={tmp_path / 'r-audit'}"], "another task"),
    ]
    for arguments, message in cases:
        result = CliRunner().invoke(app, ["audit", *arguments], catch_exceptions=True)
        error = result.exception
        assert isinstance(error, InputError), (arguments, result.output, error)
        assert message in str(error), (arguments, str(error))
        assert error.exit_code == 2


def test_it_is_one_process(runs: AuditRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        size = 2

    monkeypatch.setattr(stage, "world", Two)
    with pytest.raises(InputError, match="one process"):
        stage.audit(recipe_of(runs.untrained("notes")))


def test_the_demo_ends_with_the_command_of_its_audit(runs: AuditRuns, tmp_path: Path) -> None:
    root = tmp_path / "a demo"
    copied(runs.untrained("notes"), root / "pretrain")
    command = shlex.split(audit_command(root))
    assert command[:2] == ["clinstack", "audit"]
    recipe = read_audit_recipe(command[2:])
    assert recipe.run == str(root / "pretrain" / "audit")
    assert find_target(recipe).recorded


def test_the_shipped_recipe_is_good() -> None:
    recipe = load_recipe(Path("demo/audit"), (), "audit")
    assert recipe.run == "runs/demo/pretrain/audit"
