"""The options of `prepare ... --scrub`, the same for every verb that writes texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console

from clinstack.errors import InputError

if TYPE_CHECKING:
    from clinstack.notes.scrub import Scrub

_PANEL = "Identifiers"
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "scrub": (
        Annotated[
            bool,
            typer.Option(
                "--scrub", help="Replace names, dates, numbers and addresses in all texts.", rich_help_panel=_PANEL
            ),
        ],
        False,
    ),
    "scrub_with": (
        Annotated[
            str,
            typer.Option(
                help="surrogates: invented ones, the same for a patient; tags: [NAME], [DATE].", rich_help_panel=_PANEL
            ),
        ],
        "surrogates",
    ),
    "scrub_engine": (
        Annotated[
            list[str] | None,
            typer.Option(
                help="What finds them, as for scan; several.", show_default="patterns", rich_help_panel=_PANEL
            ),
        ],
        None,
    ),
    "scrub_key": (
        Annotated[
            Path | None,
            typer.Option(
                help="File of the key, made if missing; without it the key is forgotten.",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
}
"""Of each option its type and its default."""


def scrubbed(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of `prepare` the options of ``--scrub``, and scrub what it prepares."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        wanted, style, engines, key = (arguments.pop(name) for name in _OPTIONS)
        if not wanted:
            if key is not None or engines or style != "surrogates":
                raise InputError("--scrub-with, --scrub-engine and --scrub-key need --scrub.")
            command(**arguments)
            return
        from clinstack.notes.scrub import Scrub, scrubbing

        out = arguments.get("out")
        if key is not None and out is not None and key.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{key} is inside {out}, which is given away with its texts; keep the key elsewhere.")
        if arguments.get("export_csv") is not None:
            raise InputError("--export-csv writes texts that --scrub does not reach; leave one of the two out.")
        with scrubbing(Scrub(style, tuple(engines or ("patterns",)), key)) as scrub:
            command(**arguments)
        _show(scrub)

    # Typer reads the types off the signature; here they are strings, since annotations are not evaluated.
    hints = get_type_hints(command, include_extras=True)
    own = [item.replace(annotation=hints[name]) for name, item in inspect.signature(command).parameters.items()]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature([*own, *added], return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **{name: kind for name, (kind, _) in _OPTIONS.items()}}
    return run


def _show(scrub: Scrub) -> None:
    console = Console()
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in scrub.counts.most_common())
    console.print(
        f"Scrubbed: {scrub.counts.total():,} identifiers in {scrub.texts_changed:,} of {scrub.texts:,} texts"
        + (f" ({kinds})." if kinds else ".")
    )
    console.print("[yellow]No search finds every identifier: the texts stay as confidential as before.")
