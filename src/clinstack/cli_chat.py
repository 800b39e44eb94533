"""`clinstack chat`: a session in the terminal, or answers to the lines of a script."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from clinstack.errors import InputError

if TYPE_CHECKING:
    from clinstack.model.stack import Stack
    from clinstack.serve.chat_terminal import Chat


def chat_command(
    stack: Annotated[
        Path | None, typer.Argument(metavar="STACK_OR_RUN", help="Trained on instructions; not a classifier.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Without a stack the model itself, such as embedded; else where the base is.")
    ] = None,
    note: Annotated[Path | None, typer.Option(help="File of the note to ask about; in the chat: /note FILE.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer.", show_default="128, or half of what it reads")
    ] = None,
) -> None:
    """Ask a stack about a note in the terminal, and compare it with its untouched base.

    Of a script's standard input each line is a question or a command, and each answer one line.
    """
    if stack is None and base is None:
        raise InputError("chat: name a Stack or a finished Run, or a base alone with --base embedded.")
    talks = sys.stdin.isatty() and sys.stdout.isatty()
    # Answers alone go to a script's standard output.
    around = Console() if talks else Console(stderr=True)
    with around.status("Loading the model ...") if talks else nullcontext():
        from clinstack.serve.chat_terminal import Chat, ChatModel

        model = _load(stack, base)
        chat = Chat(ChatModel(model, max_new_tokens), around)
    if note is not None:
        chat.read_note(note)
    for line in banner(model, stack):
        around.print(line, highlight=False)
    if not talks:
        answer_lines(chat, sys.stdin)
        return
    around.print("[dim]/help lists the commands; Control-D ends.[/]", highlight=False)
    # Lines can be edited, and called back while the chat lasts. No file holds them.
    import readline  # noqa: F401

    chat.run(input)


def _load(folder: Path | None, base: str | None) -> Stack:
    from clinstack.engine.distributed import world
    from clinstack.model.stack import Stack

    model = Stack.build(base or "") if folder is None else Stack.load(folder, base)
    return model.to(world().device)


def banner(model: Stack, folder: Path | None) -> list[str]:
    """Return what stands at the head of a session: what answers, and that it is no medical device."""
    from clinstack.model.lineage import is_trained_on_synthetic, stack_folder
    from clinstack.serve.schemas import DISCLAIMER

    lines = [f"[yellow]{DISCLAIMER}[/]"]
    if folder is not None and is_trained_on_synthetic(stack_folder(folder)):
        lines.append("[yellow]Trained on synthetic data: what it says means nothing about medicine.[/]")
    label = "untouched base" if not model.adapters else model.label
    lines.append(f"[bold]{escape(label)}[/] on {escape(model.base.name)}, {model.base.fingerprint[:19]}")
    return lines


def answer_lines(chat: Chat, lines: Iterable[str]) -> None:
    """Answer a script's questions, one line each; empty lines are passed over.

    Raises
    ------
    InputError
        With the number of the line that is wrong; a question is not repeated.
    """
    for number, line in enumerate(lines, 1):
        question = line.strip()
        if question in ("/quit", "/exit"):
            return
        if not question:
            continue
        try:
            answer = chat.answer_line(question)
        except InputError as error:
            raise InputError(f"standard input, line {number}: {error}") from None
        if answer is not None:
            print(answer, flush=True)
