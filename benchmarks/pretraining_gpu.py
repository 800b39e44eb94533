"""The comparison of `pretraining.py` on a GPU: a random Llama of a billion parameters in bfloat16, and in 4 bits.

    python benchmarks/pretraining_gpu.py --out table.md
    python benchmarks/pretraining_gpu.py --device cpu --model tiny --turns 1    # tries the script itself, no figures

It needs CUDA. Ways and turns are those of `pretraining.py`; time is wall time between synchronisations, memory the most
that PyTorch had allocated on the device during the timed steps, the base's weights among it (the CPU script leaves them
out; here 4 bits are about them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch
from pretraining import BASELINE, NAMES, TOLERANCE, Turn, choose_peers, measure
from turns import paired

MODELS: dict[str, dict[str, int]] = {
    # As Llama 3.2 1B in all but its vocabulary.
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
OWN = ("published", "clinstack", "clinstack compiled", "published 4bit", "clinstack 4bit")
GPU_TOLERANCE = 1e-4
"""A GPU adds in another order for every shape, over a billion parameters."""


def setting_of(arguments: argparse.Namespace) -> dict[str, str | int]:
    """Return the setting of the ways.

    Ends the script where there is no CUDA device, unless the CPU is asked for.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "This benchmark needs a CUDA device, and PyTorch finds none. benchmarks/pretraining.py measures on CPUs; "
            "--device cpu --model tiny tries this script."
        )
    dtype = "bfloat16" if arguments.device == "cuda" else "float32"
    return {"device": arguments.device, "dtype": dtype, "rows": arguments.rows, "context": arguments.context}


def machine(device: str) -> str:
    """Name the device and the versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores (CPU: a trial, no figures)"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def table(measured: dict[str, list[Turn]]) -> list[str]:
    """Return a Markdown table, one row for each way, with ratios against the published loop."""
    lines = ["| way | useful | tokens per s | times faster | memory | times less |", "|---|--:|--:|--:|--:|--:|"]
    base = measured[BASELINE]
    for name, turns in measured.items():
        share = sum(turn.useful for turn in turns) / sum(turn.computed for turn in turns)
        speed = statistics.median(turn.per_wall_second for turn in turns)
        memory = statistics.median(turn.peak for turn in turns)
        lines.append(
            f"| {name} | {share:.0%} | {speed:,.0f} | {paired(turns, base, 'per_wall_second'):.2f} | "
            f"{memory:,.0f} MB | {paired(base, turns, 'peak'):.2f} |"
        )
    return lines


def ratios(measured: dict[str, list[Turn]]) -> dict[str, float]:
    """Return speed against each other way and memory of each other way, for each of clinstack's ways."""
    names = {**NAMES, "published 4bit": "vs_paper_4bit"}
    found: dict[str, float] = {}
    for mine in ("clinstack", "clinstack compiled", "clinstack 4bit"):
        if mine not in measured:
            continue
        ending = mine.removeprefix("clinstack").replace(" ", "_")
        for other, name in names.items():
            if other in measured:
                found[name + ending] = round(paired(measured[mine], measured[other], "per_wall_second"), 2)
                found[f"memory_{name}{ending}"] = round(paired(measured[other], measured[mine], "peak"), 2)
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns instead of 9")
    parser.add_argument("--turns", type=int, help="turns of each way")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step (default 16)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--model", choices=MODELS, default="1b")
    parser.add_argument("--only", nargs="+", choices=OWN, default=OWN, metavar="WAY", help=f"of {', '.join(OWN)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    parser.add_argument("--trl-python", help="a Python with TRL 1.16 and CUDA")
    parser.add_argument("--llamafactory-python", help="a Python with LLaMA-Factory 0.9.5 and CUDA")
    parser.add_argument("--out", type=Path, help="write the table here too")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    setting = setting_of(arguments)
    turns = arguments.turns or (3 if arguments.quick else 9)
    pythons = {name: sys.executable for name in OWN if name in {BASELINE, *arguments.only}}
    pythons |= choose_peers(arguments)
    tolerance = GPU_TOLERANCE if arguments.device == "cuda" else TOLERANCE
    measured = measure(MODELS[arguments.model], pythons, turns, os.cpu_count() or 1, setting, tolerance)
    shape = f"{arguments.rows} rows of {arguments.context} tokens, {setting['dtype']}, medians of {turns} turns"
    text = "\n".join([f"{machine(arguments.device)}; {shape}.", "", *table(measured)])
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({"benchmark": "pretraining_gpu", "ratios": ratios(measured)}))


if __name__ == "__main__":
    main()
