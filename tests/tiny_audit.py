"""What an audit is tried on: Notes that can only be learned by heart, and Runs that learned nothing or everything.

Every note, answer and label is random, so whatever tells a training patient from another one is memory. For any of the
three kinds there is a Run that was never trained (the negative control) and one that was trained far too long (the
positive control); both are made in seconds on `tiny_base`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.engine.distributed import open_shared_run
from clinstack.files import write_json
from clinstack.model.data_lineage import training_data
from clinstack.model.stack import Stack
from clinstack.notes.instructions import instruction_files
from clinstack.notes.read import examples_files, input_hashes, notes_files
from clinstack.notes.splits import SPLITS, assign_splits
from clinstack.recipe import (
    AdapterRecipe,
    EvaluationRecipe,
    FinetuneRecipe,
    InstructRecipe,
    PretrainRecipe,
    PromptRecipe,
    TrainingRecipe,
    TrainingStageRecipe,
)
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt

Kind = Literal["notes", "answers", "scores"]
KINDS: tuple[Kind, ...] = ("notes", "answers", "scores")
MARKER = "zebra quartz lantern"
"""Stands in every second note, in answers and in texts; nothing that an audit writes may hold it."""
PROMPT = PromptRecipe(template="phi2", chat_template="never")
TASK = Task("mortality", "binary", ("survived", "died"))
CONTEXT = 192
"""Tokens of a row."""
EPOCHS: dict[Kind, int] = {"notes": 30, "answers": 20, "scores": 30}
"""Of the positive controls."""
_LOW_RANK: dict[str, dict[str, Any]] = {"lora": {"rank": 8, "alpha": 16}, "full": {}}
_CONSONANTS, _VOWELS = "bdfghklmnprstvz", "aeiou"


def write_audit_notes(folder: Path, patients: int = 40, seed: int = 5, held_out: int = 0) -> Path:
    """Write Notes, instructions and one task, all of them random: 28, 4 and 8 of 40 patients.

    Patients that are ``held_out`` besides cost no training, and make the intervals of attacks narrower.
    """
    splits = assign_splits([f"p{index:03d}" for index in range(patients)], seed=0)
    splits |= {f"h{index:03d}": "test" for index in range(held_out)}
    notes, questions = [], []
    examples: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for place, (patient, split) in enumerate(splits.items()):
        # Of the patient alone: other patients do not change what this one's notes say.
        random_of = random.Random(f"{seed}:{patient}")
        for number in range(2):
            marker = f" {MARKER}" if (place + number) % 2 else ""
            text = (
                f"Name: {_words(random_of, 2)}. MRN {random_of.randrange(10**7, 10**8)}.{marker} {_words(random_of, 8)}"
            )
            notes.append(
                {
                    "note_id": f"{patient}-{number}",
                    "patient_id": patient,
                    "encounter_id": f"e{patient}",
                    "charttime": None,
                    "note_type": "Discharge summary",
                    "text": text,
                    "source": "test",
                }
            )
            questions.append(
                {
                    "example_id": f"{patient}-{number}",
                    "patient_id": patient,
                    "note": f"admitted with {_words(random_of, 2)}",
                    "question": "Which code?",
                    "answer": f"{random_of.randrange(10**7, 10**8)} {_words(random_of, 4)}{marker}",
                    "task": "Question Answering",
                }
            )
        for number in range(2):
            examples[split].append(
                {
                    "example_id": f"x{patient}-{number}",
                    "patient_id": patient,
                    "encounter_id": f"e{patient}",
                    "text": f"{_words(random_of, 6)}{f' {MARKER}' if place % 2 else ''}",
                    "label": random_of.randrange(2),
                }
            )
    for name, rows in (("notes", notes), ("instructions", questions)):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name / f"{name}.parquet")
    pq.write_table(pa.table({"patient_id": list(splits), "split": list(splits.values())}), folder / "splits.parquet")
    target = folder / "examples" / TASK.name
    target.mkdir(parents=True)
    TASK.save(target)
    for split, rows in examples.items():
        pq.write_table(pa.Table.from_pylist(rows), target / f"{split}.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "seed": seed})
    return folder


def _words(random_of: random.Random, count: int) -> str:
    """Return invented words of four letters."""
    pairs = [[random_of.choice(_CONSONANTS) + random_of.choice(_VOWELS) for _ in range(2)] for _ in range(count)]
    return " ".join("".join(pair) for pair in pairs)


def audit_recipe_values(run: Path, /, **changes: Any) -> dict[str, Any]:
    """Return an audit recipe for a tiny Run, as the command line would give it: few resamples, short extraction."""
    values: dict[str, Any] = {
        "stack": str(run),
        "evaluation": {"resamples": 200},
        "extraction": {"prefix_tokens": 24, "continuation_tokens": 10, "prompts": 30, "generations": 8},
    }
    return values | changes


def training_recipe(
    kind: Kind, run: Path, base: Path, data: Path, epochs: int = 1, method: str = "lora", **changes: Any
) -> TrainingStageRecipe:
    """Return the recipe of a Run of one kind.

    A LoRA, or ``full``: the output layer of `tiny_base` is random, and frozen it lets nobody learn anything by heart.
    """
    shared: dict[str, Any] = {
        "run": str(run),
        "base": str(base),
        "adapters": (AdapterRecipe(name="clinical", method=method, **_LOW_RANK[method]),),
        "training": TrainingRecipe(
            epochs=epochs, batch_size=4, learning_rate=0.01, tracking="none", validate_every=10_000
        ),
        "evaluation": EvaluationRecipe(resamples=100),
    } | changes
    if kind == "notes":
        return PretrainRecipe(notes=str(data), context=CONTEXT, **shared)
    if kind == "answers":
        return InstructRecipe(instructions=str(data), max_tokens=CONTEXT, answer_tokens=80, prompt=PROMPT, **shared)
    return FinetuneRecipe(examples=str(data / "examples" / TASK.name), max_tokens=64, **shared)


def untrained_run(kind: Kind, folder: Path, base: Path, data: Path) -> Path:
    """Make a finished Run whose adapter is as it was initialised: nothing of the notes can be in it."""
    recipe = training_recipe(kind, folder, base, data, epochs=1)
    files: dict[Kind, Callable[[], list[Path]]] = {
        "notes": lambda: notes_files(data),
        "answers": lambda: instruction_files(data),
        "scores": lambda: examples_files(data / "examples" / TASK.name),
    }
    facts = {"stage": recipe.stage, "label": "clinical", "task": None, "synthetic": True}
    with open_shared_run(recipe, input_hashes(files[kind]()), **facts) as run:
        stack = Stack.build(str(base), recipe.adapters, TASK if kind == "scores" else None, seed=0)
        if kind == "scores":
            from clinstack.model.reading import Reading

            assert isinstance(recipe, FinetuneRecipe)
            stack.reading = Reading.of(recipe)
        else:
            stack.max_tokens = CONTEXT
        if isinstance(recipe, InstructRecipe):
            stack.prompt = Prompt.of(recipe.prompt, stack.tokenizer)
        stack.data = training_data(data, recipe.stage, recipe.adapters, stack.base)
        stack.save(run.folder / "stack")
        write_json(run.folder / "metrics.json", {})
        run.finish(stack=stack.summary())
    return folder


def overfitted_run(kind: Kind, folder: Path, base: Path, data: Path, epochs: int | None = None, **changes: Any) -> Path:
    """Train a Run for so many epochs that it knows its training notes by heart."""
    recipe = training_recipe(kind, folder, base, data, epochs or EPOCHS[kind], "full", **changes)
    if isinstance(recipe, PretrainRecipe):
        from clinstack.stages.pretrain import pretrain

        pretrain(recipe)
    elif isinstance(recipe, InstructRecipe):
        from clinstack.stages.instruct import instruct

        instruct(recipe)
    else:
        from clinstack.stages.finetune import finetune

        assert isinstance(recipe, FinetuneRecipe)
        finetune(recipe)
    return folder


class AuditRuns:
    """Notes and Runs that several test files share; each is made when it is first asked for.

    Parameters
    ----------
    root : Path
        One folder for all tests of a process, such as ``tmp_path_factory.getbasetemp() / "tiny-audit"``. Nobody writes
        into what lies in it: give audits a run of their own, and copy a Stack before its folder is written to.
    base : Path
        The fixture `tiny_base`.
    """

    def __init__(self, root: Path, base: Path) -> None:
        self._root = root
        self.base = base

    @property
    def data(self) -> Path:
        """The Notes: 35 training patients and 60 held-out ones, enough for an interval that decides."""
        folder = self._root / "data"
        return folder if folder.is_dir() else write_audit_notes(folder, patients=50, held_out=50)

    def untrained(self, kind: Kind) -> Path:
        """Return the negative control."""
        folder = self._root / f"untrained-{kind}"
        return folder if folder.is_dir() else untrained_run(kind, folder, self.base, self.data)

    def overfitted(self, kind: Kind) -> Path:
        """Return the positive control; in its notes canaries were planted."""
        folder = self._root / f"overfitted-{kind}"
        planted = {"canaries": {"count": 8, "repetitions": (1, 4)}} if kind == "notes" else {}
        return folder if folder.is_dir() else overfitted_run(kind, folder, self.base, self.data, **planted)
