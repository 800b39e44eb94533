"""Preference pairs out of generated answers: by a judge's scores, or by what the note bears out.

Of each question there is one pair at most, of its best and its worst answer, so that a question with many answers does
not count more than others. What was left out, and why, stands in ``attrition.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file
from clinstack.notes.attrition import Attrition
from clinstack.notes.grounding import check_grounding, is_refusal
from clinstack.notes.instructions import Instructions, read_instructions
from clinstack.notes.preferences import write_preferences
from clinstack.notes.prepared import Progress, prepared_folder
from clinstack.notes.read import is_synthetic
from clinstack.notes.row_batches import batches

REFERENCE = "reference"
"""Label of the instructions' own answers."""
_GENERATE = ("example_id", "patient_id", "answer")
_SCORES = ("example_id", "answers", "score")


@dataclass(frozen=True)
class Answers:
    """The answers of one generate Run, by example."""

    label: str
    folder: Path
    by_example: dict[str, str]
    instructions: Path


@dataclass(frozen=True)
class _Candidate:
    """An answer to a question; the higher its score the better, None where it must be neither chosen nor rejected."""

    label: str
    text: str
    score: float | None


def read_answers(runs: Sequence[Path]) -> list[Answers]:
    """Read generate Runs; where several have the same label, the folder stands behind it, as a judge writes it.

    Raises
    ------
    InputError
        If one is no finished generate Run.
    """
    labels = [str(_finished(folder, "generate", "--answers")["label"]) for folder in runs]
    result: list[Answers] = []
    for folder, label in zip(runs, labels, strict=True):
        found: dict[str, str] = {}
        for _, batch in batches(folder / "answers.parquet", _GENERATE):
            found.update(zip(batch["example_id"].to_pylist(), batch["answer"].to_pylist(), strict=True))
        recipe = _recipe_of(folder)
        name = f"{label} ({folder.as_posix()})" if labels.count(label) > 1 else label
        result.append(Answers(name, folder, found, Path(recipe["instructions"])))
    return result


