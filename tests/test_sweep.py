"""Sweeps: what may be tried, which trial comes next, and that kill -9 loses none and counts none twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clinstack.errors import ClinstackError, DivergedError, InputError
from clinstack.files import read_json
from clinstack.recipe import PRESETS, FinetuneRecipe, SweepRecipe, dump_recipe, load_recipe, parse_recipe
from clinstack.run import Run
from test_table import postgres  # noqa: F401  # a fixture
from tiny_notes import CANARY

LIMIT = 120.0
Trials = list[dict[str, Any]]


def trial_recipe(base: Path, notes: Path) -> dict[str, Any]:
    return {
        "stage": "finetune",
        "run": "-",
        "base": str(base),
        "examples": str(notes / "examples" / "mortality"),
        "max_tokens": 32,
        "adapters": [{"name": "task", "rank": 2, "alpha": 4}],
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "checkpoint_every": 1},
        "evaluation": {"resamples": 100},
    }


@pytest.fixture
def toy(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> Callable[..., SweepRecipe]:
    """A recipe of six short trials of the tiny base, with changes."""
    inner = tmp_path / "finetune.yaml"
    inner.write_text(yaml.safe_dump(trial_recipe(tiny_base, tiny_notes)))

    def recipe(run: str = "sweep", **changes: Any) -> SweepRecipe:
        values = {
            "stage": "sweep",
            "run": str(tmp_path / run),
            "recipe": str(inner),
            "space": {
                "adapters.0.rank": {"choices": [1, 2, 4]},
                "training.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
            },
            "trials": 4,
            "sampler": "random",
            "pruner": "none",
        }
        result = parse_recipe(values | changes, "my.yaml", "sweep")
        assert isinstance(result, SweepRecipe)
        return result

    return recipe


def plain(run: Path) -> Trials:
    """The trials of a finished sweep without the times."""
    return [
        {key: value for key, value in trial.items() if key != "seconds"} for trial in read_json(run / "trials.json")
    ]


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe({"stage": "sweep", "run": "x", "recipe": "demo/finetune"} | values, "my.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- the recipe

RANKS: dict[str, Any] = {"adapters.0.rank": {"choices": [1, 2]}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"space": RANKS, "sampler": "bayes"}, "sampler"),
        ({"space": RANKS, "trails": 3}, "unknown key trails. Did you mean trials?"),
        ({"space": {}}, "space"),
        ({"space": {"a": {"choices": []}}}, "space.a.choices"),
        ({"space": {"a": {"choices": [1, 1]}}}, "1 stands twice"),
        ({"space": {"a": {"choices": [1], "low": 0}}}, "either choices or a range (low)"),
        ({"space": {"a": {"low": 1}}}, "low and high"),
        ({"space": {"a": {"low": 2, "high": 1}}}, "low (2) is above high (1)"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, "a logarithmic range begins above 0"),
        ({"space": {"a": {"low": 1, "high": 9, "log": True, "step": 2}}}, "a logarithmic range has no steps"),
        ({"space": {"a": {"choices": [1], "when": {"b": 2}}}}, "space.a.when: b does not stand before it"),
        ({"space": RANKS, "storage": "mysql://host/x"}, "use journal, sqlite or postgresql://"),
        ({"space": RANKS, "storage": "postgresql://me:secret@host/x"}, "a password does not belong in a file"),
        ({"space": RANKS, "evaluation": {"resamples": 200}}, "set it with overrides"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, Any], said: str) -> None:
    message = refusal(values)
    assert said in message
    if "storage" in values:
        assert values["storage"] not in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"adapters.0.rank": {"choices": [4, 0]}}}, "adapters.0.rank: "),
        ({"space": {"adapters.0.rank": {"choices": [4, "many"]}}}, "adapters.0.rank"),
        ({"space": {"adapters.0.rnk": {"choices": [4]}}}, "unknown key adapters.0.rnk. Did you mean rank?"),
        ({"space": {"adapters.1.rank": {"choices": [4]}}}, "'1' is not an index of this list of 1"),
        ({"space": {"training.learning_rate": {"low": -1.0, "high": 0.1}}}, "training.learning_rate"),
        ({"space": {"training.learning_rate": {"low": 0.1, "high": 0.2}}, "sampler": "grid"}, "a grid needs choices"),
        ({"space": {"run": {"choices": ["a"]}}}, "run is the folder of each trial"),
        ({"recipe": "demo/nothing"}, "no such recipe"),
        ({"recipe": "demo/sweep"}, "is no recipe of pretrain, finetune or instruct"),
        ({"recipe": "demo/pretrain", "metric": "auroc"}, "auroc is a figure of finetune"),
        ({"recipe": "demo/pretrain", "metric": "auprc"}, "auprc is a figure of finetune"),
        ({"overrides": {"training.epoch": 2}}, "unknown key training.epoch. Did you mean epochs?"),
        # Wrong for one of two methods only, and not for the first.
        (
            {
                "space": {
                    "adapters.0.method": {"choices": ["lora", "prefix"]},
                    "adapters.0.dropout": {"low": 0.0, "high": 0.5},
                },
                "overrides": {"adapters": [{"name": "task"}]},
            },
            "dropout: the method prefix has no such key",
        ),
    ],
)
def test_a_space_that_the_recipe_refuses_is_refused_before_the_first_trial(
    toy: Callable[..., SweepRecipe], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    from clinstack.sweep.sweep import sweep

    with pytest.raises(InputError) as caught:
        sweep(toy(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sweep").exists()


def test_overrides_are_a_list_or_a_mapping_and_keep_the_rest_of_a_section(toy: Callable[..., SweepRecipe]) -> None:
    from clinstack.sweep.space import Space

    for overrides in (
        ["training.epochs=7", "adapters.0.alpha=3"],
        {"training.epochs": 7, "adapters.0.alpha": 3},
        {"training": {"epochs": 7}, "adapters.0.alpha": 3},
    ):
        recipe = Space.of(toy(overrides=overrides)).example
        assert (recipe.training.epochs, recipe.training.batch_size, recipe.adapters[0].alpha) == (7, 16, 3)


def test_any_key_of_a_finetune_recipe_can_be_searched(toy: Callable[..., SweepRecipe]) -> None:
    from clinstack.sweep.space import Space

    space = {
        "training.head_learning_rate": {"choices": [0.1, 0.2]},
        "loss.name": {"choices": ["cross_entropy", "focal"]},
        "loss.gamma": {"low": 0.0, "high": 4.0, "when": {"loss.name": "focal"}},
        "adapters.1.rank": {"choices": [3, 5]},
    }
    stack = [{"name": "clinical", "path": "runs/x", "trainable": False}, {"name": "task"}]
    found = Space.of(toy(space=space, overrides={"adapters": stack}, metric="auprc"))
    values = {"training.head_learning_rate": 0.2, "loss.name": "focal", "loss.gamma": 1.5, "adapters.1.rank": 5}
    recipe = found.recipe_of(values, Path("-"))
    assert isinstance(recipe, FinetuneRecipe)
    assert (recipe.training.head_learning_rate, recipe.loss.gamma, recipe.adapters[1].rank) == (0.2, 1.5, 5)
    assert recipe.adapters[0].path == "runs/x"


LORA = {
    "adapters.0.rank": [2, 4, 8, 16],
    "adapters.0.alpha": [4, 8, 16, 32],
    "adapters.0.dropout": [0.0, 0.1, 0.2],
}
PUBLISHED: dict[str, dict[str, list[Any]]] = {
    "lora": LORA,
    "prefix": {"adapters.0.virtual_tokens": [1, 5, 10, 15, 20], "adapters.0.projection": [True, False]},
    "prompt": {
        "adapters.0.virtual_tokens": [1, 5, 10, 15, 20],
        "adapters.0.initial_text": ["Finish this clinical note: ", None],
    },
    "p_tuning": {
        "adapters.0.virtual_tokens": [1, 5, 10, 15, 20],
        "adapters.0.encoder": ["mlp", "lstm"],
        "adapters.0.encoder_hidden": [64, 128, 256, 768],
        "adapters.0.encoder_layers": [1, 2, 4, 8, 12],
        "adapters.0.encoder_dropout": [0.0, 0.1, 0.2],
    },
    "adaption_prompt": {"adapters.0.adapter_length": [5, 10], "adapters.0.adapter_layers": [10, 20, 30]},
    "adalora": {
        "adapters.0.warmup_steps": [0, 600, 2000],
        "adapters.0.final_steps": [0, 8000, 25000, 50000],
        "adapters.0.allocate_every": [1, 10, 100],
    },
    "lora-downstream": LORA,
}
"""The search spaces of Gema et al. 2023 as their configurations have them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_spaces_are_presets(name: str) -> None:
    from clinstack.sweep.propose import number_of_trials
    from clinstack.sweep.space import Space

    recipe = load_recipe(Path(f"gema2023/sweep/{name}"), (), "sweep")
    assert isinstance(recipe, SweepRecipe)
    assert {key: list(entry.choices or ()) for key, entry in recipe.space.items()} == PUBLISHED[name]
    metric = "auroc" if name == "lora-downstream" else "loss"
    assert (recipe.trials, recipe.metric, recipe.sampler, recipe.pruner) == (20, metric, "gp", "none")
    space = Space.of(recipe)
    # Small spaces are smaller than twenty.
    assert number_of_trials(recipe, space) == min(20, {"prefix": 10, "prompt": 10, "adaption_prompt": 6}.get(name, 20))
    trial = space.example
    if name == "lora-downstream":
        assert (trial.training.learning_rate, trial.training.epochs) == (5e-5, 10)
        assert (trial.training.batch_size, trial.training.accumulate) == (10, 2)
    else:
        assert (trial.training.learning_rate, trial.training.epochs) == (3e-4, 1)
        assert trial.adapters[0].method == name
    if name == "adalora":
        adapter = trial.adapters[0]
        assert (adapter.rank, adapter.initial_rank, adapter.beta, adapter.orthogonal) == (8, 12, 0.85, 0.5)
    assert (PRESETS / "gema2023" / "sweep" / f"{name}.yaml").is_file()


