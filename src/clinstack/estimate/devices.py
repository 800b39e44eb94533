"""Graphics cards by name: how much memory a process finds there, and which attention they have.

Sizes are what PyTorch calls a card's total capacity when memory runs out; the name's round number is larger. Not all of
it can hold tensors: a CUDA process takes most of a gigabyte for its context, its kernels and cuBLAS, and PyTorch's
allocator cannot fill every gap. That is left out of `room`.
"""

from __future__ import annotations

from dataclasses import dataclass

from clinstack.errors import InputError
from clinstack.recipe.reading import suggest

CONTEXT = 850 * 2**20
"""What a CUDA process takes beside tensors: the context with PyTorch's kernels, 770 MiB on an H100 with CUDA 13 and
less on older cards, and cuBLAS's workspaces."""
FRAGMENTS = 0.03
"""Share of the rest that gaps between PyTorch's blocks cost when it is nearly full: it then gives blocks back that it
keeps otherwise."""


@dataclass(frozen=True)
class Device:
    """A graphics card.

    Parameters
    ----------
    name : str
    capacity : float
        Of the whole card, in GiB.
    capability : float
        CUDA's compute capability.
    """

    name: str
    capacity: float
    capability: float

    @property
    def has_flash(self) -> bool:
        """Whether FlashAttention 2 runs there."""
        return self.capability >= 8.0

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 is computed in hardware."""
        return self.capability >= 8.0

    @property
    def room(self) -> int:
        """Bytes that tensors can have."""
        return round((self.capacity * 2**30 - CONTEXT) * (1 - FRAGMENTS))


DEVICES: tuple[Device, ...] = (
    Device("T4 16GB", 14.74, 7.5),
    Device("L4 24GB", 22.03, 8.9),
    Device("RTX 3090 24GB", 23.68, 8.6),
    Device("RTX 4090 24GB", 23.53, 8.9),
    Device("A100 40GB", 39.39, 8.0),
    Device("A100 80GB", 79.15, 8.0),
    Device("H100 80GB", 79.10, 9.0),
    Device("H200 141GB", 139.72, 9.0),
)


def find_device(name: str) -> Device:
    """Return a card by its name or the beginning of it, whatever the case.

    Raises
    ------
    InputError
        If there is none, or several.
    """
    wanted = name.lower().replace("-", " ").replace("rtx ", "")
    names = {device.name.lower().replace("rtx ", ""): device for device in DEVICES}
    found = [device for key, device in names.items() if key.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(device.name for device in DEVICES)
    if found:
        raise InputError(f"--device {name}: is it {' or '.join(device.name for device in found)}?")
    raise InputError(f"--device {name}: no such card here; known are {known}.{suggest(wanted, list(names))}")
