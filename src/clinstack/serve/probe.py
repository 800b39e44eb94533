"""A served stack held against the output that was recorded when it was saved, through the way that notes take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from clinstack.model.checks import check_probe
from clinstack.serve.served_stack import ServedStack

if TYPE_CHECKING:
    from clinstack.serve.shared_base import SharedBase


def check_recorded(shared: SharedBase, served: ServedStack, precision: tuple[str, str], recorded: Tensor) -> None:
    """Compare a stack's output on the probe's tokens with the recorded one.

    Parameters
    ----------
    precision : (str, str)
        Dtype and quantization of the base; they say how much rounding is allowed.
    recorded : Tensor [2, outputs]

    Raises
    ------
    StackError
        If they differ by more.
    """
    check_probe(cast(Any, _Probed(shared, served, precision)), recorded)


class _Probed:
    """A served stack as `clinstack.model.checks` asks a `Stack`."""

    def __init__(self, shared: SharedBase, served: ServedStack, precision: tuple[str, str]) -> None:
        self._shared = shared
        self._name = served.name
        self.task = served.task
        self.network = shared.network
        self.device = shared.device
        self.dtype, self.quantize = precision

    def eval(self) -> None:
        self.network.eval()

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = self._shared.classify([(self._name, [row]) for row in input_ids.cpu().numpy()])
        return torch.from_numpy(np.stack(rows))

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        with self._shared.routed([self._name] * len(input_ids)):
            return self._shared.hidden_states(input_ids)
