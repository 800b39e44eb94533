"""Grids: which cells there are, in which order, what they cost, on which GPU; and a study that is killed, and ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_text
from clinstack.recipe import FinetuneRecipe, StudyRecipe, SweepRecipe, dump_recipe, load_recipe, parse_recipe
from clinstack.study.best import recipe_with_best
from clinstack.study.cells import Cell, TimeLeft, is_done, run_cell
from clinstack.study.cost import Cost, Speed, cell_costs
from clinstack.study.devices import Devices, device_names
from clinstack.study.grid import GridCell, budget, check_equal_budgets, grid_cells
from clinstack.study.preview import cost_table
from clinstack.study.published import published_auroc
from clinstack.study.record import write_record
from clinstack.study.schedule import in_order
from clinstack.study.study import resolve
from clinstack.study.support import check_grid

PRETRAIN = {
    "stage": "pretrain",
    "run": "-",
    "notes": "-",
    "context": 32,
    "adapters": [{"name": "clinical", "method": "lora", "rank": 2, "alpha": 4}],
    "training": {"max_steps": 2, "batch_size": 2, "checkpoint_every": 1},
    "evaluation": {"resamples": 100, "max_notes": 4},
}
FINETUNE = {
    "stage": "finetune",
    "run": "-",
    "examples": "-",
    "max_tokens": 24,
    "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "checkpoint_every": 2},
    "evaluation": {"resamples": 100},
}
TASK = {"name": "task", "method": "lora", "rank": 2, "alpha": 4}
CLINICAL = {"name": "clinical", "path": "{clinical}"}
RATES = {"training.learning_rate": {"choices": [0.01, 0.03]}}


@pytest.fixture
def grid(tmp_path: Path, tiny_base: Path, tiny_notes: Path) -> dict[str, Any]:
    """A grid of two stacks on the tiny base, with a clinical LoRA that is trained first, and a search for one stack."""
    write_text(tmp_path / "pretrain.yaml", json.dumps(PRETRAIN))
    write_text(tmp_path / "finetune.yaml", json.dumps(FINETUNE))
    recipe = str(tmp_path / "finetune.yaml")
    return {
        "stage": "study",
        "run": str(tmp_path / "out"),
        "table": "table3",
        "notes": str(tiny_notes),
        "tasks": ["mortality", "diagnoses"],
        "bases": [
            {"name": "tiny", "base": str(tiny_base), "clinical": {"recipe": str(tmp_path / "pretrain.yaml")}},
        ],
        "specs": [
            {"recipe": recipe},
            {
                "recipe": recipe,
                "adapters": [CLINICAL, TASK],
                "search": {"space": RATES, "trials": 2, "sampler": "grid"},
            },
        ],
        "evaluation": {"resamples": 100},
        "workers": 1,
    }


def parsed(values: dict[str, Any]) -> StudyRecipe:
    recipe = parse_recipe(values, "grid.yaml", "study")
    assert isinstance(recipe, StudyRecipe)
    return recipe


def names_of(values: dict[str, Any]) -> list[str]:
    return [one.cell.name for one in grid_cells(parsed(values))]


def by_name(values: dict[str, Any]) -> dict[str, GridCell]:
    return {one.cell.name: one for one in grid_cells(parsed(values))}


# ---------------------------------------------------------------------- the cells


def test_a_grid_is_bases_times_stacks_times_tasks_times_seeds(grid: dict[str, Any]) -> None:
    names = names_of(grid | {"seeds": [3, 4]})
    stacked = "tiny/clinical-frozen+lora"
    assert names == [
        "tiny/pretrain",
        *(f"tiny/head/{task}/seed-{seed}" for task in grid["tasks"] for seed in (3, 4)),
        *(f"{stacked}/{task}/{end}" for task in grid["tasks"] for end in ("search", "seed-3", "seed-4")),
    ]


def test_cells_wait_for_what_they_need(grid: dict[str, Any]) -> None:
    cells = by_name(grid)
    root = Path(grid["run"])
    assert cells["tiny/head/mortality/seed-0"].cell.needs == ()
    search = cells["tiny/clinical-frozen+lora/diagnoses/search"].cell
    assert search.needs == ("tiny/pretrain",)
    final = cells["tiny/clinical-frozen+lora/diagnoses/seed-0"].cell
    assert final.needs == ("tiny/clinical-frozen+lora/diagnoses/search",)
    assert isinstance(final.recipe, FinetuneRecipe)
    assert final.recipe.adapters[0].path == str(root / "tiny" / "pretrain") == cells["tiny/pretrain"].cell.recipe.run
    assert final.recipe.examples == f"{grid['notes']}/examples/diagnoses"
    assert final.recipe.run == str(root / final.name)


def test_frozen_features_are_computed_for_all_tasks_by_the_first(grid: dict[str, Any]) -> None:
    """The first cell is asked to read the other tasks' notes too; the others come behind it."""
    values = grid | {"seeds": [0, 1], "search": {"space": RATES, "trials": 2, "sampler": "grid"}}
    cells = by_name(values)
    first = cells["tiny/head/mortality/search"].cell
    assert isinstance(first.recipe, SweepRecipe)
    assert isinstance(first.recipe.overrides, dict)
    assert first.recipe.overrides["share_features"] == [f"{grid['notes']}/examples/diagnoses"]
    other = cells["tiny/head/diagnoses/search"]
    assert isinstance(other.cell.recipe, SweepRecipe)
    assert "share_features" not in other.cell.recipe.overrides
    assert other.cell.after == (first.name,)
    assert other.shares
    # Something trains below the head: there is nothing to share.
    stacked = cells["tiny/clinical-frozen+lora/diagnoses/search"]
    assert (stacked.cell.after, stacked.shares) == ((), False)


