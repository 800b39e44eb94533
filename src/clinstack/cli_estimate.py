"""`clinstack estimate`: trainable parameters and memory of a recipe, before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console

from clinstack.errors import InputError
from clinstack.recipe import StageRecipe, TrainingStageRecipe

if TYPE_CHECKING:
    from clinstack.estimate.devices import Device


def estimate_recipe(
    recipe: StageRecipe,
    console: Console,
    *,
    device: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    as_json: bool = False,
) -> None:
    """Print what a recipe needs.

    Parameters
    ----------
    device : str, optional
        Only this card, by the beginning of its name.
    batch, length : int, optional
        Other rows of a batch, other tokens of a row.
    as_json : bool
        As one machine-readable line.

    Raises
    ------
    InputError
        If the recipe trains nothing, its base is not known here, or does not support it.
    """
    from clinstack.estimate.devices import DEVICES, find_device
    from clinstack.estimate.memory import LENGTH_KEYS, resized
    from clinstack.estimate.report import Estimate

    if not isinstance(recipe, TrainingStageRecipe) or recipe.stage not in LENGTH_KEYS:
        raise InputError(
            f"estimate: knows recipes for {', '.join(LENGTH_KEYS)}; this is one for {recipe.stage}. Name the recipe "
            "that it trains."
        )
    devices: tuple[Device, ...] = DEVICES if device is None else (find_device(device),)
    estimate = Estimate(resized(recipe, batch, length), devices)
    if as_json:
        print(json.dumps(estimate.values()))
    else:
        estimate.show(console)
