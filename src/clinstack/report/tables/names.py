"""How rows and tasks are called in tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Iterable

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
    return f"{row.base}: {row.name}" if len(data.bases) > 1 and not row.name.startswith(row.base) else row.name


def short_name(data: ReportData, key: str) -> str:
    """Return a row's name for narrow places."""
    row = data.rows[key]
    # What a plain folder's rows have behind their label: the folder that tells them apart.
    folder = row.name.removeprefix(SPEC_NAMES.get(row.spec, row.spec)) if row.key not in (row.spec, row.base) else ""
    name = SHORT_NAMES.get(row.spec, row.spec) + (folder if folder.startswith(" (") else "")
    if row.key == row.name:  # runs side by side are called by their folders
        return row.name
    return f"{row.base}: {name}" if len(data.bases) > 1 else name


def pair_name(data: ReportData, a: str, b: str, sign: str = "−") -> str:
    """Return the name of a difference where it stands below the name of its base, if both rows have one base."""
    one, other = data.rows[a], data.rows[b]
    if len(data.bases) < 2 or one.base != other.base:
        if one.spec == other.spec and len(data.bases) > 1:
            return f"{SHORT_NAMES.get(one.spec, one.spec)}: {one.base} {sign} {other.base}"
        return f"{short_name(data, a)} {sign} {short_name(data, b)}"
    first, second = (short_name(data, key).removeprefix(f"{one.base}: ") for key in (a, b))
    return f"{first} {sign} {second}"


def pair_group(data: ReportData, a: str, b: str) -> str:
    """Return what a difference stands below: the base of both rows; empty where there is only one base."""
    if len(data.bases) < 2:
        return ""
    return data.rows[a].base if data.rows[a].base == data.rows[b].base else "Between bases"


def heads(groups: Iterable[str]) -> dict[int, str]:
    """Return where a new group begins, and its name; nothing for groups without a name."""
    result: dict[int, str] = {}
    last = ""
    for place, group in enumerate(groups):
        if group != last:
            result[place] = last = group
    return result


def task_name(task: str) -> str:
    """Return a task's short name."""
    return "Mean" if task == MACRO else OUTCOMES.get(task, task)


def task_title(task: str) -> str:
    """Return a task's short name and what it stands for."""
    words = task.replace("_", " ")
    return f"{task_name(task)} ({words})" if task in OUTCOMES else words


def grouped(data: ReportData, keys: list[str]) -> dict[int, str]:
    """Return the heads above the rows of ``keys``: the names of the bases, where there are several."""
    return heads(data.rows[key].base for key in keys) if len(data.bases) > 1 else {}


def stack_label(label: str) -> str:
    """Return the name of a row of the perplexity table."""
    return {"base": "Base", "clinical": "+ Clinical LoRA"}.get(label, label)
