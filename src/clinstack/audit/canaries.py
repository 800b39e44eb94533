"""The canary attack: does the stack find the secrets that were planted likelier than others of their kind?

Each secret is ranked by its loss among other secrets of its space behind the same prefix (`privacy.exposure`). Three
comparisons stand beside the figure: controls, which were invented alike and never planted; the same canaries under the
base alone; and the repetition counts beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.engine.canary_losses import secret_losses
from clinstack.files import replacing_file
from clinstack.privacy.canaries import Canary, PlantedCanaries, read_canaries
from clinstack.privacy.exposure import NULL, Exposure, exposures, mean_estimate, separation
from clinstack.privacy.verdict import finding

if TYPE_CHECKING:
    from clinstack.audit.target import AuditTarget
    from clinstack.recipe.audit import AuditRecipe
    from clinstack.run import Run

TABLE = "attacks-canaries.parquet"
SECRETS = 6144
"""Other secrets that are scored in all, however many canaries there are, within the two limits below."""
FEWEST_OTHERS, MOST_OTHERS = 32, 512


def audit_canaries(target: AuditTarget, recipe: AuditRecipe, run: Run) -> dict[str, Any]:
    """Measure the exposure of the canaries that a Run planted.

    Returns
    -------
    dict
        ``tested`` and ``why``. Where canaries were planted also ``planted`` and ``controls`` (their numbers),
        ``others`` (secrets that each was ranked among), ``methods`` of the exposures, ``null`` (mean exposure of what
        nobody planted, in bits), ``by_repetition``: for each count ``repetitions``, ``canaries``, ``exposure``,
        ``bound`` (what the ranks alone show), ``base_exposure``, ``gain`` (over the base), ``auroc`` against the
        controls and ``above_all_controls``; ``of_controls`` with ``exposure``, ``bound``, ``base_exposure`` and
        ``gain``; ``findings``, one for each count.
    """
    untested = _why_not(target)
    planted = None if target.run_folder is None else read_canaries(target.run_folder)
    if untested is not None or planted is None:
        return {"tested": False, "why": untested, "findings": []}
    canaries = [*planted.planted, *planted.controls]
    scored = _score(target, recipe, planted, canaries)
    if run.writes:
        _write_table(run, canaries, *scored)
    return _section(recipe, planted, canaries, *scored)


def _why_not(target: AuditTarget) -> str | None:
    if target.kind == "scores":
        return "A classifier writes no text, so canaries say nothing of it; audit the language model beneath."
    folder = target.run_folder
    if folder is None:
        return "The Stack lies in no Run, so it is not known whether canaries were planted; audit the Run."
    if read_canaries(folder) is None:
        return (
            "The training planted no canaries. Train with canaries=24 (clinstack pretrain or instruct) and audit that "
            "Run to learn how well this training remembers what stands in it once, four and sixteen times."
        )
    return None


def _score(
    target: AuditTarget, recipe: AuditRecipe, planted: PlantedCanaries, canaries: Sequence[Canary]
) -> tuple[list[Exposure], list[Exposure], list[float], list[float]]:
    """Return exposures with and without the adapters, and the losses of the canaries' own secrets."""
    number = min(max(SECRETS // len(canaries), FEWEST_OTHERS), MOST_OTHERS)
    others = [canary.others(number, recipe.evaluation.seed) for canary in canaries]
    spaces = [canary.space for canary in canaries]
    places_in = cast(Literal["notes", "answers"], planted.places_in)
    stack = target.stack
    adapted = secret_losses(stack, canaries, others, places_in, recipe.batch_size, "canaries, with adapters")
    with stack.switched_off():
        base = secret_losses(stack, canaries, others, places_in, recipe.batch_size, "canaries, base alone")
    own = [[float(each[0]) for each in losses] for losses in (adapted, base)]
    return exposures(adapted, spaces), exposures(base, spaces), own[0], own[1]


def _section(
    recipe: AuditRecipe,
    planted: PlantedCanaries,
    canaries: Sequence[Canary],
    adapted: Sequence[Exposure],
    base: Sequence[Exposure],
    own: Sequence[float],
    own_base: Sequence[float],
) -> dict[str, Any]:
    resamples, seed = recipe.evaluation.resamples, recipe.evaluation.seed
    repetitions = np.array([canary.repetitions for canary in canaries])
    value, before, bound = (
        np.array([getattr(one, name) for one in found])
        for found, name in ((adapted, "value"), (base, "value"), (adapted, "bound"))
    )

    def figures(chosen: Any) -> dict[str, Any]:
        return {
            "exposure": mean_estimate(value[chosen], resamples, seed, least=0.0),
            "bound": mean_estimate(bound[chosen], resamples, seed, least=0.0),
            "base_exposure": mean_estimate(before[chosen], resamples, seed, least=0.0),
            "gain": mean_estimate(value[chosen] - before[chosen], resamples, seed),
        }

    controls = repetitions == 0
    by_repetition = [
        {
            "repetitions": count,
            "canaries": int((repetitions == count).sum()),
            **figures(repetitions == count),
            "auroc": separation(value[repetitions == count], value[controls], resamples, seed),
            "above_all_controls": int((value[repetitions == count] > value[controls].max()).sum()),
        }
        for count in planted.repetitions
    ]
    return {
        "tested": True,
        "why": None,
        "places_in": planted.places_in,
        "planted": len(planted.planted),
        "controls": len(planted.controls),
        "others": min(one.others for one in adapted),
        "methods": sorted({one.method for one in adapted}),
        "null": NULL,
        "by_repetition": by_repetition,
        "of_controls": figures(controls),
        "findings": [
            finding(
                f"canaries.exposure.planted_{one['repetitions']}",
                one["exposure"]["value"],
                one["exposure"]["interval"],
                recipe.thresholds.exposure,
            )
            for one in by_repetition
        ],
    }


def _write_table(
    run: Run,
    canaries: Sequence[Canary],
    adapted: Sequence[Exposure],
    base: Sequence[Exposure],
    own: Sequence[float],
    own_base: Sequence[float],
) -> None:
    """Write one row for each canary and control; names and figures only."""
    table = pa.table(
        {
            "name": [canary.name for canary in canaries],
            "kind": [canary.kind for canary in canaries],
            "repetitions": [canary.repetitions for canary in canaries],
            "space": [canary.space for canary in canaries],
            "others": [one.others for one in adapted],
            "loss": list(own),
            "rank": [one.rank for one in adapted],
            "bound": [one.bound for one in adapted],
            "exposure": [one.value for one in adapted],
            "method": [one.method for one in adapted],
            "base_loss": list(own_base),
            "base_rank": [one.rank for one in base],
            "base_bound": [one.bound for one in base],
            "base_exposure": [one.value for one in base],
        }
    )
    with replacing_file(run.folder / TABLE) as temporary:
        pq.write_table(table, temporary)
