"""The worker processes of a sweep on this machine. One that is killed takes no trial with it: another goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from queue import Empty
from typing import TYPE_CHECKING

from clinstack.engine.progress import BarUpdate, WorkerBars, console, new_progress, send_bars_to
from clinstack.errors import ClinstackError, InputError
from clinstack.processes import end_with_parent
from clinstack.sweep.propose import number_of_trials
from clinstack.sweep.space import Space
from clinstack.sweep.storage import open_study
from clinstack.sweep.trials import SweepJob, work

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class _Worker:
    """One process, with a queue for its bars and a pipe for why it failed.

    Each has its own: one that is killed while it writes would hold a shared one locked for ever.
    """

    def __init__(self, job: SweepJob) -> None:
        context = get_context("spawn")
        self.updates: Queue[BarUpdate] = context.Queue()
        self._failure, child = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=_main, args=(job, self.updates, child))
        self.process.start()
        child.close()

    def show(self, bars: WorkerBars) -> None:
        while True:
            try:
                bars.apply(self.updates.get_nowait())
            except Empty:
                return

    def failure(self) -> ClinstackError | None:
        """Return what the worker could not do; None when it is at work, done or killed."""
        try:
            kind, message = self._failure.recv() if self._failure.poll() else (None, "")
        except EOFError:
            return None
        return None if kind is None else (InputError if kind == "InputError" else ClinstackError)(message)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.updates.close()


def run_workers(job: SweepJob, on_trial: Callable[[FrozenTrial], None]) -> None:
    """Run the trials of a sweep on ``job.recipe.workers`` processes of one thread each.

    Parameters
    ----------
    job : SweepJob
    on_trial : callable
        Gets each trial that is finished, also those that other machines finish.

    Raises
    ------
    ClinstackError
        If a trial fails, or every worker was killed. What is done stays done.
    """
    space = Space.of(job.recipe)
    total = number_of_trials(job.recipe, space)
    workers: list[_Worker] = []
    told: set[int] = set()
    with open_study(job.recipe, job.folder, job.study, space.validations) as (study, _), new_progress() as progress:
        whole = progress.add_task("Trials", total=total, units=0, unit="", note="")
        bars = WorkerBars(progress)

        def tell() -> None:
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in told:
                    told.add(trial.number)
                    progress.advance(whole)
                    on_trial(trial)

        try:
            workers.extend(_Worker(job) for _ in range(min(job.recipe.workers, total)))
            killed = 0
            while any(worker.process.is_alive() for worker in workers):
                for worker in workers:
                    worker.show(bars)
                    failure = worker.failure()
                    if failure is not None:
                        raise failure
                now = sum(worker.process.exitcode not in {None, 0} for worker in workers)
                if now > killed:
                    console.print(f"[yellow]{now} of {len(workers)} workers ended early; the others take its trial.")
                    killed = now
                tell()
                time.sleep(0.2)
            for worker in workers:
                failure = worker.failure()
                if failure is not None:
                    raise failure
            tell()
        finally:
            # In the middle of a trial too: each Run can be killed at any moment.
            for worker in workers:
                worker.stop()
    if len(told) < total:
        raise ClinstackError("All workers were killed, perhaps for want of memory. Start again: the sweep goes on.")


def _main(job: SweepJob, updates: Queue[BarUpdate], failure: Connection) -> None:
    # Control-C reaches the whole group of processes; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    send_bars_to(updates)
    import torch

    torch.set_num_threads(1)
    try:
        work(job)
    except ClinstackError as error:
        failure.send((type(error).__name__, str(error)))
        raise SystemExit(1) from None
