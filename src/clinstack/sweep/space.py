"""The space of a sweep: which values each key of the trials' recipe may have, and the recipe of one trial."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack.errors import InputError
from clinstack.recipe import (
    FinetuneRecipe,
    InstructRecipe,
    PretrainRecipe,
    SpaceEntry,
    SweepRecipe,
    apply_overrides,
    parse_recipe,
    read_yaml,
    recipe_file,
    set_value,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TrialRecipe = PretrainRecipe | FinetuneRecipe | InstructRecipe
Values = dict[str, Any]
"""A value for each key of the space that a trial uses, in the space's order."""
_MOST_CHECKED = 2000
"""Configurations that are checked one by one; in a larger space each value is checked once."""


@dataclass(frozen=True)
class Space:
    """The recipe of the trials and the values that it may have."""

    name: str
    """Of the trials' recipe, for messages."""
    plain: dict[str, Any]
    """What the trials' recipe says, with the overrides, before it is validated."""
    entries: dict[str, SpaceEntry]

    @classmethod
    def of(cls, recipe: SweepRecipe) -> Space:
        """Read the trials' recipe, and check every value of the space against its schema.

        Raises
        ------
        InputError
            Naming the key and the value that the recipe refuses.
        """
        plain = read_yaml(recipe_file(Path(recipe.recipe)))
        if isinstance(recipe.overrides, tuple):
            plain = apply_overrides(plain, recipe.overrides)
        else:
            for key, value in _dotted(recipe.overrides):
                set_value(plain, key, value, f"overrides: {key}")
        stage = plain.get("stage")
        if stage not in {"pretrain", "finetune", "instruct"}:
            raise InputError(f"recipe: {recipe.recipe} is no recipe of pretrain, finetune or instruct.")
        if recipe.metric in {"auroc", "auprc"} and stage != "finetune":
            raise InputError(
                f"metric: {recipe.metric} is a figure of finetune; {stage} has loss (the logarithm of perplexity)."
            )
        space = cls(recipe.recipe, plain, recipe.space)
        if "run" in space.entries:
            raise InputError("space: run is the folder of each trial and is named by the sweep.")
        if recipe.sampler == "grid" and space.size is None:
            key = next(key for key, entry in space.entries.items() if _grid(entry) is None)
            raise InputError(f"space.{key}: a grid needs choices, whole numbers or a step.")
        space._check()
        return space

    @property
    def size(self) -> int | None:
        """How many configurations there are; None when a key has a continuous range."""
        grids = [_grid(entry) for entry in self.entries.values()]
        if any(grid is None for grid in grids):
            return None
        if any(entry.when for entry in self.entries.values()):
            return sum(1 for _ in self.configurations())
        return math.prod(len(grid) for grid in grids if grid is not None)

    def configurations(self) -> Iterator[Values]:
        """Yield every configuration of a space without continuous ranges, the last key changing fastest."""
        yield from _expand({}, list(self.entries.items()))

    @property
    def example(self) -> TrialRecipe:
        """The recipe of a trial with the first value of each key."""
        values: Values = {}
        for key, entry in self.entries.items():
            if applies(entry, values):
                values[key] = _ends(entry)[0]
        return self.recipe_of(values, Path("-"))

    @property
    def validations(self) -> int | None:
        """How often a whole trial is measured, where that is once an epoch; else nobody knows before the first."""
        training = self.example.training
        return None if training.validate_every else training.epochs

    def recipe_of(self, values: Mapping[str, Any], run: Path) -> TrialRecipe:
        """Return the resolved recipe of a trial that writes ``run``.

        Raises
        ------
        InputError
            If the recipe refuses the values.
        """
        plain = copy.deepcopy(self.plain)
        for key, value in values.items():
            set_value(plain, key, value, f"space: {key}")
        recipe = parse_recipe(plain | {"run": str(run)}, f"{self.name} with {describe(values)}")
        assert isinstance(recipe, TrialRecipe)
        return recipe

    def distribution(self, key: str) -> BaseDistribution:
        """Return the range or the choices of a key as Optuna has them; a choice that is a list stands as its JSON."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        entry = self.entries[key]
        if entry.choices is not None:
            return CategoricalDistribution([stored(choice) for choice in entry.choices])
        assert entry.low is not None
        assert entry.high is not None
        if entry.is_whole:
            return IntDistribution(int(entry.low), int(entry.high), entry.log, int(entry.step or 1))
        return FloatDistribution(entry.low, entry.high, entry.log, entry.step)

    def parameters_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as a storage holds them."""
        return {key: stored(value) for key, value in values.items()}

    def values_of(self, parameters: Mapping[str, Any]) -> Values:
        """Return the values behind Optuna's parameters, in the space's order."""
        values = {}
        for key, entry in self.entries.items():
            if key in parameters:
                choices = {stored(choice): choice for choice in entry.choices or ()}
                value = parameters[key]
                values[key] = next((own for text, own in choices.items() if _same(text, value)), value)
        return values

    def _check(self) -> None:
        size = self.size
        if size is not None and size <= _MOST_CHECKED:
            for values in self.configurations():
                self.recipe_of(values, Path("-"))
            return
        for key in self.entries:
            for value in _ends(self.entries[key]):
                for values in _with_value(self, key, value):
                    self.recipe_of(values, Path("-"))


def describe(values: Mapping[str, Any]) -> str:
    """Write values on one line."""
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())


def _dotted(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values, so that a mapping changes a section and does not replace it."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def stored(choice: Any) -> bool | int | float | str | None:
    """Return a choice as a storage holds it: itself, or its JSON when it is a list or a mapping."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _grid(entry: SpaceEntry) -> list[Any] | None:
    """Return the values of a key; None when they are continuous."""
    if entry.choices is not None:
        return list(entry.choices)
    assert entry.low is not None
    assert entry.high is not None
    if entry.is_whole:
        return list(range(int(entry.low), int(entry.high) + 1, int(entry.step or 1)))
    if entry.step is None:
        return None
    count = int((entry.high - entry.low) / entry.step + 1e-9) + 1
    return [entry.low + index * entry.step for index in range(count)]


def _ends(entry: SpaceEntry) -> list[Any]:
    """Return what stands for a key's values in a check: its choices, or both ends of its range."""
    return list(entry.choices) if entry.choices is not None else [entry.low, entry.high]


def _expand(values: Values, left: list[tuple[str, SpaceEntry]]) -> Iterator[Values]:
    if not left:
        yield values
        return
    (key, entry), *others = left
    if not applies(entry, values):
        yield from _expand(values, others)
        return
    for value in _grid(entry) or ():
        yield from _expand({**values, key: value}, others)


def applies(entry: SpaceEntry, values: Mapping[str, Any]) -> bool:
    """Return whether a trial gives a key a value, by the values of the keys before it."""
    for other, wanted in entry.when.items():
        options = wanted if isinstance(wanted, tuple) else (wanted,)
        if other not in values or values[other] not in options:
            return False
    return True


def _with_value(space: Space, key: str, value: Any) -> Iterator[Values]:
    """Yield a configuration with a value, and the others at their first; once for each way to come to the key."""
    entry = space.entries[key]
    options = [wanted if isinstance(wanted, tuple) else (wanted,) for wanted in entry.when.values()]
    for wanted in itertools.product(*options):
        values: Values = dict(zip(entry.when, wanted, strict=True))
        ordered: Values = {}
        for other, item in space.entries.items():
            if other == key:
                ordered[other] = value
            elif other in values:
                ordered[other] = values[other]
            elif applies(item, ordered):
                ordered[other] = _ends(item)[0]
        yield ordered
