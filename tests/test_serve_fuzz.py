"""The API against its own description: what schemathesis makes of it, right and wrong, and how the server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation

from clinstack.model.stack import Stack
from clinstack.recipe import PromptRecipe
from clinstack.serve.shared_base import SharedBase
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt
from tiny_serving import BEARER, app_of, settings_of

ROUTES = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/tasks"),
    ("GET", "/v1/models"),
    ("POST", "/v1/predict"),
    ("POST", "/v1/chat/completions"),
    ("PUT", "/v1/stacks/{name}"),
    ("DELETE", "/v1/stacks/{name}"),
}
CHANGING = sorted(route for route in ROUTES if route[0] != "GET")


@pytest.fixture(scope="module")
def shared(tiny_base: Path, mortality: Task, tmp_path_factory: pytest.TempPathFactory) -> SharedBase:
    """A classifier, and a stack that answers questions."""
    folder = tmp_path_factory.mktemp("fuzz")
    Stack.build(str(tiny_base), (), mortality).save(folder / "mortality")
    answers = Stack.build(str(tiny_base))
    answers.prompt, answers.max_tokens = Prompt.of(PromptRecipe(), answers.tokenizer), 64
    answers.save(folder / "answers")
    return SharedBase.open({name: folder / name for name in ("mortality", "answers")})


@pytest.fixture
def schema(shared: SharedBase, tmp_path: Path) -> Any:
    """The server's description, read from the server as it runs; schemathesis ends it after each test."""
    stacks = {name: stack.folder for name, stack in shared.stacks.items()}
    served = settings_of(stacks, tmp_path / "state", stacks_root=tmp_path, max_notes=4)
    return schemathesis.openapi.from_asgi("/openapi.json", app_of(shared, served), headers=BEARER)


def test_every_route_is_described(schema: Any) -> None:
    assert {(item.ok().method.upper(), item.ok().path) for item in schema.get_all_operations()} == ROUTES


def check(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, examples: int) -> int:
    """Send made-up requests, and hold each answer against the description; return how many were sent."""
    sent = 0

    @seed(0)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case) -> None:
        nonlocal sent
        sent += 1
        case.call_and_validate(headers=BEARER)

    send()
    return sent


@pytest.mark.parametrize("route", sorted(ROUTES), ids=str)
def test_right_requests(schema: Any, route: tuple[str, str]) -> None:
    assert check(schema[route[1]][route[0]], GenerationMode.POSITIVE, 5) >= 1


@pytest.mark.parametrize("route", CHANGING, ids=str)
def test_wrong_requests(schema: Any, route: tuple[str, str]) -> None:
    assert check(schema[route[1]][route[0]], GenerationMode.NEGATIVE, 8) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("route", sorted(ROUTES), ids=str)
def test_many_requests(schema: Any, route: tuple[str, str]) -> None:
    operation = schema[route[1]][route[0]]
    assert check(operation, GenerationMode.POSITIVE, 300) >= 1
    if route[0] != "GET":
        assert check(operation, GenerationMode.NEGATIVE, 300) >= 100
