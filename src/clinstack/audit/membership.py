"""Membership: can somebody who holds the stack tell which notes it was trained on?

::

    members (train patients) ──┐                          ┌─▶ AUROC, true positive rates, over patients
                               ├─ attacks ▶ a score a note┤
    non-members (test) ────────┘                          └─▶ the same of the base and of the words alone, which
                                                              were not trained: 0.5, or the split itself tells

Four attacks on the losses of language models (`membership_notes`), three or four on a classifier's scores
(`membership_scores`). Their intervals hold together, so that looking at several attacks makes no finding by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.audit.membership_sides import Attacked
from clinstack.evaluate.bootstrap import estimate, log_odds_interval
from clinstack.files import read_json, replacing_file
from clinstack.privacy.attack_figures import LEVEL, RATES, Sides, joint_areas
from clinstack.privacy.verdict import finding
from clinstack.recipe import TrainingStageRecipe

if TYPE_CHECKING:
    from clinstack.audit.target import AuditTarget
    from clinstack.recipe.audit import AuditRecipe
    from clinstack.run import Run

TABLE = "attacks-membership.parquet"
TPR = "tpr_at_1_percent"
"""The rate that is judged; at 0.1 % few audits have notes enough."""
NOT_TESTED = (
    "shadow models (LiRA), which train many stacks with and without each patient",
    "attacks that may train the stack further, or see the training's updates",
    "notes that an attacker knows only in part, or in other words",
)


def audit_membership(target: AuditTarget, recipe: AuditRecipe, run: Run) -> dict[str, Any]:
    """Attack the membership of the training patients' notes, answers or examples.

    Returns
    -------
    dict
        The section of ``audit.json``: ``tested``, ``why``, ``unit``, ``members`` and ``non_members`` (notes, patients,
        tokens, cut tokens), ``attacks`` (each ``what``, ``auroc``, the true positive rates, and ``auroc_joint``, whose
        intervals hold for all attacks together), ``strongest``, ``split_check``, ``remarks``, ``not_tested``,
        ``table``, ``findings``.

    Raises
    ------
    InputError
        As `AuditTarget` does for the data and the reference.
    """
    attacked = _attack(target, recipe)
    sides = Sides(*attacked.patient_ids, resamples=recipe.evaluation.resamples, seed=recipe.evaluation.seed)
    joint = joint_areas(sides, attacked.attacks)
    check = _split_check(sides, attacked)
    if run.writes:
        with replacing_file(run.folder / TABLE) as temporary:
            pq.write_table(_table(attacked), temporary)
    attacks = {
        name: {"what": attacked.what[name], **sides.figures(*of), "auroc_joint": joint["by_attack"][name]}
        for name, of in attacked.attacks.items()
    }
    return {
        "tested": True,
        "why": None,
        "unit": attacked.unit,
        **{side: sides.counts[side] | counts for side, counts in zip(sides.counts, attacked.counts, strict=True)},
        "attacks": attacks,
        "strongest": joint["strongest"] | {"method": joint["method"]},
        "split_check": check,
        "remarks": [*attacked.remarks, *_training_remarks(target)],
        "not_tested": list(NOT_TESTED),
        "table": TABLE,
        "findings": _findings(sides, attacked, joint, check, recipe),
    }


def _attack(target: AuditTarget, recipe: AuditRecipe) -> Attacked:
    # Imported here: a classifier needs no language modelling, and the other way round.
    if target.kind == "scores":
        from clinstack.audit.membership_scores import attack_classifier

        return attack_classifier(target, recipe)
    from clinstack.audit.membership_notes import attack_language_model

    return attack_language_model(target, recipe)


def _split_check(sides: Sides, attacked: Attacked) -> dict[str, Any]:
    """Say whether the sides differ before any training: then the figures above are partly those of the split.

    ``shift`` is by how much an AUROC differs from 0.5 for that: that of the blind attack which is farthest from 0.5
    among those whose joint interval leaves 0.5 out, else 0; ``tpr_shift`` the same of the rate that is judged.
    """
    joint = joint_areas(sides, attacked.blind)["by_attack"]
    # Learned from the other notes, words below 0.5 mean nothing: what was learned did not hold.
    two_sided = {name for name in joint if name != "words"}
    off = {
        name: float(of["value"]) - 0.5
        for name, of in joint.items()
        if of["interval"][0] > 0.5 or (name in two_sided and of["interval"][1] < 0.5)
    }
    worst = max(off, key=lambda name: abs(off[name]), default="")
    rate, tpr_shift = RATES[TPR], 0.0
    if off and len(sides.non_member_patients) >= round(1 / rate):
        tpr_shift = float(sides.true_positive_rates(*attacked.blind[worst], rate)[0]) - rate
    result: dict[str, Any] = {"biased": bool(off), "shift": off.get(worst, 0.0), "tpr_shift": tpr_shift, **joint}
    if "base_alone" in attacked.blind:
        excess = sides.areas(*attacked.attacks["loss"]) - sides.areas(*attacked.blind["base_alone"])
        result["loss_over_base_alone"] = estimate(float(excess[0]), excess[1:])
    names = {"base_alone": "the base alone", "words": "the notes' words alone"}
    if not off:
        result["why"] = (
            f"{' and '.join(names[name] for name in joint)} cannot tell members from non-members, so that what the "
            "attacks find comes from the training."
        )
    else:
        result["why"] = (
            f"The split is biased: {names[worst]} can tell members from non-members, with an AUROC of "
            f"{0.5 + off[worst]:.3f}. The figures show the split as well as the training, so a figure counts only "
            "where it is as clear when that is taken off; not so for the attack with a reference, which takes off "
            "what the reference makes of each note. Compare notes of the same kind and time, split by patient at "
            "random."
        )
    result["why"] = result["why"][0].upper() + result["why"][1:]
    return result


def _findings(
    sides: Sides, attacked: Attacked, joint: dict[str, Any], check: dict[str, Any], recipe: AuditRecipe
) -> list[dict[str, Any]]:
    """Return two findings for each attack, of intervals that hold for all attacks together."""
    result = []
    level = 1 - (1 - LEVEL) / len(attacked.attacks)
    for name, of in attacked.attacks.items():
        shift, tpr_shift = (0.0, 0.0) if name in attacked.relative else (check["shift"], check["tpr_shift"])
        area = joint["by_attack"][name]
        threshold = recipe.thresholds.membership_auroc
        result.append(_shifted(f"membership.{name}.auroc", area["value"], area["interval"], threshold, shift))
        rate = RATES[TPR]
        if len(of[1]) >= round(1 / rate):
            rates = sides.true_positive_rates(*of, rate)
            interval = log_odds_interval(float(rates[0]), rates[1:], level, rarer=sides.fewer_patients)
            threshold = recipe.thresholds.tpr_at_1_percent
            result.append(_shifted(f"membership.{name}.{TPR}", float(rates[0]), interval, threshold, tpr_shift))
    return result


def _shifted(name: str, value: float, interval: Any, threshold: float, shift: float) -> dict[str, Any]:
    """Return a finding, between both thresholds where the split moves one of them.

    Leaking is what lies beyond the higher of the two, clean what lies below the lower; where members were easier before
    any training a leak must be larger to count, where they were harder a smaller one may be hidden.
    """
    plain = finding(name, value, interval, threshold)
    if not shift:
        return plain
    moved = finding(name, value, interval, threshold + shift)
    verdicts = {plain["verdict"], moved["verdict"]}
    verdict = plain["verdict"] if len(verdicts) == 1 else "inconclusive"
    return moved | {"verdict": verdict, "why": f"threshold {threshold} moved by {shift:+.3f}: the split is biased"}


def _training_remarks(target: AuditTarget) -> list[str]:
    """Say of a training that ended before it had read all notes once that some members are none."""
    training = target.training
    if not target.files.recorded or not isinstance(training, TrainingStageRecipe) or target.run_folder is None:
        return []
    settings, file = training.training, target.run_folder / "metrics.json"
    metrics = read_json(file) if file.is_file() else {}
    last = metrics.get("validation", [{}])[-1]
    if settings.max_steps is None or last.get("epoch") != 1 or last.get("step") != settings.max_steps:
        return []
    when = f"no later than its first epoch (max_steps {settings.max_steps})"
    read = target.read_in_training if target.kind == "notes" else None
    if read is not None:
        if read.all():
            return []
        return [
            f"The training ended {when}: of {len(read):,} training notes only the {int(read.sum()):,} whose beginning "
            "it read count as members."
        ]
    return [
        f"The training ended {when}: members that were drawn here and never read count as members all the same, so "
        "that the figures understate what is known of those that were."
    ]


def _table(attacked: Attacked) -> pa.Table:
    """Return one row for each note, members first: ids and figures only."""

    def both(of: Any) -> pa.Array:
        return pa.array(np.concatenate([np.asarray(side) for side in of]))

    members, others = (len(ids) for ids in attacked.ids)
    name = "note_id" if attacked.unit == "note" else "example_id"
    columns: dict[str, pa.Array] = {
        name: pa.array([*attacked.ids[0], *attacked.ids[1]], pa.string()),
        "patient_id": pa.array([*attacked.patient_ids[0], *attacked.patient_ids[1]], pa.string()),
        "member": pa.array([True] * members + [False] * others),
    }
    columns |= {key: both(of) for key, of in attacked.columns.items()}
    columns |= {f"score_{key}": both(of) for key, of in (attacked.attacks | attacked.blind).items()}
    return pa.table(columns)
