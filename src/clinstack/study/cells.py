"""Cells: Runs and sweeps of ordinary recipes on worker processes, each started when the cells that it needs are done.

What is done is skipped, so the same call goes on where an earlier one was killed. A cell that fails is named and the
others go on, except those that need it. Every worker ends with the process that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from traceback import extract_tb

from rich.markup import escape

from clinstack.engine.progress import BarUpdate, WorkerBars, console, new_progress, send_bars_to
from clinstack.errors import ClinstackError, InputError
from clinstack.files import read_json
from clinstack.notes.instructions import instruction_files
from clinstack.notes.read import examples_files, input_hashes, notes_files
from clinstack.recipe import FinetuneRecipe, InstructRecipe, PretrainRecipe, StageRecipe, SweepRecipe
from clinstack.run import Run, adapter_files, is_finished
from clinstack.study.best import adopt_trial, recipe_with_best
from clinstack.study.devices import Devices
from clinstack.study.words import duration
from clinstack.sweep.sweep import sweep_inputs

_MOST_WORKERS = 4
"""Each holds a copy of PyTorch: about half a gigabyte."""


@dataclass(frozen=True)
class Cell:
    """One Run.

    Parameters
    ----------
    name : str
        For messages, and for the ``needs`` of other cells.
    recipe : PretrainRecipe, FinetuneRecipe or SweepRecipe
    needs : tuple of str
        Cells whose Runs this one reads.
    after : tuple of str
        Cells that come first because this one gains from what they leave; should they fail, it runs all the same.
    best_of : SweepRecipe or None
        The search, one of ``needs``, whose best values it takes: ``recipe`` then says all but those.
    """

    name: str
    recipe: StageRecipe
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    best_of: SweepRecipe | None = None


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Parameters
    ----------
    seconds : float
        In this call.
    figure : str
        The Run's first figure, for a line of progress; empty when it failed.
    failure : str or None
        Why it failed, in one line without any data.
    """

    seconds: float = 0.0
    figure: str = ""
    failure: str | None = None


def usual_workers() -> int:
    """Return how many cells run at a time when nobody says: one for each core, at most four."""
    return min(os.cpu_count() or 1, _MOST_WORKERS)


def is_done(cell: Cell) -> bool:
    """Whether the cell's Run is finished, with exactly this recipe and the inputs that are there now."""
    # The cheap question first: hashing the notes of a whole hospital takes a while.
    if not _says_done(Path(cell.recipe.run)):
        return False
    if cell.best_of is not None and not _says_done(Path(cell.best_of.run)):
        return False
    recipe = recipe_with_best(cell.best_of, cell.recipe) if cell.best_of is not None else cell.recipe
    if isinstance(recipe, SweepRecipe):
        return is_finished(recipe, sweep_inputs(recipe))
    if isinstance(recipe, PretrainRecipe):
        files = notes_files(Path(recipe.notes))
    elif isinstance(recipe, FinetuneRecipe):
        files = examples_files(Path(recipe.examples))
    elif isinstance(recipe, InstructRecipe):
        template = [] if recipe.prompt.file is None else [recipe.prompt.file]
        files = [*instruction_files(Path(recipe.instructions)), *template]
    else:
        raise InputError(f"{cell.name}: a cell is a pretrain, finetune, instruct or sweep recipe, not {recipe.stage}.")
    return is_finished(recipe, input_hashes([*files, *adapter_files(recipe.adapters)]))


def _says_done(run: Path) -> bool:
    record = run / "run.json"
    return record.is_file() and read_json(record).get("status") == "done"


