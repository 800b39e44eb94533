"""Pretraining, fine-tuning and evaluation from Notes on disk to Runs on disk, with a random base of two layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch

from clinstack.engine.classification import EncodedExamples
from clinstack.engine.features import FeatureFolders, compute_features
from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.stack import Stack
from clinstack.notes.read import read_examples
from clinstack.recipe import EvaluateRecipe, FinetuneRecipe, PretrainRecipe, parse_recipe, stack_label
from clinstack.stages.evaluate import evaluate
from clinstack.stages.finetune import finetune
from clinstack.stages.pretrain import pretrain
from tiny_notes import CANARY, TASKS

LABELS = ("head", "lora", "clinical-frozen", "clinical-frozen+lora", "clinical-trainable", "clinical-trainable+lora")
TASK = {"name": "task", "rank": 2, "alpha": 4}
EVALUATION = {"resamples": 100}


def pretrain_recipe(run: Path, base: Path, notes: Path, **changes: Any) -> PretrainRecipe:
    values: dict[str, Any] = {
        "run": str(run),
        "base": str(base),
        "notes": str(notes),
        "context": 64,
        "adapters": [{"name": "clinical", "rank": 4, "alpha": 8}],
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 4},
        "evaluation": EVALUATION,
    }
    recipe = parse_recipe(values | changes, "test", "pretrain")
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def finetune_recipe(
    run: Path, base: Path, examples: Path, adapters: list[dict[str, Any]], **changes: Any
) -> FinetuneRecipe:
    values: dict[str, Any] = {
        "run": str(run),
        "base": str(base),
        "examples": str(examples),
        "max_tokens": 48,
        "adapters": adapters,
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.02, "checkpoint_every": 4},
        "evaluation": EVALUATION,
    }
    recipe = parse_recipe(values | changes, "test", "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    return recipe


def evaluate_recipe(run: Path, stack: Path, **changes: Any) -> EvaluateRecipe:
    values = {"run": str(run), "stack": str(stack), "evaluation": EVALUATION}
    recipe = parse_recipe(values | changes, "test", "evaluate")
    assert isinstance(recipe, EvaluateRecipe)
    return recipe


def specs(clinical: Path) -> dict[str, list[dict[str, Any]]]:
    frozen = {"name": "clinical", "path": str(clinical)}
    trainable = frozen | {"trainable": True}
    return {
        "head": [],
        "lora": [TASK],
        "clinical-frozen": [frozen],
        "clinical-frozen+lora": [frozen, TASK],
        "clinical-trainable": [trainable],
        "clinical-trainable+lora": [trainable, TASK],
    }


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tiny_notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study: the pretraining, the six stacks on mortality, one stack on the other two kinds of task."""
    root = tmp_path_factory.mktemp("runs")
    pretrain(pretrain_recipe(root / "pretrain", tiny_base, tiny_notes))
    for label, adapters in specs(root / "pretrain").items():
        tasks = TASKS if label == "clinical-frozen+lora" else ("mortality",)
        for task in tasks:
            examples = tiny_notes / "examples" / task
            recipe = finetune_recipe(root / "finetune" / task / label, tiny_base, examples, adapters)
            assert stack_label(recipe.adapters) == label
            finetune(recipe)
    return root


def finetuned(runs: Path, task: str = "mortality", label: str = "clinical-frozen+lora") -> Path:
    return runs / "finetune" / task / label


def all_runs(runs: Path) -> list[Path]:
    return [runs / "pretrain", *sorted((runs / "finetune").glob("*/*"))]


def adapters_of(run: Path) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in read_json(run / "stack" / "stack.json")["adapters"]}


# ---------------------------------------------------------------------- what a Run holds


def test_a_run_holds_what_the_contract_says(runs: Path) -> None:
    assert len(all_runs(runs)) == 9
    for run in all_runs(runs):
        table = "losses.parquet" if run.name == "pretrain" else "predictions.parquet"
        names = {item.name for item in run.iterdir() if item.name != ".lock"}
        held = {"recipe.yaml", "run.json", "metrics.json", table, "log.jsonl", "checkpoints", "stack", "tensorboard"}
        assert names == held
        record = read_json(run / "run.json")
        assert record["status"] == "done"
        assert record["synthetic"] is True
        assert record["label"] == ("clinical" if run.name == "pretrain" else run.name)
        assert record["task"] == (None if run.name == "pretrain" else run.parent.name)
        assert record["seeds"] == {"training": 0, "evaluation": 0}
        assert set(record["seconds"]) == {"prepare", "train", "evaluate", "total"}
        assert record["stack"]["fingerprint"] == read_json(run / "stack" / "stack.json")["base"]["fingerprint"]
        assert 0 < record["stack"]["trainable_parameters"] < record["stack"]["parameters"]
        for file, digest in record["inputs"].items():
            assert sha256_file(Path(file)) == digest


