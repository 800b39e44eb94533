"""Labels and predictions in the Medical Event Data Standard (MEDS), for tools such as ACES and MEDS-DEV.

The schemas are those of the packages ``meds`` 0.4 (labels, splits, dataset metadata) and ``meds-evaluation`` 0.0.6
(predictions). They are six columns of Arrow types, so they are written here; a test holds them against ``meds``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory, write_json
from clinstack.notes.meds.samples import (
    Samples,
    align_predictions,
    map_subjects,
    read_columns,
    read_run,
    read_samples,
    read_times,
)
from clinstack.notes.splits import SPLITS
from clinstack.tasks import Task

MEDS_VERSION = "0.4.1"
MEDS_SPLITS = {"train": "train", "validation": "tuning", "test": "held_out"}
TIMES = {"admission": "admitted", "full": "discharged"}
"""Column of ``admissions.parquet`` up to which a kind of text tells of the patient."""
Progress = Callable[[str, int, int], None]


def export_meds(
    data: Path,
    out: Path,
    tasks: Sequence[str] | None = None,
    run: Path | None = None,
    classes: str = "all",
    prediction_time: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export the labels of a prepared folder, and the predictions of a Run on it, to MEDS.

    ``tasks/<task>/<split>/0.parquet`` holds ``boolean_value`` of a binary task and ``categorical_value`` (the class's
    name) of a multiclass one; a multilabel task becomes one boolean task a class, ``tasks/<task>/<class>/...``.
    ``predictions/`` has the same layout; MEDS's predictions are boolean, so a multiclass task has one folder a class
    there too. Splits are named train, tuning and held_out.

    Parameters
    ----------
    data : Path
        Written by `clinstack prepare`, with ``admissions.parquet``.
    out : Path
        Folder to write, in one step at the end; an earlier export there is replaced, anything else is refused.
    tasks : sequence of str, optional
        All tasks of the folder without it.
    run : Path, optional
        Directory of a finished finetune Run on these examples.
    classes : str
        Of multilabel tasks: ``all``, ``top:N`` (the N most frequent in training) or codes with commas between.
    prediction_time : {"admitted", "discharged"}, optional
        Without it admitted for admission texts and discharged for full ones.
    progress : callable, optional
        Called with a description, the tables done and the tables in all.

    Returns
    -------
    dict
        The content of ``metadata/tasks.json``.

    Raises
    ------
    InputError
        If a table, a time, a task, a class or the Run does not fit; nothing is written then.
    """
    facts = _facts(data)
    chosen = _chosen_tasks(data, tasks)
    column = _time_column(data, facts, prediction_time)
    _refuse_other_folder(out)
    patient_splits = read_columns(data / "splits.parquet", ("patient_id", "split"))
    patients = [str(name) for name in patient_splits["patient_id"].to_pylist()]
    subjects, mapped = map_subjects(patients)
    times = read_times(data / "admissions.parquet", column)
    summary: dict[str, Any] = {
        "format_version": 1,
        "synthetic": bool(facts.get("synthetic")),
        "prediction_time": column,
        "subject_ids": "mapped: metadata/subject_ids.parquet" if mapped else "the source's",
        "tasks": {},
        "predictions": {},
    }
    with replacing_directory(out) as folder:
        for name in chosen:
            task, samples = read_samples(data, name, subjects, times)
            summary["tasks"][name] = _write_labels(folder, task, samples, classes, progress)
        if run is not None:
            name, synthetic, predictions = read_run(run)
            task, samples = read_samples(data, name, subjects, times)
            summary["predictions"][name] = _write_predictions(
                folder, task, samples, predictions, classes, run, progress
            )
            summary["synthetic"] = summary["synthetic"] or synthetic
        split_names = [MEDS_SPLITS[str(split)] for split in patient_splits["split"].to_pylist()]
        ids = pa.array([subjects[patient] for patient in patients], pa.int64())
        _write(pa.table({"subject_id": ids, "split": split_names}), folder / "metadata" / "subject_splits.parquet")
        if mapped:
            _write(pa.table({"subject_id": ids, "patient_id": patients}), folder / "metadata" / "subject_ids.parquet")
        write_json(folder / "metadata" / "dataset.json", _dataset(facts, summary["synthetic"]))
        write_json(folder / "metadata" / "tasks.json", summary)
    return summary


