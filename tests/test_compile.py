"""Compiled layers give what the plain ones give, and keep their names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clinstack.engine.compile import compile_layers
from clinstack.errors import InputError
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe


@pytest.mark.slow
def test_compiled_layers_give_the_same_states_and_gradients(tiny_base: Path, perturbed: Callable[..., Stack]) -> None:
    stack = perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", rank=4)]))
    tokens = torch.randint(3, 300, (2, 100), generator=torch.Generator().manual_seed(0))
    position_ids = torch.cat([torch.arange(60), torch.arange(40)]).expand(2, -1)
    names = [name for name, _ in stack.network.named_parameters()]
    weights = torch.randn(2, 100, 32, generator=torch.Generator().manual_seed(1))
    results = []
    for _ in ("plain", "compiled"):
        states = stack.hidden_states(tokens, position_ids=position_ids)
        gradients = torch.autograd.grad((states * weights).sum(), list(stack.trainable_parameters().values()))
        results.append([states, *gradients])
        compile_layers(stack)
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    assert [name for name, _ in stack.network.named_parameters()] == names


def test_without_a_compiler_it_says_what_to_install(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", rank=4)])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler"):
        compile_layers(stack)
