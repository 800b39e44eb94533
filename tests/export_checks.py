"""What the tests of exports share: stacks to export, and outputs computed without any code of clinstack's export."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clinstack.files import read_json
from clinstack.model.reading import Reading
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task

LENGTHS = (9, 23, 2)

Saved = Callable[..., Path]
STAY = Task("stay", "multiclass", ("short", "medium", "long"))
CODES = Task("codes", "multilabel", ("038", "428", "486", "584"))
TOP = ("clinical-frozen+lora", "clinical-trainable+lora")
"""Labels of stacks with an adapter on top of another."""


def slow(*values: Any) -> list[Any]:
    """Mark values of a parameter that bring little new."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def saver(
    base: Path, specs: dict[str, list[AdapterRecipe]], task: Task, perturbed: Callable[..., Stack], root: Path
) -> Saved:
    """Return a function that saves a stack once: of a label of Table 3, or of adapters."""
    made: dict[str, Path] = {}

    def save(label: str, of: Task | None = task, adapters: Any = None, **options: Any) -> Path:
        key = f"{label} {of and of.name} {options}"
        if key not in made:
            made[key] = root / str(len(made))
            where = options.pop("base", str(base))
            stack = Stack.build(where, specs[label] if adapters is None else adapters, of, **options)
            stack.reading = Reading(max_tokens=48, keep="end", suffix=" END")
            perturbed(stack).save(made[key])
        return made[key]

    return save


def difference(one: Tensor, other: Tensor) -> float:
    """The largest, of tensors that have one shape."""
    assert one.shape == other.shape
    return float((one - other).abs().max())


def padded_rows(vocabulary: int = 300, first: int = 3) -> tuple[Tensor, Tensor]:
    """Three texts of different lengths, padded on the right with token 0."""
    ids = torch.randint(first, vocabulary, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(5))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return ids * mask, mask


def stack_logits(folder: Path, **options: Any) -> Tensor:
    """The logits of a saved stack: [rows, classes], or of all real tokens of a language model."""
    stack = Stack.load(folder, **options)
    stack.network.float()
    ids, mask = padded_rows(stack.network.config.vocab_size, first=5)
    with torch.no_grad():
        if stack.task is not None:
            return stack.logits(ids, mask)
        return stack.network(input_ids=ids, attention_mask=mask).logits[mask == 1]


def plain_logits(model: Any, *, classifier: bool = True) -> Tensor:
    """The same of a model of transformers or PEFT."""
    ids, mask = padded_rows(model.config.vocab_size, first=5)
    model.eval()
    if model.dtype != torch.float32:
        model.float()
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits if classifier else logits[mask == 1]


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the code of an export's README.md, in its folder, and return the model that it opens.

    Literally, but for the place of a base that is a folder of this machine: a README.md names none.
    """
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    code = found[1]
    if (folder / "stack.json").is_file():
        place = read_json(folder / "stack.json")["base"]["id"]
        code = code.replace(f"base = {Path(place).name!r}  #", f"base = {place!r}  #")
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("ignore")
        exec(compile(code, str(folder / "README.md"), "exec"), names)
    return names["model"]
