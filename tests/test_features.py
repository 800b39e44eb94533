"""Features of a frozen stack: computed once, the same as computed anew, for whoever asks, whatever happens."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clinstack.engine import features as features_module
from clinstack.engine import kept
from clinstack.engine.features import FeatureFolders, compute_features
from clinstack.files import read_json
from clinstack.model.cards import CARD_FILES
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, EvaluateRecipe, FinetuneRecipe, parse_recipe
from clinstack.run import PrunedError, Run
from clinstack.stages.evaluate import evaluate
from clinstack.stages.finetune import finetune
from clinstack.tasks import Task
from tiny_notes import CANARY

PIECES = [np.array([1, *range(5, 5 + length)]) for length in (3, 9, 1, 20, 6, 14)]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_kept", None)


@pytest.fixture
def notes(tiny_notes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_notes, tmp_path / "data", ignore=shutil.ignore_patterns("features", "tokens")))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces in each call of the frozen stack for features."""
    seen: list[int] = []
    compute = features_module.piece_features

    def counting(stack: Stack, pieces: Any) -> Any:
        seen.append(len(pieces))
        return compute(stack, pieces)

    monkeypatch.setattr(features_module, "piece_features", counting)
    return seen


@pytest.fixture
def stack(tiny_base: Path, clinical: Path, mortality: Task) -> Stack:
    return Stack.build(str(tiny_base), [AdapterRecipe(name="clinical", path=str(clinical))], mortality)


def recipe(base: Path, notes: Path, run: Path, task: str = "mortality", **changes: Any) -> FinetuneRecipe:
    values: dict[str, Any] = {
        "run": str(run),
        "base": str(base),
        "examples": str(notes / "examples" / task),
        "max_tokens": 48,
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.05},
        "evaluation": {"resamples": 100},
    }
    values["training"] |= changes.pop("training", {})
    parsed = parse_recipe(values | changes, "test", "finetune")
    assert isinstance(parsed, FinetuneRecipe)
    return parsed


def scores(run: Run) -> list[Any]:
    found: list[Any] = pq.read_table(run.folder / "predictions.parquet")["score"].to_pylist()
    return found


def shards(notes: Path) -> list[Path]:
    return sorted((notes / "features").glob("*/*.safetensors"))


def folders(place: Path) -> FeatureFolders:
    return FeatureFolders(place / "features", place / "run" / "features")


# ---------------------------------------------------------------------- equal to the plain way


def test_features_are_what_the_head_reads_of_each_piece_alone(stack: Stack, tmp_path: Path) -> None:
    stack.eval()
    first, second = compute_features(stack, [PIECES[:4], PIECES[4:]], folders(tmp_path), "features")
    with torch.inference_mode():
        for piece, row in zip(PIECES, np.concatenate([first, second]), strict=True):
            tokens = torch.from_numpy(piece)[None]
            expected = stack.pooled(tokens, torch.ones_like(tokens))[0].numpy()
            np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6)
    assert compute_features(stack, [[]], folders(tmp_path), "features")[0].shape == (0, 32)


@pytest.mark.parametrize("keep", ["beginning", "chunks"])
def test_a_run_on_features_predicts_what_one_without_predicts(
    tiny_base: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    cached = finetune(recipe(tiny_base, notes, tmp_path / "cached", keep=keep, max_tokens=16))
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "backbone_is_frozen", property(lambda self: False))
        plain = finetune(recipe(tiny_base, notes, tmp_path / "plain", keep=keep, max_tokens=16))
    np.testing.assert_allclose(np.array(scores(cached)), np.array(scores(plain)), rtol=0, atol=1e-5)
    one, other = (read_json(run.folder / "metrics.json")["test"] for run in (cached, plain))
    assert one[one["primary"]] == other[other["primary"]]
    assert len(shards(notes)) == 1


# ---------------------------------------------------------------------- computed once


def test_trials_seeds_and_evaluate_read_what_the_first_run_computed(
    tiny_base: Path, notes: Path, tmp_path: Path, passes: list[int]
) -> None:
    run = finetune(recipe(tiny_base, notes, tmp_path / "first"))
    assert passes
    passes.clear()
    for number, training in enumerate(({"learning_rate": 0.01}, {"seed": 3}, {"epochs": 1})):
        finetune(recipe(tiny_base, notes, tmp_path / str(number), training=training))
    values = {
        "run": str(tmp_path / "evaluate"),
        "stack": str(run.folder),
        "examples": str(notes / "examples/mortality"),
    }
    evaluating = parse_recipe(values, "test", "evaluate")
    assert isinstance(evaluating, EvaluateRecipe)
    again = evaluate(evaluating)
    assert not passes
    table = pq.read_table(run.folder / "predictions.parquet")
    kept_scores = [row["score"] for row in table.to_pylist() if row["split"] == "test"]
    assert scores(again) == kept_scores


