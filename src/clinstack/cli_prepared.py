"""The verbs of `clinstack prepare` that take a prepared folder: its sheet, what is wrong with it, its export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from clinstack.cli_prepare import bars, console, prepare_app


@prepare_app.command("datasheet")
def prepare_datasheet(
    data: Annotated[Path, typer.Argument(help="Folder written by clinstack prepare.")],
    tokenizer: Annotated[str, typer.Option(help="Folder with tokenizer.json, or embedded.")] = "embedded",
    small_cells: Annotated[int, typer.Option(help="Hide counts of people and labels below this; 1 shows all.")] = 10,
) -> None:
    """Write DATASHEET.md of a prepared folder again, with another tokenizer or other small cells."""
    from clinstack.notes.sheet.datasheet import write_datasheet

    with bars() as update:
        path = write_datasheet(data, tokenizer, small_cells=small_cells, progress=update)
    console.print(f"Written: {escape(str(path))} and datasheet.json beside it.")


@prepare_app.command("check")
def prepare_check(
    data: Annotated[Path, typer.Argument(help="Folder written by `clinstack prepare`.", show_default=False)],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Prepared folder whose notes a model is pretrained on; may be repeated.", show_default=False),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Smallest similarity that is reported.")] = 0.8,
    minimum_words: Annotated[int, typer.Option(help="Shorter texts are not compared.")] = 10,
    drop: Annotated[
        bool, typer.Option("--drop", help="Leave out the training side of what is found; test examples stay.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if something is found.")] = False,
    json_line: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Test examples repeated in training or pretraining, and phrases that give a label away."""
    from clinstack.notes.contamination.check import check_prepared
    from clinstack.notes.contamination.check_tables import contamination_tables, leakage_tables, summary_line

    with bars() as update:
        report, leakage = check_prepared(data, against or [], threshold, drop, minimum_words, update)
    for shown in (*contamination_tables(report), *leakage_tables(leakage)):
        console.print(shown)
    console.print(f"Written to {escape(str(data))}: contamination.json and leakage.json.")
    if json_line:
        typer.echo(summary_line(report, leakage))
    if strict and report["total"]:
        raise typer.Exit(1)


@prepare_app.command("meds")
def prepare_meds(
    data: Annotated[Path, typer.Argument(help="Folder written by clinstack prepare, with admissions.parquet.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    task: Annotated[list[str] | None, typer.Option(help="A task to export, repeatable; all without it.")] = None,
    run: Annotated[Path | None, typer.Option(help="Finetune Run whose predictions to export.")] = None,
    classes: Annotated[str, typer.Option(help="Of multilabel tasks: all, top:N in training, or codes.")] = "all",
    prediction_time: Annotated[
        str | None, typer.Option(help="admitted or discharged; by default as the texts were prepared.")
    ] = None,
) -> None:
    """Export labels, and a Run's predictions, in the Medical Event Data Standard (MEDS)."""
    from clinstack.notes.meds.export import export_meds

    with bars() as update:
        result = export_meds(data, out, task, run, classes, prediction_time, update)
    if result["synthetic"]:
        console.print("[yellow]Synthetic: everyone in these tables is invented.")
    for kind in ("tasks", "predictions"):
        for name, facts in result[kind].items():
            folders = f"; one folder for each of {len(facts['folders'])} classes" if "folders" in facts else ""
            samples = ", ".join(f"{split} {count:,}" for split, count in facts["samples"].items())
            console.print(f"  {kind}/{escape(name)}: {samples}{folders}")
    console.print(f"Prediction time: {result['prediction_time']}. Subject ids: {escape(result['subject_ids'])}.")
    console.print(f"Written to {escape(str(out))}.")