def run_cells(
    cells: Sequence[Cell],
    workers: int,
    *,
    threads: int = 1,
    fresh: bool = False,
    description: str = "Runs",
    devices: Sequence[str] = (),
    costs: Mapping[str, float] | None = None,
) -> dict[str, Outcome]:
    """Run cells that are not done on worker processes, in order, and return how each ended.

    Parameters
    ----------
    cells : sequence of Cell
        A name in ``needs`` that is not among them counts as done.
    workers : int
        Cells at a time.
    threads : int
        Of PyTorch in each worker. With one, small models lose nothing and figures do not depend on the machine.
    fresh : bool
        Delete what the Runs hold and begin anew.
    description : str
        Of the bar that counts the cells.
    devices : sequence of str
        Values of ``CUDA_VISIBLE_DEVICES``: each worker has one for itself as far as they go, then they are shared.
        Without any, workers see what this process sees.
    costs : mapping of cell name to float
        Estimated seconds: with them the bar says how long the rest will take.

    Raises
    ------
    InputError
        If two cells have one name, or cells need each other in a circle.
    """
    _check_needs(cells)
    outcomes: dict[str, Outcome] = {}
    waiting = list(cells)
    # Workers hold one end and end themselves when the other closes: below, or because this process died.
    reader, writer = get_context("spawn").Pipe(duplex=False)
    idle: list[_Seat] = []
    running: dict[Future[Outcome], tuple[Cell, _Seat]] = {}
    pool = Devices(devices, workers)
    left = TimeLeft(cells, costs or {}, workers)
    with new_progress() as progress:
        bars = WorkerBars(progress)
        whole = progress.add_task(description, total=len(cells), units=0, unit="", note="")

        def settle(cell: Cell, outcome: Outcome) -> None:
            outcomes[cell.name] = outcome
            left.settle(cell.name, outcome.seconds)
            progress.update(whole, advance=1, note=left.text())
            if outcome.failure is None:
                console.print(
                    f"  done in {outcome.seconds:5.1f} s  {cell.name}  {outcome.figure}",
                    highlight=False,
                    soft_wrap=True,
                )
            else:
                console.print(
                    f"  [red]failed[/]  {cell.name}: {escape(outcome.failure)}", highlight=False, soft_wrap=True
                )

        try:
            while waiting or running:
                for cell in [cell for cell in waiting if _lost_need(cell, outcomes)]:
                    waiting.remove(cell)
                    settle(cell, Outcome(failure=f"it needs {_lost_need(cell, outcomes)}, which failed"))
                for cell in [cell for cell in waiting if not _open_needs(cell, waiting, running)]:
                    if len(running) == workers:
                        break
                    waiting.remove(cell)
                    seat = idle.pop() if idle else _Seat(reader, threads, pool.take())
                    running[seat.submit(cell, fresh)] = cell, seat
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for seat in [*idle, *(seat for _, seat in running.values())]:
                    seat.show(bars)
                for future in finished:
                    cell, seat = running.pop(future)
                    try:
                        outcome = future.result()
                        idle.append(seat)
                    except BrokenProcessPool:
                        outcome = Outcome(failure="its process was killed, perhaps for want of memory")
                        pool.give_back(seat.device)
                    settle(cell, outcome)
        finally:
            for seat in idle:
                seat.close()
            # Workers in the middle of a cell end at once: every Run can be killed at any moment.
            writer.close()
            for _, seat in running.values():
                seat.close()
            reader.close()
    return outcomes


def fail_if_any(outcomes: dict[str, Outcome], again: str) -> None:
    """Raise when cells failed.

    Parameters
    ----------
    outcomes : dict of str to Outcome
    again : str
        What goes on from there, such as ``the demo``.

    Raises
    ------
    ClinstackError
        Naming the cells and why the first failed.
    """
    failed = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure is not None}
    if failed:
        name, reason = next(iter(failed.items()))
        more = f" (also {', '.join(list(failed)[1:])})" if len(failed) > 1 else ""
        raise ClinstackError(
            f"{name} failed: {reason}{more}. What is done stays done; start again and {again} goes on."
        )


class TimeLeft:
    """How long the rest takes: estimated seconds of the cells, corrected by what those that are done took."""

    def __init__(self, cells: Sequence[Cell], costs: Mapping[str, float], workers: int) -> None:
        self._open = {cell.name: costs[cell.name] for cell in cells if cell.name in costs}
        self._workers = workers
        self._estimated = self._measured = 0.0

    def settle(self, name: str, seconds: float) -> None:
        """Count a cell as done after so many seconds."""
        if name in self._open:
            self._estimated += self._open.pop(name)
            self._measured += seconds

    def text(self) -> str:
        """Return the time left for a line of progress; empty where nothing was estimated."""
        if not self._open:
            return ""
        factor = self._measured / self._estimated if self._estimated else 1.0
        longest = max(self._open.values())
        seconds = factor * max(longest, sum(self._open.values()) / self._workers)
        return f"about {duration(seconds)} left"


