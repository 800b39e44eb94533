"""What `clinstack doctor` finds: what this machine has, and what of the given recipes would break without a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clinstack import offline
from clinstack.errors import InputError

Status = Literal["ok", "note", "breaks"]

EXTRAS = {
    "align": ("trl", "datasets"),
    "synthesize": ("openai",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "gguf": ("gguf",),
    "private": ("opacus",),
    "quantized": ("bitsandbytes",),
    "postgres": ("psycopg",),
}
"""The packages of each extra, as they are imported."""
_LITTLE_SPACE = 10 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    area : str
        The machine's part, or the recipe.
    what : str
        What was found; no value of an environment variable that could hold a password.
    status : {"ok", "note", "breaks"}
        ``breaks``: with this, a command fails where there is no network.
    remedy : str
        What to do; empty where there is nothing to do.
    """

    area: str
    what: str
    status: Status = "ok"
    remedy: str = ""


def machine() -> Iterator[Finding]:
    """Yield what is found on this machine. Nothing is asked over the network."""
    yield from _mode()
    yield from _bases()
    yield from _extras()
    yield from _folders()
    yield from _accelerator()
    yield from _trackers()


def _mode() -> Iterator[Finding]:
    if offline.is_offline():
        names, networks = offline.allowed_hosts()
        allowed = ", ".join([*sorted(names), *map(str, networks)])
        yield Finding("network", f"offline: this machine{f' and {allowed}' if allowed else ''} only")
    else:
        yield Finding("network", "not offline", "note", f"In a closed network, set {offline.VARIABLE}=1.")
    yield Finding("network", f"telemetry is off ({len(offline.TELEMETRY_OFF)} switches)")
    for name in sorted(offline.overridden):
        yield Finding("network", f"the environment asks for telemetry: {name}", "note", "It is off all the same.")
    for name in sorted(name for name in offline.PROXIES if os.environ.get(name)):
        yield Finding("network", f"a proxy: {name}", "note", "Offline mode takes it out of the environment.")


def _bases() -> Iterator[Finding]:
    from clinstack.model.base import EMBEDDED_FOLDERS, find_base

    for name in EMBEDDED_FOLDERS:
        try:
            find_base(name)
        except InputError as error:
            yield Finding("bases", str(error), "breaks", "Install clinstack again.")
        else:
            yield Finding("bases", f"{name}: agrees with its manifest")
    cache = _hub_cache()
    for folder in sorted(cache.glob("models--*--*")) if cache.is_dir() else ():
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if cached_base(name) is None:
            remedy = "Fetch it again where there is a network."
            yield Finding("bases", f"{name}: not whole in the hub's cache", "note", remedy)
        else:
            yield Finding("bases", f"{name}: in the hub's cache")


def _extras() -> Iterator[Finding]:
    whole = [extra for extra, packages in EXTRAS.items() if all(map(is_installed, packages))]
    if whole:
        yield Finding("extras", f"installed: {', '.join(whole)}")
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if not is_installed(name)]
        if missing:
            remedy = f"If you need it: pip install 'clinstack[{extra}]'"
            yield Finding("extras", f"{extra}: without {', '.join(missing)}", "note", remedy)


def _folders() -> Iterator[Finding]:
    places = {
        "the hub's cache": _hub_cache(),
        "temporary files": Path(tempfile.gettempdir()),
        "matplotlib's settings": Path(os.environ.get("MPLCONFIGDIR", Path.home() / ".config" / "matplotlib")),
        "this folder": Path.cwd(),
    }
    for what, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not os.access(there, os.W_OK):
            status: Status = "breaks" if what == "temporary files" else "note"
            yield Finding(
                "folders", f"{what}: {place} cannot be written", status, "Name another one, or make it yours."
            )
        elif shutil.disk_usage(there).free < _LITTLE_SPACE:
            free = shutil.disk_usage(there).free / 2**30
            yield Finding("folders", f"{what}: {free:.1f} GiB are free in {place}", "note", "Make room for models.")
        else:
            yield Finding("folders", f"{what}: {place}")


def _accelerator() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Finding("accelerator", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
        return
    built = torch.version.cuda
    if built is None:
        yield Finding("accelerator", "none: torch is built for CPUs", "note", "With a GPU, carry in torch for CUDA.")
    else:
        remedy = "With a GPU, install NVIDIA's driver; `nvidia-smi` shows it."
        yield Finding("accelerator", f"none: torch is built for CUDA {built} and sees no GPU", "note", remedy)


def _trackers() -> Iterator[Finding]:
    from clinstack.engine.tracking import is_remote_tracking

    for name in ("wandb", "mlflow"):
        if is_remote_tracking(name):
            remedy = "Recipes with this tracker are refused offline; unset it."
            yield Finding("tracking", f"the environment sends {name} to another machine", "note", remedy)


def cached_base(name: str) -> Path | None:
    """Return the folder of a base in the hub's cache; None where it is not there with configuration and weights."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # the hub's errors, for what is not there and for what is no name
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def breaking(findings: Sequence[Finding]) -> list[Finding]:
    """Return those that would break."""
    return [one for one in findings if one.status == "breaks"]


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
