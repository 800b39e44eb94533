"""Decoder layers spread over the devices (PyTorch's FSDP2), for a base that does not fit one of them.

Only the decoder layers are sharded: a layer's weights come together when it is computed and go again afterwards. What
lies outside (embeddings, last norm, head) is whole on every device, because losses read it outside of any forward pass.
Checkpoints hold whole tensors, so a run goes on with another number of devices, also with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from clinstack.engine.distributed import World, world
from clinstack.errors import InputError
from clinstack.model.base import backbone
from clinstack.model.stack import Stack


def place(stack: Stack) -> None:
    """Move a stack to this process's device; where the launcher asks for it, spread its layers over all devices.

    Raises
    ------
    InputError
        If the layers cannot be sharded.
    """
    here = world()
    if here.shards:
        _shard(stack, here)
    stack.to(here.device)


def _shard(stack: Stack, here: World) -> None:
    network: Any = stack.network
    if getattr(network, "is_quantized", False):
        raise InputError("quantize: an 8-bit or 4-bit base is not sharded; use DDP, or quantize: none.")
    if any(adapter.trainable and adapter.method == "adalora" for adapter in stack.adapters):
        raise InputError("adapters: adalora gives out ranks over whole matrices and is not sharded; use DDP.")
    kinds = set(network._no_split_modules or ())
    layers = [module for module in network.modules() if type(module).__name__ in kinds]
    if not layers:
        raise InputError(f"base: transformers does not say which layers of {type(network).__name__} can be sharded.")
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = {parameter for parameter in network.parameters() if id(parameter) not in inside}
    mesh = init_device_mesh(here.device.type, (here.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(backbone(network), mesh=mesh, ignored_params=outside)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # Sums, as for the tensors outside: the trainer divides by the weight of all rows.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards. Every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the tensor where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor on a parameter's device, cut into shards as the parameter is."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        # Every process has read the same file, so nothing needs to be sent.
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor


class WholeTensors(Mapping[str, Tensor]):
    """Tensors by name, each put together from its shards when it is asked for, so that one at a time is whole."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return whole(self._tensors[name].detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def whole_stack(stack: Stack, build: Callable[[], Stack], best: Path) -> Stack:
    """Return the stack with whole tensors, to save or to describe; in the main process only.

    A sharded one is built anew on the CPU, and gets the weights of the best checkpoint.
    """
    from clinstack.engine.checkpoint import load_tensors

    if not any(isinstance(parameter, DTensor) for parameter in stack.network.parameters()):
        return stack
    again = build()
    load_tensors(best, again)
    again.eval()
    return again


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together, sharded or not."""
    norms = []
    for sharded in (False, True):
        gradients = [p.grad for p in parameters if p.grad is not None and isinstance(p, DTensor) == sharded]
        if gradients:
            norms.append(whole(nn.utils.get_total_norm(gradients)))
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
