"""Tables of generate Runs, and what they come to in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clinstack.evaluate.text import LIST_TASKS
from clinstack.evaluate.text_compare import COMPARED
from clinstack.report.answers import NAMES, Answers
from clinstack.report.tables.cells import Cell, Table, count, figure, holds, interval, number, p_value

_MAIN = ("token_f1", "exact_match", "item_f1", "rougeL", "grounding", "refusal_sensitivity", "refusal_specificity")
_CONSOLE = ("token_f1", "rougeL", "grounding")
_MORE = ("rouge1", "rouge2", "grounded_answers", "empty", "cut", "answer_tokens")
_BY_TASK = ("token_f1", "exact_match", "rougeL", "grounding")


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
        "common with the reference. Exact match: the same after normalisation. "
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
        f"{word} in {_listed([_in_words(metric) for metric in metrics])}"
        for word, metrics in ((f"above “{reference}”", above), ("below it", below))
        if metrics
    ]
    if reference is None:
        return []
    if not parts:
        return [f"No difference between it and “{reference}” holds after Holm's correction."]
    return [f"It is {'; '.join(parts)}, by paired differences that hold after Holm's correction."]


def _in_words(metric: str) -> str:
    name = NAMES[metric]
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _value(answers: Answers, name: str) -> str:
    found = answers.metrics[name]["token_f1"]
    return f"{number(found['value'])} [{interval(found['interval'])}]" if found["interval"] else number(found["value"])
