"""Canaries into the training notes or answers of a stage, and the check that each of them receives loss.

Which rows a training reads follows from its layout, its seed and its steps. So it is known before the first step, and
is checked on the very rows that will be read. A training that ends within its first epoch reads only some rows, and
notes of other lengths would be other rows: there a note keeps its length, and loses at its end what the canary adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinstack.engine.instruction_tuning import lay_out_pairs
from clinstack.engine.language_modelling import lay_out_notes, usable_layout
from clinstack.errors import ClinstackError, InputError
from clinstack.notes.read import notes_files
from clinstack.privacy.canaries import Canary, Placing, PlantedCanaries, invent
from clinstack.privacy.planting import Change, Reach, Span, find_span, laid_over, place_in_text, plant
from clinstack.tokens.encode import TextEncoder, document_ends
from clinstack.tokens.notes import NoteTokens
from clinstack.tokens.pack import IGNORED
from clinstack.tokens.prompts import encode_answers, encode_pairs

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.notes.instructions import Instructions
    from clinstack.recipe import CanariesRecipe, InstructRecipe, PretrainRecipe, TrainingRecipe
    from clinstack.tokens.layout import NoteRows
    from clinstack.tokens.prompts import Prompt

_BATCH = 512


def plant_in_notes(stack: Stack, recipe: PretrainRecipe, notes: NoteTokens) -> tuple[NoteTokens, PlantedCanaries]:
    """Return the training notes with the recipe's canaries, and what was planted where.

    Only the notes that get one are read and tokenised anew.

    Raises
    ------
    InputError
        If there are too few notes or patients, or too few places that training reads; with what to do.
    """
    settings = recipe.canaries
    assert settings is not None
    layout = usable_layout(stack, recipe.layout)
    training = recipe.training if recipe.privacy is None else None
    reach = _reach(lay_out_notes(stack, notes.documents, layout, recipe.context), training)
    planted, controls = invent(settings)
    encode = _encoder(stack)
    longest = max(map(len, encode([canary.text for canary in planted])))
    if longest + reach.before + reach.after > recipe.context:
        raise InputError(
            f"canaries: the longest has {longest} tokens and does not fit into a row; raise context ({recipe.context}) "
            f"to {2 * longest} or more."
        )
    eligible = _eligible(notes, reach, longest)
    owners = pc.dictionary_encode(notes.index["patient_id"].combine_chunks()).indices.to_numpy().astype(np.int64)
    change = partial(_changes, Path(recipe.notes), notes, encode, reach, settings.seed)
    changes = plant(planted, owners, eligible, change, settings.seed, "notes")
    documents = laid_over(notes.documents, {note: found.tokens for note, found in changes.items()})
    ids = notes.index["note_id"]
    placings = _checked(
        lay_out_notes(stack, documents, layout, recipe.context),
        training,
        {note: _shifted(found, reach.before) for note, found in changes.items()},
        lambda note: str(ids[note].as_py()),
        planted,
    )
    record = _record(settings, "notes", reach.keeps_length, planted, controls, placings)
    return NoteTokens(notes.index, documents), record


def plant_in_answers(
    stack: Stack, prompt: Prompt, recipe: InstructRecipe, instructions: Instructions
) -> tuple[Instructions, PlantedCanaries]:
    """Return the training examples with the recipe's canaries behind their answers, and what was planted where.

    Not into the notes: an answer could then copy its secret, and would not have to remember it.

    Raises
    ------
    InputError
        If there are too few examples or patients, answers with a canary do not fit, or training ends before it has
        read them all; with what to do.
    """
    settings = recipe.canaries
    assert settings is not None
    planted, controls = invent(settings)
    _, owners = np.unique(np.array(instructions.patient_ids), return_inverse=True)
    change = partial(_answer_changes, stack, prompt, recipe.max_tokens, instructions)
    eligible = np.ones(len(instructions), dtype=bool)
    changes = plant(planted, owners.astype(np.int64), eligible, change, settings.seed, "answers")
    answers = list(instructions.answers)
    for place, found in changes.items():
        answers[place] = _with_canary(answers[place], found.canary)
    result = replace(instructions, answers=answers)
    pairs = encode_pairs(stack.tokenizer, prompt, result, recipe.max_tokens, recipe.answer_tokens)
    rows = lay_out_pairs(stack, pairs, usable_layout(stack, recipe.layout), recipe.max_tokens)
    spans = {place: _shifted(found, len(pairs.prompts.ids[place])) for place, found in changes.items()}
    training = recipe.training if recipe.privacy is None else None
    placings = _checked(rows, training, spans, lambda place: instructions.example_ids[place], planted)
    return result, _record(settings, "answers", False, planted, controls, placings)


def rows_read(rows: NoteRows, training: TrainingRecipe) -> NDArray[np.bool_] | None:
    """Return which rows are read before training ends, bool [rows]; None where it is far from ending too early.

    Far means two epochs: canaries make notes longer, and the epoch with them.
    """
    batches = rows.shuffled(training.batch_size, training.seed, 0)
    per_epoch = -(-len(batches) // training.accumulate)
    if training.max_steps is None or training.max_steps >= 2 * per_epoch:
        return None
    read = np.zeros(len(rows), dtype=bool)
    for batch in batches[: training.max_steps * training.accumulate]:
        read[batch] = True
    return read


def beginnings_read(rows: NoteRows, training: TrainingRecipe) -> NDArray[np.bool_] | None:
    """Return which documents' first ``context`` tokens are read before training ends, bool [documents].

    A beginning is in one row, whatever the length of the rest, so that long documents are as likely among them as short
    ones. None as `rows_read` has it.
    """
    read = rows_read(rows, training)
    if read is None:
        return None
    of_segment = _segments_of(rows, read)
    found = np.zeros(len(rows.documents), dtype=bool)
    documents, first = np.unique(rows.segments.document, return_index=True)
    found[documents] = of_segment[first]
    return found


def _segments_of(rows: NoteRows, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which segments stand in chosen rows, bool [segments]."""
    found = np.zeros(len(rows.segments), dtype=bool)
    found[rows.rows.segments] = np.repeat(chosen, np.diff(rows.rows.offsets))
    return found