def test_predictions_have_one_logit_for_each_class_of_each_held_out_example(runs: Path, tiny_notes: Path) -> None:
    for name, task in TASKS.items():
        table = pq.read_table(finetuned(runs, name) / "predictions.parquet")
        label = pa.list_(pa.string()) if task.kind == "multilabel" else pa.int64()
        assert [(field.name, field.type) for field in table.schema] == [
            ("example_id", pa.string()),
            ("patient_id", pa.string()),
            ("split", pa.string()),
            ("label", label),
            ("score", pa.list_(pa.float32())),
        ]
        assert {len(score) for score in table["score"].to_pylist()} == {len(task.classes)}
        rows = [pq.read_table(tiny_notes / "examples" / name / f"{split}.parquet") for split in ("validation", "test")]
        for column in ("example_id", "patient_id", "label"):
            assert table[column].to_pylist() == [value for part in rows for value in part[column].to_pylist()]
        assert table["split"].to_pylist() == ["validation"] * len(rows[0]) + ["test"] * len(rows[1])


def losses_of(run: Path, split: str) -> pa.Table:
    table = pq.read_table(run / "losses.parquet")
    return table.filter(pa.compute.equal(table["split"], split))


def test_losses_have_one_row_for_each_test_note_and_for_as_many_of_training(runs: Path, tiny_notes: Path) -> None:
    table = pq.read_table(runs / "pretrain" / "losses.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("note_id", "string"),
        ("patient_id", "string"),
        ("note_type", "string"),
        ("split", "string"),
        ("tokens", "int64"),
        ("characters", "int64"),
        ("base_nll", "double"),
        ("nll", "double"),
    ]
    notes = pq.read_table(tiny_notes / "notes" / "notes.parquet").to_pylist()
    splits = pq.read_table(tiny_notes / "splits.parquet").to_pylist()
    split_of = {row["patient_id"]: row["split"] for row in splits}
    characters: dict[str, dict[str, int]] = {"test": {}, "train": {}, "validation": {}}
    for row in notes:
        characters[split_of[row["patient_id"]]][row["note_id"]] = len(row["text"])
    test, train = (losses_of(runs / "pretrain", split).to_pylist() for split in ("test", "train"))
    assert len(test) + len(train) == len(table)
    assert {row["note_id"]: row["characters"] for row in test} == characters["test"]
    assert len(train) == len(test)
    assert {row["note_id"]: row["characters"] for row in train}.items() <= characters["train"].items()


def test_metrics_have_intervals_and_pretraining_helped(runs: Path) -> None:
    metrics = read_json(runs / "pretrain" / "metrics.json")
    base, adapted = (metrics["test"][name]["perplexity"] for name in ("base", "adapted"))
    assert adapted["value"] < 0.7 * base["value"]
    assert base["interval"][0] < base["value"] < base["interval"][1]
    assert set(metrics["test"]["by_note_type"]) == {"Discharge summary", "Nursing"}
    assert metrics["best_epoch"] == 1
    for name in TASKS:
        metrics = read_json(finetuned(runs, name) / "metrics.json")
        test = metrics["test"]
        primary = test[test["primary"]]
        assert 0 <= primary["interval"][0] <= primary["value"] <= primary["interval"][1] <= 1
        assert test["auprc"]["interval"]
        assert len(metrics["validation"]) == 2
        assert metrics["tokens"]["train"]["read"] > 0


