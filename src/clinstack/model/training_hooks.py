"""What the methods of a stack do while it trains: AdaLoRA prunes its ranks, and asks for more than the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from clinstack.model.methods.adalora import RankBudget
from clinstack.model.methods.low_rank import LowRank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from clinstack.model.methods.placed import Placed


class TrainingHooks:
    """The part of a Stack that the trainer calls around each optimizer step."""

    network: PreTrainedModel
    _placed: Sequence[Placed]

    def begin_training(self, total_steps: int) -> None:
        """Tell the methods how many optimizer steps there will be; an InputError if AdaLoRA's schedule does not fit."""
        parameters = dict(self.network.named_parameters())
        for adapter in self._placed:
            if isinstance(adapter, LowRank) and adapter.method == "adalora" and adapter.trainable:
                adapter.budget = RankBudget(adapter.name, parameters, cast(Any, adapter.config()), total_steps)

    def after_step(self, step: int) -> None:
        """Let the methods work after the optimizer's step (numbered from 1), while its gradients are still there."""
        for budget in self._budgets().values():
            budget.after_step(step)

    def penalty(self) -> Tensor | None:
        """Return what the methods add to a step's mean loss (AdaLoRA's orthogonality): a scalar, or None."""
        found = [penalty for budget in self._budgets().values() if (penalty := budget.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def method_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep beside the trainable tensors, by name."""
        return {
            f"{name}/{key}": value for name, budget in self._budgets().items() for key, value in budget.state().items()
        }

    def load_method_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore `method_state`, after `begin_training`."""
        for name, budget in self._budgets().items():
            budget.load_state({key.removeprefix(f"{name}/"): value for key, value in tensors.items()})

    def _budgets(self) -> dict[str, RankBudget]:
        found = {adapter.name: adapter.budget for adapter in self._placed if isinstance(adapter, LowRank)}
        return {name: budget for name, budget in found.items() if budget is not None}
