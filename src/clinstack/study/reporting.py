"""The report of whatever stands in a folder: Runs, a study, or several of them beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.recipe import StudyRecipe, load_recipe
from clinstack.report.study_file import STUDY_FILE
from clinstack.study.table2 import TablePaths, write_table2


class Written(Protocol):
    """What a report wrote."""

    @property
    def html(self) -> Path:
        """The page."""

    @property
    def markdown(self) -> Path:
        """The same tables as Markdown."""

    @property
    def json(self) -> Path:
        """And as JSON."""

    def show(self, console: Console) -> None:
        """Print the main tables."""


def report_folders(
    folders: Sequence[Path], out: Path | None = None, *, examples: int = 0, with_note_text: bool = False
) -> Written:
    """Write the report of a folder of Runs, of a study, or of several folders beside each other.

    Parameters
    ----------
    folders : sequence of Path
    out : Path, optional
        Folder to write into.
    examples : int
        So many questions are shown with the answers of all models.
    with_note_text : bool
        Show them also where the patients are not invented.

    Raises
    ------
    InputError
        A folder is none, or holds nothing finished; or examples are asked for where there are none to show.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder.")
    if len(folders) > 1:
        from clinstack.report.side_by_side import build_comparison

        return build_comparison(folders, out, examples=examples, with_note_text=with_note_text)
    root = folders[0]
    if examples and any((root / name).is_file() for name in (STUDY_FILE, "study.yaml")):
        raise InputError(f"--examples: {root} is a study, and has no answers to questions; leave it out.")
    if (root / STUDY_FILE).is_file():
        from clinstack.report.study_report import write_study_report

        return write_study_report(root, out=out)
    if (root / "study.yaml").is_file():
        return report_table2(root, out)
    from clinstack.report.build import build_report

    return build_report(root, out, examples=examples, with_note_text=with_note_text)


def report_table2(root: Path, out: Path | None = None) -> TablePaths:
    """Write Table 2 of the finished cells of a study that lists pretraining recipes.

    Raises
    ------
    InputError
        No cell is done.
    """
    recipe = load_recipe(root / "study.yaml", stage="study")
    assert isinstance(recipe, StudyRecipe)
    done: dict[str, tuple[Path, str | None]] = {}
    waiting: dict[str, str] = {}
    for cell in recipe.chosen:
        record = root / cell.name / "run.json"
        if record.is_file() and read_json(record).get("status") == "done":
            done[cell.name] = root / cell.name, cell.paper
        else:
            waiting[cell.name] = "it is not done"
    if not done:
        raise InputError(f"{root}: none of the study's {len(waiting)} cells is done; run the study first.")
    return write_table2(root, done, waiting, recipe.evaluation, out)
