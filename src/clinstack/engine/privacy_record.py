"""What a finished training says of its privacy: in ``run.json``, and in ``stack.json`` with all trainings before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack.model.data_lineage import notes_source
from clinstack.model.privacy_lineage import TrainingPrivacy, distinct, privacy_before, privacy_sentence
from clinstack.privacy.accountant import Mechanism, cost

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.recipe import TrainingStageRecipe
    from clinstack.run import Run

_COSTS = ("unit", "epsilon", "delta", "noise_multiplier", "clip", "sampling_rate", "steps", "patients", "accountant")


def record_privacy(stack: Stack, run: Run, recipe: TrainingStageRecipe, folder: Path) -> None:
    """Give a trained stack its list of trainings, private or not, and a private Run the sentence of the whole stack.

    Parameters
    ----------
    folder : Path
        What was trained on: Notes, examples, instructions or preferences.
    """
    before = privacy_before(recipe.adapters, stack.base)
    trained = "+".join(adapter.name for adapter in recipe.adapters if adapter.is_trainable) or "head"
    facts: dict[str, Any] = {"prepare": notes_source(folder, recipe.stage).prepare}
    if recipe.privacy is not None:
        record = run.record["privacy"]
        facts |= {key: record[key] for key in _COSTS}
        facts["overall"] = overall(before, record)
    own = TrainingPrivacy(recipe.stage, trained, recipe.privacy is not None, **facts)
    stack.privacy = distinct([*before, own])
    if recipe.privacy is not None:
        run.record["privacy"] |= {"overall": own.overall, "sentence": privacy_sentence(stack.privacy)}


def overall(before: Sequence[TrainingPrivacy], record: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a private training and all before it cost as one; None where one of those is not private.

    All steps of all trainings are composed at the new training's delta, as if each patient were in each training.
    """
    if not all(entry.private for entry in before):
        return None
    if not before:
        return {"epsilon": record["epsilon"], "delta": record["delta"], "how": "one training"}
    mechanisms = [Mechanism(record["sampling_rate"], record["noise_multiplier"], record["steps"])]
    for entry in before:
        if entry.sampling_rate is None or entry.noise_multiplier is None or entry.steps is None:
            return None
        mechanisms.append(Mechanism(entry.sampling_rate, entry.noise_multiplier, entry.steps))
    spent = cost(mechanisms, record["delta"])
    how = f"all steps of {len(mechanisms)} trainings composed ({spent.accountant})"
    return {"epsilon": spent.epsilon, "delta": record["delta"], "how": how}
