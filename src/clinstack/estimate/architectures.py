"""Where a base's configuration comes from: a folder, the hub's cache, the table of known architectures, or the hub.

Only ``config.json`` is ever read, and the network is asked for nothing that is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, PreTrainedConfig

from clinstack.errors import InputError
from clinstack.estimate.known import KNOWN
from clinstack.files import read_json
from clinstack.model.base import EMBEDDED_FOLDERS, locate_base
from clinstack.recipe.reading import suggest

_FILE = "config.json"


@dataclass(frozen=True)
class Architecture:
    """A base's shape.

    Parameters
    ----------
    name : str
        As the recipe gave it.
    values : dict
        What its ``config.json`` says.
    source : str
        Where that is from, in words.
    """

    name: str
    values: dict[str, Any]
    source: str

    def config(self) -> PreTrainedConfig:
        """Return a new configuration.

        Raises
        ------
        InputError
            If transformers does not know the architecture.
        """
        values = dict(self.values)
        kind = values.pop("model_type", None)
        # Rotary positions that depend on the length ask for it, which shapes alone do not have; they take no memory.
        for key in ("rope_scaling", "rope_parameters"):
            scaling = values.get(key)
            if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in _BY_LENGTH:
                kept = {name: scaling[name] for name in ("rope_theta", "partial_rotary_factor") if name in scaling}
                values[key] = {**kept, "rope_type": "default"} if kept else None
        try:
            config: PreTrainedConfig = AutoConfig.for_model(kind, **values)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"base: {self.name}: {str(error).strip().splitlines()[0]}") from None
        return config


_BY_LENGTH = ("dynamic", "longrope", "su", "yarn")


def find_architecture(base: str) -> Architecture:
    """Return a base's shape without reading, or fetching, a weight.

    Raises
    ------
    InputError
        If there is no such base, or only the network could tell.
    """
    if base in EMBEDDED_FOLDERS or Path(base).is_dir():
        folder = locate_base(base).folder
        return Architecture(base, _read(folder / _FILE), "config.json of its folder")
    cached = _cached(base)
    if cached is not None:
        return Architecture(base, _read(cached), "config.json in the local cache")
    known = KNOWN.get(base.lower())
    if known is not None:
        return Architecture(base, dict(known.values), f"built-in table (after {known.source})")
    if base.count("/") != 1 or base.startswith((".", "/")):
        hint = suggest(base.lower(), list(KNOWN)) or " The built-in table knows hub ids such as microsoft/phi-2."
        raise InputError(f"base: {base} is neither a folder nor a hub id of the form organisation/model.{hint}")
    return Architecture(base, _read(_fetched(base)), "config.json on the hub")


def _cached(base: str) -> Path | None:
    try:
        found = try_to_load_from_cache(base, _FILE)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _fetched(base: str) -> Path:
    try:
        return Path(hf_hub_download(base, _FILE))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        hint = suggest(base.lower(), list(KNOWN))
        raise InputError(
            f"base: {base} is no folder here, not in the local cache and not in the built-in table, and the hub cannot "
            f"be reached (offline). Copy its config.json into a folder and name that: base=FOLDER.{hint}"
        ) from None
    except HFValidationError:
        raise InputError(f"base: {base!r} is no folder here, and no name that the hub allows.") from None
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"base: the configuration of {base} could not be fetched from the hub ({type(error).__name__}). Copy its "
            "config.json into a folder and name that: base=FOLDER."
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
    except ValueError:
        raise InputError(f"base: {file} is damaged (not JSON).") from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise InputError(f"base: {file} names no model_type; transformers could not open it.")
    return values
