"""Continued pretraining: a language model with adapters reads the hospital's notes (Gema et al. 2023, section 3.1).

Differences from the published code, which used the first tokens of each note, padded, split at random by note: notes
are packed whole, one document never sees another, patients are split, and perplexity weighs every token the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from clinstack.engine.device import pick_device
from clinstack.engine.language_modelling import PackedNotes, losses_table, note_losses
from clinstack.engine.losses import causal_loss
from clinstack.engine.trainer import OnValidation, train
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.files import replacing_file, write_json
from clinstack.model.stack import Stack
from clinstack.notes.read import NotesSplit, input_hashes, is_synthetic, notes_files, read_notes, sample_notes
from clinstack.recipe import PretrainRecipe
from clinstack.run import Run, adapter_files, open_run
from clinstack.tokens.pack import Segment


class PretrainObjective:
    """Next-token prediction over packed notes."""

    unit = "tokens"

    def __init__(self, stack: Stack, recipe: PretrainRecipe, notes: dict[str, NotesSplit]) -> None:
        self._stack = stack
        self._recipe = recipe
        self._train = PackedNotes.of(stack, notes["train"].texts, recipe.context)
        self._validation = PackedNotes.of(stack, notes["validation"].texts, recipe.context)

    def epoch_batches(self, epoch: int) -> Sequence[list[list[Segment]]]:
        """Return the rows of an epoch, shuffled by (seed, epoch)."""
        random = np.random.default_rng([self._recipe.training.seed, epoch])
        order = random.permutation(len(self._train.rows)).tolist()
        return self._train.batches(self._recipe.training.batch_size, order)

    def loss(self, batch: list[list[Segment]]) -> tuple[Tensor, float]:
        """Return the summed cross-entropy and the number of predictions."""
        packed = self._train.collate(batch, self._stack.device)
        return causal_loss(self._stack, packed), float(packed.predictions)

    def size(self, batch: list[list[Segment]]) -> int:
        """Return the tokens of a batch."""
        return sum(segment.length for row in batch for segment in row)

    def validate(self) -> dict[str, float]:
        """Return the mean loss of a token of the validation patients."""
        nll = note_losses(self._stack, self._validation, self._recipe.training.batch_size)
        tokens = sum(len(document) - 1 for document in self._validation.documents)
        loss = float(nll.sum()) / tokens
        return {"loss": loss, "score": -loss}


def pretrain(recipe: PretrainRecipe, *, fresh: bool = False, on_validation: OnValidation | None = None) -> Run:
    """Run the stage, or continue it, and return its finished Run; ``on_validation`` as `train` takes it."""
    folder = Path(recipe.notes)
    inputs = input_hashes([*notes_files(folder), *adapter_files(recipe.adapters)])
    label = "+".join(adapter.name for adapter in recipe.adapters)
    facts = {"stage": "pretrain", "label": label, "task": None, "synthetic": is_synthetic(folder)}
    with open_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        with run.timed("prepare"):
            notes = read_notes(folder, recipe.note_types)
            for split in ("validation", "test"):
                notes[split] = sample_notes(notes[split], recipe.evaluation.max_notes, recipe.evaluation.seed)
            stack = Stack.build(recipe.base, recipe.adapters, seed=recipe.training.seed, dtype=recipe.dtype)
            stack.max_tokens = recipe.context
            stack.to(pick_device())
            objective = PretrainObjective(stack, recipe, notes)
        with run.timed("train"):
            state = train(stack, run, recipe.training, objective, f"pretrain {label}", on_validation)
        with run.timed("evaluate"):
            losses = losses_table(stack, notes["test"], "test", recipe.context, recipe.training.batch_size)
            with replacing_file(run.folder / "losses.parquet") as temporary:
                pq.write_table(losses, temporary)
            metrics = perplexity_metrics(losses, recipe.evaluation.resamples, recipe.evaluation.seed)
        stack.save(run.folder / "stack")
        write_json(
            run.folder / "metrics.json",
            {"best_epoch": state.best_epoch, "validation": state.history, "test": metrics},
        )
        run.finish(stack=stack.summary())
        return run
