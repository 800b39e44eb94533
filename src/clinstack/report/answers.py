"""Generate Runs in a report: whose answers are nearest to the references, what the notes say of them, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clinstack.evaluate.predictions import read_splits
from clinstack.evaluate.text import LIST_TASKS, text_metrics
from clinstack.evaluate.text_compare import ALL, COMPARED, compare_answers, read_measures, same_examples
from clinstack.report.collect import RunRecord
from clinstack.report.tables.cells import Cell, Table, count, figure, holds, interval, number, p_value

MEASURES = "measures.parquet"
NAMES = {
    "token_f1": "Token F1",
    "exact_match": "Exact",
    "item_f1": "Item F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "grounding": "Grounding",
    "grounded_answers": "Grounded answers",
    "refusal_sensitivity": "Refusal sensitivity",
    "refusal_specificity": "Refusal specificity",
    "empty": "Empty",
    "cut": "Cut",
    "answer_tokens": "Tokens",
}
_MAIN = ("token_f1", "exact_match", "item_f1", "rougeL", "grounding", "refusal_sensitivity", "refusal_specificity")
_CONSOLE = ("token_f1", "rougeL", "grounding")
_MORE = ("rouge1", "rouge2", "grounded_answers", "empty", "cut", "answer_tokens")
_BY_TASK = ("token_f1", "exact_match", "rougeL", "grounding")
_BASE = "base"


@dataclass(frozen=True)
class Answers:
    """The figures of all generate Runs, computed once from their measures.

    Parameters
    ----------
    runs : dict of row name to RunRecord
        In the order of the tables: untouched bases first.
    split : str
        Whose questions were answered.
    metrics : dict of row name to dict
        As `text_metrics` returns them.
    differences : list of dict
        As `compare_answers` returns them.
    references : dict of row name to row name
        The untouched base that a row is held against.
    unpaired : list of str
        Rows that answered other questions than most, and so stand in no difference.
    without : list of str
        Rows without an answer to a question of the split.
    """

    runs: dict[str, RunRecord] = field(default_factory=dict)
    split: str = "test"
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def difference(self, a: str, b: str | None, metric: str, task: str = ALL) -> dict[str, Any] | None:
        """Return the figure of a minus that of b."""
        keys = {"a": a, "b": b, "metric": metric, "task": task}
        return next((row for row in self.differences if all(row[key] == keys[key] for key in keys)), None)

    def tasks(self) -> list[str]:
        """Return the names of the tasks, by alphabet."""
        return sorted({task for metrics in self.metrics.values() for task in metrics["by_task"]})

    def to_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` has of answers: ``answers``, a row for each Run, and ``answer_differences``."""
        if not self.runs:
            return {}
        rows = [
            {
                "answers": name,
                "run": self.runs[name].name,
                "base": self.runs[name].base,
                "stack": self.runs[name].label,
                "shots": shots_of(self.runs[name]),
                **{key: value for key, value in metrics.items() if key != "bootstrap"},
            }
            for name, metrics in self.metrics.items()
        ]
        return {"answers": rows, "answer_differences": [dict(row) for row in self.differences]}


