"""Examples and predictions as MEDS samples: subjects as integers, prediction times, probabilities."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.notes.splits import SPLITS
from clinstack.tasks import Task

_TIME = pa.timestamp("us")


@dataclass(frozen=True)
class Samples:
    """The examples of one task and split in the order that they are written: by subject and time."""

    example_ids: list[str]
    subject_ids: NDArray[np.int64]
    times: pa.Array
    labels: list[Any]

    def table(self, **columns: Any) -> pa.Table:
        """Return a table in MEDS's label schema with ``columns`` behind subject and time."""
        return pa.table(
            {"subject_id": pa.array(self.subject_ids, pa.int64()), "prediction_time": self.times, **columns}
        )


def map_subjects(patient_ids: Iterable[str]) -> tuple[dict[str, int], bool]:
    """Give each patient MEDS's 64-bit integer.

    Identifiers that are all whole numbers, written without leading zeros, stay as they are. Otherwise each gets the
    first 63 bits of its SHA-256, so that another export gives a patient the same number; where two patients would
    share one, the later in the alphabet gets the next hash.

    Returns
    -------
    subjects : dict of str to int
    mapped : bool
        Whether the numbers are new, and have to be kept beside the identifiers.
    """
    ids = sorted(set(patient_ids))
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,18}", name) and -(2**63) <= int(name) < 2**63 for name in ids):
        return {name: int(name) for name in ids}, False
    taken: dict[int, str] = {}
    for name in ids:
        attempt = 0
        while (number := _hashed(name, attempt)) in taken:
            attempt += 1
        taken[number] = name
    return {name: number for number, name in taken.items()}, True