def test_one_pass_serves_all_tasks_and_a_note_that_several_have_is_read_once(
    tiny_base: Path, notes: Path, tmp_path: Path, passes: list[int]
) -> None:
    others = [str(notes / "examples" / name) for name in ("length_of_stay", "diagnoses")]
    alone = scores(finetune(recipe(tiny_base, notes, tmp_path / "alone", "length_of_stay")))
    shutil.rmtree(notes / "features")
    passes.clear()
    finetune(recipe(tiny_base, notes, tmp_path / "mortality", share_features=others))
    texts = {
        text
        for name in ("mortality", "length_of_stay", "diagnoses")
        for file in (notes / "examples" / name).glob("*.parquet")
        for text in pq.read_table(file)["text"].to_pylist()
    }
    assert sum(passes) == len(texts)
    passes.clear()
    shared = scores(finetune(recipe(tiny_base, notes, tmp_path / "shared", "length_of_stay")))
    finetune(recipe(tiny_base, notes, tmp_path / "diagnoses", "diagnoses"))
    assert not passes
    assert shared == alone  # bit for bit: what was asked for beside it changes nothing


def test_another_frozen_part_has_features_of_its_own(
    tiny_base: Path, clinical: Path, stack: Stack, mortality: Task, tmp_path: Path, passes: list[int]
) -> None:
    stacks = [
        stack,
        Stack.build(str(tiny_base), [], mortality),
        Stack.build(str(tiny_base), [], mortality, pooling="mean"),
        Stack.build(str(tiny_base), [], mortality, layer=1),
        Stack.build(str(tiny_base), [], mortality, dtype="bfloat16"),
    ]
    found = [compute_features(one, [PIECES], folders(tmp_path), "features")[0] for one in stacks]
    assert len(passes) == len(stacks) * len(PIECES)
    for index, one in enumerate(found):
        for other in found[:index]:
            assert np.abs(one - other).max() > 1e-4


# ---------------------------------------------------------------------- whatever happens


