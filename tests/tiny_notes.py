"""A small folder of Notes as `prepare` writes it, so short that a random model of two layers reads it in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.files import write_json
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.tasks import Task

CANARY = "zebra quartz lantern"
"""Stands in notes of every split; nothing that clinstack writes may hold it."""
TASKS = {
    "mortality": Task("mortality", "binary", ("survived", "died")),
    "length_of_stay": Task("length_of_stay", "multiclass", ("0-3 days", "3-7 days", "1-2 weeks", "over 2 weeks")),
    "diagnoses": Task("diagnoses", "multilabel", ("038", "428", "486", "584")),
}
_PROBLEMS = ("sepsis", "heart failure", "pneumonia", "kidney injury")
_CODES = TASKS["diagnoses"].classes


def write_tiny_notes(folder: Path, patients: int = 60) -> Path:
    """Write notes, splits and the examples of three tasks; labels follow from words in the text."""
    splits = assign_splits([f"p{index:03d}" for index in range(patients)], seed=0)
    notes: list[dict[str, Any]] = []
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {(task, split): [] for task in TASKS for split in SPLITS}
    for split in SPLITS:
        # By place in the split, so that each split has patients of every class.
        for place, patient in enumerate(name for name, where in splits.items() if where == split):
            problem, stay, died = place % 4, (place // 2) % 4, place % 3 == 0
            words = f"admitted with {_PROBLEMS[problem]}, {'in shock' if died else 'stable'}, ward {stay}"
            canary = f" {CANARY}" if place % 4 == 1 else ""
            for number, kind in enumerate(("Discharge summary", "Nursing")):
                notes.append(
                    {
                        "note_id": f"{patient}-{number}",
                        "patient_id": patient,
                        "encounter_id": f"e{patient}",
                        "charttime": None,
                        "note_type": kind,
                        "text": f"the patient was {words}.{canary}" + (" no chest pain" * (place % 5) * number),
                        "source": "test",
                    }
                )
            codes = [_CODES[problem], *([_CODES[(problem + 1) % 4]] if died else [])]
            for task, label in {"mortality": int(died), "length_of_stay": stay, "diagnoses": codes}.items():
                examples[task, split].append(
                    {
                        "example_id": f"x{patient}",
                        "patient_id": patient,
                        "encounter_id": f"e{patient}",
                        "text": f"{words}{canary}" if place else "",
                        "label": label,
                    }
                )
    (folder / "notes").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(notes), folder / "notes" / "notes.parquet")
    pq.write_table(pa.table({"patient_id": list(splits), "split": list(splits.values())}), folder / "splits.parquet")
    for (task, split), rows in examples.items():
        target = folder / "examples" / task
        target.mkdir(parents=True, exist_ok=True)
        TASKS[task].save(target)
        pq.write_table(pa.Table.from_pylist(rows), target / f"{split}.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "seed": 0})
    return folder
