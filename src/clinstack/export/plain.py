"""``peft``: the stack's folders as they are, which plain PEFT opens one after another, and the order to do it in."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from clinstack.errors import InputError
from clinstack.export.check import Measured, compare, padding_of, plain_outputs, probe_rows, quiet, stack_outputs
from clinstack.export.merged import refuse_reading
from clinstack.export.source import Source, loadable_name, public_name
from clinstack.files import write_json
from clinstack.model.base import EMBEDDED_FOLDERS
from clinstack.model.building import Adapter
from clinstack.model.lineage import PEFT_PREFIX
from clinstack.model.methods.configs import VIRTUAL
from clinstack.model.saving import HEAD_FILE, HEAD_FOLDER
from clinstack.model.stack import Stack

ORDER_FILE = "order.json"
_TOGETHER = ("lora", "dora", "rslora")
"""Methods whose adapters plain PEFT lets into one model."""


def write_plain(source: Source, folder: Path) -> Measured:
    """Copy the stack, write the order, open it with plain PEFT where that can, and compare.

    Raises
    ------
    InputError
        If the stack has no adapter.
    ExportError
        If outputs differ.
    """
    stack = source.stack
    if not stack.adapters:
        raise InputError("export: the stack is a head on its base and has no adapter; use --as merged.")
    shutil.copytree(source.folder, folder, dirs_exist_ok=True)
    write_json(folder / ORDER_FILE, order_of(source))
    rows = probe_rows(stack)
    wanted = stack_outputs(stack, rows)
    obstacle = why_not_plain(stack)
    if obstacle is not None:
        copy = Stack.load(folder, loadable_name(stack.base), quantize="none")
        copy.network.float()
        return replace(compare(wanted, stack_outputs(copy, rows), "the folder"), opened_with="clinstack, Stack.load")
    model = _open(folder, source)
    is_classifier = stack.task is not None
    alone = any(adapter.method in VIRTUAL for adapter in stack.adapters)
    found = plain_outputs(model, rows, padding_of(stack), is_classifier=is_classifier, one_by_one=alone)
    return replace(
        compare(wanted, found, "the folder, opened with plain PEFT,"), opened_with=f"peft, {type(model).__name__}"
    )


def order_of(source: Source) -> dict[str, Any]:
    """Return ``order.json``: what lies on the base, from below, and where the head is."""
    entries = [{"folder": item["folder"], "method": item["method"]} for item in source.record["adapters"]]
    head = source.record["head"]
    place = None if head is None else head["folder"]
    return {"adapters": entries, "head": f"{HEAD_FOLDER}/{HEAD_FILE}" if place == HEAD_FOLDER else place}


def why_not_plain(stack: Stack) -> str | None:
    """Return why plain PEFT cannot put a stack together; None where it can."""
    above = _above(stack.adapters)
    if len(above) > 1 and any(adapter.method not in _TOGETHER for adapter in above):
        return "plain PEFT does not combine adapters of these methods in one model"
    try:
        refuse_reading(stack, "")
    except InputError:
        return f"the head reads {stack.pooling!r} of the tokens, which transformers' model of this family does not"
    if stack.is_encoder and stack.reads.pooling != "auto" and stack.network.config.model_type == "modernbert":
        return f"the head reads {stack.pooling!r} of the tokens, and the base's configuration says otherwise"
    return None


def opening_code(source: Source) -> list[str]:
    """Return the lines of code with which plain PEFT opens the whole, in the folder; what `write_plain` runs."""
    stack = source.stack
    if why_not_plain(stack) is not None:
        return [
            "from pathlib import Path",
            "from clinstack.model.stack import Stack",
            "",
            "stack = Stack.load(Path('.'))",
        ]
    kind, options, base, in_folder = _base_settings(source)
    written = "".join(f", {key}={value!r}" for key, value in options.items())
    code = [f"from transformers import {kind}, AutoTokenizer"]
    above = _above(stack.adapters)
    if above:
        code.append("from peft import PeftConfig, PeftModel")
    if _head_file(source):
        code.append("from safetensors.torch import load_file")
    code += [
        "",
        *_base_lines(stack, base, in_folder=in_folder),
        "tokenizer = AutoTokenizer.from_pretrained(base)  # pad on the right",
        f"model = {kind}.from_pretrained(base{written}, dtype='float32')",
    ]
    if stack.task is not None:
        code.append("model.config.pad_token_id = tokenizer.pad_token_id")
    if _head_file(source):
        code += [
            f"head = load_file('{HEAD_FOLDER}/{HEAD_FILE}')",
            f"head = {{key.removeprefix('{PEFT_PREFIX}'): value for key, value in head.items()}}",
            "model.load_state_dict(head, strict=False)",
        ]
    if above:
        first, *rest = (adapter.name for adapter in above)
        code.append(f"config = PeftConfig.from_pretrained('{first}')")
        code += [f"config.{key} = {value!r}" for key, value in _config_changes(source).items()]
        code.append(f"model = PeftModel.from_pretrained(model, '{first}', adapter_name='{first}', config=config)")
        code += [f"model.load_adapter('{other}', adapter_name='{other}')" for other in rest]
        if rest:
            names = ", ".join(f"'{adapter.name}'" for adapter in above)
            code.append(f"model.base_model.set_adapter([{names}])  # all at once; PeftModel.set_adapter takes one name")
    return [*code, "model.eval()"]


def _base_lines(stack: Stack, base: str, *, in_folder: bool) -> list[str]:
    """Return the lines that name the base; a place on this machine is nobody else's."""
    if in_folder:
        return [f"base = {base!r}"]
    name = stack.base.name
    if name in EMBEDDED_FOLDERS:
        return ["import clinstack.model.base", f"base = clinstack.model.base.EMBEDDED_FOLDERS[{name!r}]"]
    return [f"base = {public_name(stack.base)!r}  # the base that stack.json names, where it is on your machine"]


