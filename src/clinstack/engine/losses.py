"""Losses, always as a sum and the weight it is to be divided by, so that batches of any size add up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clinstack.engine.next_token import next_token_loss
from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe import LossRecipe
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


def check_loss(task: Task, recipe: LossRecipe) -> None:
    """Refuse a loss that a task cannot have.

    Raises
    ------
    InputError
        For the asymmetric loss and labels that exclude each other.
    """
    if recipe.name == "asymmetric" and task.kind != "multilabel":
        raise InputError(
            f"loss.name: asymmetric is for multilabel tasks, and {task.name} is {task.kind}; "
            "take focal or cross_entropy."
        )


def classification_loss(
    task: Task, logits: Tensor, targets: Tensor, weights: Tensor | None, recipe: LossRecipe | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a batch and its weight, both in float32.

    For binary and multiclass tasks the sum over rows, each times the weight of its class (weight: the sum of these);
    for multilabel tasks the mean over codes and the sum over rows, where the class weights are those of positive labels
    (weight: the rows). With p the probability of what is right (a softmax, for multilabel tasks a sigmoid):

    - cross-entropy: -log p;
    - focal (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4; the class weights are its alpha):
      -(1 - p)^gamma log p;
    - asymmetric (Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification", equation 7), multilabel only:
      for labels that are there -(1 - p)^gamma_positive log p, for absent ones with q = max(1 - p - clip, 0) the same of
      their shifted probability, -q^gamma_negative log(1 - q).

    Parameters
    ----------
    logits : Tensor [rows, classes]
    targets : Tensor
        As `encode_labels` returns them.
    weights : Tensor [classes] or None
        As `class_weights` returns them.
    recipe : LossRecipe, optional
        The cross-entropy when not given.

    Raises
    ------
    InputError
        As `check_loss`.
    """
    recipe = recipe or LossRecipe()
    check_loss(task, recipe)
    logits = logits.float()
    rows = torch.tensor(float(len(targets)))
    if task.kind == "multilabel":
        return _multilabel_losses(logits, targets, weights, recipe).mean(1).sum(), rows
    weight = rows if weights is None else weights[targets].sum()
    if recipe.name == "cross_entropy":
        return F.cross_entropy(logits, targets, weight=weights, reduction="sum"), weight
    right = targets[:, None]
    whole = logits.logsumexp(1)
    log_right = logits.gather(1, right)[:, 0] - whole
    # Of the others and not of 1 - p, which is 0 or rounded where the model is sure.
    log_wrong = logits.scatter(1, right, -torch.inf).logsumexp(1) - whole
    losses = -_power(log_wrong, recipe.gamma) * log_right
    return (losses if weights is None else weights[targets] * losses).sum(), weight


def _multilabel_losses(logits: Tensor, targets: Tensor, weights: Tensor | None, recipe: LossRecipe) -> Tensor:
    """Return the loss of each row and code, shape [rows, classes]."""
    if recipe.name == "cross_entropy":
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    if recipe.name == "focal":
        there, absent = -_power(log_no, recipe.gamma) * log_yes, -_power(log_yes, recipe.gamma) * log_no
    else:
        there = -_power(log_no, recipe.gamma_positive) * log_yes
        absent = _shifted(logits, log_yes, log_no, recipe)
    if weights is not None:
        there = weights * there
    return targets * there + (1 - targets) * absent


def _shifted(logits: Tensor, log_yes: Tensor, log_no: Tensor, recipe: LossRecipe) -> Tensor:
    """Return the asymmetric loss of absent labels."""
    if recipe.clip == 0:
        return -_power(log_yes, recipe.gamma_negative) * log_no
    # Not quite 0, where the slope of a power below 1 is infinite; no gradient comes from below all the same.
    shifted = (logits.sigmoid() - recipe.clip).clamp(min=torch.finfo(torch.float32).tiny)
    return -(shifted**recipe.gamma_negative) * torch.log1p(-shifted)


def _power(log: Tensor, gamma: float) -> Tensor:
    """Return a probability to the power of gamma by its logarithm: finite, with a finite slope, also where it is 0."""
    return (gamma * log).exp()
