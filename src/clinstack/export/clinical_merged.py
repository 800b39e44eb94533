"""``clinical-merged``: the base with everything below the top adapter folded in, and the top adapter in plain PEFT.

::

    base/       base + clinical                  one for all stacks on the same clinical adapter
    adapter/    task's LoRA with its head        adapters/<task>/ for each of several stacks
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from clinstack.errors import InputError
from clinstack.export.adapter import open_adapter, write_adapter
from clinstack.export.check import (
    ROUNDING,
    Measured,
    compare,
    padding_of,
    plain_outputs,
    probe_rows,
    quiet,
    stack_outputs,
)
from clinstack.export.merge import merged_layers, refuse_unmergeable
from clinstack.export.merged import refuse_other_tokens, refuse_reading, save_model
from clinstack.export.source import Source
from clinstack.model.base import Base
from clinstack.model.config import load_config
from clinstack.model.methods.configs import LOW_RANK
from clinstack.model.stack import Stack

BASE = "base"
"""The base's folder; also what PEFT finds it by, from the folder above."""


def write_clinical_merged(sources: Sequence[Source], folder: Path) -> dict[str, Measured]:
    """Write the base once and the top adapter of each stack, and compare each.

    Returns
    -------
    dict of str to Measured
        By the adapter's folder.

    Raises
    ------
    InputError
        If a stack has nothing beneath a low-rank adapter, or the stacks differ below theirs.
    ExportError
        If outputs differ.
    """
    for source in sources:
        _refuse(source.stack)
    first = sources[0]
    for source in sources[1:]:
        _refuse_other_base(first, source)
    places = adapter_folders(sources)
    changed = _lower_weights(first.stack)
    base = _plain_base(first.stack.base, first.dtype)
    _put_in(base, changed, first.stack)
    save_model(base, first.stack, folder / BASE, "float32")
    refuse_other_tokens(first.stack.tokenizer, folder / BASE)
    for place, source in zip(places, sources, strict=True):
        _write_top(source, folder / place)
    found = {place: _measure(source, folder, place, "float32") for place, source in zip(places, sources, strict=True)}
    if first.dtype in ROUNDING:
        # The base anew, rounded; that nothing but the rounding differs is known from before.
        shutil.rmtree(folder / BASE)
        save_model(base, first.stack, folder / BASE, first.dtype)
        for place, source in zip(places, sources, strict=True):
            facts = {"before_rounding": found[place].difference}
            found[place] = replace(_measure(source, folder, place, first.dtype), facts=facts)
    return found


def adapter_folders(sources: Sequence[Source]) -> list[str]:
    """Return the folder of each stack's top adapter.

    Raises
    ------
    InputError
        If two stacks are of the same name, or one's is no name of a folder.
    """
    if len(sources) == 1:
        return ["adapter"]
    names = [source.label for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"export: two of the stacks are called {twice!r}; export one of them at a time.")
    strange = next((name for name in names if re.fullmatch(r"[\w+-][\w.+-]*", name) is None), None)
    if strange is not None:
        raise InputError(f"export: a stack is called {strange!r}, which is no name of a folder; export it alone.")
    return [f"adapters/{name}" for name in names]


def _refuse(stack: Stack) -> None:
    if len(stack.adapters) < 2:
        what = "is on the base itself" if stack.adapters else "has no adapter"
        raise InputError(
            f"export: {stack.label} {what}, so there is nothing to fold in beneath it; use --as merged or --as peft."
        )
    *lower, top = stack.adapters
    if top.method not in LOW_RANK:
        raise InputError(
            f"export: the top adapter {top.name!r} is of the method {top.method}, whose folder has no place for a "
            "head beside it; use --as peft."
        )
    if top.method == "dora" and any(adapter.method in LOW_RANK for adapter in lower):
        raise InputError(
            f"export: {top.name!r} is a DoRA, which measures the base's rows without {lower[-1].name!r} in them; on a "
            "base that has it folded in it would be another model. Use --as merged or --as peft."
        )
    refuse_unmergeable(stack, [adapter.name for adapter in lower], "merged base")
    refuse_reading(stack, "merged base", has_own_config=False)


