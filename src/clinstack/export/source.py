"""The stack that is exported, opened for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinstack.files import sha256_file
from clinstack.model.base import EMBEDDED_FOLDERS, Base
from clinstack.model.cards.names import public_base_name
from clinstack.model.lineage import is_trained_on_synthetic, read_stack_record, stack_folder
from clinstack.model.stack import Stack


@dataclass(frozen=True)
class Source:
    """A saved stack and its network in float32.

    Parameters
    ----------
    folder : Path
        The Stack on disk.
    record : dict
        Its stack.json.
    fingerprint : str
        The hash of stack.json, which has the hashes of all weights in it.
    stack : Stack
        On the CPU, not quantised; its numbers are those of its dtype, and it computes in float32.
    run_is_synthetic : bool or None
        What the Run says of its data; None for a Stack without one.
    """

    folder: Path
    record: dict[str, Any]
    fingerprint: str
    stack: Stack
    run_is_synthetic: bool | None

    @property
    def dtype(self) -> str:
        """The dtype that the stack was trained in, which what is exported has too."""
        return self.stack.dtype

    @property
    def quantized(self) -> str:
        """How the base was quantised in training: "none", "8bit" or "4bit"."""
        return str(self.record["base"].get("quantize", "none"))

    @property
    def label(self) -> str:
        """What a person calls it: its task, or its adapters."""
        return self.stack.task.name if self.stack.task is not None else self.stack.label


def open_source(path: Path, base: str | None = None) -> Source:
    """Open a Stack or a finished Run.

    A quantised base is opened without that: adapters cannot be added to quantised weights, and the plain libraries
    quantise again what they open.

    Parameters
    ----------
    base : str, optional
        Where the base is on this machine; as recorded when not given.

    Raises
    ------
    InputError
        As `Stack.load` does.
    """
    folder = stack_folder(path)
    record = read_stack_record(folder)
    stack = Stack.load(folder, base, quantize="none")
    # Rounded to the stack's dtype first, as the stack has it, and then computed in float32.
    stack.network.float()
    return Source(folder, record, sha256_file(folder / "stack.json"), stack, is_trained_on_synthetic(folder))


def public_name(base: Base) -> str:
    """Return a base's name for others: without the path that it has on this machine."""
    return public_base_name(base.name)


def is_local(base: Base) -> bool:
    """Whether a base's name is a folder's, and means nothing on another machine."""
    return base.name not in EMBEDDED_FOLDERS and Path(base.name).is_dir()


def loadable_name(base: Base) -> str:
    """Return what plain PEFT and transformers on this machine find a base by."""
    local = base.name in EMBEDDED_FOLDERS or is_local(base)
    return str(base.folder.resolve()) if local else base.name
