"""What of recipes would break without a network: bases of the hub, endpoints, trackers, databases, missing extras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clinstack import offline
from clinstack.doctor import EXTRAS, Finding, cached_base, is_installed
from clinstack.endpoint.hosts import host_of
from clinstack.errors import InputError
from clinstack.recipe import StageRecipe, StudyRecipe, SweepRecipe, TrainingStageRecipe, load_recipe, read_yaml
from clinstack.recipe.reading import recipe_file


def recipe_findings(name: str) -> Iterator[Finding]:
    """Yield what a recipe, or a preset, needs that this machine lacks or that is elsewhere.

    Raises
    ------
    InputError
        If there is no such recipe, or it is wrong.
    """
    found = list(dict.fromkeys(_of_file(name)))
    yield from found or [Finding(name, "needs nothing from beyond this machine")]


def _of_file(name: str) -> Iterator[Finding]:
    values = read_yaml(recipe_file(Path(name)))
    if "stage" not in values and isinstance(values.get("endpoint"), dict):  # of `clinstack synthesize`
        yield from _extra(name, "endpoint", "synthesize")
        yield from _host(name, "endpoint.base_url", host_of(str(values["endpoint"].get("base_url", ""))))
        return
    yield from _of_recipe(name, load_recipe(Path(name)))


def _of_recipe(name: str, recipe: StageRecipe) -> Iterator[Finding]:
    if isinstance(recipe, SweepRecipe):
        from clinstack.sweep.space import Space

        if recipe.storage not in {"journal", "sqlite"}:
            yield from _extra(name, "storage", "postgres")
            yield from _host(name, "storage", host_of(recipe.storage))
        yield from _of_recipe(name, Space.of(recipe).example)
        return
    if isinstance(recipe, StudyRecipe):
        from clinstack.study.grid import grid_cells
        from clinstack.study.study import resolve, study_cells

        resolved = resolve(recipe)
        cells = [one.cell for one in grid_cells(resolved)] if resolved.is_grid else study_cells(resolved)
        for cell in cells:
            # An adapter that is not there yet is made by another cell.
            yield from (one for one in _of_recipe(name, cell.recipe) if not one.what.startswith("adapters."))
        return
    if isinstance(recipe, TrainingStageRecipe):
        yield from _of_training(name, recipe)
    values = recipe.model_dump()
    if isinstance(values.get("stack"), str):
        yield from _stack(name, values["stack"], values.get("base"))
    elif not isinstance(recipe, TrainingStageRecipe) and isinstance(values.get("base"), str):
        yield from _base(name, "base", values["base"])
    if isinstance(values.get("endpoint"), dict):
        yield from _extra(name, "endpoint", "synthesize")
        yield from _host(name, "endpoint.base_url", host_of(values["endpoint"]["base_url"]))
    if recipe.stage == "align":
        yield from _extra(name, "stage: align", "align")
    if values.get("quantize") not in {None, "none"}:
        yield from _extra(name, "quantize", "quantized")
    if values.get("privacy") is not None:
        yield from _extra(name, "privacy", "private")


def _of_training(name: str, recipe: TrainingStageRecipe) -> Iterator[Finding]:
    yield from _base(name, "base", recipe.base)
    for index, adapter in enumerate(recipe.adapters):
        # What is not there yet may still be trained: it breaks nothing that a network would mend.
        if adapter.path is not None and not Path(adapter.path).exists():
            yield Finding(
                name, f"adapters.{index}.path: {adapter.path} is not here", "note", "Train it first, or copy it here."
            )
    tracker = recipe.training.tracking
    if tracker in {"wandb", "mlflow"}:
        from clinstack.engine.tracking import is_remote_tracking

        if not is_installed(tracker):
            yield Finding(name, f"training.tracking: {tracker} is not installed", "breaks", "Choose tensorboard.")
        elif is_remote_tracking(tracker):
            what = f"training.tracking: the environment sends {tracker} to another machine"
            yield Finding(name, what, "breaks", "Choose tensorboard, or unset the tracker's variables.")


def _base(name: str, key: str, base: str) -> Iterator[Finding]:
    from clinstack.model.base import EMBEDDED_FOLDERS, locate_base, split_pin
    from clinstack.model.manifest import MANIFEST_FILE

    place = split_pin(base)[0]
    if place in EMBEDDED_FOLDERS:
        return
    folder = Path(place) if Path(place).is_dir() else cached_base(place)
    if folder is None:
        remedy = "Copy the model here and name its folder, or bring the hub's cache; see docs/closed-network.md."
        yield Finding(name, f"{key}: {base} is not on this machine", "breaks", remedy)
        return
    try:
        locate_base(str(folder))
    except InputError as error:
        yield Finding(name, f"{key}: {str(error).removeprefix('base: ')}", "breaks", "Copy the base again.")
        return
    if not any(folder.glob("*.safetensors")):
        yield Finding(name, f"{key}: {base} has no *.safetensors", "breaks", "Bring its weights as safetensors.")
    elif (folder / MANIFEST_FILE).is_file():
        yield Finding(name, f"{key}: {base} is here, with a manifest")
    else:
        remedy = f"`clinstack base manifest {folder}` pins its files."
        yield Finding(name, f"{key}: {base} is here, without a manifest", "note", remedy)


def _stack(name: str, stack: str, base: Any) -> Iterator[Finding]:
    from clinstack.model.lineage import read_stack_record, stack_folder

    try:
        record = read_stack_record(stack_folder(Path(stack)))
    except InputError as error:
        yield Finding(name, f"stack: {error}", "breaks", "Copy the Run or the Stack here.")
        return
    yield from _base(name, "base" if base else "the stack's base", str(base or record["base"]["id"]))


def _host(name: str, key: str, host: str) -> Iterator[Finding]:
    if offline.is_allowed(host):
        yield Finding(name, f"{key}: {host or 'this machine'}")
    else:
        remedy = f"Name it in {offline.ALLOWED} if it is in the closed network, else use one on this machine."
        yield Finding(name, f"{key}: {host} is another machine", "breaks", remedy)


def _extra(name: str, key: str, extra: str) -> Iterator[Finding]:
    missing = [package for package in EXTRAS[extra] if not is_installed(package)]
    if missing:
        remedy = f"pip install 'clinstack[{extra}]' from the wheels that were carried in."
        yield Finding(name, f"{key}: {', '.join(missing)} is not installed", "breaks", remedy)
