"""Runs and folders of Runs beside each other: how their recipes differ, and what each reached."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.evaluate.predictions import PREDICTION_COLUMNS, read_split
from clinstack.report.answers import name_runs
from clinstack.report.answers_beside import example_table
from clinstack.report.build import ReportPaths, write_report
from clinstack.report.collect import ReportData, RunRecord, StackRow, read_run
from clinstack.report.pages import Section
from clinstack.report.rows import arranged, collect
from clinstack.report.study_file import STUDY_FILE, collect_study
from clinstack.report.summary import summarise
from clinstack.report.tables.cells import Cell, Table, count, figure
from clinstack.report.tables.names import task_name
from clinstack.report.tables.outcomes import METRIC_NAMES
from clinstack.report.tables.runs import recipe_table

TITLE = "Runs side by side"
FOLDER = "comparison"
_MOST_RECIPES = 8
"""Runs whose recipes fit beside each other."""


def build_comparison(
    folders: Sequence[Path],
    out: Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
    *,
    examples: int = 0,
    with_note_text: bool = False,
) -> ReportPaths:
    """Write ``report.html``, ``report.md`` and ``report.json`` of several folders beside each other.

    Parameters
    ----------
    folders : sequence of Path
        Each a Run, a folder of Runs, or a study's folder. The first Run is the one that the others are held against.
    out : Path, optional
        Folder to write into; ``comparison`` in the folder that holds them all by default.
    resamples, seed : int
        Of the bootstrap over patients.
    examples, with_note_text : int, bool
        As `build_report` takes them.

    Raises
    ------
    InputError
        A folder stands twice or in another, or holds no finished Run, or a Run's file cannot be read.
    """
    parent = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    names = _names(folders, parent)
    data = _beside(parent, names)
    runs = _named_runs(data)
    unpaired = [task for task, stacks in data.finetune.items() if not _same_examples(stacks)]
    paired = replace(
        data,
        finetune={task: stacks for task, stacks in data.finetune.items() if task not in unpaired},
        tasks={task: one for task, one in data.tasks.items() if task not in unpaired},
    )
    sentences = [
        f"{task_name(task)} is not compared in pairs: the Runs were tested on other examples. Their own figures follow."
        for task in unpaired
    ]
    tables = [_figure_table(data)]
    for stage in ("pretrain", "finetune"):
        members = {name: run for name, run in runs.items() if run.stage == stage}
        if 2 <= len(members) <= _MOST_RECIPES:
            tables.append(recipe_table(members, stage))
    section = Section("side-by-side", "Side by side", sentences, [table for table in tables if table.rows])
    command = f"clinstack report {' '.join(names.values())}"
    summary = summarise(paired, resamples, seed)
    return write_report(
        summary,
        parent / FOLDER if out is None else out,
        TITLE,
        [command],
        sections=[section],
        examples=example_table(summary.answers, examples, with_note_text=with_note_text, seed=seed),
        further={"unpaired": unpaired},
    )


def _names(folders: Sequence[Path], parent: Path) -> dict[Path, str]:
    """Return each folder's name in the folder that holds them all."""
    names: dict[Path, str] = {}
    for folder in folders:
        place = folder.resolve()
        inside = [other for other in names if other == place or other in place.parents or place in other.parents]
        if inside or place == parent:
            raise InputError(f"{folder} stands twice, or one folder lies in another; name folders side by side.")
        names[place] = place.relative_to(parent).as_posix()
    return names


def _beside(parent: Path, names: Mapping[Path, str]) -> ReportData:
    rows: dict[str, StackRow] = {}
    finetune: list[tuple[str, RunRecord]] = []
    pretrain: dict[str, RunRecord] = {}
    unfinished: list[RunRecord] = []
    answers: list[RunRecord] = []
    further: list[RunRecord] = []
    for folder, name in names.items():
        part = collect_study(folder) if (folder / STUDY_FILE).is_file() else collect(folder)
        single = (folder / "run.json").is_file()

        def named(label: str, single: bool = single, name: str = name) -> str:
            return name if single else f"{name}: {label}"

        for key, row in part.rows.items():
            label = f"{row.base}, {row.name}" if len(part.bases) > 1 else row.name
            rows[named(key)] = StackRow(named(key), row.base, row.spec, named(label), row.paper)
        for stacks in part.finetune.values():
            finetune += [(named(key), _renamed(run, parent)) for key, runs in stacks.items() for run in runs]
        pretrain |= {named(label): _renamed(run, parent) for label, run in part.pretrain.items()}
        unfinished += [_renamed(run, parent) for run in part.unfinished]
        answers += [_renamed(run, parent) for run in part.answers.values()]
        further += [_renamed(run, parent) for run in part.further]
    return arranged(
        parent,
        pretrain,
        finetune,
        rows,
        unfinished=unfinished,
        reference=next(iter(rows), None),
        answers=name_runs(answers),
        further=further,
    )


def _renamed(run: RunRecord, parent: Path) -> RunRecord:
    return read_run(run.folder, parent)


def _named_runs(data: ReportData) -> dict[str, RunRecord]:
    """Return the Runs whose recipes are compared: the first seed of each row, with the task where there are several."""
    several = any(len({run.task for run in _of_row(data, key)}) > 1 for key in data.rows)
    named = {
        f"{data.rows[key].name}, {task_name(task)}" if several else data.rows[key].name: runs[0]
        for task, stacks in data.finetune.items()
        for key, runs in stacks.items()
    }
    return data.pretrain | named


def _of_row(data: ReportData, key: str) -> list[RunRecord]:
    return [run for stacks in data.finetune.values() for run in stacks.get(key, [])]


def _same_examples(stacks: Mapping[str, Sequence[RunRecord]]) -> bool:
    """Whether all Runs of a task were tested on the same examples."""
    first: list[Any] | None = None
    for run in (run for runs in stacks.values() for run in runs):
        table = read_split(run.folder / "predictions.parquet", PREDICTION_COLUMNS, "test").sort_by("example_id")
        examples = table["example_id"].to_pylist()
        if first is not None and examples != first:
            return False
        first = examples
    return True


def _figure_table(data: ReportData) -> Table:
    """Return what each finetuned Run says of itself."""
    rows = []
    for task, stacks in data.finetune.items():
        for key, run in ((key, run) for key, runs in stacks.items() for run in runs):
            test = run.metrics.get("test")
            if not isinstance(test, dict) or "primary" not in test:
                continue
            primary = str(test["primary"])
            cells = [
                Cell(task_name(task)),
                Cell("–" if run.seed is None else str(run.seed)),
                Cell(METRIC_NAMES.get(primary, primary)),
                figure(test[primary]),
                figure(test.get("auprc")),
                count(test.get("rows")),
                count(test.get("patients")),
            ]
            rows.append((data.rows[key].name, cells))
    return Table(
        "figures",
        "What each run measured",
        "As it stands in each run's metrics.json, with 95 % intervals over its own test patients.",
        ["Run", "Task", "Seed", "Metric", "AUROC", "AUPRC", "Examples", "Patients"],
        rows,
    )
