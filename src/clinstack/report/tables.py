"""The report's tables, independent of where they are shown: HTML, Markdown and console render the same cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clinstack.evaluate.compare import MACRO
from clinstack.report.collect import STACKS
from clinstack.report.summary import HEAD, Summary, run_facts
from clinstack.tasks import OUTCOMES

MISSING = "–"
_METRIC_NAMES = {"auroc": "AUROC", "auroc_ovo": "AUROC, one-vs-one", "auroc_macro": "AUROC, macro"}


@dataclass(frozen=True)
class Cell:
    """A figure, what stands small beside it (mostly its interval), and whether it is bold."""

    text: str
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a header row and a header column.

    Parameters
    ----------
    key : str
        Anchor in the page.
    title, note : str
        Caption, and how to read it.
    columns : sequence of str
        Column heads, that of the header column first.
    rows : list of (str, list of Cell)
    words : bool
        Whether the cells are words, aligned left, rather than numbers.
    """

    key: str
    title: str
    note: str
    columns: Sequence[str]
    rows: list[tuple[str, list[Cell]]]
    words: bool = False


def stack_name(label: str) -> str:
    """Return a stack's name as in the paper's tables; a user's own label stays as it is."""
    return STACKS.get(label, label)


def task_name(task: str) -> str:
    """Return a task's short name."""
    return "Mean" if task == MACRO else OUTCOMES.get(task, task)


def task_title(task: str) -> str:
    """Return a task's short name and what it stands for."""
    words = task.replace("_", " ")
    return f"{task_name(task)} ({words})" if task in OUTCOMES else words


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number with a true minus sign, and a plus sign if ``signed``.

    A bound that rounds to zero keeps its sign, so that one can see on which side of zero it lies.
    """
    if value == 0:
        return f"{0:.{digits}f}"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write an interval as ``low to high``; empty when there is none."""
    if bounds is None:
        return ""
    return " to ".join(number(bound, digits, signed=signed) for bound in bounds)


def figure(estimate: dict[str, Any] | None, digits: int = 3, *, signed: bool = False, strong: bool = False) -> Cell:
    """Return the cell of an estimate, a dash when there is none."""
    if estimate is None or estimate["value"] is None:
        return Cell(MISSING)
    value = number(estimate["value"], digits, signed=signed)
    return Cell(value, interval(estimate["interval"], digits, signed=signed), strong)


def count(value: float | None) -> Cell:
    """Return a whole number with thousands separated."""
    return Cell(MISSING if value is None else f"{value:,.0f}")


