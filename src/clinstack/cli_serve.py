"""`clinstack serve`: from the command line to a server, and what a person sees when it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.errors import InputError
from clinstack.serve.settings import AUDIT_FILE, ServeSettings, serve_settings

if TYPE_CHECKING:
    from clinstack.serve.served_stack import ServedStack
    from clinstack.serve.server import Started

TOKEN_VARIABLE = "CLINSTACK_TOKEN"
_DEFAULTS = {name: field.default for name, field in ServeSettings.model_fields.items()}
_SAFETY, _LIMITS = "Who may ask", "Limits"


def serve_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[STACK_OR_RUN]...", help="Stacks, finished Runs, or folders of Runs."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="A stack and what requests call it; repeatable.")
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Of a folder of Runs, only those with this label; repeatable."),
    ] = None,
    ui: Annotated[bool, typer.Option("--ui", help="Serve the web page, too.")] = False,
    host: Annotated[str, typer.Option(help="Where to listen.")] = _DEFAULTS["host"],
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = _DEFAULTS["port"],
    base: Annotated[str | None, typer.Option(help="Where the base is on this machine.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = _DEFAULTS["device"],
    threads: Annotated[int | None, typer.Option(help="Of torch on a CPU.")] = None,
    fold: Annotated[
        str, typer.Option(help="auto, always or never: add common adapters to the base's weights.")
    ] = _DEFAULTS["fold"],
    state: Annotated[Path, typer.Option(help="Folder of the token and the audit log.")] = _DEFAULTS["state"],
    stacks_root: Annotated[
        Path | None, typer.Option(help="Stacks below this folder may be added while it runs.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the token; without it ${TOKEN_VARIABLE}, or one that is generated.",
            rich_help_panel=_SAFETY,
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for none; on loopback only.", rich_help_panel=_SAFETY)
    ] = False,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Listen where other machines reach it, without TLS.", rich_help_panel=_SAFETY
        ),
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded-For is believed.", rich_help_panel=_SAFETY),
    ] = None,
    audit_bytes: Annotated[
        int, typer.Option(help="Size at which the audit log is rotated.", rich_help_panel=_SAFETY)
    ] = _DEFAULTS["audit_bytes"],
    audit_files: Annotated[
        int, typer.Option(help="Older audit logs that are kept.", rich_help_panel=_SAFETY)
    ] = _DEFAULTS["audit_files"],
    max_body_bytes: Annotated[int, typer.Option(rich_help_panel=_LIMITS, help="Of a request.")] = _DEFAULTS[
        "max_body_bytes"
    ],
    max_notes: Annotated[int, typer.Option(rich_help_panel=_LIMITS, help="Of a request.")] = _DEFAULTS["max_notes"],
    max_characters: Annotated[int, typer.Option(rich_help_panel=_LIMITS, help="Of a note.")] = _DEFAULTS[
        "max_characters"
    ],
    max_in_flight: Annotated[
        int, typer.Option(rich_help_panel=_LIMITS, help="Requests that are answered at a time.")
    ] = _DEFAULTS["max_in_flight"],
    requests_per_minute: Annotated[
        int, typer.Option(rich_help_panel=_LIMITS, help="Of one client; 0: no limit.")
    ] = _DEFAULTS["requests_per_minute"],
    queue_tokens: Annotated[
        int, typer.Option(rich_help_panel=_LIMITS, help="Tokens that may wait for the model.")
    ] = _DEFAULTS["queue_tokens"],
    batch_tokens: Annotated[int, typer.Option(rich_help_panel=_LIMITS, help="Tokens of one forward pass.")] = _DEFAULTS[
        "batch_tokens"
    ],
    window_ms: Annotated[
        float, typer.Option(rich_help_panel=_LIMITS, help="Milliseconds that a batch waits for more notes.")
    ] = _DEFAULTS["window_ms"],
    timeout_s: Annotated[
        float, typer.Option(rich_help_panel=_LIMITS, help="Seconds until a request is answered or refused.")
    ] = _DEFAULTS["timeout_s"],
    drain_s: Annotated[
        float, typer.Option(rich_help_panel=_LIMITS, help="Seconds to finish what was taken when it is stopped.")
    ] = _DEFAULTS["drain_s"],
) -> None:
    """Serve stacks on one base over HTTP: classifiers, answers to questions, and a web page."""
    values: dict[str, Any] = dict(locals())
    for key in ("folders", "name", "stack", "token_file", "trusted_proxy"):
        del values[key]
    from clinstack.serve.found import find_stacks

    if not folders and not name:
        raise InputError("Name a Stack, a finished Run, or a folder of Runs.")
    settings = serve_settings(
        {
            **values,
            "stacks": find_stacks(folders or [], name or [], stack or []),
            "token": _given_token(token_file, no_token),
            "trusted_proxies": tuple(trusted_proxy or ()),
        }
    )
    run_server(settings)


def run_server(settings: ServeSettings) -> None:
    """Start a server and stay with it until a signal ends it."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'clinstack[serve]'") from None
    from clinstack.serve.server import serve

    console = Console(stderr=True)
    if not settings.is_loopback:
        console.print(
            f"[bold red]{escape(settings.host)} is reached from other machines, and this server speaks plain HTTP: "
            "notes and the token travel unencrypted. Put a proxy with TLS before it.",
            soft_wrap=True,
        )
    if settings.no_token:
        console.print("[bold red]No token: every program and every person on this machine may ask.")
    try:
        serve(settings, lambda started: show_start(settings, started, console))
    except KeyboardInterrupt:  # before it took requests; then signals are its own
        console.print("Interrupted before it took requests.")
        sys.exit(130)


