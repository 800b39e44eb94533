"""Requests for five tasks on one base: `clinstack serve`'s model against what people do today.

    python benchmarks/serving.py --quick     # the four ways of the JSON line, under three minutes
    python benchmarks/serving.py             # more turns, and each other way at its best

A random Llama (hidden 288, 6 layers, vocabulary 32,000) under a clinical LoRA of rank 16, and on that for each of the
five outcomes a LoRA of rank 16 (query and value) and a head. 160 requests wait, as many for each task (with
--quick 40, nearly as many), in random order and each with a note of its own: lengths like MIMIC-IV-Note's (radiology
about 300 tokens, discharge about 2,300, seven to one), cut at 512. Float32, one thread.

separate      five merged models of transformers in memory, one after another, padded batches of 16 in order of arrival
switching     one base in PEFT, `set_adapter` for each task, the same batches
mixed batch   one base in PEFT, batches of 16 of all tasks by `adapter_names`
clinstack     `SharedBase`: the clinical LoRA folded into the base, one flat row of all tasks, nothing padded

Beside them: separate and mixed batch sorted by length, so that less is padded, and switching request by request, so
that nothing is. PEFT has both adapters of a task as one LoRA of rank 32 (they were fused by concatenation): its mixed
batches take one name a row.

Each way is a process of its own; they take turns with the same requests. A ratio is the median over turns of the ratios
of requests per CPU second within a turn. Memory is the highest resident set above what Python and the libraries have
before a model is loaded; weights are the bytes of all tensors. Before anything is timed, the logits of all ways are
compared with those of each task's `Stack`, which computes note by note. Tokens are made before; all ways read the same.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_arms import BATCH, CLASSES, WAYS
from turns import Process, in_turn, paired, quiet_environment

ARMS = Path(__file__).resolve().parent / "serving_arms.py"
MODEL = {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768}
GROUP = BATCH * len(CLASSES)
"""Requests that have 16 of each task."""
TURNS, QUICK_TURNS = 5, 4
BURST, QUICK_BURST = 2 * GROUP, GROUP // 2
"""Requests of a turn."""
REFERENCE = "alone"
OWN = "clinstack"
NAMES = {"separate": "vs_separate", "switching": "vs_switching", "mixed batch": "vs_mixed_batch"}
BESIDE = {
    "separate, sorted": "vs_separate_sorted",
    "switching, one by one": "vs_switching_one_by_one",
    "mixed batch, sorted": "vs_mixed_batch_sorted",
}
TOLERANCE = 1e-4
CHECKED = 24
"""Requests whose logits are compared; they are of the first group, which is not timed."""


@dataclass(frozen=True)
class Turn:
    """What a way did in its turn; ``memory`` in MB."""

    requests: int
    wall: float
    cpu: float
    memory: float

    @property
    def per_cpu_second(self) -> float:
        return self.requests / self.cpu

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Turn:
        """Return the figures of a process's answer."""
        return cls(told["requests"], told["wall"], told["cpu"], told["memory"])


@dataclass
class Measured:
    """A way's turns and the MB of its weights."""

    weights: float
    turns: list[Turn]