def name_runs(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Return generate Runs by the names of their rows: untouched bases first, each by its solved examples.

    Where two would be called alike, the name says their folders too.
    """
    several = len({run.base for run in runs}) > 1
    ordered = sorted(runs, key=lambda run: (str(run.base), run.label != _BASE, shots_of(run), run.label, run.name))
    called = [f"{run.base}: {_name(run)}" if several else _name(run) for run in ordered]
    often = Counter(called)
    return {f"{name} ({run.name})" if often[name] > 1 else name: run for name, run in zip(called, ordered, strict=True)}


def _name(run: RunRecord) -> str:
    shots = shots_of(run)
    shown = f", {shots} shot{'s' if shots > 1 else ''}" if shots else ""
    return f"Base{shown or ', zero-shot'}" if run.label == _BASE else f"{run.label}{shown}"


def shots_of(run: RunRecord) -> int:
    """Return how many solved examples stand in a Run's prompt."""
    return int(run.record.get("shots") or 0)


def measure_runs(runs: Mapping[str, RunRecord], resamples: int, seed: int) -> Answers:
    """Compute the figures of all Runs, and their paired differences.

    Parameters
    ----------
    runs : mapping of row name to RunRecord
    resamples, seed : int
        Of the bootstrap over patients; the same draws for all Runs of the same questions.

    Raises
    ------
    InputError
        A Run's measures are missing or broken.
    """
    if not runs:
        return Answers()
    splits = {name: read_splits(run.folder / MEASURES) for name, run in runs.items()}
    split = next(one for one in ("test", "validation", "train") if any(one in found for found in splits.values()))
    shown = {name: run for name, run in runs.items() if split in splits[name]}
    tables = {name: read_measures(run.folder / MEASURES, split) for name, run in shown.items()}
    groups: list[list[str]] = []
    for name, table in tables.items():
        own = next((group for group in groups if same_examples(tables[group[0]], table)), None)
        if own is None:
            groups.append([name])
        else:
            own.append(name)
    paired = max(groups, key=len)
    references = _references({name: shown[name] for name in paired})
    pairs = _pairs({name: shown[name] for name in paired}, references)
    return Answers(
        runs=dict(shown),
        split=split,
        metrics={name: text_metrics(table, resamples, seed, split) for name, table in tables.items()},
        differences=compare_answers({name: tables[name] for name in paired}, pairs, resamples, seed, split),
        references=references,
        unpaired=[name for name in shown if name not in paired],
        without=[name for name in runs if name not in shown],
    )


def _references(runs: Mapping[str, RunRecord]) -> dict[str, str]:
    """Return for each row the untouched base without solved examples that it stands on."""
    bases: dict[str | None, str] = {}
    for name, run in runs.items():
        if run.label == _BASE and not shots_of(run):
            bases.setdefault(run.stack.get("fingerprint"), name)
    found = {name: bases.get(run.stack.get("fingerprint")) for name, run in runs.items()}
    return {name: base for name, base in found.items() if base is not None and base != name}


def _pairs(runs: Mapping[str, RunRecord], references: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each row against its base, then tuned ones against prompted ones, and against what they stand on."""
    pairs = list(references.items())
    same_base = [
        (a, b)
        for a in runs
        for b in runs
        if a != b and runs[a].stack.get("fingerprint") == runs[b].stack.get("fingerprint")
    ]
    tuned = {name for name, run in runs.items() if run.label != _BASE}
    pairs += [(a, b) for a, b in same_base if a in tuned and runs[b].label == _BASE and shots_of(runs[b])]
    pairs += [(a, b) for a, b in same_base if runs[a].label.startswith(f"{runs[b].label}+") and b in tuned]
    return list(dict.fromkeys(pairs))


# ---------------------------------------------------------------------- tables and sentences


def answer_tables(answers: Answers) -> list[Table]:
    """Return the tables of generate Runs that have something in them."""
    if not answers.runs:
        return []
    tables = [_main_table(answers), _difference_table(answers), _task_table(answers), _more_table(answers)]
    return [table for table in tables if table.rows]


def console_table(answers: Answers) -> Table | None:
    """Return the table of as many headline figures as a terminal has room for; None without any Run."""
    return _main_table(answers, _CONSOLE) if answers.runs else None


def _main_table(answers: Answers, wanted: Sequence[str] = _MAIN) -> Table:
    metrics = _known(answers, wanted)
    rows = []
    for name, found in answers.metrics.items():
        reference = answers.references.get(name)
        cells = [
            figure(found.get(metric), strong=holds(answers.difference(name, reference, metric), above=True))
            for metric in metrics
        ]
        rows.append((name, [*cells, count(found["examples"])]))
    note = (
        f"Answers to the questions of {answers.split} patients, with 95 % intervals over patients. Token F1: words in "
        "common with the reference. Exact: the same after normalisation. "
    )
    if "item_f1" in metrics:
        note += f"Item F1: items of lists in common ({', '.join(LIST_TASKS)}). "
    note += "Grounding: the share of the numbers, dates and drugs of all answers that their notes hold. "
    if "refusal_sensitivity" in metrics:
        note += (
            "Refusal sensitivity: the share of the questions without an answer in the note that were refused; "
            "specificity: the share of the others that were not. "
        )
    note += "Bold: above the untouched base by a paired difference that holds after Holm's correction."
    return Table(
        "answers", "Answers to questions about notes", note, ["Answers of", *_heads(metrics), "Questions"], rows
    )


def _difference_table(answers: Answers) -> Table:
    metrics = [name for name in COMPARED if any(row["metric"] == name for row in answers.differences)]
    pairs = dict.fromkeys((row["a"], row["b"]) for row in answers.differences)
    rows = [
        (f"{a} − {b}", [_difference_cell(answers.difference(a, b, metric)) for metric in metrics]) for a, b in pairs
    ]
    return Table(
        "answer-differences",
        "What training and prompting change",
        "Paired differences on the same questions, with 95 % intervals over patients and p-values after Holm's "
        "correction for all differences of this table. Bold: it holds.",
        ["Difference", *_heads(metrics)],
        rows,
    )


def _difference_cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return figure(None)
    cell = figure(row, signed=True, strong=bool(row["holds"]))
    detail = "; ".join(part for part in (cell.detail, p_value(row["p_holm"])) if part)
    return Cell(cell.text, detail, cell.strong)


def _task_table(answers: Answers) -> Table:
    metrics = _known(answers, _BY_TASK)
    rows: list[tuple[str, list[Cell]]] = []
    groups: dict[int, str] = {}
    for task in answers.tasks():
        groups[len(rows)] = task
        for name, whole in answers.metrics.items():
            found = whole["by_task"].get(task)
            if found is None:
                continue
            reference = answers.references.get(name)
            cells = [
                figure(found.get(metric), strong=holds(answers.difference(name, reference, metric, task), above=True))
                for metric in metrics
            ]
            rows.append((name, [*cells, count(found["examples"])]))
    return Table(
        "answer-tasks",
        "Answers by task",
        "As above, for each task by itself. Bold: token F1 or grounding is above that of the untouched base by a "
        "paired difference that holds after a correction for all tasks and models; the others are not tested by task.",
        ["Answers of", *_heads(metrics), "Questions"],
        rows,
        groups=groups,
    )


def _more_table(answers: Answers) -> Table:
    metrics = _known(answers, _MORE)
    rows = [
        (name, [figure(found.get(metric), 1 if metric == "answer_tokens" else 3) for metric in metrics])
        for name, found in answers.metrics.items()
    ]
    return Table(
        "answers-more",
        "More about the answers",
        "ROUGE as F measures. Grounded answers: of the answers that hold a number, a date or a drug, the share whose "
        "notes hold all of them. Empty: no text at all. Cut: no end within decoding.max_new_tokens. Tokens: the mean "
        "length of an answer, its end included.",
        ["Answers of", *_heads(metrics)],
        rows,
        folded=True,
    )


def _known(answers: Answers, metrics: Sequence[str]) -> list[str]:
    """Return the figures that any Run has."""
    return [name for name in metrics if any(_has(found, name) for found in answers.metrics.values())]


def _has(metrics: Mapping[str, Any], name: str) -> bool:
    return name in metrics and metrics[name]["value"] is not None


def _heads(metrics: Sequence[str]) -> list[str]:
    return [NAMES[name] for name in metrics]


def answer_sentences(answers: Answers) -> list[str]:
    """Say whose answers are nearest to the references, and what holds against the untouched base."""
    sentences = []
    if len(answers.runs) > 1:
        best = max(answers.metrics, key=lambda name: answers.metrics[name]["token_f1"]["value"])
        sentence = f"Of {len(answers.runs)} models “{best}” has the highest token F1: {_value(answers, best)}"
        reference = answers.references.get(best)
        if reference is not None:
            sentence += f"; “{reference}” has {_value(answers, reference)}"
        sentences.append(f"{sentence}.")
        sentences += _changes(answers, best, reference)
    for names, why in (
        (answers.unpaired, "answered other questions than the others, and stand in no difference"),
        (answers.without, f"have no answers to questions of {answers.split} patients, and stand in no table"),
    ):
        if names:
            sentences.append(f"These {why}: {', '.join(f'“{name}”' for name in names)}.")
    return sentences


def _changes(answers: Answers, name: str, reference: str | None) -> list[str]:
    above = [metric for metric in COMPARED if holds(answers.difference(name, reference, metric), above=True)]
    below = [metric for metric in COMPARED if holds(answers.difference(name, reference, metric), above=False)]
    parts = [
        f"{word} in {', '.join(NAMES[metric] for metric in metrics)}"
        for word, metrics in (("above it", above), ("below it", below))
        if metrics
    ]
    if reference is None:
        return []
    what = " and ".join(parts) or "not apart from it in any figure"
    return [f"Against “{reference}” it is {what}, by paired differences that hold after Holm's correction."]


def _value(answers: Answers, name: str) -> str:
    found = answers.metrics[name]["token_f1"]
    return f"{number(found['value'])} [{interval(found['interval'])}]" if found["interval"] else number(found["value"])