def pairs_from_judge(
    out: Path,
    judge: Path,
    instructions: Path | None = None,
    margin: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make pairs of answers that a judge scored differently, and write their folder.

    Parameters
    ----------
    out : Path
    judge : Path
        A finished judge Run. An answer's score is the mean over the times that it was shown and the reply could be
        read. The generate Runs that it scored must be where they were.
    instructions : Path, optional
        Where the questions are; as the judge's recipe says it when not given.
    margin : float
        The scores of a pair are at least so far apart.
    seed : int
        Of which answer is taken among equally good ones.

    Raises
    ------
    InputError
        If a Run is none, or nothing is left.
    """
    _finished(judge, "judge", "--judge")
    if margin <= 0:
        raise InputError(f"--margin {margin}: equal answers make no pair; give more than 0.")
    recipe = _recipe_of(judge)
    answers = read_answers([Path(folder) for folder in recipe["answers"]])
    known = {item.label: item for item in answers}
    scores: dict[tuple[str, str], list[float]] = {}
    for _, batch in batches(judge / "scores.parquet", _SCORES):
        for example, label, score in zip(*(batch[name].to_pylist() for name in _SCORES), strict=True):
            if label not in known and label != REFERENCE:
                raise InputError(
                    f"--judge {judge}: it scored the answers of {label!r}, which is no label of the Runs in its "
                    "recipe any more; judge them again."
                )
            if score is not None:
                scores.setdefault((example, label), []).append(float(score))

    def candidates(example: str, rows: Instructions, place: int) -> list[_Candidate]:
        texts = [(label, item.by_example.get(example)) for label, item in known.items()]
        texts.append((REFERENCE, rows.answers[place]))
        scored = [(label, text, scores.get((example, label))) for label, text in texts if text is not None]
        return [_Candidate(label, text, sum(marks) / len(marks)) for label, text, marks in scored if marks]

    facts = {
        "source": "preferences",
        "pairs_by": "judge",
        "margin": margin,
        "runs": _hashes([judge / "scores.parquet", *(item.folder / "answers.parquet" for item in answers)]),
    }
    steps = ("questions that were answered", "two answers with a score", f"scores at least {margin:g} apart")
    source = instructions or Path(recipe["instructions"])
    return _write(out, answers, source, candidates, margin, steps, facts, seed, progress)


def pairs_from_grounding(
    out: Path,
    answers: Sequence[Answers],
    instructions: Path | None = None,
    *,
    reference: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make pairs of a grounded and an ungrounded answer to the same question, and write their folder.

    Chosen is an answer whose numbers, dates and drugs all stand in the note, rejected one of which some do not
    (`clinstack.notes.grounding`). Where the instructions say whether a question can be answered, the right refusals
    are chosen and the wrong ones rejected, as `grounding_score` says.

    Parameters
    ----------
    reference : bool
        Let the instructions' own answers be chosen, or rejected, too.

    Raises
    ------
    InputError
        If nothing is left.
    """

    def candidates(example: str, rows: Instructions, place: int) -> list[_Candidate]:
        texts = [(item.label, item.by_example[example]) for item in answers if example in item.by_example]
        if reference:
            texts.append((REFERENCE, rows.answers[place]))
        answerable = None if rows.answerable is None else rows.answerable[place]
        return [_Candidate(label, text, grounding_score(text, rows.notes[place], answerable)) for label, text in texts]

    facts = {
        "source": "preferences",
        "pairs_by": "grounding",
        "reference": reference,
        "runs": _hashes([item.folder / "answers.parquet" for item in answers]),
    }
    steps = (
        "questions that were answered",
        "two answers, of which grounding says something",
        "one of them grounded, one not",
    )
    return _write(out, answers, instructions, candidates, 1.0, steps, facts, seed, progress)


def grounding_score(answer: str, note: str, answerable: bool | None) -> float | None:
    """Return 1 for an answer that the note bears out, 0 or less for one that it does not, None for neither.

    The more facts the note lacks the lower. Where it is known whether the note answers the question, a refusal is right
    exactly where it does not, and anything else is wrong there: pairs that only punished facts would teach to refuse.
    An answer without facts to check is not judged.
    """
    found = check_grounding(answer, note)
    if not found.is_grounded:
        return 1.0 - found.missing
    refuses = is_refusal(answer)
    if answerable is None:
        return 1.0 if found.checked and not refuses else None
    if refuses or not answerable:
        return 1.0 if refuses and not answerable else 0.0
    return 1.0 if found.checked else None


def _write(
    out: Path,
    answers: Sequence[Answers],
    instructions: Path | None,
    candidates: Callable[[str, Instructions, int], list[_Candidate]],
    margin: float,
    steps: tuple[str, str, str],
    facts: dict[str, Any],
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Choose a pair for each question, and write them with the splits of the instructions."""
    folder = instructions or _common_instructions(answers)
    splits = read_instructions(folder, required=())
    places = {name: (split, at) for split, rows in splits.items() for at, name in enumerate(rows.example_ids)}
    asked = list(dict.fromkeys(name for item in answers for name in item.by_example))
    strange = next((name for name in asked if name not in places), None)
    if strange is not None:
        raise InputError(
            f"--instructions {folder}: the example {strange} of the answers is not in it; name the folder that the "
            "answers were generated from."
        )
    pairs: list[dict[str, Any]] = []
    compared = apart = 0
    for number, name in enumerate(asked):
        if progress and number % 100 == 0:
            progress("Choosing pairs", number, len(asked))
        split, at = places[name]
        rows = splits[split]
        known = [item for item in candidates(name, rows, at) if item.score is not None and item.text.strip()]
        if len(known) < 2:
            continue
        compared += 1
        best, worst = _best_and_worst(known, name, seed)
        distance = float(best.score or 0.0) - float(worst.score or 0.0)
        if distance < margin:
            continue
        apart += 1
        if best.text.strip() == worst.text.strip():
            continue
        note, question = rows.notes[at], rows.questions[at]
        pairs.append(
            {
                "example_id": name,
                "patient_id": rows.patient_ids[at],
                "prompt": f"{note}\n\n{question}",
                "chosen": best.text,
                "rejected": worst.text,
                "note": note,
                "question": question,
                "task": rows.tasks[at],
                "chosen_from": best.label,
                "rejected_from": worst.label,
                "margin": distance,
            }
        )
    attrition = Attrition()
    for step, kept in zip(steps, (len(asked), compared, apart), strict=True):
        attrition.step(step, kept)
    attrition.step("the answers differ", len(pairs))
    facts = {**facts, "synthetic": is_synthetic(folder), "instructions": str(folder)}
    split_of = {patient: split for split, rows in splits.items() for patient in rows.patient_ids}
    with prepared_folder(out, progress) as prepared:
        return write_preferences(prepared, pairs, attrition, facts, seed, split_of)


def _best_and_worst(known: Sequence[_Candidate], example: str, seed: int) -> tuple[_Candidate, _Candidate]:
    """Return the answers with the highest and the lowest score; among equal ones the seed and the example decide."""

    def draw(item: _Candidate) -> bytes:
        return hashlib.sha256(f"{seed}:{example}:{item.label}".encode()).digest()

    ordered = sorted(known, key=lambda item: (float(item.score or 0.0), draw(item)))
    return ordered[-1], ordered[0]


def _common_instructions(answers: Sequence[Answers]) -> Path:
    first = answers[0]
    other = next((item for item in answers if item.instructions.resolve() != first.instructions.resolve()), None)
    if other is not None:
        raise InputError(
            f"--answers: {first.folder} answers {first.instructions}, {other.folder} answers {other.instructions}; "
            "name the one folder with --instructions, or leave one of the Runs out."
        )
    return first.instructions


def _finished(folder: Path, stage: str, option: str) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{option} {folder}: no Run (it has no run.json); name a finished {stage} Run.")
    record: dict[str, Any] = read_json(path)
    if record.get("stage") != stage:
        raise InputError(f"{option} {folder}: a Run of the stage {record.get('stage')}; name a {stage} Run.")
    if record.get("status") != "done":
        raise InputError(f"{option} {folder}: this Run is not finished; start it again to complete it.")
    return record


def _recipe_of(run: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    return recipe


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {str(file): sha256_file(file) for file in files}