def test_the_command_line_starts_without_optuna() -> None:
    code = "import sys, clinstack.cli; assert not {'optuna', 'torch', 'numpy', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------- what comes next


def proposals(
    recipe: SweepRecipe, count: int, figure: Callable[[dict[str, Any]], float], state: str = "COMPLETE"
) -> Any:
    """The trials that a sweep would propose if each had the figure."""
    import optuna

    from clinstack.sweep.propose import propose
    from clinstack.sweep.space import Space

    space = Space.of(recipe)
    trials: list[Any] = []
    for number in range(count):
        values = propose(recipe, space, trials, number)
        assert values == propose(recipe, space, trials, number), "it is no function of the trials before"
        trials.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=figure(values),
                intermediate_values={1: figure(values)},
                params=space.parameters_of(values),
                distributions={key: space.distribution(key) for key in values},
            )
        )
    return [space.values_of(trial.params) for trial in trials]


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random", "grid"])
def test_every_sampler_tries_each_configuration_once(toy: Callable[..., SweepRecipe], sampler: str) -> None:
    space = {
        "adapters.0.rank": {"choices": [1, 2, 4]},
        "adapters.0.target_modules": {"choices": ["all-linear", ["q_proj", "v_proj"]]},
        "adapters.0.dropout": {"low": 0.0, "high": 0.1, "step": 0.1},
    }
    recipe = toy(space=space, sampler=sampler, trials=50)
    tried = proposals(recipe, 12, lambda values: values["adapters.0.rank"] / 10)
    from clinstack.sweep.propose import number_of_trials
    from clinstack.sweep.space import Space

    assert number_of_trials(recipe, Space.of(recipe)) == 12
    assert len({json.dumps(values) for values in tried}) == 12
    other = proposals(toy(space=space, sampler=sampler, trials=50, seed=1), 12, lambda values: 1.0)
    assert tried != other


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED"])
def test_the_gaussian_process_learns_from_whole_and_from_pruned_trials(
    toy: Callable[..., SweepRecipe], state: str
) -> None:
    recipe = toy(space={"training.learning_rate": {"low": 0.001, "high": 1.0}}, sampler="gp")
    tried = proposals(recipe, 16, lambda values: -((values["training.learning_rate"] - 0.42) ** 2), state)
    late = [abs(values["training.learning_rate"] - 0.42) for values in tried[12:]]
    early = [abs(values["training.learning_rate"] - 0.42) for values in tried[:10]]
    assert max(late) < 0.05 < sum(early) / len(early)