def test_a_computation_that_was_killed_goes_on_with_the_same_bits(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    whole = compute_features(stack, [PIECES], folders(tmp_path / "whole"), "features")[0]
    passes.clear()
    monkeypatch.setattr(features_module, "SHARD_SECONDS", -1.0)  # a shard for each piece
    write = features_module._write
    written: list[int] = []

    def killed_after_two(store: Path, shard: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(shard))
        write(store, shard)

    monkeypatch.setattr(features_module, "_write", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        compute_features(stack, [PIECES], folders(tmp_path), "features")
    monkeypatch.setattr(features_module, "_write", write)
    assert len(shards(tmp_path)) == 2
    passes.clear()
    resumed = compute_features(stack, [PIECES], folders(tmp_path), "features")[0]
    assert sum(passes) == len(PIECES) - 2
    assert resumed.tobytes() == whole.tobytes()
    assert not list((tmp_path / "features").rglob("*.partial"))


def test_a_damaged_shard_is_computed_anew(
    stack: Stack, tmp_path: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = compute_features(stack, [PIECES], folders(tmp_path), "features")[0]
    passes.clear()
    (shard,) = shards(tmp_path)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    again = compute_features(stack, [PIECES], folders(tmp_path), "features")[0]
    assert sum(passes) == len(PIECES)
    assert again.tobytes() == before.tobytes()
    said = capsys.readouterr().err
    assert said.count("is damaged") == 1
    passes.clear()
    compute_features(stack, [PIECES], folders(tmp_path), "features")
    assert not passes
    assert "damaged" not in capsys.readouterr().err


def test_where_nobody_may_write_beside_the_notes_features_stay_in_the_run(
    tiny_base: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = features_module._made
    seen: list[Path] = []

    def refusing(place: Path, name: str) -> Path:
        if place == notes / "features":
            raise PermissionError(13, "Permission denied", str(place))
        seen.append(made(place, name))
        return seen[-1]

    monkeypatch.setattr(features_module, "_made", refusing)
    run = finetune(recipe(tiny_base, notes, tmp_path / "run"))
    assert run.is_done
    assert [store.parent for store in seen] == [run.folder / "features"]
    assert not (notes / "features").exists()
    assert not (run.folder / "features").exists()  # gone with the work it was for
    assert capsys.readouterr().err.count("cannot be written (Permission denied)") == 1


def test_of_two_processes_one_computes_and_the_other_waits(tiny_base: Path, tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from clinstack.engine import features
from clinstack.model.cards import CARD_FILES
from clinstack.model.stack import Stack
from clinstack.tasks import Task
place, base = Path(sys.argv[1]), sys.argv[2]
compute, count = features.piece_features, 0
def slow(stack, pieces):
    global count
    count += len(pieces)
    time.sleep(0.1)
    return compute(stack, pieces)
features.piece_features = slow
stack = Stack.build(base, [], Task("mortality", "binary", ("alive", "dead")))
(place / f"ready-{sys.argv[3]}").touch()
while len(list(place.glob("ready-*"))) < 2:
    time.sleep(0.01)
pieces = [np.array([1, *range(5, 5 + length)]) for length in range(1, 9)]
found = features.compute_features(stack, [pieces], features.FeatureFolders(place / "features", place / "run"), "x")[0]
print(count, found.tobytes().hex())
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(tiny_base), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    counts, found = zip(*(answer.split() for answer, _ in answers), strict=True)
    assert sorted(map(int, counts)) == [0, 8]
    assert found[0] == found[1]
    assert sum("waiting for it" in error for _, error in answers) == 1


# ---------------------------------------------------------------------- confidential


def test_features_are_as_confidential_as_the_notes_and_hold_no_text(
    tiny_base: Path, notes: Path, tmp_path: Path
) -> None:
    finetune(recipe(tiny_base, notes, tmp_path / "run"))
    (shard,) = shards(notes)
    assert stat.S_IMODE(shard.stat().st_mode) == 0o600
    assert stat.S_IMODE(shard.parent.stat().st_mode) == 0o700
    assert "as carefully as the" in (notes / "features" / "README.md").read_text()
    for file in (notes / "features").rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes()


# ---------------------------------------------------------------------- the stack that stays in memory


def test_the_next_run_on_the_same_frozen_stack_builds_none_and_gives_the_same_bits(
    tiny_base: Path, clinical: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    build: Callable[..., Stack] = Stack.build

    def counting(base: str, *arguments: Any, **options: Any) -> Stack:
        built.append(base)
        return build(base, *arguments, **options)

    monkeypatch.setattr(Stack, "build", counting)
    adapters = [{"name": "clinical", "path": str(clinical)}]

    def run(name: str, **changes: Any) -> Run:
        return finetune(recipe(tiny_base, notes, tmp_path / name, **{"adapters": adapters, **changes}))

    run("first")
    second = run("second", training={"seed": 5, "learning_rate": 0.01})
    assert len(built) == 1
    monkeypatch.setattr(kept, "_kept", None)
    anew = run("anew", training={"seed": 5, "learning_rate": 0.01})
    assert len(built) == 2
    assert scores(second) == scores(anew)
    # The cards of a Run say how long it took.
    written = [anew.folder / "stack" / name for name in CARD_FILES]
    files = [file for file in (anew.folder / "stack").rglob("*") if file.is_file() and file not in written]
    assert any(file.suffix == ".safetensors" for file in files)
    for file in files:
        assert (second.folder / file.relative_to(anew.folder)).read_bytes() == file.read_bytes()
    run("other task", task="length_of_stay")
    run("other spec", adapters=[])
    run("trains", adapters=[{"name": "task", "rank": 2, "alpha": 4}])
    run("trains again", adapters=[{"name": "task", "rank": 2, "alpha": 4}])
    assert len(built) == 6


def test_a_trial_that_is_given_up_leaves_its_stack_to_the_next(
    tiny_base: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(number: int, figures: dict[str, float]) -> None:
        raise PrunedError

    for name in ("first", "second"):
        with pytest.raises(PrunedError):
            finetune(recipe(tiny_base, notes, tmp_path / name), on_validation=give_up)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "build", None)
        third = finetune(recipe(tiny_base, notes, tmp_path / "third"))
    monkeypatch.setattr(kept, "_kept", None)
    assert scores(third) == scores(finetune(recipe(tiny_base, notes, tmp_path / "anew")))
