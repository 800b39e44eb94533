"""Checkpoints: one safetensors file, replaced in one step. No pickles, also for the optimizer.

They hold whole tensors: with sharded layers every process takes part in putting them together, and the main one writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clinstack.engine.distributed import world
from clinstack.engine.sharding import like, whole
from clinstack.errors import ClinstackError
from clinstack.files import replacing_file
from clinstack.model.stack import Stack

LAST = "last.safetensors"
BEST = "best.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_METHOD = "method/"


@dataclass
class TrainingState:
    """All that a training run is, besides the tensors. Random numbers and order are functions of the step."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """The figures of each validation, and the step and the epoch (from 1) it stands at the end of."""
    best: int | None = None
    """Index of the best validation in the history."""
    initial: dict[str, str] = field(default_factory=dict)
    """Hash of each trainable tensor before the first step."""
    frozen: str = ""
    """Hash of all frozen tensors."""
    without_gradient: list[str] = field(default_factory=list)
    """Trainable tensors that have not had a gradient yet."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps, to know a jump by."""
    loss_scale: float = 1.0
    steps_since_halving: int = 0
    largest_batch: int | None = None
    """Most items in a forward pass of one process, once memory ran out."""
    log_size: int = 0
    threads: int = 0
    processes: int = 1

    @property
    def best_epoch(self) -> int | None:
        """Epoch, from 1, in or after which the validation was best."""
        return None if self.best is None else int(self.history[self.best]["epoch"])

    @property
    def best_score(self) -> float | None:
        """Score of the best validation; higher is better."""
        return None if self.best is None else self.history[self.best]["score"]


def save_tensors(path: Path, stack: Stack) -> None:
    """Write what trains, alone: the tensors, and what the adapters' methods keep beside them."""
    tensors = {name: whole(parameter.detach()).cpu() for name, parameter in stack.trainable_parameters().items()}
    _write(path, tensors | _method_tensors(stack))


def load_tensors(path: Path, stack: Stack) -> None:
    """Read back what `save_tensors` wrote."""
    with _opened(path) as file, torch.no_grad():
        for name, parameter in stack.trainable_parameters().items():
            parameter.copy_(like(parameter, file.get_tensor(name)))
        _load_method_tensors(file, stack)


def save_checkpoint(path: Path, state: TrainingState, stack: Stack, optimizer: torch.optim.Optimizer) -> None:
    """Write the trainable tensors, AdamW's moments and the state."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in stack.trainable_parameters().items():
        tensors[f"parameter/{name}"] = whole(parameter.detach()).cpu()
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = whole(optimizer.state[parameter][moment]).cpu()
    _write(path, tensors | _method_tensors(stack), {"state": json.dumps(asdict(state))})


def load_checkpoint(path: Path, stack: Stack, optimizer: torch.optim.Optimizer) -> TrainingState | None:
    """Restore a checkpoint into the stack and the optimizer; None when there is none.

    Raises
    ------
    ClinstackError
        If it is damaged, does not hold exactly the tensors that the stack trains, or another version of clinstack wrote
        it.
    """
    if not path.exists():
        return None
    parameters = stack.trainable_parameters()
    with _opened(path) as file:
        names = set(file.keys())
        held = {name.removeprefix("parameter/") for name in names if name.startswith("parameter/")}
        if held != set(parameters):
            raise ClinstackError(f"{path} holds other tensors than this stack trains; begin anew with --fresh.")
        try:
            state = TrainingState(**json.loads(file.metadata()["state"]))
        except TypeError:
            raise ClinstackError(f"{path} is of another version of clinstack; begin anew with --fresh.") from None
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(like(parameter, file.get_tensor(f"parameter/{name}")))
                if f"{_MOMENTS[0]}/{name}" in names:
                    moments: dict[str, Any] = {
                        moment: like(parameter, file.get_tensor(f"{moment}/{name}")) for moment in _MOMENTS
                    }
                    optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **moments}
            _load_method_tensors(file, stack)
    return state


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError:
        raise ClinstackError(f"{path} is damaged (not a whole safetensors file); begin anew with --fresh.") from None


def _method_tensors(stack: Stack) -> dict[str, Tensor]:
    return {_METHOD + name: whole(tensor.detach()).cpu() for name, tensor in stack.method_state().items()}


def _load_method_tensors(file: Any, stack: Stack) -> None:
    names = [name for name in file.keys() if name.startswith(_METHOD)]  # noqa: SIM118
    stack.load_method_state({name.removeprefix(_METHOD): file.get_tensor(name) for name in names})


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    if not world().is_main:
        return
    with replacing_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