def _refuse_other_base(first: Source, other: Source) -> None:
    """Refuse stacks that are not on the same base and lower adapters."""
    one, two = (source.stack.stacked_on(source.stack.adapters[-1].name) for source in (first, other))
    if one.base != two.base:
        raise InputError(f"export: {first.label!r} and {other.label!r} are on different bases; export them apart.")
    weights = [[weight for _, weight in found.adapters] for found in (one, two)]
    if weights[0] != weights[1]:
        raise InputError(
            f"export: beneath their top adapters {first.label!r} and {other.label!r} are not the same (adapters that "
            "went on training with the task are of one stack only); export them apart."
        )
    if first.dtype != other.dtype:
        raise InputError(
            f"export: {first.label!r} was trained in {first.dtype} and {other.label!r} in {other.dtype}; export them "
            "apart."
        )


def _lower_weights(stack: Stack) -> dict[str, Tensor]:
    """Return the tensors that everything below the top adapter has changed, by their plain names in the network."""
    *lower, top = stack.adapters
    changed: dict[str, Tensor] = {}
    for adapter in lower:
        if adapter.method == "full":
            changed |= stack.adapter_tensors(adapter.name)
    with stack.switched_off(top.name):
        for layer, tensors in merged_layers(stack, [adapter.name for adapter in lower]).items():
            changed |= {f"{layer}.{key}": tensor for key, tensor in tensors.items()}
    return changed


def _plain_base(base: Base, dtype: str) -> PreTrainedModel:
    """Open a base as the model that its files are of, with all that its pretraining has left.

    Its numbers are those of the dtype that the stack was trained in; they are float32 tensors.
    """
    config = load_config(base)
    names = [name for name in (getattr(config, "architectures", None) or []) if hasattr(transformers, name)]
    kind: Any = getattr(transformers, names[0]) if names else AutoModelForCausalLM
    with quiet():
        model: PreTrainedModel = kind.from_pretrained(
            base.folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        )
    model.float()
    return model


def _put_in(base: PreTrainedModel, changed: dict[str, Tensor], stack: Stack) -> None:
    """Copy changed tensors into a base, whatever its class calls the part below its head."""
    inside, outside = (_prefix(network) for network in (stack.network, base))
    embeddings, output = base.get_input_embeddings(), base.get_output_embeddings()
    own = dict(base.named_parameters(remove_duplicate=False))
    for name, tensor in changed.items():
        below = name.removeprefix(inside)
        key = outside + below if name.startswith(inside) else name
        if key not in own:
            continue  # such as the output layer of a language model, in a base without one
        is_tied = output is not None and output.weight is embeddings.weight and own[key] is embeddings.weight
        if is_tied and not any(adapter.method == "full" for adapter in stack.adapters):
            # An adapter on the embeddings changes what is looked up, and not the output layer that shares its weights.
            embeddings.weight = nn.Parameter(tensor.clone(), requires_grad=False)
            base.config.tie_word_embeddings = False
            continue
        own[key].data = tensor.clone()


def _prefix(network: PreTrainedModel) -> str:
    """Return what stands before the names of the part below the head."""
    return "" if network.base_model is network else f"{network.base_model_prefix}."


def _write_top(source: Source, folder: Path) -> None:
    """Write a stack's top adapter with its head."""
    top = source.stack.adapters[-1].name
    config: Any = source.stack.placed(top).config()
    write_adapter(folder, config.to_dict(), source.stack.adapter_tensors(top), source.stack, BASE)


def _measure(source: Source, folder: Path, place: str, dtype: str) -> Measured:
    """Open a top adapter on the base in the folder, and compare with its stack."""
    stack = source.stack
    rows = probe_rows(stack)
    model = open_adapter(folder / place, stack, dtype, folder / BASE)
    found = plain_outputs(model, rows, padding_of(stack), is_classifier=stack.task is not None)
    measured = compare(stack_outputs(stack, rows), found, f"{place} on {BASE}, opened with plain PEFT,", dtype)
    return replace(measured, opened_with=f"peft, {type(model).__name__}")
