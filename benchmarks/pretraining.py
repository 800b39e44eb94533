"""Continued pretraining with LoRA: `clinstack pretrain` against the published loop, TRL and LLaMA-Factory.

    python benchmarks/pretraining.py --quick     # the published loop and clinstack, under three minutes
    python benchmarks/pretraining.py --trl-python PATH --llamafactory-python PATH

Random Llamas with a vocabulary of 32,000 read invented notes with lengths like MIMIC-IV-Note's. Each way runs in a
process of its own; they take turns of a few optimizer steps (forward, backward, AdamW). Measured are useful tokens
(those that are no padding) per second of CPU time and of wall time, and memory: the highest resident set during the
timed steps above that before the first step (VmHWM, begun anew each turn through /proc/self/clear_refs). A ratio is the
median over turns of the ratios within a turn; those in the JSON line are of CPU time.

Each way has one thread unless --threads says otherwise: several wait for each other in busy loops, which on a machine
with other work is most of their CPU time. The published loop and TRL by default read the first 512 tokens of each note,
the others all; LLaMA-Factory lets packed documents see each other.

TRL and LLaMA-Factory run in Pythons of their own and are left out when none is named:

    python -m venv trl && trl/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
    python -m venv factory && factory/bin/pip install torch==2.13.0 llamafactory==0.9.5

PyPI's torchvision and torchaudio, which LLaMA-Factory brings along, want CUDA's libraries. Beside a PyTorch for CPUs
uninstall torchvision and delete torchaudio/lib/*.so; the pretraining stage uses neither.
"""

from __future__ import annotations

import argparse
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

ARMS = Path(__file__).resolve().parent / "pretraining_arms.py"
MODELS: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "large": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
}
TURNS = 9
QUICK_TURNS = 3
QUICK = {"warm_up": 1, "steps": 2}
KEEP = {
    # glibc gives large blocks back to the system and asks for them again at every step; these keep them.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
}
BASELINE = "published"
TOLERANCE = 1e-5
NAMES = {
    "published": "vs_paper",
    "published, memory kept": "vs_paper_memory_kept",
    "trl": "vs_trl",
    "trl packed": "vs_trl_packed",
    "llamafactory": "vs_llamafactory",
}


@dataclass(frozen=True)
class Turn:
    """What a way did in its turn."""

    useful: int
    computed: int
    wall: float
    cpu: float
    grown: float
    peak: float
    loss: float

    @property
    def per_cpu_second(self) -> float:
        return self.useful / self.cpu

    @property
    def per_wall_second(self) -> float:
        return self.useful / self.wall


def environment_of(name: str, threads: int, device: str) -> dict[str, str]:
    """Return the environment of a way's process."""
    return {**quiet_environment(threads, device), **(KEEP if "memory kept" in name else {})}


class Way(Process):
    """A way's process. It has done its first, untimed steps when this is built."""

    def __init__(self, name: str, python: str, work: Path, environment: dict[str, str]) -> None:
        super().__init__(name, [python, str(ARMS), name, str(work)], work, environment)
        self.answer()

    def turn(self) -> Turn:
        """Let it do one turn."""
        told = self.ask("turn")
        kept = {key: told[key] for key in ("useful", "computed", "wall", "cpu", "peak", "loss")}
        return Turn(grown=told["peak"] - told["before"], **kept)


