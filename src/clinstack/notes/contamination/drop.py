"""Leaving out what `clinstack.notes.contamination.find` found: a folder is exchanged as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory, write_json
from clinstack.notes.contamination.compared_files import prepare_facts
from clinstack.notes.read import TOKENS
from clinstack.tasks import Task

_STEP = "shares nothing with a held-out example"


def check_droppable(rows: Mapping[Path, set[int]]) -> None:
    """Raise InputError if leaving out these rows would leave a file without any."""
    for file, leaving in rows.items():
        if leaving and len(leaving) >= pq.read_metadata(file).num_rows:
            raise InputError(f"--drop would leave {file} without rows; split the patients anew, nothing was changed.")


def drop_rows(folder: Path, rows: Mapping[Path, set[int]], check: Mapping[str, Any]) -> dict[str, int]:
    """Write a prepared folder again without some rows, in one step.

    Files that stay as they are get a second name in the new folder, so that only what changes is written. Whoever kills
    this leaves the old folder, or the new one.

    Parameters
    ----------
    folder : Path
        The prepared folder.
    rows : mapping of Path to set of int
        Rows of files in ``folder`` to leave out; files without such rows stay.
    check : mapping
        Added to ``checks`` in ``prepare.json``, with the rows ``removed`` of each file.

    Returns
    -------
    dict of str to int
        Rows removed by file, relative to ``folder``.
    """
    removed = {str(file.relative_to(folder)): len(leaving) for file, leaving in sorted(rows.items()) if leaving}
    facts = prepare_facts(folder)
    with replacing_directory(folder.resolve()) as new:
        for here, names, files in os.walk(folder):
            if Path(here) == folder and TOKENS in names:
                names.remove(TOKENS)  # made from the notes as they were; what is dropped could be read in them
            place = new / Path(here).relative_to(folder)
            place.mkdir(exist_ok=True)
            for name in [*files, *(name for name in names if (Path(here) / name).is_symlink())]:
                source = Path(here) / name
                if rows.get(source):
                    _write_without(source, place / name, rows[source])
                elif source.suffix == ".parquet" and not source.is_symlink():
                    _link(source, place / name)
                else:
                    shutil.copy2(source, place / name, follow_symlinks=False)
        for task in sorted({Path(name).parent for name in removed if name.startswith("examples")}):
            _add_step(new / task, {Path(name).stem for name in removed if Path(name).parent == task}, removed, task)
        _count_again(facts, new, removed)
        facts.setdefault("checks", []).append({**check, "removed": removed})
        write_json(new / "prepare.json", facts)
        if (new / "DATASHEET.md").is_file():
            from clinstack.notes.sheet.datasheet import write_datasheet

            write_datasheet(new)
    return removed


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _write_without(source: Path, target: Path, leaving: set[int]) -> None:
    first = 0
    gone = pa.array(sorted(leaving), pa.int64())
    with (
        pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as table,
        pq.ParquetWriter(target, table.schema_arrow, compression="zstd") as writer,
    ):
        for batch in table.iter_batches(batch_size=2048):
            places = pa.array(range(first, first + len(batch)), pa.int64())
            first += len(batch)
            kept = batch.filter(pc.invert(pc.is_in(places, gone)))
            if len(kept):
                writer.write_batch(kept)


def _add_step(target: Path, splits: set[str], removed: Mapping[str, int], task: Path) -> None:
    file = target / "attrition.json"
    if not file.is_file():
        return
    content = read_json(file)
    gone = sum(removed[str(task / f"{split}.parquet")] for split in splits)
    kept = content["steps"][-1]["kept"] - gone if content["steps"] else _rows(target)
    content["steps"].append({"step": _STEP, "kept": kept, "removed": gone})
    for split in splits:
        content.setdefault("splits", {})[split] = _summary(target / f"{split}.parquet", Task.load(target))
    write_json(file, content)


def _summary(file: Path, task: Task) -> dict[str, Any]:
    """Count the rows, patients and labels of one file of examples, as the builders do."""
    table = pq.read_table(file, columns=["patient_id", "label"])
    labels = table["label"].combine_chunks()
    found = Counter((labels.flatten() if task.kind == "multilabel" else labels).to_pylist())
    keys = task.classes if task.kind == "multilabel" else range(len(task.classes))
    counts = {name: found.get(key, 0) for name, key in zip(task.classes, keys, strict=True)}
    return {"rows": table.num_rows, "patients": pc.count_distinct(table["patient_id"]).as_py(), "labels": counts}


def _rows(target: Path) -> int:
    return sum(int(pq.read_metadata(file).num_rows) for file in target.glob("*.parquet"))


def _count_again(facts: dict[str, Any], new: Path, removed: Mapping[str, int]) -> None:
    """Bring those figures of ``counts`` in line that speak of the files written again."""
    counts = facts.get("counts")
    if not isinstance(counts, dict):
        return
    notes = sum(count for name, count in removed.items() if name.startswith("notes"))
    if isinstance(counts.get("notes"), int):
        counts["notes"] -= notes
    examples = counts.get("examples")
    for name in removed:
        parts = Path(name).parts
        if parts[0] == "examples" and isinstance(examples, dict) and isinstance(examples.get(parts[1]), dict):
            examples[parts[1]][Path(name).stem] = int(pq.read_metadata(new / name).num_rows)
