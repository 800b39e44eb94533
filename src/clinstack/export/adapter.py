"""A plain PEFT folder of one adapter with its head, and how plain PEFT opens it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from clinstack.export.check import quiet
from clinstack.export.source import loadable_name
from clinstack.files import write_json
from clinstack.model.lineage import CONFIG_FILE, WEIGHTS_FILE, head_keys
from clinstack.model.saving import plain_values
from clinstack.model.stack import Stack


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], stack: Stack, base: str
) -> None:
    """Write a PEFT folder, with the stack's head where it has one.

    Parameters
    ----------
    config : mapping
        Of PEFT, as `to_dict` gives it or less.
    tensors : mapping
        Under the names that PEFT gives them in files.
    base : str
        What PEFT finds the base by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
    values = {**config, "base_model_name_or_path": base, "inference_mode": True, "task_type": "CAUSAL_LM"}
    if stack.task is not None:
        head = stack.head_parameters()
        contents |= {key: tensor.detach().cpu().contiguous() for key, tensor in head_keys(head).items()}
        values["task_type"] = "SEQ_CLS"
        values["modules_to_save"] = sorted({name.split(".", 1)[0] for name in head})
    write_json(folder / CONFIG_FILE, plain_values(values))
    save_file(contents, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def open_adapter(folder: Path, stack: Stack, dtype: str, base: Path | None = None) -> Any:
    """Open a folder with PEFT's own classes, the base in a dtype's numbers and computing in float32.

    Parameters
    ----------
    base : Path, optional
        The base's folder; what the adapter's configuration says when not given.

    Returns
    -------
    PeftModel
    """
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "local_files_only": True}
    if stack.task is not None:
        options["num_labels"] = len(stack.task.classes)
    model: Any
    with quiet():
        if base is None and dtype == "float32":
            auto: Any = AutoPeftModelForCausalLM if stack.task is None else AutoPeftModelForSequenceClassification
            model = auto.from_pretrained(str(folder), **options)
        else:
            kind: Any = AutoModelForCausalLM if stack.task is None else AutoModelForSequenceClassification
            plain = kind.from_pretrained(base or loadable_name(stack.base), **options)
            # Before the adapter is put on: PEFT would round the head to the base's dtype.
            model = PeftModel.from_pretrained(plain.float(), str(folder))
    if stack.task is not None:
        model.config.pad_token_id = stack.tokenizer.pad_token_id
    return model
