"""How a stack was trained, in rows of a table: the recipe's numbers, never its paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.sentences import METHODS, STAGES, compute

_NUMBERS = {
    "epochs": "epochs at most",
    "max_steps": "steps at most",
    "batch_size": "batch size",
    "batch_tokens": "tokens of a batch at most",
    "accumulate": "batches of a step",
    "learning_rate": "learning rate",
    "head_learning_rate": "learning rate of the head",
    "schedule": "schedule",
    "warmup_ratio": "warm-up, share of steps",
    "weight_decay": "weight decay",
    "gradient_clip": "gradient clip",
    "patience": "patience",
}
_OWN = {
    "layout": "layout",
    "context": "context in tokens",
    "max_tokens": "tokens at most",
    "keep": "keeps of long notes",
}
_VERSIONS = ("clinstack", "python", "torch", "transformers", "peft")


def training_rows(facts: StackFacts) -> list[tuple[str, str]]:
    """Return names and values; empty without a Run."""
    if not facts.run:
        return []
    return [(name, value) for name, value in _rows(facts) if value]


def _rows(facts: StackFacts) -> Iterator[tuple[str, str]]:
    recipe = facts.recipe
    yield "stage", STAGES.get(str(facts.stage), str(facts.stage))
    yield "base", f"{facts.base}, {recipe.get('dtype', 'float32')}, quantized: {recipe.get('quantize', 'none')}"
    for adapter in recipe.get("adapters") or []:
        if isinstance(adapter, Mapping):
            yield f"adapter {adapter.get('name')}", _adapter(adapter)
    training = recipe.get("training") or {}
    for key, name in _NUMBERS.items():
        if training.get(key) is not None:
            yield name, _plain(training[key])
    for key, name in _OWN.items():
        if recipe.get(key) is not None:
            yield name, _plain(recipe[key])
    if isinstance(recipe.get("loss"), Mapping):
        yield "loss", str(recipe["loss"].get("name"))
    elif isinstance(recipe.get("loss"), str):
        yield "loss", recipe["loss"]
    if isinstance(facts.metrics.get("best_epoch"), int):
        yield "epoch that was kept", str(facts.metrics["best_epoch"])
    parameters = facts.run.get("stack") or {}
    if isinstance(parameters.get("trainable_parameters"), int):
        yield "parameters", f"{parameters['trainable_parameters']:,} trained of {parameters['parameters']:,}"
    yield "seeds", ", ".join(f"{name} {seed}" for name, seed in (facts.run.get("seeds") or {}).items())
    yield "time and machine", compute(facts) or ""
    yield "ended", str(facts.run.get("finished", ""))[:10]
    versions = facts.run.get("versions") or {}
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in _VERSIONS if name in versions)


def _adapter(adapter: Mapping[str, Any]) -> str:
    if adapter.get("path") is not None:
        kept = "trained on" if adapter.get("trainable") else "frozen"
        return f"from an earlier Run, {kept}"
    method = str(adapter.get("method", "lora"))
    numbers = [
        f"{key} {adapter[key]}" for key in ("rank", "alpha", "dropout", "tokens") if adapter.get(key) is not None
    ]
    if isinstance(adapter.get("target_modules"), str):
        numbers.append(f"on {adapter['target_modules']}")
    elif isinstance(adapter.get("target_modules"), list):
        numbers.append(f"on {', '.join(map(str, adapter['target_modules']))}")
    return f"{METHODS.get(method, method)}{': ' + ', '.join(numbers) if numbers else ''}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def label_rows(facts: StackFacts) -> dict[str, dict[str, int]]:
    """Return of each split how many examples carry each class; of binary and multiclass tasks only."""
    task, test = facts.task, facts.metrics.get("test") or {}
    if task is None or task.kind == "multilabel":
        return {}
    found: dict[str, dict[str, int]] = {}
    for split in ("train", "validation", "test"):
        total = ((facts.metrics.get("tokens") or {}).get(split) or {}).get("texts")
        counts: dict[str, int] = {}
        for entry in test.get("per_class") or []:
            count = (entry.get("counts") or {}).get(split)
            if isinstance(count, int):
                counts[str(entry["class"])] = count
        if task.kind == "binary" and isinstance(total, int):
            counts = {task.classes[0]: total - sum(counts.values()), **counts}
        if set(counts) == set(task.classes):
            found[split] = counts
    return found
