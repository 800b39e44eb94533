"""Notes that differ from patient to patient, a stack that has learned some by heart, and audits of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clinstack.audit.membership import audit_membership
from clinstack.audit.target import AuditTarget, find_target
from clinstack.engine.classification import EncodedExamples
from clinstack.engine.language_modelling import lay_out_notes
from clinstack.engine.losses import causal_loss, classification_loss
from clinstack.files import write_json
from clinstack.model.stack import Stack
from clinstack.notes.read import read_examples
from clinstack.recipe import AdapterRecipe
from clinstack.recipe.audit import AuditRecipe
from clinstack.run import Run
from clinstack.tasks import Task
from clinstack.tokens.encode import encode_documents

WORDS = ("the", "patient", "was", "admitted", "with", "chest", "pain", "and", "shortness", "of", "breath", "on")
CANARY = "zebra"
"""Begins every note; nothing that an audit writes may hold it."""


def write_notes(folder: Path, patients: int = 120, biased: bool = False) -> Path:
    """Write a note of random words for each patient; ``biased``: the test patients' have other words."""
    random = np.random.default_rng(0)
    notes, splits = [], []
    for number in range(patients):
        split = ("train", "test")[number % 2] if number % 12 else "validation"
        words = WORDS[6:] if biased and split == "test" else WORDS[:6] if biased else WORDS
        text = f"{CANARY} {' '.join(random.choice(words, 10))}"
        patient = f"p{number:03d}"
        splits.append({"patient_id": patient, "split": split})
        notes.append(
            {
                "note_id": f"n{number:03d}",
                "patient_id": patient,
                "encounter_id": None,
                "charttime": None,
                "note_type": "Nursing",
                "text": text,
                "source": "test",
            }
        )
    (folder / "notes").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(notes), folder / "notes" / "notes.parquet")
    pq.write_table(pa.Table.from_pylist(splits), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "seed": 0})
    return folder


def write_examples(folder: Path, task: Task, patients: int = 180) -> Path:
    """Write an example of random words for each patient, with a label that nothing in it tells."""
    random = np.random.default_rng(1)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number in range(patients):
        label: Any = int(random.integers(len(task.classes)))
        if task.kind == "multilabel":
            label = [name for name in task.classes if random.random() < 0.4]
        rows[("train", "validation", "test")[number % 3]].append(
            {
                "example_id": f"x{number:03d}",
                "patient_id": f"p{number:03d}",
                "encounter_id": None,
                "text": f"{CANARY} {' '.join(random.choice(WORDS, 8))}",
                "label": label,
            }
        )
    folder.mkdir(parents=True)
    task.save(folder)
    for split, of in rows.items():
        pq.write_table(pa.Table.from_pylist(of), folder / f"{split}.parquet")
    return folder


def learn_by_heart(stack: Stack, notes: Path, steps: int, split: str = "train") -> Stack:
    """Train a stack on the notes of a split until it knows them."""
    table = pq.read_table(notes / "notes" / "notes.parquet")
    splits = pq.read_table(notes / "splits.parquet")
    of = dict(zip(splits["patient_id"].to_pylist(), splits["split"].to_pylist(), strict=True))
    rows = zip(table["patient_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    texts = [text for patient, text in rows if of[patient] == split]
    laid_out = lay_out_notes(stack, encode_documents(stack.tokenizer, texts), "packed", 128)
    batch = laid_out.collate(range(len(laid_out)))
    optimizer = torch.optim.Adam(stack.trainable_parameters().values(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (causal_loss(stack, batch) / batch.predictions).backward()
        optimizer.step()
    return stack


def learn_labels(stack: Stack, examples: Path, steps: int) -> Stack:
    """Train a classifier on its training examples until it knows their labels."""
    task, splits = read_examples(examples)
    encoded = EncodedExamples(stack, task, splits["train"])
    everything = list(range(len(encoded)))
    optimizer = torch.optim.Adam(stack.trainable_parameters().values(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, weight = classification_loss(task, encoded.logits(everything), encoded.targets, None)
        (loss / weight).backward()
        optimizer.step()
    return stack


def adapter() -> AdapterRecipe:
    """Return an adapter that is large beside the notes that it learns."""
    return AdapterRecipe(name="clinical", rank=16, alpha=32)


def audited(stack: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    """Audit the membership of a bare Stack's notes, and return the section; its Run is ``folder``."""
    recipe = AuditRecipe.model_validate(
        {"stack": str(stack), "run": str(folder), "evaluation": {"resamples": 300}, **settings}
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = AuditTarget.open(find_target(recipe), recipe)
    return audit_membership(target, recipe, Run(folder, recipe, {"seconds": {}}))


def verdicts(section: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict of each finding by its name."""
    return {found["name"].removeprefix("membership."): found["verdict"] for found in section["findings"]}
