"""How rows and tasks are called in tables, figures and sentences."""

from __future__ import annotations

from clinstack.evaluate.compare import MACRO
from clinstack.report.collect import ReportData
from clinstack.report.rows import SPEC_NAMES
from clinstack.tasks import OUTCOMES

SHORT_NAMES = {
    "head": "Head",
    "full": "Whole",
    "lora": "LoRA",
    "clinical-frozen": "Frozen",
    "clinical-frozen+lora": "Frozen + Downstream",
    "clinical-trainable": "Trainable",
    "clinical-trainable+lora": "Trainable + Downstream",
}


def row_name(data: ReportData, key: str) -> str:
    """Return a row's name where it does not stand below the name of its base."""
    row = data.rows[key]
    return f"{row.base}: {row.name}" if len(data.bases) > 1 else row.name


def short_name(data: ReportData, key: str) -> str:
    """Return a row's name for narrow places."""
    row = data.rows[key]
    # What a plain folder's rows have behind their label: the folder that tells them apart.
    folder = row.name.removeprefix(SPEC_NAMES.get(row.spec, row.spec)) if row.key not in (row.spec, row.base) else ""
    name = SHORT_NAMES.get(row.spec, row.spec) + (folder if folder.startswith(" (") else "")
    if row.key == row.name:  # runs side by side are called by their folders
        return row.name
    return f"{row.base}: {name}" if len(data.bases) > 1 else name


def task_name(task: str) -> str:
    """Return a task's short name."""
    return "Mean" if task == MACRO else OUTCOMES.get(task, task)


def task_title(task: str) -> str:
    """Return a task's short name and what it stands for."""
    words = task.replace("_", " ")
    return f"{task_name(task)} ({words})" if task in OUTCOMES else words


def grouped(data: ReportData, keys: list[str]) -> dict[int, str]:
    """Return the heads above the rows of ``keys``: the names of the bases, where there are several."""
    if len(data.bases) < 2:
        return {}
    heads: dict[int, str] = {}
    last = None
    for place, key in enumerate(keys):
        if data.rows[key].base != last:
            last = data.rows[key].base
            heads[place] = last
    return heads


def stack_label(label: str) -> str:
    """Return the name of a row of the perplexity table."""
    return {"base": "Base", "clinical": "+ Clinical LoRA"}.get(label, label)
