"""The verb `clinstack prepare preferences`, and what `clinstack align` shows of its Run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from clinstack.cli_prepare import bars, console, prepare_app
from clinstack.cli_scrub import scrubbed
from clinstack.errors import InputError

if TYPE_CHECKING:
    from clinstack.run import Run


@prepare_app.command("preferences")
@scrubbed
def prepare_preferences(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    judge: Annotated[
        Path | None, typer.Option(help="Judge Run: the better scored answer is chosen.", show_default=False)
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(help="Generate Run, repeatable: a grounded answer is chosen, an ungrounded one rejected."),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="With --answers: the instructions' own answers take part.")
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(help="csv, Parquet or JSON lines that has its pairs: prompt, chosen, rejected, patient_id."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="With --table: NAME=COLUMN where a column has another name, repeatable.", show_default=False),
    ] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="Folder of the questions, where it is no longer where the Runs found it.")
    ] = None,
    margin: Annotated[float, typer.Option(help="With --judge: scores at least so far apart.")] = 1.0,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="With --table: everyone in it is invented.")] = False,
    seed: Annotated[int, typer.Option(help="Of ties, and of a table's split by patient.")] = 0,
) -> None:
    """Make preference pairs for align: by a judge, by grounding, or out of a table."""
    if sum(source is not None for source in (judge, table, answers or None)) != 1:
        raise InputError("Give one of --judge RUN, --answers RUN (repeatable) and --table FILE.")
    if table is None and column:
        raise InputError("--column: only a table's columns have other names; leave it out.")
    if table is None and synthetic:
        raise InputError("--synthetic: only with --table; instructions say it of themselves.")
    if reference and not answers:
        raise InputError("--reference: only with --answers; a judge scores the reference where its recipe says so.")
    from clinstack.notes.preference_pairs import pairs_from_grounding, pairs_from_judge, read_answers
    from clinstack.notes.preference_table import pairs_from_table

    with bars() as update:
        if judge is not None:
            result = pairs_from_judge(out, judge, instructions, margin, seed, update)
        elif table is not None:
            result = pairs_from_table(out, table, _columns(column or []), seed, update, synthetic=synthetic)
        else:
            found = read_answers(answers or [])
            result = pairs_from_grounding(out, found, instructions, reference=reference, seed=seed, progress=update)
    show_pairs(result, out)


def _columns(words: list[str]) -> dict[str, str]:
    wrong = next((word for word in words if "=" not in word), None)
    if wrong is not None:
        raise InputError(f"--column {wrong}: write NAME=COLUMN.")
    return {name: column for name, _, column in (word.partition("=") for word in words)}


def show_pairs(result: dict[str, object], out: Path) -> None:
    """Print what was made, and what was left out."""
    from clinstack.files import read_json

    if result["synthetic"]:
        console.print("[yellow]Synthetic: everyone in these notes is invented.")
    content = read_json(out / "preferences" / "attrition.json")
    for step in content["steps"]:
        removed = f" ({step['removed']:,} left out)" if step["removed"] else ""
        console.print(f"  {step['step']}: {step['kept']:,}{removed}")
    for split, counts in content["splits"].items():
        console.print(f"  {split}: {counts['pairs']:,} pairs of {counts['patients']:,} patients")
    console.print(f"Written to {escape(str(out))}.")


def show_alignment(run: Run) -> None:
    """Print what alignment changed on the test patients, or on the validation patients where there are no others."""
    from clinstack.files import read_json

    metrics = read_json(run.folder / "metrics.json")
    split = "test" if "test" in metrics else "validation_chosen"
    figures = metrics[split]
    table = Table("", "before", "after", title=f"{split.partition('_')[0]}: {figures['pairs']:,} pairs")
    for name, words in (("prefers_chosen", "prefers the chosen answer"), ("prefers_chosen_per_token", "by the token")):
        table.add_row(words, _figure(figures[name]["before"]), _figure(figures[name]["after"]))
    table.add_row("reward margin", "0", _figure(figures["reward_margin"]))
    for kind, figure in figures["log_ratio_per_token"].items():
        table.add_row(f"log ratio of a token, {kind}", "0", _figure(figure))
    table.add_row("KL from the reference, a token", "0", _figure(figures["kl_per_token"]))
    console.print(table)


def _figure(figure: dict[str, Any]) -> str:
    """Write a value and its interval; either is None where the data cannot tell."""
    if figure["value"] is None:
        return "unknown"
    if figure["interval"] is None:
        return f"{figure['value']:.3f}"
    low, high = figure["interval"]
    return f"{figure['value']:.3f}  [{low:.3f}, {high:.3f}]"