def test_the_log_has_every_step_and_every_validation(runs: Path) -> None:
    lines = [json.loads(line) for line in (finetuned(runs) / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert [line["epoch"] for line in lines if "validation_loss" in line] == [1, 2]
    last = read_json(finetuned(runs) / "metrics.json")["validation"][-1]
    assert lines[-1]["validation_auroc"] == last["auroc"]


# ---------------------------------------------------------------------- privacy


def texts_in(path: Path) -> str:
    """Everything a file says: its bytes, and a table's decompressed values."""
    raw = path.read_bytes().decode("latin-1")
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        raw += repr(table.to_pylist()) + repr(table.schema.metadata)
    return raw


def test_no_note_text_is_in_any_file_of_a_run(runs: Path, tiny_notes: Path) -> None:
    planted = pq.read_table(tiny_notes / "notes" / "notes.parquet")["text"].to_pylist()
    assert sum(CANARY in text for text in planted) > 10
    assert CANARY in texts_in(tiny_notes / "notes" / "notes.parquet")  # what this test looks for would be found
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 60
    for path in files:
        said = texts_in(path)
        for phrase in (CANARY, "zebra", "heart failure", "the patient was"):
            assert phrase not in said, f"{path} holds text of a note"


def test_no_note_text_is_on_the_screen(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    examples = tiny_notes / "examples" / "mortality"
    run = finetune(finetune_recipe(tmp_path / "run", tiny_base, examples, []))
    evaluate(evaluate_recipe(tmp_path / "evaluated", run.folder, examples=str(examples)))
    captured = capfd.readouterr()
    assert "mortality" in captured.err  # the bars
    for word in (*CANARY.split(), "heart failure"):
        assert word not in captured.out + captured.err


def test_nothing_in_a_run_is_a_pickle(runs: Path) -> None:
    known = {".json", ".jsonl", ".yaml", ".parquet", ".safetensors", ".md", ".xml", ".lock", ""}
    for path in runs.rglob("*"):
        if path.is_file():
            if path.parent.name != "tensorboard":
                assert path.suffix in known
                assert path.suffix or path.name == ".lock"
            head = path.read_bytes()[:4]
            assert head[:2] != b"\x80\x04"  # a pickle
            assert head != b"PK\x03\x04"  # a zip archive, as torch.save writes


# ---------------------------------------------------------------------- what trains


@pytest.mark.parametrize("label", LABELS)
def test_a_frozen_clinical_adapter_keeps_its_hash_and_a_trainable_one_does_not(runs: Path, label: str) -> None:
    before = adapters_of(runs / "pretrain")["clinical"]["weights"]
    adapters = adapters_of(finetuned(runs, label=label))
    expected = {name for name in label.replace("-frozen", "").replace("-trainable", "").split("+") if name != "head"}
    assert set(adapters) == {"task" if name == "lora" else name for name in expected}
    if "clinical" in adapters:
        assert (adapters["clinical"]["weights"] == before) == ("frozen" in label)
        assert adapters["clinical"]["trainable"] == ("trainable" in label)
    if "task" in adapters and "clinical" in adapters:
        assert adapters["task"]["stacked_on"]["adapters"][0]["weights"] == adapters["clinical"]["weights"]


def test_the_six_stacks_give_six_predictions(runs: Path) -> None:
    """In the paper's public code two of them were the same computation."""
    scores = [
        str(pq.read_table(finetuned(runs, label=label) / "predictions.parquet")["score"].to_pylist())
        for label in LABELS
    ]
    assert len(set(scores)) == 6


def test_a_saved_run_gives_the_predictions_it_wrote(runs: Path, tiny_notes: Path) -> None:
    for task in TASKS:
        folder = finetuned(runs, task)
        stack = Stack.load(folder)
        loaded_task, examples = read_examples(tiny_notes / "examples" / task)
        encoded = EncodedExamples(stack, loaded_task, examples["test"])
        table = pq.read_table(folder / "predictions.parquet").to_pylist()
        written = np.array([row["score"] for row in table if row["split"] == "test"], dtype=np.float32)
        assert np.array_equal(encoded.all_logits(8), written)


@pytest.mark.parametrize("label", ["head", "clinical-frozen"])
def test_features_computed_once_give_the_logits_of_the_whole_stack(
    runs: Path, tiny_notes: Path, tmp_path: Path, label: str
) -> None:
    stack = Stack.load(finetuned(runs, label=label))
    assert stack.backbone_is_frozen
    task, examples = read_examples(tiny_notes / "examples" / "mortality")
    encoded = EncodedExamples(stack, task, examples["test"])
    plain = encoded.all_logits(5)
    folders = FeatureFolders(tmp_path / "notes", tmp_path / "run")
    encoded.use_features(compute_features(stack, [encoded.encoded.pieces], folders, "features")[0])
    np.testing.assert_allclose(encoded.all_logits(3), plain, rtol=0, atol=1e-6)
    assert encoded.features is not None
    assert encoded.features.shape == (len(plain), 32)


def test_training_on_features_is_training_the_whole_stack(
    runs: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "backbone_is_frozen", property(lambda self: False))
    adapters = specs(runs / "pretrain")["clinical-frozen"]
    plain = finetune(finetune_recipe(tmp_path / "run", tiny_base, tiny_notes / "examples" / "mortality", adapters))
    first, second = (
        np.array(pq.read_table(folder / "predictions.parquet")["score"].to_pylist())
        for folder in (plain.folder, finetuned(runs, label="clinical-frozen"))
    )
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-4)


def test_the_stacks_without_a_trainable_adapter_are_those_trained_on_features(
    runs: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    use = EncodedExamples.use_features

    def recording(self: EncodedExamples, features: Any) -> None:
        asked.append(len(self))
        use(self, features)

    monkeypatch.setattr(EncodedExamples, "use_features", recording)
    examples = tiny_notes / "examples" / "mortality"
    once = {"training": {"max_steps": 2}}
    finetune(finetune_recipe(tmp_path / "lora", tiny_base, examples, [TASK], **once))
    assert not asked
    finetune(finetune_recipe(tmp_path / "head", tiny_base, examples, [], **once))
    assert len(asked) == 3


def without_counts(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return figures without the classes' counts: evaluate knows nothing of the splits that it does not measure."""
    return metrics | {"per_class": [entry | {"counts": None} for entry in metrics["per_class"]]}


# ---------------------------------------------------------------------- starting again


def test_a_finished_run_started_again_is_left_as_it_is(
    runs: Path, tiny_base: Path, tiny_notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a finished Run built its stack again")

    monkeypatch.setattr(Stack, "build", never)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in runs.rglob("*") if path.is_file()}
    assert pretrain(pretrain_recipe(runs / "pretrain", tiny_base, tiny_notes)).is_done
    for label, adapters in specs(runs / "pretrain").items():
        examples = tiny_notes / "examples" / "mortality"
        assert finetune(finetune_recipe(finetuned(runs, label=label), tiny_base, examples, adapters)).is_done
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in runs.rglob("*") if path.is_file()}
    locks = {path for path in before if path.name == ".lock"}
    assert {path: after[path] for path in after if path not in locks} == {
        path: before[path] for path in before if path not in locks
    }


def test_the_same_recipe_gives_the_same_run_and_another_seed_another(
    runs: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    def scores(folder: Path) -> list[Any]:
        found: list[Any] = pq.read_table(folder / "predictions.parquet")["score"].to_pylist()
        return found

    adapters = specs(runs / "pretrain")["clinical-frozen+lora"]
    recipe = finetune_recipe(tmp_path / "again", tiny_base, tiny_notes / "examples" / "mortality", adapters)
    assert scores(finetune(recipe).folder) == scores(finetuned(runs))
    first = (tmp_path / "again" / "stack" / "stack.json").read_bytes()
    assert first == (finetuned(runs) / "stack" / "stack.json").read_bytes()
    values = recipe.model_dump(mode="json")
    other = finetune_recipe(
        tmp_path / "other",
        tiny_base,
        tiny_notes / "examples" / "mortality",
        adapters,
        training=values["training"] | {"seed": 1},
    )
    assert scores(finetune(other).folder) != scores(finetuned(runs))


def test_fresh_begins_anew(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    examples = tiny_notes / "examples" / "mortality"
    finetune(finetune_recipe(tmp_path / "run", tiny_base, examples, []))
    changed = finetune_recipe(tmp_path / "run", tiny_base, examples, [], max_tokens=20)
    with pytest.raises(InputError, match=r"begun with another recipe \(max_tokens: 48 -> 20\)"):
        finetune(changed)
    assert finetune(changed, fresh=True).is_done
    assert read_json(tmp_path / "run" / "stack" / "stack.json")["max_tokens"] == 20


def test_a_cut_is_counted(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    examples = tiny_notes / "examples" / "mortality"
    run = finetune(finetune_recipe(tmp_path / "run", tiny_base, examples, [], max_tokens=20))
    tokens = read_json(run.folder / "metrics.json")["tokens"]
    assert all(part["cut"] > 0 for part in tokens.values())
    assert tokens["test"]["read"] <= 20 * 12


def test_a_suffix_is_read_again_where_the_stack_is_used(
    runs: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    examples = tiny_notes / "examples" / "mortality"
    recipe = finetune_recipe(tmp_path / "run", tiny_base, examples, [], suffix=" ward")
    run = finetune(recipe)
    expected = read_json(run.folder / "metrics.json")["test"]
    again = evaluate(evaluate_recipe(tmp_path / "again", run.folder, examples=str(examples)))
    assert without_counts(read_json(again.folder / "metrics.json")["test"]) == without_counts(expected)
    first, second = (
        pq.read_table(folder / "predictions.parquet")["score"].to_pylist()
        for folder in (run.folder, finetuned(runs, label="head"))
    )
    assert first != second


# ---------------------------------------------------------------------- evaluate


def test_evaluating_a_finished_run_gives_its_own_figures(runs: Path, tiny_notes: Path, tmp_path: Path) -> None:
    for task in TASKS:
        examples = str(tiny_notes / "examples" / task)
        run = evaluate(evaluate_recipe(tmp_path / task, finetuned(runs, task), examples=examples, batch_size=5))
        assert run.is_done
        before = pq.read_table(finetuned(runs, task) / "predictions.parquet").to_pylist()
        again = pq.read_table(run.folder / "predictions.parquet").to_pylist()
        before = [row for row in before if row["split"] == "test"]
        assert [row["score"] for row in again] == [pytest.approx(row["score"], abs=1e-6) for row in before]
        assert [row | {"score": None} for row in again] == [row | {"score": None} for row in before]
        metrics = read_json(run.folder / "metrics.json")["test"]
        expected = read_json(finetuned(runs, task) / "metrics.json")["test"]
        assert without_counts(metrics) == without_counts(expected)
        assert read_json(run.folder / "run.json")["task"] == task


def test_evaluating_a_language_model_gives_its_own_losses(runs: Path, tiny_notes: Path, tmp_path: Path) -> None:
    run = evaluate(evaluate_recipe(tmp_path / "test", runs / "pretrain", notes=str(tiny_notes), batch_size=4))
    again = pq.read_table(run.folder / "losses.parquet")
    assert again.equals(losses_of(runs / "pretrain", "test"))
    metrics = read_json(run.folder / "metrics.json")["test"]
    assert metrics == read_json(runs / "pretrain" / "metrics.json")["test"]
    run = evaluate(evaluate_recipe(tmp_path / "train", runs / "pretrain", notes=str(tiny_notes), split="train"))
    assert set(pq.read_table(run.folder / "losses.parquet")["split"].to_pylist()) == {"train"}


def test_evaluating_against_another_run_measures_the_paired_difference(
    runs: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    recipe = evaluate_recipe(
        tmp_path / "run",
        finetuned(runs),
        examples=str(tiny_notes / "examples" / "mortality"),
        against=str(finetuned(runs, label="head")),
    )
    metrics = read_json(evaluate(recipe).folder / "metrics.json")["test"]
    difference = next(item for item in metrics["differences"] if item["task"] == "mortality")
    other = read_json(finetuned(runs, label="head") / "metrics.json")["test"]["auroc"]["value"]
    assert difference["value"] == pytest.approx(metrics["auroc"]["value"] - other)
    assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]


def test_evaluating_against_itself_is_a_difference_of_nothing(runs: Path, tiny_notes: Path, tmp_path: Path) -> None:
    for split in ("test", "validation"):
        recipe = evaluate_recipe(
            tmp_path / split,
            finetuned(runs),
            examples=str(tiny_notes / "examples" / "mortality"),
            against=str(finetuned(runs)),
            split=split,
            batch_size=8,
        )
        for item in read_json(evaluate(recipe).folder / "metrics.json")[split]["differences"]:
            assert item["value"] == 0
            assert item["interval"] == [0, 0]


def test_evaluating_with_the_wrong_data_is_refused(runs: Path, tiny_notes: Path, tmp_path: Path) -> None:
    mortality = str(tiny_notes / "examples" / "mortality")
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (finetuned(runs), {"examples": str(tiny_notes / "examples" / "diagnoses")}, "not those of the stack's task"),
        (finetuned(runs), {"notes": str(tiny_notes)}, "is a classifier for mortality; give it examples"),
        (runs / "pretrain", {"examples": mortality}, "is a language model without a head; give it notes"),
        (
            finetuned(runs),
            {"examples": mortality, "against": str(runs / "pretrain")},
            r"predictions\.parquet is missing",
        ),
        (tmp_path / "nothing", {"examples": mortality}, "neither a Run nor a Stack"),
        (finetuned(runs), {"examples": str(tmp_path)}, r"train\.parquet is missing"),
        (runs / "pretrain", {"notes": str(tmp_path)}, r"has no notes/\*\.parquet"),
    ]
    for number, (stack, changes, message) in enumerate(wrong):
        with pytest.raises(InputError, match=message):
            evaluate(evaluate_recipe(tmp_path / f"run{number}", stack, **changes))


def test_classes_in_another_order_are_refused(runs: Path, tiny_notes: Path, tmp_path: Path) -> None:
    """Same classes, other order: the logits would be read as those of other classes."""
    examples = Path(shutil.copytree(tiny_notes / "examples" / "mortality", tmp_path / "mortality"))
    task = (examples / "task.yaml").read_text()
    (examples / "task.yaml").write_text(task.replace("- survived\n- died", "- died\n- survived"))
    with pytest.raises(InputError, match="not those of the stack's task mortality"):
        evaluate(evaluate_recipe(tmp_path / "run", finetuned(runs), examples=str(examples)))


# ---------------------------------------------------------------------- refused input


def test_an_unfinished_pretraining_is_refused_as_an_adapter(
    runs: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    unfinished = Path(shutil.copytree(runs / "pretrain", tmp_path / "pretrain"))
    write_json(unfinished / "run.json", read_json(unfinished / "run.json") | {"status": "running"})
    recipe = finetune_recipe(
        tmp_path / "run", tiny_base, tiny_notes / "examples" / "mortality", specs(unfinished)["clinical-frozen"]
    )
    with pytest.raises(InputError, match="this Run is not finished"):
        finetune(recipe)


def test_a_clinical_adapter_that_changed_since_is_refused(
    runs: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    """A finished Run on an adapter that was trained anew is not done: its figures are of another stack."""
    clinical = Path(shutil.copytree(runs / "pretrain", tmp_path / "pretrain"))
    examples = tiny_notes / "examples" / "mortality"
    recipe = finetune_recipe(tmp_path / "run", tiny_base, examples, specs(clinical)["clinical-frozen"])
    finetune(recipe)
    training = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "seed": 3}
    pretrain(pretrain_recipe(clinical, tiny_base, tiny_notes, training=training), fresh=True)
    with pytest.raises(InputError, match="has changed since this Run began"):
        finetune(recipe)


def test_a_note_type_that_does_not_occur_is_refused(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    recipe = pretrain_recipe(tmp_path / "run", tiny_base, tiny_notes, note_types=["Nursing", "Radiolgy"])
    with pytest.raises(InputError, match="'Radiolgy' does not occur; there are Discharge summary, Nursing"):
        pretrain(recipe)


def test_only_the_note_types_asked_for_are_read(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    recipe = pretrain_recipe(
        tmp_path / "run", tiny_base, tiny_notes, note_types=["Nursing"], training={"max_steps": 2, "batch_size": 4}
    )
    table = pq.read_table(pretrain(recipe).folder / "losses.parquet")
    assert set(table["note_type"].to_pylist()) == {"Nursing"}


@pytest.fixture
def notes_copy(tiny_notes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_notes, tmp_path / "data"))


Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def change(path: Path, how: Change) -> None:
    pq.write_table(pa.Table.from_pylist(how(pq.read_table(path).to_pylist())), path)


def at(row: int, **values: Any) -> Change:
    return lambda rows: [one | values if index == row else one for index, one in enumerate(rows)]


def without(column: str) -> Change:
    return lambda rows: [{key: value for key, value in row.items() if key != column} for row in rows]


@pytest.mark.parametrize(
    ("task", "split", "how", "message"),
    [
        ("mortality", "test", at(2, label=2), r"test\.parquet, row 3: the label 2 is not a class index from 0 to 1"),
        ("mortality", "train", at(0, label=-1), r"train\.parquet, row 1: the label -1"),
        ("mortality", "train", at(4, label=None), r"train\.parquet, row 5: the label is empty"),
        ("length_of_stay", "validation", at(1, label=4), r"validation\.parquet, row 2: the label 4"),
        ("diagnoses", "test", at(3, label=["038", "999"]), r"test\.parquet, row 4: the code '999' is not a class"),
        ("mortality", "train", without("label"), r"train\.parquet: the column label is missing; it has example_id"),
        ("mortality", "test", lambda rows: rows[:0], r"test\.parquet.*(no rows|column .* is missing)"),
    ],
)
def test_wrong_examples_are_refused_by_file_and_row(
    notes_copy: Path, tiny_base: Path, tmp_path: Path, task: str, split: str, how: Change, message: str
) -> None:
    examples = notes_copy / "examples" / task
    change(examples / f"{split}.parquet", how)
    with pytest.raises(InputError, match=message) as caught:
        finetune(finetune_recipe(tmp_path / "run", tiny_base, examples, []))
    assert CANARY not in str(caught.value)
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_a_patient_in_two_splits_is_refused(notes_copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    examples = notes_copy / "examples" / "mortality"
    patient = pq.read_table(examples / "train.parquet")["patient_id"][0].as_py()
    change(examples / "test.parquet", at(0, patient_id=patient))
    with pytest.raises(InputError, match=rf"test\.parquet: the patient {patient} is also in train"):
        finetune(finetune_recipe(tmp_path / "run", tiny_base, examples, []))


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("notes/notes.parquet", without("text"), r"notes\.parquet: the column text is missing"),
        ("splits.parquet", lambda rows: rows[1:], r"splits\.parquet: the patient p000 of the notes is not in it"),
        ("splits.parquet", at(3, split="holdout"), r"splits\.parquet: .*'holdout'"),
        ("splits.parquet", lambda rows: [row | {"split": "train"} for row in rows], "no notes of validation patients"),
    ],
)
def test_wrong_notes_are_refused(
    notes_copy: Path, tiny_base: Path, tmp_path: Path, file: str, how: Change, message: str
) -> None:
    change(notes_copy / file, how)
    with pytest.raises(InputError, match=message):
        pretrain(pretrain_recipe(tmp_path / "run", tiny_base, notes_copy))


def test_a_table_that_is_no_parquet_is_refused(notes_copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    (notes_copy / "examples" / "mortality" / "test.parquet").write_text("example_id,label\n")
    with pytest.raises(InputError, match=r"test\.parquet is not a readable Parquet file"):
        finetune(finetune_recipe(tmp_path / "run", tiny_base, notes_copy / "examples" / "mortality", []))


def test_notes_without_a_table_of_splits_are_split_by_patient(
    notes_copy: Path, tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    (notes_copy / "splits.parquet").unlink()
    training = {"max_steps": 2, "batch_size": 4}
    run = pretrain(pretrain_recipe(tmp_path / "run", tiny_base, notes_copy, training=training))
    patients = set(losses_of(run.folder, "test")["patient_id"].to_pylist())
    splits = pq.read_table(tiny_notes / "splits.parquet").to_pylist()  # the same seed
    assert patients == {row["patient_id"] for row in splits if row["split"] == "test"}


def test_a_changed_table_is_refused_by_a_run_that_has_begun(notes_copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    examples = notes_copy / "examples" / "mortality"
    recipe = finetune_recipe(tmp_path / "run", tiny_base, examples, [])
    finetune(recipe)
    change(examples / "test.parquet", at(0, label=0))
    with pytest.raises(InputError, match=r"the input .*test\.parquet has changed since this Run began"):
        finetune(recipe)


def test_classes_of_which_one_never_occurs_are_measured_as_unknown(
    notes_copy: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """A small hospital: nobody of the held-out patients died. Strict JSON all the same, and no false figure."""
    examples = notes_copy / "examples" / "mortality"
    for split in ("validation", "test"):
        change(examples / f"{split}.parquet", lambda rows: [row | {"label": 0} for row in rows])
    run = finetune(finetune_recipe(tmp_path / "run", tiny_base, examples, []))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    metrics = json.loads((run.folder / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["test"]["auroc"] == {"value": None, "interval": None}
    assert metrics["validation"][0]["loss"] > 0
    for line in (run.folder / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert metrics["best_epoch"] is not None


def test_a_base_in_half_precision_trains_adapters_and_head_in_float32(
    tiny_base: Path, tiny_notes: Path, tmp_path: Path
) -> None:
    run = finetune(
        finetune_recipe(tmp_path / "run", tiny_base, tiny_notes / "examples" / "mortality", [TASK], dtype="bfloat16")
    )
    stack = Stack.load(run.folder)
    assert stack.network.get_parameter("model.embed_tokens.weight").dtype == torch.bfloat16
    assert {parameter.dtype for parameter in stack.trainable_parameters().values()} == {torch.float32}