def _given_token(file: Path | None, no_token: bool) -> str | None:
    from clinstack.serve.state import read_token

    if file is not None:
        return read_token(file)
    # Not an option: the list of processes shows a command line to everyone.
    return None if no_token else os.environ.get(TOKEN_VARIABLE) or None


def show_start(settings: ServeSettings, started: Started, console: Console) -> None:
    """Print what is served, and where."""
    console.print(stacks_table(list(started.shared.stacks.values())))
    for line in started.shared.notes:
        console.print(f"[yellow]{escape(line)}")
    shows_token = started.new_token is not None and console.is_terminal  # a log is no place for it
    facts = Table.grid(padding=(0, 3), pad_edge=False)
    facts.add_row("base", f"{escape(started.shared.base.name)} on {started.shared.device}, {memory()}")
    folded = started.shared.folded
    if folded:
        facts.add_row("folded in", f"{folded} adapter{'s' * (folded > 1)} that stacks share, added to the base once")
    facts.add_row("audit log", escape(str(settings.state / AUDIT_FILE)))
    if started.token_file is not None:
        facts.add_row("token", escape(str(started.token_file)))
    if shows_token:
        facts.add_row("", f"[bold]{started.new_token}[/] (new, shown once)")
    if settings.stacks_root is not None:
        facts.add_row("stacks from", escape(str(settings.stacks_root)))
    console.print(facts, highlight=False)
    link = f"#token={started.new_token}" if settings.ui and shows_token else ""
    address = f"{started.url}{'/' + link if settings.ui else ''}"
    console.print(f"\nReady after {started.seconds:.1f} s: [bold]{address}[/]", soft_wrap=True, highlight=False)
    console.print("Research software: an aid, not a medical device, and no replacement for clinicians.", style="dim")


def stacks_table(stacks: Sequence[ServedStack]) -> Table:
    """Return a row for each stack; narrow enough for a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "answers", "adapters", "calibrated"):
        table.add_column(title, overflow="fold")
    for stack in stacks:
        task = stack.task
        calibrated = "yes" if stack.calibration and stack.calibration.get("isotonic") else "no"
        table.add_row(
            escape(stack.name),
            "questions" if task is None else f"{task.kind}, {len(task.classes)}",
            escape(stack.label),
            "" if task is None else calibrated,
        )
    return table


def memory() -> str:
    """Return the memory that this process holds, and the card's where there is one."""
    import torch

    pages = Path("/proc/self/statm")
    text = "memory unknown"
    if pages.is_file():
        text = f"{int(pages.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB of memory"
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        text += f", {torch.cuda.memory_allocated() / 2**30:.1f} GiB on the card"
    return text
