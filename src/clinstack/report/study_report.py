"""The report of a grid study: the table of the paper that its cells end in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clinstack.report.build import ReportPaths, write_report
from clinstack.report.study_file import collect_study, read_study
from clinstack.report.summary import summarise

if TYPE_CHECKING:
    from clinstack.recipe import EvaluationRecipe


def write_study_report(
    root: Path,
    evaluation: EvaluationRecipe | None = None,
    failures: Mapping[str, str] | None = None,
    out: Path | None = None,
) -> ReportPaths:
    """Write ``report.html``, ``report.md`` and ``report.json`` of a grid study's finished Runs.

    Parameters
    ----------
    root : Path
        The study's folder, with ``study.json``.
    evaluation : EvaluationRecipe, optional
        Resamples and seed of the bootstrap over patients; 1,000 and 0 without it.
    failures : mapping of cell name to reason, optional
        Cells that failed; they are named.
    out : Path, optional
        Folder to write into; ``root`` by default.

    Returns
    -------
    ReportPaths
        Whose ``show(console)`` prints the main tables.

    Raises
    ------
    InputError
        ``study.json`` or a Run cannot be read, no Run of a row is finished, or rows were tested on other examples.
    """
    study = read_study(root)
    resamples, seed = (1000, 0) if evaluation is None else (evaluation.resamples, evaluation.seed)
    summary = summarise(collect_study(root, failures), resamples, seed)
    commands = [f"clinstack study {root.name}/study.yaml", f"clinstack report {root.name}"]
    title = str(study.get("title") or "Adapter stacks on clinical notes")
    return write_report(summary, root if out is None else out, title, commands, further={"table": study.get("table")})
