"""The four van Aken tasks: `clinstack prepare mimic3 --compat official` against the published scripts.

    python benchmarks/builders.py            # 50,000 to 2,000,000 notes, about half an hour
    python benchmarks/builders.py --quick    # 400,000 notes, one turn, under three minutes

Both read the same files of an invented hospital and write the same csv files, which is checked byte for byte. They take
turns; time is wall time of whole processes, memory the largest resident set of one. The published scripts need pandas
1.5 (a virtual environment is made for it, unless `--pandas-python` names one) and run from a checkout of their
repository named by `--official`; without one, `published_in_pandas.py` takes the same steps.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TASKS = ("mp", "los", "dia", "pro")
SIZES = (50_000, 200_000, 800_000, 2_000_000)
QUICK = (400_000,)
_MANY = 1_000_000
"""Notes from which on one turn is enough."""
CLINSTACK = (sys.executable, "-m", "clinstack")
CHOSEN = "mortality,length_of_stay,diagnoses,procedures"


@dataclass(frozen=True)
class Measured:
    seconds: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.megabytes:,.0f} MB"


def run(command: list[str], cwd: Path) -> Measured:
    """Run a process to its end; its memory is its own, not that of earlier ones."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        lines = errors.decode("utf-8", "replace").strip().splitlines()[-3:]
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {' / '.join(lines)}")
    return Measured(seconds, usage.ru_maxrss / 1024)


def pandas_python(named: Path | None, work: Path) -> Path:
    """Return a Python with pandas 1.5, installing one where none is named."""
    if named:
        return named
    environment = work / "pandas15"
    python = environment / "bin" / "python"
    if not python.exists():
        print("Installing pandas 1.5.3 beside the work files …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        install = [python, "-m", "pip", "install", "-q", "pandas==1.5.3", "numpy<2"]
        if subprocess.run(install).returncode:
            sys.exit(
                "pandas 1.5.3 could not be installed (it needs Python 3.8 to 3.11); name one: --pandas-python PATH"
            )
    return python


def theirs(python: Path, official: Path | None, cohort: Path, out: Path) -> Measured:
    """Run the published scripts one after another: their times add up, their memory does not."""
    seconds, megabytes = 0.0, 0.0
    for task in TASKS:
        if official:
            tree = out.parent / "official"
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(official / "tasks", tree / "tasks")
            for path in (cohort / "split_lists").glob("*.csv"):
                shutil.copy(path, tree / "tasks" / path.name)
            command = [f"tasks/{task}/{task}.py", "--mimic_dir", str(cohort), "--save_dir", str(out / task)]
            measured = run([str(python), "-W", "ignore", *command, "--admission_only", "True"], tree)
        else:
            command = [str(HERE / "published_in_pandas.py"), task, str(cohort), str(cohort / "split_lists")]
            measured = run([str(python), "-W", "ignore", *command, str(out / task), "admission"], out.parent)
        seconds += measured.seconds
        megabytes = max(megabytes, measured.megabytes)
    return Measured(seconds, megabytes)


def ours(cohort: Path, out: Path) -> Measured:
    """Build the four tasks as published, with examples, data sheet and csv files."""
    command = ["prepare", "mimic3", "--source", str(cohort), "--out", str(out.parent / "notes"), "--compat", "official"]
    command += ["--splits", str(cohort / "split_lists"), "--tasks", CHOSEN, "--no-notes", "--export-csv", str(out)]
    return run([*CLINSTACK, *command], out.parent)


def ours_in_full(cohort: Path, out: Path) -> Measured:
    """Build the four tasks with the errors put right and every fix counted, and the table of all notes."""
    command = ["prepare", "mimic3", "--source", str(cohort), "--out", str(out), "--tasks", CHOSEN]
    return run([*CLINSTACK, *command], out.parent)


def same_files(left: Path, right: Path) -> int:
    """Return how many files are the same; end where one is not."""
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*") if path.is_file())
    same, different, missing = filecmp.cmpfiles(left, right, names, shallow=False)
    if different or missing or not names:
        sys.exit(f"the files differ: {', '.join(different + missing) or 'none were written'}")
    return len(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400,000 notes, one turn, under three minutes")
    parser.add_argument("--notes", type=int, nargs="+", help=f"numbers of notes (default {SIZES})")
    parser.add_argument("--repeat", type=int, default=3, help="turns at each size below a million (default 3)")
    parser.add_argument("--official", type=Path, help="checkout of the published scripts")
    parser.add_argument("--pandas-python", type=Path, help="a Python with pandas 1.5")
    parser.add_argument("--work", type=Path, help="folder for cohorts and outputs, kept (default: a temporary one)")
    arguments = parser.parse_args()
    sizes = arguments.notes or (QUICK if arguments.quick else SIZES)
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        python = pandas_python(arguments.pandas_python, work)
        rows, ratios = [], dict[str, float]()
        for notes in sizes:
            cohort = work / f"cohort-{notes}"
            if not cohort.exists():
                command = ["prepare", "cohort", "--notes", str(notes), "--split-lists", "--workers", "2"]
                run([*CLINSTACK, *command, "--out", str(cohort)], work)
            turns = []
            for _ in range(1 if arguments.quick or notes >= _MANY else arguments.repeat):
                shutil.rmtree(work / "theirs", ignore_errors=True)
                turns.append((theirs(python, arguments.official, cohort, work / "theirs"), ours(cohort, work / "ours")))
                files = same_files(work / "theirs", work / "ours")
            full = "not run" if arguments.quick else str(ours_in_full(cohort, work / "full"))
            time_ratio = statistics.median(old.seconds / new.seconds for old, new in turns)
            memory_ratio = statistics.median(old.megabytes / new.megabytes for old, new in turns)
            ratios = {"time_vs_official": round(time_ratio, 2), "memory_vs_official": round(memory_ratio, 2)}
            old_time = statistics.median(old.seconds for old, _ in turns)
            new_time = statistics.median(new.seconds for _, new in turns)
            old_memory = statistics.median(old.megabytes for old, _ in turns)
            new_memory = statistics.median(new.megabytes for _, new in turns)
            size = sum(path.stat().st_size for path in cohort.glob("*.csv")) / 1e6
            rows.append(
                f"| {notes:,} | {size:,.0f} MB | {old_time:.1f} s | {new_time:.1f} s | {time_ratio:.1f} | "
                f"{old_memory:,.0f} MB | {new_memory:,.0f} MB | {memory_ratio:.1f} | "
                f"{full} | {files} |"
            )
            print(rows[-1], file=sys.stderr)
    scripts = "checkout" if arguments.official else "benchmarks/published_in_pandas.py"
    print(f"Published: {scripts}, pandas 1.5. {os.cpu_count()} cores, {platform.machine()}, medians of turns.\n")
    print("| notes | csv | published | ours | times | published | ours | times | put right, all notes | same files |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(json.dumps({"benchmark": "builders", "ratios": ratios}))


if __name__ == "__main__":
    main()
