"""The verbs of `clinstack prepare`: a source becomes Notes. Each function parses and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.errors import InputError

prepare_app = typer.Typer(help="Source tables to Notes.", no_args_is_help=True)
console = Console()


def _list_traps(wanted: bool) -> None:
    if not wanted:
        return
    from clinstack.notes.cohort.traps import TRAPS

    table = Table("trap", "what is planted")
    for name, item in TRAPS.items():
        table.add_row(escape(name), escape(item.shows) + (" [dim](not in all)" if item.alone else ""))
    console.print(table)
    raise typer.Exit()


@prepare_app.command("cohort")
def prepare_cohort(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    patients: Annotated[
        int | None, typer.Option(help="Invented adult patients; 1000, or what suits --notes.", show_default=False)
    ] = None,
    notes: Annotated[
        int | None, typer.Option(help="Long notes of all kinds; MIMIC-III has 2,000,000.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; the files do not depend on it.")] = 1,
    gzip: Annotated[bool, typer.Option("--gzip", help="Write .csv.gz.")] = False,
    trap: Annotated[
        list[str] | None, typer.Option(help="Plant a trap for careless programs; several, or all.", show_default=False)
    ] = None,
    split_lists: Annotated[
        bool, typer.Option("--split-lists", help="Also the official scripts' three lists of patients.")
    ] = False,
    list_traps: Annotated[
        bool, typer.Option("--list-traps", help="Name the traps and end.", is_eager=True, callback=_list_traps)
    ] = False,
) -> None:
    """Invent a hospital: tables with MIMIC-III's names and columns, all of it synthetic."""
    from clinstack.notes.cohort import write_cohort

    if patients is None and notes is None:
        patients = 1000
    with _bars() as update:
        rows = write_cohort(
            out, patients, seed, update,
            notes=notes, workers=workers, compress=gzip, traps=trap or (), split_lists=split_lists,
        )  # fmt: skip
    console.print("[yellow]Synthetic: everyone in these tables is invented.")
    _print_counts(rows, "rows")
    console.print(
        f"Written to {escape(str(out))}. Next: clinstack prepare mimic3 --source {escape(str(out))} --out DATA"
    )


@prepare_app.command("mimic3")
def prepare_mimic3(
    source: Annotated[Path, typer.Option(help="Folder of MIMIC-III's CSV files, plain or gzipped.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Of the split by patient.")] = 0,
    text: Annotated[str, typer.Option(help="admission: what was known on admission; full: whole summaries.")] = (
        "admission"
    ),
    minimum_count: Annotated[int, typer.Option(help="Training admissions that make a code a class.")] = 10,
) -> None:
    """MIMIC-III's tables, or the cohort's, to Notes and the five outcome tasks."""
    if text not in {"admission", "full"}:
        raise InputError(f"--text is {text!r}; use admission or full.")
    from clinstack.notes.attrition import attrition_rows
    from clinstack.notes.mimic3 import prepare_mimic3 as prepare

    with _bars() as update:
        result = prepare(source, out, seed, text, None, minimum_count, update)  # type: ignore[arg-type]  # checked
    if result["synthetic"]:
        console.print("[yellow]Synthetic: everyone in these tables is invented.")
    console.print(attrition_table(attrition_rows(out)))
    console.print(f"Written to {escape(str(out))}.")


