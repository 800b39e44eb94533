"""From a spec to a network: the base, the adapters in their order, and the head."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from clinstack.errors import InputError
from clinstack.model.base import Base, load_network
from clinstack.model.families import DECODER_HEAD, head_name, head_of, head_parameters
from clinstack.model.lineage import AdapterSource, find_adapter_folder, read_adapter, refuse_wrong_base
from clinstack.model.methods.configs import LOW_RANK
from clinstack.model.methods.place import place
from clinstack.model.methods.placed import Placed
from clinstack.model.pooling import BY_CONVENTION, HeadInput
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task


@dataclass(frozen=True)
class Adapter:
    """An adapter's place in a stack."""

    name: str
    method: str
    trainable: bool
    verified: bool
    """False when it came without a record of the base it was trained on."""
    carries_head: bool
    """Whether it was made for the stack's task; its folder then holds the head, so that plain PEFT opens it whole."""


@dataclass(frozen=True)
class Parts:
    """What a stack is made of."""

    base: Base
    network: PreTrainedModel
    placed: tuple[Placed, ...]
    adapters: tuple[Adapter, ...]
    task: Task | None
    dtype: str
    quantize: str
    reads: HeadInput


def read_sources(base: Base, adapters: Sequence[AdapterRecipe]) -> list[AdapterSource | None]:
    """Read the adapters of a recipe that have a path, and refuse those that were trained on something else.

    Raises
    ------
    InputError
        If one cannot be read, or was trained on another base or other adapters.
    """
    sources: list[AdapterSource | None] = []
    beneath: list[tuple[str, str]] = []
    for index, adapter in enumerate(adapters):
        source = None
        if adapter.path is not None:
            key = f"adapters.{index} ({adapter.name})"
            source = read_adapter(find_adapter_folder(Path(adapter.path), key), key)
            refuse_wrong_base(source, key, base, beneath)
        sources.append(source)
        beneath.append((adapter.name, source.fingerprint if source else "new"))
    return sources


def assemble(
    base: Base,
    adapters: Sequence[AdapterRecipe],
    sources: Sequence[AdapterSource | None],
    task: Task | None,
    *,
    seed: int,
    dtype: str,
    quantize: str = "none",
    reads: HeadInput = BY_CONVENTION,
    head: dict[str, Tensor] | None = None,
    head_in: str | None = None,
) -> Parts:
    """Load a base, put its adapters in, and its head on top.

    Parameters
    ----------
    adapters, sources : sequences
        From the base upwards; a source is None for a new adapter.
    reads : HeadInput
        What of the base the head reads.
    head : dict of str to Tensor, optional
        The head's tensors by their names in the network; by ``seed`` without them.
    head_in : str, optional
        The folder that a saved stack has its head in.

    Raises
    ------
    InputError
        If an adapter does not fit the base or what lies beneath it.
    """
    classes = len(task.classes) if task else None
    methods = [source.method if source else adapter.method for adapter, source in zip(adapters, sources, strict=True)]
    # A fully fine-tuned base is float32 as its files are; computing in another dtype is then a matter of autocast.
    weights = "float32" if "full" in methods and quantize == "none" else dtype
    network = load_network(
        base,
        classes=classes,
        dtype=weights,
        seed=derived_seed(seed, DECODER_HEAD),
        quantize=quantize,
        reads=reads,
    )
    _refuse_names_of_modules(network, adapters)
    placed: list[Placed] = []
    records: list[Adapter] = []
    for adapter, source, method in zip(adapters, sources, methods, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, adapter.name))
            placed.append(place(adapter, source, network, base, placed, classes, quantize, reads))
        made_here = head_in == adapter.name if head_in else source is None or method == "full"
        carries_head = task is not None and adapter is adapters[-1] and made_here and method in (*LOW_RANK, "full")
        verified = source is None or source.verified
        records.append(Adapter(adapter.name, method, adapter.is_trainable, verified, carries_head))
        if task is not None and isinstance(head_of(network), LoraLayer):
            raise InputError(
                f"adapters: {adapter.name!r} adapts the head {head_name(network.config)!r} too; a stack trains it "
                "whole."
            )
    if head is not None:
        _copy_head(network, head)
    return Parts(base, network, tuple(placed), tuple(records), task, dtype, quantize, reads)


def derived_seed(seed: int, name: str) -> int:
    """Return a seed of its own for each part, so that adding one part does not change another's first weights."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big")


def count_numbers(parameters: Iterable[nn.Parameter]) -> int:
    """Return how many numbers parameters hold; those in 4 bits hold two in a byte."""
    return sum(
        parameter.numel() * (2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1)
        for parameter in parameters
    )


def _refuse_names_of_modules(network: PreTrainedModel, adapters: Sequence[AdapterRecipe]) -> None:
    """Refuse an adapter called like a part of the base: PEFT finds an adapter's tensors by its name between dots."""
    taken = {part for name, _ in network.named_parameters() for part in name.split(".")}
    for adapter in adapters:
        if adapter.name in taken:
            raise InputError(
                f"adapters.{adapter.name}: the base has a part called {adapter.name!r} too, and PEFT could not tell "
                "them apart; use another name, such as 'clinical' or 'task'."
            )


def _copy_head(network: PreTrainedModel, head: dict[str, Tensor]) -> None:
    own = head_parameters(network)
    if own.keys() != head.keys():
        raise InputError(f"The head has the tensors {', '.join(head)}; that of the base has {', '.join(own)}.")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != head[name].shape:
                raise InputError(
                    f"The head has {head[name].shape[0]} outputs; the task has {parameter.shape[0]} classes."
                )
            parameter.copy_(head[name])
