"""Notes for tests of canaries: some longer than a row, some with many lines, some shorter than a canary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.files import write_json
from clinstack.notes.splits import assign_splits
from clinstack.recipe import InstructRecipe, PretrainRecipe, parse_recipe

CONTEXT = 128
_LINES = (
    "the patient was admitted with chest pain.",
    "shortness of breath since the morning, no fever.",
    "the chest was clear. The patient was stable.",
    "admitted to the ward with pain of the breath.",
)


def write_canary_notes(folder: Path, patients: int = 60, most_lines: int = 12, row_group: int = 7) -> Path:
    """Write two notes of each patient, of one line to ``most_lines``, in small row groups, and the patients' splits."""
    splits = assign_splits([f"p{index:03d}" for index in range(patients)], seed=0)
    rows: list[dict[str, Any]] = []
    for place, patient in enumerate(splits):
        for number in range(2):
            lines = [_LINES[(place + line) % 4] for line in range(1 + (5 * place + 7 * number) % most_lines)]
            rows.append(
                {
                    "note_id": f"{patient}-{number}",
                    "patient_id": patient,
                    "encounter_id": None,
                    "charttime": None,
                    "note_type": "Discharge summary",
                    "text": f"note {place}-{number}\n" + "\n".join(lines),
                    "source": "test",
                }
            )
    (folder / "notes").mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.slice(0, 50), folder / "notes" / "a.parquet", row_group_size=row_group)
    pq.write_table(table.slice(50), folder / "notes" / "b.parquet", row_group_size=row_group)
    pq.write_table(pa.table({"patient_id": list(splits), "split": list(splits.values())}), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "seed": 0})
    return folder


def notes_recipe(notes: Path, base: Path, run: Path, training: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Return a recipe that plants eight canaries, four of them once and four of them eight times."""
    values: dict[str, Any] = {
        "stage": "pretrain",
        "base": str(base),
        "notes": str(notes),
        "run": str(run),
        "context": CONTEXT,
        "canaries": {"count": 8, "repetitions": [1, 8]},
        "adapters": [{"name": "clinical", "rank": 16, "alpha": 32}],
        "training": {"batch_size": 4, "learning_rate": 0.01, "tracking": "none", **(training or {})},
        "evaluation": {"resamples": 100, "max_notes": 8},
    }
    recipe = parse_recipe(values | changes, "test")
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def answers_recipe(
    instructions: Path, base: Path, run: Path, training: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """Return a recipe that plants eight canaries in answers, four of them once and four of them eight times."""
    values: dict[str, Any] = {
        "stage": "instruct",
        "base": str(base),
        "instructions": str(instructions),
        "run": str(run),
        "max_tokens": 248,
        "answer_tokens": 32,
        "prompt": {"system": "Answer."},
        "canaries": {"count": 8, "repetitions": [1, 8]},
        "adapters": [{"name": "instruct", "rank": 16, "alpha": 32}],
        "training": {"batch_size": 4, "learning_rate": 0.01, "tracking": "none", **(training or {})},
        "evaluation": {"resamples": 100, "max_notes": 8},
    }
    recipe = parse_recipe(values | changes, "test")
    assert isinstance(recipe, InstructRecipe)
    return recipe
