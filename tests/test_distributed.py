"""Several processes train the stack that one trains: started by accelerate's launcher, on the CPU, talking by gloo."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from clinstack.engine.distributed import World, world
from clinstack.engine.step import _parts
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.recipe import PRESETS

LIMIT = 150.0
STEPS = 6
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
DDP = ["--multi_gpu"]
FSDP = ["--use_fsdp", "--fsdp_version", "2"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start(recipe: Path, launch: list[str] | None = None) -> subprocess.Popen[str]:
    """Start a recipe in one process, or in two with the options of the launcher."""
    stage = yaml.safe_load(recipe.read_text())["stage"]
    launcher = [sys.executable]
    if launch is not None:
        launcher = [*LAUNCHER, "--main_process_port", str(free_port()), *launch]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launcher, "-m", "clinstack", stage, str(recipe)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def to_the_end(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err[:6000]
    return out, err


def write(folder: Path, name: str, recipe: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | {"run": str(folder / name)}))
    return path


def pretraining(base: Path, notes: Path, **changes: Any) -> dict[str, Any]:
    """Batches of three rows, so that two processes have unequal shares; no dropout, which each would draw itself."""
    training = {"max_steps": STEPS, "learning_rate": 0.01, "batch_size": 3, "accumulate": 2, "checkpoint_every": 2}
    return {
        "stage": "pretrain",
        "base": str(base),
        "notes": str(notes),
        "context": 64,
        "adapters": [{"name": "clinical", "rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}],
        "evaluation": {"resamples": 100},
        "training": training | {"epochs": 4, "validate_every": 3} | changes,
    }


def classifying(base: Path, notes: Path, clinical: Path) -> dict[str, Any]:
    return {
        "stage": "finetune",
        "base": str(base),
        "examples": str(notes / "examples" / "mortality"),
        "max_tokens": 48,
        "adapters": [{"name": "clinical", "path": str(clinical)}, {"name": "task", "rank": 4, "dropout": 0.0}],
        "evaluation": {"resamples": 100},
        "training": {"max_steps": STEPS, "learning_rate": 0.01, "batch_size": 3, "epochs": 4},
    }


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_training(run: Path, other: Path, table: str) -> None:
    """The same curve, the same adapters, the same figures for each note, to 1e-5; and one Run as ever."""
    assert read_json(run / "run.json")["status"] == "done"
    lines, expected = log_of(run), log_of(other)
    assert [sorted(line) for line in lines] == [sorted(line) for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        assert line == pytest.approx(wanted, abs=1e-5, rel=1e-4)
        if "loss" in line:
            assert line["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    files = sorted(path.relative_to(other) for path in (other / "stack").rglob("*.safetensors"))
    assert files
    for file in files:
        found, right = load_file(run / file), load_file(other / file)
        assert set(found) == set(right)
        for name in right:
            torch.testing.assert_close(found[name], right[name], rtol=0, atol=1e-5)
    column = "nll" if table == "losses.parquet" else "score"
    values, wanted_values = (
        pq.read_table(folder / table).sort_by("note_id" if column == "nll" else "example_id")[column]
        for folder in (run, other)
    )
    torch.testing.assert_close(
        torch.tensor(values.to_pylist()), torch.tensor(wanted_values.to_pylist()), rtol=1e-4, atol=1e-4
    )
    left = [str(path) for path in run.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert not left


# ---------------------------------------------------------------------- without a launcher, quickly


def call_clinstack(arguments: list[str], rank: int, port: int, log: Path) -> None:
    """What a child process does: the command line, as a launcher would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        from clinstack.cli import main

        sys.argv = ["clinstack", *arguments]
        main()


