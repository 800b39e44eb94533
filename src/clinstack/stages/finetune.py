"""Fine-tuning a stack with a classifier head on one task (Gema et al. 2023, section 3.2 and Table 3).

All six rows of the table are this stage with another list of adapters. Where nothing below the head trains, the pooled
features are computed once: they are the same in every epoch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clinstack.engine.checkpoint import BEST
from clinstack.engine.classification import EncodedExamples, encode_splits, predictions_table
from clinstack.engine.distributed import open_shared_run
from clinstack.engine.features import FOLDER, FeatureFolders, read_frozen
from clinstack.engine.kept import keep_stack, open_stack
from clinstack.engine.losses import check_loss, class_weights, classification_loss
from clinstack.engine.patients import ExampleShapes, PassShape, PatientItems, patient_numbers
from clinstack.engine.pieces import reads_flat
from clinstack.engine.privacy_record import record_privacy
from clinstack.engine.progress import say_notes
from clinstack.engine.sharding import place, whole_stack
from clinstack.engine.trainer import OnValidation, train
from clinstack.evaluate.classification import SplitScores, measure_classifier
from clinstack.evaluate.scored import Scored
from clinstack.files import replacing_file, write_json
from clinstack.model.cards import write_cards
from clinstack.model.data_lineage import training_data
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.model.support import check_support
from clinstack.notes.groups import admissions_files, read_groups
from clinstack.notes.read import Examples, examples_files, input_hashes, is_synthetic, read_examples
from clinstack.recipe import FinetuneRecipe, stack_label
from clinstack.run import PrunedError, Run, adapter_files
from clinstack.tasks import Task
from clinstack.tokens.texts import cut_notes


class FinetuneObjective:
    """A task's loss on its training examples; validation chooses by AUROC, by AUPRC or by the same loss."""

    unit = "notes"

    def __init__(
        self,
        stack: Stack,
        task: Task,
        recipe: FinetuneRecipe,
        encoded: dict[str, EncodedExamples],
        examples: dict[str, Examples],
    ) -> None:
        self._task = task
        self._recipe = recipe
        self._train = encoded["train"]
        self._validation = encoded["validation"]
        self._labels = examples["validation"].labels
        self._shapes = ExampleShapes(self._train.encoded, flat=reads_flat(stack))
        self.patients: PatientItems | None = None
        if recipe.privacy is not None:
            self.patients = PatientItems.of(patient_numbers(examples["train"].patient_ids))
        weights = class_weights(task, self._train.targets, recipe.class_weights)
        self._weights = None if weights is None else weights.to(stack.device)

    def epoch_batches(self, epoch: int) -> Sequence[list[int]]:
        """Return the examples of an epoch's batches, by (seed, epoch)."""
        return self._train.epoch_batches(self._recipe.training, epoch)

    def loss(self, batch: Sequence[int]) -> tuple[Tensor, float]:
        """Return the summed loss and its weight."""
        logits = self._train.logits(batch)
        return self._loss(logits, self._train.targets[torch.tensor(batch)])

    def size(self, batch: Sequence[int]) -> int:
        """Return the number of notes."""
        return len(batch)

    def weights(self, items: Sequence[int]) -> list[float]:
        """Return the weight of each example: 1, for a private training has no weights of classes."""
        return [1.0] * len(items)

    def shape(self, items: Sequence[int]) -> PassShape | None:
        """Return how examples lie in a forward pass; None where they take more than one."""
        return self._shapes.shape(items)

    def validate(self) -> dict[str, float]:
        """Return loss, primary AUROC and AUPRC on the validation patients, and as score what the recipe selects by."""
        logits = self._validation.all_logits(self._recipe.training.batch_size)
        total, weight = self._loss(torch.from_numpy(logits), self._validation.targets)
        figures = {"loss": float(total) / weight}
        table = Scored.build(self._task, self._labels, logits.astype(np.float64))
        for name, (value,) in zip(("auroc", "auprc"), table.headline(table.unit_weights), strict=True):
            if not np.isnan(value):  # JSON has no NaN
                figures[name] = float(value)
        by_loss = self._recipe.select == "loss" or self._recipe.select not in figures
        figures["score"] = -figures["loss"] if by_loss else figures[self._recipe.select]
        return figures

    def _loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        weights = None if self._weights is None else self._weights.to(logits.device)
        loss, weight = classification_loss(self._task, logits, targets.to(logits.device), weights, self._recipe.loss)
        return loss, float(weight)


