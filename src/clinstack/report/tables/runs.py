"""Tables of the Runs themselves: sizes, times and seeds, what each row was allowed, and how recipes differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinstack.report.collect import RunRecord
from clinstack.report.summary import Summary, run_facts
from clinstack.report.tables.cells import MISSING, Cell, Table, count, duration
from clinstack.report.tables.names import grouped


def run_table(summary: Summary) -> Table:
    """Return sizes, times and seeds of the Runs."""
    rows = []
    for run in summary.data.runs:
        facts = run_facts(run)
        seeds = facts["seeds"]
        written = (
            ", ".join(f"{name} {value}" for name, value in seeds.items()) if isinstance(seeds, dict) else str(seeds)
        )
        trainable, parameters = facts["trainable_parameters"], facts["parameters"]
        share = f"{100 * trainable / parameters:.2f} %" if trainable is not None and parameters else MISSING
        rows.append(
            (facts["run"], [count(trainable), Cell(share), duration(facts["seconds"]), Cell(written or MISSING)])
        )
    return Table(
        "runs",
        "Trainable parameters and time of each run",
        "Time is that of the whole stage, evaluation included, on the machine named under “How to reproduce”.",
        ["Run", "Trainable parameters", "Of all", "Time", "Seeds"],
        rows,
        folded=len(rows) > 20,
    )


def budget_table(summary: Summary) -> Table:
    """Return what each row was allowed and used: trials of a search, epochs, trainable parameters, seeds, time."""
    data = summary.data
    rows = []
    for key in data.stacks:
        runs = [run for stacks in data.finetune.values() for run in stacks.get(key, [])]
        seeds = sorted({str(run.seed) for run in runs if run.seed is not None})
        seconds = [facts for run in runs if isinstance(facts := run_facts(run)["seconds"], (int, float))]
        budget = data.budgets.get(key, {})
        rows.append(
            (
                data.rows[key].name,
                [
                    Cell(str(budget.get("trials", MISSING))),
                    Cell(_spread([budget["epochs"]] if "epochs" in budget else _epochs(runs))),
                    Cell(_spread([run.metrics["best_epoch"] for run in runs if "best_epoch" in run.metrics])),
                    Cell(_spread([run.stack["trainable_parameters"] for run in runs if _trainable(run)])),
                    Cell(", ".join(seeds) or MISSING),
                    duration(sum(seconds) if seconds else None),
                ],
            )
        )
    return Table(
        "budgets",
        "What each row was allowed",
        "Trials of its search for each task, epochs of a training, the epoch whose weights were kept, trainable "
        "parameters with the head (it differs from task to task), seeds, and the time of its final runs together.",
        ["Stack", "Trials", "Epochs", "Kept epoch", "Trainable parameters", "Seeds", "Time"],
        rows,
        groups=grouped(data, data.stacks),
    )


def _trainable(run: RunRecord) -> bool:
    return run.stack.get("trainable_parameters") is not None


def _epochs(runs: list[RunRecord]) -> list[int]:
    trainings = [run.recipe.get("training") for run in runs]
    return [training["epochs"] for training in trainings if isinstance(training, dict) and "epochs" in training]


def _spread(values: list[Any]) -> str:
    if not values:
        return MISSING
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def recipe_table(runs: Mapping[str, RunRecord], stage: str) -> Table:
    """Return the keys of the recipes in which Runs of a stage differ."""
    flat = {name: _flat(run.recipe) for name, run in runs.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values if key != "run"))
    rows = []
    for key in keys:
        values = [_word(entries.get(key, MISSING)) for entries in flat.values()]
        if len(set(values)) > 1:
            rows.append((key, [Cell(value) for value in values]))
    return Table(
        f"recipes-{stage}",
        f"How the {stage} recipes differ",
        "Keys with the same value everywhere, and the folders that runs were written to, are left out.",
        ["Key", *runs],
        rows,
        words=True,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for place, entry in enumerate(value):
                result |= _flat(entry, f"{prefix}{key}[{place}].")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        # The last parts of a path only: the way to it is this machine's business.
        parts = value.split("/")
        return "/".join(parts[-3:]) if len(parts) > 3 else value.replace("\n", "\\n")
    if isinstance(value, list):
        return ", ".join(_word(entry) for entry in value) or "none"
    return str(value)
