"""Membership attacks on a language model: by the losses of notes, or of answers given their prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clinstack.audit.blind import word_scores
from clinstack.audit.membership_sides import Attacked
from clinstack.audit.neighbours import WINDOW, draw_replacements, neighbour_losses
from clinstack.audit.target import MEMBERS, NON_MEMBERS, AuditTarget, Side
from clinstack.engine.attack_losses import attack_losses, note_beginnings
from clinstack.engine.instruction_tuning import lay_out_pairs
from clinstack.engine.language_modelling import usable_layout
from clinstack.engine.pieces import ROW_TOKENS
from clinstack.errors import InputError

if TYPE_CHECKING:
    from clinstack.recipe.audit import AuditRecipe
    from clinstack.tokens.layout import NoteRows

_NAMES = {MEMBERS: "members", NON_MEMBERS: "non-members"}
_WHAT = {
    "loss": "minus the mean loss of a token",
    "reference": "the mean loss of a token under a reference minus that under the stack",
    "min_k_plus_plus": "the mean of the lowest standardized log-probabilities",
    "neighbourhood": "the mean loss of texts with some other tokens minus that of the text itself",
}


@dataclass(frozen=True)
class _Texts:
    """One side, laid out twice: whole, and what neighbours are made of."""

    ids: list[str]
    patient_ids: list[str]
    rows: NoteRows
    near: NoteRows
    cut: int


def attack_language_model(target: AuditTarget, recipe: AuditRecipe) -> Attacked:
    """Score notes, or answers, of both sides by four attacks, and by the base alone and the words alone."""
    sides = {side: _texts(target, side) for side in (MEMBERS, NON_MEMBERS)}
    stack = target.stack
    window = WINDOW if target.kind == "notes" else None
    batch_size, near_batch = (_rows_at_once(target, recipe, length) for length in (target.context, window))
    reference = target.open_reference()
    found = {
        side: attack_losses(
            stack, texts.rows, batch_size, min_k=recipe.min_k, window=window, description=f"membership: {_NAMES[side]}"
        )
        for side, texts in sides.items()
    }
    base_nll, near, replaced = {}, {}, {}
    with stack.switched_off():
        for side, texts in sides.items():
            base_nll[side] = attack_losses(
                stack, texts.rows, batch_size, min_k=None, description=f"membership: {_NAMES[side]}, base alone"
            ).nll
            if recipe.neighbours:
                replaced[side] = draw_replacements(
                    stack, texts.near, near_batch, recipe.neighbours, recipe.evaluation.seed
                )
    for side, changes in replaced.items():
        label = f"membership: {_NAMES[side]}, neighbours"
        near[side] = neighbour_losses(stack, sides[side].near, changes, near_batch, label)
    reference_nll = base_nll
    if reference is not None:
        reference_nll = {
            side: attack_losses(
                reference, texts.rows, batch_size, min_k=None, description=f"membership: {_NAMES[side]}, reference"
            ).nll
            for side, texts in sides.items()
        }

    def pair(of: dict[Side, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return of[MEMBERS], of[NON_MEMBERS]

    tokens = {side: losses.tokens for side, losses in found.items()}
    loss = {side: losses.nll / losses.tokens for side, losses in found.items()}
    attacks = {
        "loss": pair({side: -loss[side] for side in sides}),
        "reference": pair({side: reference_nll[side] / tokens[side] - loss[side] for side in sides}),
        "min_k_plus_plus": pair({side: losses.min_k_plus_plus for side, losses in found.items()}),
    }
    if recipe.neighbours:
        attacks["neighbourhood"] = pair(
            {side: (near[side] - found[side].window_nll) / found[side].window_tokens for side in sides}
        )
    blind = {
        "base_alone": pair({side: -base_nll[side] / tokens[side] for side in sides}),
        "words": word_scores(
            _scored_tokens(sides[MEMBERS].rows),
            _scored_tokens(sides[NON_MEMBERS].rows),
            sides[MEMBERS].patient_ids,
            sides[NON_MEMBERS].patient_ids,
        ),
    }
    return Attacked(
        unit="note" if target.kind == "notes" else "answer",
        ids=(sides[MEMBERS].ids, sides[NON_MEMBERS].ids),
        patient_ids=(sides[MEMBERS].patient_ids, sides[NON_MEMBERS].patient_ids),
        attacks=attacks,
        what={name: _WHAT[name] for name in attacks},
        blind=blind,
        relative=frozenset({"reference"}),
        counts=(_counts(tokens[MEMBERS], sides[MEMBERS]), _counts(tokens[NON_MEMBERS], sides[NON_MEMBERS])),
        columns={
            "tokens": (tokens[MEMBERS], tokens[NON_MEMBERS]),
            "nll": (found[MEMBERS].nll, found[NON_MEMBERS].nll),
            "base_nll": pair(base_nll),
            "reference_nll": pair(reference_nll),
            "min_k": (found[MEMBERS].min_k, found[NON_MEMBERS].min_k),
        },
        remarks=_remarks(target, recipe, sides),
    )


def _texts(target: AuditTarget, side: Side) -> _Texts:
    """Lay out one side; a note without a token to predict has no score and is left out."""
    stack = target.stack
    if target.kind == "notes":
        notes = target.notes(side)
        ids, patients = (notes.index[name].to_pylist() for name in ("note_id", "patient_id"))
        documents = notes.documents
        scored = np.flatnonzero(note_beginnings(stack, documents, target.context).documents.predictions > 0)
        if not len(scored):
            raise InputError(f"{target.data}: no note of the {side} patients has a token to predict.")
        documents = documents.chosen(scored)
        rows = note_beginnings(stack, documents, target.context)
        near = note_beginnings(stack, documents, min(WINDOW, target.context))
        return _Texts([ids[at] for at in scored], [patients[at] for at in scored], rows, near, rows.cut)
    instructions = target.instructions(side)
    pairs = target.encode(instructions)
    answers = lay_out_pairs(stack, pairs, usable_layout(stack, "packed"), target.context)
    return _Texts(
        instructions.example_ids, instructions.patient_ids, answers, answers, int(pairs.prompts.report.get("cut", 0))
    )


def _rows_at_once(target: AuditTarget, recipe: AuditRecipe, length: int | None) -> int:
    """Return how many rows make a batch: the recipe's, but on a CPU no more than its cache holds."""
    if target.stack.device.type != "cpu":
        return recipe.batch_size
    return min(recipe.batch_size, max(1, ROW_TOKENS // (length or target.context)))


def _counts(tokens: NDArray[np.int64], texts: _Texts) -> dict[str, int]:
    return {"tokens": int(tokens.sum()), "cut_tokens": texts.cut}


def _scored_tokens(rows: NoteRows) -> Iterator[NDArray[np.int64]]:
    """Yield what is read of each note, in the notes' order."""
    stops = np.zeros(len(rows.documents), dtype=np.int64)
    stops[rows.segments.document] = rows.segments.stop
    return (rows.documents.part(note, 0, stop + 1) for note, stop in enumerate(stops.tolist()))


def _remarks(target: AuditTarget, recipe: AuditRecipe, sides: dict[Side, _Texts]) -> list[str]:
    remarks = []
    cut = sum(texts.cut for texts in sides.values())
    if target.kind == "notes":
        if cut:
            remarks.append(
                f"Of each note the first {target.context:,} tokens were read, as many as the stack reads at once; "
                f"{cut:,} tokens behind them were not."
            )
        if recipe.neighbours:
            remarks.append(
                f"The neighbourhood attack read the first {min(WINDOW, target.context)} tokens of each note, with "
                f"{recipe.neighbours} neighbours; their tokens were drawn from the base."
            )
    elif cut:
        remarks.append(f"Prompts lost {cut:,} tokens of their notes' middle, as in training.")
    if recipe.reference is None:
        remarks.append(
            "The reference is the base, its adapters off: it never saw notes like these, so the reference attack also "
            "sees what the stack learned about such notes in general. A stack trained on other patients of the same "
            "hospital, named as reference, is a harder test."
        )
    if not recipe.neighbours:
        remarks.append("The neighbourhood attack was left out: neighbours is 0.")
    return remarks
