"""Instruction tuning with LoRA: `clinstack instruct` against full logits and against TRL's SFTTrainer.

    python benchmarks/instruct.py --quick     # under three minutes
    python benchmarks/instruct.py             # more turns, and TRL without gradient checkpointing

A random Llama (hidden 288, 6 layers, vocabulary 32,000) reads invented notes of 1,000 tokens with questions of 12 and
answers of 80 tokens, whose loss is trained. All ways read the same tokens in batches of four, pad nothing (the lengths
are equal, so packing wins nothing here) and have a LoRA of rank 16 in float32. Each way runs in a process of its own;
they take turns of a few optimizer steps. Measured are tokens per second of CPU time and of wall time, and memory: the
highest resident set during the timed steps above that before the first step. A ratio is the median over turns of the
ratios within a turn; those in the JSON line are of CPU time. That clinstack's loss and gradients are those of all
logits is checked first.

``trl`` has TRL's defaults: its loss in chunks, and gradient checkpointing. It needs trl and datasets, which come with
``pip install 'clinstack[align]'``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import Process, in_turn, paired, quiet_environment

ARMS = Path(__file__).resolve().parent / "instruct_arms.py"
MODEL = {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768}
SETTING = {"context": 1104, "rows": 4, "warm_up": 2, "steps": 2}
QUICK = {**SETTING, "warm_up": 1, "steps": 1}
TURNS, QUICK_TURNS = 7, 2
EXAMPLES = 64
TOLERANCE = 1e-4
BASELINE = "full logits"
NAMES = {
    "full logits": "vs_full_logits",
    "trl": "vs_trl",
    "trl, no checkpointing": "vs_trl_no_checkpointing",
}


@dataclass(frozen=True)
class Turn:
    """What a way did in its turn; ``grown`` and ``peak`` in MB."""

    per_cpu_second: float
    per_wall_second: float
    grown: float
    peak: float
    loss: float

    @classmethod
    def of(cls, told: dict[str, Any]) -> Turn:
        """Return the figures of a process's answer."""
        read, peak = told["useful"], told["peak"]
        return cls(read / told["cpu"], read / told["wall"], peak - told["before"], peak, told["loss"])


def measure(ways: list[str], turns: int, threads: int, setting: dict[str, int]) -> dict[str, list[Turn]]:
    """Let the ways take turns; the order goes round."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        environment = quiet_environment(threads)
        make = [sys.executable, str(ARMS), "make", str(work), json.dumps(MODEL), str(EXAMPLES), json.dumps(setting)]
        subprocess.run(make, check=True, capture_output=True, env=environment)
        check(work, environment)
        processes: dict[str, Process] = {}
        try:
            for name in ways:
                started = time.perf_counter()
                processes[name] = Process(name, [sys.executable, str(ARMS), name, str(work)], work, environment)
                processes[name].answer()
                print(f"{name} is ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
            measured: dict[str, list[Turn]] = {name: [] for name in ways}
            for index in range(turns):
                for name in in_turn(ways, index):
                    measured[name].append(Turn.of(processes[name].ask("turn")))
                print(f"turn {index + 1} of {turns}", file=sys.stderr)
            return measured
        finally:
            for process in processes.values():
                process.close()


def check(work: Path, environment: dict[str, str]) -> None:
    """End unless the loss and the gradients of packed examples are those of each alone with all its logits."""
    command = [sys.executable, str(ARMS), "check", str(work)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment)
    if told.returncode:
        sys.exit(f"the check of clinstack's loss ended with {told.returncode}: {told.stderr.strip()[-500:]}")
    difference = float(told.stdout.split()[-1])
    if not difference < TOLERANCE:
        sys.exit(f"clinstack's loss or a gradient differs from the plain one by {difference:.1e}, relative.")
    print(f"clinstack: loss and gradients are the plain ones to {difference:.1e}, relative", file=sys.stderr)


def table(measured: dict[str, list[Turn]]) -> list[str]:
    """Return a Markdown table, its ratios against full logits."""
    rows = [
        "| way | tokens per CPU s | per s | CPU ratio | wall ratio | memory | memory ratio | whole |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, turns in measured.items():
        base = measured[BASELINE]
        middle = {
            figure: statistics.median(getattr(turn, figure) for turn in turns)
            for figure in ("per_cpu_second", "per_wall_second", "grown", "peak")
        }
        rows.append(
            f"| {name} | {middle['per_cpu_second']:,.0f} | {middle['per_wall_second']:,.0f} | "
            f"{paired(turns, base, 'per_cpu_second'):.2f} | {paired(turns, base, 'per_wall_second'):.2f} | "
            f"{middle['grown']:,.0f} MB | {paired(turns, base, 'grown'):.2f} | {middle['peak']:,.0f} MB |"
        )
    return rows


def ratios(measured: dict[str, list[Turn]]) -> dict[str, float]:
    """Return how much faster clinstack is than each other way, and how much more memory the others need."""
    found: dict[str, float] = {}
    for other, name in NAMES.items():
        if other in measured:
            ours, theirs = measured["clinstack"], measured[other]
            found[name] = round(paired(ours, theirs, "per_cpu_second"), 2)
            found["memory_" + name] = round(paired(theirs, ours, "grown"), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TURNS} turns, under three minutes")
    parser.add_argument("--turns", type=int, help=f"turns of each way (default {TURNS})")
    parser.add_argument("--threads", type=int, default=1, help="threads of each way (default 1)")
    arguments = parser.parse_args()
    ways = ["full logits", "clinstack"]
    if importlib.util.find_spec("trl") and importlib.util.find_spec("datasets"):
        ways += ["trl"] if arguments.quick else ["trl", "trl, no checkpointing"]
    else:
        print("trl: left out, it is not installed", file=sys.stderr)
    turns = arguments.turns or (QUICK_TURNS if arguments.quick else TURNS)
    load = os.getloadavg()[0]
    measured = measure(ways, turns, arguments.threads, QUICK if arguments.quick else SETTING)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, {arguments.threads} threads; load before {load:.1f}, "
        f"after {os.getloadavg()[0]:.1f}. Medians of {turns} turns. Memory is growth above what was resident before "
        "the first step, 'whole' the highest resident set."
    )
    print("\n".join(table(measured)))
    print(json.dumps({"benchmark": "instruct", "ratios": ratios(measured)}))


if __name__ == "__main__":
    main()
