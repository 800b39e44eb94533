"""A stack as a server knows it: what it answers, what it reads, and where it came from. Read from disk and verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.model.base import Base
from clinstack.model.config import load_config
from clinstack.model.factors import Factors, NotLowRankError, factors_of, read_adapters
from clinstack.model.families import encoder_of
from clinstack.model.lineage import read_stack_record, run_record, stack_folder
from clinstack.model.pooling import HeadInput
from clinstack.model.reading import Reading
from clinstack.model.saving import read_calibration, read_head, read_prompt
from clinstack.serve.found import label_of
from clinstack.tasks import Task
from clinstack.tokens.documents import Tokens
from clinstack.tokens.prompts import Prompt


@dataclass(frozen=True)
class EncodedNote:
    """A note as a stack reads it.

    Parameters
    ----------
    pieces : list of int64 arrays
        At least one; several where the stack reads chunks.
    tokens : int
        Tokens of all pieces, with what stands around them.
    cut : int
        Tokens of the note that no piece has.
    """

    pieces: list[Tokens]
    tokens: int
    cut: int


@dataclass(frozen=True)
class ServedStack:
    """What a server says of a stack.

    Parameters
    ----------
    name : str
        Under which it is asked for.
    task : Task or None
        None for a language model.
    prompt : Prompt or None
        Of a language model that follows instructions.
    reading : Reading
        What a classifier reads of a note.
    calibration : dict or None
    fingerprint : str
        ``sha256:`` and the hash of its ``stack.json``.
    folder : Path
        The Stack.
    max_tokens : int
        The longest piece of a classifier, the context of a language model.
    label : str
        The stack's adapters, as its Run calls them.
    own_copy : bool
        Whether it has a base of its own, because its adapters cannot share one.
    """

    name: str
    task: Task | None
    prompt: Prompt | None
    reading: Reading
    calibration: dict[str, Any] | None
    fingerprint: str
    folder: Path
    max_tokens: int
    label: str
    own_copy: bool


@dataclass(frozen=True)
class StackOnDisk:
    """A stack as it was read, before anything of it is in the network.

    Parameters
    ----------
    folder : Path
    record : dict
        Its ``stack.json``.
    adapters : tuple of (str, Factors)
        Hash of the weights and factors of each adapter, from the base upwards; empty where ``reason`` is not.
    head : Tensor or None
        Weights [classes, hidden] in float32; None for a language model.
    pooling : HeadInput
    reason : str
        Why the stack needs a base of its own; empty where it does not.
    """

    folder: Path
    record: dict[str, Any]
    adapters: tuple[tuple[str, Factors], ...]
    head: Tensor | None
    pooling: HeadInput
    reason: str

    @property
    def precision(self) -> tuple[str, str]:
        """The base's dtype and quantization that the stack was saved with."""
        return self.record["base"]["dtype"], self.record["base"].get("quantize", "none")

    @property
    def is_classifier(self) -> bool:
        """Whether it has a head."""
        return self.record["task"] is not None

    def described(self, name: str) -> ServedStack:
        """Return what a server says of it."""
        reading = Reading.from_dict(self.record)
        task = self.record["task"]
        return ServedStack(
            name=name,
            task=Task.from_dict(task, str(self.folder / "stack.json")) if task else None,
            prompt=read_prompt(self.folder, self.record),
            reading=reading,
            calibration=read_calibration(self.folder),
            fingerprint=sha256_file(self.folder / "stack.json"),
            folder=self.folder,
            max_tokens=reading.max_tokens if task else int(self.record["max_tokens"]),
            label=_label(self.folder, self.record),
            own_copy=bool(self.reason),
        )


def read_stack(path: Path, base: Base) -> StackOnDisk:
    """Read a Stack or a finished Run, and verify base, adapters and head.

    Raises
    ------
    InputError
        If it was built on another base, or something of it is missing, damaged, or not what ``stack.json`` records.
    """
    folder = stack_folder(path)
    record = read_stack_record(folder)
    sources = read_adapters(folder, record, base)
    pooling = HeadInput(record.get("pooling", "auto"), record.get("layer"))
    head = read_head(folder, record, list(sources.values())) if record["head"] else None
    reason = ""
    adapters: list[tuple[str, Factors]] = []
    if encoder_of(load_config(base)) is not None:
        reason = f"its base is an encoder ({base.name})"
    elif pooling.layer is not None:
        reason = f"its head reads layer {pooling.layer}, and not the last"
    else:
        try:
            adapters = [(source.fingerprint, factors_of(source, name)) for name, source in sources.items()]
            reason = _among_experts([factors for _, factors in adapters])
        except NotLowRankError as error:
            reason = f"adapter {error}".removesuffix(".")
    return StackOnDisk(
        folder=folder,
        record=record,
        adapters=() if reason else tuple(adapters),
        head=None if head is None or reason else _plain_head(head, folder),
        pooling=pooling,
        reason=reason,
    )


def _plain_head(head: dict[str, Tensor], folder: Path) -> Tensor:
    if len(head) != 1:
        raise InputError(f"{folder}: its head is not one matrix but {', '.join(sorted(head))}.")
    return next(iter(head.values())).float()


def _among_experts(factors: Sequence[Factors]) -> str:
    """Say that a layer sees tokens in another order than the row's, which the routing could not follow."""
    names = (name for part in factors for name in part.layers)
    found = next((name for name in names if ".experts." in name), None)
    return "" if found is None else f"it adapts {found}, which sees only some tokens of a row"


def _label(folder: Path, record: dict[str, Any]) -> str:
    return label_of(run_record(folder), record)