def test_a_key_is_tried_only_where_its_condition_holds(toy: Callable[..., SweepRecipe]) -> None:
    space = {
        "adapters.0.method": {"choices": ["lora", "prefix", "dora"]},
        "adapters.0.virtual_tokens": {"choices": [2, 3], "when": {"adapters.0.method": "prefix"}},
        "adapters.0.rank": {"choices": [1, 2], "when": {"adapters.0.method": ["lora", "dora"]}},
    }
    overrides = {"adapters": [{"name": "task"}]}
    for sampler in ("gp", "tpe", "grid"):
        tried = proposals(toy(space=space, overrides=overrides, sampler=sampler), 6, lambda values: len(values))
        assert len({json.dumps(values) for values in tried}) == 6
        for values in tried:
            prefix = values["adapters.0.method"] == "prefix"
            assert set(values) == {"adapters.0.method", f"adapters.0.{'virtual_tokens' if prefix else 'rank'}"}


# ---------------------------------------------------------------------- whole sweeps


@pytest.fixture(scope="module")
def _module_sweep() -> dict[str, Path]:
    return {}


@pytest.mark.parametrize("metric", ["auroc", "auprc", "loss"])
def test_a_sweep_chooses_by_the_figure_that_it_is_told(toy: Callable[..., SweepRecipe], metric: str) -> None:
    """The figure is that of the epoch which the trial keeps, and the best trial has the best of them."""
    from clinstack.sweep.sweep import sweep

    rates = {"training.learning_rate": {"choices": [0.01, 0.1]}}
    few = {"adapters": [], "select": "auprc", "training.epochs": 2}
    run = sweep(toy(metric=metric, trials=2, space=rates, overrides=few))
    trials: Trials = read_json(run.folder / "trials.json")
    for trial in trials:
        history = read_json(run.folder / "trials" / str(trial["number"]) / "metrics.json")["validation"]
        kept = max(history, key=lambda figures: figures["auprc"])
        assert trial["value"] == kept[metric]
    best = (min if metric == "loss" else max)(trial["value"] for trial in trials)
    assert read_json(run.folder / "metrics.json")["best"]["value"] == best