def _facts(data: Path) -> dict[str, Any]:
    path = data / "prepare.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; name a folder written by `clinstack prepare`.")
    facts: dict[str, Any] = read_json(path)
    return facts


def _chosen_tasks(data: Path, tasks: Sequence[str] | None) -> list[str]:
    found = sorted(path.parent.name for path in (data / "examples").glob("*/task.yaml"))
    if not found:
        raise InputError(f"{data / 'examples'} holds no tasks; name a folder written by `clinstack prepare`.")
    unknown = next((name for name in tasks or () if name not in found), None)
    if unknown is not None:
        raise InputError(f"task {unknown!r} is not in {data / 'examples'}; there are {', '.join(found)}.")
    return [name for name in found if tasks is None or name in tasks]


def _time_column(data: Path, facts: dict[str, Any], asked: str | None) -> str:
    if asked is not None:
        if asked not in TIMES.values():
            raise InputError(f"prediction time is {asked!r}; use {' or '.join(TIMES.values())}.")
        return asked
    text = facts.get("text")
    if text not in TIMES:
        raise InputError(
            f"{data / 'prepare.json'} does not say whether texts are of the admission or full; pass --prediction-time "
            f"{' or '.join(TIMES.values())}."
        )
    return TIMES[text]


def _refuse_other_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the export.")
    if out.is_dir() and any(out.iterdir()) and not (out / "metadata" / "tasks.json").is_file():
        raise InputError(f"{out} is not empty and is no earlier MEDS export; name another folder.")


def _write_labels(
    folder: Path, task: Task, samples: dict[str, Samples], classes: str, progress: Progress | None
) -> dict[str, Any]:
    """Write the labels of one task; return its entry of ``tasks.json``."""
    place = folder / "tasks" / task.name
    summary: dict[str, Any] = {
        "kind": task.kind,
        "description": task.description,
        "classes": list(task.classes),
        "samples": {MEDS_SPLITS[split]: len(part.labels) for split, part in samples.items()},
        "samples_that_share_subject_and_time": sum(_repeated(part) for part in samples.values()),
    }
    if task.kind == "multilabel":
        chosen = choose_classes(task, samples["train"].labels, classes)
        names = folder_names(task.classes)
        for done, code in enumerate(chosen, start=1):
            for split, part in samples.items():
                values = pa.array([code in labels for labels in part.labels], pa.bool_())
                _write(part.table(boolean_value=values), _shard(place / names[code], split))
            if progress:
                progress(f"Labels of {task.name}", done, len(chosen))
        return summary | {"column": "boolean_value", "folders": {names[code]: code for code in chosen}}
    for split, part in samples.items():
        if task.kind == "binary":
            columns = {"boolean_value": pa.array([label == 1 for label in part.labels], pa.bool_())}
        else:
            columns = {"categorical_value": pa.array([task.classes[label] for label in part.labels], pa.string())}
        _write(part.table(**columns), _shard(place, split))
    if progress:
        progress(f"Labels of {task.name}", 1, 1)
    return summary | {"column": "boolean_value" if task.kind == "binary" else "categorical_value"}


def _repeated(part: Samples) -> int:
    pairs = Counter(zip(part.subject_ids.tolist(), part.times.to_pylist(), strict=True))
    return sum(count for count in pairs.values() if count > 1)


