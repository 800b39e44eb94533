"""Where adapters come from: reading their folders, hashing them, and refusing what does not belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from clinstack.errors import InputError
from clinstack.files import read_json
from clinstack.model.base import Base
from clinstack.model.families import DECODER_HEAD, HEAD_MODULES, is_heads
from clinstack.model.folders import plain_name, read_json_object, refuse_large, refuse_links_out, refuse_pickles
from clinstack.model.methods.configs import method_of
from clinstack.recipe.adapters import METHODS

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ENCODER_FILE = "encoder.safetensors"
"""What computes virtual tokens while they train, beside the file that plain PEFT reads."""
PEFT_PREFIX = "base_model.model."
"""What PEFT writes before a network's names in an adapter's file."""
HEAD_KEY = f"{PEFT_PREFIX}{DECODER_HEAD}.weight"
"""Where PEFT keeps a decoder's classifier head in an adapter's file."""


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of names, dtypes, shapes and bytes, independent of order and device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()


@dataclass(frozen=True)
class StackedOn:
    """What lay beneath an adapter when its weights were written: the base, and the adapters in order."""

    base: str
    adapters: tuple[tuple[str, str], ...]
    """(name, hash of the weights) of each adapter beneath."""

    @property
    def parent(self) -> str:
        """Hash of what is directly beneath."""
        return self.adapters[-1][1] if self.adapters else self.base

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``stack.json``."""
        return {"base": self.base, "adapters": [{"name": name, "weights": weights} for name, weights in self.adapters]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StackedOn:
        """Read what `to_dict` wrote."""
        return cls(values["base"], tuple((item["name"], item["weights"]) for item in values["adapters"]))


@dataclass(frozen=True)
class AdapterSource:
    """An adapter as it was read from disk, in float32.

    ``config`` is None for a fully fine-tuned model, which PEFT has no configuration for. ``head`` has the names of the
    network. ``encoder`` is there where
    virtual tokens were saved with the network that computes them. ``stacked_on`` is None for a plain PEFT folder
    without clinstack's record: its base cannot be verified, and ``verified`` stays false when a stack with such an
    adapter is saved and read again.
    """

    method: str
    config: PeftConfig | None
    weights: dict[str, torch.Tensor]
    encoder: dict[str, torch.Tensor] | None
    head: dict[str, torch.Tensor] | None
    stacked_on: StackedOn | None
    verified: bool

    @property
    def fingerprint(self) -> str:
        """Hash of the adapter's weights, without the head."""
        return tensors_hash(self.weights)


def read_stack_record(folder: Path) -> dict[str, Any]:
    """Read ``stack.json``, and look at the folder that it describes.

    Raises
    ------
    InputError
        If it is missing, damaged or of another format version, or if the folder leads out of itself by a link or a
        name, or holds a pickle.
    """
    path = folder / "stack.json"
    if not path.is_file():
        raise InputError(f"{folder} has no stack.json: it is not a Stack.")
    refuse_links_out(folder, str(folder))
    refuse_pickles(folder, str(folder))
    record = read_json_object(path, str(folder))
    version = record.get("format_version")
    if version != 1:
        raise InputError(f"{path}: format version {version}; this clinstack reads 1.")
    try:
        places = [item["folder"] for item in record["adapters"]]
        places += [record["head"]["folder"]] if record["head"] else []
    except (KeyError, TypeError):
        raise InputError(f"{path} is damaged: it does not say where its adapters are.") from None
    for place in places:
        plain_name(place, str(path))
    return record


def stack_folder(path: Path) -> Path:
    """Return the Stack that a path names: itself, or the one of a finished Run.

    Raises
    ------
    InputError
        If there is none, or the Run is not finished.
    """
    if (path / "run.json").is_file():
        status = read_json(path / "run.json").get("status")
        if status != "done":
            raise InputError(f"{path}: this Run is not finished (it is {status!r}); start it again to complete it.")
        return path / "stack"
    if (path / "stack.json").is_file():
        return path
    raise InputError(f"{path} is neither a Run nor a Stack (it has no run.json and no stack.json).")


def run_record(stack: Path) -> dict[str, Any]:
    """Return the ``run.json`` of the Run that a Stack lies in; empty where it lies in none."""
    file = stack.parent / "run.json"
    record = read_json(file) if stack.name == "stack" and file.is_file() else {}
    return record if isinstance(record, dict) else {}


def is_trained_on_synthetic(stack: Path) -> bool | None:
    """Whether the Run that a Stack lies in says that its patients were invented; None where nobody says."""
    said = run_record(stack).get("synthetic")
    return said if isinstance(said, bool) else None


def find_adapter_folder(path: Path, key: str) -> Path:
    """Return the folder that a recipe's ``path`` names: a Run, a Stack with one adapter, or the folder itself."""
    if (path / CONFIG_FILE).is_file() or is_model_folder(path):
        return path
    if not path.exists():
        raise InputError(f"{key}.path: {path} does not exist.")
    folder = stack_folder(path)
    adapters = read_stack_record(folder)["adapters"]
    if len(adapters) != 1:
        names = ", ".join(item["name"] for item in adapters) or "none"
        raise InputError(f"{key}.path: the Stack {folder} has {len(adapters)} adapters ({names}); name one's folder.")
    return folder / str(adapters[0]["folder"])


def read_adapter(folder: Path, key: str) -> AdapterSource:
    """Read a PEFT folder or a model's, and its lineage where a ``stack.json`` stands beside it.

    Parameters
    ----------
    folder : Path
        With ``adapter_config.json`` and ``adapter_model.safetensors``, or in transformers' format.
    key : str
        Where the recipe names it, for messages.

    Raises
    ------
    InputError
        If its method is none that a stack holds, it is pickled or damaged, brings modules a stack cannot hold, or
        differs from its record.
    """
    refuse_links_out(folder, key)
    if is_model_folder(folder):
        method, config, encoder = "full", None, None
        tensors = _read_shards(folder, key)
        head = pop_head(tensors)
    else:
        if not (folder / WEIGHTS_FILE).is_file():
            raise InputError(f"{key}: {folder} has no {WEIGHTS_FILE} (pickled adapters are not opened).")
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(f"{key}: {folder} has no {CONFIG_FILE}.")
        config, method = _read_config(folder, key)
        tensors = _read_file(folder / WEIGHTS_FILE, key)
        head = pop_head(tensors, PEFT_PREFIX)
        encoder = _read_file(folder / ENCODER_FILE, key) if (folder / ENCODER_FILE).is_file() else None
    stacked_on, verified = None, False
    if (folder.parent / "stack.json").is_file():
        for item in read_stack_record(folder.parent)["adapters"]:
            if item["folder"] == folder.name:
                stacked_on, verified = StackedOn.from_dict(item["stacked_on"]), bool(item["verified"])
                if tensors_hash(tensors) != item["weights"]:
                    raise InputError(f"{key}: the weights in {folder} are not those that stack.json records.")
                if (item.get("encoder") or None) != (tensors_hash(encoder) if encoder else None):
                    raise InputError(f"{key}: the encoder in {folder} is not the one that stack.json records.")
    return AdapterSource(method, config, tensors, encoder, head, stacked_on, verified)


def pop_head(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor] | None:
    """Take a classifier head out of a file's tensors; None where there is none. The names are the network's."""
    head = {key.removeprefix(prefix): tensors[key] for key in tensors if is_heads(key.removeprefix(prefix))}
    for key in head:
        del tensors[prefix + key]
    return head or None


def head_keys(head: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a head's tensors under the names that they have in an adapter's file."""
    return {PEFT_PREFIX + name: tensor for name, tensor in head.items()}


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a whole model in transformers' format, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / CONFIG_FILE).exists() and any(_shards(folder))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _read_shards(folder: Path, key: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in _shards(folder):
        tensors |= _read_file(file, key)
    return tensors


def _read_file(file: Path, key: str) -> dict[str, torch.Tensor]:
    """Read tensors, in float32 as a stack holds them: a hash must not change when a stack saves them again."""
    try:
        tensors = load_file(file)
    except SafetensorError:
        raise InputError(f"{key}: {file} is damaged (not a whole safetensors file).") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _read_config(folder: Path, key: str) -> tuple[PeftConfig, str]:
    refuse_large(folder / CONFIG_FILE, key)
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{key}: {folder / CONFIG_FILE} is not a PEFT configuration ({type(error).__name__})."
        ) from None
    if getattr(config, "megatron_config", None) is not None:
        raise InputError(f"{key}: {folder / CONFIG_FILE} names a module to be imported; clinstack imports none.")
    method = method_of(config)
    if method is None:
        raise InputError(f"{key}: {folder} is a {config.peft_type} adapter; stacks hold {', '.join(METHODS)}.")
    foreign = sorted(set(getattr(config, "modules_to_save", None) or []) - set(HEAD_MODULES))
    if foreign:
        raise InputError(f"{key}: {folder} brings its own copy of {foreign[0]}; a stack leaves the base as it is.")
    if getattr(config, "bias", "none") != "none":
        raise InputError(f"{key}: {folder} changes the base's biases (bias: {config.bias}); a stack leaves them alone.")
    # Taken as a plain PEFT adapter: by the task type PEFT would choose a wrapper that wants a head in the file.
    config.task_type = None
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = None
    config.inference_mode = False
    return config, method


def refuse_wrong_base(source: AdapterSource, key: str, base: Base, beneath: Sequence[tuple[str, str]]) -> None:
    """Refuse an adapter that was trained on another base, or on other adapters than lie beneath it now.

    Raises
    ------
    InputError
        Saying which of them differs.
    """
    recorded = source.stacked_on
    if recorded is None:
        return
    if recorded.base != base.fingerprint:
        raise InputError(
            f"{key}: it was trained on a base with fingerprint {_short(recorded.base)}; "
            f"the base {base.name} has {_short(base.fingerprint)}. Use the base that it was trained on."
        )
    if len(recorded.adapters) != len(beneath):
        names = ", ".join(name for name, _ in recorded.adapters) or "the base alone"
        raise InputError(f"{key}: it was trained on top of {names}; here {len(beneath)} adapters lie beneath it.")
    for (name, weights), (present, present_weights) in zip(recorded.adapters, beneath, strict=True):
        if weights != present_weights:
            raise InputError(
                f"{key}: it was trained on the adapter {name!r} with weights {_short(weights)}; "
                f"here {present!r} with {_short(present_weights)} lies beneath it."
            )


def _short(fingerprint: str) -> str:
    return fingerprint[:19]
