"""The verbs of `clinstack synthesize`: each function parses and calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.cli_prepare import attrition_table, bars
from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.recipe import Section, apply_overrides, explain, read_yaml, recipe_file
from clinstack.recipe.synthesize import SynthesizeInstructionsRecipe, SynthesizeNotesRecipe

if TYPE_CHECKING:
    from clinstack.synthesize.plan import Plan

synthesize_app = typer.Typer(
    help="Synthetic notes and instructions, through an OpenAI-compatible endpoint.", no_args_is_help=True
)
console = Console()
_errors = Console(stderr=True)
_Recipe = TypeVar("_Recipe", bound=Section)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe, and overrides such as endpoint.model=NAME."),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; the replies are kept beside it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would ask and cost, and end.")]
Show = Annotated[bool, typer.Option("--show", help="With --dry-run: print a whole prompt, with its note.")]
AllowRemote = Annotated[
    bool, typer.Option("--allow-remote", help="Let text go to a host beyond this machine and its private network.")
]
OwnPrompts = Annotated[
    Path | None, typer.Option("--prompts", help="Folder of prompts of your own.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")]


@synthesize_app.command("notes")
def synthesize_notes(
    source: Annotated[Path, typer.Argument(help="Case reports: .csv, .parquet or .jsonl.")],
    out: Out,
    arguments: Words = None,
    prompts: OwnPrompts = None,
    allow_remote: AllowRemote = False,
    dry_run: DryRun = False,
    show: Show = False,
    as_json: Json = False,
) -> None:
    """Case reports to synthetic discharge summaries: a folder of Notes."""
    recipe = _read(arguments, SynthesizeNotesRecipe, prompts, allow_remote)
    from clinstack.synthesize.notes import plan_notes
    from clinstack.synthesize.notes import synthesize_notes as synthesize

    _begin(recipe, plan_notes(source, out, recipe, show=show), dry_run, as_json)
    if dry_run:
        return
    with bars() as update:
        content = synthesize(source, out, recipe, update)
    _end(out, content, read_json(out / "notes" / "attrition.json")["steps"], "notes", as_json)


@synthesize_app.command("instructions")
def synthesize_instructions(
    notes: Annotated[Path, typer.Argument(help="A folder of Notes.")],
    out: Out,
    arguments: Words = None,
    prompts: OwnPrompts = None,
    allow_remote: AllowRemote = False,
    dry_run: DryRun = False,
    show: Show = False,
    as_json: Json = False,
) -> None:
    """Notes to questions of eight tasks and their answers: a folder of instructions."""
    recipe = _read(arguments, SynthesizeInstructionsRecipe, prompts, allow_remote)
    from clinstack.synthesize.instructions import plan_instructions
    from clinstack.synthesize.instructions import synthesize_instructions as synthesize

    _begin(recipe, plan_instructions(notes, out, recipe, show=show), dry_run, as_json)
    if dry_run:
        return
    with bars() as update:
        content = synthesize(notes, out, recipe, update)
    _end(out, content, read_json(out / "instructions" / "attrition.json")["steps"], "instructions", as_json)


@synthesize_app.command("prompts")
def synthesize_prompts(to: Annotated[Path, typer.Argument(help="Folder to copy to.")]) -> None:
    """Copy our prompts and seed questions to a folder, for you to change."""
    from clinstack.synthesize.prompts import copy_prompts

    for path in copy_prompts(to):
        console.print(escape(str(path)))
    console.print(f"Yours to change; use them with --prompts {escape(str(to))}.")


def _read(words: Sequence[str] | None, model: type[_Recipe], prompts: Path | None, allow_remote: bool) -> _Recipe:
    """Read ``[RECIPE] [KEY=VALUE]...`` and the options that are keys too."""
    files = [word for word in words or () if "=" not in word]
    overrides = [word for word in words or () if "=" in word]
    if len(files) > 1:
        raise InputError(f"{files[1]!r}: one recipe only; an override has the form key.sub=value.")
    values = apply_overrides(read_yaml(recipe_file(Path(files[0]))) if files else {}, overrides)
    if prompts is not None:
        values["prompts"] = str(prompts)
    if allow_remote:
        values = apply_overrides(values, ["endpoint.allow_remote=true"])
    endpoint = values.get("endpoint")
    if not isinstance(endpoint, dict) or "model" not in endpoint:
        raise InputError("endpoint.model is missing: name the model as the server calls it, as endpoint.model=NAME.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{files[0] if files else 'command line'}: {explain(error, model)}") from None


def _begin(
    recipe: SynthesizeNotesRecipe | SynthesizeInstructionsRecipe, plan: Plan, dry_run: bool, as_json: bool
) -> None:
    """Say what is to come: where text goes, requests, tokens, cost and time."""
    from clinstack.endpoint.client import remote_warning
    from clinstack.endpoint.hosts import remote_host

    host = remote_host(recipe.endpoint.base_url, recipe.endpoint.allow_remote)
    if host is not None:
        _errors.print(f"[bold yellow]Warning:[/] {escape(remote_warning(host))}", soft_wrap=True)
    figures = plan.to_dict()
    if not as_json:
        console.print(_plan_table(figures))
    if not dry_run:
        return
    if as_json:
        print(json.dumps(figures))
        return
    for name, text in plan.shown:
        console.rule(name)
        console.print(escape(text), highlight=False, soft_wrap=True)


def _plan_table(figures: dict[str, Any]) -> Table:
    table = Table(title="At most", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests", f"{figures['requests']:,}")
    table.add_row("answered already", f"{figures['in_store']:,}")
    table.add_row("prompt tokens (about)", f"{figures['prompt_tokens']:,}")
    table.add_row("answered tokens", f"{figures['completion_tokens']:,}")
    price = figures["cost"]
    table.add_row("cost", "no prices given" if price is None else f"{price:,.2f}")
    table.add_row(f"time (by {figures['bound_by']})", _duration(figures["seconds"]))
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _end(out: Path, content: dict[str, Any], steps: list[dict[str, Any]], what: str, as_json: bool) -> None:
    """Show what was kept, what failed, and how to go on."""
    from clinstack.endpoint.requests import BUDGET_SPENT
    from clinstack.synthesize.plan import store_of

    failed = content["endpoint"]["requests"]["failed"]
    if as_json:
        print(json.dumps({"out": str(out), "complete": content["complete"], "failed": failed, **content["counts"]}))
        return
    console.print(attrition_table([{"task": what, **step} for step in steps]))
    if content["synthetic"]:
        console.print("[yellow]Synthetic: a model wrote these texts; nobody has checked what they say of medicine.")
    else:
        console.print("[yellow]Made from notes that are not synthetic: as confidential as they are.")
    left_out = failed.get(BUDGET_SPENT, 0)
    if left_out:
        console.print(
            f"[yellow]The token budget is spent: {left_out:,} requests, and what follows from them, were left out. "
            f"Raise endpoint.token_budget, and the same command goes on.",
            soft_wrap=True,
        )
    broken = {reason: count for reason, count in failed.items() if reason != BUDGET_SPENT}
    if broken:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in broken.items())
        console.print(
            f"[yellow]{sum(broken.values()):,} requests failed ({escape(reasons)}); the same command asks again for "
            f"these alone.",
            soft_wrap=True,
        )
    console.print(
        f"Written to {escape(str(out))}; the replies are kept in {escape(str(store_of(out)))}, as confidential as the "
        f"notes. Delete that file when you need them no more.",
        soft_wrap=True,
    )
