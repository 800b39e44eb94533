"""What `clinstack validate` checks and shows: the recipe, the files it names, its base, and what it would train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.errors import InputError
from clinstack.recipe import (
    AuditRecipe,
    FinetuneRecipe,
    InstructRecipe,
    PredictRecipe,
    PretrainRecipe,
    StageRecipe,
    StudyRecipe,
    SweepRecipe,
    TrainingStageRecipe,
)
from clinstack.tasks import Task

if TYPE_CHECKING:
    from clinstack.model.support import Support
    from clinstack.recipe.canaries import CanariesRecipe
    from clinstack.recipe.privacy import PrivacyRecipe


def validate_recipe(recipe: StageRecipe, console: Console) -> None:
    """Check a recipe as far as that goes without reading weights or notes, and print what it comes to.

    Raises
    ------
    InputError
        For what the stage itself would refuse sooner or later; with the key and the remedy.
    """
    _check_files(recipe)
    if isinstance(recipe, TrainingStageRecipe):
        from clinstack.model.support import check_support

        task = Task.load(Path(recipe.examples)) if isinstance(recipe, FinetuneRecipe) else None
        if task is not None and isinstance(recipe, FinetuneRecipe):
            from clinstack.engine.losses import check_loss

            check_loss(task, recipe.loss)
        show_support(recipe, check_support(recipe, len(task.classes) if task else None), console)
        if recipe.privacy is not None:
            console.print(_privacy_line(recipe, recipe.privacy))
        if isinstance(recipe, PretrainRecipe | InstructRecipe) and recipe.canaries is not None:
            console.print(_canaries_line(recipe, recipe.canaries))
    if isinstance(recipe, InstructRecipe):
        from clinstack.model.base import load_tokenizer, locate_base
        from clinstack.tokens.prompts import Prompt

        Prompt.of(recipe.prompt, load_tokenizer(locate_base(recipe.base)))
    if isinstance(recipe, PredictRecipe):
        from clinstack.stages.predict import check_predict

        check_predict(recipe)
    if isinstance(recipe, AuditRecipe):
        from clinstack.audit.target import find_target

        find_target(recipe)
    if isinstance(recipe, StudyRecipe):
        _validate_study(recipe, console)
    if isinstance(recipe, SweepRecipe):
        from clinstack.sweep.propose import number_of_trials
        from clinstack.sweep.space import Space

        space = Space.of(recipe)
        console.print(f"{number_of_trials(recipe, space)} trials; the first values of the space make this recipe:")
        validate_recipe(space.example, console)
    console.print(f"The recipe is good: {recipe.stage} into [bold]{escape(recipe.run)}[/].")


def _validate_study(recipe: StudyRecipe, console: Console) -> None:
    from clinstack.study.grid import check_equal_budgets, grid_cells
    from clinstack.study.preview import cost_table
    from clinstack.study.study import grid_costs, means_of, resolve, study_cells

    resolved = resolve(recipe)
    if not resolved.is_grid:
        for cell in study_cells(resolved):
            console.print(f"cell [bold]{escape(cell.name)}[/]")
            validate_recipe(cell.recipe, console)
        return
    cells = grid_cells(resolved)
    if resolved.equal_budgets:
        check_equal_budgets(cells)
    means = means_of(resolved, [one.cell for one in cells])
    console.print(cost_table(cells, grid_costs(cells, means), means.workers, "What the study is"))


def _check_files(recipe: StageRecipe) -> None:
    from clinstack.notes.instructions import instruction_files
    from clinstack.notes.preferences import preference_files
    from clinstack.notes.read import examples_files, notes_files

    if isinstance(recipe, StudyRecipe):
        return  # its cells are looked at one by one
    values = recipe.model_dump()
    if values.get("notes"):
        notes_files(Path(values["notes"]))
    if values.get("instructions"):
        instruction_files(Path(values["instructions"]))
    if values.get("preferences"):
        preference_files(Path(values["preferences"]))
    if values.get("examples"):
        examples_files(Path(values["examples"]))
    for index, adapter in enumerate(values.get("adapters", ())):
        if adapter.get("path") and not Path(adapter["path"]).exists():
            raise InputError(f"adapters.{index}.path: {adapter['path']} does not exist.")


def show_support(recipe: TrainingStageRecipe, support: Support, console: Console) -> None:
    """Print the base, what is put on it with its parameters, and the notes."""
    held = recipe.dtype if recipe.quantize == "none" else f"{recipe.quantize}, {recipe.dtype}"
    table = Table(
        title=f"{escape(support.base.name)}\n{support.architecture}, {held}", title_style="", show_footer=True
    )
    whole = support.parameters + sum(part.parameters for part in support.parts if not part.what.startswith("full"))
    table.add_column("part", footer="trainable")
    table.add_column("")
    table.add_column("method")
    table.add_column("parameters", justify="right", footer=f"{support.trainable:,}")
    table.add_column("share", justify="right", footer=_share(support.trainable, whole))
    table.add_row("base", "frozen", "", f"{support.parameters:,}", _share(support.parameters, whole))
    for part in support.parts:
        state = "[green]trainable[/]" if part.trainable else "frozen"
        share = _share(part.parameters, whole)
        table.add_row(escape(part.name), state, escape(part.what), f"{part.parameters:,}", share)
    console.print(table)
    for note in support.notes:
        console.print(f"[yellow]note[/] {escape(note)}")


def _privacy_line(recipe: TrainingStageRecipe, privacy: PrivacyRecipe) -> str:
    """Say what the training would cost, with the noise that it would take."""
    from clinstack.privacy.guarantee import guarantee, planned_steps

    patients = _training_patients(recipe)
    planned = guarantee(privacy, patients, planned_steps(privacy, recipe.training, patients))
    return (
        f"private: {planned['steps']:,} steps of {privacy.patients_per_step} of {patients:,} training patients, noise "
        f"multiplier {planned['noise_multiplier']:.3g}: epsilon {planned['epsilon']:.3g} at delta "
        f"{planned['delta']:.2g} for each patient ({planned['accountant']})"
    )


def _canaries_line(recipe: PretrainRecipe | InstructRecipe, canaries: CanariesRecipe) -> str:
    """Say how many canaries the training plants, and what that takes."""
    *others, last = map(str, canaries.sorted_repetitions)
    often = f"{', '.join(others)} and {last}" if others else last
    unit = "training notes" if isinstance(recipe, PretrainRecipe) else "training answers"
    return (
        f"canaries: {canaries.count} are planted in {canaries.copies:,} {unit}, {often} copies of each"
        f"{' in turn' if others else ''}; {canaries.count} controls are not planted"
    )


def _training_patients(recipe: TrainingStageRecipe) -> int:
    """Count the patients that a stage would train on, by the columns of identifiers alone."""
    import pyarrow.parquet as pq

    from clinstack.notes.instructions import instruction_files
    from clinstack.notes.read import notes_files
    from clinstack.notes.splits import splits_of

    if isinstance(recipe, FinetuneRecipe):
        rows = pq.read_table(Path(recipe.examples) / "train.parquet", columns=["patient_id"])
        return len(set(rows["patient_id"].to_pylist()))
    if isinstance(recipe, PretrainRecipe):
        folder, files = Path(recipe.notes), notes_files(Path(recipe.notes))
        kind, wanted = "note_type", recipe.note_types
    else:
        assert isinstance(recipe, InstructRecipe)
        folder, files = Path(recipe.instructions), instruction_files(Path(recipe.instructions))
        kind, wanted = "task", recipe.tasks
    found: set[str] = set()
    for file in files:
        if file.name != "splits.parquet":
            rows = pq.read_table(file, columns=["patient_id"] if wanted is None else ["patient_id", kind])
            kinds = [None] * len(rows) if wanted is None else rows[kind].to_pylist()
            ids = zip(rows["patient_id"].to_pylist(), kinds, strict=True)
            found |= {patient for patient, one in ids if wanted is None or one in wanted}
    split_of = splits_of(folder, found, "privacy")
    return [split_of[patient] for patient in found].count("train")


def _share(parameters: int, whole: int) -> str:
    return f"{100 * parameters / whole:.3g} %"