def _hashed(name: str, attempt: int) -> int:
    digest = hashlib.sha256(f"{name}#{attempt}".encode() if attempt else name.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def probabilities(task: Task, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn logits into probabilities: a softmax over classes that exclude each other, else a sigmoid for each.

    Parameters
    ----------
    task : Task
    logits : array of float, shape (rows, classes)

    Returns
    -------
    array of float, shape (rows, classes)
    """
    if task.kind == "multilabel":
        # exp of a negative number only, so that nothing overflows.
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def read_columns(path: Path, columns: Sequence[str], remedy: str = "Prepare the folder again.") -> pa.Table:
    """Read columns of a Parquet file, or raise an InputError that names what is missing, with the remedy."""
    if not path.is_file():
        raise InputError(f"{path} is missing. {remedy}")
    try:
        names = pq.read_schema(path).names
        missing = next((column for column in columns if column not in names), None)
        if missing is not None:
            raise InputError(f"{path}: the column {missing} is missing; it has {', '.join(names)}. {remedy}")
        return pq.read_table(path, columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({type(error).__name__}).") from None


def read_times(path: Path, column: str) -> dict[str, Any]:
    """Return the time of each encounter in microseconds since 1970, None where it is empty; a zone's time in UTC.

    Raises
    ------
    InputError
        If the file or a column is missing, is no timestamp, or an encounter stands in it twice.
    """
    remedy = f"MEDS needs the time of each prediction: encounter_id and {column} of each encounter, as timestamps."
    table = read_columns(path, ("encounter_id", column), remedy)
    if not pa.types.is_timestamp(table.schema.field(column).type):
        raise InputError(f"{path}: the column {column} is {table.schema.field(column).type}, not timestamp. {remedy}")
    names = [str(name) for name in table["encounter_id"].to_pylist()]
    if len(set(names)) != len(names):
        raise InputError(f"{path}: encounter_id has empty or repeated values; each encounter needs its own row.")
    stamps = table[column].cast(_TIME, safe=False).cast(pa.int64()).to_pylist()
    return dict(zip(names, stamps, strict=True))


def read_samples(
    data: Path, name: str, subjects: dict[str, int], times: dict[str, Any]
) -> tuple[Task, dict[str, Samples]]:
    """Read a task and its samples of each split; no text is read.

    Raises
    ------
    InputError
        If a table, patient, time or label is missing.
    """
    folder = data / "examples" / name
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the Run was made on other data; name the folder it was trained on.")
    task = Task.load(folder)
    result = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        table = read_columns(path, ("example_id", "patient_id", "encounter_id", "label"))
        rows = zip(*(table[column].to_pylist() for column in table.column_names), strict=True)
        found = []
        without = []
        for example, patient, encounter, label in rows:
            if str(patient) not in subjects:
                raise InputError(f"{path}: the patient {patient} is not in splits.parquet. Prepare the folder again.")
            if label is None or (task.kind != "multilabel" and not 0 <= label < len(task.classes)):
                raise InputError(f"{path}: the example {example} has the label {label!r}, which is none of {name}.")
            time = times.get(str(encounter))
            if time is None:
                without.append(str(example))
            found.append((subjects[str(patient)], time, str(example), label))
        if without:
            raise InputError(
                f"{path}: {len(without)} example(s), the first {without[0]}, have no time in admissions.parquet; add "
                "their encounters there, or leave the task out."
            )
        found.sort(key=lambda row: row[:3])
        stamps = pa.array([row[1] for row in found], pa.int64()).cast(_TIME)
        ids = np.array([row[0] for row in found], dtype=np.int64)
        result[split] = Samples([row[2] for row in found], ids, stamps, [row[3] for row in found])
    return task, result


def read_run(run: Path) -> tuple[str, bool, pa.Table]:
    """Return a finished Run's task, whether it is synthetic, and its predictions."""
    if not (run / "run.json").is_file():
        raise InputError(f"{run} has no run.json; name the directory of a finetune Run.")
    record = read_json(run / "run.json")
    if record.get("status") != "done" or not record.get("task"):
        raise InputError(f"{run} is no finished Run of a task; let the finetune stage end first.")
    table = read_columns(
        run / "predictions.parquet", ("example_id", "split", "label", "score"), "Let the Run end first."
    )
    return str(record["task"]), bool(record.get("synthetic")), table


def align_predictions(task: Task, part: Samples, rows: pa.Table, run: Path) -> tuple[Samples, NDArray[np.float64]]:
    """Return the samples of a split that a Run predicted, and its probabilities in their order.

    Raises
    ------
    InputError
        If an example, its label or its scores do not fit the data.
    """
    place = run / "predictions.parquet"
    position = {str(name): row for row, name in enumerate(rows["example_id"].to_pylist())}
    if len(position) != rows.num_rows:
        raise InputError(f"{place}: an example is predicted twice in one split; predict again.")
    kept = [index for index, name in enumerate(part.example_ids) if name in position]
    if len(kept) != len(position):
        known = set(part.example_ids)
        foreign = next(name for name in position if name not in known)
        raise InputError(f"{place}: the example {foreign} is not in the data; name the folder that the Run read.")
    order = [position[part.example_ids[index]] for index in kept]
    labels, scores = rows["label"].to_pylist(), rows["score"].to_pylist()
    for index, row in zip(kept, order, strict=True):
        mine, theirs = part.labels[index], labels[row]
        if (sorted(mine) != sorted(theirs)) if task.kind == "multilabel" else (mine != theirs):
            raise InputError(
                f"{place}: the example {part.example_ids[index]} has another label in the data; name the folder that "
                "the Run read."
            )
        if len(scores[row]) != len(task.classes) or not np.isfinite(scores[row]).all():
            raise InputError(
                f"{place}: the example {part.example_ids[index]} has not one finite score for each of the "
                f"{len(task.classes)} classes of {task.name}; predict again on this data."
            )
    logits = np.array([scores[row] for row in order], dtype=np.float64)
    held = Samples(
        [part.example_ids[index] for index in kept],
        part.subject_ids[kept],
        part.times.take(pa.array(kept, pa.int64())),
        [part.labels[index] for index in kept],
    )
    return held, probabilities(task, logits)
