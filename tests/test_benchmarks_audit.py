"""The studies of leaks and of growth: their tables and their figure from invented audits, and one small run of each."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def leak_study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("leak_study")


@pytest.fixture
def audit_scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("audit_scaling")


def estimate(value: float, reach: float = 0.1) -> dict[str, Any]:
    return {"value": value, "interval": [value - reach, value + reach]}


def invented(leak: float) -> dict[str, Any]:
    """Return an arm's figures as `figures_of` reads them."""
    return {
        "verdict": "leaking" if leak else "clean",
        "epsilon": None if leak else 7.96,
        "perplexity": {split: estimate(3.0) for split in ("train", "test")},
        "exposure": {times: estimate(1.4 + leak * times) for times in (0, 1, 4, 16)},
        "membership": {name: estimate(0.5 + 0.4 * leak) for name in ("loss", "min_k_plus_plus")},
        "own_text": {"excess": estimate(0.3 * leak)},
    }


def test_the_table_says_every_figure_with_its_interval(leak_study: Any) -> None:
    figures = {arm: invented(place % 2) for place, arm in enumerate(leak_study.ARMS)}
    lines = leak_study.table_of(figures).splitlines()
    assert lines[0].count("|") == len(leak_study.ARMS) + 2
    assert "| membership AUROC, Min-K%++ | 0.50 (0.40 to 0.60) | 0.90 (0.80 to 1.00) | 0.50 (0.40 to 0.60) |" in lines
    assert "| exposure, planted 16 times (bits) | 1.4 (1.3 to 1.5) | 17.4 (17.3 to 17.5) | 1.4 (1.3 to 1.5) |" in lines
    assert lines[-2:] == ["| epsilon | 7.96 | – | 7.96 |", "| verdict | clean | leaking | clean |"]


def test_the_figure_says_that_it_is_synthetic(leak_study: Any) -> None:
    drawing = leak_study.draw({arm: invented(0.5) for arm in leak_study.ARMS})
    assert drawing.png.startswith(b"\x89PNG")
    assert "synthetic" in leak_study.CAVEAT
    assert "30 epochs, private: exposure 1.4" in drawing.svg


def test_arms_differ_in_what_they_are_called_after(leak_study: Any) -> None:
    recipes = {arm: leak_study.training_recipe(Path("w"), arm, leak_study.FULL) for arm in leak_study.ARMS}
    one, thirty, private = recipes.values()
    assert one | {"training": thirty["training"], "run": thirty["run"]} == thirty
    assert private | {"run": thirty["run"]} == thirty | {"privacy": private["privacy"]}
    assert (one["training"]["epochs"], thirty["training"]["epochs"], private["privacy"]["epsilon"]) == (1, 30, 8.0)


def test_growth_is_told_beside_the_first_row(audit_scaling: Any) -> None:
    rows = [{"members": 70 * n, "non_members": 30 * n, "seconds": 10.0 * n, "peak": 2**29 + 2**20 * n} for n in (1, 4)]
    assert audit_scaling.table_of(rows)[2:] == [
        "| 100 | 1.0 | 10 | 1.0 | 100 | 513 MB | 1.00 |",
        "| 400 | 4.0 | 40 | 4.0 | 100 | 516 MB | 1.01 |",
    ]


@pytest.mark.slow
def test_a_small_study_of_leaks_runs_to_its_figure(leak_study: Any, tmp_path: Path) -> None:
    turns = importlib.import_module("turns")
    command = [sys.executable, str(BENCHMARKS / "leak_study.py"), "--quick", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=turns.quiet_environment(1))
    assert done.returncode == 0, done.stderr[-800:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told["arms"]) == list(leak_study.ARMS)
    assert (tmp_path / "leak-study.png").is_file()
    again = subprocess.run(command, capture_output=True, text=True, env=turns.quiet_environment(1))
    assert json.loads(again.stdout.splitlines()[-1]) == told