def measure(
    model: dict[str, int],
    pythons: dict[str, str],
    turns: int,
    threads: int,
    setting: dict[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, list[Turn]]:
    """Let the ways take turns; the order goes round. ``setting`` is one of `pretraining_arms.Setting`."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        device = (setting or {}).get("device", "cpu")
        groups = 3 + turns * (setting or {}).get("rows", 4) // 4
        make = [sys.executable, str(ARMS), "make", str(work), json.dumps(model), str(groups), json.dumps(setting or {})]
        subprocess.run(make, check=True, capture_output=True)
        for name in pythons:
            if name.startswith("clinstack") and not name.endswith("4bit"):
                check(name, work, environment_of(name, threads, device), tolerance)
        ways: list[Way] = []
        try:
            for name, python in pythons.items():
                started = time.perf_counter()
                ways.append(Way(name, python, work, environment_of(name, threads, device)))
                print(f"{name} is ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
            by_name = {way.name: way for way in ways}
            measured: dict[str, list[Turn]] = {name: [] for name in by_name}
            for index in range(turns):
                for name in in_turn(list(by_name), index):
                    measured[name].append(by_name[name].turn())
            return measured
        finally:
            for way in ways:
                way.close()


def check(name: str, work: Path, environment: dict[str, str], tolerance: float) -> None:
    """End unless packed documents have the loss and the gradients that each has alone with all its logits."""
    command = [sys.executable, str(ARMS), "check", str(work), name]
    told = subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment)
    if told.returncode:
        sys.exit(f"{name}: the check of its loss ended with {told.returncode}: {told.stderr.strip()[-500:]}")
    difference = float(told.stdout.split()[-1])
    if not difference < tolerance:
        sys.exit(f"{name}: its loss or a gradient differs from the plain one by {difference:.1e}, relative.")
    print(f"{name}: loss and gradients are the plain ones to {difference:.1e}, relative", file=sys.stderr)


def table(measured: dict[str, list[Turn]]) -> list[str]:
    """Return one Markdown row for each way, its ratios against the published loop."""
    rows = []
    for name, turns in measured.items():
        base = measured[BASELINE]
        middle = {
            figure: statistics.median(getattr(turn, figure) for turn in turns)
            for figure in ("per_cpu_second", "per_wall_second", "grown", "peak")
        }
        share = sum(turn.useful for turn in turns) / sum(turn.computed for turn in turns)
        rows.append(
            f"| {name} | {share:.0%} | {middle['per_cpu_second']:,.0f} | {middle['per_wall_second']:,.0f} | "
            f"{paired(turns, base, 'per_cpu_second'):.2f} | {paired(turns, base, 'per_wall_second'):.2f} | "
            f"{middle['grown']:,.0f} MB | {paired(turns, base, 'grown'):.2f} | {middle['peak']:,.0f} MB |"
        )
    return rows


def ratios(measured: dict[str, list[Turn]], suffix: str) -> dict[str, float]:
    """Return how much faster clinstack is than each other way, and how much more memory the others need."""
    found: dict[str, float] = {}
    for mine, ending in (("clinstack", suffix), ("clinstack compiled", "_compiled" + suffix)):
        if mine not in measured:
            continue
        for other, name in NAMES.items():
            if other in measured:
                ours, theirs = measured[mine], measured[other]
                found[name + ending] = round(paired(ours, theirs, "per_cpu_second"), 2)
                found["memory_" + name + ending] = round(paired(theirs, ours, "grown"), 2)
    return found


def choose_peers(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the Pythons of the other packages' ways that were named, and say which were not."""
    pythons: dict[str, str] = {}
    for option, names in (("trl", ("trl", "trl packed")), ("llamafactory", ("llamafactory",))):
        python = getattr(arguments, f"{option}_python")
        for name in names:
            if python:
                # Not resolved: a virtual environment's Python is a link.
                pythons[name] = os.path.abspath(python)
            else:
                print(f"{name}: left out, no --{option}-python", file=sys.stderr)
    return pythons


def choose(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the Python of each way that can be run, and say which cannot."""
    pythons = {"published": sys.executable, "clinstack": sys.executable}
    for name in ("clinstack compiled", "published, memory kept"):
        if not arguments.quick or name in (arguments.only or ()):
            pythons[name] = sys.executable
        else:
            print(f"{name}: left out, --quick", file=sys.stderr)
    pythons |= choose_peers(arguments)
    if arguments.only:
        unknown = sorted(set(arguments.only) - set(pythons))
        if unknown:
            sys.exit(f"--only: {unknown[0]!r} is not among {', '.join(pythons)}")
        pythons = {name: python for name, python in pythons.items() if name in {BASELINE, *arguments.only}}
    return pythons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TURNS} turns, under three minutes")
    parser.add_argument("--turns", type=int, help=f"turns of each way (default {TURNS})")
    parser.add_argument("--sizes", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: both)")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="these ways beside the published one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each way (default 1)")
    parser.add_argument("--trl-python", help="a Python with TRL 1.16")
    parser.add_argument("--llamafactory-python", help="a Python with LLaMA-Factory 0.9.5")
    arguments = parser.parse_args()
    pythons = choose(arguments)
    turns = arguments.turns or (QUICK_TURNS if arguments.quick else TURNS)
    found: dict[str, float] = {}
    load = os.getloadavg()[0]
    lines: list[str] = []
    for size in arguments.sizes:
        measured = measure(MODELS[size], pythons, turns, arguments.threads, QUICK if arguments.quick else None)
        lines += ["", f"{size}: {', '.join(f'{key} {value:,}' for key, value in MODELS[size].items())}", ""]
        lines.append("| way | useful | per CPU s | per s | CPU ratio | wall ratio | memory | memory ratio | whole |")
        lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        lines += table(measured)
        found |= ratios(measured, "" if size == "small" else f"_{size}")
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, {arguments.threads} threads; load before {load:.1f}, "
        f"after {os.getloadavg()[0]:.1f}. Medians of {turns} turns. Memory is growth above what was resident before "
        "the first step, 'whole' the highest resident set."
    )
    print("\n".join(lines))
    print(json.dumps({"benchmark": "pretraining", "ratios": found}))


if __name__ == "__main__":
    main()
