"""Checkpoints: one safetensors file, replaced in one step. No pickles, also for the optimizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clinstack.errors import ClinstackError
from clinstack.files import replacing_file

LAST = "last.safetensors"
BEST = "best.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """All that a training run is, besides the tensors. Random numbers and order are functions of the step."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """The validation figures of each finished epoch."""
    best_epoch: int | None = None
    initial: dict[str, str] = field(default_factory=dict)
    """Hash of each trainable tensor before the first step."""
    frozen: str = ""
    """Hash of all frozen tensors."""
    without_gradient: list[str] = field(default_factory=list)
    """Trainable tensors that have not had a gradient yet."""
    log_size: int = 0
    threads: int = 0


def save_tensors(path: Path, parameters: dict[str, nn.Parameter]) -> None:
    """Write trainable tensors alone."""
    with replacing_file(path) as temporary:
        save_file({name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}, temporary)


def load_tensors(path: Path, parameters: dict[str, nn.Parameter]) -> None:
    """Read back what `save_tensors` wrote."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(name))


def save_checkpoint(
    path: Path, state: TrainingState, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write the trainable tensors, AdamW's moments and the state."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(asdict(state))})


def load_checkpoint(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> TrainingState | None:
    """Restore a checkpoint into the parameters and the optimizer; None when there is none.

    Raises
    ------
    ClinstackError
        If it does not hold exactly the tensors that the stack trains.
    """
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        held = {name.removeprefix("parameter/") for name in file.keys() if name.startswith("parameter/")}  # noqa: SIM118
        if held != set(parameters):
            raise ClinstackError(f"{path} holds other tensors than this stack trains; begin anew with --fresh.")
        state = TrainingState(**json.loads(file.metadata()["state"]))
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(f"parameter/{name}"))
                if state.step:
                    moments: dict[str, Any] = {
                        moment: file.get_tensor(f"{moment}/{name}").to(parameter.device) for moment in _MOMENTS
                    }
                    optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **moments}
    return state
