"""`kill -9` of `clinstack prepare mimic3` at any moment: the old output or the new, and nothing beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clinstack.files import _exchange, recover_directory, replacing_directory
from clinstack.notes.cohort import write_cohort

OLD, NEW = 1, 2
"""Seeds of the output that is there, and of the run that is killed."""
Tree = dict[str, bytes]


def command(folder: Path, seed: int) -> list[str]:
    arguments = ["--source", folder.parent / "in", "--out", folder / "out", "--seed", seed]
    arguments += ["--compat", "official", "--export-csv", folder / "csv"]
    return ["prepare", "mimic3", *map(str, arguments)]


def start(folder: Path, seed: int, before: str = "") -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own, after a few lines of Python."""
    code = f"{before}\nfrom clinstack.cli import main\nmain()\n"
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", code, *command(folder, seed)], stdout=quiet, stderr=quiet)


def tree(folder: Path) -> Tree:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def whole_output(folder: Path) -> Tree:
    """Return the files of a folder, each Parquet and JSON file of which can be read."""
    for path in folder.rglob("*.parquet"):
        assert pq.read_table(path).num_rows >= 0
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    return tree(folder)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, tuple[Tree, Tree]], float]:
    """The folder of the tables, output and published files of either seed, and the seconds that a run takes."""
    folder = tmp_path_factory.mktemp("faults")
    write_cohort(folder / "in", 300, 3)
    found = {}
    for seed in (OLD, NEW):
        begin = time.monotonic()
        assert start(folder / str(seed), seed).wait() == 0
        seconds = time.monotonic() - begin
        found[seed] = (whole_output(folder / str(seed) / "out"), tree(folder / str(seed) / "csv"))
    assert found[OLD][0].keys() == found[NEW][0].keys()
    assert found[OLD][0] != found[NEW][0]
    assert len(found[OLD][1]) == 14
    return folder, found, seconds


@pytest.fixture
def workplace(references: tuple[Path, dict[int, tuple[Tree, Tree]], float], tmp_path: Path) -> Path:
    (tmp_path / "in").symlink_to(references[0] / "in")
    return reset(tmp_path / "here", references[0])


def reset(folder: Path, reference: Path) -> Path:
    """Put the old output into a folder, with nothing beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(reference / str(OLD), folder))


def part_of(files: Tree, folder: str) -> Tree:
    return {name: content for name, content in files.items() if name.startswith(f"{folder}/")}


def check_after_kill(folder: Path, found: dict[int, tuple[Tree, Tree]]) -> int:
    """Return the seed of the output that stands there, whole."""
    output = whole_output(folder / "out")
    seeds = [seed for seed, (files, _) in found.items() if files == output]
    assert len(seeds) == 1, "the output is neither the old nor the new one"
    published = tree(folder / "csv")
    for name in ("mp", "los", "dia", "pro"):
        assert any(part_of(published, name) == part_of(files, name) for _, files in found.values()), name
        # The output is replaced after the published files, so that it never tells of more than there is.
        assert seeds == [OLD] or part_of(published, name) == part_of(found[NEW][1], name)
    return seeds[0]


def check_next_run(folder: Path, found: dict[int, tuple[Tree, Tree]]) -> None:
    """A run that nothing disturbs ends well and leaves nothing of the killed one."""
    assert start(folder, NEW).wait() == 0
    assert (whole_output(folder / "out"), tree(folder / "csv")) == found[NEW]
    assert sorted(path.name for path in folder.iterdir()) == ["csv", "out"]
    assert sorted(path.name for path in (folder / "csv").iterdir()) == ["dia", "los", "mp", "pro"]


def can_exchange(folder: Path) -> bool:
    pair = [folder / "one", folder / "other"]
    for path in pair:
        path.mkdir()
    possible = _exchange(*pair)
    for path in pair:
        path.rmdir()
    return possible


KILL = "import os, signal\nkill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
AFTER_FOLDERS = """
import clinstack.files as files
exchange, calls = files._exchange, []
def exchanged(*paths):
    calls.append(paths)
    if len(calls) == {call} and {before}:
        kill()
    done = exchange(*paths)
    if len(calls) == {call}:
        kill()
    return done
files._exchange = exchanged
"""
AT_PROGRESS = """
import clinstack.notes.prepared as prepared
report = prepared.PreparedFolder.report
def reported(self, description, done, total):
    report(self, description, done, total)
    if description == {description!r} and done == total:
        kill()
