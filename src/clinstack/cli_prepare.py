"""The verbs of `clinstack prepare`: a source becomes Notes. Each function parses and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.cli_scrub import scrubbed
from clinstack.errors import InputError

prepare_app = typer.Typer(help="Source tables to Notes.", no_args_is_help=True)
console = Console()
_VENTILATION = "Prolonged ventilation"


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
    identifiers: Annotated[
        bool,
        typer.Option("--identifiers", help="Invented names, dates, numbers and addresses in the notes, and where."),
    ] = False,
    list_traps: Annotated[
        bool, typer.Option("--list-traps", help="Name the traps and end.", is_eager=True, callback=_list_traps)
    ] = False,
) -> None:
    """Invent a hospital: tables with MIMIC-III's names and columns, all of it synthetic."""
    from clinstack.notes.cohort import write_cohort

    if patients is None and notes is None:
        patients = 1000
    with bars() as update:
        rows = write_cohort(
            out, patients, seed, update,
            notes=notes, workers=workers, compress=gzip, traps=trap or (), split_lists=split_lists,
            identifiers=identifiers,
        )  # fmt: skip
    console.print("[yellow]Synthetic: everyone in these tables is invented.")
    _print_counts(rows, "rows")
    console.print(
        f"Written to {escape(str(out))}. Next: clinstack prepare mimic3 --source {escape(str(out))} --out DATA"
    )


