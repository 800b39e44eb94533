"""The verb `clinstack export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from clinstack.cli_prepare import console
from clinstack.errors import InputError


def export(
    stacks: Annotated[
        list[Path], typer.Argument(help="A Stack or a finished Run; several for clinical-merged.", show_default=False)
    ],
    kind: Annotated[
        str, typer.Option("--as", help="merged, fused, clinical-merged, peft or gguf.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="Where the base is on this machine.", show_default="as the stack records")
    ] = None,
    converter: Annotated[
        Path | None,
        typer.Option(
            help="Of gguf: llama.cpp's convert_hf_to_gguf.py.", show_default="in the folder LLAMA_CPP, or on the PATH"
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload it to this name on the Hugging Face hub.", metavar="ORGANIZATION/NAME")
    ] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Of --push.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Push whatever the terms of the data are, and whatever an audit found."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")] = False,
) -> None:
    """Write a stack as files that other engines open, and check that they give the stack's outputs."""
    if push is None and (force or public):
        raise InputError(f"--{'force' if force else 'public'}: belongs to --push; leave it out.")
    from clinstack.export.export import export as run

    done = run(stacks, kind, out, base=base, converter=converter, repository=push, public=public, force=force)
    if as_json:
        found = {place or ".": measured.to_dict() for place, measured in done.measured.items()}
        print(json.dumps({"out": str(out), "kind": kind, "check": found, "pushed": done.pushed}))
        return
    for note in done.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for place, measured in done.measured.items():
        console.print(
            f"  {escape(place or kind)}: largest difference from the stack {measured.difference:.2e} "
            f"(allowed {measured.limit:.0e}), opened with {escape(measured.opened_with)}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"[bold]{escape(str(out))}[/] is written.", soft_wrap=True)
    if done.pushed is not None:
        console.print(f"Pushed to {escape(done.pushed)}", soft_wrap=True)
