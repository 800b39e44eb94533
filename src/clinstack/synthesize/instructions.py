"""`clinstack synthesize instructions`: notes to questions of eight tasks, and answers to them.

After the second and third step of Asclepius (Kweon et al. 2024), in one pass: while later notes are asked about,
earlier questions are answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinstack.endpoint import Endpoint, Reply, Request
from clinstack.endpoint.store import ReplyStore
from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.attrition import Attrition
from clinstack.notes.grounding import is_refusal
from clinstack.notes.instructions import write_instructions
from clinstack.notes.prepared import Progress, prepared_folder, refuse_other_folder
from clinstack.notes.read import NOTE_COLUMNS, is_synthetic, notes_files
from clinstack.notes.row_batches import batches, check_columns
from clinstack.notes.splits import assign_splits
from clinstack.recipe.synthesize import SynthesizeInstructionsRecipe
from clinstack.synthesize.gates import SeenTexts, ends_with_question, missing_facts, speaks_of_a_model
from clinstack.synthesize.notes import endpoint_facts
from clinstack.synthesize.plan import Plan, hidden, store_of
from clinstack.synthesize.prompts import SEEDS_SHOWN
from clinstack.synthesize.questions import Conversation, Item, Note, Prompts
from clinstack.synthesize.seeds import shown

_ROWS = 512
_LIKELY_QUESTION = "x" * 120
"""Stands for a question that is not known yet, for its tokens."""


def plan_instructions(notes: Path, out: Path, recipe: SynthesizeInstructionsRecipe, *, show: bool = False) -> Plan:
    """Return what `synthesize_instructions` would ask; nothing is sent.

    What depends on replies that are not there is counted as if every question came to an answer.

    Raises
    ------
    InputError
        As `synthesize_instructions`.
    """
    _refuse_out(notes, out)
    prompts = Prompts(recipe.prompts)
    # As many questions as the lag allows, and as many answers.
    plan = Plan(recipe.endpoint, together=2 * recipe.lag)
    store = ReplyStore(store_of(out)) if store_of(out).is_file() else None

    def has(request: Request) -> bool:
        return store is not None and request.digest(recipe.endpoint) in store

    try:
        first: Item | None = None
        conversation = Conversation(recipe, prompts, read_notes(notes, recipe), has)
        for request in conversation.requests():
            if request is None:
                raise RuntimeError("A request waits for a reply that was taken.")
            reply = None if store is None else store.get(request.digest(recipe.endpoint))
            if reply is None:
                plan.add(request)
                item = conversation.item(request.key)
                if not item.question:
                    expected = Item(item.place, item.key, item.note, item.task, _LIKELY_QUESTION)
                    plan.add(conversation.answer_request(expected))
                reply = Reply(request.key, None, None, 0, 0, recipe.endpoint.model, "not in the store")
            else:
                plan.stored += 1
                item = conversation.item(request.key)
            first = first or item
            conversation.take(reply)
    finally:
        if store is not None:
            store.close()
    if first is None:
        raise InputError(f"{notes}: no note is left to ask about; look at note_types, max_notes and gates.phrases.")
    text = first.note.text if show else hidden(first.note.text, "note")
    examples = shown(prompts.seeds[first.task][:SEEDS_SHOWN])
    plan.shown = [
        ("question.txt", prompts.question.fill(note=text, task=first.task, examples=examples)),
        ("answer.txt", prompts.answer.fill(note=text, question="<the question>")),
    ]
    return plan


def synthesize_instructions(
    notes: Path, out: Path, recipe: SynthesizeInstructionsRecipe, progress: Progress | None = None
) -> dict[str, Any]:
    """Ask questions about notes, have them answered, and write what passes the gates.

    Parameters
    ----------
    notes : Path
        A folder of Notes; the splits of its patients stay.
    out : Path
        Folder to write, in one step at the end. The replies are kept beside it in ``<out>.replies.sqlite``: whatever
        ends the work, the next start goes on there.
    recipe : SynthesizeInstructionsRecipe
    progress : callable, optional
        Called with a description, the units done and the units in all.

    Returns
    -------
    dict
        The content of ``prepare.json``.

    Raises
    ------
    InputError
        If the Notes, the recipe, the prompts or ``out`` are wrong, or no row is left.
    EndpointError
        If the server cannot be used.
    """
    _refuse_out(notes, out)
    prompts = Prompts(recipe.prompts)
    splits = _splits(notes)
    total = sum(1 for _ in read_notes(notes, recipe)) * recipe.questions_per_note
    facts: dict[str, Any] = {
        "source": "synthesize instructions",
        "synthetic": is_synthetic(notes),
        "notes": {file.name: sha256_file(file) for file in notes_files(notes)},
        "prompts": prompts.digests,
    }
    with Endpoint(recipe.endpoint, store_of(out), progress) as endpoint, prepared_folder(out, progress) as folder:
        conversation = Conversation(recipe, prompts, read_notes(notes, recipe), endpoint.has)
        attrition = Attrition()

        def tables() -> Iterator[pa.Table]:
            replies = endpoint.ask(conversation.requests(), "Questions and answers", 2 * total)
            gates = RowGates(recipe)
            yield from _tables(gates, conversation, replies, prompts.digest)
            # The writer saves both when it has the last row.
            gates.finish(attrition, conversation.counts)
            facts["ungrounded"] = dict(gates.ungrounded)
            facts["endpoint"] = endpoint_facts(endpoint)
            facts["complete"] = not endpoint.failures

        return write_instructions(folder, tables(), attrition, facts, recipe.seed, splits)


class RowGates:
    """Decides which answered questions become rows, and counts.

    Attributes
    ----------
    counts : Counter
        Why rows were left out.
    ungrounded : Counter
        Facts of left out answers that the note does not have, by kind.
    """

    def __init__(self, recipe: SynthesizeInstructionsRecipe) -> None:
        self.counts: Counter[str] = Counter()
        self.ungrounded: Counter[str] = Counter()
        self._recipe = recipe
        threshold = recipe.gates.near_duplicates
        self._seen = None if threshold is None else SeenTexts(threshold)

    def keeps(self, item: Item) -> bool:
        """Whether an item becomes a row."""
        reason = self._reason_against(item)
        if reason:
            self.counts[reason] += 1
        return reason is None

    def _reason_against(self, item: Item) -> str | None:
        gates = self._recipe.gates
        if item.cut_off or not 1 <= len(item.answer.split()) <= gates.max_answer_words:
            return "length"
        if gates.phrases and speaks_of_a_model(item.answer):
            return "phrases"
        if gates.phrases and ends_with_question(item.answer):
            return "asks_back"
        if gates.grounding:
            missing = missing_facts(item.answer, item.note.text, item.question)
            if missing:
                self.ungrounded.update(missing)
                return "grounding"
        if self._seen is not None and not self._seen.is_new(item.note.text, item.question, item.answer):
            return "near_duplicate"
        return None

    def finish(self, attrition: Attrition, asked: Counter[str]) -> None:
        """Add the steps from the questions asked for to the rows."""
        gates = self._recipe.gates
        low, high, longest = gates.min_question_words, gates.max_question_words, gates.max_answer_words
        kept = asked["items"]
        attrition.step("questions to ask", kept)
        steps = [
            ("note in which no model speaks of itself", asked["note"], gates.phrases),
            ("question came back", asked["question_failed"], True),
            (f"question of {low} to {high:,} words, not cut off", asked["question_length"], True),
            ("question in which no model speaks of itself", asked["question_phrases"], gates.phrases),
            ("answer came back", asked["answer_failed"], True),
            (f"answer of 1 to {longest:,} words, not cut off", self.counts["length"], True),
            ("answer in which no model speaks of itself", self.counts["phrases"], gates.phrases),
            ("answer that does not ask back", self.counts["asks_back"], gates.phrases),
            ("numbers, dates and drugs of the answer occur in the note", self.counts["grounding"], gates.grounding),
            ("row like no earlier one", self.counts["near_duplicate"], gates.near_duplicates is not None),
        ]
        for words, removed, used in steps:
            if used:
                kept -= removed
                attrition.step(words, kept)


def _tables(
    gates: RowGates, conversation: Conversation, replies: Iterable[Reply], prompt_hash: str
) -> Iterator[pa.Table]:
    """Yield the rows that pass the gates, some hundred at a time, in the order of the notes."""
    rows: list[Item] = []
    for reply in replies:
        item = conversation.take(reply)
        if item is not None and gates.keeps(item):
            rows.append(item)
        if len(rows) == _ROWS:
            yield _table(rows, prompt_hash)
            rows = []
    if rows:
        yield _table(rows, prompt_hash)


def _table(items: list[Item], prompt_hash: str) -> pa.Table:
    return pa.table(
        {
            "example_id": [item.key for item in items],
            "patient_id": [item.note.patient_id for item in items],
            "note": [item.note.text for item in items],
            "question": [item.question for item in items],
            "answer": [item.answer for item in items],
            "task": [item.task for item in items],
            # By what the answer says: nobody else was asked.
            "answerable": [not is_refusal(item.answer) for item in items],
            "source": ["synthesize"] * len(items),
            "note_id": [item.note.note_id for item in items],
            "model": [item.model for item in items],
            "prompt_hash": [prompt_hash] * len(items),
            "seed": pa.array([item.seed for item in items], pa.int64()),
        }
    )


def read_notes(folder: Path, recipe: SynthesizeInstructionsRecipe) -> Iterator[Note]:
    """Yield the notes to ask about, in the order of the tables; those without text are left out.

    Raises
    ------
    InputError
        If there are no tables, one is damaged, or a note id stands twice.
    """
    seen: set[str] = set()
    wanted = None if recipe.note_types is None else set(recipe.note_types)
    for file in notes_files(folder):
        if file.name == "splits.parquet":
            continue
        check_columns(file, NOTE_COLUMNS)
        for first, batch in batches(file, NOTE_COLUMNS):
            columns = (batch[name].to_pylist() for name in NOTE_COLUMNS)
            for at, (note_id, patient, kind, text) in enumerate(zip(*columns, strict=True)):
                if not text or (wanted is not None and kind not in wanted):
                    continue
                if str(note_id) in seen:
                    where = f"{file}, row {first + at + 1}"
                    raise InputError(f"{where}: the note_id {note_id} stands twice; prepare the Notes again.")
                seen.add(str(note_id))
                yield Note(str(note_id), str(patient), text)
                if recipe.max_notes is not None and len(seen) == recipe.max_notes:
                    return


def _splits(folder: Path) -> dict[str, str]:
    """Return the split of each patient of the Notes."""
    path = folder / "splits.parquet"
    split: dict[str, str] = {}
    if path.is_file():
        for _, batch in batches(path, ("patient_id", "split")):
            split.update(zip(map(str, batch["patient_id"].to_pylist()), batch["split"].to_pylist(), strict=True))
        return split
    patients: set[str] = set()
    for file in notes_files(folder):
        for _, batch in batches(file, ("patient_id",)):
            patients.update(map(str, batch["patient_id"].to_pylist()))
    return assign_splits(patients, seed=0)  # as all readers of Notes without splits do


def _refuse_out(notes: Path, out: Path) -> None:
    refuse_other_folder(out)
    if out.resolve() == notes.resolve():
        raise InputError(f"--out {out} is the folder of the notes, which would be replaced; name another.")
