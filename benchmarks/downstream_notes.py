"""Invented notes and a random base that `downstream.py` trains classifiers on, as clinstack reads them from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

LENGTHS = {
    # Mean and sigma of a lognormal, in tokens. Cut at 512 they have 287 and 447 on average: radiology reports, and
    # what of a discharge summary is known at admission.
    "radiology": (300, 0.5),
    "admission": (730, 0.6),
}
TASK = "mortality"
GROUP = 16
"""Notes that take the distribution's lengths at even steps, so that each batch meets nearly the same lengths."""


def lengths_of(kind: str, notes: int, seed: int) -> Iterator[int]:
    """Yield the lengths of notes, group after group; each begins at another place of the distribution."""
    mean, sigma = LENGTHS[kind]
    random = np.random.default_rng(seed)
    normal = NormalDist()
    for group in range(-(-notes // GROUP)):
        offset = (0.5 + group * 0.6180339887) % 1
        places = [(index + offset) / GROUP for index in range(GROUP)]
        # exp(mu + sigma^2 / 2) is a lognormal's mean.
        lengths = [int(mean * np.exp(sigma * normal.inv_cdf(place) - sigma**2 / 2)) for place in places]
        yield from (max(20, length) for length in random.permutation(lengths)[: notes - group * GROUP])


def write_notes(folder: Path, kind: str, words: Sequence[str], counts: dict[str, int]) -> None:
    """Write a binary task's examples, so many of each split, one patient each; every word is one token."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clinstack.files import write_json
    from clinstack.tasks import Task

    target = folder / "examples" / TASK
    target.mkdir(parents=True)
    Task(TASK, "binary", ("survived", "died")).save(target)
    for seed, (split, count) in enumerate(counts.items()):
        random = np.random.default_rng([seed, count])
        rows: list[dict[str, Any]] = []
        for index, length in enumerate(lengths_of(kind, count, seed)):
            label = int(random.random() < 0.3)
            # Those who die have more words of the vocabulary's second half.
            drawn = random.integers(0, len(words), length)
            if label:
                drawn = np.maximum(drawn, random.integers(0, len(words), length))
            name = f"{split}-{index}"
            row = {"example_id": name, "patient_id": name, "encounter_id": name, "label": label}
            rows.append({**row, "text": " ".join(words[place] for place in drawn)})
        pq.write_table(pa.Table.from_pylist(rows), target / f"{split}.parquet")
    write_json(folder / "prepare.json", {"source": "benchmark", "synthetic": True, "seed": 0})


def write_clinical(base: Path, folder: Path) -> None:
    """Write a clinical LoRA of the base, as pretraining leaves it but with random weights."""
    import torch

    from clinstack.model.stack import Stack
    from clinstack.recipe import AdapterRecipe

    stack = Stack.build(str(base), [AdapterRecipe(name="clinical")], seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in stack.trainable_parameters().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    stack.save(folder)
