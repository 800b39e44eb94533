"""`clinstack estimate` against what training really holds.

    python benchmarks/memory.py --quick             # under three minutes on two cores
    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda       # the same cells and a Llama of a billion parameters, on a GPU
    python benchmarks/memory.py --device cpu --only small --quick    # tries the script

Each cell is a random Llama (vocabulary 32,000), a method, a batch and a length. The estimate is made from its
configuration alone, without memory; then the stack takes two training steps of `clinstack.engine`, and what it held
above its weights at the most is measured (`memory_arms.py` says how). A ratio is predicted over measured: above 1 the
estimate was too high. Weights are left out of both, because they are easy to predict and would hide the rest; on a GPU
they stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import quiet_environment

ARMS = Path(__file__).resolve().parent / "memory_arms.py"
VOCABULARY = 32_000
SHAPES: dict[str, dict[str, int]] = {
    "256x4": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688},
    "512x8": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
    "768x12": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
    "512x6 grouped": {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1376,
    },
    # As Llama 3.2 1B in all but its vocabulary.
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
}
Cell = dict[str, Any]


def cell(shape: str, method: str, rows: int, tokens: int, **more: Any) -> Cell:
    """Return a recipe's values without its base; ``more`` are the adapter's keys, training's and the recipe's."""
    adapter: dict[str, Any] = {"name": "clinical", "method": method}
    training: dict[str, Any] = {"batch_size": rows}
    values: dict[str, Any] = {}
    for key, value in more.items():
        if key in ("accumulate", "gradient_checkpointing"):
            training[key] = value
        elif key in ("layout", "dtype", "quantize"):
            values[key] = value
        else:
            adapter[key] = value
    return {"shape": shape, "context": tokens, "adapters": [adapter], "training": training, **values}


QUICK = [
    cell("256x4", "lora", 4, 256),
    cell("256x4", "lora", 4, 256, layout="padded"),
    cell("256x4", "lora", 4, 256, gradient_checkpointing=True),
    cell("256x4", "lora", 4, 256, target_modules="all-linear", dropout=0.1, accumulate=2),
    cell("256x4", "dora", 4, 256),
    cell("256x4", "adalora", 4, 256),
    cell("256x4", "adaption_prompt", 4, 256, adapter_layers=3),
    cell("256x4", "prefix", 4, 256),
    cell("256x4", "prompt", 4, 256),
    cell("256x4", "p_tuning", 4, 256),
    cell("256x4", "full", 2, 256),
    cell("256x4", "full", 8, 256, dtype="bfloat16"),
    cell("256x4", "lora", 4, 256, quantize="4bit"),
    cell("512x6 grouped", "lora", 2, 256),
    cell("512x8", "lora", 2, 256),
    cell("768x12", "lora", 1, 256),
]
REST = [
    cell("256x4", "lora", 1, 2048),
    cell("256x4", "lora", 16, 128),
    cell("256x4", "full", 8, 256, gradient_checkpointing=True),
    cell("256x4", "lora", 4, 256, dtype="bfloat16"),
    cell("512x6 grouped", "lora", 2, 512, layout="padded"),
    cell("512x8", "lora", 8, 512),
    cell("512x8", "lora", 8, 512, gradient_checkpointing=True),
    cell("512x8", "rslora", 4, 512, target_modules="all-linear"),
    cell("512x8", "prefix", 4, 512),
    cell("512x8", "full", 4, 512),
    cell("768x12", "lora", 2, 512),
    cell("768x12", "lora", 2, 512, gradient_checkpointing=True),
    cell("768x12", "full", 1, 512),
]
ON_CUDA = [
    cell("1b", "lora", 8, 512, dtype="bfloat16"),
    cell("1b", "lora", 8, 512, dtype="bfloat16", layout="padded"),
    cell("1b", "lora", 8, 512, dtype="bfloat16", quantize="4bit", target_modules="all-linear"),
    cell("1b", "lora", 8, 2048, dtype="bfloat16", gradient_checkpointing=True),
    cell("1b", "full", 4, 512, dtype="bfloat16"),
    cell("1b", "lora", 4, 1024, dtype="bfloat16", quantize="4bit", gradient_checkpointing=True),
    cell("1b", "prefix", 8, 512, dtype="bfloat16"),
]


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Return the cells that are asked for."""
    small = QUICK if arguments.quick else QUICK + REST
    if arguments.device == "cuda":
        large = [] if arguments.only == "small" else ON_CUDA
        return large + ([] if arguments.only == "large" else small)
    return small