def _reach(rows: NoteRows, training: TrainingRecipe | None) -> Reach:
    """Return what a training reaches; None where its rows are drawn at random, each as likely as any other."""
    read = None if training is None else rows_read(rows, training)
    ends = len(rows.documents.before), len(rows.documents.after)
    cuts = rows.layout == "padded"
    if read is None:
        return Reach(rows.context, *ends, cuts)
    of_segment = _segments_of(rows, read)
    first = np.searchsorted(rows.segments.document, np.arange(len(rows.documents) + 1))
    return Reach(rows.context, *ends, cuts, first.astype(np.int64), of_segment)


def _eligible(notes: NoteTokens, reach: Reach, longest: int) -> NDArray[np.bool_]:
    """Return the notes that can take a canary: where they keep their length, long ones of which a row is read."""
    if reach.read is None or reach.segments is None:
        return np.ones(len(notes), dtype=bool)
    count = np.concatenate([[0], np.cumsum(reach.read)])
    has_row: NDArray[np.bool_] = count[reach.segments[1:]] > count[reach.segments[:-1]]
    return has_row & (notes.documents.count > longest)


def _changes(
    folder: Path, notes: NoteTokens, encode: Any, reach: Reach, seed: int, chosen: Mapping[int, Canary]
) -> Iterator[tuple[int, Change | None]]:
    """Yield each chosen note with its canary."""
    for note, text in _texts(folder, notes, encode, chosen):
        length = int(notes.documents.count[note])

        def fits(span: Span, tokens: int, note: int = note, length: int = length) -> bool:
            if reach.keeps_length and tokens < length:
                return False
            return reach.trains(note, span, length if reach.keeps_length else tokens)

        found = place_in_text(text, chosen[note], encode, fits, np.random.default_rng([seed, 2, note]))
        if found is not None and reach.keeps_length:
            found = found._replace(tokens=found.tokens[:length])
        yield note, found


