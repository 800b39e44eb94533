"""Recipes: one YAML file is one stage. Validated without importing torch; unknown keys are errors with a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clinstack.errors import InputError

RESERVED_ADAPTER_NAMES = frozenset({"default", "head", "base"})
PRESETS = Path(__file__).parent / "presets"


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class AdapterRecipe(Section):
    """One adapter of a stack: read from ``path``, or created by ``method``.

    The defaults of a new LoRA are those of the paper's clinical adapter (Gema et al. 2023: rank 16, alpha 32, query
    and value projections).
    """

    name: str
    path: str | None = None
    """A Run, a Stack with one adapter, or a PEFT folder. Without it the adapter is new."""
    trainable: bool | None = None
    """New adapters are trainable unless this says otherwise, read ones frozen."""
    method: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        # PEFT turns the name into a module name (no dots) and searches for it inside "lora_..." keys.
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ValueError(f"{name!r}: use small letters, digits, '_' and '-', beginning with a letter")
        if name in RESERVED_ADAPTER_NAMES or name in "lora_a lora_b lora_embedding":
            raise ValueError(f"{name!r} is taken by the library; use a name such as 'clinical' or 'task'")
        return name

    @model_validator(mode="after")
    def _path_or_method(self) -> AdapterRecipe:
        if self.path is not None:
            shape = {"method", "rank", "alpha", "dropout", "target_modules"} & self.model_fields_set
            if shape:
                raise ValueError(f"{', '.join(sorted(shape))} belong to the adapter at path; remove them here")
        elif self.trainable is False:
            raise ValueError("a new adapter that is not trainable does nothing; give it a path or remove it")
        return self

    @property
    def is_trainable(self) -> bool:
        """Whether the stage trains this adapter."""
        return self.path is None if self.trainable is None else self.trainable


class TrainingRecipe(Section):
    """How a stage trains."""

    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """End after so many optimizer steps, also in the middle of an epoch."""
    batch_size: int = Field(default=8, ge=1)
    """Packed rows (pretrain) or notes (finetune) in a forward pass."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes in an optimizer step; the loss is weighted as if they were one batch."""
    learning_rate: float = Field(default=3e-4, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    """For the classifier head; the learning rate of the adapters when not given."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of all optimizer steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints; a killed run repeats at most so many."""


class EvaluationRecipe(Section):
    """How a stage measures."""

    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples over patients."""
    seed: int = Field(default=0, ge=0)
    max_notes: int | None = Field(default=None, ge=1)
    """Perplexity is measured on at most so many notes of the held-out patients, drawn by ``seed``; all without it."""


class StageRecipe(Section):
    """What every stage has."""

    stage: str
    run: str
    """Directory of the Run."""
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @property
    def seeds(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"evaluation": self.evaluation.seed}


class TrainingStageRecipe(StageRecipe):
    """What every training stage has."""

    base: str = "embedded"
    """``embedded``, a local folder, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the base; adapters and head are float32 whatever this says."""
    adapters: tuple[AdapterRecipe, ...] = ()
    training: TrainingRecipe = TrainingRecipe()

    @property
    def seeds(self) -> dict[str, int]:
        """Every seed that the stage uses, by what it is for."""
        return {"training": self.training.seed, **super().seeds}

    @model_validator(mode="after")
    def _names_differ(self) -> TrainingStageRecipe:
        names = [adapter.name for adapter in self.adapters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"adapters: the name {name!r} stands twice")
        return self


class PretrainRecipe(TrainingStageRecipe):
    """Continued pretraining of a causal language model on notes."""

    stage: Literal["pretrain"] = "pretrain"
    notes: str
    """A folder written by ``clinstack prepare``, with ``notes/*.parquet``."""
    note_types: tuple[str, ...] | None = None
    """Only these; all when not given."""
    context: int = Field(default=512, ge=16)
    """Tokens in a packed row."""

    @model_validator(mode="after")
    def _something_trains(self) -> PretrainRecipe:
        if not any(adapter.is_trainable for adapter in self.adapters):
            raise ValueError("adapters: none is trainable; add one, such as {name: clinical, method: lora}")
        return self


class FinetuneRecipe(TrainingStageRecipe):
    """A classifier head, and adapters where the stack has them, on one task's examples."""

    stage: Literal["finetune"] = "finetune"
    examples: str
    """A task's folder, such as ``data/examples/mortality``."""
    max_tokens: int = Field(default=512, ge=8)
    """Longer notes are cut to this; how much was cut is reported."""
    keep: Literal["beginning", "end", "sections"] = "beginning"
    """Which part of a longer note stays. ``sections`` drops whole sections, the least important first."""
    suffix: str = ""
    """Written after every note, also a cut one, within ``max_tokens``. The head reads the last token: a suffix such as
    a section's header makes that the same token everywhere, at which a model that has read notes sums them up."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """Weights of the classes in the loss, in training and in validation."""
    select: Literal["auroc", "loss"] = "auroc"
    """The validation figure that chooses the epoch."""


class EvaluateRecipe(StageRecipe):
    """A saved stack on Notes: perplexity for a language model, ranking metrics for a classifier."""

    stage: Literal["evaluate"] = "evaluate"
    stack: str
    """A Stack, or a finished Run."""
    base: str | None = None
    """Where the base is on this machine; as the stack recorded when not given."""
    notes: str | None = None
    """For a language model: a folder written by ``clinstack prepare``."""
    examples: str | None = None
    """For a classifier: a task's folder with the same classes."""
    split: Literal["train", "validation", "test"] = "test"
    against: str | None = None
    """Another Run with predictions for the same examples; the paired difference to it is measured too."""
    batch_size: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> EvaluateRecipe:
        if (self.notes is None) == (self.examples is None):
            raise ValueError("give either notes (for a language model) or examples (for a classifier)")
        if self.against is not None and self.examples is None:
            raise ValueError("against: paired differences are measured on examples")
        return self


STAGES: dict[str, type[StageRecipe]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "evaluate": EvaluateRecipe,
}


class _UniqueKeyLoader(yaml.SafeLoader):
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
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
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
        *parents, last = key.split(".")
        place: Any = result
        for parent in parents:
            if isinstance(place, list):
                place = place[_list_index(place, parent, override)]
            elif isinstance(place, dict):
                place = place.setdefault(parent, {})
            else:
                raise InputError(f"{override!r}: {parent} is not a section.")
        if isinstance(place, list):
            place[_list_index(place, last, override)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise InputError(f"{override!r}: {'.'.join(parents)} is not a section.")
    return result


def _list_index(items: list[Any], text: str, override: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise InputError(f"{override!r}: {text!r} is not an index of this list of {len(items)} (from 0).")
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
    file = path
    if not path.exists() and (PRESETS / f"{path}.yaml").is_file():
        file = PRESETS / f"{path}.yaml"
    return parse_recipe(apply_overrides(read_yaml(file), overrides), str(path), stage)


def dump_recipe(recipe: StageRecipe) -> str:
    """Return the resolved recipe as YAML; read back, it is the same recipe."""
    values = recipe.model_dump(mode="json")
    for adapter in values.get("adapters", []):
        if adapter["path"] is not None:
            for key in ("method", "rank", "alpha", "dropout", "target_modules"):
                del adapter[key]
    return yaml.safe_dump({"stage": values.pop("stage"), **values}, sort_keys=False, allow_unicode=True)


def stack_label(adapters: Sequence[AdapterRecipe]) -> str:
    """Name a stack by its adapters.

    Examples
    --------
    ``head`` (no adapter), ``lora`` (one new LoRA), ``clinical-frozen+lora``: the six rows of the paper's Table 3.
    """
    parts = [
        adapter.method
        if adapter.path is None
        else f"{adapter.name}-{'trainable' if adapter.is_trainable else 'frozen'}"
        for adapter in adapters
    ]
    return "+".join(parts) or "head"


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
