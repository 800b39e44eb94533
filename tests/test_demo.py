"""The demo: its Runs and where they are, what counts as done, and a kill of the whole in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clinstack.demo import DEFAULT_TASKS, demo_cells, run_demo, table3_specs
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.notes.read import examples_files, input_hashes
from clinstack.recipe import FinetuneRecipe, PretrainRecipe, stack_label
from clinstack.run import adapter_files, open_run
from clinstack.study.cells import Cell, is_done
from clinstack.tasks import OUTCOMES

LABELS = ("head", "lora", "clinical-frozen", "clinical-frozen+lora", "clinical-trainable", "clinical-trainable+lora")
LIMIT = 900.0


def by_folder(root: Path, cells: list[Cell]) -> dict[str, Cell]:
    return {str(Path(cell.recipe.run).relative_to(root)): cell for cell in cells}


@pytest.mark.parametrize("tasks", [DEFAULT_TASKS, tuple(OUTCOMES)])
def test_the_runs_and_their_folders(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    cells = demo_cells(tmp_path, tasks)
    assert set(by_folder(tmp_path, cells)) == {
        "pretrain",
        *(f"finetune/{task}/{label}" for task in tasks for label in LABELS),
    }
    assert cells[0].name == "pretrain"
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells[1:]:
        assert isinstance(cell.recipe, FinetuneRecipe)
        task, label = Path(cell.recipe.run).parts[-2:]
        assert stack_label(cell.recipe.adapters) == label
        assert cell.recipe.examples == str(tmp_path / "data" / "examples" / task)
        assert cell.needs == (("pretrain",) if label.startswith("clinical") else ())
        assert {adapter.path for adapter in cell.recipe.adapters} <= {None, str(tmp_path / "pretrain")}
        assert cell.recipe.base == "embedded"


def test_the_specs_are_the_rows_of_table_3() -> None:
    shapes = [[(item["name"], item.get("path"), item.get("trainable")) for item in spec] for spec in table3_specs("P")]
    task, frozen, trainable = ("task", None, None), ("clinical", "P", False), ("clinical", "P", True)
    assert shapes == [[], [task], [frozen], [frozen, task], [trainable], [trainable, task]]


def test_stacks_differ_in_their_adapters_only(tmp_path: Path) -> None:
    """So that a difference between two rows is the adapters' and nothing else's."""
    cells = by_folder(tmp_path, demo_cells(tmp_path, ("mortality",)))

    def rest(label: str) -> dict[str, Any]:
        recipe = cells[f"finetune/mortality/{label}"].recipe
        return recipe.model_dump(exclude={"run", "adapters"})

    with_adapters = [rest(label) for label in LABELS if label not in {"head", "clinical-frozen"}]
    assert all(values == with_adapters[0] for values in with_adapters)
    assert rest("head") == rest("clinical-frozen")  # only the head trains, so it may have more epochs


def test_another_cohort_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "cohort" / "cohort.json", {"synthetic": True, "patients": 600, "seed": 7})
    with pytest.raises(InputError, match="holds the demo of 600 patients, seed 7; name another folder with --out"):
        run_demo(tmp_path, 300, 7)


def test_a_cell_on_another_clinical_adapter_is_not_done(tiny_notes: Path, clinical: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_notes, tmp_path / "data")
    shutil.copytree(clinical, tmp_path / "pretrain" / "stack")
    cell = by_folder(tmp_path, demo_cells(tmp_path, ("mortality",)))["finetune/mortality/clinical-frozen"]
    assert isinstance(cell.recipe, FinetuneRecipe)
    assert not is_done(cell)
    files = [*examples_files(Path(cell.recipe.examples)), *adapter_files(cell.recipe.adapters)]
    assert files[-1] == tmp_path / "pretrain" / "stack" / "clinical" / "adapter_model.safetensors"
    with open_run(cell.recipe, input_hashes(files)) as run:
        assert not is_done(cell)
        run.finish()
    assert is_done(cell)
    files[-1].write_bytes(files[-1].read_bytes() + b" ")
    assert not is_done(cell)


# ---------------------------------------------------------------------- the whole


def demo(root: Path) -> list[str]:
    return [sys.executable, "-m", "clinstack", "demo", "--out", str(root), "--patients", "120", "--json"]


@pytest.fixture(scope="module")
def killed_and_finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The demo, killed with all that it started left to itself, and started again."""
    root = tmp_path_factory.mktemp("demo") / "demo"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(demo(root), env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + LIMIT
        while not (root / "pretrain" / "checkpoints" / "last.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        end = time.monotonic() + 30
        while workers := [pid for pid in processes_of(process.pid) if is_clinstack(pid)]:
            assert time.monotonic() < end, f"workers {workers} go on without their parent"
            time.sleep(0.1)
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert read_json(root / "pretrain" / "run.json")["status"] == "running"
    done = subprocess.run(demo(root), env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return root, json.loads(done.stdout)


def processes_of(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(owner) == session and state != "Z":
            found.append(int(entry.name))
    return found


def is_clinstack(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


@pytest.mark.slow
@needs_proc
def test_a_killed_demo_goes_on_and_ends(killed_and_finished: tuple[Path, dict[str, Any]]) -> None:
    root, paths = killed_and_finished
    for cell in demo_cells(root, DEFAULT_TASKS):
        record = read_json(Path(cell.recipe.run) / "run.json")
        assert record["status"] == "done"
        assert record["synthetic"] is True
        assert record["hardware"]["threads"] == 1
    assert read_json(root / "pretrain" / "run.json")["starts"] == 2
    report = read_json(Path(paths["json"]))
    assert {entry["stack"] for entry in report["auroc"]} == set(LABELS)
    assert {entry["task"] for entry in report["auroc"]} == {*DEFAULT_TASKS, "macro"}
    assert Path(paths["html"]) == root / "report.html"
    assert Path(paths["markdown"]).read_text()


@pytest.mark.slow
@needs_proc
def test_a_resumed_pretraining_of_the_demo_is_that_of_one_start(
    killed_and_finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """In a process of its own, with as many threads as the demo's workers have."""
    root, _ = killed_and_finished
    cell = demo_cells(root, DEFAULT_TASKS)[0]
    assert isinstance(cell.recipe, PretrainRecipe)
    command = [sys.executable, "-m", "clinstack", "pretrain", str(root / "pretrain" / "recipe.yaml")]
    subprocess.run(
        [*command, f"run={tmp_path}/again"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
    )
    for name in ("metrics.json", "stack/stack.json", "stack/clinical/adapter_model.safetensors"):
        assert sha256_file(tmp_path / "again" / name) == sha256_file(root / "pretrain" / name), name


@pytest.mark.slow
@needs_proc
def test_a_finished_demo_started_again_says_so_and_is_quick(
    killed_and_finished: tuple[Path, dict[str, Any]],
) -> None:
    root, paths = killed_and_finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("run.json")}
    done = subprocess.run(demo(root), capture_output=True, text=True, timeout=LIMIT, check=True)
    said = " ".join(done.stderr.split())
    assert "13 of 13 Runs are done already." in said
    assert "Cohort and Notes are done already" in said
    assert re.search(r"Done in \d+ s\.", said)
    assert json.loads(done.stdout) == paths
    assert {path: path.stat().st_mtime_ns for path in root.rglob("run.json")} == before
