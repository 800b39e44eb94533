"""Preference pairs for `tiny_base`, and a stack that follows instructions, as small as they can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clinstack.model.stack import Stack
from clinstack.notes.attrition import Attrition
from clinstack.notes.preferences import write_preferences
from clinstack.notes.prepared import prepared_folder
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.recipe import AdapterRecipe
from clinstack.tokens.prompts import Prompt

PROMPT = Prompt("{note} Q: {question}", cue=" A:")
CANARY = "zebra quartz lantern"
_DRUGS = ("aspirin", "heparin", "insulin", "lasix")


def tiny_rows(patients: int = 30) -> list[dict[str, Any]]:
    """Return two pairs a patient: of a note and a question, and of a prompt alone; numbers in words are rejected."""
    rows: list[dict[str, Any]] = []
    for patient in range(patients):
        drug = _DRUGS[patient % 4]
        note = f"pt {patient} on {drug}{f', {CANARY}' if patient % 5 == 1 else ''}"
        rows.append(
            {
                "example_id": f"x{patient}a",
                "patient_id": f"p{patient}",
                "prompt": f"{note}\n\nwhich drug?",
                "note": note,
                "question": "which drug?",
                "chosen": drug,
                "rejected": f"no {'no ' * (patient % 3)}{drug}",
            }
        )
        rows.append(
            {
                "example_id": f"x{patient}b",
                "patient_id": f"p{patient}",
                "prompt": f"pt {patient} is on:",
                "chosen": f"{drug} daily",
                "rejected": "unknown",
            }
        )
    return rows


def write_tiny_preferences(folder: Path, patients: int = 30) -> Path:
    """Write a folder of pairs with patients in every split."""
    splits = assign_splits([f"p{patient}" for patient in range(patients)], seed=0)
    assert set(splits.values()) == set(SPLITS)
    facts = {"source": "preferences", "synthetic": True}
    with prepared_folder(folder) as prepared:
        write_preferences(prepared, tiny_rows(patients), Attrition(), facts, 0, splits)
    return folder


def write_instruction_stack(folder: Path, base: Path, clinical: Path, perturbed: Callable[..., Stack]) -> Path:
    """Save what instruction tuning leaves on a clinical adapter: two adapters that are not zero, and a prompt."""
    stack = Stack.build(
        str(base), [AdapterRecipe(name="clinical", path=str(clinical)), AdapterRecipe(name="instruction", rank=4)]
    )
    perturbed(stack, seed=2)
    stack.prompt, stack.max_tokens = PROMPT, 96
    stack.save(folder)
    return folder
