"""The demo: the whole two-step pipeline on the embedded base model and an invented hospital, ending in a report.

    cohort ──▶ prepare ──▶ pretrain ─────────────▶ clinical-* cells ──▶ report
                      └──▶ head and lora cells ──┘

Each cell is an ordinary Run of an ordinary recipe. Workers, one for each core, take them as they become ready.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from clinstack.engine.progress import BarUpdate, WorkerBars, console, named_bars, new_progress, send_bars_to
from clinstack.errors import ClinstackError, InputError
from clinstack.files import read_json
from clinstack.notes.read import examples_files, input_hashes, notes_files
from clinstack.recipe import PRESETS, FinetuneRecipe, PretrainRecipe, StageRecipe, parse_recipe, read_yaml, stack_label
from clinstack.run import adapter_files, is_finished
from clinstack.tasks import OUTCOMES

CLINICAL = "clinical"
MINIMUM_COUNT = 40
"""Rarer codes are no classes of the demo: its few steps teach nothing about them, and they only add noise."""
DEFAULT_TASKS = ("mortality", "diagnoses")
_MOST_WORKERS = 4
"""Each holds a copy of PyTorch: about half a gigabyte."""


@dataclass(frozen=True)
class Cell:
    """One Run of the demo."""

    name: str
    recipe: StageRecipe
    needs_clinical: bool


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
    cells = [Cell("pretrain", parse_recipe(pretrain, "demo/pretrain"), False)]
    for adapters in table3_specs(pretrain["run"]):
        for task in tasks:
            values = read_yaml(PRESETS / "demo" / "finetune.yaml")
            values.update(adapters=adapters, examples=str(root / "data" / "examples" / task))
            recipe = parse_recipe({**values, "run": "-"}, "demo/finetune")
            assert isinstance(recipe, FinetuneRecipe)
            label = stack_label(recipe.adapters)
            values["run"] = str(root / "finetune" / task / label)
            needs = any(adapter.path is not None for adapter in recipe.adapters)
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
    left = [cell for cell in cells if not _is_finished(cell)]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} Runs are done already.")
    if left:
        _run_cells(left, workers or min(os.cpu_count() or 1, _MOST_WORKERS))
    console.print("Writing the report: bootstrap over patients ...")
    paths = build_report(root)
    console.print(f"Done in {time.monotonic() - begin:.0f} s.")
    return paths


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


def _is_finished(cell: Cell) -> bool:
    recipe = cell.recipe
    if isinstance(recipe, PretrainRecipe):
        return is_finished(recipe, input_hashes([*notes_files(Path(recipe.notes)), *adapter_files(recipe.adapters)]))
    assert isinstance(recipe, FinetuneRecipe)
    return is_finished(recipe, input_hashes([*examples_files(Path(recipe.examples)), *adapter_files(recipe.adapters)]))


def _run_cells(cells: Sequence[Cell], workers: int) -> None:
    """Run cells on worker processes; those that need the clinical adapter wait for the pretraining.

    Raises
    ------
    ClinstackError
        If a cell fails or a worker is killed. What is done stays done; the next start goes on from there.
    """
    context = get_context("spawn")
    updates: Queue[BarUpdate] = context.Queue()
    waiting = [cell for cell in cells if cell.needs_clinical and cells[0].name == "pretrain"]
    ready = [cell for cell in cells if cell not in waiting]
    running: dict[Future[dict[str, Any]], Cell] = {}
    with (
        new_progress() as progress,
        ProcessPoolExecutor(workers, context, _start_worker, (updates, os.getpid())) as pool,
    ):
        bars = WorkerBars(progress)
        whole = progress.add_task("Runs", total=len(cells), units=0, unit="", note="")

        def submit(cell: Cell) -> None:
            running[pool.submit(_run_cell, cell)] = cell

        for cell in ready:
            submit(cell)
        try:
            while running:
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _show(updates, bars)
                for future in finished:
                    cell = running.pop(future)
                    outcome = future.result()
                    progress.advance(whole)
                    console.print(f"  done in {outcome['seconds']:5.1f} s  {cell.name}  {outcome['figure']}")
                    if cell.name == "pretrain":
                        for other in waiting:
                            submit(other)
        except BrokenProcessPool:
            raise ClinstackError("A worker was killed. Start again: the demo goes on from its checkpoints.") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _show(updates: Queue[BarUpdate], bars: WorkerBars) -> None:
    while True:
        try:
            bars.apply(updates.get_nowait())
        except Empty:
            return


def _start_worker(updates: Queue[BarUpdate], parent: int) -> None:
    """Set a worker up: one thread, bars to the parent, and an end when the parent is gone."""
    import torch

    send_bars_to(updates)
    # One thread each: small matrices do not gain from two, and the numbers are the same on every machine.
    torch.set_num_threads(1)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run_cell(cell: Cell) -> dict[str, Any]:
    from clinstack.stages.finetune import finetune
    from clinstack.stages.pretrain import pretrain

    begin = time.monotonic()
    if isinstance(cell.recipe, PretrainRecipe):
        test = read_json(pretrain(cell.recipe).folder / "metrics.json")["test"]
        before, after = (test[name]["perplexity"]["value"] for name in ("base", "adapted"))
        figure = f"perplexity {before:.1f} -> {after:.1f}"
    else:
        assert isinstance(cell.recipe, FinetuneRecipe)
        test = read_json(finetune(cell.recipe).folder / "metrics.json")["test"]
        auroc = test[test["primary"]]["value"]
        figure = "AUROC unknown" if auroc is None else f"AUROC {auroc:.3f}"
    return {"seconds": time.monotonic() - begin, "figure": figure}
