"""The table of the data (the paper's Table 1): classes, examples, patients and labels of each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clinstack.files import read_json
from clinstack.report.collect import ReportData, RunRecord
from clinstack.report.published import PAPER, PAPER_TABLES, TABLE1
from clinstack.report.tables.cells import MISSING, Cell, Table, count
from clinstack.report.tables.names import task_title

_SPLITS = ("train", "validation", "test")
_FEW = 5
"""Classes whose shares are named one by one."""


def data_table(data: ReportData) -> Table:
    """Return what each task's examples are; a task whose folder is not on this machine has no row."""
    rows = []
    sources: dict[str, str] = {}
    beside_paper = data.table in PAPER_TABLES
    for task, stacks in data.finetune.items():
        facts = _facts(next(iter(stacks.values()))[0])
        if facts is None:
            continue
        kind, classes = data.tasks[task].kind, data.tasks[task].classes
        printed = next((row for row in TABLE1 if row.task == task), None) if beside_paper else None
        papers = [f"{value:,}" for value in (printed.train, printed.validation, printed.test)] if printed else [""] * 3
        cells = [Cell(f"{len(classes):,}", kind, paper=f"{printed.classes:,}" if printed else "")]
        for split, paper in zip(_SPLITS, papers, strict=True):
            part = facts["splits"].get(split, {})
            patients = part.get("patients")
            detail = "" if patients is None else f"{patients:,} patients"
            cells.append(Cell(count(part.get("rows")).text, detail, paper=paper))
        cells.append(Cell(_labels(kind, facts["splits"].get("train", {}))))
        rows.append((task_title(task), cells))
        sources |= facts["source"]
    note = "Examples of each split, with their patients; a patient is in one split only."
    if sources:
        note += f" {_source_sentence(sources)}"
    if any(cell.paper for _, cells in rows for cell in cells):
        note += f" Figures after the word “paper” are printed in {PAPER}, Table 1, of MIMIC-III."
    return Table(
        "data",
        "Table 1: the data" if beside_paper else "The data",
        note,
        ["Task", "Classes", "Training", "Validation", "Test", "Labels in training"],
        rows,
    )


def _facts(run: RunRecord) -> dict[str, Any] | None:
    """Read what the Notes say of themselves, where they are still in the place that the Run read them from."""
    examples = run.recipe.get("examples")
    if not isinstance(examples, str):
        return None
    folder = Path(examples)
    attrition = _read(folder / "attrition.json")
    if "splits" not in attrition:
        return None
    prepared = _read(folder.parent.parent / "prepare.json")
    counts = prepared.get("counts", {})
    source = {"notes": counts["notes"]} if "notes" in counts else {}
    patients = counts.get("patients")
    if isinstance(patients, dict):
        source["patients"] = sum(patients.values())
    if "source" in prepared:
        source["source"] = prepared["source"]
    return {"splits": attrition["splits"], "source": source}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path) if path.is_file() else {}
    except (OSError, ValueError):
        return {}  # the Notes are not part of the Runs: a report does without them
    return values if isinstance(values, dict) else {}


def _labels(kind: str, split: dict[str, Any]) -> str:
    labels, rows = split.get("labels"), split.get("rows")
    if not isinstance(labels, dict) or not labels or not rows:
        return MISSING
    counts = list(labels.values())
    if kind == "multilabel":
        return f"{sum(counts) / rows:.1f} each; {min(counts):,} to {max(counts):,} a code"
    if kind == "binary":
        return f"{100 * counts[-1] / rows:.1f} % positive"
    shares = [100 * value / rows for value in counts]
    if len(shares) > _FEW:
        return f"{min(shares):.1f} to {max(shares):.1f} % a class"
    return ", ".join(f"{value:.0f} %" for value in shares)


def _source_sentence(sources: dict[str, Any]) -> str:
    parts = []
    if "notes" in sources:
        parts.append(f"{sources['notes']:,} notes")
    if "patients" in sources:
        parts.append(f"{sources['patients']:,} patients")
    listed = " of ".join(parts)
    source = f" (source: {sources['source']})" if "source" in sources else ""
    return f"Prepared from {listed}{source}." if listed else ""
