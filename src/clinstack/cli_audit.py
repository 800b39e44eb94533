"""The verb `clinstack audit`: can a stack give away a patient?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.errors import InputError
from clinstack.recipe import apply_overrides, load_recipe, parse_recipe, recipe_file
from clinstack.recipe.audit import AuditRecipe

if TYPE_CHECKING:
    from clinstack.run import Run

_COLORS = {"clean": "green", "leaking": "red", "inconclusive": "yellow"}
_FILES = {"html": "audit.html", "json": "audit.json", "sacro": "audit.sacro.json"}
console = Console()


def audit_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN-or-STACK [KEY=VALUE]...", help="What is audited, or a recipe or preset; and overrides."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; what the audit's Run holds is deleted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")] = False,
) -> None:
    """Attack a stack: canaries, membership, extraction; a verdict, and a report for whoever decides on its release."""
    recipe = read_audit_recipe(arguments or [])
    from clinstack.stages.audit import audit as stage

    show_audit(stage(recipe, fresh=fresh), as_json)


def read_audit_recipe(words: list[str]) -> AuditRecipe:
    """Read ``RUN-or-STACK [KEY=VALUE]...``, or a recipe in its place.

    Raises
    ------
    InputError
        If there is neither, or more than one.
    """
    named = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if len(named) > 1:
        raise InputError(f"{named[1]!r}: one Run, Stack or recipe only; an override has the form key.sub=value.")
    if named and recipe_file(Path(named[0])).is_file():
        recipe = load_recipe(Path(named[0]), overrides, "audit")
    elif named:
        # As an override, so that a name which YAML reads as a number stays a name.
        recipe = parse_recipe({"stack": named[0]} | apply_overrides({}, overrides), "command line", "audit")
    elif overrides:
        recipe = parse_recipe(apply_overrides({}, overrides), "command line", "audit")
    else:
        raise InputError("Name what is audited: `clinstack audit RUN-or-STACK`.")
    assert isinstance(recipe, AuditRecipe)  # by the stage
    return recipe


def show_audit(run: Run, as_json: bool) -> None:
    """Say what an audit came to."""
    report = json.loads((run.folder / "audit.json").read_text(encoding="utf-8"))
    paths = {name: str(run.folder / file) for name, file in _FILES.items()}
    if as_json:
        keys = ("verdict", "sentence", "findings")
        line = {"run": str(run.folder), "status": run.record["status"], **{key: report[key] for key in keys}}
        print(json.dumps({**line, "paths": paths}))
        return
    if report["synthetic"]:
        console.print("[yellow]Synthetic data: these figures say nothing about medicine.")
    console.print(findings_table(report["findings"]))
    verdict = report["verdict"]
    console.print(
        f"[bold {_COLORS[verdict]}]{verdict}[/]  {escape(report['sentence'])}", soft_wrap=True, highlight=False
    )
    console.print(f"Report: [bold]{escape(paths['html'])}[/]", soft_wrap=True)


def findings_table(findings: list[dict[str, Any]]) -> Table:
    """Return the findings as a table for the terminal."""
    from clinstack.privacy.finding_names import finding_name

    table = Table("finding")
    for name in ("value", "95 % interval", "threshold", "verdict"):
        table.add_column(name, no_wrap=True)
    for item in findings:
        ends = item["interval"]
        between = "" if ends is None or None in ends else f"{ends[0]:.3g} to {ends[1]:.3g}"
        value = "unknown" if item["value"] is None else f"{item['value']:.3g}"
        color = _COLORS[item["verdict"]]
        table.add_row(
            finding_name(item["name"]), value, between, f"{item['threshold']:g}", f"[{color}]{item['verdict']}[/]"
        )
    return table
