"""Write ``report.html``, ``report.md`` and ``report.json`` from the Runs below a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinstack.files import write_json
from clinstack.report.answers_beside import EXAMPLES, example_table
from clinstack.report.collect import ReportData, RunRecord
from clinstack.report.console import console_tables
from clinstack.report.figures.drawing import Drawings, draw
from clinstack.report.judged import SECTION as JUDGED
from clinstack.report.judged import TITLE as JUDGED_TITLE
from clinstack.report.judged import judged_dict, judged_runs, judged_sentences, judged_tables
from clinstack.report.pages import TABLES, Gallery, Page, Remark, Section, banner, shared_facts, write_page
from clinstack.report.rows import collect
from clinstack.report.sentences import findings, frozen_sentences
from clinstack.report.summary import Summary, summarise
from clinstack.report.tables.answers import answer_sentences, answer_tables
from clinstack.report.tables.cells import Table
from clinstack.report.tables.codes import code_file
from clinstack.report.tables.listing import all_tables
from clinstack.report.tables.subgroups import subgroup_sentences
from clinstack.report.tuning import tuning_tables

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "Adapter stacks on clinical notes"
_MOST_DIFFERENCES = 80
"""So many are shown whole; of more, the page shows the mean over tasks, and each task when asked."""
_APPENDIX = ("budgets", "runs")


@dataclass(frozen=True)
class ReportPaths:
    """What a report wrote, and the figures in it."""

    html: Path
    markdown: Path
    json: Path
    summary: Summary

    def show(self, console: Console) -> None:
        """Print the main tables."""
        for table in console_tables(self.summary):
            console.print(table)


def build_report(
    root: Path,
    out: Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
    *,
    examples: int = 0,
    with_note_text: bool = False,
) -> ReportPaths:
    """Write the report of all finished Runs below ``root``.

    Each file appears whole or not at all. The same Runs, resamples and seed give the same bytes.

    Parameters
    ----------
    root : Path
        Folder with Runs at any depth.
    out : Path, optional
        Folder to write into; ``root`` by default.
    resamples, seed : int
        Of the bootstrap over patients.
    examples : int
        So many questions are shown with the answers of all models; the only text of notes that a report ever holds.
    with_note_text : bool
        Show them also where the patients are not invented.

    Raises
    ------
    InputError
        See `collect`, `summarise` and `example_table`.
    """
    data = collect(root)
    commands = [f"clinstack {run.stage} {_recipe_path(run, root)}" for run in data.runs]
    commands.append(f"clinstack report {root.name or '.'}{f' --examples {examples}' if examples else ''}")
    summary = summarise(data, resamples, seed)
    shown = example_table(summary.answers, examples, with_note_text=with_note_text, seed=seed)
    return write_report(summary, root if out is None else out, TITLE, commands, examples=shown)


def write_report(
    summary: Summary,
    folder: Path,
    title: str,
    commands: Sequence[str],
    *,
    sections: Sequence[Section] = (),
    examples: Table | None = None,
    further: Mapping[str, Any] | None = None,
) -> ReportPaths:
    """Write the report of figures that are there.

    Parameters
    ----------
    summary : Summary
    folder : Path
        Where to write.
    title : str
    commands : sequence of str
        That make it again.
    sections : sequence of Section
        Between the findings and the rest.
    examples : Table, optional
        Questions and answers beside each other.
    further : mapping, optional
        Keys for ``report.json``.
    """
    data = summary.data
    tables = all_tables(summary)
    by_key = {table.key: table for table in tables}
    page = Page(
        title=title,
        caveat=data.caveat,
        banner=banner(data),
        sections=[
            Section("findings", "Findings", findings(summary)),
            *sections,
            *_sections(summary, by_key, draw(summary), examples),
        ],
        reproduce="Each run keeps its resolved recipe; the same recipe on the same inputs gives the same run. To make "
        "them again elsewhere, pass run=… with another folder.",
        commands=commands,
        facts=facts_of(data, summary),
        appendix=[by_key[key] for key in _APPENDIX if key in by_key],
        wide=len(summary.tasks) > 4 or bool(summary.answers.runs),
    )
    files = {f"codes-{task}.csv": code_file(summary, task) for task in summary.tasks if f"codes-{task}" in by_key}
    if examples is None:
        # An earlier report's table of texts would stay, unseen, among the tables of one that promises to hold none.
        (folder / TABLES / f"{EXAMPLES}.tex").unlink(missing_ok=True)
    paths = write_page(folder, "report", page, files)
    write_json(paths.json, summary.to_dict() | judged_dict(data.further) | dict(further or {}))
    return ReportPaths(paths.html, paths.markdown, paths.json, summary)


def _sections(
    summary: Summary, tables: Mapping[str, Table], figures: Drawings, examples: Table | None
) -> list[Section]:
    answers = answer_tables(summary.answers)
    judges = judged_runs(summary.data.further)
    frozen = frozen_sentences(summary)
    short = len(summary.comparison.differences) <= _MOST_DIFFERENCES
    codes = [table for key, table in tables.items() if key.startswith("codes-")]

    def blocks(*wanted: str | Gallery | Remark | Table | None) -> list[Table | Gallery | Remark]:
        known = [tables.get(one) if isinstance(one, str) else one for one in wanted]
        return [one for one in known if one is not None and not (isinstance(one, Gallery) and not one.drawings)]

    return [
        Section("the-data", "What it was measured on", blocks=blocks("data", "tests")),
        Section(
            "language",
            "How well the notes are predicted",
            blocks=blocks("perplexity", Gallery([*figures.perplexity, *figures.pretraining]), "note-types"),
        ),
        Section(
            "outcomes",
            "How well the outcomes are predicted",
            blocks=blocks(
                "auroc",
                "paper",
                Gallery(figures.roc),
                "auprc",
                Gallery(figures.precision_recall, "Precision and recall"),
            ),
        ),
        Section(
            "contrasts",
            "What each adapter adds",
            blocks=blocks(
                Remark("Is the second adapter there at all?", frozen) if frozen else None,
                Gallery(figures.forest if short else figures.forest[:1]),
                "differences",
                None if short else Gallery(figures.forest[1:], "Paired differences by task"),
            ),
        ),
        Section(
            "answers",
            "How well questions are answered",
            answer_sentences(summary.answers),
            blocks=blocks(
                *answers[:1],
                Gallery(figures.answers),
                *answers[1:],
                *tuning_tables(summary.data.further),
                examples,
            ),
        ),
        Section(JUDGED, JUDGED_TITLE, judged_sentences(judges), blocks=judged_tables(judges)),
        Section(
            "use",
            "What it would be like to use",
            blocks=blocks(
                "f1",
                "operating-points",
                "calibration",
                Gallery(figures.calibration, "Reliability diagrams"),
                Gallery(figures.decision, "Decision curves"),
            ),
        ),
        Section(
            "subgroups",
            "For whom it works",
            subgroup_sentences(summary),
            blocks=[table for key, table in tables.items() if key.startswith("subgroups-")],
        ),
        Section("classes", "Class by class", blocks=codes),
        Section("training", "How training went", blocks=blocks(Gallery(figures.learning, "Learning curves"))),
    ]


def facts_of(data: ReportData, summary: Summary | None = None) -> list[tuple[str, str]]:
    """Return what a page says at its end: bases, intervals, versions, machine."""
    bases = sorted({f"{run.base} ({run.stack.get('fingerprint')})" for run in data.runs if run.stack})
    intervals = (
        ""
        if summary is None
        else f"95 %, percentile bootstrap of whole patients, {summary.resamples:,} resamples, seed {summary.seed}; "
        "the same draws for all stacks and tasks. A class that lost one of its labels in a resample is left out of its "
        "mean."
    )
    facts = [
        ("Base model", "; ".join(bases)),
        ("Intervals", intervals),
        ("Versions", ", ".join(shared_facts(data.runs, "versions"))),
        ("Machine", ", ".join(shared_facts(data.runs, "hardware"))),
    ]
    return [(name, fact) for name, fact in facts if fact]


def _recipe_path(run: RunRecord, root: Path) -> str:
    # The root's own name only: the way to it is this machine's business.
    inside = run.folder.relative_to(root).as_posix()
    return "/".join(part for part in (root.name, inside if inside != "." else "", "recipe.yaml") if part)
