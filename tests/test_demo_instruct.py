"""`clinstack demo instruct`: its recipes, what it refuses, and the whole of it with a few steps of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clinstack import demo_instruct
from clinstack.cli import app
from clinstack.demo_instruct import generate_recipes, instruct_recipe, run_demo_instruct
from clinstack.errors import InputError
from clinstack.files import read_json


def test_base_and_tuned_stack_are_asked_alike(tmp_path: Path) -> None:
    """Same questions, same prompt, same length; the base is the one that is trained."""
    instruct = instruct_recipe(tmp_path)
    base, tuned = generate_recipes(tmp_path)
    assert base.stack is None
    assert (base.base, base.prompt) == (instruct.base, instruct.prompt)
    assert (tuned.stack, tuned.base) == (instruct.run, None)
    own = {"run", "stack", "base", "prompt"}
    assert base.model_dump(exclude=own) == tuned.model_dump(exclude=own)
    assert base.splits == ("test",)
    assert base.decoding.max_new_tokens == instruct.answer_tokens
    assert base.max_tokens == instruct.max_tokens
    assert {base.instructions, tuned.instructions, instruct.instructions} == {str(tmp_path / "instructions")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--all-tasks and --workers belong to the demo without instruct"),
        (["--all-tasks"], "--all-tasks and --workers belong"),
    ],
)
def test_options_of_the_other_demo_are_refused(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["demo", "instruct", *words])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_wrong_words_are_refused() -> None:
    for words, message in ((["learn"], "there is `clinstack demo`"), (["--pairs", "200"], "--pairs belongs to")):
        result = CliRunner().invoke(app, ["demo", *words])
        assert isinstance(result.exception, InputError)
        assert message in str(result.exception)


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps already teach the form of answers; a second call does nothing anew, and other pairs are refused."""
    monkeypatch.setattr(demo_instruct, "TRAINING", ("training.max_steps=40", "training.batch_size=2"))
    monkeypatch.setattr(demo_instruct, "QUESTIONS", 20)
    monkeypatch.setattr(demo_instruct, "ANSWER_TOKENS", 24)
    root = tmp_path / "demo"
    run_demo_instruct(root, 100, 7, 600)
    base, tuned = (read_json(root / "generate" / name / "metrics.json")["test"] for name in ("base", "tuned"))
    assert tuned["token_f1"]["value"] > base["token_f1"]["value"]
    assert base["examples"] == tuned["examples"] == 20
    report = json.loads((root / "report.json").read_text(encoding="utf-8"))
    assert report
    words = (root / "report.md").read_text(encoding="utf-8")
    assert "Synthetic patients, toy base model" in words
    done = (root / "instruct" / "run.json").stat().st_mtime_ns
    run_demo_instruct(root, 100, 7, 600)
    assert (root / "instruct" / "run.json").stat().st_mtime_ns == done
    with pytest.raises(InputError, match="pairs 600, not 700"):
        run_demo_instruct(root, 100, 7, 700)
    with pytest.raises(InputError, match="patients and seed"):
        run_demo_instruct(root, 100, 8, 600)
