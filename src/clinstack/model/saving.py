"""A stack on disk: ``stack.json``, and a folder for each adapter; safetensors only, never half-written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clinstack import __version__
from clinstack.errors import InputError
from clinstack.files import read_json, replacing_directory, sha256_file, write_json, write_text
from clinstack.model.base import find_base
from clinstack.model.building import Adapter, Parts, assemble
from clinstack.model.card import adapter_card
from clinstack.model.lineage import (
    CONFIG_FILE,
    ENCODER_FILE,
    PEFT_PREFIX,
    WEIGHTS_FILE,
    AdapterSource,
    head_keys,
    pop_head,
    read_adapter,
    read_stack_record,
    refuse_wrong_base,
    tensors_hash,
)
from clinstack.model.methods.configs import VIRTUAL
from clinstack.model.methods.full import Full
from clinstack.model.pooling import HeadInput
from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt

if TYPE_CHECKING:
    from clinstack.model.stack import Stack

HEAD_FOLDER = "head"
HEAD_FILE = "head.safetensors"
CALIBRATION_FILE = "calibration.json"
"""How a classifier's scores become probabilities; beside ``stack.json``, where it was fitted."""


def save_stack(stack: Stack, folder: Path) -> None:
    """Write a stack in one step.

    The head lies in the top adapter's folder when that was made for this task (plain PEFT then opens it as a
    classifier), else in ``head/``.
    """
    from clinstack.model.checks import probe_output

    head_in = next((adapter.name for adapter in stack.adapters if adapter.carries_head), HEAD_FOLDER)
    entries = []
    with replacing_directory(folder) as temporary:
        for adapter in stack.adapters:
            stacked_on = stack.stacked_on(adapter.name)
            tensors = stack.adapter_tensors(adapter.name)
            encoder = stack.placed(adapter.name).encoder()
            entries.append(
                {
                    "name": adapter.name,
                    "method": adapter.method,
                    "trainable": adapter.trainable,
                    "folder": adapter.name,
                    "weights": tensors_hash(tensors),
                    **({"encoder": tensors_hash(encoder)} if encoder else {}),
                    "parent": stacked_on.parent,
                    "stacked_on": stacked_on.to_dict(),
                    "verified": adapter.verified,
                }
            )
            _save_adapter(stack, temporary / adapter.name, adapter, tensors, encoder)
        if stack.task is not None and head_in == HEAD_FOLDER:
            (temporary / HEAD_FOLDER).mkdir()
            save_file(_contiguous(head_keys(stack.head_parameters())), temporary / HEAD_FOLDER / HEAD_FILE)
        if stack.calibration is not None:
            write_json(temporary / CALIBRATION_FILE, stack.calibration)
        write_json(
            temporary / "stack.json",
            {
                "format_version": 1,
                "clinstack": __version__,
                "base": {
                    "id": stack.base.name,
                    "fingerprint": stack.base.fingerprint,
                    "dtype": stack.dtype,
                    "quantize": stack.quantize,
                },
                "adapters": entries,
                "head": {"folder": head_in, "weights": tensors_hash(head_keys(stack.head_parameters()))}
                if stack.task
                else None,
                "task": stack.task.to_dict() if stack.task else None,
                **stack.reading.to_dict(),
                "pooling": stack.reads.pooling,
                "layer": stack.layer,
                **({} if stack.prompt is None else {"prompt": stack.prompt.to_dict()}),
                **({} if stack.task else {"max_tokens": stack.max_tokens}),
                **({} if stack.data is None else {"data": [source.to_dict() for source in stack.data]}),
                **({} if stack.privacy is None else {"privacy": [entry.to_dict() for entry in stack.privacy]}),
                "calibration": None if stack.calibration is None else sha256_file(temporary / CALIBRATION_FILE),
                "probe": probe_output(stack).tolist(),
            },
        )


