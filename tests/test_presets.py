"""Every recipe that ships with the package: it parses, and says how it is launched."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest

from clinstack.recipe import PRESETS, PretrainRecipe, StudyRecipe, load_recipe, read_yaml
from clinstack.study.published import TABLE2, PublishedRow, published_row
from clinstack.study.study import study_cells

NOT_RECIPES = {"accelerate", "deepspeed"}
"""Folders of other programs' configurations."""
NAMES = sorted(
    str(path.relative_to(PRESETS).with_suffix(""))
    for path in PRESETS.rglob("*.yaml")
    if not NOT_RECIPES & set(path.relative_to(PRESETS).parts)
)
GEMA = [name for name in NAMES if name.startswith("gema2023/pretrain/")]


def test_the_published_methods_are_there() -> None:
    methods = ("adaption_prompt", "lora", "p_tuning", "prefix", "prompt")
    assert [f"gema2023/pretrain/{base}/{method}" for base in ("llama", "pmc-llama") for method in methods] == GEMA
    assert {"demo/finetune", "demo/pretrain", "demo/table2", "gema2023/table2"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_recipe_and_names_its_launch(name: str) -> None:
    recipe = load_recipe(Path(name))
    comment = [line for line in (PRESETS / f"{name}.yaml").read_text("utf-8").splitlines() if line.startswith("#")]
    assert any(f"clinstack {recipe.stage} {name}" in line for line in comment)
    # The list of presets shows the first line: what the recipe is, not how it is launched.
    assert comment
    assert "clinstack" not in comment[0].split()[:2]
    if isinstance(recipe, StudyRecipe):
        assert study_cells(recipe)


@pytest.mark.parametrize("name", GEMA)
def test_what_is_published_is_the_same_in_all_presets(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert isinstance(recipe, PretrainRecipe)
    training = recipe.training
    assert (recipe.context, training.learning_rate, training.epochs, training.max_steps) == (128, 3e-4, 1, None)
    assert (training.batch_size, training.accumulate) == (10, 4)
    assert (training.schedule, training.warmup_ratio, training.weight_decay) == ("linear", 0.06, 0.01)
    assert (training.seed, recipe.dtype) == (1234, "float16")


@pytest.mark.parametrize("name", GEMA)
def test_a_preset_has_the_printed_number_of_parameters(name: str) -> None:
    """Counted here for a base of 32 layers and width 4,096, from what PEFT's methods are made of."""
    adapter = read_yaml(PRESETS / f"{name}.yaml")["adapters"][0]
    half, method = name.split("/")[2:]
    paper = published_row({"llama": "LLaMA", "pmc-llama": "PMC-LLaMA"}[half], method)
    assert paper is not None
    assert parameters(adapter, layers=32, width=4096) == paper.trainable_parameters
    assert f"{paper.trainable_parameters:,}" in (PRESETS / f"{name}.yaml").read_text("utf-8")


def parameters(adapter: dict[str, Any], layers: int, width: int) -> int:
    tokens, hidden = adapter.get("virtual_tokens", 0), adapter.get("encoder_hidden", 0)

    def linear(*shape: int) -> int:
        return prod(shape) + shape[1]

    match adapter["method"], adapter.get("encoder"):
        case "lora", _:
            return int(layers * len(adapter["target_modules"]) * 2 * width * adapter["rank"])
        case "adaption_prompt", _:
            return int(adapter["adapter_layers"] * (adapter["adapter_length"] * width + 1))
        case "prefix", _:
            return int(tokens * layers * 2 * width)
        case "prompt", _:
            return int(tokens * width)
        case "p_tuning", "mlp":
            return int(tokens * width + linear(width, hidden) + linear(hidden, hidden) + linear(hidden, width))
        case "p_tuning", "lstm":
            inputs = [width, *[2 * hidden] * (adapter["encoder_layers"] - 1)]
            cells = sum(2 * (4 * hidden * (size + hidden) + 8 * hidden) for size in inputs)
            return int(tokens * width + cells + linear(2 * hidden, 2 * hidden) + linear(2 * hidden, width))
    raise AssertionError(adapter)


@pytest.mark.parametrize("row", TABLE2, ids=lambda row: f"{row.base}-{row.method}")
def test_the_printed_shares_are_those_of_seven_billion(row: PublishedRow) -> None:
    """A check of what was copied: count over share is the size of LLaMA-7B, 6.7e9, within the rounding of the share."""
    digits = len(row.share.partition(".")[2])
    assert abs(100 * row.trainable_parameters / 6.738e9 - float(row.share)) <= 0.51 * 10**-digits + 1e-9
