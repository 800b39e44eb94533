"""Instruction tuning: rows of prompts and answers, of which only the answers are predicted, and what that comes to.

::

    two examples in a row; their prompts p q, their answers a b, the end token E

    input       p0 p1 p2 a0 a1 | q0 q1 b0 b1
    label        .  . a0 a1  E |  . b0 b1  E      "." is ignored: what stands in a prompt is read and not learned
    position     0  1  2  3  4 |  0  1  2  3      so the attention ends where an example begins
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.language_modelling import note_losses, usable_layout
from clinstack.engine.losses import causal_loss
from clinstack.engine.patients import PassShape, PatientItems, rows_by_patient, shape_of_rows
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.tokens.documents import Documents
from clinstack.tokens.layout import NoteRows, lay_out
from clinstack.tokens.pack import IGNORED, PackedBatch

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.notes.instructions import Instructions
    from clinstack.recipe import TrainingRecipe
    from clinstack.tokens.batches import Batches
    from clinstack.tokens.layout import Layout
    from clinstack.tokens.prompts import EncodedPairs


@dataclass(frozen=True)
class AnswerRows(NoteRows):
    """Examples laid out in rows, each whole. Make it with `lay_out_pairs`.

    Parameters
    ----------
    prompts : int64 tensor [examples]
        Tokens of each prompt.
    report : dict
        What the notes lost; as `clinstack.tokens.prompt_fit.PromptReport` says it.
    """

    prompts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    report: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def answers(self) -> NDArray[np.int64]:
        """Tokens of each answer with its end token; shape [examples]."""
        lengths: NDArray[np.int64] = self.documents.lengths - self.prompts.numpy()
        return lengths

    def collate(self, chosen: Sequence[int]) -> PackedBatch:
        """Lay rows out as tensors; labels are answers only."""
        batch = super().collate(chosen)
        # An example is one segment, so its positions count its tokens; a label is the token after its position.
        first = self.prompts[batch.documents.clamp(min=0)]
        labels = batch.labels.where(batch.position_ids + 1 >= first, IGNORED)
        return replace(batch, labels=labels, predictions=int((labels != IGNORED).sum()))

    def counts(self, batches: Batches) -> dict[str, Any]:
        """Return what a Run says about the examples: tokens read, trained and computed, and what the notes lost."""
        counts: dict[str, Any] = super().counts(batches)
        counts["examples"] = counts.pop("notes")
        del counts["cut"]  # of rows, which lose nothing; the notes' own follows
        return {**counts, "trained": int(self.answers.sum()), "notes": self.report}


def lay_out_pairs(stack: Stack, pairs: EncodedPairs, layout: Layout, max_tokens: int) -> AnswerRows:
    """Lay prompts and answers out in rows of at most ``max_tokens``."""
    both = [
        np.array([*prompt, *answer], dtype=np.uint32)  # half the memory of what a batch is made of
        for prompt, answer in zip(pairs.prompts.ids, pairs.answers, strict=True)
    ]
    rows = lay_out(Documents.of(both), layout, max_tokens, stack.tokenizer.pad_token_id or 0)
    shared = {one.name: getattr(rows, one.name) for one in fields(NoteRows)}
    lengths = torch.tensor([len(prompt) for prompt in pairs.prompts.ids], dtype=torch.int64)
    return AnswerRows(**shared, prompts=lengths, report=pairs.prompts.report)


class InstructionObjective:
    """The cross-entropy of answers, end token included; a batch is a list of row numbers."""

    unit = "tokens"

    def __init__(
        self,
        stack: Stack,
        training: TrainingRecipe,
        layout: Layout,
        max_tokens: int,
        pairs: dict[str, EncodedPairs],
        patient_ids: Sequence[str] | None = None,
    ) -> None:
        self._stack = stack
        self._training = training
        self.layout = usable_layout(stack, layout)
        self._train, self._validation = (
            lay_out_pairs(stack, pairs[split], self.layout, max_tokens) for split in ("train", "validation")
        )
        self.patients: PatientItems | None = None
        if patient_ids is not None:  # of each training example: no row then has those of two patients
            laid_out, self.patients = rows_by_patient(self._train, patient_ids)
            assert isinstance(laid_out, AnswerRows)
            self._train = laid_out
        self.tokens_read = 0
        self.seconds_validating = 0.0

    def epoch_batches(self, epoch: int) -> Batches:
        """Return the rows of an epoch, shuffled by (seed, epoch)."""
        return self._train.shuffled(self._training.batch_size, self._training.seed, epoch)

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, float]:
        """Return the summed cross-entropy of the answers and the number of their tokens."""
        rows = self._train.collate(batch).to(self._stack.device)
        self.tokens_read += self._train.predictions(batch)
        return causal_loss(self._stack, rows), float(rows.predictions)

    def size(self, batch: Sequence[int]) -> int:
        """Return the tokens that a batch reads."""
        return self._train.predictions(batch)

    def weights(self, items: Sequence[int]) -> list[float]:
        """Return the trained tokens of each row: those of its answers."""
        rows = self._train
        return [float(rows.answers[rows.segments.document[rows.rows[item]]].sum()) for item in items]

    def shape(self, items: Sequence[int]) -> PassShape:
        """Return how rows lie in a forward pass."""
        return shape_of_rows(self._train, items)

    def validate(self) -> dict[str, float]:
        """Return the mean loss of an answer's token on the validation patients."""
        began = time.monotonic()
        nll = note_losses(self._stack, self._validation, self._training.batch_size)
        loss = float(nll.sum()) / int(self._validation.answers.sum())
        self.seconds_validating += time.monotonic() - began
        return {"loss": loss, "score": -loss}

    def counts(self) -> dict[str, Any]:
        """Return what one epoch reads and trains, and what notes lost; of training patients nothing in private."""
        batch_size = self._training.batch_size
        train = {"train": self._train.counts(self.epoch_batches(0))} if self.patients is None else {}
        return train | {"validation": self._validation.counts(self._validation.in_order(batch_size))}


