"""Continued pretraining: a language model with adapters reads the hospital's notes (Gema et al. 2023, section 3.1).

Differences from the published code, which used the first tokens of each note, padded, split at random by note: notes
are packed whole, one document never sees another, patients are split, and perplexity weighs every token the same. The
layout ``padded`` reads as the published code did, for comparison; it changes nothing of the split.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from clinstack.engine.canary_planting import plant_in_notes
from clinstack.engine.checkpoint import BEST
from clinstack.engine.distributed import open_shared_run, world
from clinstack.engine.language_modelling import (
    lay_out_notes,
    losses_table,
    note_losses,
    open_notes,
    published_perplexity,
    usable_layout,
)
from clinstack.engine.losses import causal_loss
from clinstack.engine.patients import PassShape, PatientItems, rows_by_patient, shape_of_rows
from clinstack.engine.privacy_record import record_privacy
from clinstack.engine.progress import say_notes
from clinstack.engine.sharding import place, whole_stack
from clinstack.engine.trainer import OnValidation, train
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.files import replacing_file, write_json
from clinstack.model.cards import write_cards
from clinstack.model.data_lineage import training_data
from clinstack.model.stack import Stack
from clinstack.model.support import check_support
from clinstack.notes.read import SPLITS, input_hashes, is_synthetic, notes_files, survey_notes
from clinstack.privacy.canaries import write_canaries
from clinstack.recipe import PretrainRecipe
from clinstack.run import Run, adapter_files
from clinstack.tokens.batches import Batches
from clinstack.tokens.encode import own_ends
from clinstack.tokens.notes import NoteTokens


class PretrainObjective:
    """Next-token prediction over rows of notes; a batch is a list of row numbers."""

    unit = "tokens"

    def __init__(self, stack: Stack, recipe: PretrainRecipe, notes: dict[str, NoteTokens]) -> None:
        self._stack = stack
        self._training = recipe.training
        self.layout = usable_layout(stack, recipe.layout)
        self._train, self._validation = (
            lay_out_notes(stack, notes[split].documents, self.layout, recipe.context) for split in SPLITS[:2]
        )
        self.patients: PatientItems | None = None
        if recipe.privacy is not None:
            patient_ids = notes["train"].index["patient_id"].to_pylist()
            self._train, self.patients = rows_by_patient(self._train, patient_ids)
        self.tokens_read = 0
        self.seconds_validating = 0.0

    def epoch_batches(self, epoch: int) -> Batches:
        """Return the rows of an epoch, shuffled by (seed, epoch)."""
        return self._train.shuffled(self._training.batch_size, self._training.seed, epoch)

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, float]:
        """Return the summed cross-entropy and the number of predictions."""
        rows = self._train.collate(batch).to(self._stack.device)
        self.tokens_read += rows.predictions
        return causal_loss(self._stack, rows), float(rows.predictions)

    def size(self, batch: Sequence[int]) -> int:
        """Return the predicted tokens of a batch."""
        return self._train.predictions(batch)

    def weights(self, items: Sequence[int]) -> list[float]:
        """Return the predictions of each row."""
        return [float(count) for count in self._train.fills[items]]

    def shape(self, items: Sequence[int]) -> PassShape:
        """Return how rows lie in a forward pass."""
        return shape_of_rows(self._train, items)

    def validate(self) -> dict[str, float]:
        """Return the mean loss of a token of the validation patients."""
        began = time.monotonic()
        nll = note_losses(self._stack, self._validation, self._training.batch_size)
        loss = float(nll.sum()) / int(self._validation.fills.sum())
        self.seconds_validating += time.monotonic() - began
        return {"loss": loss, "score": -loss}

    def counts(self) -> dict[str, Any]:
        """Return what one epoch reads, and how much of it is filler; of training patients nothing in private."""
        batch_size = self._training.batch_size
        train = {"train": self._train.counts(self.epoch_batches(0))} if self.patients is None else {}
        return train | {"validation": self._validation.counts(self._validation.in_order(batch_size))}


def pretrain(recipe: PretrainRecipe, *, fresh: bool = False, on_validation: OnValidation | None = None) -> Run:
    """Run the stage, or continue it, and return its finished Run; ``on_validation`` as `train` takes it."""
    folder = Path(recipe.notes)
    notes_hashes = input_hashes(notes_files(folder))
    inputs = {**notes_hashes, **input_hashes(adapter_files(recipe.adapters))}
    label = "+".join(adapter.name for adapter in recipe.adapters)
    facts: dict[str, Any] = {"stage": "pretrain", "label": label, "task": None, "synthetic": is_synthetic(folder)}
    if recipe.canaries is not None:
        facts["canaries"] = recipe.canaries.summary
    with open_shared_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run

        def build() -> Stack:
            built = Stack.build(
                recipe.base,
                recipe.adapters,
                seed=recipe.training.seed,
                dtype=recipe.dtype,
                quantize=recipe.quantize,
            )
            built.max_tokens = recipe.context
            return built

        with run.timed("prepare"):
            say_notes(check_support(recipe, None).notes)
            survey = survey_notes(folder, recipe.note_types)
            stack = build()
            if _measures_as_published(recipe):
                own_ends(stack.tokenizer)  # refused now, and not after training
            notes = {split: open_notes(stack, survey, split, notes_hashes, recipe.tokens) for split in SPLITS}
            _sample(notes, recipe)  # of the notes as they are: what is measured has no canaries
            if recipe.canaries is not None:
                notes["train"], planted = plant_in_notes(stack, recipe, notes["train"])
                if run.writes:
                    write_canaries(run.folder, planted)
            place(stack)
            objective = PretrainObjective(stack, recipe, notes)
        began = time.monotonic()
        with run.timed("train"):
            name, privacy = f"pretrain {label}", recipe.privacy
            state = train(stack, run, recipe.training, objective, name, on_validation, privacy=privacy)
        seconds = time.monotonic() - began - objective.seconds_validating
        speed = world().sum_numbers([objective.tokens_read])[0] / seconds
        with run.timed("evaluate"):
            measured = {"test": notes["test"]}
            if recipe.privacy is None:  # losses of training patients would have no noise
                measured["train"] = notes["train sample"]
            losses, metrics = _measure(stack, recipe, measured)
            if not run.writes:
                return run
            with replacing_file(run.folder / "losses.parquet") as temporary:
                pq.write_table(losses, temporary)
        stack = whole_stack(stack, build, run.checkpoints / BEST)
        stack.data = training_data(folder, "pretrain", recipe.adapters, stack.base)
        record_privacy(stack, run, recipe, folder)
        stack.save(run.folder / "stack")
        write_json(
            run.folder / "metrics.json",
            {
                "best_epoch": state.best_epoch,
                "validation": state.history,
                "layout": objective.layout,
                "tokens": objective.counts(),
                **metrics,
            },
        )
        # Of this start: speed is not in metrics.json, which is the same whether a run was killed or not.
        says_speed = objective.tokens_read and recipe.privacy is None
        run.finish(stack=stack.summary(), tokens_per_second=round(speed, 1) if says_speed else None)
        write_cards(run.folder / "stack")
        return run


def _sample(notes: dict[str, NoteTokens], recipe: PretrainRecipe) -> None:
    """Draw the notes that are measured; of the training patients as many as of the test patients, to compare them."""
    most, seed = recipe.evaluation.max_notes, recipe.evaluation.seed
    for split in SPLITS[1:]:
        notes[split] = notes[split].sample(most, seed)
    notes["train sample"] = notes["train"].sample(len(notes["test"]), seed)


def _measures_as_published(recipe: PretrainRecipe) -> bool:
    return recipe.published_perplexity or recipe.layout == "padded"


def _measure(
    stack: Stack, recipe: PretrainRecipe, notes: dict[str, NoteTokens]
) -> tuple[pa.Table, dict[str, dict[str, Any]]]:
    """Return the losses of each note, and for each split its perplexity, also as published where that is asked for."""
    batch_size, settings = recipe.training.batch_size, recipe.evaluation
    tables, metrics = [], {}
    for split, part in notes.items():
        table = losses_table(stack, part, split, recipe.context, batch_size)
        tables.append(table)
        metrics[split] = perplexity_metrics(table, settings.resamples, settings.seed, split)
        if _measures_as_published(recipe):
            metrics[split]["published"] = published_perplexity(
                stack, part, recipe.context, batch_size, f"{split} notes, as published"
            )
    return pa.concat_tables(tables), metrics
