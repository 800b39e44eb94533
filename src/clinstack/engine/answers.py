"""Questions chosen, asked, answered and measured: what `clinstack generate` and `clinstack evaluate` share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.engine.generation import Generated, generate, readable_tokens
from clinstack.engine.progress import say_notes
from clinstack.errors import InputError
from clinstack.evaluate.text import measure_answers, text_metrics
from clinstack.files import replacing_file
from clinstack.model.stack import Stack
from clinstack.notes.instructions import Instructions
from clinstack.recipe import EvaluationRecipe, suggest
from clinstack.recipe.generate import DecodingRecipe
from clinstack.run import Run
from clinstack.tokens.prompt_fit import cut_prompts
from clinstack.tokens.prompts import Prompt, encode_prompts

ANSWERS, MEASURES = "answers.parquet", "measures.parquet"
_KEPT = "answers.partial.jsonl"
_MOST_OF_A_BASE = 2048
"""Tokens that an untouched base reads and writes where the recipe does not say: notes are rarely longer."""


def choose_questions(
    instructions: Mapping[str, Instructions],
    splits: Sequence[str],
    tasks: Sequence[str] | None,
    most: int | None,
    seed: int,
) -> dict[str, Instructions]:
    """Return the questions that are asked, by split, in the table's order.

    Raises
    ------
    InputError
        If a task is unknown, or a split has no question of the tasks.
    """
    known = sorted({task for rows in instructions.values() for task in rows.tasks})
    for task in tasks or ():
        if task not in known:
            hint = suggest(task, known) or f" They have {', '.join(known)}."
            raise InputError(f"tasks: the instructions have no task {task!r}.{hint}")
    chosen = {}
    for split in splits:
        rows = instructions[split]
        if tasks is not None:
            rows = rows.chosen([place for place, task in enumerate(rows.tasks) if task in tasks])
        if not len(rows):
            raise InputError(f"splits: {split} has no question of these tasks; name other splits or tasks.")
        chosen[split] = rows.sample(most, seed)
    return chosen


def answer_questions(
    stack: Stack,
    prompt: Prompt,
    questions: Mapping[str, Instructions],
    max_tokens: int | None,
    decoding: DecodingRecipe,
    evaluation: EvaluationRecipe,
    run: Run,
) -> dict[str, Any]:
    """Answer the questions, measure the answers, and write both into the Run.

    Parameters
    ----------
    stack : Stack
        A language model.
    prompt : Prompt
    questions : mapping of split to Instructions
    max_tokens : int or None
        Of prompt and answer together; what the stack was trained with when None.
    decoding : DecodingRecipe
    evaluation : EvaluationRecipe
    run : Run
        Gets ``answers.parquet`` (readable by its owner only) and ``measures.parquet``; until then it keeps what was
        answered before a kill.

    Returns
    -------
    dict
        For each split what `text_metrics` returns, and ``prompts``: what was read, and what the notes lost.
    """
    most = stack.max_tokens if max_tokens is None else max_tokens
    room = most - decoding.max_new_tokens
    if room < 1:
        raise InputError(
            f"max_tokens: {most} leaves no room for a prompt beside an answer of decoding.max_new_tokens = "
            f"{decoding.max_new_tokens}; raise the one or lower the other."
        )
    encoded = {
        split: encode_prompts(stack.tokenizer, prompt, rows.notes, rows.questions, room, names=rows.example_ids)
        for split, rows in questions.items()
    }
    say_notes(line for split, part in encoded.items() for line in cut_prompts(part.report, split, most))
    kept = run.folder / _KEPT
    answers, measures, new_tokens = [], [], 0
    began = time.monotonic()
    for split, rows in questions.items():
        ends = prompt.end_tokens(stack.tokenizer)
        found = generate(stack, encoded[split].ids, decoding, f"{split} answers", ends=ends, kept=kept)
        new_tokens += sum(answer.tokens for answer in found)
        answers.append(_answers_table(rows, split, found))
        measures.append(_measures_table(rows, split, found))
    run.record["generated"] = {"new_tokens": new_tokens, "seconds": round(time.monotonic() - began, 3)}
    _write(run.folder / ANSWERS, pa.concat_tables(answers))
    _write(run.folder / MEASURES, pa.concat_tables(measures))
    kept.unlink(missing_ok=True)
    return {
        split: text_metrics(table, evaluation.resamples, evaluation.seed, split) | {"prompts": encoded[split].report}
        for split, table in zip(questions, measures, strict=True)
    }


def context_of_base(stack: Stack) -> int:
    """Return the tokens that an untouched base reads and writes where nobody says: what it can, 2,048 at most."""
    return min(readable_tokens(stack) or _MOST_OF_A_BASE, _MOST_OF_A_BASE)


def _answers_table(rows: Instructions, split: str, found: Sequence[Generated]) -> pa.Table:
    return pa.table(
        {
            "example_id": rows.example_ids,
            "patient_id": rows.patient_ids,
            "split": [split] * len(rows),
            "task": rows.tasks,
            "answer": [answer.text for answer in found],
        },
        schema=pa.schema([(name, pa.string()) for name in ("example_id", "patient_id", "split", "task", "answer")]),
    )


def _measures_table(rows: Instructions, split: str, found: Sequence[Generated]) -> pa.Table:
    texts = [answer.text for answer in found]
    return measure_answers(rows, texts, split, [one.cut for one in found], [one.tokens for one in found])


def _write(path: Path, table: pa.Table) -> None:
    """Write a table that its owner only may read: answers are as confidential as notes."""
    with replacing_file(path) as temporary:
        temporary.touch(mode=0o600)
        pq.write_table(table, temporary)