prepared.PreparedFolder.report = reported
"""
MOMENTS = {
    "notes are written": (AT_PROGRESS.format(description="Writing notes"), OLD),
    "tasks are written": (AT_PROGRESS.format(description="Writing tasks"), OLD),
    "the data sheet is written": (AT_PROGRESS.format(description="Writing the data sheet"), OLD),
    "two published folders are in place": (AFTER_FOLDERS.format(call=2, before=False), OLD),
    "the output is about to take its place": (AFTER_FOLDERS.format(call=5, before=True), OLD),
    "the output took its place": (AFTER_FOLDERS.format(call=5, before=False), NEW),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when(
    moment: str, workplace: Path, references: tuple[Path, dict[int, tuple[Tree, Tree]], float]
) -> None:
    before, expected = MOMENTS[moment]
    if "place" in moment and not can_exchange(workplace):
        pytest.skip("this file system cannot exchange two directories in one step")
    assert start(workplace, NEW, KILL + before).wait() == -signal.SIGKILL
    assert check_after_kill(workplace, references[1]) == expected
    # Something is left to clear away, or the test would show nothing.
    assert any(path.name.endswith(".partial") for path in workplace.rglob(".*"))
    if moment in ("two published folders are in place", "the output took its place"):
        check_next_run(workplace, references[1])


@pytest.mark.parametrize("kills", [6, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_moments_spread_over_a_run(
    kills: int, workplace: Path, references: tuple[Path, dict[int, tuple[Tree, Tree]], float]
) -> None:
    reference, found, seconds = references
    ended = []
    for number in range(kills):
        process = start(workplace, NEW)
        time.sleep(seconds * (0.25 + 0.8 * number / kills))
        process.kill()
        ended.append(process.wait())
        if check_after_kill(workplace, found) == NEW:
            reset(workplace, reference)
    assert ended.count(-signal.SIGKILL) >= kills // 2
    check_next_run(workplace, found)


WITH_WORKERS = """
import multiprocessing
from pathlib import Path
import clinstack.notes.mimic3.admission_texts as admission_texts
import clinstack.notes.prepared as prepared
admission_texts._WORTH_PROCESSES = 1
def reported(self, description, done, total):
    if description == "Reading discharge summaries" and done:
        workers = multiprocessing.active_children()
        Path({file!r}).write_text(" ".join(str(worker.pid) for worker in workers))
        kill()
prepared.PreparedFolder.report = reported
"""


def test_worker_processes_end_with_the_one_that_is_killed(
    workplace: Path, references: tuple[Path, dict[int, tuple[Tree, Tree]], float]
) -> None:
    file = workplace.parent / "workers"
    code = f"{KILL}{WITH_WORKERS.format(file=str(file))}\nfrom clinstack.cli import main\nmain()\n"
    arguments = ["prepare", "mimic3", "--source", str(workplace.parent / "in"), "--out", str(workplace / "out")]
    quiet = subprocess.DEVNULL
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, stdout=quiet, stderr=quiet)
    assert done.returncode == -signal.SIGKILL
    workers = file.read_text().split()
    assert workers
    until = time.monotonic() + 30
    while (running := [worker for worker in workers if is_running(worker)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert running == []
    assert check_after_kill(workplace, references[1]) == OLD


def is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
        state = Path(f"/proc/{process}/stat")
        # One that has ended may wait for somebody to ask how.
        return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_without_an_exchange_of_directories_the_next_run_brings_the_old_one_back(tmp_path: Path) -> None:
    """Where the system cannot exchange two directories, a kill can come while neither is in place."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    code = (
        f"{KILL}\nimport clinstack.files as files\nfrom pathlib import Path\n"
        "files._exchange = lambda *_: False\n"
        "replace, calls = os.replace, []\n"
        "def replaced(*paths):\n    if calls:\n        kill()\n    calls.append(paths)\n    replace(*paths)\n"
        "os.replace = replaced\n"
        f"with files.replacing_directory(Path({str(tmp_path / 'out')!r})) as new:\n"
        "    (new / 'file').write_text('new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    recover_directory(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "old"
    with replacing_directory(tmp_path / "out") as new:
        (new / "file").write_text("new")
    assert tree(tmp_path) == {"out/file": b"new"}
    assert os.listdir(tmp_path) == ["out"]
