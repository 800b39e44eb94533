"""Base models: found by name, fingerprinted, and loaded the same way whether embedded, a local folder or a hub id."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.model.attention import use_document_attention
from clinstack.model.config import load_config
from clinstack.model.families import ENCODERS, HEAD_MODULES, encoder_of, head_name, head_of, head_parameters, is_heads
from clinstack.model.families import backbone as backbone
from clinstack.model.folders import check_base_folder
from clinstack.model.manifest import check_manifest, refuse_other_fingerprint
from clinstack.model.pooling import BY_CONVENTION, HeadInput
from clinstack.model.quantize import (
    compute_alike_in_training_and_evaluation,
    quantization_config,
    refuse_quantizing,
)
from clinstack.model.tokenizer import load_tokenizer as load_tokenizer
from clinstack.offline import is_offline

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
EMBEDDED_ENCODER = "embedded-encoder"
EMBEDDED_FOLDERS = {EMBEDDED: EMBEDDED_FOLDER, EMBEDDED_ENCODER: Path(__file__).parent / "embedded_encoder"}
"""The bases that come with the package, by name."""
_FINGERPRINTED = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer.model", "vocab.txt")
_TOKENIZER_IN_PARTS = ("vocab.json", "merges.txt", "tokenizer_config.json")
"""What decides on tokens beside ``vocab.txt`` where no one file does: merges, and whether texts are lowered."""
_DESCRIBING = ["*.json", "tokenizer.model", "vocab.txt", "merges.txt"]
_WANTED = ["*.safetensors", *_DESCRIBING]
_PINNED = re.compile(r"(?P<name>.+)@(?P<fingerprint>sha256:[0-9a-f]{64})")
"""A base with the fingerprint that it must have: ``models/llama@sha256:…``."""

CONVERSION = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('pytorch_model.bin', 'cpu', weights_only=True); "
    "s.save_file({k: v.clone() for k, v in w.items()}, 'model.safetensors', {'format': 'pt'})\""
)
"""Turns pickled weights into safetensors; ``weights_only`` lets the pickle build tensors and nothing else."""


_LOADING = threading.Lock()
"""While transformers loads a network it replaces functions of its classes for everyone, and puts them back at the end:
two threads at once would leave them replaced, and tied weights untied."""


@dataclass(frozen=True)
class Base:
    """Where a base model is and what it is.

    Parameters
    ----------
    name : str
        As the recipe gave it, without a pinned fingerprint: ``embedded``, ``embedded-encoder``, a folder, or a hub id.
    folder : Path
        Where its files are.
    fingerprint : str
        Hash of weights, configuration and tokenizer as stored, whatever dtype they are loaded in.
    """

    name: str
    folder: Path
    fingerprint: str


def find_base(name: str) -> Base:
    """Locate a base model. Asks the hub only for a name that is not a local folder.

    Raises
    ------
    InputError
        If there is no such base, it has no safetensors weights (pickles are never opened), a file in it is not what its
        manifest records, or its fingerprint is not the one that ``name`` pins after an ``@``.
    """
    name, pinned = split_pin(name)
    folder = _folder_of(name, _WANTED)
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"base: {folder} has no *.safetensors. clinstack opens no pickled weights (pytorch_model.bin), which could "
            "run code. Where you trust the file, convert it once, with no network, in the model's folder: "
            f"{CONVERSION}"
        )
    digest = hashlib.sha256()
    manifest = check_manifest(folder, hash_of)
    whole = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
    patterns = _FINGERPRINTED if whole else (*_FINGERPRINTED, *_TOKENIZER_IN_PARTS)
    for file in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{file.name} {hash_of(file)}\n".encode())
    fingerprint = "sha256:" + digest.hexdigest()
    if manifest is not None:
        refuse_other_fingerprint(folder, manifest, fingerprint)
    if pinned is not None and pinned != fingerprint:
        raise InputError(
            f"base: {name} has the fingerprint {fingerprint[:19]}, and {pinned[:19]} is pinned. Use the base that was "
            "pinned, or correct what stands after the @."
        )
    return Base(name, folder, fingerprint)


def split_pin(name: str) -> tuple[str, str | None]:
    """Return a base's name, and the fingerprint that is pinned behind it; None where none is."""
    found = _PINNED.fullmatch(name)
    return (found["name"], found["fingerprint"]) if found else (name, None)


def hash_of(file: Path) -> str:
    """Return ``sha256:<hex>`` of a base's file; it is read once in a process, as long as it stays as it is."""
    facts = file.stat()
    return _file_hash(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _file_hash(file: Path, size: int, changed: int) -> str:
    """Return the hash of a file; once in a process for each size and time of change, for weights are large."""
    return sha256_file(file)


def locate_base(name: str) -> Base:
    """Locate a base by what describes it: no weight is fetched, opened or hashed, and the fingerprint is empty.

    Raises
    ------
    InputError
        If there is no such base.
    """
    name = split_pin(name)[0]
    folder = _folder_of(name, _DESCRIBING)
    check_manifest(folder, hash_of, with_weights=False)
    return Base(name, folder, "")


def _folder_of(name: str, wanted: list[str]) -> Path:
    folder = _found(name, wanted)
    if not (folder / "config.json").is_file():
        raise InputError(f"base: {folder} has no config.json; name a folder in transformers' format.")
    check_base_folder(folder, "base")
    return folder


def _found(name: str, wanted: list[str]) -> Path:
    if name in EMBEDDED_FOLDERS:
        return EMBEDDED_FOLDERS[name]
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise InputError(
            f"base: {name} is neither a folder, nor a hub id of the form organisation/model, "
            f"nor {' or '.join(map(repr, EMBEDDED_FOLDERS))}."
        )
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise InputError(
            f"base: {name} is no folder here and could not be fetched (offline, and not in the local cache). "
            "Copy the model to this machine and name its folder."
            + (" `clinstack doctor` lists what the cache has." if is_offline() else "")
        ) from None
    except HFValidationError:
        raise InputError(f"base: {name!r} is no folder here, and no name that the hub allows.") from None
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"base: {name} could not be fetched from the hub ({type(error).__name__}).") from None


