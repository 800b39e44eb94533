"""Membership attacks on a classifier: by its scores of examples, as whoever may ask the classifier sees them.

A classifier that has learned its training examples by heart is surer of them, and of their labels, than of others.
Without the task adapter there is no classifier to compare with, so the base is no reference here; how sure a classifier
is of examples that nobody trained on is read from the validation patients, class by class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from clinstack.audit.blind import word_scores
from clinstack.audit.membership_sides import Attacked, Both, Scores
from clinstack.audit.target import MEMBERS, NON_MEMBERS, AuditTarget, draw_by_patient
from clinstack.engine.classification import EncodedExamples
from clinstack.evaluate.scored import label_indicator
from clinstack.notes.read import Examples
from clinstack.tasks import Task

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.recipe.audit import AuditRecipe

CALIBRATION = "validation"
FEWEST = 10
"""Validation examples that a class needs for its own mean; the others share one."""
_WHAT = {
    "loss": "minus the cross-entropy of the label",
    "entropy": "minus the entropy of the prediction; needs no label",
    "class_calibrated": "log-odds of the label, standardized by those of validation patients with the same label",
    "reference": "the cross-entropy of the label under a reference stack minus that under the stack",
}


def attack_classifier(target: AuditTarget, recipe: AuditRecipe) -> Attacked:
    """Score the examples of both sides by the classifier's scores, and by the words alone."""
    task = target.stack.task
    assert task is not None  # the target's kind is "scores"
    examples = {side: target.examples(side) for side in (MEMBERS, NON_MEMBERS)}
    calibration = target.all_examples[CALIBRATION]
    drawn = draw_by_patient(calibration.patient_ids, recipe.max_notes, recipe.evaluation.seed)
    others = calibration.chosen(drawn)
    reference = target.open_reference()
    encoded = {side: EncodedExamples(target.stack, task, part) for side, part in examples.items()}
    logits = {
        side: encoded[side].all_logits(recipe.batch_size, f"membership: {name}").astype(np.float64)
        for side, name in ((MEMBERS, "members"), (NON_MEMBERS, "non-members"))
    }
    of_others = EncodedExamples(target.stack, task, others).all_logits(recipe.batch_size, "membership: validation")
    odds = {side: label_log_odds(task, part.labels, logits[side]) for side, part in examples.items()}
    known = label_log_odds(task, others.labels, of_others.astype(np.float64))
    has = {side: label_indicator(task, part.labels) for side, part in examples.items()}
    known_has = label_indicator(task, others.labels)
    losses = {side: label_losses(task, odds[side]) for side in examples}
    attacks: dict[str, Both] = {
        "loss": (-losses[MEMBERS], -losses[NON_MEMBERS]),
        "entropy": (-entropy(task, logits[MEMBERS]), -entropy(task, logits[NON_MEMBERS])),
        "class_calibrated": (
            standardized(task, odds[MEMBERS], has[MEMBERS], known, known_has),
            standardized(task, odds[NON_MEMBERS], has[NON_MEMBERS], known, known_has),
        ),
    }
    columns: dict[str, Any] = {"cross_entropy": (losses[MEMBERS], losses[NON_MEMBERS])}
    remarks = [
        f"How sure the classifier is of what nobody trained on was read from {len(others.labels):,} validation "
        "examples, class by class; the thresholds and the calibration of the stack were fitted on these patients."
    ]
    if reference is not None:
        before = {side: _reference_losses(reference, task, part, recipe) for side, part in examples.items()}
        attacks["reference"] = (
            before[MEMBERS] - losses[MEMBERS],
            before[NON_MEMBERS] - losses[NON_MEMBERS],
        )
        columns["reference_cross_entropy"] = (before[MEMBERS], before[NON_MEMBERS])
    else:
        remarks.append(
            "No reference classifier was named: an attack that compares with a stack of the same task, trained without "
            "these patients, was not made."
        )
    words = word_scores(
        _tokens(encoded[MEMBERS]),
        _tokens(encoded[NON_MEMBERS]),
        examples[MEMBERS].patient_ids,
        examples[NON_MEMBERS].patient_ids,
    )
    return Attacked(
        unit="example",
        ids=(examples[MEMBERS].example_ids, examples[NON_MEMBERS].example_ids),
        patient_ids=(examples[MEMBERS].patient_ids, examples[NON_MEMBERS].patient_ids),
        attacks=attacks,
        what={name: _WHAT[name] for name in attacks},
        blind={"words": words},
        relative=frozenset({"reference"}),
        counts=(_counts(encoded[MEMBERS]), _counts(encoded[NON_MEMBERS])),
        columns=columns,
        remarks=remarks,
    )


