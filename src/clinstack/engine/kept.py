"""The frozen stack of the last Run, kept in memory for the next one: a sweep's trials differ above it only.

With features from the disk a trial takes seconds; loading, hashing and checking the stack took most of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clinstack.engine.distributed import world
from clinstack.model.base import begin_head, find_base
from clinstack.model.building import derived_seed
from clinstack.model.families import DECODER_HEAD
from clinstack.model.stack import Stack
from clinstack.recipe import FinetuneRecipe
from clinstack.tasks import Task


@dataclass
class KeptStack:
    """A stack, and the hash of its frozen tensors where a training has already asked for it.

    Parameters
    ----------
    stack : Stack
    key : str
        What it was built from, without the seed of its head.
    frozen : str or None
    """

    stack: Stack
    key: str
    frozen: str | None = None


_kept: KeptStack | None = None


def open_stack(recipe: FinetuneRecipe, task: Task, inputs: Mapping[str, str], build: Callable[[], Stack]) -> KeptStack:
    """Return the stack of a recipe: the kept one with a new head where it is the same below the head, else a new one.

    Parameters
    ----------
    inputs : mapping of str to str
        Hashes of the files that the Run reads, the adapters' weights among them.
    build : callable
        Builds the stack.
    """
    global _kept
    taken, _kept = _kept, None
    facts = {
        "base": find_base(recipe.base).fingerprint,
        "recipe": recipe.model_dump(mode="json", include={"base", "adapters", "dtype", "quantize", "pooling", "layer"}),
        "inputs": dict(inputs),
        "task": [task.name, task.kind, *task.classes],
        "prepared": [recipe.training.gradient_checkpointing, recipe.training.compile],
    }
    key = json.dumps(facts, sort_keys=True)
    if taken is None or taken.key != key:
        return KeptStack(build(), key)
    begin_head(taken.stack.network, derived_seed(recipe.training.seed, DECODER_HEAD))
    taken.stack.calibration = None
    taken.stack.settle()
    return taken


def keep_stack(opened: KeptStack, frozen: str | None) -> None:
    """Keep a stack for the next Run of this process, if nothing below its head trains.

    ``frozen`` is the hash of its frozen tensors before any training; each training that comes to its end is held
    against it, so nothing that changed them stays unseen.
    """
    global _kept
    if opened.stack.backbone_is_frozen and world().size == 1:
        opened.frozen, _kept = frozen, opened