def duration(seconds: float | None) -> Cell:
    """Return a time in the unit that suits it."""
    if seconds is None:
        return Cell(MISSING)
    if seconds < 100:
        return Cell(f"{seconds:.1f} s")
    return Cell(f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h")


def perplexity_digits(value: float | None) -> int:
    """Return how many decimals a perplexity needs."""
    return 1 if value is None or value >= 20 else 2


def excludes_zero(estimate: dict[str, Any] | None, *, above: bool) -> bool:
    """Whether the whole interval lies above (or below) zero."""
    if estimate is None or estimate["interval"] is None:
        return False
    low, high = estimate["interval"]
    return bool(low > 0 if above else high < 0)


def all_tables(summary: Summary) -> list[Table]:
    """Return the tables of the report that have something in them, in its order."""
    tables = [
        perplexity_table(summary),
        note_type_table(summary),
        auroc_table(summary),
        difference_table(summary),
        auprc_table(summary),
        test_table(summary),
        run_table(summary),
    ]
    return [table for table in tables if table.rows]


def perplexity_table(summary: Summary) -> Table:
    """Return held-out perplexity of the base and of each pretrained stack (the paper's Table 2)."""
    rows = [
        (
            stack_label(row["stack"]),
            [
                figure(row, perplexity_digits(row["value"])),
                figure({"value": row["bits_per_character"], "interval": row["bits_per_character_interval"]}),
                count(row["trainable_parameters"]) if row["trainable_parameters"] else Cell(MISSING),
            ],
        )
        for row in summary.perplexity_rows()
    ]
    details = next(iter(summary.perplexity.values()), None)
    held_out = (
        f"{details['notes']:,} {details['split']} notes of {details['patients']:,} patients unseen in pretraining, "
        f"{details['tokens']:,} tokens, each counted once. "
        if details
        else ""
    )
    return Table(
        "perplexity",
        "Perplexity on held-out notes",
        f"{held_out}Lower is better. Bits per character do not depend on the tokenizer. {_intervals(summary)}",
        ["Model", "Perplexity", "Bits per character", "Trainable parameters"],
        rows,
    )


def stack_label(label: str) -> str:
    """Return the name of a row of the perplexity table."""
    return {"base": "Base", "clinical": "+ Clinical LoRA"}.get(label, label)


def note_type_table(summary: Summary) -> Table:
    """Return perplexity by note type."""
    rows = []
    for label, details in summary.perplexity.items():
        for note_type, part in details["by_note_type"].items():
            base, adapted = part["base"]["perplexity"], part["adapted"]["perplexity"]
            name = note_type if len(summary.perplexity) == 1 else f"{note_type}, {label}"
            rows.append(
                (
                    name,
                    [
                        count(part["notes"]),
                        figure(base, perplexity_digits(base["value"])),
                        figure(adapted, perplexity_digits(adapted["value"])),
                        figure(part["ratio"], 2),
                    ],
                )
            )
    return Table(
        "note-types",
        "Perplexity by note type",
        "Base over adapted is how many times lower the perplexity became, on the same notes in each resample.",
        ["Note type", "Notes", "Base", "+ Clinical LoRA", "Base over adapted"],
        rows,
    )


def auroc_table(summary: Summary, name: Callable[[str], str] = stack_name) -> Table:
    """Return the AUROC of each stack on each task and on average (the paper's Table 3).

    ``name`` turns a stack's label into the head of its row.
    """
    columns = [*summary.tasks, *([MACRO] if len(summary.tasks) > 1 else [])]
    rows = []
    for stack in summary.data.stacks:
        cells = []
        for task in columns:
            against_head = summary.difference(stack, HEAD, task)
            cell = figure(summary.auroc(stack, task), strong=excludes_zero(against_head, above=True))
            if excludes_zero(against_head, above=False):
                cell = Cell(f"{cell.text} ▼", cell.detail)
            cells.append(cell)
        rows.append((name(stack), cells))
    metrics = "; ".join(
        f"{task_title(test['task'])}: {_METRIC_NAMES[test['metric']]}" for test in summary.comparison.tests
    )
    return Table(
        "auroc",
        "AUROC on the test patients",
        f"Bold: above the head alone by a paired difference whose interval excludes 0; ▼: below it likewise. "
        f"{metrics}. Mean is the plain mean over the tasks, only for stacks that have them all. {_intervals(summary)}",
        ["Stack", *(task_name(task) for task in columns)],
        rows,
    )


def difference_table(summary: Summary, tasks: Sequence[str] | None = None) -> Table:
    """Return the paired differences between stacks, on all tasks and on average or only on those of ``tasks``."""
    columns = tasks or [*summary.tasks, *([MACRO] if len(summary.tasks) > 1 else [])]
    pairs = dict.fromkeys((row["a"], row["b"]) for row in summary.comparison.differences)
    rows = []
    for a, b in pairs:
        estimates = [summary.difference(a, b, task) for task in columns]
        if not any(estimates):
            continue
        cells = [
            figure(one, signed=True, strong=excludes_zero(one, above=True) or excludes_zero(one, above=False))
            for one in estimates
        ]
        rows.append((f"{short_name(a)} − {short_name(b)}", cells))
    return Table(
        "differences",
        "Paired differences in AUROC",
        "First stack minus second, on the same test examples and the same resampled patients. Bold: the interval "
        "excludes 0. The intervals are not widened for the number of comparisons. Frozen and Trainable stand for the "
        "clinical LoRA so used, Downstream for the task's own LoRA above it.",
        ["Difference", *(task_name(task) for task in columns)],
        rows,
    )


SHORT_NAMES = {
    "head": "Head",
    "lora": "LoRA",
    "clinical-frozen": "Frozen",
    "clinical-frozen+lora": "Frozen + Downstream",
    "clinical-trainable": "Trainable",
    "clinical-trainable+lora": "Trainable + Downstream",
}


def short_name(label: str) -> str:
    """Return a stack's name for narrow places."""
    return SHORT_NAMES.get(label, label)


def auprc_table(summary: Summary) -> Table:
    """Return the AUPRC of each stack on each task."""
    rows = [
        (stack_name(stack), [figure(summary.auprc(stack, task)) for task in summary.tasks])
        for stack in summary.data.stacks
    ]
    shares = [
        f"{task_name(test['task'])} {100 * test['prevalence']:.1f} %"
        for test in summary.comparison.tests
        if test["prevalence"] is not None
    ]
    chance = f" A score without information reaches the share of positives: {', '.join(shares)}." if shares else ""
    return Table(
        "auprc",
        "AUPRC (average precision) on the test patients",
        f"Several classes: the plain mean over classes against the rest.{chance} With few positives the resampled "
        f"AUPRC runs high, so intervals reach further up than down. {_intervals(summary)}",
        ["Stack", *(task_name(task) for task in summary.tasks)],
        rows,
    )


def test_table(summary: Summary) -> Table:
    """Return what each test set is, with the classes that have no AUROC named."""
    rows = []
    for test in summary.comparison.tests:
        left_out = test["classes_left_out"]
        share = test["prevalence"]
        rows.append(
            (
                task_title(test["task"]),
                [
                    Cell(test["kind"]),
                    count(test["rows"]),
                    count(test["patients"]),
                    Cell(MISSING if share is None else f"{100 * share:.1f} %"),
                    Cell(f"{test['classes_scored']} of {test['classes']}"),
                    Cell(", ".join(left_out) if left_out else "none"),
                ],
            )
        )
    return Table(
        "tests",
        "Test sets, and classes left out",
        "A class that no test example carries, or that all carry, has no AUROC; it is in no average and is named here.",
        ["Task", "Kind", "Examples", "Patients", "Positive", "Classes scored", "Left out"],
        rows,
        words=True,
    )


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
    )


def _intervals(summary: Summary) -> str:
    return f"Beside each figure its 95 % interval ({summary.resamples:,} bootstrap resamples of patients)."