def _reference_losses(reference: Stack, task: Task, examples: Examples, recipe: AuditRecipe) -> Scores:
    logits = EncodedExamples(reference, task, examples).all_logits(recipe.batch_size, "membership: reference")
    return label_losses(task, label_log_odds(task, examples.labels, logits.astype(np.float64)))


def _tokens(encoded: EncodedExamples) -> Any:
    """Yield the tokens of each example, of all its pieces together."""
    pieces, owners = encoded.encoded.pieces, encoded.encoded.owners
    starts = np.searchsorted(owners, np.arange(len(encoded)))
    stops = np.searchsorted(owners, np.arange(len(encoded)), side="right")
    return (np.concatenate(pieces[begin:end]) for begin, end in zip(starts.tolist(), stops.tolist(), strict=True))


def _counts(encoded: EncodedExamples) -> dict[str, int]:
    report = encoded.token_counts()
    return {"tokens": int(report["read"]), "cut_tokens": int(report["cut"])}


def label_log_odds(task: Task, labels: list[Any], logits: Scores) -> Scores:
    """Return how much likelier than not the classifier finds what is right.

    The logit of the label's probability, which is closer to a normal distribution than the probability (Carlini et al.
    2022, "Membership Inference Attacks From First Principles", section IV-C), from the logits, so that it stays exact
    where the classifier is sure.

    Returns
    -------
    float64 array
        [examples, 1], of a multilabel task [examples, codes], each for a code being there or not, as it is.
    """
    indicator = label_indicator(task, labels)
    if task.kind == "multilabel":
        return np.where(indicator, logits, -logits)
    right = logits[indicator]
    wrong = np.where(indicator, -np.inf, logits)
    largest = wrong.max(axis=1)
    rest = largest + np.log(np.exp(wrong - largest[:, None]).sum(axis=1))
    odds: Scores = (right - rest)[:, None]
    return odds


def label_losses(task: Task, odds: Scores) -> Scores:
    """Return the cross-entropy of the labels, of a multilabel task the mean over its codes: shape [examples]."""
    losses: Scores = np.logaddexp(0.0, -odds).mean(axis=1)
    return losses


def entropy(task: Task, logits: Scores) -> Scores:
    """Return the entropy of the predictions in nats, of a multilabel task the mean over its codes: shape [examples]."""
    if task.kind == "multilabel":
        positive = 1 / (1 + np.exp(-np.abs(logits)))
        # p softplus(-x) + (1 - p) softplus(x), the same for x and -x.
        each = positive * np.logaddexp(0.0, -np.abs(logits)) + (1 - positive) * np.logaddexp(0.0, np.abs(logits))
        mean: Scores = each.mean(axis=1)
        return mean
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    whole: Scores = -(np.exp(logs) * logs).sum(axis=1)
    return whole


def standardized(task: Task, odds: Scores, has: Any, known: Scores, known_has: Any) -> Scores:
    """Return log-odds of the label by their class: minus the mean, over the deviation, of others with this label.

    What is hard about a rare class is then no evidence against membership (thresholds by class, as in Song & Mittal
    2021, "Systematic Evaluation of Privacy Risks of Machine Learning Models", section 3.2). The others are neither
    members nor non-members, so that neither side is measured by itself. A class with fewer than `FEWEST` of them is
    measured by all. Of a multilabel task each code has two classes, there and absent; the mean over codes.

    Parameters
    ----------
    odds, known : float64 arrays [examples, 1 or codes]
    has, known_has : arrays of bool [examples, classes]

    Returns
    -------
    float64 array [examples]
    """
    if task.kind == "multilabel":
        groups, known_groups = has.astype(np.int64), known_has.astype(np.int64)
    else:
        groups, known_groups = has.argmax(axis=1)[:, None], known_has.argmax(axis=1)[:, None]
    result = np.zeros(odds.shape)
    for column in range(odds.shape[1]):
        for group in np.unique(groups[:, column]):
            others = known[known_groups[:, column] == group, column]
            if len(others) < FEWEST:
                others = known[:, column]
            rows = groups[:, column] == group
            # A classifier that gives everybody the same has no deviation, and no example stands out.
            deviation = max(float(others.std()), 1e-6)
            result[rows, column] = (odds[rows, column] - others.mean()) / deviation
    mean: Scores = result.mean(axis=1)
    return mean
