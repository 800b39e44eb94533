"""The verbs of `clinstack prepare` that make instructions: a released table, or rules that read the cohort's notes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from clinstack.cli_prepare import attrition_table, bars, console, prepare_app
from clinstack.cli_scrub import scrubbed


@prepare_app.command("asclepius")
@scrubbed
def prepare_asclepius(
    source: Annotated[
        Path,
        typer.Argument(help="A file (.csv, .parquet, .jsonl, also .gz), or a folder of them.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="What a column is called in the table, such as note=text; for note, question, answer, patient_id, "
            "task, example_id. Repeatable.",
            show_default="the same names",
        ),
    ] = None,
    asclepius_filters: Annotated[
        bool,
        typer.Option(
            "--asclepius-filters",
            help="The published filters: no model that speaks of itself, no answer that is a question.",
        ),
    ] = False,
    task: Annotated[str, typer.Option(help="Task of rows without one.")] = "Question Answering",
    seed: Annotated[int, typer.Option(help="Of the split by patient.")] = 0,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="The notes are invented, as those of the released data set are.")
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="For the data sheet.", show_default="the released data set's, for its columns"),
    ] = None,
    notes: Annotated[bool, typer.Option(help="Write the table of notes too, for pretraining.")] = True,
) -> None:
    """Asclepius' released instructions, or any table of notes, questions and answers, to instructions."""
    from clinstack.notes.asclepius.prepare import AsclepiusOptions
    from clinstack.notes.asclepius.prepare import prepare_asclepius as prepare
    from clinstack.notes.asclepius.tables import parse_columns

    columns = parse_columns(column or [])
    options = AsclepiusOptions(columns, asclepius_filters, task, seed, synthetic, license_, notes)
    with bars() as update:
        result = prepare(source, out, options, update)
    if result["patients_are_notes"]:
        console.print(
            "[yellow]The table has no patient_id: each distinct note was taken for a patient. Where a patient has "
            "several notes, name the column with --column patient_id=NAME."
        )
    if result["task_of_all"]:
        console.print(f"[yellow]The table has no task: every row is {escape(result['task_of_all'])}.")
    if result["license"]:
        console.print(f"License: {escape(result['license'])}.")
    _show(result, out)


@prepare_app.command("oracle")
@scrubbed
def prepare_oracle(
    notes: Annotated[
        Path, typer.Argument(help="Folder of Notes prepared from the synthetic cohort.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Of the choice of pairs and of their wordings.")] = 0,
    pairs: Annotated[
        int | None, typer.Option(help="Pairs in all.", show_default="every one that the rules make")
    ] = None,
    unanswerable: Annotated[float, typer.Option(help="Share of questions that the note does not answer.")] = 0.15,
    note_type: Annotated[
        list[str] | None, typer.Option(help="Only these notes; repeatable.", show_default="all")
    ] = None,
    longest: Annotated[
        int | None, typer.Option(help="Leave out notes of more characters.", show_default="none")
    ] = None,
    any_notes: Annotated[
        bool, typer.Option("--any-notes", help="Also notes that are not the cohort's; the answers may be wrong.")
    ] = False,
) -> None:
    """Questions about the synthetic cohort's notes, answered by rules that know how they are written."""
    from clinstack.notes.oracle.prepare import OracleOptions
    from clinstack.notes.oracle.prepare import prepare_oracle as prepare

    options = OracleOptions(seed, pairs, unanswerable, tuple(note_type) if note_type else None, longest, any_notes)
    with bars() as update:
        result = prepare(notes, out, options, update)
    if result["synthetic"]:
        console.print("[yellow]Synthetic: everyone in these notes is invented, and the questions are made by rules.")
    for name in result["tasks_left_out"]:
        console.print(f"[yellow]No pair of {escape(name)}: no rule can make one of these notes.")
    _show(result, out)


def _show(result: dict[str, Any], out: Path) -> None:
    """Show what each step kept, the rows of each task and the patients of each split."""
    from clinstack.files import read_json

    steps = read_json(out / "instructions" / "attrition.json")["steps"]
    console.print(attrition_table([{"task": "instructions", **step} for step in steps]))
    counts = result["counts"]
    for name, count in counts["tasks"].items():
        console.print(f"  {escape(name)}: {count:,}")
    patients = ", ".join(f"{name} {count:,}" for name, count in counts["patients"].items())
    console.print(
        f"{counts['instructions']:,} instructions of {sum(counts['patients'].values()):,} patients ({patients})."
    )
    console.print(f"Written to {escape(str(out))}; DATASHEET.md there describes it.")
