"""Studies: which cells there are and what their recipes become, how cells run and fail, and the table at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from clinstack.errors import ClinstackError, InputError
from clinstack.evaluate.perplexity import perplexity_metrics
from clinstack.files import read_json, sha256_file, write_json, write_text
from clinstack.recipe import (
    EvaluationRecipe,
    PretrainRecipe,
    StudyRecipe,
    load_recipe,
    parse_recipe,
    read_yaml,
)
from clinstack.study.cells import Cell, fail_if_any, is_done, run_cell, run_cells
from clinstack.study.published import TABLE2
from clinstack.study.study import resolve, study, study_cells
from clinstack.study.table2 import TablePaths, write_table2

TINY = {
    "stage": "pretrain",
    "run": "-",
    "context": 32,
    "adapters": [{"name": "clinical", "method": "lora", "rank": 2, "alpha": 4}],
    "training": {"max_steps": 3, "batch_size": 2, "checkpoint_every": 1},
    "evaluation": {"resamples": 100, "max_notes": 4},
}


def recipe_of(**values: Any) -> StudyRecipe:
    recipe = parse_recipe({"stage": "study", "run": "runs/study", **values}, "study")
    assert isinstance(recipe, StudyRecipe)
    return recipe


def cells_of(recipe: StudyRecipe) -> dict[str, PretrainRecipe]:
    found = {cell.name: cell.recipe for cell in study_cells(recipe)}
    assert all(isinstance(one, PretrainRecipe) for one in found.values())
    return found  # type: ignore[return-value]


# ---------------------------------------------------------------------- the recipe


def test_table2_runs_the_papers_ten_recipes_as_they_are_published() -> None:
    recipe = load_recipe(Path("gema2023/table2"), ["notes=DATA", "run=R"])
    assert isinstance(recipe, StudyRecipe)
    cells = cells_of(recipe)
    assert len(cells) == 10
    for name, cell in cells.items():
        preset = load_recipe(Path("gema2023/pretrain") / name, ["notes=DATA", f"run=R/{name}"])
        assert cell == preset
    assert {(cell.paper, cells[cell.name].adapters[0].method) for cell in recipe.cells} == {
        (row.base, row.method) for row in TABLE2
    }


def test_what_a_study_says_reaches_every_cell() -> None:
    recipe = load_recipe(
        Path("gema2023/table2"),
        ["base=/models/x", "notes=DATA", "run=R", "common.training.max_steps=40", "only=[lora,pmc-llama/prefix]"],
    )
    assert isinstance(recipe, StudyRecipe)
    cells = cells_of(recipe)
    assert list(cells) == ["llama/lora", "pmc-llama/lora", "pmc-llama/prefix"]
    for name, cell in cells.items():
        assert (cell.base, cell.notes, cell.run, cell.training.max_steps) == ("/models/x", "DATA", f"R/{name}", 40)
        assert cell.training.learning_rate == 3e-4
    one_base = load_recipe(Path("gema2023/table2"), ["notes=DATA", "run=R", "only=[llama]"])
    assert isinstance(one_base, StudyRecipe)
    assert [name.partition("/")[0] for name in cells_of(one_base)] == ["llama"] * 5


def test_the_studys_overrides_stand_over_those_of_a_cell(tmp_path: Path) -> None:
    write_text(tmp_path / "own.yaml", json.dumps({**TINY, "notes": "N"}))
    cell = {"name": "a", "recipe": str(tmp_path / "own.yaml")}
    own = {"training": {"learning_rate": 0.5, "epochs": 3}, "adapters.0.rank": 7}
    cells = cells_of(recipe_of(cells=[cell | {"overrides": own}], common={"training.epochs": 4}))
    assert (cells["a"].training.learning_rate, cells["a"].training.epochs, cells["a"].adapters[0].rank) == (0.5, 4, 7)
    assert cells["a"].training.max_steps == 3


def test_on_the_embedded_base_another_study_stands_in() -> None:
    recipe = load_recipe(
        Path("gema2023/table2"), ["base=embedded", "notes=DATA", "run=R", "common.training={seed: 5, batch_size: 3}"]
    )
    assert isinstance(recipe, StudyRecipe)
    toy = load_recipe(Path("demo/table2"), ["run=R"])
    assert isinstance(toy, StudyRecipe)
    resolved = resolve(recipe)
    assert resolved.cells == toy.cells
    cells = cells_of(resolved)
    assert {cell.adapters[0].method for cell in cells.values()} == {row.method for row in TABLE2}
    found = {(cell.base, cell.notes, cell.training.seed, cell.training.batch_size) for cell in cells.values()}
    assert found == {("embedded", "DATA", 5, 3)}
    # The resolved recipe replays the study.
    assert resolve(parse_recipe(json.loads(json.dumps(resolved.model_dump(mode="json"))), "again")) == resolved  # type: ignore[arg-type]
    other = load_recipe(Path("gema2023/table2"), ["base=x", "run=R"])
    assert isinstance(other, StudyRecipe)
    assert resolve(other) is other


def test_the_toy_study_is_fair() -> None:
    """All methods read the same batches: only the adapter and its learning rate differ."""
    toy = load_recipe(Path("demo/table2"), ["notes=DATA", "run=R"])
    assert isinstance(toy, StudyRecipe)
    rest = []
    for cell in cells_of(toy).values():
        assert cell.layout != "packed"  # prompts cannot be packed, and would read other batches than LoRA
        values = cell.model_dump(exclude={"run", "adapters"})
        del values["training"]["learning_rate"]
        rest.append(values)
    assert len(rest) == 5
    assert all(values == rest[0] for values in rest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cells": []}, "cells: .*at least 1 item"),
        ({"cells": [{"name": "A b", "recipe": "x"}]}, "cells.0.name: 'A b': use small letters"),
        ({"cells": [{"name": "../a", "recipe": "x"}]}, "cells.0.name: '../a': use small letters"),
        ({"cells": [{"name": "a", "recipe": "x"}] * 2}, "the name 'a' stands twice"),
        ({"cells": [{"name": "a", "recipe": "x"}, {"name": "a/b", "recipe": "x"}]}, "'a/b' would lie in another"),
        ({"cells": [{"name": "a/b", "recipe": "x"}], "only": ["c"]}, "there is no cell 'c'; the cells are a/b"),
        ({"cells": [{"name": "a", "recipe": "x", "overide": {}}]}, "overide.*Did you mean overrides"),
    ],
)
def test_wrong_studies_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(**values)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"recipe": "nowhere/nothing"}, "nowhere/nothing: no such recipe"),
        ({"recipe": "demo/pretrain", "overrides": {"training.epoch": 2}}, r"cell a \(demo/pretrain\).*training.epoch"),
        ({"recipe": "demo/finetune"}, r"cell a \(demo/finetune\): table2 is a table of pretrained stacks"),
    ],
)
def test_a_wrong_cell_is_named_before_anything_runs(cell: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = recipe_of(run=str(tmp_path / "study"), cells=[{"name": "a", **cell}])
    with pytest.raises(InputError, match=message):
        study(recipe)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"notes": "/nowhere"}, "cell a: notes: /nowhere has no notes"),
        ({"common": {"adapters": [{"name": "c", "method": "adaption_prompt"}]}}, "cell a: .*30 .*2 layers"),
    ],
)
def test_what_would_fail_is_said_before_any_process_starts(
    values: dict[str, Any], message: str, tmp_path: Path, tiny_base: Path, tiny_notes: Path
) -> None:
    write_text(tmp_path / "own.yaml", json.dumps({**TINY, "notes": str(tiny_notes), "base": str(tiny_base)}))
    cell = {"name": "a", "recipe": str(tmp_path / "own.yaml")}
    with pytest.raises(InputError, match=message):
        study(recipe_of(run=str(tmp_path / "study"), cells=[cell], **values))
    assert not (tmp_path / "study" / "a").exists()


def test_a_run_is_not_a_study(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    with pytest.raises(InputError, match="is one Run; name another directory"):
        study(recipe_of(run=str(tmp_path), cells=[{"name": "a", "recipe": "demo/pretrain"}]))


# ---------------------------------------------------------------------- cells


def tiny_cell(name: str, root: Path, base: Path, notes: Path, needs: tuple[str, ...] = (), **training: Any) -> Cell:
    values = {**TINY, "run": str(root / name), "base": str(base), "notes": str(notes)}
    values["training"] = TINY["training"] | training  # type: ignore[operator]
    return Cell(name, parse_recipe(values, name), needs)


def test_cells_that_cannot_be_ordered_are_refused() -> None:
    recipe = parse_recipe({**TINY, "notes": "N"}, "x")
    with pytest.raises(InputError, match="a: two cells have this name"):
        run_cells([Cell("a", recipe), Cell("a", recipe)], 1)
    with pytest.raises(InputError, match="a, b: these cells need each other in a circle"):
        run_cells([Cell("c", recipe), Cell("a", recipe, ("b",)), Cell("b", recipe, ("a",))], 1)


def test_one_cell_fails_one_is_killed_and_the_others_go_on(tmp_path: Path, tiny_base: Path, tiny_notes: Path) -> None:
    """On two workers; what needs the killed one never starts."""
    cells = [
        tiny_cell("no-notes", tmp_path, tiny_base, tmp_path / "nowhere"),
        tiny_cell("endless", tmp_path, tiny_base, tiny_notes, max_steps=10**6, epochs=10**6),
        tiny_cell("after-endless", tmp_path, tiny_base, tiny_notes, needs=("endless",)),
        tiny_cell("good", tmp_path, tiny_base, tiny_notes, needs=("done-before",)),
    ]

    def kill() -> None:
        wait_for(tmp_path / "endless" / "checkpoints" / "last.safetensors")
        wait_for(tmp_path / "good" / "run.json")
        for pid in children():
            if str(tmp_path / "endless") in open_files(pid):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = run_cells(cells, 2)
    killer.join()
    assert next(iter(outcomes)) == "no-notes"
    failures = {name: outcome.failure for name, outcome in outcomes.items()}
    assert "has no notes/*.parquet" in str(failures["no-notes"])
    assert failures["endless"] == "its process was killed, perhaps for want of memory"
    assert failures["after-endless"] == "it needs endless, which failed"
    assert failures["good"] is None
    assert outcomes["good"].figure.startswith("perplexity ")
    assert not (tmp_path / "after-endless").exists()
    assert [cell.name for cell in cells if is_done(cell)] == ["good"]
    assert read_json(tmp_path / "good" / "run.json")["hardware"]["threads"] == 1
    with pytest.raises(ClinstackError, match=r"no-notes failed: .*\(also endless, after-endless\)"):
        fail_if_any(outcomes, "the study")
    assert not children()


def test_the_message_of_an_unexpected_error_stays_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It could quote a note."""

    def broken(_: bool) -> None:
        raise ValueError("the patient has a name")

    monkeypatch.setattr("clinstack.study.cells._stage_of", lambda recipe: broken)
    cell = tiny_cell("a", tmp_path, Path("base"), Path("notes"))
    assert str(run_cell(cell).failure).startswith("ValueError in test_study.py, line ")
    assert "patient" not in str(run_cell(cell).failure)
    write_text(tmp_path / "a" / "recipe.yaml", "")
    assert f"`clinstack pretrain {tmp_path}/a/recipe.yaml` shows all of it" in str(run_cell(cell).failure)


