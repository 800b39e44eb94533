"""``study.json``: what a grid's cells are, for the report and for other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clinstack.files import write_json
from clinstack.notes.read import is_synthetic
from clinstack.recipe import StudyRecipe, TrainingStageRecipe
from clinstack.study.grid import GridCell, budget
from clinstack.study.published import published_auroc

FORMAT_VERSION = 1
NAME = "study.json"


def write_record(
    root: Path, recipe: StudyRecipe, cells: Sequence[GridCell], failures: Mapping[str, str] | None = None
) -> None:
    """Write the study's record.

    Parameters
    ----------
    root : Path
        Folder of the study.
    recipe : StudyRecipe
        Resolved.
    cells : sequence of GridCell
    failures : mapping of cell name to reason, optional
        How cells ended that did not come to their end.
    """
    notes = Path(str(recipe.notes))
    write_json(
        root / NAME,
        {
            "format_version": FORMAT_VERSION,
            "table": recipe.table,
            "title": recipe.title,
            "synthetic": is_synthetic(notes),
            "notes": recipe.notes,
            "tasks": list(recipe.tasks),
            "seeds": list(recipe.seeds),
            "equal_budgets": recipe.equal_budgets,
            "cells": [_entry(recipe, one, (failures or {}).get(one.cell.name)) for one in cells],
        },
    )


def _entry(recipe: StudyRecipe, one: GridCell, failure: str | None) -> dict[str, Any]:
    spec, stage_recipe = one.spec, one.cell.recipe
    return {
        "name": one.cell.name,
        "role": one.role,
        "base": one.base.head,
        "base_id": recipe.base or one.base.base,
        "spec": None if spec is None else spec.label,
        "row": None if spec is None else spec.row_on(one.base),
        "task": one.task,
        "seed": one.seed,
        # A cell's name is its folder.
        "run": one.cell.name,
        "budget": _budget(one),
        "paper": _printed(recipe, one),
        "stage": stage_recipe.stage,
        "failure": failure,
    }


def _budget(one: GridCell) -> dict[str, Any]:
    recipe = one.cell.recipe
    if one.role == "final":
        return budget(one)
    if isinstance(recipe, TrainingStageRecipe):
        training = recipe.training
        return {
            "trials": one.trials,
            "epochs": training.epochs,
            "max_steps": training.max_steps,
            "batch_size": training.batch_size * training.accumulate,
        }
    return {"trials": one.trials}


def _printed(recipe: StudyRecipe, one: GridCell) -> float | None:
    """Return the paper's figure of this base, stack and task, in per cent."""
    if one.role != "final" or one.base.paper is None or one.spec is None or one.task is None:
        return None
    return published_auroc(recipe.table, one.base.paper, one.spec.label, one.task)