def test_what_stands_over_what(grid: dict[str, Any]) -> None:
    grid["bases"][0]["overrides"] = {"max_tokens": 16, "training": {"epochs": 2, "weight_decay": 0.5}}
    grid["specs"][0]["overrides"] = {"training.epochs": 3, "training.learning_rate": 0.5}
    grid["specs"][0]["tasks"] = {"mortality": {"overrides": {"training": {"learning_rate": 0.7}}}}
    values = grid | {"common": {"evaluation.resamples": 123}}
    found = {}
    for task in grid["tasks"]:
        recipe = by_name(values)[f"tiny/head/{task}/seed-0"].cell.recipe
        assert isinstance(recipe, FinetuneRecipe)
        training = recipe.training
        assert (recipe.max_tokens, training.epochs, training.weight_decay) == (16, 3, 0.5)
        assert recipe.evaluation.resamples == 123
        found[task] = training.learning_rate
    assert found == {"mortality": 0.7, "diagnoses": 0.5}


def test_a_stack_searches_as_the_study_says_or_as_it_says_or_not_at_all(grid: dict[str, Any]) -> None:
    grid["specs"][0]["tasks"] = {"diagnoses": {"search": {"trials": 1}}}
    grid["specs"].append({**grid["specs"][0], "name": "plain", "search": None, "tasks": {}})
    recipe = parsed(grid | {"search": {"space": RATES, "trials": 5, "metric": "auprc"}})
    head, stacked, plain = recipe.specs
    assert head.search is not None
    assert (head.search.trials, head.search.metric) == (5, "auprc")
    assert head.tasks["diagnoses"].search is not None
    assert head.tasks["diagnoses"].search.model_copy(update={"trials": 5}) == head.search
    assert stacked.search is not None
    assert (stacked.search.trials, stacked.search.metric, stacked.search.sampler) == (2, "auprc", "grid")
    assert plain.search is None
    # The resolved recipe replays the study.
    again = parse_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))), "again")
    assert again == recipe


def test_only_keeps_a_part_and_what_it_needs(grid: dict[str, Any]) -> None:
    assert names_of(grid | {"only": ["clinical-frozen+lora/mortality"]}) == [
        "tiny/pretrain",
        "tiny/clinical-frozen+lora/mortality/search",
        "tiny/clinical-frozen+lora/mortality/seed-0",
    ]
    assert names_of(grid | {"only": ["head/diagnoses"]}) == ["tiny/head/diagnoses/seed-0"]