def described(values: Cell) -> str:
    """Say what a cell is."""
    training = values["training"]
    adapter = {key: value for key, value in values["adapters"][0].items() if key not in ("name", "method")}
    more = {**{key: values[key] for key in ("layout", "dtype", "quantize") if key in values}, **adapter}
    words = [f"{key}={value}" for key, value in more.items()]
    words += [key for key in ("gradient_checkpointing",) if training.get(key)]
    words += [f"accumulate={training['accumulate']}"] if "accumulate" in training else []
    method = values["adapters"][0]["method"]
    return f"{values['shape']} | {method} | {training['batch_size']} x {values['context']} | {', '.join(words)}"


def predict(values: dict[str, Any], device: str) -> tuple[int, int]:
    """Return the predicted bytes above the weights, and of the weights."""
    from clinstack.estimate.architectures import find_architecture
    from clinstack.estimate.memory import Estimator
    from clinstack.recipe import PretrainRecipe

    recipe = PretrainRecipe.model_validate(values)
    memory = Estimator(recipe, find_architecture(recipe.base), device).memory()
    return memory.trace.peak, memory.weights.total


def rows_of(chosen: list[Cell], device: str) -> list[dict[str, Any]]:
    """Measure and predict each cell, and say each as it is done."""
    rows = []
    large = {"1b": "bfloat16"}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        names = {shape: f"base{number}" for number, shape in enumerate(dict.fromkeys(c["shape"] for c in chosen))}
        recipes = [
            {
                "base": str(work / names[values["shape"]]),
                "run": "run",
                "notes": "notes",
                **{key: value for key, value in values.items() if key != "shape"},
            }
            for values in chosen
        ]
        bases = {names[shape]: [SHAPES[shape], large.get(shape, "float32")] for shape in names}
        (work / "cells.json").write_text(json.dumps({"bases": bases, "cells": recipes}), encoding="utf-8")
        log = (work / "log").open("w")
        process = subprocess.Popen(
            [sys.executable, str(ARMS), str(work), device],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # On the CPU one thread, because the measuring processes are forks.
            env=quiet_environment(1 if device == "cpu" else os.cpu_count() or 1, device),
        )
        assert process.stdout is not None
        answers = (line for line in process.stdout if line.startswith("{"))
        for values, recipe in zip(chosen, recipes, strict=True):
            line = next(answers, None)
            if line is None:
                log.close()
                process.wait()
                last = (work / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
                sys.exit(f"{described(values)} ended: " + " / ".join(last))
            measured = json.loads(line)
            if "failed" in measured:
                print(f"| {described(values)} | {measured['failed']} |", flush=True)
                continue
            peak, weights = predict(recipe, device)
            row = {"predicted": peak, "predicted_weights": weights, "ratio": peak / measured["peak"]}
            rows.append({**measured, **row, "text": row_text(values, {**measured, **row})})
            print(rows[-1]["text"], flush=True)
        process.wait()
    return rows


def row_text(values: Cell, row: dict[str, Any]) -> str:
    """Return a row of the table; sizes in MB of 2^20 bytes."""
    beside = "resident" if "resident" in row else "reserved"
    text = (
        f"| {described(values)} | {row['predicted'] / 2**20:,.1f} | {row['peak'] / 2**20:,.1f} | "
        f"{row['ratio']:.3f} | {row[beside] / 2**20:,.0f} |"
    )
    if "weights" in row:
        text += f" {row['predicted_weights'] / row['weights']:.3f} | {row['outside'] / 2**20:,.0f} |"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller cells only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("small", "large"), help="on a GPU: only these models")
    parser.add_argument("--out", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda needs a CUDA device, and PyTorch finds none.")
    chosen = cells_of(arguments)
    beside = "resident set grew" if arguments.device == "cpu" else "reserved"
    header = f"| model | method | batch | more | predicted MB | measured MB | ratio | {beside} MB |"
    rule = "|---|---|--:|---|--:|--:|--:|--:|"
    if arguments.device == "cuda":
        header, rule = f"{header} weights ratio | outside MB |", f"{rule}--:|--:|"
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} CPU cores"
    print(f"{name}, torch {torch.__version__}\n\n{header}\n{rule}", flush=True)
    rows = rows_of(chosen, arguments.device)
    if arguments.out:
        lines = [f"{name}, torch {torch.__version__}", "", header, rule, *(row["text"] for row in rows)]
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    ratios = [row["ratio"] for row in rows]
    summary = {
        "worst_over": round(max(ratios), 3),
        "worst_under": round(min(ratios), 3),
        "median": round(statistics.median(ratios), 3),
    }
    counts = {"cells": len(rows), "failed": len(chosen) - len(rows), "device": arguments.device}
    print(json.dumps({"benchmark": "memory", "ratios": summary, **counts}))


if __name__ == "__main__":
    main()
