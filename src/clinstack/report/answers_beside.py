"""Questions with the answers of all models beside each other: the only place where a report holds text of notes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clinstack.errors import InputError
from clinstack.evaluate.predictions import read_split
from clinstack.notes.instructions import Instructions, read_instructions
from clinstack.report.answers import MEASURES, Answers
from clinstack.report.collect import RunRecord
from clinstack.report.tables.cells import Cell, Table

ANSWERS = "answers.parquet"
EXAMPLES = "answer-examples"
"""Key of the table."""
_COLUMNS = ("example_id", "split", "answer")
_NOTHING = "(nothing)"
_CUT = " […]"


def example_table(answers: Answers, most: int, *, with_note_text: bool, seed: int) -> Table | None:
    """Return a table of questions, their reference answers, and what each model answered.

    Parameters
    ----------
    answers : Answers
    most : int
        Questions; 0 for none. They are drawn by seed, from each task in turn.
    with_note_text : bool
        Whether the answers to questions about real patients may be shown.
    seed : int

    Returns
    -------
    Table or None
        None where none is wanted.

    Raises
    ------
    InputError
        There are no answers, the patients are real and ``with_note_text`` is False, or the instructions that the Runs
        answered are not in their place.
    """
    if most == 0:
        return None
    if not answers.runs:
        raise InputError("--examples: there are no finished Runs of `clinstack generate` here; leave it out.")
    real = next((run for run in answers.runs.values() if not run.record.get("synthetic")), None)
    if real is not None and not with_note_text:
        raise InputError(
            f"--examples: {real.name} answers questions about notes that do not say that they are synthetic; the "
            "report would hold their text. Pass --with-note-text to put it there all the same, or leave --examples out."
        )
    runs = {name: run for name, run in answers.runs.items() if name not in answers.unpaired}
    texts = {name: _texts(run, answers.split) for name, run in runs.items()}
    questions = _questions(next(iter(runs.values())), answers.split)
    known = [
        place for place, name in enumerate(questions.example_ids) if all(name in found for found in texts.values())
    ]
    rows = []
    for place in _drawn(questions.chosen(known), most, seed):
        example = questions.chosen([known[place]])
        cells = [Cell(_line(example.answers[0]))]
        cells += [Cell(_line(found[example.example_ids[0]])) for found in texts.values()]
        rows.append((f"{_line(example.questions[0])} ({example.tasks[0]})", cells))
    return Table(
        EXAMPLES,
        "Answers beside each other",
        f"Questions about notes of {answers.split} patients, drawn by seed {seed} from each task in turn. […] "
        "stands where an answer had no end.",
        ["Question", "Reference", *texts],
        rows,
        words=True,
        prose=True,
    )


def _texts(run: RunRecord, split: str) -> dict[str, str]:
    """Return a Run's answers by example id."""
    table = read_split(run.folder / ANSWERS, _COLUMNS, split)
    measures = read_split(run.folder / MEASURES, ("example_id", "split", "cut"), split)
    cut = dict(zip(measures["example_id"].to_pylist(), measures["cut"].to_pylist(), strict=True))
    return {
        name: f"{answer}{_CUT if cut.get(name) else ''}" if answer else _NOTHING
        for name, answer in zip(table["example_id"].to_pylist(), table["answer"].to_pylist(), strict=True)
    }


def _questions(run: RunRecord, split: str) -> Instructions:
    recipe: Mapping[str, Any] = run.recipe
    folder = Path(str(recipe.get("instructions")))
    if not folder.is_dir():
        raise InputError(f"--examples: {folder}, whose questions {run.name} answered, is not here; leave it out.")
    return read_instructions(folder, required=[split])[split]


def _drawn(questions: Instructions, most: int, seed: int) -> list[int]:
    """Return places of questions: from each task in turn the next by a hash of seed and example id."""
    waiting: dict[str, list[tuple[str, int]]] = {}
    for place, (name, task) in enumerate(zip(questions.example_ids, questions.tasks, strict=True)):
        waiting.setdefault(task, []).append((hashlib.sha256(f"{seed}:{name}".encode()).hexdigest(), place))
    queues = [sorted(waiting[task], reverse=True) for task in sorted(waiting)]
    drawn: list[int] = []
    while any(queues) and len(drawn) < most:
        drawn += [queue.pop()[1] for queue in queues if queue][: most - len(drawn)]
    return drawn


def _line(text: str) -> str:
    return " ".join(text.split())
