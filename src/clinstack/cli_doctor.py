"""The verb `clinstack doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clinstack.cli_prepare import console
from clinstack.errors import InputError

if TYPE_CHECKING:
    from clinstack.doctor import Finding

_WORDS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "breaks": "[bold red]would break[/]"}


def doctor_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STACK] | [RECIPE]...", help="A Stack or a finished Run; or recipes."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Of a Stack: where the base is on this machine.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Of a Stack: also a line for each layer.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Without a Stack: end with one machine-readable line.")
    ] = False,
) -> None:
    """Explain a Stack and check its invariants; without one, say what this machine has and what would break offline."""
    given = names or []
    if len(given) == 1 and Path(given[0]).is_dir():
        if as_json:
            raise InputError("--json: belongs to doctor without a Stack; leave it out.")
        from clinstack.model.explain import explain

        for item in explain(Path(given[0]), base, with_layers=layers):
            console.print(item)
        return
    if base is not None:
        raise InputError("--base: belongs to a Stack; leave it out.")
    from clinstack.doctor import breaking, machine
    from clinstack.doctor_recipes import recipe_findings
    from clinstack.recipe.reading import recipe_file

    for name in given:
        if "=" in name or Path(name).is_dir():
            raise InputError(f"{name}: name one Stack, or recipes.")
        if not recipe_file(Path(name)).is_file():
            raise InputError(
                f"{name} is neither a Run nor a Stack, and no recipe; `clinstack presets ls` lists those that ship."
            )
    found = [*machine(), *(one for name in given for one in recipe_findings(name))]
    if as_json:
        print(json.dumps({"breaks": len(breaking(found)), "findings": [asdict(one) for one in found], **_facts()}))
    else:
        _show(found)
    if breaking(found):
        raise typer.Exit(1)


def _facts() -> dict[str, dict[str, object]]:
    import torch  # noqa: F401  # so that the environment can say what it sees

    from clinstack.run import environment

    return environment()


def _show(found: Sequence[Finding]) -> None:
    from clinstack.doctor import breaking

    for part, entries in _facts().items():
        console.print(f"[bold]{part}[/]  " + ", ".join(f"{name} {value}" for name, value in entries.items()))
    table = Table(title="Without a network", title_justify="left", title_style="bold")
    table.add_column("where", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("remedy", overflow="fold")
    before = ""
    for one in found:
        if before and one.area != before:
            table.add_section()
        area = "" if one.area == before else escape(one.area)
        table.add_row(area, _WORDS[one.status], escape(one.what), escape(one.remedy))
        before = one.area
    console.print(table)
    count = len(breaking(found))
    console.print(f"[bold red]{count} would break offline.[/]" if count else "[green]Nothing here needs a network.[/]")
