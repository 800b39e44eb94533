"""The demo: the whole two-step pipeline on the embedded base model and an invented hospital, ending in a report.

    cohort ──▶ prepare ──▶ pretrain ─────────────▶ clinical-* cells ──▶ report
                      └──▶ head and lora cells ──┘

Each cell is an ordinary Run of an ordinary recipe. Workers, one for each core, take them as they become ready.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clinstack.engine.progress import console, named_bars
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.recipe import PRESETS, FinetuneRecipe, parse_recipe, read_yaml, stack_label
from clinstack.study.cells import Cell, fail_if_any, is_done, run_cells, usual_workers
from clinstack.tasks import OUTCOMES

CLINICAL = "clinical"
MINIMUM_COUNT = 40
"""Rarer codes are no classes of the demo: its few steps teach nothing about them, and they only add noise."""
DEFAULT_TASKS = ("mortality", "diagnoses")


def table3_specs(clinical: str) -> list[list[dict[str, Any]]]:
    """Return the adapters of the six rows of the paper's Table 3, as a recipe writes them.

    Parameters
    ----------
    clinical : str
        Path of the clinical adapter's Run.
    """
    task = read_yaml(PRESETS / "demo" / "finetune.yaml")["adapters"][-1]
    frozen = {"name": CLINICAL, "path": clinical, "trainable": False}
    trainable = {**frozen, "trainable": True}
    return [[], [task], [frozen], [frozen, task], [trainable], [trainable, task]]


def demo_cells(root: Path, tasks: Sequence[str]) -> list[Cell]:
    """Return the demo's Runs: the pretraining first, then those that do not wait for it, then the others."""
    pretrain = read_yaml(PRESETS / "demo" / "pretrain.yaml")
    pretrain.update(run=str(root / "pretrain"), notes=str(root / "data"))
    cells = [Cell("pretrain", parse_recipe(pretrain, "demo/pretrain"))]
    for adapters in table3_specs(pretrain["run"]):
        for task in tasks:
            values = read_yaml(PRESETS / "demo" / "finetune.yaml")
            values.update(adapters=adapters, examples=str(root / "data" / "examples" / task))
            recipe = parse_recipe({**values, "run": "-"}, "demo/finetune")
            assert isinstance(recipe, FinetuneRecipe)
            label = stack_label(recipe.adapters)
            values["run"] = str(root / "finetune" / task / label)
            needs = ("pretrain",) if any(adapter.path is not None for adapter in recipe.adapters) else ()
            cells.append(Cell(f"{task} {label}", parse_recipe(values, "demo/finetune"), needs))
    return cells


def run_demo(root: Path, patients: int, seed: int, *, all_tasks: bool = False, workers: int | None = None) -> Any:
    """Run the demo, or what is left of it, and return the paths and figures of its report.

    Parameters
    ----------
    root : Path
        Folder of everything the demo writes.
    patients, seed : int
        Of the synthetic cohort.
    all_tasks : bool
        All five outcomes instead of mortality and diagnoses.
    workers : int, optional
        Processes; one for each core, at most four, when not given.
    """
    from clinstack.report.build import build_report

    begin = time.monotonic()
    tasks = list(OUTCOMES) if all_tasks else list(DEFAULT_TASKS)
    console.print("[bold]clinstack demo[/]: everything here is synthetic; invented patients and a toy base model.")
    _prepare_data(root, patients, seed)
    cells = demo_cells(root, tasks)
    left = [cell for cell in cells if not is_done(cell)]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} Runs are done already.")
    if left:
        fail_if_any(run_cells(left, workers or usual_workers()), "the demo")
    console.print("Writing the report: bootstrap over patients ...")
    paths = build_report(root)
    console.print(f"Done in {time.monotonic() - begin:.0f} s.")
    console.print(
        f"What the clinical adapter gives away of its notes: {audit_command(root)}", soft_wrap=True, markup=False
    )
    return paths


def audit_command(root: Path) -> str:
    """Return the command line that audits the demo's clinical adapter."""
    return shlex.join(["clinstack", "audit", str(root / "pretrain")])


def _prepare_data(root: Path, patients: int, seed: int) -> None:
    from clinstack.notes.cohort import write_cohort
    from clinstack.notes.mimic3.prepare import prepare_mimic3

    cohort, data = root / "cohort", root / "data"
    if (cohort / "cohort.json").is_file():
        before = read_json(cohort / "cohort.json")
        if (before["patients"], before["seed"]) != (patients, seed):
            raise InputError(
                f"{root} holds the demo of {before['patients']} patients, seed {before['seed']}; "
                "name another folder with --out, or delete it."
            )
    if (cohort / "cohort.json").is_file() and (data / "prepare.json").is_file():
        console.print(f"Cohort and Notes are done already: {cohort}, {data}")
        return
    with named_bars() as bar:
        write_cohort(cohort, patients, seed, bar)
        prepare_mimic3(cohort, data, seed=seed, minimum_count=MINIMUM_COUNT, progress=bar)
