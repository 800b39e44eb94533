"""The serving benchmark on a tiny model: all its ways answer alike, and its JSON line has the agreed names."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SAME_MODELS = {
    "separate, sorted": "separate",
    "switching, one by one": "switching",
    "mixed batch": "switching",
    "mixed batch, sorted": "switching",
}
"""Ways that differ in their batches only, and whose models are loaded once here."""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("serving")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        folder = tmp_path_factory.mktemp("serving")
        importlib.import_module("serving_arms").make(folder, TINY, 2)
        return folder


def test_all_ways_answer_alike(serving: Any, work: Path) -> None:
    arms = importlib.import_module("serving_arms")
    torch = importlib.import_module("torch")
    requests = arms.read_requests(work)[:24]
    assert len({request.task for request in requests}) == len(arms.CLASSES)
    assert len({len(request.tokens) for request in requests}) > 5
    with torch.inference_mode():
        ways: dict[str, Any] = {}
        weights: dict[str, float] = {}
        for name, way in arms.WAYS.items():
            if name in SAME_MODELS:
                ways[name] = object.__new__(way)
                ways[name].__dict__ = ways[SAME_MODELS[name]].__dict__
                continue
            before = arms.live_tensors()
            ways[name] = way(work)
            weights[name] = arms.live_tensors() - before
        answers = {name: [row.tolist() for row in way.answer(requests)] for name, way in ways.items()}
    alone = answers.pop(serving.REFERENCE)
    assert [len(row) for row in alone] == [arms.CLASSES[request.task] for request in requests]
    # The tasks' adapters and heads do something: two binary tasks answer otherwise.
    first = next(row for row, request in zip(alone, requests, strict=True) if request.task == "mortality")
    with torch.inference_mode():
        [other] = ways["alone"].answer([arms.Request("prolonged_ventilation", requests[alone.index(first)].tokens)])
    assert serving.largest_difference([first], [other.tolist()]) > 1e-3
    for name, rows in answers.items():
        assert serving.largest_difference(rows, alone) < 1e-5, name
    assert weights["separate"] == pytest.approx(5 * weights["switching"], rel=0.05)
    assert weights["clinstack"] < 1.05 * weights["switching"]


def test_batches_pad_as_they_say(serving: Any, work: Path) -> None:
    arms = importlib.import_module("serving_arms")
    requests = arms.read_requests(work)
    every = sorted(range(len(requests)))

    def batches(name: str) -> list[list[int]]:
        way = object.__new__(arms.WAYS[name])
        found: list[list[int]] = way.batches(requests)
        assert sorted(place for batch in found for place in batch) == every, name
        return found

    def padding(name: str) -> int:
        lengths = [[len(requests[place].tokens) for place in batch] for batch in batches(name)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    for name in ("separate", "switching"):
        assert all(len({requests[place].task for place in batch}) == 1 for batch in batches(name))
        assert {len(batch) for batch in batches(name)} == {arms.BATCH}
    assert any(len({requests[place].task for place in batch}) > 1 for batch in batches("mixed batch"))
    assert padding("separate, sorted") < padding("separate")
    assert padding("mixed batch, sorted") < padding("mixed batch") / 2
    assert padding("switching, one by one") == 0


def test_a_difference_is_refused(serving: Any) -> None:
    assert serving.largest_difference([[1.0, 2.0]], [[1.0, 2.5]]) == 0.5
    with pytest.raises(ValueError, match="argument"):
        serving.largest_difference([[1.0, 2.0]], [[1.0]])


def test_the_line_has_the_names_and_the_ratios_of_each_turn(serving: Any) -> None:
    turn, measured = serving.Turn, {}
    for name, seconds in (("separate", 2.0), ("switching", 3.0), ("mixed batch", 4.0), ("clinstack", 1.0)):
        # A machine that is ten times slower in one turn changes nothing: the ways are compared within turns.
        turns = [turn(80, scale * seconds, scale * seconds, 10 * seconds) for scale in (1.0, 10.0, 1.1)]
        measured[name] = serving.Measured(62.0, turns)
    assert serving.ratios(measured) == {
        "vs_separate": 2.0,
        "vs_switching": 3.0,
        "vs_mixed_batch": 4.0,
        "memory_vs_separate": 2.0,
        "memory_vs_switching": 3.0,
        "memory_vs_mixed_batch": 4.0,
    }
    rows = serving.table(measured)
    assert rows[2].startswith("| separate | 36.4 | 1.00 | 1.00 | 20 MB |")
    assert rows[5].startswith("| clinstack | 72.7 | 2.00 | 2.00 | 10 MB |")


@pytest.mark.slow
def test_the_script_ends_with_one_line_of_json(serving: Any) -> None:
    import subprocess
    import sys

    turns = importlib.import_module("turns")
    command = [sys.executable, str(BENCHMARKS / "serving.py"), "--quick", "--turns", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=turns.quiet_environment(1))
    assert done.returncode == 0, done.stderr[-800:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["benchmark"] == "serving"
    assert {"vs_separate", "vs_switching", "vs_mixed_batch"} <= told["ratios"].keys()
    assert min(told["ratios"][name] for name in ("vs_separate", "vs_switching", "vs_mixed_batch")) > 1