@prepare_app.command("mimic4")
def prepare_mimic4(
    source: Annotated[
        str,
        typer.Option(help="MIMIC-IV's folder with hosp/, icu/ and perhaps note/; a DuckDB file, or postgresql://…"),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    notes_source: Annotated[
        str | None, typer.Option(help="Where MIMIC-IV-Note is, when note/ is not in the source.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split by patient.")] = 0,
    text: Annotated[str, typer.Option(help="admission: what was known on admission; full: whole summaries.")] = (
        "admission"
    ),
    tasks: Annotated[
        str | None, typer.Option(help="Tasks with commas between them, or none: notes alone.", show_default="all")
    ] = None,
    minimum_count: Annotated[int, typer.Option(help="Training admissions that make a code a class.")] = 10,
    icd: Annotated[
        str,
        typer.Option(
            help="9 or 10: admissions coded in that version alone; map-to-9, map-to-10: the other one mapped; "
            "both: each label names its version."
        ),
    ] = "9",
    icd_map: Annotated[
        Path | None, typer.Option(help="Mapping of diagnoses: csv of from_code,to_code[,flags].", show_default=False)
    ] = None,
    icd_procedure_map: Annotated[
        Path | None, typer.Option(help="Mapping of procedures, of the same form.", show_default=False)
    ] = None,
    ventilation: Annotated[
        str, typer.Option(help="Prolonged by span (first start to last end) or sum (of the periods), 7 days.")
    ] = "span",
) -> None:
    """MIMIC-IV and MIMIC-IV-Note to Notes and the five outcome tasks."""
    from clinstack.notes.attrition import attrition_rows
    from clinstack.notes.mimic4 import CONTAMINATION
    from clinstack.notes.mimic4 import prepare_mimic4 as prepare
    from clinstack.notes.mimic4_options import Mimic4Options

    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip() not in ("", "none")]
    options = Mimic4Options(
        seed=seed,
        text=text,  # type: ignore[arg-type]  # checked by Mimic4Options, as are icd and ventilation
        tasks=names,
        minimum_count=minimum_count,
        icd=icd,  # type: ignore[arg-type]
        icd_map=icd_map,
        icd_procedure_map=icd_procedure_map,
        ventilation=ventilation,  # type: ignore[arg-type]
    )
    with _bars() as update:
        result = prepare(source, out, options, notes_source, update)
    counts = result["counts"]
    console.print(
        f"Notes read: {counts['notes_read']:,}; kept: {counts['notes_kept']:,}; empty: {counts['notes_empty']:,}; "
        f"repeated within a patient: {counts['notes_repeated_within_a_patient']:,}."
    )
    if result["tasks"]:
        console.print(attrition_table(attrition_rows(out)))
    if {"diagnoses", "procedures"} & set(result["tasks"]):
        console.print(f"Codes: --icd {icd}. Another choice gives other admissions or other labels.")
    for name, reason in result["left_out"].items():
        console.print(f"[yellow]Left out: {name}: {escape(reason)}.")
    console.print(f"[yellow]{CONTAMINATION}.")
    console.print(f"Written to {escape(str(out))}.")


@prepare_app.command("datasheet")
def prepare_datasheet(
    data: Annotated[Path, typer.Argument(help="Folder written by clinstack prepare.")],
    tokenizer: Annotated[str, typer.Option(help="Folder with tokenizer.json, or embedded.")] = "embedded",
    small_cells: Annotated[int, typer.Option(help="Hide counts of people and labels below this; 1 shows all.")] = 10,
) -> None:
    """Write DATASHEET.md of a prepared folder again, with another tokenizer or other small cells."""
    from clinstack.notes.datasheet import write_datasheet

    with _bars() as update:
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
    from clinstack.notes.check import check_prepared
    from clinstack.notes.check_tables import contamination_tables, leakage_table, summary_line

    with _bars() as update:
        report, leakage = check_prepared(data, against or [], threshold, drop, minimum_words, update)
    for shown in (*contamination_tables(report), leakage_table(leakage)):
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
    from clinstack.notes.meds import export_meds

    with _bars() as update:
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


def attrition_table(rows: list[dict[str, Any]]) -> Table:
    """Lay out what each step of each task kept and removed."""
    table = Table("task", "step", "kept", "removed", title="Attrition")
    before = ""
    for row in rows:
        task = "" if row["task"] == before else row["task"]
        table.add_row(task, row["step"], f"{row['kept']:,}", f"{row['removed']:,}")
        before = row["task"]
    return table


def _print_counts(counts: dict[str, int], unit: str) -> None:
    for name, count in counts.items():
        console.print(f"  {name}: {count:,} {unit}")


def _bars() -> Any:
    from clinstack.engine.progress import named_bars

    return named_bars()