def wait_for(path: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def children() -> list[int]:
    """Worker processes of this one."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def open_files(pid: int) -> str:
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(link))
        except OSError:
            continue
    return "\n".join(links)


# ---------------------------------------------------------------------- the table


def write_run(folder: Path, method: str, strength: float, base: str = "embedded", synthetic: bool = True) -> None:
    """A finished Run of one method: ``strength`` nats a token below the base."""
    rng = np.random.default_rng(3)
    notes = 60
    tokens = rng.integers(40, 200, notes)
    base_nll = tokens * (2.5 + 0.2 * rng.normal(size=notes))
    table = pa.table(
        {
            "note_id": [f"n{index}" for index in range(notes)],
            "patient_id": [f"p{index // 2}" for index in range(notes)],
            "note_type": ["Discharge summary"] * notes,
            "split": ["test"] * notes,
            "tokens": tokens,
            "characters": tokens * 4,
            "base_nll": base_nll,
            "nll": base_nll - strength * tokens + 2 * rng.normal(size=notes),
        }
    )
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "losses.parquet")
    test = perplexity_metrics(table, 100)
    write_json(folder / "metrics.json", {"best_epoch": 1, "validation": [], "train": test, "test": test})
    write_json(
        folder / "run.json",
        {
            "stage": "pretrain",
            "status": "done",
            "label": "clinical",
            "synthetic": synthetic,
            "seconds": {"train": 50.0, "total": 70.0},
            "tokens_per_second": 1234.5,
            "versions": {"clinstack": "0.1.0"},
            "hardware": {"cores": 2},
            "stack": {
                "base": base,
                "fingerprint": "sha256:1f",
                "trainable_parameters": 12_345,
                "parameters": 1_234_500,
            },
        },
    )
    write_text(folder / "recipe.yaml", f"adapters: [{{name: clinical, method: {method}}}]\n")


def table_of(root: Path, runs: dict[str, float], failures: dict[str, str] | None = None, **facts: Any) -> TablePaths:
    for method, strength in runs.items():
        write_run(root / method, method, strength, **facts)
    cells = {method: (root / method, "LLaMA") for method in runs}
    return write_table2(root, cells, failures or {}, EvaluationRecipe(resamples=100))


def shown(paths: TablePaths, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    paths.show(console)
    text = console.file
    assert isinstance(text, StringIO)
    return text.getvalue()


FIVE = {"lora": 0.9, "adaption_prompt": 0.3, "prefix": 0.6, "prompt": -0.1, "p_tuning": 0.2}


def test_the_table_has_what_was_measured_and_what_is_printed(tmp_path: Path) -> None:
    paths = table_of(tmp_path, FIVE)
    data = read_json(paths.json)
    assert data["synthetic"] is True
    assert [row["method"] for row in data["rows"]] == list(FIVE)
    lora = data["rows"][0]
    metrics = read_json(tmp_path / "lora" / "metrics.json")
    assert lora["test_perplexity"] == metrics["test"]["adapted"]["perplexity"]
    assert lora["bits_per_character"] == metrics["test"]["adapted"]["bits_per_character"]
    assert (lora["train_seconds"], lora["tokens_per_second"], lora["trainable_parameters"]) == (50.0, 1234.5, 12_345)
    assert lora["paper"]["test_perplexity"] == 2.244
    assert data["order"][0]["cells"] == ["lora", "prefix", "adaption_prompt", "p_tuning", "prompt"]
    assert data["order"][0]["first_over_second"]["value"] == pytest.approx(np.exp(-0.3), abs=0.01)
    for text in (paths.html.read_text("utf-8"), paths.markdown.read_text("utf-8")):
        for row in TABLE2[:5]:
            for printed in (f"{row.trainable_parameters:,}", row.train_perplexity, row.test_perplexity, row.time):
                assert printed in text
        assert "1,234/s" in text
        assert "Synthetic patients, toy base model" in text
        assert "not comparable" in text
        assert "Paper: test" in text
        assert "LoRA is first, as in the paper." in text
        assert "No better than the unchanged base: Prompt tuning." in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_shows_all_of_it(tmp_path: Path, width: int) -> None:
    text = shown(table_of(tmp_path, FIVE), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in TABLE2[:5]:
        assert row.test_perplexity in text
        assert row.time in text
    assert "synthetic patients" in text


def test_perplexity_as_published_is_told_where_it_was_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lora", 0.5)
    metrics = read_json(tmp_path / "a" / "metrics.json")
    metrics["test"]["published"] = {"perplexity": 5.4321, "by_token": 5.5}
    write_json(tmp_path / "a" / "metrics.json", metrics)
    paths = write_table2(tmp_path, {"a": (tmp_path / "a", "LLaMA")}, {}, EvaluationRecipe(resamples=100))
    wanted = "As the published code measures, the mean over batches of their means: a 5.43."
    assert wanted in paths.sentences
    assert wanted in paths.markdown.read_text("utf-8")
    assert read_json(paths.json)["rows"][0]["published_test_perplexity"] == 5.4321


def test_another_method_first_is_said(tmp_path: Path) -> None:
    first, second, *_ = table_of(tmp_path, {"lora": 0.5, "prefix": 0.8, "prompt": 0.1}).sentences
    assert "the order is Prefix tuning" in first
    assert first.endswith("LoRA, which is first in the paper, is second here.")
    assert second.startswith("Prefix tuning over LoRA, on the same notes: 0.7")


def test_two_that_the_notes_cannot_tell_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lora", 0.5)
    write_run(tmp_path / "b", "dora", 0.5)
    cells = {"a": (tmp_path / "a", "LLaMA"), "b": (tmp_path / "b", None)}
    paths = write_table2(tmp_path, cells, {}, EvaluationRecipe(resamples=100))
    assert len(paths.tables) == 1  # what stands for nothing in the paper stands in the same table
    assert any("these notes do not tell the two apart" in sentence for sentence in paths.sentences)
    assert any(name == "DoRA (b)" for name, _ in paths.tables[0].rows)


def test_two_bases_are_two_tables(tmp_path: Path) -> None:
    cells = {}
    for half, base in (("LLaMA", "huggyllama/llama-7b"), ("PMC-LLaMA", "chaoyi-wu/PMC_LLAMA_7B")):
        for method, strength in (("lora", 0.9), ("prefix", 0.4)):
            write_run(tmp_path / half / method, method, strength, base=base, synthetic=False)
            cells[f"{half}/{method}"] = (tmp_path / half / method, half)
    paths = write_table2(tmp_path, cells, {}, EvaluationRecipe(resamples=100))
    assert [table.title for table in paths.tables] == [
        "Table 2: perplexity after pretraining, huggyllama/llama-7b",
        "Table 2: perplexity after pretraining, chaoyi-wu/PMC_LLAMA_7B",
    ]
    html = paths.html.read_text("utf-8")
    assert "2.404" in html
    assert "ynthetic" not in html
    assert html.count("<table") == 2


def test_what_failed_is_named_and_the_files_are_the_same_again(tmp_path: Path) -> None:
    paths = table_of(tmp_path, {"lora": 0.5}, {"prefix": "its process was killed"})
    value = read_json(tmp_path / "lora" / "metrics.json")["test"]["adapted"]["perplexity"]["value"]
    failed = "Not in the table: prefix, because its process was killed."
    assert paths.sentences == [f"One method: LoRA {value:.2f}.", failed]
    before = [sha256_file(path) for path in (paths.html, paths.markdown, paths.json)]
    cells = {"lora": (tmp_path / "lora", "LLaMA")}
    write_table2(tmp_path, cells, {"prefix": "its process was killed"}, EvaluationRecipe(resamples=100))
    assert [sha256_file(path) for path in (paths.html, paths.markdown, paths.json)] == before


# ---------------------------------------------------------------------- the whole


@pytest.fixture
def tiny_study(tmp_path: Path, tiny_base: Path, tiny_notes: Path) -> list[str]:
    """The command of a study of two cells, and its folder at the end."""
    write_text(tmp_path / "cell.yaml", json.dumps({**TINY, "notes": "-"}))
    cells = [
        {"name": f"rank-{rank}", "recipe": str(tmp_path / "cell.yaml"), "overrides": {"adapters.0.rank": rank}}
        for rank in (1, 2)
    ]
    write_text(tmp_path / "study.yaml", json.dumps({"stage": "study", "run": "-", "cells": cells}))
    words = [f"base={tiny_base}", f"notes={tiny_notes}", "workers=1", f"run={tmp_path / 'out'}"]
    return [sys.executable, "-m", "clinstack", "study", str(tmp_path / "study.yaml"), *words]


@pytest.mark.slow
def test_an_interrupted_study_leaves_nobody_and_goes_on(tiny_study: list[str], tmp_path: Path) -> None:
    endless = [*tiny_study, "common.training.max_steps=1000000", "common.training.epochs=1000000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        endless, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(tmp_path / "out" / "rank-1" / "checkpoints" / "last.safetensors")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "The same command goes on" in " ".join(errors.split())
    assert "Traceback" not in errors
    assert not any(int(entry.name) != process.pid and session_of(entry) == process.pid for entry in processes())

    subprocess.run([*tiny_study, "--fresh"], env=environment, capture_output=True, check=True)
    again = subprocess.run([*tiny_study, "--json"], env=environment, capture_output=True, text=True, check=True)
    assert "2 of 2 Runs are done already." in again.stderr
    data = read_json(Path(json.loads(again.stdout)["json"]))
    assert [row["cell"] for row in data["rows"]] == ["rank-1", "rank-2"]
    # The study's own recipe is what it says at its end.
    assert read_yaml(tmp_path / "out" / "study.yaml")["cells"][1]["overrides"] == {"adapters.0.rank": 2}


def processes() -> list[Path]:
    return list(Path("/proc").glob("[0-9]*"))


def session_of(entry: Path) -> int | None:
    try:
        state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(owner)
