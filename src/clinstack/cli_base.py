"""The verb `clinstack base`: pin the files of a base model, and compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from clinstack.cli_prepare import console
from clinstack.errors import InputError

base_app = typer.Typer(help="Base models: pin their files by a manifest of hashes.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="A base in transformers' format, safetensors only.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="End with one machine-readable line.")]


@base_app.command("manifest")
def manifest(
    folder: Folder,
    force: Annotated[bool, typer.Option("--force", help="Replace a manifest that the files do not match.")] = False,
    as_json: Json = False,
) -> None:
    """Write clinstack-manifest.json beside a base: the size and hash of every file, which each opening compares."""
    from clinstack.model.base import find_base, hash_of
    from clinstack.model.manifest import MANIFEST_FILE, write_manifest

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the base's.")
    if force:
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
    found = find_base(str(folder))
    path = write_manifest(folder, found.fingerprint, hash_of)
    _say(path, found.fingerprint, as_json, "is written")


@base_app.command("verify")
def verify(folder: Folder, as_json: Json = False) -> None:
    """Compare every file of a base with its manifest; the first that differs, is missing or is new is named."""
    from clinstack.model.base import find_base
    from clinstack.model.manifest import MANIFEST_FILE

    if not (folder / MANIFEST_FILE).is_file():
        raise InputError(f"{folder} has no {MANIFEST_FILE}; `clinstack base manifest {folder}` writes one.")
    found = find_base(str(folder))
    _say(folder / MANIFEST_FILE, found.fingerprint, as_json, "agrees with every file")


def _say(path: Path, fingerprint: str, as_json: bool, what: str) -> None:
    if as_json:
        print(json.dumps({"manifest": str(path), "fingerprint": fingerprint}))
        return
    console.print(f"[bold]{escape(str(path))}[/] {what}.", soft_wrap=True)
    console.print(f"To pin it in a recipe: base: {escape(str(path.parent))}@{fingerprint}", soft_wrap=True)
