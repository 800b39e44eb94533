"""Losses, always as a sum and the weight it is to be divided by, so that batches of any size add up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clinstack.engine.next_token import next_token_loss
from clinstack.model.stack import Stack
from clinstack.tasks import Task
from clinstack.tokens.pack import IGNORED, PackedBatch


def causal_loss(stack: Stack, batch: PackedBatch, reduction: str = "sum") -> Tensor:
    """Return the cross-entropy of the next tokens of a batch, without the full logits in memory.

    Parameters
    ----------
    reduction : {"sum", "none"}
        "none" gives one loss for each position, shape [rows * tokens], 0 where nothing is predicted, and no gradient.
    """
    hidden = stack.hidden_states(batch.input_ids, batch.attention_mask, batch.position_ids).flatten(0, 1)
    labels = batch.labels.flatten()
    predicts = labels != IGNORED
    output: Any = stack.network.get_output_embeddings()
    losses = next_token_loss(
        hidden[predicts],
        output.weight,
        getattr(output, "bias", None),
        labels[predicts],
        getattr(stack.network.config, "final_logit_softcapping", None),
        summed=reduction == "sum",
    )
    if reduction == "sum":
        return losses
    return losses.new_zeros(labels.shape).masked_scatter_(predicts, losses)


def encode_labels(task: Task, labels: Sequence[Any]) -> Tensor:
    """Return class indices [rows], or for a multilabel task 0/1 [rows, classes] in float32."""
    if task.kind != "multilabel":
        return torch.tensor(labels, dtype=torch.int64)
    column = {name: index for index, name in enumerate(task.classes)}
    targets = torch.zeros(len(labels), len(task.classes))
    for row, codes in enumerate(labels):
        for code in codes:
            targets[row, column[code]] = 1.0
    return targets


def class_weights(task: Task, targets: Tensor, mode: str) -> Tensor | None:
    """Return the weights of the classes in the loss, from the training labels.

    "balanced" is scikit-learn's: rows / (classes * count) for one class out of several; for multilabel tasks the
    positive labels of a code weigh (negatives / positives), each code by itself. A class that never occurs weighs 1.
    """
    if mode == "none":
        return None
    if task.kind == "multilabel":
        positives = targets.sum(0)
        return torch.where(positives > 0, (len(targets) - positives) / positives.clamp(min=1), 1.0)
    counts = torch.bincount(targets, minlength=len(task.classes)).float()
    return torch.where(counts > 0, len(targets) / (len(counts) * counts.clamp(min=1)), 1.0)


def classification_loss(task: Task, logits: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a batch and its weight.

    Cross-entropy for binary and multiclass tasks (weight: the sum of the rows' class weights), the mean over codes of
    the binary cross-entropies for multilabel tasks (weight: the rows).
    """
    if task.kind == "multilabel":
        each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
        return each.mean(1).sum(), torch.tensor(float(len(targets)))
    loss = F.cross_entropy(logits, targets, weight=weights, reduction="sum")
    return loss, torch.tensor(float(len(targets))) if weights is None else weights[targets].sum()