def finetune(recipe: FinetuneRecipe, *, fresh: bool = False, on_validation: OnValidation | None = None) -> Run:
    """Run the stage, or continue it, and return its finished Run; ``on_validation`` as `train` takes it."""
    folder = Path(recipe.examples)
    tables = input_hashes(examples_files(folder))
    inputs = tables | input_hashes([*admissions_files(folder), *adapter_files(recipe.adapters)])
    task, examples = read_examples(folder)
    check_loss(task, recipe.loss)
    label = stack_label(recipe.adapters)
    facts = {"stage": "finetune", "label": label, "task": task.name, "synthetic": is_synthetic(folder)}
    with open_shared_run(recipe, inputs, fresh=fresh, **facts) as run:
        if run.is_done:
            return run
        title = f"{task.name} {label}"
        batch_size = recipe.training.batch_size

        def build() -> Stack:
            built = Stack.build(
                recipe.base,
                recipe.adapters,
                task,
                seed=recipe.training.seed,
                dtype=recipe.dtype,
                quantize=recipe.quantize,
                pooling=recipe.pooling,
                layer=recipe.layer,
            )
            built.reading = Reading.of(recipe)
            return built

        with run.timed("prepare"):
            say_notes(check_support(recipe, len(task.classes)).notes)
            opened = open_stack(recipe, task, inputs, build)
            stack = opened.stack
            stack.reading = Reading.of(recipe)
            place(stack)
            encoded = encode_splits(stack, task, examples, tables)
            say_notes(cut_notes(stack.reading, encoded["train"].token_counts(), "train"))
            if stack.backbone_is_frozen:
                folders = FeatureFolders.of(folder, run.folder)
                read_frozen(stack, encoded, folders, f"{title}: features", recipe.share_features)
            objective = FinetuneObjective(stack, task, recipe, encoded, examples)
        with run.timed("train"):
            try:
                state = train(
                    stack,
                    run,
                    recipe.training,
                    objective,
                    title,
                    on_validation,
                    frozen=opened.frozen,
                    privacy=recipe.privacy,
                )
            except PrunedError:
                keep_stack(opened, opened.frozen)
                raise
        with run.timed("evaluate"):
            logits = {name: encoded[name].all_logits(batch_size, f"{title}: {name}") for name in ("validation", "test")}
            if not run.writes:
                return run
            with replacing_file(run.folder / "predictions.parquet") as temporary:
                pq.write_table(predictions_table(task, examples, logits), temporary)
            metrics: dict[str, Any] = {"best_epoch": state.best_epoch, "validation": state.history}
            # Counts of training patients would have no noise.
            told = [name for name in examples if name != "train" or recipe.privacy is None]
            scores = {
                name: SplitScores(examples[name].labels, logits.get(name), examples[name].patient_ids) for name in told
            }
            scores["test"] = replace(scores["test"], groups=read_groups(folder, examples["test"]))
            measured = measure_classifier(task, scores, recipe.evaluation)
            metrics["test"] = measured.metrics["test"]
            metrics["validation_chosen"] = measured.metrics["validation"]
            metrics["tokens"] = {name: encoded[name].token_counts() for name in told}
        stack = whole_stack(stack, build, run.checkpoints / BEST)
        stack.calibration = measured.calibration
        stack.data = training_data(folder, "finetune", recipe.adapters, stack.base)
        record_privacy(stack, run, recipe, folder)
        stack.save(run.folder / "stack")
        write_json(run.folder / "metrics.json", metrics)
        run.finish(stack=stack.summary())
        write_cards(run.folder / "stack")
        keep_stack(opened, state.frozen)
        shutil.rmtree(run.folder / FOLDER, ignore_errors=True)
        return run
