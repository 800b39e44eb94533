"""``merged``: one plain transformers folder, every adapter folded in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from clinstack.errors import InputError
from clinstack.export.check import (
    ROUNDING,
    ExportError,
    Measured,
    compare,
    padding_of,
    plain_outputs,
    probe_rows,
    quiet,
    stack_outputs,
)
from clinstack.export.merge import refuse_unmergeable, unload
from clinstack.export.source import Source
from clinstack.model.families import head_parameters
from clinstack.model.stack import Stack
from clinstack.tasks import Task


def write_merged(source: Source, folder: Path, kind: str = "merged") -> Measured:
    """Write model and tokenizer, and compare; the source's stack cannot be used after it.

    Raises
    ------
    InputError
        If the stack cannot be a plain transformers model.
    ExportError
        If outputs or tokens differ.
    """
    stack = source.stack
    refuse_unmergeable(stack, [adapter.name for adapter in stack.adapters], kind)
    refuse_reading(stack, kind)
    rows, padding = probe_rows(stack), padding_of(stack)
    is_classifier = stack.task is not None
    wanted = stack_outputs(stack, rows)
    network = unload(stack)
    describe_model(network, stack)
    facts: dict[str, Any] = {}
    expected = wanted
    if source.dtype in ROUNDING:
        exact = plain_outputs(network, rows, padding, is_classifier=is_classifier)
        before = compare(wanted, exact, "the merged model before its weights are rounded")
        facts["before_rounding"] = before.difference
        round_weights(network, getattr(torch, source.dtype))
        expected = plain_outputs(network, rows, padding, is_classifier=is_classifier)
    save_model(network, stack, folder, source.dtype)
    network.to("meta")  # type: ignore[arg-type]  # gives the memory back; its configuration is asked for later
    kind_of_model: Any = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    with quiet():
        model = kind_of_model.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    found = plain_outputs(model, rows, padding, is_classifier=is_classifier)
    what = f"the folder, opened with {kind_of_model.__name__},"
    compare(expected, found, what)
    refuse_other_tokens(stack.tokenizer, folder)
    measured = compare(wanted, found, what, source.dtype)
    return Measured(measured.difference, measured.limit, f"transformers, {kind_of_model.__name__}", facts)


def refuse_reading(stack: Stack, kind: str, *, has_own_config: bool = True) -> None:
    """Refuse a head that reads something else than transformers' model of the family gives it.

    Parameters
    ----------
    kind : str
        What is to be written, for the message.
    has_own_config : bool
        Whether what is written has a configuration of the model, where a ModernBERT's pooling stands, and how many
        layers there are; else the head must read what the plain base gives.

    Raises
    ------
    InputError
        Saying what it reads.
    """
    if stack.task is None:
        return
    family = stack.network.config.model_type
    if not stack.is_encoder:
        usual = stack.pooling == "last"
    elif family == "bert":
        usual = stack.reads.pooling == "auto"  # another goes without the pooler
    else:
        usual = stack.pooling == "first" or (family == "modernbert" and stack.pooling == "mean")
        usual = usual and (family != "modernbert" or has_own_config or stack.reads.pooling == "auto")
    if not usual:
        of = "the mean over all tokens" if stack.pooling == "mean" else f"the {stack.pooling} token"
        of += " without the pooler" if family == "bert" and stack.pooling == "first" else ""
        raise InputError(
            f"export: the head reads {of} (pooling: {stack.reads.pooling}), and transformers' classifier of a {family} "
            f"cannot, so there is no {kind} of this stack; use --as peft, which clinstack opens."
        )
    if stack.layer is not None and not has_own_config:
        raise InputError(
            f"export: the head reads layer {stack.layer}, and a plain base with an adapter computes all its layers, so "
            f"there is no {kind} of this stack; use --as merged, which has only the layers up to it."
        )


def describe_model(network: PreTrainedModel, stack: Stack) -> None:
    """Write into the configuration what a plain model must know: classes, padding, end tokens."""
    config: Any = network.config
    config.use_cache = True
    config.architectures = [type(network).__name__]
    if stack.task is not None:
        config.update(label_settings(stack.task))
        config.pad_token_id = stack.tokenizer.pad_token_id
        return
    tokenizer = stack.tokenizer
    ends = stack.prompt.end_tokens(tokenizer) if stack.prompt is not None else tokenizer.eos_token_id
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )


def label_settings(task: Task) -> dict[str, Any]:
    """Return what transformers' configurations say of a task."""
    return {
        "id2label": dict(enumerate(task.classes)),
        "label2id": {name: index for index, name in enumerate(task.classes)},
        "problem_type": "multi_label_classification" if task.kind == "multilabel" else "single_label_classification",
    }


def round_weights(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all weights but the head's to a dtype's numbers, in place; they stay float32 tensors."""
    head = {id(parameter) for parameter in head_parameters(network).values()}
    with torch.no_grad():
        for parameter in network.parameters():
            if id(parameter) not in head:
                parameter.copy_(parameter.to(dtype))


def save_model(network: PreTrainedModel, stack: Stack, folder: Path, dtype: str) -> None:
    """Write a model and its stack's tokenizer as transformers opens them; a head stays float32 in the file."""
    head = head_parameters(network)
    kept = {name: parameter.data for name, parameter in head.items()}
    network.to(getattr(torch, dtype))
    for name, parameter in head.items():
        parameter.data = kept[name]
    network.config.dtype = dtype
    with quiet():
        network.save_pretrained(folder)
        stack.tokenizer.save_pretrained(folder)
    sentencepiece = stack.base.folder / "tokenizer.model"
    if sentencepiece.is_file():  # transformers writes tokenizer.json alone, and other engines may want this one
        shutil.copyfile(sentencepiece, folder / sentencepiece.name)


def refuse_other_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse an exported tokenizer that reads texts in another way than the stack's."""
    texts = ["BP 94/52, lactate 3.1; no Known allergies.\n\nPLAN:  furosemide 40mg", "Père Noël β-blocker"]
    with quiet():
        written = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = [[list(each(text)["input_ids"]) for text in texts] for each in (tokenizer, written)]
    if ids[0] != ids[1] or written.pad_token_id != tokenizer.pad_token_id:
        raise ExportError("export: the tokenizer that was written reads texts in another way. Nothing was written.")
