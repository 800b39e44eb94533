"""Tables and sentences of groups of patients: what each stack is worth for them, and where it is worth less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinstack.evaluate.subgroups import SMALLEST
from clinstack.report.summary import Summary
from clinstack.report.tables.cells import MISSING, Cell, Table, figure, number
from clinstack.report.tables.names import heads, short_name, task_name, task_title

ATTRIBUTES = {
    "sex": "Sex",
    "age_band": "Age, years",
    "ethnicity": "Ethnicity",
    "insurance": "Insurance",
    "language": "Language",
}
_FIGURES = {
    "auroc": (
        "AUROC by group of patients",
        "Of classes with enough patients in the group. Bold: the difference to everybody else holds after Holm's "
        "correction over all differences of the stack on the task.",
        False,
    ),
    "predicted_minus_observed": (
        "Predicted minus observed by group of patients",
        "The mean probability minus the share of patients with the outcome: above zero the group's risk is "
        "overestimated. Bold: the difference to everybody else holds after Holm's correction.",
        True,
    ),
}
Entry = Mapping[str, Any]


def subgroup_tables(summary: Summary) -> list[Table]:
    """Return two tables for each task whose Runs measured groups; of several seeds the first."""
    tables = []
    for task in summary.tasks:
        found = _entries(summary, task)
        for name, (title, note, signed) in _FIGURES.items():
            table = _table(summary, task, found, name, title, note, signed=signed)
            if table.rows:
                tables.append(table)
    return tables


def subgroup_sentences(summary: Summary) -> list[str]:
    """Say which groups are served worse or better than everybody else, beyond chance."""
    sentences, measured = [], False
    for task in summary.tasks:
        for stack, entries in _entries(summary, task).items():
            for (attribute, group), entry in entries.items():
                gap = entry.get("gaps", {}).get("auroc")
                measured |= gap is not None
                if gap is not None and gap["holds"]:
                    low, high = gap["interval"]
                    sentences.append(
                        f"{task_name(task)}, {short_name(summary.data, stack)}: AUROC of {group} "
                        f"({ATTRIBUTES.get(attribute, attribute).lower()}) is {number(gap['value'], signed=True)} "
                        f"[{number(low, signed=True)} to {number(high, signed=True)}] against everybody else."
                    )
    if measured and not sentences:
        sentences.append(
            "No group's AUROC differs from everybody else's beyond chance, after Holm's correction. Small groups show "
            "large differences only."
        )
    return sentences


def _entries(summary: Summary, task: str) -> dict[str, dict[tuple[str, str], Entry]]:
    """Return what the first Run of each row says of its groups, by attribute and group."""
    found: dict[str, dict[tuple[str, str], Entry]] = {}
    for stack in summary.data.stacks:
        for test in summary.measured(stack, task)[:1]:
            groups = test.get("subgroups", {}).get("groups", [])
            if groups:
                found[stack] = {(entry["attribute"], entry["group"]): entry for entry in groups}
    return found


def _table(
    summary: Summary,
    task: str,
    found: Mapping[str, Mapping[tuple[str, str], Entry]],
    name: str,
    title: str,
    note: str,
    *,
    signed: bool,
) -> Table:
    keys = list(dict.fromkeys(key for entries in found.values() for key in entries))
    keys = [key for attribute in ATTRIBUTES for key in keys if key[0] == attribute]
    rows = []
    for key in keys:
        entries = [found[stack].get(key) for stack in found]
        patients = next((str(entry["patients"]) for entry in entries if entry is not None), MISSING)
        rows.append((key[1], [Cell(patients), *(_cell(entry, name, signed=signed) for entry in entries)]))
    if all(cell.text == MISSING for _, cells in rows for cell in cells[1:]):
        rows = []
    return Table(
        f"subgroups-{name.replace('_', '-')}-{task}",
        f"{title}: {task_title(task)}",
        f"{note} Groups of fewer than {SMALLEST} patients are not shown, nor shares of fewer; 'hidden' is a count that "
        "a small one could be worked out from. Beside each figure its 95 % interval over patients.",
        ["Group", "Patients", *(short_name(summary.data, stack) for stack in found)],
        rows,
        groups=heads(ATTRIBUTES.get(attribute, attribute) for attribute, _ in keys) if rows else {},
        folded=name != "auroc" or task != summary.tasks[0],
    )


def _cell(entry: Entry | None, name: str, *, signed: bool) -> Cell:
    if entry is None or name not in entry:
        return Cell(MISSING)
    gap = entry.get("gaps", {}).get(name)
    return figure(entry[name], signed=signed, strong=gap is not None and bool(gap["holds"]))
