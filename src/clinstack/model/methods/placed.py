"""What a stack asks of an adapter, whatever its method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel


class Placed(ABC):
    """An adapter that lies in a network.

    Attributes
    ----------
    name, method : str
    trainable : bool
    network : PreTrainedModel
        Where it lies.
    """

    def __init__(self, name: str, method: str, trainable: bool, network: PreTrainedModel) -> None:
        self.name = name
        self.method = method
        self.trainable = trainable
        self.network = network
        self.idle: dict[str, Tensor] = {}
        """Weights that were read for parts of the base which this stack does not compute; saved as they were."""

    @abstractmethod
    def owns(self, parameter: str) -> bool:
        """Whether the network's parameter of that name is this adapter's."""

    @abstractmethod
    def config(self) -> PeftConfig | None:
        """Return PEFT's configuration; None for a method that PEFT does not have."""

    @abstractmethod
    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights in, named as PEFT names them in files.

        Raises
        ------
        InputError
            If they do not fit.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the names that PEFT gives them in files, detached."""

    @abstractmethod
    def complaint(self) -> str | None:
        """Say why the adapter is not part of the forward pass; None when it is."""

    @abstractmethod
    def switched_off(self) -> AbstractContextManager[None]:
        """Take the adapter out of the forward pass for a while; the rest computes as if it had never been there."""

    @abstractmethod
    def places(self) -> list[str]:
        """Return the names of the network's parts that carry the adapter."""

    def encoder(self) -> dict[str, Tensor]:
        """Return the weights of the network that computes virtual tokens while they train; empty without one."""
        return {}

    def parameter_names(self) -> list[str]:
        """Return the names of its parameters that can be trained."""
        return [name for name, _ in self.network.named_parameters() if self.owns(name) and not _is_constant(name)]


def _is_constant(name: str) -> bool:
    # AdaLoRA keeps the number it divides by among its parameters.
    return ".ranknum." in name
