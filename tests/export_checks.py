"""What the tests of exports share: stacks to export, and outputs computed without any code of clinstack's export."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clinstack.model.stack import Stack

LENGTHS = (9, 23, 2)


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
    """Run the code of an export's README.md literally, in its folder, and return the model that it opens."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("ignore")
        exec(compile(found[1], str(folder / "README.md"), "exec"), names)
    return names["model"]