def _texts(folder: Path, notes: NoteTokens, encode: Any, chosen: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield the texts of some notes; of the tables only the parts that hold one are read.

    Raises
    ------
    InputError
        If one is not in the tables with the text that its tokens are of.
    """
    ids = notes.index["note_id"]
    wanted: dict[str, list[int]] = {}
    for note in chosen:
        wanted.setdefault(str(ids[note].as_py()), []).append(note)
    for name, text in _rows_of(folder, wanted.keys()):
        tokens = encode([text])[0]
        for note in wanted.get(name, []):
            if np.array_equal(tokens, notes.documents.part(note, 0, int(notes.documents.count[note]))):
                wanted[name].remove(note)
                yield note, text
                break
    missing = next((name for name, left in wanted.items() if left), None)
    if missing is not None:
        raise InputError(
            f"notes: the note {missing} in {folder} is not the one that was tokenised; delete its folder tokens, "
            "and start again."
        )


def _rows_of(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    names = set(names)
    for file in notes_files(folder):
        if file.parent.name != "notes":
            continue  # the patients' splits
        with pq.ParquetFile(file) as table:
            for group in range(table.num_row_groups):
                found = [str(name) for name in table.read_row_group(group, columns=["note_id"])["note_id"].to_pylist()]
                if names.isdisjoint(found):
                    continue
                at = 0
                for batch in table.iter_batches(_BATCH, row_groups=[group], columns=["text"]):
                    for place, name in enumerate(found[at : at + len(batch)]):
                        text = batch["text"][place].as_py() if name in names else None
                        if text:
                            yield name, text
                    at += len(batch)


def _answer_changes(
    stack: Stack, prompt: Prompt, max_tokens: int, instructions: Instructions, chosen: Mapping[int, Canary]
) -> Iterator[tuple[int, Change | None]]:
    """Yield each chosen example with its answer's tokens, end token included; None where they leave no prompt."""
    encoder = TextEncoder(stack.tokenizer)
    begin = 0 if prompt.chat_template is not None else len(document_ends(stack.tokenizer)[0])

    def encode(texts: Sequence[str]) -> list[NDArray[Any]]:
        return [np.array(ids[:-1]) for ids in encode_answers(stack.tokenizer, prompt, texts)]

    for place, canary in chosen.items():
        answer = _with_canary(instructions.answers[place], canary)
        tokens = encode([answer])[0]
        span = find_span(encode, answer, len(answer) - len(canary.text), canary, tokens)
        frame = prompt.text(stack.tokenizer, "", instructions.questions[place])
        around = begin + len(encoder.ids(encoder.encode([frame]))[0])
        yield place, Change(canary, tokens, span) if around + len(tokens) + 1 <= max_tokens else None


def _with_canary(answer: str, canary: Canary) -> str:
    return f"{answer.strip()}\n{canary.text}"


def _encoder(stack: Stack) -> Any:
    encoder = TextEncoder(stack.tokenizer)
    return lambda texts: encoder.ids(encoder.encode(texts))


def _shifted(found: Change, by: int) -> tuple[Canary, Span]:
    return found.canary, Span(*(place + by for place in found.span))


def _checked(
    rows: NoteRows,
    training: TrainingRecipe | None,
    spans: Mapping[int, tuple[Canary, Span]],
    name: Any,
    planted: Sequence[Canary],
) -> dict[str, tuple[Placing, ...]]:
    """Count the tokens of each secret that are labels in a row that training reads, on the rows themselves.

    Parameters
    ----------
    rows : NoteRows
        What is trained on, with canaries.
    training : TrainingRecipe or None
        None where rows are drawn at random, and each as likely as any other.
    spans : mapping of int to (Canary, Span)
        Of each document that has a canary; counted in the document's tokens.
    name : callable
        Returns a document's id.
    planted : sequence of Canary

    Raises
    ------
    InputError
        If training ends before it has read them.
    """
    read = None if training is None else rows_read(rows, training)
    row_of = np.empty(len(rows.segments), dtype=np.int64)
    row_of[rows.rows.segments] = np.repeat(np.arange(len(rows)), np.diff(rows.rows.offsets))
    result: dict[str, list[Placing]] = {canary.name: [] for canary in planted}
    unread = 0
    for document in sorted(spans):
        canary, span = spans[document]
        trained = 0
        first, last = np.searchsorted(rows.segments.document, [document, document + 1])
        for segment in range(int(first), int(last)):
            start, stop = int(rows.segments.start[segment]), int(rows.segments.stop[segment])
            if stop < span.secret or start >= span.stop:
                continue
            row = int(row_of[segment])
            if read is not None and not read[row]:
                unread += 1
                continue
            batch = rows.collate([row])
            here = (batch.documents[0] == document) & (batch.labels[0] != IGNORED)
            if rows.layout == "packed":
                # Two segments of one document may stand in one row.
                here &= _is_segment(rows, row, segment, len(here))
            predicted = batch.position_ids[0][here] + start + 1
            trained += int(((predicted >= span.secret) & (predicted < span.stop)).sum())
        result[canary.name].append(Placing(name(document), span.stop - span.secret, trained))
    if unread:
        assert training is not None
        raise InputError(
            f"canaries: training.max_steps ({training.max_steps}) ends before an epoch does, and {unread} copies would "
            "not be read; raise or remove training.max_steps, or train on fewer examples (max_examples)."
        )
    for canary in planted:
        found = result[canary.name]
        if len(found) != canary.repetitions or any(one.trained_tokens != one.secret_tokens for one in found):
            raise ClinstackError(f"canaries: {canary.name} would not be trained on as planned. Please report this.")
    return {name: tuple(copies) for name, copies in result.items()}


def _is_segment(rows: NoteRows, row: int, segment: int, width: int) -> Any:
    import torch

    at = 0
    for other in rows.rows[row].tolist():
        length = int(rows.segments.lengths[other])
        if other == segment:
            where = torch.arange(width)
            return (where >= at) & (where < at + length)
        at += length
    raise ValueError("the segment does not stand in this row")


def _record(
    settings: CanariesRecipe,
    places_in: str,
    keeps_length: bool,
    planted: Sequence[Canary],
    controls: Sequence[Canary],
    placings: dict[str, tuple[Placing, ...]],
) -> PlantedCanaries:
    repetitions = settings.sorted_repetitions
    return PlantedCanaries(
        settings.seed, repetitions, places_in, keeps_length, tuple(planted), tuple(controls), placings
    )
