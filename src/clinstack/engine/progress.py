"""Progress bars with rate and time left, on standard error.

A worker process has no terminal of its own: it sends what its bars do to the process that started it, which shows the
bars of all workers together.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)
_numbers = itertools.count()


def say_notes(notes: Iterable[str]) -> None:
    """Show what a person should know before the work goes on, a line each."""
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)


@dataclass(frozen=True)
class BarUpdate:
    """What happened to a worker's bar. ``total`` is given when it begins, ``finished`` when it ends."""

    bar: tuple[int, int]
    description: str = ""
    total: int | None = None
    done: int = 0
    unit: str = ""
    steps: int = 0
    units: int = 0
    note: str = ""
    finished: bool = False


_sink: Queue[BarUpdate] | None = None


def send_bars_to(queue: Queue[BarUpdate]) -> None:
    """In a worker process: send updates into ``queue`` and show nothing."""
    global _sink
    _sink = queue
    console.quiet = True


class _Rate(ProgressColumn):
    """Units (tokens, notes) a second, which are not what the bar counts."""

    def render(self, task: Task) -> Text:
        units, seconds = task.fields["units"], task.elapsed
        if not units or not seconds:
            return Text("")
        return Text(f"{units / seconds:,.0f} {task.fields['unit']}/s", style="cyan")


def new_progress(*, disable: bool = False) -> Progress:
    """Return the display that all bars of clinstack have."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        disable=disable,
    )


class Bar:
    """One running bar."""

    def __init__(self, progress: Progress | None, update: BarUpdate) -> None:
        self._progress = progress
        self._key = update.bar
        self._units = 0
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(
                update.description, total=update.total, completed=update.done, units=0, unit=update.unit, note=""
            )
        elif _sink is not None:
            _sink.put(update)

    def advance(self, units: int = 0, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` more as done, in which ``units`` (tokens or notes) were read."""
        self._units += units
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=steps, units=self._units, note=note)
        elif _sink is not None:
            _sink.put(BarUpdate(self._key, steps=steps, units=self._units, note=note))

    def finish(self) -> None:
        """Tell the other process that the bar can go."""
        if self._progress is None and _sink is not None:
            _sink.put(BarUpdate(self._key, finished=True))


@contextmanager
def progress_bar(description: str | None, total: int, *, done: int = 0, unit: str = "tokens") -> Iterator[Bar]:
    """Show a bar while the block runs.

    Parameters
    ----------
    description : str or None
        What is being done; None shows nothing, for work inside another bar's.
    total, done : int
        Steps in all, and steps that an earlier start has done.
    unit : str
        Of the rate.
    """
    update = BarUpdate((os.getpid(), next(_numbers)), description or "", total, done, unit)
    if _sink is None or description is None:
        with new_progress(disable=description is None) as progress:
            yield Bar(progress, update)
        return
    bar = Bar(None, update)
    try:
        yield bar
    finally:
        bar.finish()


@contextmanager
def named_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback ``(description, done, total)`` that keeps one bar for each description."""
    tasks: dict[str, TaskID] = {}
    progress = new_progress()

    def update(description: str, done: int, total: int) -> None:
        # Started by the first bar: input that is refused before it leaves no trace of a display.
        progress.start()
        if description not in tasks:
            tasks[description] = progress.add_task(description, total=total, units=0, unit="", note="")
        progress.update(tasks[description], completed=done, total=total)

    try:
        yield update
    finally:
        if tasks:
            progress.stop()


class WorkerBars:
    """Shows the bars of worker processes in one display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[int, int], TaskID] = {}

    def apply(self, update: BarUpdate) -> None:
        """Show one update."""
        if update.total is not None:
            self._tasks[update.bar] = self._progress.add_task(
                "  " + update.description,
                total=update.total,
                completed=update.done,
                units=0,
                unit=update.unit,
                note="",
            )
            return
        task = self._tasks.get(update.bar)
        if task is None:
            return
        if update.finished:
            self._progress.remove_task(task)
            del self._tasks[update.bar]
        else:
            fields: dict[str, Any] = {"units": update.units, "note": update.note}
            self._progress.update(task, advance=update.steps, **fields)
