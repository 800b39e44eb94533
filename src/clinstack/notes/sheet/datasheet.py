"""The data sheet beside each prepared folder: what it holds, where it comes from, what it is not.

Its headings are those of Gebru et al. 2021, "Datasheets for Datasets". `DATASHEET.md` is for people and
`datasheet.json` holds the same figures for programs. Neither holds the text of a note.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clinstack import __version__
from clinstack.database import connect
from clinstack.errors import InputError
from clinstack.files import read_json, write_json, write_text
from clinstack.notes.prepared import quoted
from clinstack.notes.sheet.cohort_figures import (
    CATEGORIES,
    COLUMNS,
    MEASURES,
    NOT_RECORDED,
    OLDEST,
    describe_admissions,
)
from clinstack.notes.sheet.small_cells import hide_small_cells
from clinstack.notes.sheet.task_figures import SHOWN_CLASSES, describe_task
from clinstack.notes.sheet.text_lengths import CONTEXTS, TokenCounter
from clinstack.notes.splits import SPLITS
from clinstack.tasks import OUTCOMES

SAMPLE = 500
"""Texts of each task and split whose tokens are counted."""
SMALL_CELLS = 10
_SEED = 0
_SOURCES = {"mimic3": "MIMIC-III", "mimic4": "MIMIC-IV", "fhir": "FHIR resources", "table": "a hospital's own tables"}
_OWN_KEYS = ("source", "synthetic", "tables", "counts", "clinstack", "prepared")
"""Keys of prepare.json that the sheet shows in a place of their own; the others are its settings."""
_MOST_NOTE_TYPES = 40


class TaskDescriptions:
    """Describes the examples of tasks beside other work, each as soon as it is written.

    What it does is decompressing, counting and tokenizing in libraries, while a builder runs Python.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1)
        self._counter = TokenCounter("embedded")
        self._found: dict[str, Future[dict[str, Any]]] = {}

    def start(self, folder: Path) -> None:
        """Describe ``examples/<task>``, with the settings that `write_datasheet` has when it is not told others."""
        self._found[folder.name] = self._worker.submit(describe_task, folder, self._counter, SAMPLE, _SEED, SMALL_CELLS)

    def results(self) -> dict[str, dict[str, Any]]:
        """Wait for the descriptions and return them by task."""
        return {name: found.result() for name, found in self._found.items()}

    def close(self) -> None:
        """Leave out what was not begun."""
        self._worker.shutdown(cancel_futures=True)


