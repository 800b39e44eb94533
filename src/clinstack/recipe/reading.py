"""Reading, overriding, validating and writing recipes; what is wrong is said with its key and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from clinstack.errors import InputError
from clinstack.recipe.align import AlignRecipe
from clinstack.recipe.audit import AuditRecipe
from clinstack.recipe.evaluate import EvaluateRecipe
from clinstack.recipe.finetune import FinetuneRecipe
from clinstack.recipe.generate import GenerateRecipe
from clinstack.recipe.instruct import InstructRecipe
from clinstack.recipe.judge import JudgeRecipe
from clinstack.recipe.predict import PredictRecipe
from clinstack.recipe.pretrain import PretrainRecipe
from clinstack.recipe.stage import StageRecipe
from clinstack.recipe.study import StudyRecipe
from clinstack.recipe.sweep import SweepRecipe
from clinstack.yaml_bounds import BoundedLoader, read_bounded

PRESETS = Path(__file__).parents[1] / "presets"


STAGES: dict[str, type[StageRecipe]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "align": AlignRecipe,
    "instruct": InstructRecipe,
    "evaluate": EvaluateRecipe,
    "generate": GenerateRecipe,
    "judge": JudgeRecipe,
    "predict": PredictRecipe,
    "sweep": SweepRecipe,
    "study": StudyRecipe,
    "audit": AuditRecipe,
}


class _UniqueKeyLoader(BoundedLoader):
    """YAML's own loader keeps the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, or is not a mapping; with the line where that is known.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such recipe. `clinstack presets ls` lists those that come with the package.")
    try:
        values = yaml.load(read_bounded(path), Loader=_UniqueKeyLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys to values.")
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with ``key.sub=value`` applied; numbers in a key index lists, values are read as YAML.

    Examples
    --------
    >>> apply_overrides({"training": {"epochs": 1}}, ["training.epochs=3"])
    {'training': {'epochs': 3}}
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"{override!r}: an override has the form key.sub=value.")
        try:
            value = yaml.load(text, Loader=_UniqueKeyLoader)
        except yaml.YAMLError:
            raise InputError(f"{override!r}: the value is not valid YAML.") from None
        set_value(result, key, value, repr(override))
    return result


def set_value(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put a value at a dotted key of plain values; ``source`` is named when there is no such place.

    Raises
    ------
    InputError
        If the way to it leads through something that is not a section, or beyond the end of a list.
    """
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, list):
            place = place[_list_index(place, parent, source)]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        else:
            raise InputError(f"{source}: {parent} is not a section.")
    if isinstance(place, list):
        place[_list_index(place, last, source)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise InputError(f"{source}: {'.'.join(parents)} is not a section.")


def _list_index(items: list[Any], text: str, source: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise InputError(f"{source}: {text!r} is not an index of this list of {len(items)} (from 0).")
    return int(text)


def parse_recipe(values: dict[str, Any], source: str, stage: str | None = None) -> StageRecipe:
    """Validate plain values.

    Parameters
    ----------
    values : dict
        What the YAML file and the overrides say.
    source : str
        Named in error messages.
    stage : str, optional
        The verb that asked; a recipe of another stage is refused.

    Raises
    ------
    InputError
        With every wrong key, and the nearest right one where a key is unknown.
    """
    named = values.get("stage", stage)
    if not isinstance(named, str) or named not in STAGES:
        known = ", ".join(STAGES)
        raise InputError(f"{source}: stage is {named!r}; it must be one of {known}.{_suggest(str(named), STAGES)}")
    if stage is not None and named != stage:
        raise InputError(f"{source}: this is a recipe for `clinstack {named}`, not for `clinstack {stage}`.")
    model = STAGES[str(named)]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {explain(error, model)}") from None


def load_recipe(path: Path, overrides: Sequence[str] = (), stage: str | None = None) -> StageRecipe:
    """Read, override and validate a recipe; ``path`` may also be the name of a preset such as ``demo/pretrain``."""
    return parse_recipe(apply_overrides(read_yaml(recipe_file(path)), overrides), str(path), stage)


def recipe_file(path: Path) -> Path:
    """Return the file of a recipe: ``path`` itself, or the preset of that name where there is no such file."""
    preset = PRESETS / f"{path}.yaml"
    return preset if not path.exists() and preset.is_file() else path


def dump_recipe(recipe: StageRecipe) -> str:
    """Return the resolved recipe as YAML; read back, it is the same recipe."""
    values = recipe.model_dump(mode="json")
    return yaml.safe_dump({"stage": values.pop("stage"), **values}, sort_keys=False, allow_unicode=True)


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys that are known at a place of the recipe."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        current = current.model_fields[part].annotation
        candidates = [current, *get_args(current)]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)


def _suggest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with the values of a model, each key with the remedy, on one line."""
    return "; ".join(_explain(item, model) for item in error.errors())


def suggest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Return `` Did you mean …?`` with the nearest known word, or nothing."""
    return _suggest(word, known)


def _explain(item: Any, model: type[BaseModel]) -> str:
    """Turn one of pydantic's errors into a sentence with the key and the remedy."""
    # Without the parts that only name a branch of a union, such as "tuple[str, ...]".
    location = tuple(part for part in item["loc"] if "[" not in str(part))
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"unknown key {key}.{_suggest(str(location[-1]), known) or ' Known here: ' + ', '.join(known) + '.'}"
    if item["type"] == "model_type":
        return f"{key}: input should be a mapping of keys to values (it is {item['input']!r})"
    if item["type"] == "missing":
        return f"the key {key} is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    return (
        f"{key}: {message[:1].lower() + message[1:]} (it is {item['input']!r})"
        if item["type"] != "value_error"
        else f"{key}: {message}"
    )