def refuse_unknown_architecture(base: Base, config: PreTrainedConfig, classes: int | None) -> None:
    """Say why an encoder cannot be what is asked for.

    Raises
    ------
    InputError
        For an encoder without a head for classes, and for one of a family that is not known.
    """
    if encoder_of(config) is not None:
        if classes is None:
            raise InputError(
                f"base: {base.name} ({config.model_type}) is an encoder and writes no text; pretrain takes a decoder, "
                "finetune takes this base."
            )
    elif getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", True) is False:
        raise InputError(
            f"base: {base.name} ({config.model_type}) is an encoder of a family that clinstack does not know; it knows "
            f"{', '.join(ENCODERS)}, and decoders."
        )


def load_network(
    base: Base,
    *,
    classes: int | None,
    dtype: str,
    seed: int,
    quantize: str = "none",
    reads: HeadInput = BY_CONVENTION,
) -> PreTrainedModel:
    """Load the base as a causal language model, or as a classifier with a new float32 head.

    A quantised base is placed where bitsandbytes computes: on the current CUDA device, on the CPU without one.

    Parameters
    ----------
    base : Base
        What to load.
    classes : int or None
        Outputs of the head; None loads a causal language model.
    dtype : str
        Of the base's weights. The head is float32 whatever this is.
    seed : int
        Of the head's weights.
    quantize : {"none", "8bit", "4bit"}
        Bits of the linear layers below the head; embeddings, norms and head keep ``dtype``.
    reads : HeadInput
        What the head reads; layers above are not loaded.

    Raises
    ------
    InputError
        If transformers does not know the architecture, a file is damaged, weights are missing or of another shape,
        its head is not one linear layer, or it cannot be quantised.
    """
    config = load_config(base)
    refuse_unknown_architecture(base, config, classes)
    refuse_quantizing(base, config, quantize)
    reads.keep_layers(base.name, config)
    if classes is not None:
        config.num_labels = classes
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        # transformers fills what is missing with random numbers and only warns, so ask for what it did.
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    family = encoder_of(config)
    kept = None if family is None else [*HEAD_MODULES, *filter(None, [family.block])]
    quantization = quantization_config(quantize, dtype, kept)
    if quantization is not None:
        options["quantization_config"] = quantization
    with _LOADING:
        network, loading = _from_pretrained(base, classes, config, options)
    compute_alike_in_training_and_evaluation(network)
    if family is None:
        network.config.use_cache = False
        use_document_attention(network)
    if classes is not None:
        reads.drop_unread(network)
        refuse_without_head(base, network)
        begin_head(network, seed)
        _drop_out_in_head(network)
    _refuse_random_weights(base, loading, network, is_classifier=classes is not None)
    return network


def _from_pretrained(
    base: Base, classes: int | None, config: PreTrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a network quietly, and return what transformers says of the weights with it."""
    before = transformers_logging.get_verbosity()
    # Its "newly initialized" notice about the head would be the only thing it says, and is expected.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        kind: Any = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
        loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(base.folder, config=config, **options)
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        raise InputError(f"base: {base.name}: {str(error).strip().splitlines()[0]}") from None
    finally:
        transformers_logging.set_verbosity(before)
    return loaded


def refuse_without_head(base: Base, network: PreTrainedModel) -> None:
    """Raise an InputError for a network whose head is not one linear layer."""
    if type(head_of(network)) is not nn.Linear:  # a quantised layer is a subclass
        raise InputError(
            f"base: {base.name} ({type(network).__name__}) has no linear {head_name(network.config)!r} layer and "
            f"cannot classify; decoders (Llama, Mistral, Qwen, ...) do, and encoders may be {', '.join(ENCODERS)}."
        )


def begin_head(network: PreTrainedModel, seed: int) -> None:
    """Give the head its first weights, from its own generator: the same whatever the library drew before."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head_parameters(network).values():
        parameter.data = parameter.data.float()
        if parameter.dim() > 1:
            weight = torch.randn(parameter.shape, generator=generator) * network.config.initializer_range
            parameter.data.copy_(weight)
        else:
            parameter.data.zero_()


def _drop_out_in_head(network: PreTrainedModel) -> None:
    """Make an encoder's last dropout part of its head's own call: features that were computed before meet it too."""
    family = encoder_of(network.config)
    if family is not None:
        dropout = network.get_submodule(family.dropout)
        head = network.get_submodule(family.head)
        head.register_forward_pre_hook(lambda _, arguments: (dropout(arguments[0]),))


def _refuse_random_weights(
    base: Base, loading: dict[str, Any], network: PreTrainedModel, *, is_classifier: bool
) -> None:
    own = {name for name in network.state_dict() if not (is_classifier and is_heads(name))}
    missing = sorted(set(loading["missing_keys"]) & own)
    if missing:
        remedy = ""
        if ".pooler." in missing[0]:
            remedy = " To read the first token or the mean without that layer, set pooling: first or mean."
        elif missing[0].startswith("head."):
            remedy = " Take the base's checkpoint with its masked language model's head."
        raise InputError(f"base: {base.name}: its files lack the weights {missing[0]} ({len(missing)} in all).{remedy}")
    misfits = sorted({key for key, *_ in loading["mismatched_keys"]} & own)
    if misfits:
        raise InputError(f"base: {base.name}: the weights {misfits[0]} have another shape than config.json says.")