@pytest.fixture(scope="module")
def two() -> Iterator[Callable[[Path], tuple[list[int | None], list[str]]]]:
    """Run a recipe in two processes forked from one that has imported PyTorch; return exit codes and outputs."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clinstack.stages.pretrain", "clinstack.stages.finetune", "clinstack.cli"])
    processes: list[Any] = []

    def run(recipe: Path) -> tuple[list[int | None], list[str]]:
        stage, port = yaml.safe_load(recipe.read_text())["stage"], free_port()
        logs = [recipe.parent / f"process{rank}.log" for rank in range(2)]
        pair = [
            context.Process(target=call_clinstack, args=([stage, str(recipe)], rank, port, logs[rank]))
            for rank in range(2)
        ]
        processes.extend(pair)
        for process in pair:
            process.start()
        for process in pair:
            process.join(LIMIT)
        return [process.exitcode for process in pair], [log.read_text() for log in logs]

    yield run
    for process in processes:
        if process.is_alive():
            process.kill()


def test_two_processes_train_what_one_trains(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, two: Callable[[Path], tuple[list[int | None], list[str]]]
) -> None:
    from clinstack.recipe import PretrainRecipe, load_recipe
    from clinstack.stages.pretrain import pretrain

    one = load_recipe(write(tmp_path, "alone", pretraining(tiny_base, tiny_notes)))
    assert isinstance(one, PretrainRecipe)
    pretrain(one)
    codes, outputs = two(write(tmp_path, "pretrain", pretraining(tiny_base, tiny_notes)))
    assert codes == [0, 0], outputs
    assert_same_training(tmp_path / "pretrain", tmp_path / "alone", "losses.parquet")
    assert "is done" in outputs[0]
    # The other says nothing: it would say the same.
    assert "is done" not in outputs[1]
    assert "pretrain clinical" not in outputs[1]


def test_what_the_main_process_refuses_ends_all_with_one_message(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, two: Callable[[Path], tuple[list[int | None], list[str]]]
) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "thesis.txt").write_text("not a Run")
    codes, outputs = two(write(tmp_path, "pretrain", pretraining(tiny_base, tiny_notes)))
    assert codes == [2, 2]
    assert "is not a Run" in outputs[0]
    assert "is not a Run" not in outputs[1]


# ---------------------------------------------------------------------- by the launcher


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tiny_notes: Path, clinical: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    to_the_end(start(write(folder, "pretrain", pretraining(tiny_base, tiny_notes))))
    to_the_end(start(write(folder, "finetune", classifying(tiny_base, tiny_notes, clinical))))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launch", [DDP, FSDP], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_launcher_trains_what_one_process_trains(
    alone: Path, tiny_base: Path, tiny_notes: Path, clinical: Path, tmp_path: Path, launch: list[str], stage: str
) -> None:
    values = pretraining(tiny_base, tiny_notes) if stage == "pretrain" else classifying(tiny_base, tiny_notes, clinical)
    out, _ = to_the_end(start(write(tmp_path, stage, values), launch))
    table = "losses.parquet" if stage == "pretrain" else "predictions.parquet"
    assert_same_training(tmp_path / stage, alone / stage, table)
    assert out.count("is done") == 1


@pytest.mark.slow
def test_a_checkpoint_of_sharded_layers_is_one_of_whole_ones(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    """Killed with sharded layers, ended in one process."""
    values = pretraining(tiny_base, tiny_notes, max_steps=150, epochs=100, learning_rate=1e-3, checkpoint_every=5)
    straight, recipe = write(tmp_path, "straight", values), write(tmp_path, "pretrain", values)
    to_the_end(start(straight))
    kill_when_logged(start(recipe, FSDP), tmp_path / "pretrain", 8, everything=True)
    to_the_end(start(recipe))
    assert read_json(tmp_path / "pretrain" / "run.json")["starts"] == 2
    assert_same_training(tmp_path / "pretrain", tmp_path / "straight", "losses.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_is_killed_all_end(tiny_base: Path, tiny_notes: Path, tmp_path: Path, rank: int) -> None:
    recipe = write(tmp_path, "pretrain", pretraining(tiny_base, tiny_notes, max_steps=2000, epochs=1000))
    process = start(recipe, DDP)
    pids = kill_when_logged(process, tmp_path / "pretrain", 3, rank=rank)
    process.communicate(timeout=60)
    assert process.returncode != 0
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
    assert read_json(tmp_path / "pretrain" / "run.json")["status"] != "done"


def kill_when_logged(
    process: subprocess.Popen[str], run: Path, steps: int, *, rank: int = 0, everything: bool = False
) -> list[int]:
    """Kill one training process, or all with their launcher, when a step is logged; return the training processes."""
    end = time.monotonic() + LIMIT
    while not (run / "log.jsonl").exists() or (run / "log.jsonl").read_bytes().count(b'"loss"') < steps:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)
    pids: dict[int, int] = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        ranks = [int(variable.partition("=")[2]) for variable in variables if variable.startswith("RANK=")]
        pids |= dict.fromkeys(ranks, int(child))
    assert sorted(pids) == [0, 1]
    # torchrun's workers lead sessions of their own.
    for number in pids if everything else [rank]:
        with suppress(ProcessLookupError):
            os.kill(pids[number], signal.SIGKILL)
    if everything:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return list(pids.values())


# ---------------------------------------------------------------------- what a launcher may ask for


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for deepspeed, which clinstack's trainer does not run"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "set fsdp_version: 2"),
    ],
)
def test_a_launcher_that_asks_for_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in ({"WORLD_SIZE": "2"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        world.__wrapped__()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("accelerate/ddp", "MULTI_GPU"),
        ("accelerate/fsdp2", "FSDP"),
        ("deepspeed/zero2", "DEEPSPEED"),
        ("deepspeed/zero3", "DEEPSPEED"),
    ],
)
def test_the_configurations_that_ship_are_accelerates_own(name: str, kind: str) -> None:
    config = load_config_from_file(str(PRESETS / f"{name}.yaml"))
    assert config.distributed_type.value == kind
    assert config.num_processes == 2
    assert config.mixed_precision == ("bf16" if kind == "DEEPSPEED" else "no")
    if kind == "FSDP":
        assert config.fsdp_config == {"fsdp_version": 2}
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


def test_the_parts_of_a_batch_are_all_of_it() -> None:
    """Whatever the number of processes and the limit that memory set; with shards as many parts in each process."""
    for rows, size, limit, shards in itertools.product(range(1, 9), (1, 2, 3), (None, 1, 2, 3), (False, True)):
        parts = [
            _parts(list(range(rows)), limit, World(rank, size, torch.device("cpu"), shards)) for rank in range(size)
        ]
        assert sorted(row for each in parts for part in each for row in part) == list(range(rows))
        assert all(len(part) <= (limit or rows) for each in parts for part in each)
        assert len({len(each) for each in parts}) == 1 or not shards
        assert shards or all(part for each in parts for part in each)
