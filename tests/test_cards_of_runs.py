"""The cards that the stages themselves write, when a training has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.stack import Stack
from clinstack.recipe import FinetuneRecipe, PretrainRecipe, parse_recipe
from clinstack.stages.finetune import finetune
from clinstack.stages.pretrain import pretrain
from tiny_notes import CANARY, write_tiny_notes

FILES = {"README.md", "TRIPOD-LLM.md", "tripod-llm.json", "chai.json", "chai.xml"}


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining and a head on its frozen adapter, on Notes that call themselves MIMIC's."""
    root = tmp_path_factory.mktemp("alice")
    notes = write_tiny_notes(root / "notes")
    write_json(notes / "prepare.json", {"source": "mimic3", "synthetic": False, "seed": 0})
    shared = {"base": str(tiny_base), "evaluation": {"resamples": 100}}
    training = {"epochs": 1, "max_steps": 2, "batch_size": 4}
    first = {"run": str(root / "pretrain"), "notes": str(notes), "context": 64, "training": training}
    adapters: list[dict[str, object]] = [{"name": "clinical", "rank": 2, "alpha": 4}]
    recipe = parse_recipe(shared | first | {"adapters": adapters}, "test", "pretrain")
    assert isinstance(recipe, PretrainRecipe)
    pretrain(recipe)
    second = {"run": str(root / "task"), "examples": str(notes / "examples" / "mortality"), "max_tokens": 32}
    adapters = [{"name": "clinical", "path": str(root / "pretrain")}]
    recipe = parse_recipe(shared | second | {"adapters": adapters, "training": training}, "test", "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    finetune(recipe)
    return root


@pytest.mark.parametrize("name", ["pretrain", "task"])
def test_a_trained_stack_has_its_cards(runs: Path, name: str) -> None:
    folder = runs / name / "stack"
    assert {path.name for path in folder.iterdir() if path.is_file()} >= FILES
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Not to be published openly: it was trained on MIMIC-III" in text
    card: Any = ModelCard(text)
    data = card.data.to_dict()
    assert data["license"] == "other"
    assert data["pipeline_tag"] == ("text-generation" if name == "pretrain" else "text-classification")
    assert "base_model" not in data  # a folder of this machine
    assert read_json(folder / "tripod-llm.json")["stack"] == sha256_file(folder / "stack.json")
    Stack.load(folder)  # trips over none of them


@pytest.mark.parametrize("name", ["pretrain", "task"])
def test_nothing_of_patients_or_of_this_machine_is_in_them(runs: Path, tiny_base: Path, name: str) -> None:
    patients = [f"p{number:03d}" for number in range(60)]
    for file in FILES:
        text = (runs / name / "stack" / file).read_text(encoding="utf-8")
        for marker in (CANARY, *CANARY.split(), *patients, str(runs), str(tiny_base), "alice"):
            assert marker not in text, (file, marker)


def test_the_lineage_of_a_task_names_what_its_parents_read(runs: Path) -> None:
    text = (runs / "task" / "stack" / "README.md").read_text(encoding="utf-8")
    assert "| pretrain | MIMIC-III | no | **no** |" in text
    assert "| finetune | MIMIC-III | no | **no** |" in text
    assert "| 1 | `clinical` | LoRA | no: frozen |" in text