def _open(folder: Path, source: Source) -> Any:
    """Open a copied stack without clinstack, as `opening_code` says it."""
    stack = source.stack
    kind, options, base, in_folder = _base_settings(source)
    kinds: dict[str, Any] = {
        known.__name__: known for known in (AutoModelForCausalLM, AutoModelForSequenceClassification)
    }
    model: Any
    with quiet():
        model = (
            kinds[kind]
            .from_pretrained(
                str(folder / base) if in_folder else base,
                **options,
                dtype=getattr(torch, "float32" if in_folder else source.dtype),
                local_files_only=True,
            )
            .float()
        )  # now: PEFT would round a head in an adapter's file to the base's dtype
        if stack.task is not None:
            model.config.pad_token_id = stack.tokenizer.pad_token_id
        if _head_file(source):
            head = load_file(folder / HEAD_FOLDER / HEAD_FILE)
            head = {key.removeprefix(PEFT_PREFIX): value for key, value in head.items()}
            model.load_state_dict(head, strict=False)
        above = _above(stack.adapters)
        if above:
            first, *rest = (adapter.name for adapter in above)
            config = PeftConfig.from_pretrained(str(folder / first))
            for key, value in _config_changes(source).items():
                setattr(config, key, value)
            model = PeftModel.from_pretrained(model, str(folder / first), adapter_name=first, config=config)
            for other in rest:
                model.load_adapter(str(folder / other), adapter_name=other)
            if rest:
                model.base_model.set_adapter([adapter.name for adapter in above])
    return model


def _above(adapters: Sequence[Adapter]) -> Sequence[Adapter]:
    """Return the adapters that PEFT has to do with: all but a fully fine-tuned base."""
    return adapters[1:] if adapters and adapters[0].method == "full" else adapters


def _base_settings(source: Source) -> tuple[str, dict[str, Any], str, bool]:
    """Return the class of the base, its options, its place, and whether that is in the stack's folder."""
    stack = source.stack
    kind = "AutoModelForCausalLM" if stack.task is None else "AutoModelForSequenceClassification"
    options: dict[str, Any] = {} if stack.task is None else {"num_labels": len(stack.task.classes)}
    if stack.adapters[0].method == "full":
        return kind, options, stack.adapters[0].name, True
    if stack.layer is not None:
        options["num_hidden_layers"] = stack.layer
    return kind, options, loadable_name(stack.base), False


def _head_file(source: Source) -> bool:
    head = source.record["head"]
    return head is not None and head["folder"] == HEAD_FOLDER


def _config_changes(source: Source) -> dict[str, Any]:
    """Return what of the lowest adapter's configuration is changed before PEFT reads it, so that it asks for no head
    where none is in the folder.
    """
    stack = source.stack
    first, *rest = _above(stack.adapters)
    if first.method in VIRTUAL:
        # Runs the virtual tokens and passes the logits on.
        return {} if stack.task is None else {"task_type": "FEATURE_EXTRACTION"}
    if first.method == "adaption_prompt" or (first.carries_head and not rest):
        return {}
    return {"task_type": None, "modules_to_save": None}