def test_a_stack_stands_only_on_the_bases_that_it_names(grid: dict[str, Any]) -> None:
    grid["bases"].append({"name": "other", "base": "embedded"})
    grid["specs"][1]["bases"] = ["tiny"]
    names = names_of(grid)
    assert [name for name in names if name.startswith("other/")] == [
        "other/head/mortality/seed-0",
        "other/head/diagnoses/seed-0",
    ]


def test_a_clinical_adapter_that_is_there_is_not_trained_again(grid: dict[str, Any], clinical: Path) -> None:
    grid["bases"][0]["clinical"] = str(clinical)
    cells = by_name(grid)
    assert "tiny/pretrain" not in cells
    final = cells["tiny/clinical-frozen+lora/mortality/seed-0"].cell.recipe
    assert isinstance(final, FinetuneRecipe)
    assert final.adapters[0].path == str(clinical)


def changed(grid: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return the grid with changes, ``base`` and ``spec`` being those of its first and second."""
    result = json.loads(json.dumps(grid))
    result["bases"][0].update(values.pop("base_", {}))
    result["specs"][1].update(values.pop("spec_", {}))
    return result | values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks: a grid needs at least one"),
        ({"tasks": ["a/b"]}, "tasks: 'a/b' is no name of a folder"),
        ({"seeds": []}, "seeds: give one or more"),
        ({"seeds": [1, 1]}, "seeds: the name '1' stands twice"),
        ({"notes": None}, "notes: name the folder of Notes"),
        ({"table": "table2"}, "table2 is a table of cells"),
        ({"cells": [{"name": "a", "recipe": "x"}]}, "either cells or a grid"),
        ({"base_": {"name": "a/b"}}, "bases.0.name: 'a/b': use letters"),
        ({"base_": {"name": "pretrain"}}, "'pretrain' is the name of another folder"),
        ({"base_": {"clinical": None}}, r"bases \(tiny\): the stack clinical-frozen\+lora needs its key clinical"),
        ({"base_": {"clinical": {}}}, "bases.0.clinical: give either the path"),
        ({"base_": {"clinical": {"recip": "x"}}}, "unknown key bases.0.clinical.recip. Did you mean recipe"),
        ({"base_": {"clinical": {"path": "x", "notes": "y"}}}, "notes and overrides belong to recipe"),
        ({"spec_": {"bases": ["huge"]}}, r"specs.1 \(clinical-frozen\+lora\): bases: there is no base 'huge'"),
        ({"spec_": {"adapters": []}}, "specs on tiny: the name 'head' stands twice"),
        ({"spec_": {"search": {"trials": 3}}}, r"specs.1 \(clinical-frozen\+lora\): search: the key space is missing"),
        ({"spec_": {"search": {"space": {"training.seed": {"choices": [1]}}}}}, "training.seed is set by seeds"),
        ({"spec_": {"search": {"space": RATES, "metric": "f1"}}}, "specs.1.search.metric"),
        ({"spec_": {"adapters": [{"name": "task", "rnk": 3}]}}, "specs.1.adapters.0.rnk. Did you mean rank"),
        ({"only": ["huge"]}, "only: there is no cell 'huge'; the cells are tiny/head/mortality/seed-0"),
        ({"devices": []}, "devices"),
    ],
)
def test_a_wrong_grid_is_refused_with_its_key(grid: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parsed(changed(grid, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec_": {"overrides": {"training.epoch": 2}}}, r"tiny/clinical-frozen\+lora/mortality.*epoch.*epochs"),
        (
            {"spec_": {"recipe": "demo/pretrain", "search": None}},
            "pretrain`, not for `clinstack finetune`",
        ),
        ({"spec_": {"search": {"space": {"adapters.7.rank": {"choices": [1]}}}}}, r"mortality/search .*'7' is not an"),
        ({"base_": {"clinical": {"recipe": "demo/finetune"}}}, r"bases \(tiny\): clinical \(demo/finetune\)"),
        ({"base_": {"clinical": "/nowhere"}}, r"bases \(tiny\): clinical: /nowhere does not exist"),
        ({"common": {"max_tokens": 1}}, "tiny/head/mortality .*max_tokens"),
    ],
)
def test_a_wrong_cell_is_named(grid: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid_cells(parsed(changed(grid, **changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["sepsis"]}, "tiny/head/sepsis/seed-0: examples: .*sepsis.*is missing"),
        ({"common": {"max_tokens": 4000}}, "tiny/head/mortality/seed-0: max_tokens"),
        ({"base_": {"base": "/nowhere"}}, "tiny/pretrain: base: /nowhere"),
    ],
)
def test_what_would_fail_is_said_first(grid: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_grid(grid_cells(parsed(changed(grid, **changes))))


# ---------------------------------------------------------------------- budgets, costs, order


def test_unequal_budgets_are_refused_where_equal_ones_are_asked_for(grid: dict[str, Any]) -> None:
    fair = grid | {"search": {"space": RATES, "trials": 2, "sampler": "grid"}, "equal_budgets": True}
    check_equal_budgets(grid_cells(parsed(fair)))
    for changes, said in [
        ({"search": None}, "has trials 2, tiny/clinical-frozen.lora/mortality/seed-0 has 1"),
        ({"overrides": {"training.epochs": 3}}, "has epochs 1, .* has 3"),
        ({"overrides": {"training.accumulate": 3}}, "has batch_size 8, .* has 24"),
        ({"search": {"space": {"training.learning_rate": {"choices": [0.1, 0.2]}}}}, "learning_rates"),
    ]:
        with pytest.raises(InputError, match=said):
            check_equal_budgets(grid_cells(parsed(changed(fair, spec_=changes))))


def test_a_budget_counts_each_configuration_once(grid: dict[str, Any]) -> None:
    grid["specs"][1]["search"]["trials"] = 9
    final = by_name(grid)["tiny/clinical-frozen+lora/mortality/seed-0"]
    assert budget(final)["trials"] == 2
    assert budget(final)["learning_rates"] == {"choices": [0.01, 0.03]}


def costs_of(values: dict[str, Any]) -> tuple[list[GridCell], dict[str, Cost]]:
    cells = grid_cells(parsed(values))
    return cells, cell_costs(cells, check_grid(cells), lambda _: Speed(2e6, 1e6))


def test_what_a_cell_costs(grid: dict[str, Any]) -> None:
    cells, costs = costs_of(grid | {"search": {"space": RATES, "trials": 2, "sampler": "grid"}})
    stacked = "tiny/clinical-frozen+lora/mortality"
    # Two trials read the training notes once each; the final Run is one of them.
    _, twice = costs_of(changed(grid, spec_={"overrides": {"training.epochs": 2}}))
    assert twice[f"{stacked}/search"].tokens == pytest.approx(2 * costs[f"{stacked}/search"].tokens, rel=0.01)
    assert costs[f"{stacked}/seed-0"].seconds < 1
    # The first head reads its notes once, whatever the trials; the other tasks' share of it is small.
    head = costs["tiny/head/mortality/search"]
    assert 0 < head.tokens < costs[f"{stacked}/search"].tokens
    assert costs["tiny/head/diagnoses/search"].tokens == 0
    assert costs["tiny/pretrain"].tokens > 0
    # Twice as many parameters in a token, or half the speed: twice the time, but for what every Run takes.
    slow = cell_costs(cells, check_grid(cells), lambda _: Speed(1e6, 0.5e6))
    work, fixed = costs[f"{stacked}/search"].seconds, 2 * 2.0
    assert slow[f"{stacked}/search"].seconds - fixed == pytest.approx(2 * (work - fixed))


def test_cheap_cells_come_first_and_before_them_what_others_wait_for(grid: dict[str, Any]) -> None:
    values = grid | {"seeds": [0, 1]}
    cells, costs = costs_of(values)
    order = [one.cell.name for one in in_order(cells, {name: cost.seconds for name, cost in costs.items()})]
    assert order[:2] == ["tiny/pretrain", "tiny/head/mortality/seed-0"]
    rest = [costs[name].seconds for name in order[2:]]
    assert rest == sorted(rest)


def test_the_table_of_costs_fits_a_terminal(grid: dict[str, Any]) -> None:
    cells, costs = costs_of(grid)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(cost_table(cells, costs, 2, "What there is to do"))
    text = console.export_text()
    assert "clinical-frozen+lora" in text
    assert f"{len(cells)} cells" in text
    assert "2 at a time" in " ".join(text.split())


def test_the_time_left_learns_from_what_is_done() -> None:
    recipe = parse_recipe(PRETRAIN, "x")
    cells = [Cell(name, recipe) for name in "abcd"]
    left = TimeLeft(cells, dict.fromkeys("abcd", 100.0), workers=2)
    assert left.text() == "about 3 min left"  # 400 s on two
    left.settle("a", 50.0)
    assert left.text() == "about 75 s left"  # the others too take half of what was said: 150 s on two
    for name in "bcd":
        left.settle(name, 50.0)
    assert left.text() == ""
    assert TimeLeft(cells, {}, 2).text() == ""


# ---------------------------------------------------------------------- GPUs


def test_each_worker_has_a_gpu_of_its_own() -> None:
    devices = Devices(device_names(3, None, ""), workers=3)
    taken = [devices.take() for _ in range(3)]
    assert taken == ["0", "1", "2"]
    # A worker that was killed gives its own back, and the next has that.
    devices.give_back("1")
    assert devices.take() == "1"


def test_more_workers_than_gpus_share_them_evenly() -> None:
    devices = Devices(("0", "1"), workers=4)
    assert sorted(str(devices.take()) for _ in range(4)) == ["0", "0", "1", "1"]


def test_without_gpus_nothing_is_named() -> None:
    assert device_names(0, None, "") == ()
    assert Devices((), 2).take() is None


def test_gpus_are_counted_among_those_that_the_process_sees() -> None:
    assert device_names(2, (1,), "4,GPU-7f") == ("GPU-7f",)
    assert device_names(2, None, "4, 6") == ("4", "6")
    with pytest.raises(InputError, match="devices: there is no GPU 2; there are 2, from 0"):
        device_names(2, (2,), "")
    with pytest.raises(InputError, match="this machine shows none"):
        device_names(0, (0,), "")
    with pytest.raises(InputError, match="devices: GPU 0 stands twice"):
        device_names(1, (0, 0), "")


WORKER = """
import importlib.abc, importlib.machinery, multiprocessing, os, sys

class Torch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torch" else None
    def create_module(self, spec):
        print("torch sees", os.environ.get("CUDA_VISIBLE_DEVICES"))
    def exec_module(self, module):
        module.set_num_threads = lambda number: print("threads", number)

sys.meta_path.insert(0, Torch())
from clinstack.study.cells import _start_worker
print("imported")
reader, writer = multiprocessing.Pipe(duplex=False)
_start_worker(multiprocessing.get_context("spawn").Queue(), reader, 3, "5")
"""


def test_a_worker_names_its_gpu_before_torch_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["imported", "torch sees 5", "threads 3"]


# ---------------------------------------------------------------------- presets

FAIR = ("gema2023/table3-fair", "gema2023/table4-fair", "demo/table3", "demo/table4")
PAPERS = ("table3", "table3-fair", "table4", "table4-fair")


def preset(name: str, *overrides: str) -> StudyRecipe:
    recipe = load_recipe(Path(name), [*overrides, "notes=DATA", "run=R"])
    assert isinstance(recipe, StudyRecipe)
    return recipe


def rows_of(recipe: StudyRecipe) -> list[tuple[str | None, str]]:
    return [
        (base.paper, spec.label)
        for base in recipe.bases
        for spec in recipe.specs
        if spec.bases is None or base.name in spec.bases
    ]


def test_the_papers_tables_have_the_papers_rows() -> None:
    for name in ("table3", "table3-fair"):
        rows = rows_of(preset(f"gema2023/{name}"))
        stacks = {"head", "lora", "clinical-frozen", "clinical-trainable"}
        stacks |= {f"{one}+lora" for one in stacks if one.startswith("clinical")}
        assert set(rows) == {(base, stack) for base in ("LLaMA", "PMC-LLaMA") for stack in stacks}
        assert len(rows) == 12
    for name in ("table4", "table4-fair"):
        encoders = ("BlueBERT", "UmlsBERT", "Bio+ClinicalBERT", "CORe")
        expected = {(base, stack) for base in encoders for stack in ("full", "lora")}
        assert set(rows_of(preset(f"gema2023/{name}"))) == expected | {("LLaMA", "clinical-trainable+lora")}
    for name in PAPERS:
        recipe = preset(f"gema2023/{name}")
        for base, stack in rows_of(recipe):
            for task in recipe.tasks:
                assert published_auroc(recipe.table, str(base), stack, task) is not None


def test_table3_is_as_published() -> None:
    cells = {one.cell.name: one for one in grid_cells(preset("gema2023/table3")) if one.role == "final"}
    assert len(cells) == 12 * 5
    for name, one in cells.items():
        _, stack, _, _ = name.split("/")
        recipe, trials = one.cell.recipe, budget(one)["trials"]
        assert isinstance(recipe, FinetuneRecipe)
        training = recipe.training
        assert (recipe.max_tokens, training.epochs, training.seed, recipe.dtype) == (128, 10, 1234, "float16")
        assert (training.batch_size, training.accumulate) == ((10, 2) if stack == "lora" else (8, 10))
        assert trials == {"lora": 20, "clinical-frozen+lora": 10, "clinical-trainable+lora": 10}.get(stack, 1)
        alone = name.startswith("llama/lora/mortality")
        assert training.learning_rate == (3e-4 if alone else 5e-5), name
        assert [adapter.is_trainable for adapter in recipe.adapters] == {
            "head": [],
            "lora": [True],
            "clinical-frozen": [False],
            "clinical-frozen+lora": [False, True],
            "clinical-trainable": [True],
            "clinical-trainable+lora": [True, True],
        }[stack]
        if one.cell.best_of is not None:
            number = len(recipe.adapters) - 1
            assert {key: entry.choices for key, entry in one.cell.best_of.space.items()} == {
                f"adapters.{number}.rank": (2, 4, 8, 16),
                f"adapters.{number}.alpha": (4, 8, 16, 32),
                f"adapters.{number}.dropout": (0.0, 0.1, 0.2),
            }
            assert (one.cell.best_of.metric, one.cell.best_of.sampler, one.cell.best_of.pruner) == (
                "auroc",
                "gp",
                "none",
            )


def test_table4_is_as_published() -> None:
    for one in grid_cells(preset("gema2023/table4")):
        recipe = one.cell.recipe
        if one.role != "final" or one.base.name == "llama":
            continue
        assert isinstance(recipe, FinetuneRecipe)
        assert (recipe.training.batch_size, recipe.training.accumulate, recipe.training.epochs) == (32, 2, 10)
        assert recipe.training.learning_rate == 5e-5
        assert one.spec is not None
        searched = 10 if one.task in {"diagnoses", "procedures"} else 20
        assert budget(one)["trials"] == (searched if one.spec.label == "lora" else 1)


@pytest.mark.parametrize("name", FAIR)
def test_the_fair_tables_are_fair(name: str) -> None:
    recipe = preset(name)
    assert recipe.equal_budgets
    check_equal_budgets(grid_cells(recipe))
    searches = {one.cell.best_of.metric for one in grid_cells(recipe) if one.cell.best_of is not None}
    assert len(searches) == 1


@pytest.mark.parametrize("name", PAPERS)
def test_on_the_embedded_models_the_demos_rows_stand_in(name: str) -> None:
    recipe = preset(f"gema2023/{name}", "base=embedded", "tasks=[mortality]", "seeds=[5]", "common.training.epochs=1")
    resolved = resolve(recipe)
    toy = preset(f"demo/{name.removesuffix('-fair')}")
    assert (resolved.bases, resolved.specs, resolved.table) == (toy.bases, toy.specs, recipe.table)
    assert (resolved.tasks, resolved.seeds, resolved.run, resolved.notes) == (("mortality",), (5,), "R", "DATA")
    finals = [one.cell.recipe for one in grid_cells(resolved) if one.role == "final"]
    assert len(finals) == (6 if name.startswith("table3") else 3)
    assert all(isinstance(one, FinetuneRecipe) and one.training.epochs == 1 for one in finals)
    assert {one.base for one in finals if isinstance(one, FinetuneRecipe)} == (
        {"embedded"} if name.startswith("table3") else {"embedded", "embedded-encoder"}
    )
    # It replays itself.
    assert resolve(parsed(json.loads(json.dumps(resolved.model_dump(mode="json"))))) == resolved


# ---------------------------------------------------------------------- the whole


def command(values: dict[str, Any], tmp_path: Path, *words: str) -> list[str]:
    write_text(tmp_path / "grid.yaml", json.dumps(values))
    return [sys.executable, "-m", "clinstack", "study", str(tmp_path / "grid.yaml"), *words]


def run(words: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def figures(root: Path) -> list[Any]:
    """The table as JSON, and every final Run's metrics: what must be the same however often a study was killed."""
    record = read_json(root / "study.json")
    report = read_json(root / "report.json")
    finals = [read_json(root / cell["run"] / "metrics.json") for cell in record["cells"] if cell["role"] == "final"]
    return [report["auroc"], report["differences"], finals]


def test_a_grid_from_its_first_cell_to_its_record(grid: dict[str, Any]) -> None:
    """Pretraining, a search, and final Runs for two seeds, cell after cell in this process."""
    del grid["specs"][0]
    recipe = parsed(grid | {"tasks": ["mortality"], "seeds": [0, 1]})
    ones = grid_cells(recipe)
    for one in ones:
        assert not is_done(one.cell)
        assert run_cell(one.cell).failure is None
        assert is_done(one.cell)
    root, stack = Path(grid["run"]), "tiny/clinical-frozen+lora"
    write_record(root, recipe, ones, {f"{stack}/mortality/seed-1": "a reason"})
    record = read_json(root / "study.json")
    assert (record["format_version"], record["table"], record["synthetic"]) == (1, "table3", True)
    assert record["tasks"] == ["mortality"]
    assert [(cell["name"], cell["role"], cell["seed"], cell["failure"]) for cell in record["cells"]] == [
        ("tiny/pretrain", "pretrain", 0, None),
        (f"{stack}/mortality/search", "search", 0, None),
        (f"{stack}/mortality/seed-0", "final", 0, None),
        (f"{stack}/mortality/seed-1", "final", 1, "a reason"),
    ]
    final = record["cells"][2]
    assert (final["base"], final["spec"], final["task"]) == ("tiny", "clinical-frozen+lora", "mortality")
    assert (final["budget"]["trials"], final["paper"]) == (2, None)
    assert all((root / cell["run"] / "run.json").is_file() for cell in record["cells"])

    # The final Runs have the best values; that of the search's seed is the best trial itself.
    best = read_json(root / stack / "mortality" / "search" / "metrics.json")["best"]
    for seed in (0, 1):
        cell = {one.cell.name: one.cell for one in ones}[f"{stack}/mortality/seed-{seed}"]
        assert cell.best_of is not None
        trained = recipe_with_best(cell.best_of, cell.recipe)
        assert (Path(cell.recipe.run) / "recipe.yaml").read_text("utf-8") == dump_recipe(trained)
        assert trained.training.seed == seed
        assert trained.training.learning_rate == best["params"]["training.learning_rate"]
    first, second = (root / stack / "mortality" / f"seed-{seed}" for seed in (0, 1))
    assert read_json(first / "run.json")["copied_from"] == f"../search/trials/{best['number']}"
    assert "copied_from" not in read_json(second / "run.json")
    assert not (first / "checkpoints").exists()
    assert sha256_file(first / "predictions.parquet") != sha256_file(second / "predictions.parquet")


def test_a_later_task_does_not_undo_what_is_done(grid: dict[str, Any]) -> None:
    """It changes what the first cell's features are shared with, which changes no result."""
    del grid["specs"][1]
    few = grid_cells(parsed(grid | {"tasks": ["mortality"]}))
    assert run_cell(few[0].cell).failure is None
    more = grid_cells(parsed(grid))
    assert more[0].cell.name == few[0].cell.name
    assert more[0].cell.recipe != few[0].cell.recipe
    assert is_done(more[0].cell)


def test_the_first_cell_reads_the_notes_of_all_tasks(grid: dict[str, Any], tmp_path: Path) -> None:
    """The others' trials and seeds, and the cells of a later study with that frozen stack, compute nothing again."""
    shutil.copytree(grid["notes"], tmp_path / "notes", ignore=shutil.ignore_patterns("features"))
    for path in (tmp_path / "notes" / "examples" / "diagnoses").glob("*.parquet"):
        # The texts of all tasks are the same there: then nothing would be left to read.
        table = pq.read_table(path)
        texts = pa.array([f"at home {text}" for text in table["text"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("text"), "text", texts), path)
    search = {"space": RATES, "trials": 2, "sampler": "grid"}
    values = {**grid, "notes": str(tmp_path / "notes"), "specs": grid["specs"][:1], "search": search, "seeds": [0, 1]}
    kept = tmp_path / "notes" / "features"
    cells = in_order(ones := grid_cells(parsed(values)), {one.cell.name: 1.0 for one in ones})
    assert cells[0].cell.name == "tiny/head/mortality/search"
    assert run_cell(cells[0].cell).failure is None
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}
    assert before
    for one in cells[1:]:
        assert run_cell(one.cell).failure is None
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_stand_in_the_table(grid: dict[str, Any], tmp_path: Path) -> None:
    """Here the pretraining: what needs it never starts."""
    write_text(tmp_path / "pretrain.yaml", json.dumps(PRETRAIN | {"note_types": ["Poem"]}))
    done = run(command(grid | {"tasks": ["mortality"]}, tmp_path), code=1)
    root = Path(grid["run"])
    failed = {cell["name"]: cell["failure"] for cell in read_json(root / "study.json")["cells"] if cell["failure"]}
    assert list(failed) == [
        "tiny/pretrain",
        "tiny/clinical-frozen+lora/mortality/search",
        "tiny/clinical-frozen+lora/mortality/seed-0",
    ]
    assert "'Poem' does not occur" in failed["tiny/pretrain"]
    assert failed["tiny/clinical-frozen+lora/mortality/search"] == "it needs tiny/pretrain, which failed"
    assert "tiny/pretrain failed" in " ".join(done.stderr.split())
    assert {row["stack"] for row in read_json(root / "report.json")["auroc"]} == {"head"}


@pytest.mark.slow
def test_a_study_that_is_killed_three_times_ends_with_the_same_table(grid: dict[str, Any], tmp_path: Path) -> None:
    """With all its workers, wherever they are; at its end it has nothing left to do."""
    whole = grid | {"workers": 2, "seeds": [0, 1]}
    run(command(whole | {"run": str(tmp_path / "whole")}, tmp_path))
    words = command(whole, tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for begun in (2, 6, 10):
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while len(list(Path(grid["run"]).rglob("run.json"))) < begun and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2 * begun)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert any(not is_done(one.cell) for one in grid_cells(parsed(whole)))
    run(words)
    assert figures(Path(grid["run"])) == figures(tmp_path / "whole")
    done = run(words)
    cells = len(grid_cells(parsed(whole)))
    assert f"{cells} of {cells} Runs are done already." in done.stderr
