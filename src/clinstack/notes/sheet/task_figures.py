"""What a task's examples hold: rows, labels and lengths of each split, attrition, and what was put right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.notes.sheet.cohort_figures import COLUMNS
from clinstack.notes.sheet.small_cells import hide_small_cells
from clinstack.notes.sheet.text_lengths import TokenCounter, measure_texts
from clinstack.notes.splits import SPLITS
from clinstack.tasks import Task

SHOWN_CLASSES = 20
"""How many of the most frequent, and of the rarest, classes of a multilabel task are listed."""


def describe_task(
    folder: Path,
    counter: TokenCounter,
    sample: int,
    seed: int,
    small_cells: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Describe the examples of one task.

    Parameters
    ----------
    folder : Path
        ``examples/<task>``.
    counter : TokenCounter
    sample, seed : int
        Texts of each split whose tokens are counted, and what draws them.
    small_cells : int
        Counts of labels from 1 to one below it are hidden.
    progress : callable, optional
        Called with the number of texts measured since the last call.

    Returns
    -------
    dict
        ``task`` (as in task.yaml); ``rows``, ``patients``, ``labels`` and ``lengths`` by split; ``attrition`` and
        ``changes`` as in attrition.json.

    Raises
    ------
    InputError
        If a file or column is missing.
    """
    task = Task.load(folder)
    rows, patients = dict[str, int](), dict[str, int]()
    labels: dict[str, pa.ChunkedArray] = {}
    lengths = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        if not path.is_file():
            raise InputError(f"{path} is missing; name a folder written by `clinstack prepare`.")
        missing = {"example_id", "patient_id", "text", "label"} - set(pq.read_schema(path).names)
        if missing:
            raise InputError(f"{path}: the column {sorted(missing)[0]} is missing; prepare the folder again.")
        table = pq.read_table(path, columns=["patient_id", "label"])
        rows[split] = table.num_rows
        patients[split] = pc.count_distinct(table["patient_id"]).as_py()
        labels[split] = table["label"]
        lengths[split] = measure_texts(path, counter, sample, seed, progress)
    attrition = read_json(folder / "attrition.json") if (folder / "attrition.json").is_file() else {}
    describe = _multilabel if task.kind == "multilabel" else _single
    return {
        "task": task.to_dict() | {"classes": len(task.classes)},
        "rows": rows,
        "patients": patients,
        "labels": describe(task, labels, small_cells),
        "lengths": lengths,
        "attrition": attrition.get("steps", []),
        "changes": attrition.get("changes", []),
    }


def _counts(values: pa.ChunkedArray) -> Counter[Any]:
    """Count values without making Python objects of millions of rows."""
    return Counter({item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()})


def _single(task: Task, labels: dict[str, pa.ChunkedArray], small_cells: int) -> dict[str, Any]:
    """Count every class of a binary or multiclass task."""
    found = {split: _counts(values) for split, values in labels.items()}
    table = [[found[split][index] for split in SPLITS] for index in range(len(task.classes))]
    table = [[*row, sum(row)] for row in table]
    totals = [sum(column) for column in zip(*table, strict=True)]
    shown = hide_small_cells([*table, totals], small_cells, total_column=True, total_row=True)
    return {
        "classes": [
            {"class": name, **dict(zip(COLUMNS, row, strict=True))}
            for name, row in zip(task.classes, shown[:-1], strict=True)
        ],
        "labelled": dict(zip(COLUMNS, shown[-1], strict=True)),
    }


def _multilabel(task: Task, labels: dict[str, pa.ChunkedArray], small_cells: int) -> dict[str, Any]:
    """Count the classes of a multilabel task: the most frequent, the rarest, and those that a split does not have."""
    found = {split: _counts(pc.list_flatten(values)) for split, values in labels.items()}
    ranked = sorted(task.classes, key=lambda code: (-found["train"][code], code))
    few = len(ranked) <= 2 * SHOWN_CLASSES
    per_example = {split: pc.list_value_length(values).to_numpy() for split, values in labels.items()}
    absent = {split: [code for code in task.classes if not found[split][code]] for split in SPLITS}

    def rows(codes: list[str]) -> list[dict[str, Any]]:
        # No line adds up to a total that is shown: an example has many classes, and no column holds a class's sum.
        shown = hide_small_cells([[found[split][code] for split in SPLITS] for code in codes], small_cells)
        return [{"class": code, **dict(zip(SPLITS, row, strict=True))} for code, row in zip(codes, shown, strict=True)]

    return {
        "labels_per_example": {
            split: {
                "mean": round(float(counts.mean()), 2),
                "median": float(np.median(counts)),
                "max": int(counts.max()),
            }
            if len(counts)
            else None
            for split, counts in per_example.items()
        },
        "most_frequent": rows(ranked if few else ranked[:SHOWN_CLASSES]),
        "rarest": [] if few else rows(ranked[-SHOWN_CLASSES:]),
        "absent": {split: {"classes": len(codes), "first": codes[:SHOWN_CLASSES]} for split, codes in absent.items()},
    }
