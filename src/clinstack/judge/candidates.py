"""What a judge is to grade: the answers of several Runs, joined by example with the notes and the instructions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.notes.instructions import FOLDER, Instructions, instruction_files, read_instructions
from clinstack.notes.row_batches import check_columns
from clinstack.recipe.judge import REFERENCE, JudgeRecipe

ANSWERS_FILE = "answers.parquet"
_WITH_ANSWERS = ("generate", "evaluate")
_COLUMNS = ("example_id", "patient_id", "answer")


@dataclass(frozen=True)
class Candidates:
    """Instructions and the answers to each.

    Parameters
    ----------
    labels : list of str
        Of the answers, in the recipe's order, the reference last.
    instructions : Instructions
        Those that every label has an answer to.
    answers : dict of label to list of str
        In the order of the instructions.
    missing : dict of label to int
        Instructions that another label has an answer to and this one has not; they are not judged.
    splits : dict of str to int
        How many of the instructions are of each split's patients.
    """

    labels: list[str]
    instructions: Instructions
    answers: dict[str, list[str]]
    missing: dict[str, int]
    splits: dict[str, int]


def candidate_files(recipe: JudgeRecipe) -> list[Path]:
    """Return the files that a judge reads, for the Run to remember.

    Raises
    ------
    InputError
        One of ``answers`` is no finished Run of ``clinstack generate``, or a file is missing.
    """
    files = [_answers_file(Path(folder)) for folder in recipe.answers]
    tables = instruction_files(Path(recipe.instructions))
    further = {name: Path(path) for name, path in (("rubric", recipe.rubric), ("human", recipe.human)) if path}
    for name, path in further.items():
        if not path.is_file():
            raise InputError(f"{name}: {path} is missing; correct the path, or leave {name} out.")
    return [*files, *tables, *further.values()]


def read_candidates(recipe: JudgeRecipe) -> Candidates:
    """Read and join the answers.

    Raises
    ------
    InputError
        A Run answered other instructions, no instruction is answered by all, or a task does not occur.
    """
    folders = [Path(folder) for folder in recipe.answers]
    given = {
        label: _read_answers(_answers_file(folder)) for label, folder in zip(_labels(folders), folders, strict=True)
    }
    instructions = Path(recipe.instructions)
    tables = {sha256_file(file) for file in instruction_files(instructions) if file.parent.name == FOLDER}
    for folder in folders:
        if not tables <= set(read_json(folder / "run.json").get("inputs", {}).values()):
            raise InputError(
                f"answers: {folder} did not answer the instructions in {instructions} as they are now; name the folder "
                "that its answers were generated from, or run generate again."
            )
    splits = read_instructions(instructions, required=())
    split_of = {name: split for split, rows in splits.items() for name in rows.example_ids}
    patient_of = {
        name: patient
        for rows in splits.values()
        for name, patient in zip(rows.example_ids, rows.patient_ids, strict=True)
    }
    for folder, answers in zip(folders, given.values(), strict=True):
        foreign = next((name for name, (patient, _) in answers.items() if patient_of.get(name) != patient), None)
        if foreign is not None:
            raise InputError(
                f"answers: {folder} answers the example {foreign}, which {instructions} does not have with that "
                "patient; run generate again with --fresh."
            )
    rows = _joined(splits)
    asked = {name for answers in given.values() for name in answers}
    common = asked.intersection(*given.values())
    missing = {label: len(asked) - len(answers) for label, answers in given.items()}
    if not common:
        raise InputError("answers: no example is answered by all of these Runs; generate them on the same splits.")
    if recipe.tasks is not None:
        unknown = sorted(
            set(recipe.tasks)
            - {task for name, task in zip(rows.example_ids, rows.tasks, strict=True) if name in common}
        )
        if unknown:
            raise InputError(f"tasks: no example that all Runs answer is of the task {unknown[0]!r}.")
    chosen = rows.chosen(
        [
            place
            for place, (name, task) in enumerate(zip(rows.example_ids, rows.tasks, strict=True))
            if name in common and (recipe.tasks is None or task in recipe.tasks)
        ]
    ).sample(recipe.max_examples, recipe.seed)
    answers_of = {label: [answers[name][1] for name in chosen.example_ids] for label, answers in given.items()}
    if recipe.reference:
        answers_of[REFERENCE], missing[REFERENCE] = chosen.answers, 0
    counts = Counter(split_of[name] for name in chosen.example_ids)
    return Candidates(list(answers_of), chosen, answers_of, missing, {split: counts[split] for split in splits})


def _joined(splits: dict[str, Instructions]) -> Instructions:
    rows = Instructions()
    for part in splits.values():
        rows.example_ids.extend(part.example_ids)
        rows.patient_ids.extend(part.patient_ids)
        rows.notes.extend(part.notes)
        rows.questions.extend(part.questions)
        rows.answers.extend(part.answers)
        rows.tasks.extend(part.tasks)
    return rows


def _answers_file(folder: Path) -> Path:
    record = folder / "run.json"
    remedy = "name finished Runs of `clinstack generate`."
    if not record.is_file():
        raise InputError(f"answers: {folder} is no Run; {remedy}")
    facts = read_json(record)
    if facts.get("stage") not in _WITH_ANSWERS or facts.get("status") != "done":
        raise InputError(f"answers: {folder} is a Run of {facts.get('stage')}, {facts.get('status')}; {remedy}")
    file = folder / ANSWERS_FILE
    if not file.is_file():
        raise InputError(f"answers: {file} is missing; run generate again with --fresh.")
    return file


def _labels(folders: list[Path]) -> list[str]:
    """Return each Run's label; where several have the same, with the folder behind it, as the recipe writes it.

    `clinstack.notes.preference_pairs` finds the answers behind a score by the same rule.
    """
    labels = [str(read_json(folder / "run.json").get("label") or folder.name) for folder in folders]
    named = [
        f"{label} ({folder.as_posix()})" if labels.count(label) > 1 else label
        for label, folder in zip(labels, folders, strict=True)
    ]
    if REFERENCE in named:
        raise InputError(f"answers: a Run is labelled {REFERENCE}, which stands for the table's own answers.")
    return named


def _read_answers(file: Path) -> dict[str, tuple[str, str]]:
    """Return patient and answer of each example."""
    check_columns(file, _COLUMNS)
    columns = pq.read_table(file, columns=list(_COLUMNS)).to_pydict()
    answers: dict[str, tuple[str, str]] = {}
    for row, (name, patient, answer) in enumerate(zip(*(columns[column] for column in _COLUMNS), strict=True)):
        if name in answers:
            raise InputError(
                f"{file}, row {row + 1}: the example {name} stands twice; run generate again with --fresh."
            )
        if answer is None:
            raise InputError(f"{file}, row {row + 1}: there is no answer; run generate again with --fresh.")
        answers[str(name)] = str(patient), str(answer)
    return answers
