"""AdaLoRA's budget (Zhang et al. 2023): ranks go from the layers that need them least to those that need them most.

The published algorithm as PEFT's ``RankAllocator`` has it, over the factors of one adapter exactly (PEFT finds them by
a part of their name), with a state that a checkpoint can keep, and with steps counted from 1: counted from 0, as in
PEFT's example, the last allocation never comes when ``final_steps`` is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import AdaLoraConfig
from torch import Tensor, nn

from clinstack.errors import InputError

_FACTORS = ("lora_A", "lora_B", "lora_E")


class RankBudget:
    """Importance of one adapter's singular values, and which of them the budget keeps.

    Parameters
    ----------
    name : str
        The adapter's.
    parameters : mapping of str to Parameter
        All of the network's.
    config : AdaLoraConfig
        Its ``total_step`` becomes ``total_steps``.
    total_steps : int
        Optimizer steps of the training that begins.

    Raises
    ------
    InputError
        If warm-up and final steps leave no step to shrink the budget.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, nn.Parameter], config: AdaLoraConfig, total_steps: int
    ) -> None:
        if config.tinit >= total_steps - config.tfinal:
            raise InputError(
                f"adapters.{name}: warmup_steps {config.tinit} and final_steps {config.tfinal} leave none of the "
                f"{total_steps} optimizer steps to shrink the budget; lower them."
            )
        config.total_step = total_steps
        self._config = config
        self._end = total_steps - config.tfinal
        self._parameters = {key: value for key, value in parameters.items() if _factor(key, name)}
        self._layers = sorted(key for key in self._parameters if _factor(key, name) == "lora_E")
        self._initial = sum(len(self._parameters[key]) for key in self._layers)
        self._target = config.target_r * len(self._layers)
        self._importance = {key: torch.zeros_like(value) for key, value in self._parameters.items()}
        self._uncertainty = {key: torch.zeros_like(value) for key, value in self._parameters.items()}
        self._kept: dict[str, Tensor] = {}

    def after_step(self, step: int) -> None:
        """Update the importances, and set to zero what the budget of this step does not keep.

        After the optimizer's step number ``step`` (from 1), while the gradients are still there.
        """
        if step > self._end:
            self._mask()
            return
        if step < self._end:
            self._measure()
        warm = step <= self._config.tinit
        if step == self._end or (not warm and step % self._config.deltaT == 0):
            self._allocate(self._target if step == self._end else self._budget(step))

    def penalty(self) -> Tensor | None:
        """Return how far the factors are from orthogonal, times its weight: a scalar; None where the weight is 0."""
        weight = self._config.orth_reg_weight
        if weight == 0:
            return None
        distances = []
        for key, factor in self._parameters.items():
            if ".lora_E." not in key:
                product = factor @ factor.T if ".lora_A." in key else factor.T @ factor
                distances.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
        return weight * torch.stack(distances).mean()

    def state(self) -> dict[str, Tensor]:
        """Return the moving averages and the allocation, by name."""
        state = {f"importance/{key}": value for key, value in self._importance.items()}
        state |= {f"uncertainty/{key}": value for key, value in self._uncertainty.items()}
        return state | {f"kept/{key}": value for key, value in self._kept.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for key, value in self._parameters.items():
            self._importance[key] = state[f"importance/{key}"].to(value.device, copy=True)
            self._uncertainty[key] = state[f"uncertainty/{key}"].to(value.device, copy=True)
            if f"kept/{key}" in state:
                self._kept[key] = state[f"kept/{key}"].to(value.device, copy=True)

    def _budget(self, step: int) -> int:
        """Return how many singular values are kept in all: a cubic way from the initial rank to the target."""
        done = (step - self._config.tinit) / (self._end - self._config.tinit)
        return int((self._initial - self._target) * (1 - done) ** 3 + self._target)

    def _measure(self) -> None:
        """Smooth each weight's sensitivity |weight x gradient| and how uncertain that is (the paper's eq. 9 and 10)."""
        first, second = self._config.beta1, self._config.beta2
        for key, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            sensitivity = (parameter * gradient).abs().detach()
            self._importance[key] = first * self._importance[key] + (1 - first) * sensitivity
            difference = (sensitivity - self._importance[key]).abs()
            self._uncertainty[key] = second * self._uncertainty[key] + (1 - second) * difference

    def _allocate(self, budget: int) -> None:
        """Keep the most important singular values: each with its row of A and its column of B (the paper's eq. 7)."""
        scores = {}
        for key in self._layers:
            value = self._score(key).view(-1)
            row = self._score(key.replace("lora_E", "lora_A")).mean(1)
            column = self._score(key.replace("lora_E", "lora_B")).mean(0)
            scores[key] = value + torch.stack((row, column), 1).sum(1)
        if budget < self._initial:
            threshold = torch.kthvalue(torch.cat(list(scores.values())), self._initial - budget).values
            self._kept = {key: (score > threshold).to(torch.uint8) for key, score in scores.items()}
        self._mask()

    def _score(self, key: str) -> Tensor:
        return self._importance[key] * self._uncertainty[key]

    def _mask(self) -> None:
        with torch.no_grad():
            for key, kept in self._kept.items():
                self._parameters[key].masked_fill_(kept[:, None] == 0, 0.0)


def _factor(parameter: str, adapter: str) -> str | None:
    """Return which of the adapter's factors a parameter is."""
    *_, factor, owner = ("", *parameter.split("."))
    return factor if owner == adapter and factor in _FACTORS else None
