"""Overrides of a study's cells: nested or with dots, joined in an order in which the later ones win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clinstack.recipe import StageRecipe, parse_recipe, read_yaml, recipe_file, set_value


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return overrides, flat with dotted keys; those of a later part stand last."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in _flat(part).items():
            result.pop(key, None)  # a key that is set again takes its place at the end
            result[key] = value
    return result


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def resolved_recipe(recipe: str, overrides: dict[str, Any], source: str, stage: str | None = None) -> StageRecipe:
    """Read a recipe or preset and put flat overrides over it; a recipe of another stage is refused.

    Raises
    ------
    InputError
        Naming ``source`` and the key.
    """
    values = read_yaml(recipe_file(Path(recipe)))
    for key, value in overrides.items():
        set_value(values, key, value, source)
    return parse_recipe(values, source, stage)
