"""What is audited: an opened Stack, and the notes that it was trained on beside notes that it never saw.

::

    RUN/run.json, recipe.yaml ──▶ which Notes, which split ──▶ same files? ──▶ train patients   = members
    RUN/stack                 ──▶ Stack                                        test patients    = non-members

Both sides come from the same Notes and are split by patient, so that nothing but the training tells them apart. Of a
Stack without a Run a person names the Notes, and that their train patients were trained on is that person's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinstack.audit.target_files import KEYS
from clinstack.audit.target_files import Kind as Kind
from clinstack.audit.target_files import TargetFiles as TargetFiles
from clinstack.audit.target_files import find_target as find_target
from clinstack.errors import InputError
from clinstack.notes.instructions import Instructions, read_instructions
from clinstack.notes.preferences import read_preferences
from clinstack.notes.read import Examples, NotesSurvey, read_examples, survey_notes
from clinstack.recipe import AlignRecipe, InstructRecipe, PretrainRecipe, StageRecipe
from clinstack.recipe.audit import AuditRecipe
from clinstack.tokens.notes import NoteTokens

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.tokens.prompts import EncodedPairs

Side = Literal["train", "test"]
MEMBERS: Side = "train"
NON_MEMBERS: Side = "test"
MINIMUM_PATIENTS = 5
"""Of each side: below, an interval over patients says nothing."""
ANSWER_TOKENS = 128
"""Left to an answer where no recipe says how many were, as instruction tuning does by default."""


class AuditTarget:
    """An opened Stack with its members and non-members. Make it with `AuditTarget.open`.

    Attributes
    ----------
    files : TargetFiles
        What was found on disk; its kind, folders, record and recipe are attributes here too.
    stack : Stack
        Opened, on its device, in evaluation mode.
    max_notes : int or None
        Of each side at most.
    seed : int
        Draws them.
    """

    members_split: Side = MEMBERS
    non_members_split: Side = NON_MEMBERS

    def __init__(self, files: TargetFiles, stack: Stack, recipe: AuditRecipe) -> None:
        self.files = files
        self.stack = stack
        self.max_notes = recipe.max_notes
        self.seed = recipe.evaluation.seed
        self._recipe = recipe

    @classmethod
    def open(cls, files: TargetFiles, recipe: AuditRecipe) -> AuditTarget:
        """Load the Stack, verify its fingerprints, and move it to the device."""
        from clinstack.engine.sharding import place
        from clinstack.model.stack import Stack

        stack = Stack.load(files.stack_folder, recipe.base)
        place(stack)
        stack.eval()
        return cls(files, stack, recipe)

    def open_reference(self) -> Stack | None:
        """Load the recipe's reference Stack; None where there is none, and the adapters are switched off instead.

        Raises
        ------
        InputError
            If it is on another base, or of another kind.
        """
        if self._recipe.reference is None:
            return None
        from clinstack.engine.sharding import place
        from clinstack.model.stack import Stack

        reference = Stack.load(Path(self._recipe.reference), self._recipe.base)
        if reference.base.fingerprint != self.stack.base.fingerprint:
            raise InputError(
                f"reference: {self._recipe.reference} is on another base ({reference.base.name}); name a stack on "
                f"{self.stack.base.name}, or leave it out."
            )
        mine, other = (stack.task.classes if stack.task else None for stack in (self.stack, reference))
        if mine != other:
            raise InputError(f"reference: {self._recipe.reference} is for another task; name one of the same kind.")
        place(reference)
        reference.eval()
        return reference

    # ------------------------------------------------------------------ what is known

    @property
    def kind(self) -> Kind:
        """What is attacked: "notes", "answers" or "scores"."""
        return self.files.kind

    @property
    def stack_folder(self) -> Path:
        """Folder of the Stack."""
        return self.files.stack_folder

    @property
    def run_folder(self) -> Path | None:
        """The Run that the Stack lies in; None for a bare Stack."""
        return self.files.run_folder

    @property
    def run_record(self) -> dict[str, Any]:
        """The Run's ``run.json``; empty without a Run."""
        return self.files.run_record

    @property
    def training(self) -> StageRecipe | None:
        """The Run's resolved recipe; None without a Run."""
        return self.files.training

    @property
    def data(self) -> Path:
        """Folder of the Notes, examples, instructions or preferences."""
        return self.files.data

    @property
    def context(self) -> int:
        """Tokens that the stack reads at most at once."""
        return self.stack.max_tokens

    # ------------------------------------------------------------------ notes

    @cached_property
    def survey(self) -> NotesSurvey:
        """Of the Notes, with the types that were trained on; for kind "notes" only.

        `clinstack.notes.read.stream_notes` gives the texts of a split's patients by it.
        """
        self._only("notes")
        types = self._recipe.note_types
        if types is None and isinstance(self.training, PretrainRecipe) and self.files.recorded:
            types = self.training.note_types
        return survey_notes(self.data, types)

    def all_notes(self, side: Side) -> NoteTokens:
        """Return the tokenised notes of a split's patients, memory-mapped, without begin and end tokens."""
        from clinstack.engine.language_modelling import open_notes

        place = self._recipe.tokens
        if place is None and isinstance(self.training, PretrainRecipe) and self._recipe.notes is None:
            place = self.training.tokens
        return open_notes(self.stack, self.survey, side, self.files.inputs, place)

    def notes(self, side: Side) -> NoteTokens:
        """Return at most ``max_notes`` notes of a side, drawn by the seed, all that a drawn patient has.

        Of a training that ended within its first epoch only notes whose beginning it read are members.

        Raises
        ------
        InputError
            If there are fewer than `MINIMUM_PATIENTS` patients.
        """
        notes = self.all_notes(side)
        read = self.read_in_training if side == MEMBERS else None
        eligible = np.arange(len(notes)) if read is None else np.flatnonzero(read)
        patients = notes.index["patient_id"].take(pa.array(eligible)).to_pylist()
        places = eligible[self._draw(patients, side)]
        return NoteTokens(notes.index.take(pa.array(places, pa.int64())), notes.documents.chosen(places))

    @cached_property
    def read_in_training(self) -> NDArray[np.bool_] | None:
        """Which notes' beginnings the training read, bool [notes]; None where it read all, or nobody can know.

        Only of a pretraining that ``max_steps`` ended: its rows are laid out anew, and its batches are a function of
        the seed. Canaries leave the layout of such a training as it is. A private one draws patients in secret.
        """
        from clinstack.engine.canary_planting import beginnings_read
        from clinstack.engine.language_modelling import lay_out_notes, usable_layout

        training = self.training
        if not isinstance(training, PretrainRecipe) or not self.files.recorded or training.privacy is not None:
            return None
        if training.training.max_steps is None:
            return None
        documents = self.all_notes(MEMBERS).documents
        rows = lay_out_notes(self.stack, documents, usable_layout(self.stack, training.layout), training.context)
        return beginnings_read(rows, training.training)

    # ------------------------------------------------------------------ answers

    @cached_property
    def all_instructions(self) -> dict[str, Instructions]:
        """Notes, questions and answers of each split; of preferences the preferred answers, where note and question
        are known.

        For kind "answers" only; of a recorded instruct Run those of the tasks that it was trained on.
        """
        self._only("answers")
        training = self.training if self._recipe.instructions is None or self.files.recorded else None
        if isinstance(training, AlignRecipe) and self._recipe.instructions is None:
            return _preferred(self.data)
        splits = read_instructions(self.data, required=(MEMBERS, NON_MEMBERS))
        if not isinstance(training, InstructRecipe):
            return splits
        if training.tasks is not None:
            for split, part in splits.items():
                splits[split] = part.chosen([at for at, task in enumerate(part.tasks) if task in training.tasks])
        splits[MEMBERS] = splits[MEMBERS].sample(training.max_examples, training.training.seed)
        return splits

    def instructions(self, side: Side) -> Instructions:
        """Return at most ``max_notes`` examples of a side, drawn as `notes` are."""
        rows = self.all_instructions[side]
        return rows.chosen(self._draw(rows.patient_ids, side))

    def encode(self, instructions: Instructions) -> EncodedPairs:
        """Return prompts and answers as tokens, cut as in training."""
        from clinstack.tokens.prompts import encode_pairs

        stack = self.stack
        assert stack.prompt is not None  # find_target looked
        answer_tokens = getattr(self.training, "answer_tokens", min(ANSWER_TOKENS, stack.max_tokens // 2))
        return encode_pairs(stack.tokenizer, stack.prompt, instructions, stack.max_tokens, answer_tokens)

    # ------------------------------------------------------------------ scores

    @cached_property
    def all_examples(self) -> dict[str, Examples]:
        """The task's examples of each split; for kind "scores" only.

        Raises
        ------
        InputError
            If their classes are not those of the stack.
        """
        self._only("scores")
        task, splits = read_examples(self.data)
        mine = self.stack.task
        assert mine is not None  # find_target looked
        if (task.kind, task.classes) != (mine.kind, mine.classes):
            raise InputError(f"examples: their classes are not those of the stack's task {mine.name}.")
        return splits

    def examples(self, side: Side) -> Examples:
        """Return at most ``max_notes`` examples of a side, drawn as `notes` are."""
        rows = self.all_examples[side]
        return rows.chosen(self._draw(rows.patient_ids, side))

    # ------------------------------------------------------------------ drawing

    def _draw(self, patients: Sequence[str], side: Side) -> list[int]:
        """Draw places by patient; refuse too few patients."""
        places = draw_by_patient(patients, self.max_notes, self.seed)
        drawn = len({patients[place] for place in places})
        if drawn < MINIMUM_PATIENTS:
            which = "trained on" if side == MEMBERS else "held out"
            raise InputError(
                f"{self.data}: the audit has {drawn} patients that were {which}, and needs {MINIMUM_PATIENTS} at "
                "least; name more data, or raise max_notes."
            )
        return places

    def _only(self, kind: Kind) -> None:
        if self.kind != kind:
            raise InputError(f"stack: {self._recipe.stack} is audited by its {self.kind}, and has no {KEYS[kind]}.")


def _preferred(folder: Path) -> dict[str, Instructions]:
    """Return the preferred answers of pairs as instructions.

    Raises
    ------
    InputError
        If the pairs have prompts only.
    """
    result = {}
    for split, pairs in read_preferences(folder, required=(MEMBERS, NON_MEMBERS)).items():
        places = [place for place, note in enumerate(pairs.notes) if note is not None]
        if len(pairs) and not places:
            raise InputError(
                f"preferences: the pairs of {folder} have no note and question beside their prompts; name what the "
                "stack was trained on before as instructions=FOLDER."
            )
        result[split] = Instructions(
            [pairs.example_ids[place] for place in places],
            [pairs.patient_ids[place] for place in places],
            [pairs.notes[place] or "" for place in places],
            [pairs.questions[place] or "" for place in places],
            [pairs.chosen[place] for place in places],
            ["preference"] * len(places),
        )
    return result


def draw_by_patient(patients: Sequence[str], most: int | None, seed: int) -> list[int]:
    """Draw places of rows, patient by patient, until there are ``most``; return them in their order.

    A patient's rank depends on the id and the seed alone, so that a larger draw holds the smaller one. Each drawn
    patient comes with all rows; only of the last one those are left out that would be too many.

    Examples
    --------
    >>> draw_by_patient(["a", "a", "b"], None, 0)
    [0, 1, 2]
    """
    if most is None or most >= len(patients):
        return list(range(len(patients)))
    rows: dict[str, list[int]] = {}
    for place, patient in enumerate(patients):
        rows.setdefault(patient, []).append(place)
    drawn: list[int] = []
    for patient in sorted(rows, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name)):
        drawn.extend(rows[patient][: most - len(drawn)])
        if len(drawn) >= most:
            break
    return sorted(drawn)
