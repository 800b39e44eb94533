"""How fast and how large `clinstack prepare check` is on a hospital of invented texts, and MinHash of two libraries.

    python benchmarks/contamination.py            # 2,000,000 notes, 59,000 admissions, four tasks
    python benchmarks/contamination.py --quick    # 100,000 notes, 3,000 admissions

The texts are drawn from 40,000 invented sentences, so that phrases recur as in a hospital. One admission text in a
thousand is hidden in a note of a train patient; all of these must be found.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.files import write_json
from clinstack.notes.contamination.overlap import signatures
from clinstack.notes.contamination.shingles import fingerprints
from clinstack.tasks import Task

TASKS = ("mortality", "length_of_stay", "diagnoses", "procedures")


def sentences(chance: random.Random) -> list[str]:
    words = [f"w{number:x}" for number in range(8000)]
    weights = [1 / (number + 10) for number in range(len(words))]
    drawn = chance.choices(words, weights, k=40_000 * 12)
    return [" ".join(drawn[start : start + chance.randint(5, 12)]) for start in range(0, len(drawn), 12)]


class Writer:
    """A Parquet file written 2,048 rows at a time."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.rows, self.writer = file, [], None

    def add(self, **row: object) -> None:
        self.rows.append(row)
        if len(self.rows) == 2048:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            table = pa.Table.from_pylist(self.rows)
            self.writer = self.writer or pq.ParquetWriter(self.file, table.schema, compression="zstd")
            self.writer.write_table(table)
            self.rows = []

    def close(self) -> None:
        self.flush()
        self.writer.close()


def write_hospital(folder: Path, notes: int, admissions: int) -> set[str]:
    """Write a prepared folder; return the held-out examples that are hidden in notes for pretraining."""
    chance = random.Random(0)
    pool = sentences(chance)

    def text(characters: int) -> str:
        return ". ".join(chance.choices(pool, k=characters // 50))

    splits = ["test" if place % 10 in (1, 2) else "validation" if place % 10 == 3 else "train" for place in range(10)]
    files = {
        (task, split): Writer(folder / "examples" / task / f"{split}.parquet")
        for task in TASKS
        for split in set(splits)
    }
    for task in TASKS:
        Task(task, "binary", ("no", "yes")).save(folder / "examples" / task)
    note = Writer(folder / "notes" / "notes.parquet")
    hidden = set()
    for number in range(admissions):
        ids = {"patient_id": f"p{number}", "encounter_id": f"e{number}"}
        admission = text(chance.randint(1500, 5000))
        for task in TASKS:
            row = {"example_id": f"x{number}", **ids, "text": admission, "label": number % 2}
            files[task, splits[number % 10]].add(**row)
        note.add(note_id=f"d{number}", **ids, note_type="Discharge summary", text=f"{admission}\n{text(6000)}")
        for more in range(notes // admissions - 1):
            note.add(
                note_id=f"n{number}-{more}", **ids, note_type="Nursing", text=text(chance.choice((300, 700, 2500)))
            )
        if number % 1000 == 501:
            hidden.add(f"x{number}")
            owner = {"patient_id": f"p{number - 1}", "encounter_id": None}
            note.add(note_id=f"h{number}", **owner, note_type="Radiology", text=f"{text(900)} {admission} {text(900)}")
    for file in (*files.values(), note):
        file.close()
    table = {"patient_id": [f"p{number}" for number in range(admissions)]}
    pq.write_table(pa.table(table | {"split": [splits[n % 10] for n in range(admissions)]}), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "benchmark", "synthetic": True})
    return hidden


_CHECK = """
import json, resource, sys, time
from pathlib import Path
from clinstack.notes.contamination.check import check_prepared
start = time.perf_counter()
check_prepared(Path(sys.argv[1]))
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.perf_counter() - start, "cpu": usage.ru_utime, "megabytes": usage.ru_maxrss / 1024}))
"""


def minhash_seconds(texts: int) -> dict[str, float]:
    """Return the processor seconds for signatures of texts of 2 to 10 kB, from shingles on, by library."""
    chance = random.Random(1)
    pool = sentences(chance)
    seconds = {"shingles": 0.0, "datasketch": 0.0}
    for batch in _batches(chance, pool, texts):
        start = time.process_time()
        prints = fingerprints(batch)
        seconds["shingles"] += time.process_time() - start
        start = time.process_time()
        list(signatures(prints))
        seconds["datasketch"] += time.process_time() - start
        try:
            from rensa import RMinHash
        except ImportError:
            continue
        start = time.process_time()
        offsets = [0]
        for one in prints:
            offsets.append(offsets[-1] + len(one.shingles))
        flat = pa.concat_arrays([pa.array(one.shingles) for one in prints]).to_numpy()
        RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, 128, 1)
        seconds["rensa"] = seconds.get("rensa", 0.0) + time.process_time() - start
    return seconds


def _batches(chance: random.Random, pool: list[str], texts: int) -> Iterator[pa.Array]:
    for _ in range(texts // 500):
        yield pa.array([". ".join(chance.choices(pool, k=chance.randint(2000, 10_000) // 50)) for _ in range(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    notes, admissions, texts = (100_000, 3_000, 3_000) if quick else (2_000_000, 59_000, 60_000)
    libraries = minhash_seconds(texts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        hidden = write_hospital(folder, notes, admissions)
        command = [sys.executable, "-c", _CHECK, str(folder)]
        run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        pairs = json.loads((folder / "contamination.json").read_text())["pairs"]
    found = {pair["held_out_id"] for pair in pairs if pair["other_id"] == f"h{pair['held_out_id'][1:]}"}
    if found != hidden:
        raise SystemExit(f"{len(hidden - found)} of {len(hidden)} hidden texts were not found.")
    result = {
        "benchmark": "contamination",
        "notes": notes,
        "texts": texts,
        "check": {name: round(value, 1) for name, value in run.items()},
        "processor_seconds": {name: round(value, 1) for name, value in libraries.items()},
        "ratios": {"memory_of_2_gib": round(2048 / run["megabytes"], 2), "hidden_texts_found": 1.0},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