def choose_classes(task: Task, training: Sequence[Sequence[str]], classes: str) -> list[str]:
    """Return the classes of a multilabel task that ``all``, ``top:N`` or a list of codes names, in the task's order.

    Raises
    ------
    InputError
        If it names none, or a code that is no class.
    """
    if classes == "all":
        return list(task.classes)
    if classes.startswith("top:"):
        if not re.fullmatch(r"[1-9][0-9]{0,8}", classes[4:]):
            raise InputError(f"classes is {classes!r}; write top: and a whole number above 0, such as top:50.")
        counts = Counter(code for labels in training for code in labels)
        ranked = sorted(task.classes, key=lambda code: (-counts[code], code))[: int(classes[4:])]
        return [code for code in task.classes if code in set(ranked)]
    wanted = {code.strip() for code in classes.split(",")} - {""}
    unknown = sorted(wanted - set(task.classes))
    if unknown or not wanted:
        raise InputError(
            f"classes: {unknown[0] if unknown else 'no code'!r} is no class of {task.name}; use codes of its task.yaml "
            "with commas between, top:N or all."
        )
    return [code for code in task.classes if code in wanted]


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """Return a name for each class that every file system takes; two that would be alike get their place behind."""
    plain = [re.sub(r"[^A-Za-z0-9.+-]+", "_", name).strip("._") or "class" for name in classes]
    often = Counter(name.lower() for name in plain)
    return {
        name: safe if often[safe.lower()] == 1 else f"{safe}_{place}"
        for place, (name, safe) in enumerate(zip(classes, plain, strict=True))
    }


def _write_predictions(
    folder: Path,
    task: Task,
    samples: dict[str, Samples],
    predictions: pa.Table,
    classes: str,
    run: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write the predictions of one Run; return its entry of ``tasks.json``."""
    names = folder_names(task.classes)
    chosen = choose_classes(task, samples["train"].labels, classes) if task.kind == "multilabel" else list(task.classes)
    place = folder / "predictions" / task.name
    counts = {}
    for split, part in samples.items():
        rows = predictions.filter(pc.equal(predictions["split"], split))
        if not rows.num_rows:
            continue
        held, shares = align_predictions(task, part, rows, run)
        counts[MEDS_SPLITS[split]] = len(held.labels)
        predicted = shares >= 0.5
        if task.kind != "multilabel":
            predicted = shares.argmax(axis=1)[:, None] == np.arange(len(task.classes))
        done = 0
        for index, name in enumerate(task.classes):
            if (task.kind == "binary" and index == 0) or name not in chosen:
                continue
            if task.kind == "multilabel":
                truth = [name in labels for labels in held.labels]
            else:
                truth = [label == index for label in held.labels]
            table = held.table(
                boolean_value=pa.array(truth, pa.bool_()),
                predicted_boolean_value=pa.array(predicted[:, index], pa.bool_()),
                predicted_boolean_probability=pa.array(shares[:, index].astype(np.float32), pa.float32()),
            )
            _write(table, _shard(place if task.kind == "binary" else place / names[name], split))
            done += 1
            if progress:
                progress(f"Predictions of {task.name}, {split}", done, len(chosen) - (task.kind == "binary"))
    if not counts:
        raise InputError(f"{run / 'predictions.parquet'} has no rows of the splits {', '.join(SPLITS)}.")
    folders = None if task.kind == "binary" else {names[name]: name for name in chosen}
    return {"run": run.resolve().name, "samples": counts} | ({"folders": folders} if folders else {})


def _dataset(facts: dict[str, Any], synthetic: bool) -> dict[str, Any]:
    """Return MEDS's dataset metadata."""
    name = str(facts.get("source", "unknown"))
    return {
        "dataset_name": f"{name} (synthetic: everyone in it is invented)" if synthetic else name,
        "etl_name": "clinstack",
        "etl_version": __version__,
        "meds_version": MEDS_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _shard(place: Path, split: str) -> Path:
    return place / MEDS_SPLITS[split] / "0.parquet"


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Rows are sorted by subject: differences take less room than a dictionary, and a task has a file for each class.
    encoding = {name: "DELTA_BINARY_PACKED" for name in ("subject_id", "prediction_time") if name in table.column_names}
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=encoding)
