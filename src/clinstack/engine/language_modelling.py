"""Language modelling on notes: what pretraining and evaluation share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.distributed import world
from clinstack.engine.losses import causal_loss
from clinstack.engine.precision import forward_precision
from clinstack.engine.progress import console, progress_bar
from clinstack.evaluate.perplexity import batch_perplexity
from clinstack.model.stack import Stack
from clinstack.notes.read import TOKENS, NotesSurvey, stream_notes
from clinstack.tokens.batches import Batches
from clinstack.tokens.documents import Documents
from clinstack.tokens.encode import document_ends, own_ends
from clinstack.tokens.layout import Layout, NoteRows, lay_out
from clinstack.tokens.notes import NoteTokens
from clinstack.tokens.pack import PackedBatch
from clinstack.tokens.store import open_store


def open_notes(
    stack: Stack, survey: NotesSurvey, split: str, inputs: dict[str, str], place: str | None = None
) -> NoteTokens:
    """Return the tokenised notes of a split, from the store, or the first time by way of it.

    Parameters
    ----------
    survey : NotesSurvey
        Of the Notes, with the types that are wanted.
    inputs : dict of str to str
        Hashes of the Notes' files, as a Run remembers them.
    place : str or None
        Folder of the store; ``tokens`` in the Notes when None.
    """
    source = {
        "files": list(inputs.values()),
        "split": split,
        "note_types": None if survey.note_types is None else sorted(survey.note_types),
    }
    return open_store(
        survey.folder / TOKENS if place is None else Path(place),
        source,
        stack.tokenizer,
        partial(stream_notes, survey, split),
        say=partial(console.print, style="yellow", markup=False),
        watch=lambda done: progress_bar(f"{split} notes to tokens", survey.notes[split], done=done),
    )


def usable_layout(stack: Stack, layout: Layout) -> Layout:
    """Return the layout, or "bucketed" for "packed" where a method of the stack cannot keep packed documents apart."""
    return "bucketed" if layout == "packed" and not getattr(stack, "can_pack", True) else layout


def lay_out_notes(stack: Stack, documents: Documents, layout: Layout, context: int) -> NoteRows:
    """Lay documents out for a stack: whole, between begin and end token, or padded as the tokenizer does by itself."""
    ends = own_ends(stack.tokenizer) if layout == "padded" else document_ends(stack.tokenizer)
    filler = stack.tokenizer.pad_token_id or 0
    return lay_out(documents.between(*ends), layout, context, filler)


def losses_table(stack: Stack, notes: NoteTokens, split: str, context: int, batch_size: int) -> pa.Table:
    """Return one row for each note: its tokens, characters, and summed losses with and without the adapters.

    Notes are read whole, whatever the layout that was trained with, so that the figures compare.
    """
    rows = lay_out_notes(stack, notes.documents, usable_layout(stack, "packed"), context)
    adapted = note_losses(stack, rows, batch_size, f"{split} notes, with adapters")
    with stack.switched_off():
        base = note_losses(stack, rows, batch_size, f"{split} notes, base alone")
    columns: dict[str, Any] = {name: notes.index[name] for name in ("note_id", "patient_id", "note_type")}
    columns["split"] = pa.repeat(pa.scalar(split), len(notes))
    columns["tokens"] = rows.documents.predictions
    columns["characters"] = notes.index["characters"]
    return pa.table(columns | {"base_nll": base, "nll": adapted})


def note_losses(stack: Stack, rows: NoteRows, batch_size: int, description: str | None = None) -> NDArray[np.float64]:
    """Return the summed loss of each note in nats, shape [notes]."""
    sums = torch.zeros(len(rows.documents), dtype=torch.float64)

    def add(number: int, batch: PackedBatch, each: Tensor) -> None:
        owners = batch.documents.flatten()
        sums.index_add_(0, owners[owners >= 0], each[owners >= 0])

    _measure(stack, rows, rows.in_order(batch_size), description, add)
    return world().add_up(sums.numpy())


def published_perplexity(
    stack: Stack, notes: NoteTokens, context: int, batch_size: int, description: str | None = None
) -> dict[str, float | int]:
    """Measure perplexity as the published code did: the first tokens of each note, the mean over batches of means.

    Batches hold the notes in their order, where the published code shuffled them.

    Returns
    -------
    dict
        As `batch_perplexity`, with ``context``, ``batch_size``, ``notes``, ``tokens`` predicted and ``cut`` off.
    """
    rows = lay_out_notes(stack, notes.documents, "padded", context)
    batches = rows.in_order(batch_size)
    nll, tokens = np.zeros(len(batches)), np.zeros(len(batches))

    def add(number: int, batch: PackedBatch, each: Tensor) -> None:
        nll[number], tokens[number] = float(each.sum()), batch.predictions

    _measure(stack, rows, batches, description, add)
    nll, tokens = world().add_up(nll), world().add_up(tokens)
    return {
        **batch_perplexity(nll, tokens),
        "context": context,
        "batch_size": batch_size,
        "notes": len(notes),
        "tokens": int(tokens.sum()),
        "cut": rows.cut,
    }


def _measure(stack: Stack, rows: NoteRows, batches: Batches, description: str | None, add: Any) -> None:
    """Hand each batch of this process's share to ``add``, with its number and the loss of each position, in float64."""
    stack.eval()
    numbers = world().share(range(len(batches)))
    with torch.inference_mode(), forward_precision(stack), progress_bar(description, len(numbers)) as bar:
        for number in numbers:
            batch = rows.collate(batches[number])
            each = causal_loss(stack, batch.to(stack.device), reduction="none").double().cpu()
            add(number, batch, each)
            bar.advance(batch.predictions)