def test_a_sweep_writes_its_trials_and_the_best_recipe(
    toy: Callable[..., SweepRecipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clinstack.sweep.sweep import sweep

    recipe = toy()
    run = sweep(recipe)
    trials: Trials = read_json(run.folder / "trials.json")
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    for trial in trials:
        folder = run.folder / "trials" / str(trial["number"])
        assert read_json(folder / "run.json")["status"] == "done"
        written = load_recipe(folder / "recipe.yaml")
        assert isinstance(written, FinetuneRecipe)
        assert written.adapters[0].rank == trial["params"]["adapters.0.rank"]
        assert written.training.learning_rate == trial["params"]["training.learning_rate"]
        history = read_json(folder / "metrics.json")["validation"]
        assert trial["value"] == max(figures["score"] for figures in history)
        assert (trial["state"], trial["validations"], trial["reason"]) == ("complete", 3, None)
        assert trial["seconds"] > 0
    metrics = read_json(run.folder / "metrics.json")
    assert metrics["best"]["value"] == max(trial["value"] for trial in trials)
    assert metrics["trials"] == {"total": 4, "complete": 4, "pruned": 0, "failed": 0}
    table = pq.read_table(run.folder / "trials.parquet").to_pylist()
    assert [row["value"] for row in table] == [trial["value"] for trial in trials]
    assert [row["params.adapters.0.rank"] for row in table] == [trial["params"]["adapters.0.rank"] for trial in trials]
    # The best recipe runs as it stands, and is the best trial.
    best = load_recipe(run.folder / "best.yaml", ["run=" + str(tmp_path / "again")])
    assert isinstance(best, FinetuneRecipe)
    from clinstack.stages.finetune import finetune

    again = read_json(finetune(best).folder / "metrics.json")
    winner = run.folder / "trials" / str(metrics["best"]["number"])
    assert again == read_json(winner / "metrics.json")
    # Nothing but parameters and scores is kept.
    for file in run.folder.glob("*"):
        assert file.is_dir() or CANARY.encode() not in file.read_bytes()
    journal = (run.folder / "study.journal").read_bytes()
    assert b"validation" in journal
    assert all(name not in journal for name in (b"interval", b"per_class", b"test"))  # figures of the test patients
    # A second start does nothing, and another recipe is refused.
    before = (run.folder / "trials.json").stat().st_mtime_ns
    assert sweep(toy(workers=3)).is_done
    assert (run.folder / "trials.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="was begun with another recipe"):
        sweep(toy(seed=5))
    inner = tmp_path / "finetune.yaml"
    inner.write_text(inner.read_text() + "\n")
    with pytest.raises(InputError, match="has changed since this Run began"):
        sweep(toy())


def test_the_winner_does_not_depend_on_the_test_patients(
    toy: Callable[..., SweepRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinstack.evaluate.classification import Measured
    from clinstack.stages import finetune
    from clinstack.sweep.sweep import sweep

    honest = sweep(toy("honest", metric="loss"))
    worst = Measured({"test": {"primary": "macro", "macro": {"value": -5.0}}, "validation": {}}, None)
    monkeypatch.setattr(finetune, "measure_classifier", lambda *_: worst)
    assert plain(sweep(toy("blind", metric="loss")).folder) == plain(honest.folder)
    trials = plain(honest.folder)
    assert read_json(honest.folder / "metrics.json")["best"]["value"] == min(trial["value"] for trial in trials)
    for trial in trials:
        assert trial["value"] == trial["validation"]["loss"] > 0


def test_a_pruned_trial_ends_cleanly_and_its_run_can_go_on(toy: Callable[..., SweepRecipe], tmp_path: Path) -> None:
    from clinstack.stages.finetune import finetune
    from clinstack.sweep.sweep import sweep

    whole = sweep(toy("whole", trials=7, metric="loss"))
    pruned = sweep(toy("pruned", trials=7, metric="loss", pruner="median"))
    trials = plain(pruned.folder)
    given_up = [trial for trial in trials if trial["state"] == "pruned"]
    assert given_up
    assert all(trial["number"] >= 4 and trial["validations"] < 3 for trial in given_up)
    best = [read_json(run.folder / "metrics.json")["best"] for run in (whole, pruned)]
    assert best[0]["params"] == best[1]["params"]
    assert read_json(pruned.folder / "metrics.json")["trials"]["pruned"] == len(given_up)
    folder = pruned.folder / "trials" / str(given_up[0]["number"])
    record = read_json(folder / "run.json")
    assert record["status"] == "pruned"
    assert "error" not in record
    recipe = load_recipe(folder / "recipe.yaml")
    assert isinstance(recipe, FinetuneRecipe)
    finetune(recipe)
    other = whole.folder / "trials" / str(given_up[0]["number"])
    assert read_json(folder / "metrics.json") == read_json(other / "metrics.json")


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"training.validate_every": 2}], ids=["each epoch", "each second step"])
@pytest.mark.parametrize("pruner", ["hyperband", "successive_halving"])
def test_the_other_pruners_end_trials_too(
    toy: Callable[..., SweepRecipe], pruner: str, overrides: dict[str, Any]
) -> None:
    from clinstack.sweep.space import Space
    from clinstack.sweep.sweep import sweep

    recipe = toy(trials=8, metric="loss", pruner=pruner, overrides=overrides)
    assert (Space.of(recipe).validations is None) == bool(overrides)
    trials = plain(sweep(recipe).folder)
    assert {trial["state"] for trial in trials} == {"complete", "pruned"}


def test_a_trial_that_cannot_be_trained_is_failed_and_the_others_go_on(
    toy: Callable[..., SweepRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinstack.sweep import trials as room
    from clinstack.sweep.sweep import sweep

    stage = room.run_stage

    def failing(recipe: Any, on_validation: Any = None) -> Run:
        number = int(Path(recipe.run).name)
        if number == 1:
            raise DivergedError("The loss is nan at step 3.")
        if number == 2:
            raise InputError("adapters.0.rank: this base has not so much.")
        return stage(recipe, on_validation)

    monkeypatch.setattr(room, "run_stage", failing)
    trials = plain(sweep(toy()).folder)
    assert [trial["state"] for trial in trials] == ["complete", "failed", "failed", "complete"]
    assert trials[1]["reason"] == "The loss is nan at step 3."
    assert trials[1]["value"] is None
    monkeypatch.setattr(room, "run_stage", lambda *_: (_ for _ in ()).throw(DivergedError("The loss is nan.")))
    with pytest.raises(ClinstackError, match="None of the 2 trials came to its end: The loss is nan"):
        sweep(toy("none", trials=2))


def test_the_command_line(toy: Callable[..., SweepRecipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clinstack.cli import app

    path = tmp_path / "sweep.yaml"
    path.write_text(dump_recipe(toy(trials=2)))
    app(["sweep", str(path), "trials=3"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "best.yaml" in said
    assert said.count("complete") == 3
    app(["sweep", str(path), "--json", "--fresh"], standalone_mode=False)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["status"] == "done"
    assert line["metrics"]["trials"]["total"] == 2


# ---------------------------------------------------------------------- killed


class Crash(BaseException):
    """Like a kill: no handler of ordinary errors sees it."""


@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("clinstack.run.Run.log", 20),
        ("optuna.study.Study.tell", 3),
        pytest.param("clinstack.run.Run.finish", 2, marks=pytest.mark.slow),
        pytest.param("optuna.study.Study.add_trial", 2, marks=pytest.mark.slow),
        pytest.param("optuna.trial.Trial.report", 5, marks=pytest.mark.slow),
        pytest.param("clinstack.sweep.trials.run_stage", 3, marks=pytest.mark.slow),
        pytest.param("clinstack.sweep.sweep.write_results", 1, marks=pytest.mark.slow),
    ],
)
def test_broken_off_anywhere_a_sweep_goes_on_with_the_same_trials(
    toy: Callable[..., SweepRecipe], straight: Trials, place: str, calls: int
) -> None:
    from clinstack.sweep.sweep import sweep

    recipe = toy(**STRAIGHT)
    with pytest.MonkeyPatch.context() as patch:
        original = pkgutil.resolve_name(place)
        count = iter(range(1, 1000))

        def dying(*args: Any, **kwargs: Any) -> Any:
            # Of the sweep's own study; the samplers' are in memory.
            if place.startswith("optuna.study") and "sweep" not in args[0].study_name:
                return original(*args, **kwargs)
            if next(count) == calls:
                raise Crash
            return original(*args, **kwargs)

        patch.setattr(place, dying)
        with pytest.raises(Crash):
            sweep(recipe)
    assert not (Path(recipe.run) / "best.yaml").exists()
    assert plain(sweep(recipe).folder) == straight


STRAIGHT: dict[str, Any] = {"trials": 6, "metric": "loss", "pruner": "median", "sampler": "tpe"}


@pytest.fixture
def straight(toy: Callable[..., SweepRecipe], _module_sweep: dict[str, Any]) -> Trials:
    """The trials of a sweep that nobody interrupts."""
    if not _module_sweep:
        from clinstack.sweep.sweep import sweep

        _module_sweep["trials"] = plain(sweep(toy("straight", **STRAIGHT)).folder)
    trials: Trials = _module_sweep["trials"]
    return trials


def call_clinstack(arguments: list[str]) -> None:
    """What a child process does: the command line, on one thread."""
    import torch

    from clinstack.cli import main

    torch.set_num_threads(1)
    sys.argv = ["clinstack", *arguments]
    main()


Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start a command in a process of its own that can be killed, forked from one that has imported PyTorch."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clinstack.stages.pretrain", "clinstack.stages.finetune", "clinstack.cli"])
    processes: list[BaseProcess] = []

    def start_command(*arguments: str) -> BaseProcess:
        process = context.Process(target=call_clinstack, args=(list(arguments),))
        process.start()
        processes.append(process)
        return process

    yield start_command
    for process in processes:
        if process.is_alive():
            process.kill()


def wait_until(moment: Callable[[], bool], process: BaseProcess) -> None:
    end = time.monotonic() + LIMIT
    while not moment():
        assert process.is_alive(), "it ended before the moment came"
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.001)


@pytest.mark.parametrize("storage", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_killed_in_a_trial_a_sweep_goes_on_from_its_checkpoint(
    toy: Callable[..., SweepRecipe], straight: Trials, start: Start, tmp_path: Path, storage: str
) -> None:
    recipe = toy(storage=storage, **STRAIGHT)
    path = tmp_path / "sweep.yaml"
    path.write_text(dump_recipe(recipe))
    trial = tmp_path / "sweep" / "trials" / "2"
    process = start("sweep", str(path))
    wait_until((trial / "checkpoints" / "last.safetensors").exists, process)
    process.kill()
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    process = start("sweep", str(path))
    process.join(LIMIT)
    assert process.exitcode == 0
    assert plain(tmp_path / "sweep") == straight
    assert read_json(trial / "run.json")["starts"] == 2


def workers_of(process: BaseProcess) -> list[int]:
    """The worker processes of a sweep."""
    import psutil

    try:
        children = psutil.Process(process.pid).children()
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def test_a_killed_worker_takes_no_trial_with_it(toy: Callable[..., SweepRecipe], start: Start, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(dump_recipe(toy(trials=6, workers=2, pruner="none")))
    trials = tmp_path / "sweep" / "trials"
    process = start("sweep", str(path))
    wait_until(lambda: len(list(trials.glob("*/checkpoints/last.safetensors"))) >= 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    process.join(LIMIT)
    assert process.exitcode == 0
    written = plain(tmp_path / "sweep")
    assert [(trial["number"], trial["state"]) for trial in written] == [(number, "complete") for number in range(6)]
    # The values of a random search do not depend on who came first.
    from clinstack.sweep.sweep import sweep

    assert written == plain(sweep(toy("alone", trials=6)).folder)


@pytest.mark.slow
def test_two_machines_on_one_postgresql_server(
    postgres: str,  # noqa: F811
    toy: Callable[..., SweepRecipe],
    start: Start,
    tmp_path: Path,
) -> None:
    """Two folders stand for two machines; one is killed, the other goes on with its trial."""
    paths = []
    for name in ("one", "two"):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(dump_recipe(toy(name, trials=12, storage=postgres)))
    one, two = (start("sweep", str(path)) for path in paths)
    wait_until(lambda: len(list((tmp_path / "two" / "trials").glob("*/checkpoints/last.safetensors"))) >= 2, two)
    two.kill()
    two.join(LIMIT)
    assert two.exitcode == -signal.SIGKILL
    one.join(LIMIT)
    assert one.exitcode == 0
    trials = plain(tmp_path / "one")
    assert [(trial["number"], trial["state"]) for trial in trials] == [(number, "complete") for number in range(12)]
    # Started again, the second finds all done and writes the same.
    again = start("sweep", str(paths[1]))
    again.join(LIMIT)
    assert again.exitcode == 0
    assert plain(tmp_path / "two") == trials
    # As one machine would have had it, and --fresh begins anew.
    from clinstack.sweep.sweep import sweep

    assert plain(sweep(toy("alone", trials=12)).folder) == trials
    assert plain(sweep(toy("one", trials=12, storage=postgres), fresh=True).folder) == trials


def test_a_server_that_is_not_there_is_one_line(toy: Callable[..., SweepRecipe], tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from clinstack.sweep.sweep import sweep

    with pytest.raises(InputError, match="cannot be reached") as caught:
        sweep(toy(storage=f"postgresql://tester@/postgres?host={tmp_path}"))
    assert "\n" not in str(caught.value)