class _Seat:
    """One worker process, and the queue of its bars.

    A pool of one each, so that a killed worker takes no other cell with it and its cell is known.
    """

    def __init__(self, alive: Connection, threads: int, device: str | None) -> None:
        context = get_context("spawn")
        self.device = device
        self._updates: Queue[BarUpdate] = context.Queue()
        self._pool = ProcessPoolExecutor(1, context, _start_worker, (self._updates, alive, threads, device))

    def submit(self, cell: Cell, fresh: bool) -> Future[Outcome]:
        # The first submit starts the process, which inherits what is blocked: control-C would end it in the middle of
        # its imports. Here it is only held back until the process stands.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(run_cell, cell, fresh=fresh)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def show(self, bars: WorkerBars) -> None:
        while True:
            try:
                bars.apply(self._updates.get_nowait())
            except Empty:
                return

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _start_worker(updates: Queue[BarUpdate], alive: Connection, threads: int, device: str | None) -> None:
    """Set a worker up: its GPU, its threads, bars to the parent, an end when the parent is gone or wants it."""
    if device is not None:
        # Read when torch first asks for a GPU, and torch is imported below.
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    # Control-C reaches the whole group of processes; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        try:
            alive.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    updates.cancel_join_thread()
    send_bars_to(updates)
    import torch

    torch.set_num_threads(threads)


def run_cell(cell: Cell, *, fresh: bool = False) -> Outcome:
    """Run a cell in this process; a failure is returned, not raised."""
    begin = time.monotonic()
    try:
        run = _run(cell, fresh)
    except ClinstackError as error:
        return Outcome(time.monotonic() - begin, failure=str(error))
    except OSError as error:
        # Such as a full disk.
        return Outcome(time.monotonic() - begin, failure=f"{error.strerror or error}: {error.filename}")
    except Exception as error:
        # The kind and the place only: its message could quote data.
        place = extract_tb(error.__traceback__)[-1]
        own = Path(cell.recipe.run) / "recipe.yaml"
        more = f"; `clinstack {cell.recipe.stage} {own}` shows all of it" if own.is_file() else ""
        failure = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}{more}"
        return Outcome(time.monotonic() - begin, failure=failure)
    return Outcome(time.monotonic() - begin, _first_figure(run))


def _run(cell: Cell, fresh: bool) -> Run | Path:
    """Run the stage of a cell; return its Run, or the folder of one that was a trial of its search already."""
    if cell.best_of is None:
        return _stage_of(cell.recipe)(fresh)
    recipe = recipe_with_best(cell.best_of, cell.recipe)
    return adopt_trial(cell.best_of, recipe) or _stage_of(recipe)(fresh)


def _stage_of(recipe: StageRecipe) -> Callable[[bool], Run]:
    from clinstack.stages.finetune import finetune
    from clinstack.stages.instruct import instruct
    from clinstack.stages.pretrain import pretrain
    from clinstack.sweep.sweep import sweep

    if isinstance(recipe, PretrainRecipe):
        return lambda fresh: pretrain(recipe, fresh=fresh)
    if isinstance(recipe, FinetuneRecipe):
        return lambda fresh: finetune(recipe, fresh=fresh)
    if isinstance(recipe, InstructRecipe):
        return lambda fresh: instruct(recipe, fresh=fresh)
    if isinstance(recipe, SweepRecipe):
        return lambda fresh: sweep(recipe, fresh=fresh)
    raise InputError(f"a cell is a pretrain, finetune, instruct or sweep recipe, not {recipe.stage}")


def _first_figure(run: Run | Path) -> str:
    metrics = read_json((run if isinstance(run, Path) else run.folder) / "metrics.json")
    if "best" in metrics:
        value = metrics["best"]["value"]
        return f"best validation {metrics['metric']} {value:.3f} of {metrics['trials']['total']} trials"
    test = metrics["test"]
    if "adapted" in test:
        before, after = (test[name]["perplexity"]["value"] for name in ("base", "adapted"))
        return f"perplexity {before:.1f} -> {after:.1f}"
    auroc = test[test["primary"]]["value"]
    return "AUROC unknown" if auroc is None else f"AUROC {auroc:.3f}"


def _check_needs(cells: Sequence[Cell]) -> None:
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: two cells have this name.")
    settled: set[str] = set()
    left = list(cells)
    while ready := [cell for cell in left if not {*cell.needs, *cell.after} & {*names} - settled]:
        settled |= {cell.name for cell in ready}
        left = [cell for cell in left if cell not in ready]
    if left:
        raise InputError(f"{', '.join(cell.name for cell in left)}: these cells need each other in a circle.")


def _lost_need(cell: Cell, outcomes: dict[str, Outcome]) -> str | None:
    return next((name for name in cell.needs if name in outcomes and outcomes[name].failure is not None), None)


def _open_needs(cell: Cell, waiting: Sequence[Cell], running: dict[Future[Outcome], tuple[Cell, _Seat]]) -> set[str]:
    unsettled = {other.name for other in waiting} | {other.name for other, _ in running.values()}
    return {*cell.needs, *cell.after} & unsettled
