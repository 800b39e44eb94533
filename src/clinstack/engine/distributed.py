"""Several processes that train one stack, each on its device: who reads which rows, who writes, sums over all.

``accelerate launch`` (or ``torchrun``) starts the same command once for each device. Every process builds the same
stack, reads its share of the rows of each batch, and the gradients are summed; so all take the same step, and it is the
step that one process would have taken. Process 0, the main one, holds the Run and writes; the others follow it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clinstack.engine.progress import console
from clinstack.errors import ClinstackError, InputError
from clinstack.recipe import StageRecipe
from clinstack.run import Run, follow_run, open_run

T = TypeVar("T")
_TIMEOUT = timedelta(days=2)
"""Others wait while the main process tokenises a whole hospital. A dead process is seen by the launcher, at once."""
_BUCKET = 2**25
"""Numbers that are summed over the processes in one go."""


@dataclass(frozen=True)
class World:
    """The processes of this start, seen from one of them.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    device : torch.device
        Where this process computes.
    shards : bool
        Whether the decoder layers are to be spread over the devices (FSDP2).
    """

    rank: int
    size: int
    device: torch.device
    shards: bool

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier()

    def send(self, value: T) -> T:
        """Return the main process's value in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(number) for number in tensor.tolist()]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the sum over all processes into each gradient; those of sharded layers are summed already."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if isinstance(parameter, DTensor):
                continue
            if parameter.grad is None:  # this process had no row that reaches it
                parameter.grad = torch.zeros_like(parameter)
            if bucket and sum(gradient.numel() for gradient in bucket) + parameter.numel() > _BUCKET:
                _sum_in_place(bucket)
                bucket = []
            bucket.append(parameter.grad)
        if bucket:
            _sum_in_place(bucket)

    def share(self, items: Sequence[T]) -> list[T]:
        """Return the items that this process measures: all of them where sharded layers need every process."""
        return list(items) if self.shards else list(items[self.rank :: self.size])

    def add_up(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over the processes of what each filled in for its `share`, zero elsewhere."""
        if self.size == 1 or self.shards:
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        dist.all_reduce(tensor)
        summed: NDArray[Any] = tensor.cpu().numpy()
        return summed


@cache
def world() -> World:
    """Return the processes of this start; the first call makes them known to each other.

    Raises
    ------
    InputError
        If the launcher asks for what this trainer does not do: FSDP 1, DeepSpeed or Megatron.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"), False)
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise InputError(
                f"accelerate: its configuration asks for {name.lower()}, which clinstack's trainer does not run; use "
                "the preset accelerate/ddp, or accelerate/fsdp2 for a base that does not fit one device."
            )
    shards = _is_set("ACCELERATE_USE_FSDP")
    if shards and os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("accelerate: clinstack shards with FSDP 2 only; set fsdp_version: 2.")
    # Else transformers leaves the weights empty in all processes but one, and waits for accelerate to send them.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    from accelerate import PartialState

    state: Any = PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)
    atexit.register(dist.destroy_process_group)
    # The others do the same and would say the same.
    console.quiet = state.process_index != 0
    return World(state.process_index, state.num_processes, torch.device(state.device), shards)


@contextmanager
def open_shared_run(recipe: StageRecipe, inputs: dict[str, str], *, fresh: bool = False, **facts: Any) -> Iterator[Run]:
    """Open the Run in the main process as `open_run` does; the others get one that reads and does not write.

    Raises
    ------
    InputError, ClinstackError
        In the main process, as `open_run` does; the others then end with its exit code and without a word.
    """
    here = world()
    if here.size == 1:
        with open_run(recipe, inputs, fresh=fresh, **facts) as run:
            yield run
        return
    if not here.is_main:
        code = here.send(None)
        if code is not None:
            raise SystemExit(code)
        yield follow_run(recipe)
        here.wait()
        return
    opened = False
    try:
        with open_run(recipe, inputs, fresh=fresh, **facts) as run:
            opened = True
            here.send(None)
            yield run
        here.wait()
    except ClinstackError as error:
        if not opened:
            here.send(error.exit_code)
        raise


def _sum_in_place(tensors: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in {"true", "1", "yes"}
