"""The trials of `clinstack study demo/table3` by the published loop; `downstream.py` starts processes of this file.

``python downstream_study.py STUDY PART PARTS [TRIALS]`` trains every PARTS-th search of a study, of each
the first TRIALS learning rates (all without), and prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any


def searches_of(study: Path) -> list[Any]:
    """Return the sweeps of a study, by its resolved recipe."""
    from clinstack.recipe import SweepRecipe, load_recipe
    from clinstack.study.grid import grid_cells

    cells = grid_cells(load_recipe(study / "study.yaml", stage="study"))
    return [one.cell.recipe for one in cells if isinstance(one.cell.recipe, SweepRecipe)]


def trials_of(search: Any) -> list[Any]:
    """Return the recipes of a grid search's trials, by learning rate."""
    from clinstack.sweep.space import Space

    space = Space.of(search)
    rates = search.space["training.learning_rate"].choices
    return [space.recipe_of({"training.learning_rate": rate}, Path("unused")) for rate in rates]


def train_searches(study: Path, part: int, parts: int, most: int | None) -> dict[str, Any]:
    """Train, and return CPU seconds of the process's start, of each trial, and the test AUROCs."""
    import peft  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from published_classifier import open_cell

    # All that the loop imports is there now.
    started = time.process_time()
    torch.set_num_threads(1)
    trials = []
    with tempfile.TemporaryDirectory() as temporary:
        for search in searches_of(study)[part::parts]:
            recipes = trials_of(search)
            for recipe in islice(recipes, most):
                begun = time.process_time()
                figures, _ = open_cell(recipe).run(Path(temporary) / "best_model.pt")
                cpu = time.process_time() - begun
                rate, auroc = recipe.training.learning_rate, figures["test_auroc"]
                of = len(recipes)
                trials.append({"search": search.run, "rate": rate, "of": of, "cpu": cpu, "auroc": auroc})
    return {"start": started, "trials": trials}


if __name__ == "__main__":
    # Whatever libraries print goes to stderr.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit = int(sys.argv[4]) if len(sys.argv) > 4 else None
    answer.write(json.dumps(train_searches(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), limit)) + "\n")
