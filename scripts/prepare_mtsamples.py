"""Turn the public notes of mtsamples.com into tables for `clinstack prepare table`: which body system is a note about?

    python scripts/prepare_mtsamples.py mtsamples_unique.jsonl.gz OUT
    clinstack prepare table OUT/source.yaml --out OUT/data

The first file has one line for each note, with ``sample_id``, ``transcription`` and ``specialties``. A note is taken
when exactly one of its specialties is a body system; neurosurgery counts as neurology and podiatry as orthopedics.
Notes appear under several specialties with the same text, so the split is by ``sample_id``; it is drawn within each
class, for several classes have few notes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
from collections import Counter
from pathlib import Path

SYSTEMS = {
    "Allergy / Immunology": "allergy",
    "Cardiovascular / Pulmonary": "cardiovascular",
    "Dentistry": "dental",
    "Dermatology": "skin",
    "ENT - Otolaryngology": "ear nose throat",
    "Endocrinology": "endocrine",
    "Gastroenterology": "digestive",
    "Hematology - Oncology": "blood and cancer",
    "Nephrology": "kidney",
    "Neurology": "nervous system",
    "Neurosurgery": "nervous system",
    "Obstetrics / Gynecology": "obstetrics",
    "Ophthalmology": "eye",
    "Orthopedic": "musculoskeletal",
    "Podiatry": "musculoskeletal",
    "Psychiatry / Psychology": "mental",
    "Rheumatology": "rheumatic",
    "Sleep Medicine": "sleep",
    "Urology": "urinary",
}
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SOURCE = """source: tables
notes: {table: notes, note_id: note_id, patient_id: patient_id, text: text}
labels:
  - name: body_system
    kind: multiclass
    table: labels
    note_id: note_id
    label: body_system
    text: full
    description: Which body system is a transcribed note about?
splits: {table: splits, patient_id: patient_id, split: split}
"""


def chosen_notes(path: Path) -> list[tuple[str, str, str]]:
    """Return (id, text, body system) of each note with exactly one body system."""
    notes = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for note in map(json.loads, lines):
            systems = {SYSTEMS[name] for name in note["specialties"] if name in SYSTEMS}
            if len(systems) == 1:
                notes.append((str(note["sample_id"]), note["transcription"], systems.pop()))
    return notes


def drawn_splits(notes: list[tuple[str, str, str]], seed: int) -> dict[str, str]:
    """Return the split of each note: the shares within every class, and at least one of each split where it can be."""
    generator = random.Random(seed)
    splits: dict[str, str] = {}
    for system in sorted({system for _, _, system in notes}):
        ids = sorted(note for note, _, name in notes if name == system)
        generator.shuffle(ids)
        test, validation = max(1, round(SHARES["test"] * len(ids))), max(1, round(SHARES["validation"] * len(ids)))
        for place, note in enumerate(ids):
            splits[note] = "test" if place < test else "validation" if place < test + validation else "train"
    return splits


def write_table(path: Path, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([tuple(columns), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notes", type=Path, help="mtsamples_unique.jsonl.gz")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    arguments = parser.parse_args()
    notes = chosen_notes(arguments.notes)
    tables = arguments.out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    write_table(tables / "notes.csv", ["note_id", "patient_id", "text"], [(n, n, text) for n, text, _ in notes])
    write_table(tables / "labels.csv", ["note_id", "body_system"], [(n, system) for n, _, system in notes])
    write_table(tables / "splits.csv", ["patient_id", "split"], sorted(drawn_splits(notes, arguments.seed).items()))
    (arguments.out / "source.yaml").write_text(SOURCE, encoding="utf-8")
    print(f"{len(notes):,} notes")
    for system, count in Counter(system for _, _, system in notes).most_common():
        print(f"  {count:4d}  {system}")


if __name__ == "__main__":
    main()
