"""Which worker has which GPU: one each, named before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence

from clinstack.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Devices:
    """The GPUs that workers take and give back.

    Parameters
    ----------
    names : sequence of str
        Values of ``CUDA_VISIBLE_DEVICES``; empty on a machine without GPUs.
    workers : int
        At work at a time; with more workers than GPUs, GPUs are shared evenly.
    """

    def __init__(self, names: Sequence[str], workers: int) -> None:
        self._names = tuple(names)
        self._free = [self._names[index % len(self._names)] for index in range(workers)] if self._names else []

    def take(self) -> str | None:
        """Return the GPU of a new worker; None without GPUs."""
        return self._free.pop(0) if self._free else None

    def give_back(self, name: str | None) -> None:
        """Make the GPU of a worker that ended free again."""
        if name is not None:
            self._free.insert(0, name)


def device_names(count: int, wanted: Sequence[int] | None, visible: str | None = None) -> tuple[str, ...]:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` for each GPU of a study.

    Parameters
    ----------
    count : int
        GPUs that this process sees.
    wanted : sequence of int or None
        Their numbers among those; None for all.
    visible : str or None
        ``CUDA_VISIBLE_DEVICES`` of this process, which may name few of the machine's GPUs, also by their ids; read
        from the environment when not given.

    Raises
    ------
    InputError
        If there is no GPU of a number, or one stands twice.
    """
    visible = os.environ.get(VISIBLE) if visible is None else visible
    own = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    chosen = range(count) if wanted is None else wanted
    names: list[str] = []
    for number in chosen:
        if not 0 <= number < count:
            there = f"there are {count}, from 0" if count else "this machine shows none"
            raise InputError(f"devices: there is no GPU {number}; {there}.")
        if own[number] in names:
            raise InputError(f"devices: GPU {number} stands twice.")
        names.append(own[number])
    return tuple(names)
