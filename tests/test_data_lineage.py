"""What a stack says it was trained on: collected when it is trained, inherited by what is trained on it, never lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clinstack.errors import InputError
from clinstack.files import read_json, sha256_file, write_json
from clinstack.model.base import find_base
from clinstack.model.data_lineage import (
    UNKNOWN,
    DataSource,
    data_of,
    data_of_base,
    notes_source,
    openly_publishable,
    rule,
    training_data,
)
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, parse_recipe
from clinstack.stages.finetune import finetune
from clinstack.stages.pretrain import pretrain

MIMIC = DataSource("mimic3", False, "sha256:1", "pretrain", False)
COHORT = DataSource("mimic3", True, "sha256:2", "finetune", True)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"source": "mimic3", "synthetic": False}, False),
        ({"source": "mimic4", "synthetic": False}, False),
        ({"source": "mimic4"}, False),
        ({"source": "mimic3", "synthetic": True}, True),
        ({"source": "oracle", "synthetic": True}, True),
        ({"source": "oracle", "synthetic": False}, None),
        ({"source": "table", "synthetic": False}, None),
        ({"source": "table", "synthetic": True}, None),
        ({"source": "asclepius", "synthetic": True}, None),
        ({}, None),
    ],
)
def test_rules(facts: dict[str, Any], verdict: bool | None) -> None:
    assert rule(facts) is verdict


def test_one_that_forbids_outweighs_the_rest_and_nothing_recorded_is_unknown() -> None:
    assert openly_publishable([COHORT]) is True
    assert openly_publishable([COHORT, UNKNOWN]) is None
    assert openly_publishable([COHORT, UNKNOWN, MIMIC]) is False
    assert openly_publishable(None) is openly_publishable([]) is None


def test_notes_without_prepare_json_are_unknown_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert notes_source(tmp_path, "align") == DataSource(stage="align")
    (tmp_path / "prepare.json").write_text("{")
    with pytest.raises(InputError, match=r"prepare\.json is damaged"):
        notes_source(tmp_path, "align")


def test_a_stack_from_before_says_nothing_and_what_is_trained_on_it_is_unknown(clinical: Path, tiny_base: Path) -> None:
    assert "data" not in read_json(clinical / "stack.json")
    assert Stack.load(clinical).data is None
    adapters = [AdapterRecipe(name="clinical", path=str(clinical))]
    base = find_base(str(tiny_base))
    assert training_data(Path("nowhere"), "finetune", adapters, base) == (UNKNOWN, DataSource(stage="finetune"))
    alone = [AdapterRecipe(name="clinical", path=str(clinical / "clinical"))]
    assert training_data(Path("nowhere"), "finetune", alone, base)[0] == UNKNOWN


def test_damaged_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"data: .* is damaged"):
        data_of({"data": ["mimic3"]})


def test_an_exported_base_brings_its_lineage(tiny_base: Path, tmp_path: Path) -> None:
    assert data_of_base(find_base(str(tiny_base))) == ()
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    write_json(tmp_path / "export.json", {"data": [MIMIC.to_dict()]})
    assert training_data(Path("nowhere"), "finetune", [], find_base(str(base)))[0] == MIMIC
    (tmp_path / "export.json").unlink()
    write_json(base / "export.json", {"data": None})
    assert data_of_base(find_base(str(base))) == (UNKNOWN,)


def test_stages_record_what_they_and_those_before_them_read(tiny_base: Path, tiny_notes: Path, tmp_path: Path) -> None:
    """From Notes that say MIMIC to a clinical adapter, and from other Notes on it to a task: both are named."""
    real = Path(shutil.copytree(tiny_notes, tmp_path / "real"))
    write_json(real / "prepare.json", {"source": "mimic3", "synthetic": False})
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}
    common = {"base": str(tiny_base), "training": training, "evaluation": {"resamples": 100}}
    first = common | {"run": str(tmp_path / "clinical"), "notes": str(real), "context": 64}
    recipe: Any = parse_recipe(first | {"adapters": [{"name": "clinical", "rank": 2}]}, "test", "pretrain")
    pretrain(recipe)
    second = common | {"run": str(tmp_path / "task"), "examples": str(tiny_notes / "examples" / "mortality")}
    adapters = [{"name": "clinical", "path": str(tmp_path / "clinical")}]
    recipe = parse_recipe(second | {"adapters": adapters, "max_tokens": 16}, "test", "finetune")
    finetune(recipe)
    record = read_json(tmp_path / "task" / "stack" / "stack.json")
    assert record["data"] == [
        {
            "source": "mimic3",
            "synthetic": False,
            "prepare": sha256_file(real / "prepare.json"),
            "stage": "pretrain",
            "openly_publishable": False,
        },
        {
            "source": "test",
            "synthetic": True,
            "prepare": sha256_file(tiny_notes / "prepare.json"),
            "stage": "finetune",
            "openly_publishable": None,
        },
    ]
    loaded = Stack.load(tmp_path / "task")
    assert openly_publishable(loaded.data) is False
    card = (tmp_path / "task" / "stack" / "clinical" / "README.md").read_text()
    assert "- `mimic3` (pretrain): may not be published openly" in card
    assert "- `test` (finetune, synthetic): not known whether it may be published" in card


def test_saving_again_keeps_the_lineage(clinical: Path, tmp_path: Path, perturbed: Callable[..., Stack]) -> None:
    stack = Stack.load(clinical)
    stack.data = (MIMIC, COHORT)
    stack.save(tmp_path / "stack")
    assert Stack.load(tmp_path / "stack").data == (MIMIC, COHORT)
    assert json.loads((tmp_path / "stack" / "stack.json").read_text())["data"][1]["openly_publishable"] is True
