"""The verb `scan`: identifiers in notes before training, and in what a model writes after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()


def scan_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Notes, instructions, a Run of generate, tables or texts.", show_default=False
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="Column of text; several.", show_default="the usual ones")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="patterns, lists:FOLDER, presidio[:MODEL], or module:attribute; several.", show_default="patterns"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file of positions and kinds, without text.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that search.")] = 1,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 if any identifier is found.")] = False,
    fail_on: Annotated[
        str | None, typer.Option(help="Exit with 1 if one of these kinds is found, with commas.", show_default=False)
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="identifiers.csv.gz of a synthetic cohort: recall and precision.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")] = False,
) -> None:
    """Count names, dates, numbers and other identifiers in texts; the texts themselves are never shown."""
    from clinstack.cli_prepare import bars
    from clinstack.notes.scan import ScanOptions, check_kinds, scan
    from clinstack.notes.scan_truth import ScanTruth

    kinds = check_kinds(word.strip() for word in (fail_on or "").split(",") if word.strip())
    options = ScanOptions(tuple(engine or ("patterns",)), tuple(text or ()), out, workers)
    judge = ScanTruth(truth) if truth is not None else None
    with bars() as update:
        result = scan(paths, options, update, judge)
    if judge is not None:
        result["truth"] = judge.figures()
        result["forms"] = judge.forms()
    found = result["kinds"]
    failed = bool(found and fail) or any(kind in found for kind in kinds)
    if as_json:
        print(json.dumps({**result, "failed": failed}))
    else:
        _show(result, out)
    if failed:
        raise typer.Exit(1)


def _show(result: dict[str, Any], out: Path | None) -> None:
    for entry in result["files"]:
        where = f"{entry['file']}: {entry['column']}" if entry["column"] else entry["file"]
        console.print(
            f"{escape(where)}: {entry['texts']:,} texts, {entry['identifiers']:,} identifiers", soft_wrap=True
        )
    table = Table("kind", "found", "per 1,000 texts", "texts", "patients")
    for kind, counts in result["kinds"].items():
        numbers = (counts["found"], counts["per_1000_texts"], counts["texts"], counts["patients"])
        table.add_row(kind, *(f"{number:,}" for number in numbers))
    if result["kinds"]:
        console.print(table)
    console.print(
        f"{result['identifiers']:,} identifiers in {result['texts_with_identifiers']:,} of {result['texts']:,} texts"
        + (
            f", of {result['patients_with_identifiers']:,} of {result['patients']:,} patients"
            if result["patients"]
            else ""
        )
        + f"; {result['placeholders']:,} placeholders of an earlier de-identification."
    )
    if "truth" in result:
        _show_truth(result["truth"])
    console.print("No search finds every identifier: a count of 0 is no proof that there is none.")
    if out is not None:
        console.print(f"Positions are in {escape(str(out))}.")


def _show_truth(figures: dict[str, Any]) -> None:
    table = Table("kind", "known", "recall", "precision", "F1", "other formats", "recall there")

    def cell(estimate: dict[str, Any]) -> str:
        if estimate["value"] is None:
            return "-"
        low, high = estimate["interval"] or (None, None)
        return f"{estimate['value']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")

    for kind, entry in figures.items():
        table.add_row(
            kind, f"{entry['known']:,}", cell(entry["recall"]), cell(entry["precision"]), cell(entry["f1"]),
            f"{entry['held_out_known']:,}", cell(entry["held_out_recall"]),
        )  # fmt: skip
    console.print(table)
