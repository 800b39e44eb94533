"""The verb `clinstack card`: a Stack's cards rendered anew, after its audit or after people added to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from clinstack.cli_prepare import console


def card_command(
    stack: Annotated[Path, typer.Argument(help="A Stack or a finished Run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")] = False,
) -> None:
    """Render a Stack's cards anew: README.md, TRIPOD-LLM and CHAI, with what people say in card.yaml."""
    from clinstack.model.cards import write_cards
    from clinstack.model.lineage import stack_folder

    folder = stack_folder(stack)
    done = write_cards(folder)
    if as_json:
        print(
            json.dumps(
                {
                    "stack": str(folder),
                    "paths": [str(path) for path in done.paths],
                    "notes": list(done.notes),
                    "tripod_llm": done.items,
                }
            )
        )
        return
    for note in done.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    counts = ", ".join(f"{count} {status}" for status, count in done.items.items() if count)
    console.print(f"TRIPOD-LLM: {counts}", highlight=False, soft_wrap=True)
    for path in done.paths:
        console.print(f"  {escape(str(path))}", highlight=False, soft_wrap=True)