def answer_losses(
    stack: Stack, instructions: Instructions, pairs: EncodedPairs, split: str, max_tokens: int, batch_size: int
) -> pa.Table:
    """Return one row for each answer: its tokens, characters, and summed losses with and without the adapters.

    Returns
    -------
    pyarrow.Table
        ``example_id, patient_id, task, split, tokens, characters, base_nll, nll``; losses in nats.
    """
    rows = lay_out_pairs(stack, pairs, usable_layout(stack, "packed"), max_tokens)
    adapted = note_losses(stack, rows, batch_size, f"{split} answers, with adapters")
    with stack.switched_off():
        base = note_losses(stack, rows, batch_size, f"{split} answers, base alone")
    return pa.table(
        {
            "example_id": instructions.example_ids,
            "patient_id": instructions.patient_ids,
            "task": instructions.tasks,
            "split": [split] * len(instructions),
            "tokens": rows.answers,
            "characters": [len(answer.strip()) for answer in instructions.answers],
            "base_nll": base,
            "nll": adapted,
        }
    )


def answer_metrics(losses: pa.Table, resamples: int, seed: int, split: str) -> dict[str, Any]:
    """Compute the perplexity of answers, every token the same, with intervals over patients; also by task.

    Returns
    -------
    dict
        As `clinstack.evaluate.perplexity.perplexity_metrics`, with ``examples`` in place of notes and ``by_task``.
    """
    names = ["note_type" if name == "task" else name for name in losses.column_names]
    figures = perplexity_metrics(losses.rename_columns(names), resamples, seed, split)
    tasks = figures.pop("by_note_type")
    return _of_examples(figures) | {"by_task": {task: _of_examples(part) for task, part in tasks.items()}}


def _of_examples(figures: dict[str, Any]) -> dict[str, Any]:
    return {("examples" if name == "notes" else name): value for name, value in figures.items()}
