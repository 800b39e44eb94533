"""Time and memory of `clinstack audit` as the notes grow: the same adapter on 1, 4 and 16 times as many notes.

    python benchmarks/audit_scaling.py            # 150, 600 and 2,400 patients
    python benchmarks/audit_scaling.py --quick    # 60, 120 and 240: tries the script in a few minutes

Invented hospitals; the clinical LoRA is trained for a few steps on the smallest one and audited on all of them, with
every nursing note (``max_notes`` null) and everything else at its default, unless key=value says otherwise. Each audit
is a process of its own, one thread; memory is the largest resident set of that process (``VmHWM``). The notes are
turned into tokens before that. Were the work or the memory to grow faster than the notes, seconds a note or bytes a
note would rise from row to row.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import quiet_environment

NOTE_TYPES = ["Nursing", "Nursing/other"]
"""Short ones: what grows is their number."""
AUDITED = """
import json, sys
from clinstack.cli import main
sys.argv = ["clinstack", *json.loads(sys.argv[1])]
try:
    main()
finally:
    with open("/proc/self/status") as file:
        print("\\n" + next(line for line in file if line.startswith("VmHWM")), flush=True)
"""
"""A child that runs the command line and says at its end how much memory it had at the most."""


def prepare(work: Path, patients: int) -> Path:
    """Invent a hospital and prepare its notes, once."""
    from clinstack.notes.cohort import write_cohort
    from clinstack.notes.mimic3.prepare import prepare_mimic3

    data = work / f"data-{patients}"
    if not (data / "prepare.json").is_file():
        cohort = work / f"cohort-{patients}"
        write_cohort(cohort, patients, 3)
        prepare_mimic3(cohort, data, seed=3)
    return data


def train(work: Path, data: Path) -> Path:
    """Train the adapter that all audits are of, and return its Stack."""
    from clinstack.recipe import parse_recipe
    from clinstack.stages.pretrain import pretrain

    values = {
        "stage": "pretrain",
        "run": str(work / "clinical"),
        "notes": str(data),
        "note_types": NOTE_TYPES,
        "adapters": [{"name": "clinical", "method": "lora", "rank": 16, "alpha": 32, "target_modules": "all-linear"}],
        "training": {"max_steps": 20, "batch_size": 4, "learning_rate": 0.005, "tracking": "none"},
        "evaluation": {"max_notes": 20},
    }
    recipe: Any = parse_recipe(values, "audit_scaling")
    pretrain(recipe)
    # Out of its Run, which remembers the notes that it was trained on and takes no others.
    if not (work / "stack").is_dir():
        shutil.copytree(work / "clinical" / "stack", work / "stack")
    return work / "stack"


def tokenise(stack: Path, data: Path) -> None:
    """Turn the notes into tokens, which the first stage that needs them does, and no later one."""
    from clinstack.audit.target import MEMBERS, NON_MEMBERS, AuditTarget, find_target
    from clinstack.recipe.audit import AuditRecipe

    recipe = AuditRecipe(stack=str(stack), notes=str(data), note_types=tuple(NOTE_TYPES), run="-")
    target = AuditTarget.open(find_target(recipe), recipe)
    for side in (MEMBERS, NON_MEMBERS):
        target.all_notes(side)


def notes_in(data: Path) -> dict[str, int]:
    """Return how many notes of both sides the audit reads."""
    from clinstack.notes.read import survey_notes

    counts = survey_notes(data, NOTE_TYPES).notes
    return {"members": counts["train"], "non_members": counts["test"]}


def cpu_seconds() -> float:
    """Return the CPU time of the children that have ended: what else runs on the machine changes it little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(work: Path, stack: Path, data: Path, more: list[str]) -> dict[str, Any]:
    """Audit the adapter on these notes in a process of its own."""
    run = work / f"audit-{data.name}"
    words = ["audit", str(stack), f"run={run}", f"notes={data}"]
    words += [f"note_types={json.dumps(NOTE_TYPES)}", "max_notes=null", *more, "--fresh"]
    begin = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, json.dumps(words)], capture_output=True, text=True, env=quiet_environment(1)
    )
    seconds = cpu_seconds() - begin
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    if peak is None or not (run / "audit.json").is_file():
        sys.exit(
            f"the audit of {data.name} ended: " + " / ".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        )
    return {**notes_in(data), "seconds": seconds, "peak": int(peak[1]) * 1024}


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the figures as Markdown, each beside that of the first row."""
    first = rows[0]
    lines = [
        "| notes | times | CPU seconds | times | ms a note | peak memory | times |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        count, before = (item["members"] + item["non_members"] for item in (row, first))
        lines.append(
            f"| {count:,} | {count / before:.1f} | {row['seconds']:,.0f} | {row['seconds'] / first['seconds']:.1f} | "
            f"{1000 * row['seconds'] / count:.0f} | "
            f"{row['peak'] / 2**20:,.0f} MB | {row['peak'] / first['peak']:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of everything; a temporary one when not given")
    parser.add_argument(
        "--quick", action="store_true", help="tries the script: fewer patients, less work for each note"
    )
    parser.add_argument("--patients", type=int, help="of the smallest hospital")
    parser.add_argument("more", nargs="*", help="further key=value for the audit")
    arguments = parser.parse_args()
    smallest = arguments.patients or (60 if arguments.quick else 150)
    factors = (1, 2, 4) if arguments.quick else (1, 4, 16)
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        data = [prepare(work, smallest * factor) for factor in factors]
        stack = train(work, data[0])
        rows = []
        for folder in data:
            tokenise(stack, folder)
            rows.append(measure(work, stack, folder, arguments.more))
            print(table_of(rows)[-1], flush=True)
    print("\n".join(["", *table_of(rows)]))
    first, last = rows[0], rows[-1]
    ratios = {
        "notes": (last["members"] + last["non_members"]) / (first["members"] + first["non_members"]),
        "seconds": last["seconds"] / first["seconds"],
        "memory": last["peak"] / first["peak"],
    }
    print(json.dumps({"benchmark": "audit_scaling", "ratios": ratios, "rows": rows}))


if __name__ == "__main__":
    main()
