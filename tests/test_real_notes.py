"""A real pretrained model reads real transcribed notes (mtsamples.com); neither is in the project."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.files import read_json
from clinstack.recipe import parse_recipe
from clinstack.stages.pretrain import pretrain


def test_lora_pretraining_on_real_notes_lowers_held_out_perplexity_several_fold(shared: Path, tmp_path: Path) -> None:
    with gzip.open(shared / "data/mtsamples/mtsamples_unique.jsonl.gz", "rt", encoding="utf-8") as lines:
        notes = [note for note in map(json.loads, lines) if note["transcription"]][:200]
    table = {
        "note_id": [str(note["sample_id"]) for note in notes],
        "patient_id": [str(note["sample_id"]) for note in notes],
        "note_type": ["transcription"] * len(notes),
        "text": [note["transcription"] for note in notes],
    }
    (tmp_path / "data/notes").mkdir(parents=True)
    pq.write_table(pa.table(table), tmp_path / "data/notes/notes.parquet")
    recipe = {
        "stage": "pretrain",
        "run": str(tmp_path / "run"),
        "base": str(shared / "assets/stories260K"),
        "notes": str(tmp_path / "data"),
        "context": 256,
        "adapters": [{"name": "clinical", "target_modules": "all-linear"}],
        # A part of an epoch is enough to tell; the whole of several brings it to about 10.
        "training": {"batch_size": 8, "learning_rate": 0.01, "max_steps": 40},
    }

    run = pretrain(parse_recipe(recipe, "test"))  # type: ignore[arg-type]

    figures = read_json(run.folder / "metrics.json")["test"]
    before, after = (figures[name]["perplexity"]["value"] for name in ("base", "adapted"))
    assert 80 < before < 140  # the full corpus gives 108
    assert after < before / 3