def largest_difference(logits: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> float:
    """Return the largest absolute difference of two lists of logits.

    Raises
    ------
    ValueError
        If they have other numbers of requests or classes.
    """
    return max(
        abs(value - other)
        for row, right in zip(logits, reference, strict=True)
        for value, other in zip(row, right, strict=True)
    )


def ask(way: Process, do: str, first: int, count: int) -> dict[str, Any]:
    """Let a way answer some of the requests."""
    return way.ask(json.dumps({"do": do, "requests": [first, first + count]}))


def check(ways: Mapping[str, Process]) -> None:
    """Print by how much the ways' logits differ from those of each task's stack; end where that is too much.

    It is the ways' first work too, so that none is timed with cold memory.
    """
    reference = ask(ways[REFERENCE], "check", 0, CHECKED)["logits"]
    for name, way in ways.items():
        if name == REFERENCE:
            continue
        difference = largest_difference(ask(way, "check", 0, CHECKED)["logits"], reference)
        print(f"{name}: logits are those of each stack alone to {difference:.1e}", file=sys.stderr)
        if not difference < TOLERANCE:
            sys.exit(f"{name}: its logits differ from each stack's own by {difference:.1e}.")


def measure(names: Sequence[str], turns: int, burst: int) -> dict[str, Measured]:
    """Let the ways take turns, each with so many requests; the order goes round."""
    with tempfile.TemporaryDirectory() as temporary:
        work, environment = Path(temporary), quiet_environment(1)
        make = [sys.executable, str(ARMS), "make", str(work), json.dumps(MODEL), str(1 - (-turns * burst // GROUP))]
        made = subprocess.run(make, capture_output=True, text=True, env=environment)
        if made.returncode:
            sys.exit(f"making base, stacks and requests ended with {made.returncode}: {made.stderr.strip()[-500:]}")
        ways: dict[str, Process] = {}
        try:
            for name in (REFERENCE, *names):
                ways[name] = Process(name, [sys.executable, str(ARMS), name, str(work)], work, environment)
            weights = {name: way.answer()["weights"] for name, way in ways.items()}
            check(ways)
            ways.pop(REFERENCE).close()
            measured = {name: Measured(weights[name], []) for name in names}
            for turn in range(turns):
                first = GROUP + turn * burst
                for name in in_turn(names, turn):
                    measured[name].turns.append(Turn.of(ask(ways[name], "serve", first, burst)))
                print(f"turn {turn + 1} of {turns}", file=sys.stderr)
            return measured
        finally:
            for way in ways.values():
                way.close()


def table(measured: Mapping[str, Measured]) -> list[str]:
    """Return a Markdown table, its ratios against separate models."""
    baseline = next(iter(NAMES))
    rows = [
        "| way | requests per CPU s | of separate | wall ratio | memory | weights |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, way in measured.items():
        speed = statistics.median(turn.per_cpu_second for turn in way.turns)
        slower = measured[baseline].turns
        cpu, wall = (1 / paired(way.turns, slower, figure) for figure in ("cpu", "wall"))
        memory = max(turn.memory for turn in way.turns)
        rows.append(f"| {name} | {speed:.1f} | {cpu:.2f} | {wall:.2f} | {memory:,.0f} MB | {way.weights:,.0f} MB |")
    return rows


def ratios(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return how much faster clinstack is than each other way, and how much more memory each of the three needs."""
    own = measured[OWN]
    found: dict[str, float] = {}
    for other, name in {**NAMES, **BESIDE}.items():
        if other in measured:
            found[name] = round(paired(own.turns, measured[other].turns, "per_cpu_second"), 2)
    for other, name in NAMES.items():
        needed = max(turn.memory for turn in measured[other].turns)
        found[f"memory_{name}"] = round(needed / max(turn.memory for turn in own.turns), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TURNS} turns of four ways, under three minutes")
    parser.add_argument("--turns", type=int, help=f"turns of each way (default {TURNS})")
    arguments = parser.parse_args()
    names = [name for name in WAYS if name in NAMES or name == OWN or (name in BESIDE and not arguments.quick)]
    turns = arguments.turns or (QUICK_TURNS if arguments.quick else TURNS)
    burst = QUICK_BURST if arguments.quick else BURST
    load = os.getloadavg()[0]
    measured = measure(names, turns, burst)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, 1 thread; load before {load:.1f}, after "
        f"{os.getloadavg()[0]:.1f}. Medians of {turns} turns of {burst} requests."
    )
    print("\n".join(table(measured)))
    print(json.dumps({"benchmark": "serving", "ratios": ratios(measured)}))


if __name__ == "__main__":
    main()