def write_datasheet(
    folder: Path,
    tokenizer: str = "embedded",
    *,
    small_cells: int = SMALL_CELLS,
    sample: int = SAMPLE,
    progress: Callable[[str, int, int], None] | None = None,
    described: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """Write ``DATASHEET.md`` and ``datasheet.json`` into a prepared folder.

    Parameters
    ----------
    folder : Path
        Written by `clinstack prepare`.
    tokenizer : str
        ``embedded``, or a folder with ``tokenizer.json``.
    small_cells : int
        Counts of people and labels from 1 to one below it are hidden; 1 shows all.
    sample : int
        Texts of each task and split whose tokens are counted.
    progress : callable, optional
        Called with a description, the texts done and the texts in all.
    described : dict, optional
        What `TaskDescriptions` found of the tasks already.

    Returns
    -------
    Path
        Of ``DATASHEET.md``.

    Raises
    ------
    InputError
        If the folder, a table in it or the tokenizer is wrong, or a number is below 1.
    """
    figures = collect_figures(folder, tokenizer, small_cells, sample, progress, described)
    write_json(folder / "datasheet.json", figures)
    write_text(folder / "DATASHEET.md", render(figures))
    return folder / "DATASHEET.md"


def collect_figures(
    folder: Path,
    tokenizer: str,
    small_cells: int,
    sample: int,
    progress: Callable[[str, int, int], None] | None = None,
    known: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the content of ``datasheet.json``; arguments and errors as in `write_datasheet`."""
    for name, number in (("small_cells", small_cells), ("sample", sample)):
        if number < 1:
            raise InputError(f"{name} is {number}; use 1 or more.")
    facts_file = folder / "prepare.json"
    if not facts_file.is_file():
        raise InputError(f"{facts_file} is missing; name a folder written by `clinstack prepare`.")
    facts = read_json(facts_file)
    tasks = sorted((path.parent for path in (folder / "examples").glob("*/task.yaml")), key=_order)
    counter = TokenCounter(tokenizer)
    texts = sum(pq.read_metadata(file).num_rows for task in tasks for file in sorted(task.glob("*.parquet")))
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress("Measuring texts", done, texts)

    described = {
        task.name: (known or {}).get(task.name) or describe_task(task, counter, sample, _SEED, small_cells, advance)
        for task in tasks
    }
    with tempfile.TemporaryDirectory() as spill, connect() as connection:
        connection.execute("SET memory_limit = '256MB'; SET threads = 1")
        connection.execute(f"SET temp_directory = '{quoted(Path(spill))}'")
        counts = _counts(connection, folder, tasks, small_cells)
        admissions = folder / "admissions.parquet"
        cohort = describe_admissions(connection, admissions, small_cells) if admissions.is_file() else None
    when = facts.get("prepared") or datetime.fromtimestamp(facts_file.stat().st_mtime, UTC).date().isoformat()
    settings = {key: _setting(value) for key, value in facts.items() if key not in _OWN_KEYS}
    return {
        "format_version": 1,
        "source": str(facts.get("source", "unknown")),
        "synthetic": bool(facts.get("synthetic")),
        "prepared": str(when),
        "clinstack": {"prepared_by": str(facts.get("clinstack", "unknown")), "described_by": __version__},
        "settings": {key: value for key, value in settings.items() if value is not None},
        "small_cells": small_cells,
        "tokenizer": {"name": counter.name, "vocabulary": counter.vocabulary, "sample": sample, "seed": _SEED},
        "counts": counts,
        "cohort": cohort,
        "tasks": described,
        "tables": facts.get("tables") or {},
    }


def _order(task: Path) -> tuple[int, str]:
    """Put the five outcomes first, in the order of the paper's tables."""
    known = list(OUTCOMES)
    return (known.index(task.name) if task.name in known else len(known), task.name)


def _setting(value: Any) -> str | int | float | None:
    """Return a setting of prepare.json as the sheet shows it, without passwords; None for what it leaves out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(item, str | int) for item in value):
        value = ", ".join(map(str, value))
    if isinstance(value, str):
        return re.sub(r"://[^@/\s]+@", "://", value)
    return value if isinstance(value, int | float) else None


def _counts(connection: Any, folder: Path, tasks: list[Path], small_cells: int) -> dict[str, Any]:
    """Count patients, encounters and notes by split; make the table ``encounters`` of all examples."""
    splits = folder / "splits.parquet"
    if not splits.is_file():
        raise InputError(f"{splits} is missing; name a folder written by `clinstack prepare`.")
    connection.execute(
        f"CREATE TEMP TABLE splits AS SELECT patient_id::VARCHAR AS patient_id, split FROM '{quoted(splits)}'"
    )
    connection.execute("CREATE TEMP TABLE encounters (encounter_id VARCHAR, patient_id VARCHAR, split VARCHAR)")
    files = [(task / f"{split}.parquet", split) for task in tasks for split in SPLITS]
    selects = " UNION ".join(
        f"SELECT encounter_id::VARCHAR, patient_id::VARCHAR, '{split}' FROM '{quoted(file)}' "
        "WHERE encounter_id IS NOT NULL"
        for file, split in files
        if "encounter_id" in pq.read_schema(file).names
    )
    if selects:
        connection.execute(f"INSERT INTO encounters {selects}")
    result: dict[str, Any] = {
        "patients": _by_split(connection, "SELECT split, count(*) FROM splits GROUP BY split", small_cells),
        "encounters": _by_split(connection, "SELECT split, count(*) FROM encounters GROUP BY split", small_cells),
        "notes": None,
    }
    notes = sorted((folder / "notes").glob("*.parquet"))
    if notes:
        rows = connection.execute(
            "SELECT coalesce(note_type, 'no type'), split, count(*) FROM "
            f"read_parquet([{', '.join(repr(str(path)) for path in notes)}], union_by_name = true) AS notes "
            "LEFT JOIN splits ON splits.patient_id = notes.patient_id::VARCHAR GROUP BY ALL"
        ).fetchall()
        result["notes"] = _note_types(rows, small_cells)
    return result


def _by_split(connection: Any, query: str, small_cells: int) -> dict[str, Any]:
    found = dict(connection.execute(query).fetchall())
    row = [found.get(split, 0) for split in SPLITS]
    return dict(zip(COLUMNS, hide_small_cells([[*row, sum(row)]], small_cells, total_column=True)[0], strict=True))


def _note_types(rows: list[tuple[str, str | None, int]], small_cells: int) -> list[dict[str, Any]]:
    """Lay out notes by type and split, the most frequent type first, and their sum last."""
    counts: dict[str, dict[str | None, int]] = {}
    for kind, split, count in rows:
        counts.setdefault(str(kind)[:60], {})[split] = count
    ranked = sorted(counts, key=lambda kind: (-sum(counts[kind].values()), kind))
    if len(ranked) > _MOST_NOTE_TYPES + 1:
        rest = ranked[_MOST_NOTE_TYPES:]
        ranked = [*ranked[:_MOST_NOTE_TYPES], f"{len(rest)} other types"]
        counts[ranked[-1]] = {split: sum(counts[kind].get(split, 0) for kind in rest) for split in SPLITS}
    table = [[counts[kind].get(split, 0) for split in SPLITS] for kind in ranked]
    table = [[*row, sum(row)] for row in table]
    table.append([sum(column) for column in zip(*table, strict=True)])
    shown = hide_small_cells(table, small_cells, total_column=True, total_row=True)
    return [
        {"note_type": kind, **dict(zip(COLUMNS, row, strict=True))}
        for kind, row in zip([*ranked, "all"], shown, strict=True)
    ]


def render(figures: dict[str, Any]) -> str:
    """Return the Markdown of a data sheet from the content of ``datasheet.json``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("clinstack.notes.sheet", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Markdown; `cell` escapes what could break a table
    )
    environment.filters |= {"cell": _cell, "share": _share, "count": _count, "number": _number}
    return environment.get_template("datasheet.md.j2").render(
        **figures,
        changes=_changes(figures["tasks"]),
        source_name=_SOURCES.get(figures["source"], figures["source"]),
        from_mimic=figures["source"] in ("mimic3", "mimic4"),
        splits=SPLITS,
        columns=COLUMNS,
        contexts=CONTEXTS,
        measures={name: title for name, (title, *_) in MEASURES.items()},
        categories=CATEGORIES,
        not_recorded=NOT_RECORDED,
        oldest=OLDEST,
        shown_classes=SHOWN_CLASSES,
    )


def _changes(tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the changes of all tasks in one table: each with its rows by task, none where a task does not know it."""
    table: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        for change in task["changes"]:
            key = str(change.get("fix") or change.get("what"))
            row = table.setdefault(
                key, {"what": change.get("what") or key, "quirk": change.get("quirk", "–"), "rows": {}}
            )
            row["rows"][name] = change.get("rows", "–")
    return list(table.values())


def _cell(value: Any) -> str:
    """Return text as it stands in a cell of a Markdown table, or a number with its thousands apart."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = re.sub(r"([|*`\\\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(value).split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def _count(value: Any, total: Any) -> str:
    """Return a count with its share of a total; a hidden one without."""
    if isinstance(value, str) or isinstance(total, str) or not total:
        return _cell(value)
    return f"{value:,} ({100 * value / total:.1f} %)"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | int | None) -> str:
    """Return a measure with one decimal, a count without, as they stand in JSON."""
    return "–" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