def _save_adapter(
    stack: Stack, folder: Path, adapter: Adapter, tensors: dict[str, Tensor], encoder: dict[str, Tensor]
) -> None:
    folder.mkdir()
    placed = stack.placed(adapter.name)
    if isinstance(placed, Full):
        head = stack.head_parameters() if adapter.carries_head else {}
        placed.save(folder, tensors, head, stack.tokenizer.pad_token_id)
    else:
        config = placed.config()
        assert config is not None
        values = config.to_dict()
        if values.get("target_modules") is not None and not isinstance(values["target_modules"], str):
            values["target_modules"] = sorted(values["target_modules"])
        values["base_model_name_or_path"] = stack.base.name
        if values.get("tokenizer_name_or_path") is not None:
            values["tokenizer_name_or_path"] = stack.base.name
        values["inference_mode"] = True
        contents = _contiguous(tensors)
        if adapter.method in VIRTUAL:
            values["task_type"] = "CAUSAL_LM"  # plain PEFT runs virtual tokens in the wrapper of a task only
        if adapter.carries_head:
            values["task_type"] = "SEQ_CLS"
            head = stack.head_parameters()
            values["modules_to_save"] = sorted({name.split(".", 1)[0] for name in head})
            contents |= _contiguous(head_keys(head))
        write_json(folder / CONFIG_FILE, plain_values(values))
        save_file(contents, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        if encoder:
            save_file(_contiguous(encoder), folder / ENCODER_FILE)
    beneath = stack.adapters[: stack.adapters.index(adapter)]
    card = adapter_card(adapter, beneath, stack.base, stack.task, stack.reads, stack.prompt, stack.data)
    write_text(folder / "README.md", card)


def load_parts(folder: Path, record: dict[str, Any], base: str | None, dtype: str | None, quantize: str) -> Parts:
    """Read what a saved stack is made of, and verify its fingerprints.

    Raises
    ------
    InputError
        If the base, an adapter or the head is not the recorded one; the message says which.
    """
    found = find_base(base or record["base"]["id"])
    if found.fingerprint != record["base"]["fingerprint"]:
        raise InputError(
            f"{folder}: the base {found.name} is not the one that this stack was built on "
            f"(fingerprint {found.fingerprint[:19]}, recorded {record['base']['fingerprint'][:19]})."
        )
    adapters: list[AdapterRecipe] = []
    sources: list[AdapterSource] = []
    beneath: list[tuple[str, str]] = []
    for item in record["adapters"]:
        key = f"{folder}, adapter {item['name']}"
        source = read_adapter(folder / item["folder"], key)
        refuse_wrong_base(source, key, found, beneath)
        beneath.append((item["name"], source.fingerprint))
        path = str(folder / item["folder"])
        adapters.append(AdapterRecipe(name=item["name"], path=path, trainable=item["trainable"]))
        sources.append(source)
    return assemble(
        found,
        adapters,
        sources,
        Task.from_dict(record["task"], str(folder / "stack.json")) if record["task"] else None,
        seed=0,
        dtype=dtype or record["base"]["dtype"],
        quantize=quantize or record["base"].get("quantize", "none"),
        reads=HeadInput(record.get("pooling", "auto"), record.get("layer")),
        head=read_head(folder, record, sources) if record["head"] else None,
        head_in=record["head"]["folder"] if record["head"] else None,
    )


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """Return what a stack's folder says of calibration; None where it was not fitted.

    Raises
    ------
    InputError
        If the file is damaged, or not the one that ``stack.json`` records.
    """
    file = folder / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        values = read_json(file)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged; evaluate the Run again, or remove it to go without calibration.")
    record = read_stack_record(folder)
    if "calibration" in record and record["calibration"] != sha256_file(file):  # older Stacks do not record it
        raise InputError(f"{file} is not the one that stack.json records; take the Stack from its source again.")
    return values


def read_prompt(folder: Path, record: dict[str, Any]) -> Prompt | None:
    """Return the prompt that ``stack.json`` records; None for a stack that was not trained on instructions.

    Raises
    ------
    InputError
        If it is damaged.
    """
    if record.get("prompt") is None:
        return None
    try:
        return Prompt.from_dict(record["prompt"])
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / 'stack.json'}: its prompt is damaged; train the stack again.") from None


def read_head(folder: Path, record: dict[str, Any], sources: list[AdapterSource]) -> dict[str, Tensor]:
    """Return a saved stack's head by its names in the network, from the folder that ``stack.json`` names.

    Raises
    ------
    InputError
        If it is missing, damaged, or not the one that is recorded.
    """
    place = record["head"]["folder"]
    if place == HEAD_FOLDER:
        try:
            head = pop_head(load_file(folder / HEAD_FOLDER / HEAD_FILE), PEFT_PREFIX)
        except (OSError, SafetensorError):
            head = None
        place = f"{HEAD_FOLDER}/{HEAD_FILE}"
    else:
        names = [item["folder"] for item in record["adapters"]]
        head = sources[names.index(place)].head if place in names else None
    if head is None:
        raise InputError(f"{folder}: the head in {place} is missing or damaged.")
    if tensors_hash(head_keys(head)) != record["head"]["weights"]:
        raise InputError(f"{folder}: the head is not the one that stack.json records.")
    return head


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def plain_values(value: Any) -> Any:
    """Turn the sets and enumerations of PEFT's configurations into what JSON holds."""
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain_values(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return value.value if hasattr(value, "value") else value
