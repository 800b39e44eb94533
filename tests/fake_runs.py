"""A tree of Runs with plausible random figures, for what only reads Runs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import yaml

from clinstack.evaluate.classification import SplitScores, measure_classifier
from clinstack.files import read_json, write_json, write_text
from clinstack.recipe.training import EvaluationRecipe
from clinstack.report.published import published_auroc
from clinstack.tasks import Task

STRENGTH = {
    "full": 0.9,
    "head": 0.4,
    "lora": 1.2,
    "clinical-frozen": 0.7,
    "clinical-frozen+lora": 1.35,
    "clinical-trainable": 1.4,
    "clinical-trainable+lora": 1.3,
}
DECODER = tuple(name for name in STRENGTH if name != "full")
TASKS = {
    "prolonged_ventilation": Task("prolonged_ventilation", "binary", ("at most 4 days", "more than 4 days")),
    "mortality": Task("mortality", "binary", ("survived", "died")),
    "length_of_stay": Task("length_of_stay", "multiclass", ("0-3 days", "3-7 days", "1-2 weeks", "over 2 weeks")),
    "diagnoses": Task("diagnoses", "multilabel", tuple(f"{code:03d}" for code in range(20))),
    "procedures": Task("procedures", "multilabel", tuple(f"{code:02d}" for code in range(30, 42))),
}


def write_run(folder: Path, stage: str, name: str, task: str | None, trainable: int, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format_version": 1,
        "stage": stage,
        "label": name,
        "task": task,
        "status": "done",
        "synthetic": True,
        "created": "2026-11-21T10:00:00+00:00",
        "seconds": {"total": 41.3},
        "versions": {"clinstack": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "peft": "0.21.2"},
        "hardware": {"machine": "x86_64", "cores": 2, "accelerator": "none"},
        "seeds": {"training": 0, "evaluation": 0},
        "inputs": {},
        "stack": {
            "base": "embedded",
            "fingerprint": "sha256:1f2e3d",
            "trainable_parameters": trainable,
            "parameters": 3_001_344,
        },
    }
    write_json(folder / "run.json", record | changes)
    write_text(folder / "recipe.yaml", f"stage: {stage}\nrun: {folder.name}\nbase: embedded\n")
    write_json(folder / "metrics.json", {})


def write_pretrain(root: Path, notes: int = 200, **changes: object) -> Path:
    rng = np.random.default_rng(1)
    folder = root / "pretrain"
    write_run(folder, "pretrain", "clinical", None, 49_152, **changes)
    tokens = rng.integers(40, 700, notes)
    nll = tokens * (2.1 + 0.15 * rng.normal(size=notes))
    kinds = np.asarray(["Discharge summary", "Nursing", "Radiology"])[rng.integers(0, 3, notes)]
    table = {
        "note_id": [f"n{i}" for i in range(notes)],
        "patient_id": [f"p{i}" for i in rng.integers(0, max(1, notes // 3), notes)],
        "note_type": kinds.tolist(),
        "split": ["test"] * notes,
        "tokens": tokens,
        "characters": tokens * 3,
        "base_nll": nll + tokens * (2.0 + 0.1 * rng.normal(size=notes)),
        "nll": nll,
    }
    pq.write_table(pa.table(table), folder / "losses.parquet")
    return folder


def write_finetune(
    root: Path,
    task_name: str,
    name: str,
    rows: int = 240,
    *,
    at: Path | None = None,
    noise: int = 1,
    base: str = "",
    **changes: object,
) -> Path:
    """Every stack sees the same patients, labels and noise; only how much of the label it sees differs."""
    task = TASKS[task_name]
    rng = np.random.default_rng(sorted(TASKS).index(task_name))
    folder = at or root / "finetune" / task_name / name
    write_run(folder, "finetune", name, task_name, 200 + 30_000 * ("lora" in name), **changes)
    write_json(folder / "stack" / "stack.json", {"format_version": 1, "task": task.to_dict()})
    patients = [f"p{i}" for i in rng.integers(0, max(1, int(0.8 * rows)), rows)]
    classes = len(task.classes)
    if task.kind == "multilabel":
        indicator = rng.random((rows, classes)) < rng.uniform(0.03, 0.3, classes)
        indicator[:, 1] = False  # a code that no test example carries
        labels: list = [[task.classes[column] for column in np.flatnonzero(row)] for row in indicator]
    else:
        share = [0.89, 0.11] if task.kind == "binary" else [0.2, 0.4, 0.25, 0.15]
        labels = rng.choice(classes, rows, p=share).tolist()
        indicator = np.asarray(labels)[:, None] == np.arange(classes)
    own = 0.5 * np.random.default_rng(zlib.crc32(f"{base}{name}".encode()) + noise - 1).normal(size=indicator.shape)
    logits = rng.normal(size=indicator.shape) + own + STRENGTH.get(name, 1.0) * indicator
    table = {
        "example_id": [f"e{i:04d}" for i in range(rows)],
        "patient_id": patients,
        "split": ["test"] * rows,
        "label": labels,
        "score": logits.astype(np.float32).tolist(),
    }
    pq.write_table(pa.table(table), folder / "predictions.parquet")
    return folder


def write_measured(
    folder: Path,
    task_name: str,
    name: str,
    rows: int = 240,
    seed: int = 0,
    *,
    base: str = "embedded",
    resamples: int = 100,
) -> Path:
    """Write a Run with everything that a finetuning leaves: validation rows, all measures, and the log."""
    task = TASKS[task_name]
    write_finetune(folder, task_name, name, rows, at=folder, noise=1 + seed, base=base)
    table = pq.read_table(folder / "predictions.parquet")
    splits = ["validation" if place % 3 == 0 else "test" for place in range(rows)]
    # A patient is in one split only.
    patients = [f"{split[0]}{patient}" for split, patient in zip(splits, table["patient_id"].to_pylist(), strict=True)]
    table = table.set_column(1, "patient_id", pa.array(patients)).set_column(2, "split", pa.array(splits))
    pq.write_table(table, folder / "predictions.parquet")
    scores = {}
    for split in ("validation", "test"):
        chosen = table.filter(pa.compute.equal(table["split"], split))
        scores[split] = SplitScores(
            chosen["label"].to_pylist(), np.asarray(chosen["score"].to_pylist()), chosen["patient_id"].to_pylist()
        )
    settings = EvaluationRecipe(resamples=resamples)
    record = read_json(folder / "run.json")
    record["seeds"] = {"training": seed, "evaluation": 0}
    record["stack"]["base"] = base
    write_json(folder / "run.json", record)
    recipe = {
        "stage": "finetune",
        "run": str(folder),
        "base": base,
        "examples": f"data/examples/{task_name}",
        "adapters": [{"name": "task", "method": "lora", "rank": 8}] if "lora" in name else [],
        "training": {"epochs": 3, "learning_rate": 0.001 if "lora" in name else 0.01, "seed": seed},
    }
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, 91):
        loss = 0.3 + 0.4 * np.exp(-step / 30 * STRENGTH.get(name, 1.0)) + 0.03 * rng.normal()
        lines.append({"step": step, "epoch": (step - 1) // 30, "loss": round(float(loss), 4)})
        if step % 30 == 0:
            area = 0.55 + 0.1 * STRENGTH.get(name, 1.0) * (1 - np.exp(-step / 40)) + 0.005 * rng.normal()
            figures = {"validation_loss": round(0.3 + 10 / (step + 30), 4), "validation_auroc": round(float(area), 4)}
            lines.append({"step": step, "epoch": step // 30, **figures})
    write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    metrics = measure_classifier(task, scores, settings).metrics
    write_json(folder / "metrics.json", {"best_epoch": 3, **metrics})
    return folder


def write_study(
    root: Path,
    bases: dict[str, tuple[str, ...]],
    tasks: tuple[str, ...] = tuple(TASKS),
    seeds: int = 2,
    rows: int = 240,
    *,
    table: str = "table3",
    titles: dict[str, str] | None = None,
) -> Path:
    """Write a grid study below ``root``: for each base its specs, on each task, with so many seeds."""
    cells = []
    for base, specs in bases.items():
        for spec in specs:
            for task in tasks:
                printed = published_auroc(table, base, spec, task)
                for seed in range(seeds):
                    inside = f"{base.lower()}/{spec}/{task}/seed-{seed}"
                    write_measured(root / inside, task, spec, rows, seed, base=base)
                    cells.append(
                        {
                            "name": inside,
                            "role": "final",
                            "base": base,
                            "base_id": base,
                            "spec": spec,
                            "row": (titles or {}).get(spec, spec),
                            "task": task,
                            "seed": seed,
                            "run": inside,
                            "budget": {"trials": 10, "epochs": 3},
                            "paper": printed,
                        }
                    )
    study = {
        "format_version": 1,
        "table": table,
        "title": "The study of a test",
        "synthetic": True,
        "tasks": list(tasks),
    }
    write_json(root / "study.json", study | {"cells": cells})
    write_text(root / "study.yaml", f"stage: study\nrun: {root.name}\ntable: {table}\n")
    return root


def write_runs(root: Path, tasks: tuple[str, ...] = tuple(TASKS), stacks: tuple[str, ...] = DECODER) -> Path:
    """Write a whole study below ``root`` and return it."""
    write_pretrain(root)
    for task in tasks:
        for stack in stacks:
            write_finetune(root, task, stack)
    return root
