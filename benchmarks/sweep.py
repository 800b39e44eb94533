"""Pruning: the same sweep with and without it, what it costs in CPU seconds and who wins.

    python benchmarks/sweep.py            # 20 trials of five epochs with each pruner, about half an hour
    python benchmarks/sweep.py --quick    # 8 trials of four epochs, the default pruner alone, under three minutes

The trials are LoRAs on the embedded base, for mortality on the demo's invented hospital; the sampler is Optuna's
Gaussian process. Time is CPU time of the whole command (`clinstack sweep`) on one thread. The winner is chosen by its
validation AUROC; its test AUROC, which a sweep never looks at, is read from its Run here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRUNERS = ("successive_halving", "median", "hyperband")
CLINSTACK = (sys.executable, "-m", "clinstack")


@dataclass(frozen=True)
class Swept:
    """One sweep.

    Parameters
    ----------
    seconds : float
        CPU time.
    epochs : int
        Trained in all trials together.
    validation, test : float
        AUROC of the winner.
    best : dict
        Its values.
    """

    seconds: float
    epochs: int
    validation: float
    test: float
    best: dict[str, Any]


def clinstack(*arguments: str) -> float:
    """Run a command to its end and return its CPU seconds, those of its children included."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*CLINSTACK, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = errors.decode("utf-8", "replace").strip().splitlines()[-3:]
        sys.exit(f"clinstack {' '.join(arguments)} ended with {process.returncode}: {' / '.join(lines)}")
    return usage.ru_utime + usage.ru_stime


def swept(work: Path, pruner: str, trials: int, epochs: int, seed: int) -> Swept:
    """Run a sweep and read what came of it."""
    run = work / f"{pruner}-{seed}"
    examples = work / "data" / "examples" / "mortality"
    settings = [f"run={run}", f"overrides.examples={examples}", f"overrides.training.epochs={epochs}"]
    settings += [f"trials={trials}", f"pruner={pruner}", f"seed={seed}", "workers=1"]
    seconds = clinstack("sweep", "demo/sweep", *settings)
    best = json.loads((run / "metrics.json").read_text())["best"]
    test = json.loads((run / "trials" / str(best["number"]) / "metrics.json").read_text())["test"]
    done = sum(trial["validations"] for trial in json.loads((run / "trials.json").read_text()))
    return Swept(seconds, done, best["value"], test[test["primary"]]["value"], best["params"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 trials, the default pruner alone, under three minutes")
    parser.add_argument("--patients", type=int, help="of the hospital (default 600; quick 400)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sweeps (default 0)")
    parser.add_argument("--work", type=Path, help="folder for everything, kept (default: a temporary one)")
    arguments = parser.parse_args()
    patients = arguments.patients or (400 if arguments.quick else 600)
    trials, epochs = (8, 4) if arguments.quick else (20, 5)
    pruners = PRUNERS[:1] if arguments.quick else PRUNERS
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        if not (work / "data" / "prepare.json").is_file():
            clinstack("prepare", "cohort", "--patients", str(patients), "--seed", "7", "--out", str(work / "cohort"))
            clinstack("prepare", "mimic3", "--source", str(work / "cohort"), "--out", str(work / "data"))
        # Two at a time, on a machine with two cores; CPU time does not count waiting.
        with ThreadPoolExecutor(2) as pool:
            futures = {
                (seed, pruner): pool.submit(swept, work, pruner, trials, epochs, seed)
                for seed in arguments.seeds
                for pruner in ("none", *pruners)
            }
            results = {key: future.result() for key, future in futures.items()}
    ratios: dict[str, float] = {}
    print(f"{patients} patients, {trials} trials of {epochs} epochs; {os.cpu_count()} cores, {platform.machine()}.\n")
    print("| seed | pruner | epochs trained | CPU seconds | of none | validation AUROC | test AUROC | winner |")
    print("|--:|---|--:|--:|--:|--:|--:|---|")
    for (seed, pruner), result in results.items():
        whole = results[seed, "none"]
        share = result.seconds / whole.seconds
        if pruner != "none":
            ratios[f"{pruner}_times_less_cpu" if seed == arguments.seeds[0] else f"{pruner}_{seed}"] = round(
                1 / share, 2
            )
        winner = "the same" if pruner != "none" and result.best == whole.best else json.dumps(result.best)
        print(
            f"| {seed} | {pruner} | {result.epochs} | {result.seconds:.0f} | {share:.2f} | "
            f"{result.validation:.3f} | {result.test:.3f} | {winner} |"
        )
    print(json.dumps({"benchmark": "sweep", "ratios": ratios}))


if __name__ == "__main__":
    main()
