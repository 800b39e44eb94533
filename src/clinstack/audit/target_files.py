"""What an audit finds on disk before a weight is read: the Stack, and the data that it was trained on.

::

    RUN/run.json, recipe.yaml ──▶ which Notes, examples or instructions ──▶ same hashes as when it was trained?
    a Stack without a Run     ──▶ those that a person names: that person's word
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.model.lineage import read_stack_record, run_record, stack_folder
from clinstack.notes.instructions import instruction_files
from clinstack.notes.preferences import preference_files
from clinstack.notes.read import examples_files, input_hashes, is_synthetic, notes_files
from clinstack.recipe import (
    AlignRecipe,
    FinetuneRecipe,
    InstructRecipe,
    PretrainRecipe,
    StageRecipe,
    parse_recipe,
    read_yaml,
)
from clinstack.recipe.audit import AuditRecipe

Kind = Literal["notes", "answers", "scores"]
KEYS: dict[Kind, str] = {"notes": "notes", "answers": "instructions", "scores": "examples"}
"""The recipe's key for the data of each kind."""


@dataclass(frozen=True)
class TargetFiles:
    """What is audited, as far as it is known before a weight is read.

    Parameters
    ----------
    kind : {"notes", "answers", "scores"}
        What is attacked: the losses of notes, those of answers, or a classifier's scores.
    stack_folder : Path
    run_folder : Path or None
        The Run that the Stack lies in.
    run_record : dict
        Its ``run.json``; empty without a Run.
    training : StageRecipe or None
        Its resolved recipe.
    data : Path
        The Notes, the task's examples, the instructions or the preferences.
    inputs : dict of str to str
        Hashes of the data's files.
    recorded : bool
        Whether the Run says that it was trained on exactly these files. Otherwise it is the word of whoever asked.
    """

    kind: Kind
    stack_folder: Path
    run_folder: Path | None
    run_record: dict[str, Any]
    training: StageRecipe | None
    data: Path
    inputs: dict[str, str]
    recorded: bool

    @property
    def stack_fingerprint(self) -> str:
        """Hash of ``stack.json``, which names every weight."""
        return sha256_file(self.stack_folder / "stack.json")

    @property
    def synthetic(self) -> bool:
        """Whether the data say that they are invented."""
        return is_synthetic(self.data)


def find_target(recipe: AuditRecipe) -> TargetFiles:
    """Find what a recipe audits, and hold the data against what the Run recorded.

    Raises
    ------
    InputError
        If there is no such Stack, its training data are not recorded and none are named, they are of another kind than
        the Stack, or they changed since the training.
    """
    folder = stack_folder(Path(recipe.stack))
    record = read_stack_record(folder)
    of_run = run_record(folder)
    run_folder = folder.parent if of_run else None
    training = _training(run_folder)
    named = next((key for key in KEYS.values() if getattr(recipe, key) is not None), None)
    if named is None:
        data, kind = _recorded_data(recipe, record, training)
    else:
        data = Path(getattr(recipe, named))
        kind = next(kind for kind, key in KEYS.items() if key == named)
    _check_kind(recipe, record, kind)
    inputs = input_hashes(_files(data, kind, training if named is None else None))
    recorded = training is not None and _trained_on(training, kind)
    if recorded:
        _check_unchanged(inputs, of_run, data)
    return TargetFiles(kind, folder, run_folder, of_run, training, data, inputs, recorded)


def _training(run_folder: Path | None) -> StageRecipe | None:
    if run_folder is None or not (run_folder / "recipe.yaml").is_file():
        return None
    file = run_folder / "recipe.yaml"
    return parse_recipe(read_yaml(file), str(file))


def _recorded_data(recipe: AuditRecipe, record: dict[str, Any], training: StageRecipe | None) -> tuple[Path, Kind]:
    """Return what the Run was trained on."""
    if isinstance(training, PretrainRecipe):
        return Path(training.notes), "notes"
    if isinstance(training, InstructRecipe):
        return Path(training.instructions), "answers"
    if isinstance(training, AlignRecipe):
        return Path(training.preferences), "answers"
    if isinstance(training, FinetuneRecipe):
        return Path(training.examples), "scores"
    key = "examples" if record["task"] else "instructions" if record.get("prompt") else "notes"
    raise InputError(
        f"stack: {recipe.stack} lies in no Run that says what it was trained on; name it as {key}=FOLDER. That its "
        "train patients were trained on, and its test patients were not, is then your word."
    )


def _check_kind(recipe: AuditRecipe, record: dict[str, Any], kind: Kind) -> None:
    task = record["task"]
    if kind == "scores" and not task:
        raise InputError(f"examples: {recipe.stack} is a language model without a head; give it notes or instructions.")
    if kind != "scores" and task:
        raise InputError(
            f"{KEYS[kind]}: {recipe.stack} is a classifier for {task['name']}, and only its scores can be attacked; "
            "give it examples."
        )
    if kind == "answers" and not record.get("prompt"):
        raise InputError(f"instructions: {recipe.stack} was not trained on instructions; give it notes.")


def _files(data: Path, kind: Kind, training: StageRecipe | None) -> list[Path]:
    if kind == "scores":
        return examples_files(data)
    if kind == "notes":
        return notes_files(data)
    return preference_files(data) if isinstance(training, AlignRecipe) else instruction_files(data)


def _trained_on(training: StageRecipe, kind: Kind) -> bool:
    """Whether a Run's own training is of the kind that is attacked, and not that of a stack beneath."""
    wanted: dict[Kind, tuple[type[StageRecipe], ...]] = {
        "notes": (PretrainRecipe,),
        "answers": (InstructRecipe, AlignRecipe),
        "scores": (FinetuneRecipe,),
    }
    return isinstance(training, wanted[kind])


def _check_unchanged(inputs: dict[str, str], of_run: dict[str, Any], data: Path) -> None:
    """Compare by content: the folder may have moved."""
    known = set(of_run.get("inputs", {}).values())
    changed = next((name for name, value in inputs.items() if value not in known), None)
    if changed is not None:
        raise InputError(
            f"{changed} is not what the Run was trained on: it has changed since. Bring back the data as they were in "
            f"{data}, name the folder where they are, or train again."
        )