@prepare_app.command("mimic3")
@scrubbed
def prepare_mimic3(
    source: Annotated[
        str,
        typer.Option(help="Folder of MIMIC-III's tables (.csv, .csv.gz, .parquet), a DuckDB file, or postgresql://…"),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    compat: Annotated[
        str | None,
        typer.Option(help="official: as the published scripts, bit for bit.", show_default="their errors put right"),
    ] = None,
    text: Annotated[str, typer.Option(help="admission: what was known on admission; full: whole summaries.")] = (
        "admission"
    ),
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, with commas between them.", show_default="all that the source has")
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            help="Folder of mimic_train.csv, mimic_val.csv and mimic_test.csv.", show_default="70/10/20 by patient"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split by patient.")] = 0,
    export_csv: Annotated[
        Path | None,
        typer.Option(help="Also write the published files, into mp, los, dia and pro here.", show_default=False),
    ] = None,
    notes: Annotated[bool, typer.Option(help="Write the table of all notes, for pretraining.")] = True,
    minimum_count: Annotated[int, typer.Option(help="Training admissions that make a code a class.")] = 10,
    v_codes: Annotated[int, typer.Option(help="Characters that make the category of a V code: 3, or 4.")] = 3,
    keep_errors: Annotated[bool, typer.Option("--keep-errors", help="Keep notes marked as errors.")] = False,
    addenda_alone: Annotated[
        bool, typer.Option("--addenda-alone", help="Keep admissions with addenda and no report.")
    ] = False,
    ventilation: Annotated[
        str,
        typer.Option(
            help="Ventilation from charted events, a table of durations, or a file of labels.",
            rich_help_panel=_VENTILATION,
        ),
    ] = "events",
    ventilation_labels: Annotated[
        Path | None,
        typer.Option(
            help="The file for --ventilation labels: HADM_ID, label.",
            show_default=False,
            rich_help_panel=_VENTILATION,
        ),
    ] = None,
    use_file_split: Annotated[
        bool,
        typer.Option(
            "--use-file-split", help="Keep that file's split, which is by admission.", rich_help_panel=_VENTILATION
        ),
    ] = False,
    ventilation_rule: Annotated[
        str,
        typer.Option(
            help="span: first start to last end plus 6 hours; sum: of the durations.", rich_help_panel=_VENTILATION
        ),
    ] = "span",
    ventilation_days: Annotated[
        float, typer.Option(help="Days that make ventilation prolonged.", rich_help_panel=_VENTILATION)
    ] = 7,
    ventilation_text: Annotated[
        str,
        typer.Option(
            help="admission: as the other tasks; before: notes written before ventilation.",
            rich_help_panel=_VENTILATION,
        ),
    ] = "admission",
    ventilation_stays: Annotated[
        str,
        typer.Option(help="first: ICU stay of an admission; all: each, as published.", rich_help_panel=_VENTILATION),
    ] = "first",
    ventilation_without: Annotated[
        str | None,
        typer.Option(
            help="Leave out head_neck_cancer, neuromuscular, burns, donors: those named, with commas.",
            show_default="none",
            rich_help_panel=_VENTILATION,
        ),
    ] = None,
    ventilation_minimum: Annotated[
        float, typer.Option(help="Days ventilated that an admission needs.", rich_help_panel=_VENTILATION)
    ] = 0,
    ventilation_noted: Annotated[
        bool,
        typer.Option("--ventilation-noted", help="Need a nursing note within 48 hours.", rich_help_panel=_VENTILATION),
    ] = False,
) -> None:
    """MIMIC-III's tables, or the cohort's, to Notes and the five outcome tasks."""
    from clinstack.notes.mimic3.options import Mimic3Options
    from clinstack.notes.mimic3.prepare import prepare_mimic3 as prepare
    from clinstack.notes.ventilation.options import VentilationOptions

    options = Mimic3Options(
        compat,  # type: ignore[arg-type]  # checked there, as are the literals below
        splits,
        export_csv,
        notes,
        v_codes,
        keep_errors,
        addenda_alone,
        VentilationOptions(
            source=ventilation,  # type: ignore[arg-type]
            file=ventilation_labels,
            definition=ventilation_rule,  # type: ignore[arg-type]
            days=ventilation_days,
            text=ventilation_text,  # type: ignore[arg-type]
            stays=ventilation_stays,  # type: ignore[arg-type]
            exclusions=tuple(listed(ventilation_without) or ()),
            minimum_days=ventilation_minimum,
            early_note=ventilation_noted,
            use_file_split=use_file_split,
        ),
    )
    with bars() as update:
        result = prepare(source, out, seed, text, listed(tasks), minimum_count, update, options)  # type: ignore[arg-type]
    if result["synthetic"]:
        console.print("[yellow]Synthetic: everyone in these tables is invented.")
    _show_attrition(out)
    for name in result["tasks_left_out"]:
        console.print(f"[yellow]{name} is left out: the source has none of its tables.")
    outside = result["counts"].get("patients_in_no_list")
    if outside:
        console.print(f"[yellow]{outside:,} patient(s) of ADMISSIONS are in none of the split lists and left out.")
    console.print(f"Written to {escape(str(out))}; DATASHEET.md there describes it.")


def listed(words: str | None) -> list[str] | None:
    """Return words that stand with commas between them, None for none at all."""
    return None if words is None else [word.strip() for word in words.split(",") if word.strip()]


def _show_attrition(out: Path) -> None:
    """Show what each step of each task kept, and what each fix changed against the published scripts."""
    from clinstack.notes.attrition import attrition_rows, change_rows

    console.print(attrition_table(attrition_rows(out)))
    changes = [row for row in change_rows(out) if row["rows"]]
    if changes:
        table = Table("task", "fix", "rows", title="Changed against the published scripts")
        before = ""
        for row in changes:
            table.add_row("" if row["task"] == before else row["task"], row["fix"], f"{row['rows']:,}")
            before = row["task"]
        console.print(table)


@prepare_app.command("mimic4")
@scrubbed
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
    from clinstack.notes.mimic4.options import Mimic4Options
    from clinstack.notes.mimic4.prepare import CONTAMINATION
    from clinstack.notes.mimic4.prepare import prepare_mimic4 as prepare

    names = None if tasks is None else [name.strip() for name in tasks.split(",")]
    options = Mimic4Options(
        seed=seed,
        text=text,  # type: ignore[arg-type]  # checked by Mimic4Options, as are icd and ventilation
        tasks=[] if names == ["none"] else names,
        minimum_count=minimum_count,
        icd=icd,  # type: ignore[arg-type]
        icd_map=icd_map,
        icd_procedure_map=icd_procedure_map,
        ventilation=ventilation,  # type: ignore[arg-type]
    )
    with bars() as update:
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


@prepare_app.command("table")
@scrubbed
def prepare_table(
    spec: Annotated[
        Path | None, typer.Argument(help="YAML file that says which column is what.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default=False)] = None,
    check: Annotated[bool, typer.Option("--check", help="Read the first rows, show what is used, write nothing.")] = (
        False
    ),
    example: Annotated[bool, typer.Option("--example", help="Print a commented YAML file to begin with.")] = False,
) -> None:
    """A hospital's own notes and labels to Notes: csv, Parquet, DuckDB, SQLite or PostgreSQL."""
    if example:
        from clinstack.notes.table.spec import EXAMPLE

        typer.echo(EXAMPLE, nl=False)
        return
    if spec is None:
        raise InputError("Name the YAML file; `clinstack prepare table --example` prints one to begin with.")
    if check:
        from clinstack.notes.table.prepare import check_table

        for part in check_table(spec):
            console.print(f"[bold]{part.key}[/] from {escape(part.place)}", soft_wrap=True)
            for name, column, filled in part.columns:
                values = f"  {escape(', '.join(part.values))}" if name == "label" and part.values else ""
                filled_in = f"filled in {filled:,} of {part.rows:,} rows{values}"
                console.print(f"  {name:<14} {escape(column):<20} {filled_in}", soft_wrap=True)
        console.print("These are the first rows of each table. Nothing was written.")
        return
    if out is None:
        raise InputError("Name the folder to write with --out, or look first with --check.")
    from clinstack.notes.table.prepare import prepare_table as prepare

    with bars() as update:
        result = prepare(spec, out, update)
    _print_notes_and_attrition(result, out)


@prepare_app.command("fhir")
@scrubbed
def prepare_fhir(
    source: Annotated[
        Path, typer.Option(help="A file or folder of NDJSON (.ndjson, .jsonl, also .gz) or of Bundles (.json).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tasks: Annotated[
        str | None,
        typer.Option(help="mortality, length_of_stay, with a comma between them; notes alone without it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split by patient.")] = 0,
    text: Annotated[str, typer.Option(help="admission: what was known on admission; full: whole notes.")] = "admission",
    note_types: Annotated[
        list[str] | None, typer.Option("--note-type", help="Only these notes make a task's texts.", show_default="all")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Only notes of so many hours from admission make a task's texts.")
    ] = None,
    encounter_class: Annotated[
        list[str] | None, typer.Option(help="Classes of encounters that are stays.", show_default="IMP ACUTE NONAC")
    ] = None,
    charset: Annotated[str, typer.Option(help="Of attachments that name none.")] = "utf-8",
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Everyone in the export is invented.")] = False,
) -> None:
    """FHIR R4 or R5: DocumentReference, Binary, Encounter and Patient to Notes."""
    from clinstack.notes.fhir.prepare import FhirOptions
    from clinstack.notes.fhir.prepare import prepare_fhir as prepare

    options = FhirOptions(
        tasks=tuple(name.strip() for name in (tasks or "").split(",") if name.strip() not in ("", "none")),
        seed=seed,
        text=text,  # type: ignore[arg-type]  # checked by FhirOptions
        note_types=tuple(note_types) if note_types else None,
        hours=hours,
        encounter_classes=tuple(encounter_class) if encounter_class else None,
        charset=charset,
        synthetic=synthetic,
    )
    with bars() as update:
        result = prepare(source, out, options, update)
    for reason, count in result["counts"]["documents_skipped"].items():
        console.print(f"  skipped, {escape(reason)}: {count:,}")
    _print_notes_and_attrition(result, out)


def _print_notes_and_attrition(result: dict[str, Any], out: Path) -> None:
    from clinstack.notes.attrition import attrition_rows

    counts = result["counts"]
    patients = ", ".join(f"{name} {count:,}" for name, count in counts["patients"].items())
    console.print(f"{counts['notes']:,} notes of {sum(counts['patients'].values()):,} patients ({patients}).")
    if counts["examples"]:
        console.print(attrition_table(attrition_rows(out)))
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


def bars() -> Any:
    """Return the context of a display with one progress bar for each description."""
    from clinstack.engine.progress import named_bars

    return named_bars()
