"""Recipes: what is wrong is refused with the key and the remedy; what is right comes back as it was written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from clinstack.errors import InputError
from clinstack.recipe import (
    PRESETS,
    AdapterRecipe,
    FinetuneRecipe,
    PretrainRecipe,
    apply_overrides,
    dump_recipe,
    load_recipe,
    parse_recipe,
    read_yaml,
    stack_label,
)

PRESET_FILES = sorted(
    file for file in PRESETS.rglob("*.yaml") if not {"accelerate", "deepspeed"} & set(file.relative_to(PRESETS).parts)
)


CLINICAL = {"name": "clinical", "path": "runs/pretrain"}
TABLE_3: dict[str, list[dict[str, Any]]] = {
    "head": [],
    "lora": [{"name": "task"}],
    "clinical-frozen": [CLINICAL],
    "clinical-frozen+lora": [CLINICAL, {"name": "task", "rank": 8, "target_modules": "all-linear"}],
    "clinical-trainable": [{**CLINICAL, "trainable": True}],
    "clinical-trainable+lora": [{**CLINICAL, "trainable": True}, {"name": "task", "target_modules": ["q_proj"]}],
}


def pretrain(**changes: Any) -> dict[str, Any]:
    adapters = [{"name": "clinical", "method": "lora"}]
    return {"stage": "pretrain", "run": "runs/x", "notes": "data", "adapters": adapters, **changes}


def finetune(**changes: Any) -> dict[str, Any]:
    return {"stage": "finetune", "run": "runs/x", "examples": "data/examples/mortality", **changes}


def refusal(values: dict[str, Any], stage: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe(values, "my.yaml", stage)
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "pydantic" not in message
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- keys and types


@pytest.mark.parametrize(
    ("values", "key", "remedy"),
    [
        (pretrain(training={"learning_rte": 1e-3}), "unknown key training.learning_rte", "Did you mean learning_rate?"),
        (finetune(class_weight="none"), "unknown key class_weight", "Did you mean class_weights?"),
        (finetune(adapters=[{"name": "a-b", "rnk": 4}]), "unknown key adapters.0.rnk", "Did you mean rank?"),
        (finetune(evaluation={"resample": 200}), "unknown key evaluation.resample", "Did you mean resamples?"),
        (finetune(lora={"rank": 4}), "unknown key lora", ", class_weights, "),
        (finetune(training={"zzz": 1}), "unknown key training.zzz", ", batch_size, batch_tokens, accumulate, "),
        (finetune(notes="data"), "unknown key notes", "Known here: "),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(values: dict[str, Any], key: str, remedy: str) -> None:
    message = refusal(values)
    assert key in message
    assert remedy in message


def test_every_wrong_key_is_named_at_once() -> None:
    message = refusal(finetune(bse="x", training={"epoch": 2}, max_tokens="many"))
    for key in ("bse", "training.epoch", "max_tokens"):
        assert key in message


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (finetune(training={"epochs": "many"}), "training.epochs"),
        (finetune(training={"epochs": 1.5}), "training.epochs"),
        (finetune(training={"epochs": 0}), "training.epochs"),
        (finetune(training={"learning_rate": -1}), "training.learning_rate"),
        (finetune(training={"learning_rate": float("nan")}), "training.learning_rate"),
        (finetune(training={"learning_rate": float("inf")}), "training.learning_rate"),
        (finetune(training=3), "training: input should be a mapping of keys to values (it is 3)"),
        (finetune(dtype="float8"), "dtype"),
        (finetune(run=5), "run"),
        (finetune(adapters="clinical"), "adapters"),
        (finetune(adapters=["clinical"]), "adapters.0: input should be a mapping of keys"),
        (finetune(adapters=[{"name": "lower", "rank": 0}]), "adapters.0.rank"),
        (finetune(adapters=[{"name": "lower", "target_modules": 3}]), "adapters.0.target_modules: "),
        (finetune(adapters=[{"name": "lower", "method": "ia3"}]), "adapters.0.method"),
        (pretrain(context="wide"), "context"),
    ],
)
def test_a_wrong_value_names_its_key(values: dict[str, Any], key: str) -> None:
    assert f" {key}" in refusal(values)


@pytest.mark.parametrize("key", ["run", "examples"])
def test_a_missing_key_is_named(key: str) -> None:
    values = finetune()
    del values[key]
    assert f"the key {key} is missing" in refusal(values)


@pytest.mark.parametrize("stage", ["finetun", None, 3, ["pretrain"], {"a": 1}])
def test_a_wrong_stage_is_refused(stage: Any) -> None:
    message = refusal(finetune(stage=stage))
    assert "it must be one of pretrain, finetune" in message
    assert ("Did you mean finetune?" in message) == (stage == "finetun")


def test_a_recipe_of_another_verb_is_refused() -> None:
    assert "for `clinstack finetune`, not for `clinstack pretrain`" in refusal(finetune(), "pretrain")
    values = finetune()
    del values["stage"]
    assert isinstance(parse_recipe(values, "my.yaml", "finetune"), FinetuneRecipe)


def test_a_key_that_is_no_text_is_refused() -> None:
    assert "3" in refusal(finetune(**{"training": {3: 4}}))


# ---------------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", ["default", "head", "base", "lora", "lora_", "a", "Task", "my.task", "1st", "-x", ""])
def test_reserved_and_unsafe_names_are_refused(name: str) -> None:
    message = refusal(finetune(adapters=[{"name": name}]))
    assert "adapters.0.name" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", ["clinical", "task", "clinical_mp", "ward-7", "lora_task"])
def test_ordinary_names_are_taken(name: str) -> None:
    assert AdapterRecipe(name=name).name == name


def test_a_name_may_not_stand_twice() -> None:
    adapters = [{"name": "clinical", "path": "a"}, {"name": "clinical"}]
    assert "the name 'clinical' stands twice" in refusal(finetune(adapters=adapters))


@pytest.mark.parametrize("shape", [{"rank": 16}, {"alpha": 32}, {"method": "lora"}, {"target_modules": "all-linear"}])
def test_an_adapter_with_path_and_shape_is_refused(shape: dict[str, Any]) -> None:
    message = refusal(finetune(adapters=[{"name": "clinical", "path": "runs/clinical", **shape}]))
    assert f"{next(iter(shape))} belong to the adapter at path" in message


def test_a_new_adapter_that_does_not_train_is_refused() -> None:
    assert "does nothing" in refusal(finetune(adapters=[{"name": "task", "trainable": False}]))


def test_pretraining_needs_something_to_train() -> None:
    assert "none is trainable" in refusal(pretrain(adapters=[]))
    assert "none is trainable" in refusal(pretrain(adapters=[{"name": "clinical", "path": "x"}]))
    parse_recipe(pretrain(adapters=[{"name": "clinical", "path": "x", "trainable": True}]), "my.yaml")


def test_read_adapters_are_frozen_and_new_ones_trainable() -> None:
    assert AdapterRecipe(name="task").is_trainable
    assert not AdapterRecipe(name="clinical", path="x").is_trainable
    assert AdapterRecipe(name="clinical", path="x", trainable=True).is_trainable


def test_a_recipe_cannot_be_changed_after_it_was_read() -> None:
    recipe = parse_recipe(finetune(), "my.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.base = "other"  # type: ignore[misc]


@pytest.mark.parametrize("label", TABLE_3)
def test_labels_of_the_six_stacks(label: str) -> None:
    assert stack_label(parse_recipe(finetune(adapters=TABLE_3[label]), "my.yaml").adapters) == label


# ---------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nbase: b\nrun: c\n", "line 3: not valid YAML: the key 'run' stands twice"),
        ("training:\n  epochs: 1\n  epochs: 2\n", "line 3: not valid YAML: the key 'epochs' stands twice"),
        ("run: [a\nbase: b\n", "not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("? [a, b]\n: c\n", "not valid YAML"),
        ("run: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_other_encodings_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("run: a\nexamples: caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: byte 20 is not UTF-8"):
        load_recipe(path)
    with pytest.raises(InputError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


# ---------------------------------------------------------------------- overrides


def test_overrides_reach_sections_and_lists() -> None:
    values = pretrain()
    changed = apply_overrides(
        values, ["training.epochs=3", "adapters.0.rank=8", "note_types=[Nursing, Radiology]", "base=a=b"]
    )
    assert changed["training"] == {"epochs": 3}
    assert changed["adapters"] == [{"name": "clinical", "method": "lora", "rank": 8}]
    assert changed["note_types"] == ["Nursing", "Radiology"]
    assert changed["base"] == "a=b"
    assert values == pretrain(), "the values given are left alone"
    recipe = parse_recipe(changed, "my.yaml")
    assert isinstance(recipe, PretrainRecipe)
    assert recipe.adapters[0].rank == 8


@pytest.mark.parametrize("text", ["1e-4", "0.0001", "1.0e-4"])
def test_a_learning_rate_may_be_written_as_people_do(text: str) -> None:
    # YAML takes 1e-4 for text.
    recipe = parse_recipe(apply_overrides(finetune(), [f"training.learning_rate={text}"]), "my.yaml")
    assert recipe.training.learning_rate == 1e-4
    assert yaml.safe_load(dump_recipe(recipe))["training"]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training", "has the form key.sub=value"),
        ("=3", "has the form key.sub=value"),
        ("adapters.1.rank=3", "'1' is not an index of this list of 1"),
        ("adapters.-1.rank=3", "'-1' is not an index"),
        ("adapters.one=3", "'one' is not an index"),
        ("adapters.\N{SUPERSCRIPT TWO}=3", "is not an index"),
        ("run.sub=3", "run is not a section"),
        ("run.sub.key=3", "is not a section"),
        ("base={a: 1, a: 2}", "not valid YAML"),
        ("base=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides(pretrain(), [override])
    assert repr(override) in str(caught.value)
    assert message in str(caught.value)


def test_an_unknown_key_in_an_override_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(finetune()))
    assert load_recipe(path, ["training.epochs=7"]).training.epochs == 7
    with pytest.raises(InputError, match=r"training\.learning_rte\. Did you mean learning_rate\?"):
        load_recipe(path, ["training.learning_rte=1"])


# ---------------------------------------------------------------------- round trip and presets


@pytest.mark.parametrize("label", TABLE_3)
def test_a_dumped_recipe_is_the_same_recipe(label: str, tmp_path: Path) -> None:
    recipe = parse_recipe(finetune(adapters=TABLE_3[label], training={"epochs": 2}, select="loss"), "my.yaml")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)
    assert stack_label(again.adapters) == label


@pytest.mark.parametrize("file", PRESET_FILES, ids=[str(file.relative_to(PRESETS)) for file in PRESET_FILES])
def test_every_preset_is_a_recipe(file: Path) -> None:
    name = file.relative_to(PRESETS).with_suffix("")
    recipe = load_recipe(name)
    assert load_recipe(file) == recipe
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), str(name)) == recipe


def test_reading_a_recipe_does_not_import_torch(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(finetune()))
    code = (
        "import sys, pathlib, clinstack.recipe as r; r.load_recipe(pathlib.Path(sys.argv[1]));"
        "print(sorted({'torch', 'transformers', 'peft', 'duckdb', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
